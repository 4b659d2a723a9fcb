"""What an optimizer is before it is compiled: one function, and what the decorator reads from it.

    @optimizer(reference="...", matches="torch.optim.SGD", flavors={"torch": {}, "keras": {"lr": 1e-2}})
    def sgd(param, grad, momentum_buffer, *, step, lr=1e-3, momentum=0.0):
        ...
        return new_param, momentum_buffer

Positional arguments after `param` and `grad` are slots, or scalars kept per parameter if `scalars` declares them.
Keyword-only arguments after `step` are hyperparameters. The body returns the new param, slots and scalars in the
order of the signature. `maximize` and weight decay are woven in here, so that no body writes them.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from stepwell_server.core.arguments import (
    DECAY_RATE,
    NON_NEGATIVE,
    REQUIRED,
    Argument,
    Kind,
    Range,
    Required,
    Value,
    check_arguments,
    read_arguments,
    unknown,
)
from stepwell_server.core.errors import InvalidSpec, InvalidValue, UnknownFlavor, UnknownOptimizer

# Hyperparameter names are the field's own, so one table of ranges serves every optimizer.
RANGES: Mapping[str, Range] = {
    "lr": NON_NEGATIVE,
    "lr_decay": NON_NEGATIVE,
    "momentum": NON_NEGATIVE,
    "beta1": DECAY_RATE,
    "beta2": DECAY_RATE,
    "alpha": DECAY_RATE,
    "rho": DECAY_RATE,
    "eps": NON_NEGATIVE,
    "eps_root": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
    "initial_accumulator_value": NON_NEGATIVE,
    "initial_scale": NON_NEGATIVE,
    "momentum_decay": NON_NEGATIVE,
}

# Woven in before the body. The order is PyTorch's: negate, decay, then the rule.
_WOVEN = """
if maximize:
    grad = -grad
if weight_decay:
    if decoupled_weight_decay:
        param = param * (1 - lr * weight_decay)
    else:
        grad = grad + weight_decay * param
"""
_WOVEN_ARGUMENTS = {
    "weight_decay": Argument("weight_decay", Kind.NUMBER, 0.0, range=NON_NEGATIVE),
    "decoupled_weight_decay": Argument("decoupled_weight_decay", Kind.FLAG, False),
    "maximize": Argument("maximize", Kind.FLAG, False),
}

# Frameworks that count steps per parameter: one without a gradient does not advance.
STEP_PER_PARAMETER = frozenset({"torch"})
# Frameworks whose weight decay is decoupled on every optimizer.
_DECOUPLED = frozenset({"keras"})

OPTIMIZERS: dict[str, "Definition"] = {}


@dataclass(frozen=True)
class Definition:
    """One optimizer: its equation as a syntax tree, its slots, scalars, arguments and flavors.

    flavors: for each name the defaults that differ from the signature's; the first one is the default flavor.
    fixed: structural flags that the name itself decides (adamw's decoupled decay); they are no arguments.
    init: what a slot starts as: the name of a hyperparameter, or "param"; others start at zero.
    refuse: combinations that make no sense, as a test of the values by the message that it causes.
    """

    name: str
    summary: str
    reference: str
    matches: str
    body: tuple[ast.stmt, ...]
    state: tuple[str, ...]
    scalars: Mapping[str, float]
    arguments: Mapping[str, Argument]
    flavors: Mapping[str, Mapping[str, Value | Required]]
    fixed: Mapping[str, Value]
    init: Mapping[str, str]
    refuse: Mapping[str, Callable[[Mapping[str, Any]], bool]]

    # Definitions are registered once and live as long as the process.
    __hash__ = object.__hash__

    @property
    def slots(self) -> tuple[str, ...]:
        """Every slot that some variant uses, in the order of the signature."""
        return tuple(name for name in self.state if name not in self.scalars)

    def flavor(self, name: str | None) -> str:
        """The flavor's name, the default one for None; raises UnknownFlavor."""
        if not name:
            return next(iter(self.flavors))
        if name not in self.flavors:
            raise unknown(UnknownFlavor, f"optimizer '{self.name}': flavor", name, self.flavors)
        return name

    def defaults(self, flavor: str) -> dict[str, Value | Required]:
        """The value of every argument in a flavor when it is not given."""
        defaults: dict[str, Value | Required] = {name: argument.default for name, argument in self.arguments.items()}
        if flavor in _DECOUPLED and "decoupled_weight_decay" in defaults:
            defaults["decoupled_weight_decay"] = True
        return defaults | dict(self.flavors[flavor]) | dict(self.fixed)

    def arguments_of(self, flavor: str) -> dict[str, Argument]:
        """The arguments with a flavor's defaults, in order, without those that the name decides."""
        defaults = self.defaults(flavor)
        return {
            name: replace(argument, default=defaults[name])
            for name, argument in self.arguments.items()
            if name not in self.fixed
        }

    def resolve(self, flavor: str, given: Mapping[str, object], live: Iterable[str] = ()) -> dict[str, Value]:
        """Every hyperparameter's value: `given` over the flavor's defaults.

        Raises UnknownArgument or InvalidValue, and InvalidSpec for a combination that makes no sense; numbers named in
        `live` may change and count as non-zero there.
        """
        owner = f"optimizer '{self.name}'"
        values = self.defaults(flavor) | check_arguments(self.arguments_of(flavor), given, owner)
        for name, value in values.items():
            if value is REQUIRED:
                expected = self.arguments[name].expected
                raise InvalidValue(
                    f"{owner}: argument '{name}' is missing, expected {expected}; flavor '{flavor}' has no default",
                    argument=name,
                    expected=expected,
                )
        seen = values | dict.fromkeys(live, 1.0)
        for message, holds in self.refuse.items():
            if holds(seen):
                raise InvalidSpec(f"{owner}: {message}")
        return values  # type: ignore[return-value]  # REQUIRED was refused above

    def variant(
        self,
        name: str,
        summary: str,
        *,
        reference: str,
        matches: str = "",
        flavors: Mapping[str, Mapping[str, Value | Required]],
        fixed: Mapping[str, Value],
        without: Iterable[str] = (),
    ) -> "Definition":
        """Register another name for the same equation, with other defaults and decided flags."""
        decided: dict[str, Value] = {}
        for key in without:
            default = self.arguments[key].default
            assert not isinstance(default, Required), f"{name}: {key} cannot be left out"
            decided[key] = default
        return _register(
            replace(
                self,
                name=name,
                summary=summary,
                reference=reference,
                matches=matches,
                flavors=flavors,
                fixed={**fixed, **decided},
            )
        )

    def __call__(self, param: Any, grad: Any, *state: Any, step: int, flavor: str | None = None, **given: Any) -> Any:
        """The plain NumPy reference: new param and state from old ones.

        `state` holds the slots and scalars that these hyperparameters use, in the order of the signature.
        """
        from stepwell_server.core.compiler.program import specialise  # noqa: PLC0415  # it imports this module

        values = self.resolve(self.flavor(flavor), given)
        return specialise(self, values).reference(param, grad, *state, step=step, values=values)


def optimizer(
    *,
    reference: str,
    matches: str = "",
    flavors: Mapping[str, Mapping[str, Value | Required]],
    scalars: Mapping[str, float] | None = None,
    init: Mapping[str, str] | None = None,
    ranges: Mapping[str, Range] | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    refuse: Mapping[str, Callable[[Mapping[str, Any]], bool]] | None = None,
    optional: Iterable[str] = (),
    decay: bool = True,
) -> Callable[[Callable[..., Any]], Definition]:
    """Make the decorated function an optimizer; see the module's docstring.

    optional: numbers that none switches off. decay: whether weight decay is woven in; not for a rule without lr.
    """

    def define(function: Callable[..., Any]) -> Definition:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        names = [argument.arg for argument in tree.args.args]
        assert names[:2] == ["param", "grad"], f"{function.__name__}: param and grad come first"
        arguments = read_arguments(
            function, {**RANGES, **(ranges or {})}, optional=optional, choices=choices, skip=("step",)
        )
        woven = {key: value for key, value in _WOVEN_ARGUMENTS.items() if decay or key == "maximize"}
        return _register(
            Definition(
                name=function.__name__,
                summary=(function.__doc__ or function.__name__).strip().splitlines()[0],
                reference=reference,
                matches=matches,
                body=(*_woven(decay), *tree.body[1:]),
                state=tuple(names[2:]),
                scalars=scalars or {},
                arguments=arguments | woven,
                flavors=flavors,
                fixed={},
                init=init or {},
                refuse=refuse or {},
            )
        )

    return define


def find_optimizer(name: str) -> Definition:
    """The optimizer of this name; raises UnknownOptimizer with the nearest one."""
    if name not in OPTIMIZERS:
        raise unknown(UnknownOptimizer, "optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


@lru_cache
def _woven(decay: bool) -> tuple[ast.stmt, ...]:
    return tuple(ast.parse(_WOVEN).body[: 2 if decay else 1])


def _register(definition: Definition) -> Definition:
    assert definition.name not in OPTIMIZERS, f"two optimizers are called {definition.name}"
    OPTIMIZERS[definition.name] = definition
    return definition
