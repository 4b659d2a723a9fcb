"""What an optimizer is before it is compiled: one function, and what the decorator reads from it.

    @optimizer(reference="...", matches="torch.optim.SGD", flavors={"torch": {}, "keras": {"lr": 1e-2}})
    def sgd(param, grad, momentum_buffer, *, step, lr=1e-3, momentum=0.0):
        ...
        return new_param, momentum_buffer

Positional arguments after `param` and `grad` are further inputs if `inputs` declares them, then slots, or scalars kept
per parameter if `scalars` declares them. Keyword-only arguments are hyperparameters, except those that the run gives:
`step`, and `loss`. The body returns the new param, slots and scalars in the order of the signature. `maximize` and
weight decay are woven in here, so that no body writes them.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

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

# Woven in before the body, by name: `length`, the p-norm, scaled by the largest element so that no power overflows;
# then, in PyTorch's order, negate, decay, and the rule.
_WOVEN = """
if norm_type == 2:
    length = norm(grad)
elif norm_type == 1:
    length = sum_all(abs(grad))
elif norm_type == infinity:
    length = max_abs(grad)
else:
    unit = max_abs(grad)
    unit = unit if unit > 0 else 1.0
    length = unit * sum_all((abs(grad) / unit) ** norm_type) ** (1 / norm_type)
if maximize:
    grad = -grad
if weight_decay:
    if decoupled_weight_decay:
        param = param * (1 - lr * weight_decay)
    else:
        grad = grad + weight_decay * param
"""
WOVEN_ARGUMENTS = {
    "weight_decay": Argument("weight_decay", Kind.NUMBER, 0.0, range=NON_NEGATIVE),
    "decoupled_weight_decay": Argument("decoupled_weight_decay", Kind.FLAG, False),
    "maximize": Argument("maximize", Kind.FLAG, False),
}

# Frameworks that count steps per parameter: one without a gradient does not advance.
CUSTOM = "custom"
STEP_PER_PARAMETER = frozenset({"torch", CUSTOM})
# Frameworks whose weight decay is decoupled on every optimizer.
_DECOUPLED = frozenset({"keras"})

OPTIMIZERS: dict[str, "Definition"] = {}

# Numbers that may come with an update: the loss, by what a client has multiplied it, and a factor for sparse inputs.
GIVEN_NUMBERS = ("loss", "loss_scale", "sparsity_factor")
# What a run gives a body by keyword beside the hyperparameters.
GIVEN = ("step", *GIVEN_NUMBERS)

Need = Literal["required", "optional"]


@dataclass(frozen=True)
class Rule:
    """A body on its own: how a point is computed."""

    body: tuple[ast.stmt, ...]


@dataclass(frozen=True)
class Idle:
    """What steps without a gradient make of a table's row, see `idle.py`.

    refuse: combinations in which there is no closed form, as a test of the values by the message that it causes.
    decays: whether decoupled weight decay can be woven in.
    """

    rule: Rule
    refuse: Mapping[str, Callable[[Mapping[str, Any]], bool]] = field(default_factory=dict)
    decays: bool = True


@dataclass(frozen=True)
class ArrayRule:
    """An optimizer as plain array code over a tensor at a time, for what no pass over elements can say.

    function: (xp, param, grad, *slots, step=, hyperparameters) -> (new param, *new slots); xp is numpy or cupy.
    slots: each slot's shape for a parameter's shape and the hyperparameters; None where this variant has no such slot.
    takes: why a shape is refused, or None.
    scratch: how many copies of its largest tensor it needs while it works.
    scope: over a "group", param, grad and slots are lists with one array per tensor.
    """

    function: Callable[..., tuple[Any, ...]]
    slots: Mapping[str, Callable[[tuple[int, ...], Mapping[str, Any]], tuple[int, ...] | None]]
    takes: Callable[[tuple[int, ...]], str | None]
    scratch: int
    scope: Literal["tensor", "group"] = "tensor"


@dataclass(frozen=True)
class Definition:
    """One optimizer: its equation as a syntax tree, its slots, scalars, arguments and flavors.

    first: the arrays that the signature begins with.
    inputs: what an update carries beside the gradient, each a vector, required or optional.
    given: the keywords that the run gives. static: numbers whose value must be known when the program is made.
    scope: what reductions run over, one tensor or all tensors of a group. widened: the values with which that is the
    group all the same. points: other values than the parameters.
    target: what the body makes anew: "param", or "grad" for a transform.
    arrays: the rule as array code, for an optimizer that has no body.
    text: what a client sent, for an optimizer that came as text.
    flavors: for each name the defaults that differ from the signature's; the first one is the default flavor.
    fixed: structural flags that the name itself decides (adamw's decoupled decay); they are no arguments.
    init: what a slot starts as: the name of a hyperparameter, or "param"; others start at zero.
    refuse: combinations that make no sense, as a test of the values by the message that it causes.
    idle: what steps without a gradient make of a table's row; None where that has no closed form.
    table_step: whether all rows of a table share one step, whatever the flavor.
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
    kind: str = "optimizer"
    first: tuple[str, ...] = ("param", "grad")
    inputs: Mapping[str, Need] = field(default_factory=dict)
    given: tuple[str, ...] = ("step",)
    static: frozenset[str] = frozenset()
    scope: Literal["tensor", "group"] = "tensor"
    widened: Callable[[Mapping[str, Any]], bool] | None = None
    points: Mapping[str, Rule] = field(default_factory=dict)
    target: Literal["param", "grad"] = "param"
    arrays: ArrayRule | None = None
    text: str = ""
    idle: Idle | None = None
    table_step: bool = False

    # Definitions are registered once and live as long as the process.
    __hash__ = object.__hash__

    @property
    def slots(self) -> tuple[str, ...]:
        """Every slot that some variant uses, in the order of the signature."""
        return tuple(name for name in self.state if name not in self.scalars)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers that every update must bring."""
        return tuple(name for name in self.given if name in GIVEN_NUMBERS)

    def scope_of(self, values: Mapping[str, Any]) -> Literal["tensor", "group"]:
        """What reductions run over with these values; texts and flags are enough of them."""
        return "group" if self.widened is not None and self.widened(values) else self.scope

    def flavor(self, name: str | None) -> str:
        """The flavor's name, the default one for None; raises UnknownFlavor."""
        if not name:
            return next(iter(self.flavors))
        if name not in self.flavors:
            raise unknown(UnknownFlavor, f"{self.kind} '{self.name}': flavor", name, self.flavors)
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
        owner = f"{self.kind} '{self.name}'"
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
        extra: Iterable[Argument] = (),
        scope: Literal["tensor", "group"] | None = None,
        points: Mapping[str, Callable[..., Any]] | None = None,
        idle: Idle | None = None,
        table_step: bool = False,
    ) -> "Definition":
        """Register another name for the same equation, with other defaults and decided flags.

        extra: arguments of its own, beside the equation's. scope: what its reductions run over, if not the same.
        idle: its own, if not the same.
        """
        decided: dict[str, Value] = {}
        for key in without:
            default = self.arguments[key].default
            assert not isinstance(default, Required), f"{name}: {key} cannot be left out"
            decided[key] = default
        return register(
            replace(
                self,
                name=name,
                summary=summary,
                reference=reference,
                matches=matches,
                arguments={**self.arguments, **{argument.name: argument for argument in extra}},
                flavors=flavors,
                fixed={**self.fixed, **fixed, **decided},
                scope=scope or self.scope,
                points={**self.points, **_rules(points or {})},
                idle=idle or self.idle,
                table_step=table_step,
            ),
            OPTIMIZERS,
        )

    def __call__(
        self,
        param: Any,
        grad: Any,
        *arrays: Any,
        step: int = 1,
        flavor: str | None = None,
        loss: float = math.nan,
        **hyperparameters: Any,
    ) -> Any:
        """The plain NumPy reference: new param and state from old ones.

        `arrays` holds the inputs, slots and scalars that these hyperparameters use, in the order of the signature. A
        rule whose scope is the group takes all its tensors in one flat array, or as array code in lists.
        """
        from stepwell_server.core.compiler.array_program import ArrayProgram  # noqa: PLC0415  # it imports this module
        from stepwell_server.core.compiler.program import specialise  # noqa: PLC0415  # likewise

        values = self.resolve(self.flavor(flavor), hyperparameters)
        if self.arrays is not None:
            code = ArrayProgram(self, values)
            new, slots = code.run(np, param, grad, dict(zip(code.slots, arrays, strict=True)), step, values)
            return new, *slots.values()
        program = specialise(self, values, inputs=self.inputs)
        return program.reference(param, grad, *arrays, step=step, values=values, given={"loss": loss})


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
    integers: Iterable[str] = (),
    static: Iterable[str] = (),
    inputs: Mapping[str, Need] | None = None,
    scope: Literal["tensor", "group"] = "tensor",
    widened: Callable[[Mapping[str, Any]], bool] | None = None,
    points: Mapping[str, Callable[..., Any]] | None = None,
    decay: bool = True,
    idle: Idle | None = None,
) -> Callable[[Callable[..., Any]], Definition]:
    """Make the decorated function an optimizer; see the module's docstring.

    optional: numbers that none switches off. decay: whether weight decay is woven in; not for a rule without lr.
    """

    def define(function: Callable[..., Any]) -> Definition:
        return register(
            read_rule(
                function,
                reference=reference,
                matches=matches,
                flavors=flavors,
                scalars=scalars,
                init=init,
                ranges=ranges,
                choices=choices,
                refuse=refuse,
                optional=optional,
                integers=integers,
                static=static,
                inputs=inputs,
                scope=scope,
                widened=widened,
                points=points,
                woven=("maximize", *(("weight_decay",) if decay else ())),
                idle=idle,
            ),
            OPTIMIZERS,
        )

    return define


def tensorwise(
    *,
    reference: str,
    matches: str = "",
    flavors: Mapping[str, Mapping[str, Value | Required]],
    slots: Mapping[str, Callable[[tuple[int, ...], Mapping[str, Any]], tuple[int, ...] | None]],
    takes: Callable[[tuple[int, ...]], str | None] = lambda shape: None,
    scratch: int,
    scope: Literal["tensor", "group"] = "tensor",
    ranges: Mapping[str, Range] | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    refuse: Mapping[str, Callable[[Mapping[str, Any]], bool]] | None = None,
    optional: Iterable[str] = (),
    integers: Iterable[str] = (),
    init: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Definition]:
    """Make the decorated function, plain array code, an optimizer; see `ArrayRule`. maximize is woven in."""

    def define(function: Callable[..., Any]) -> Definition:
        arguments = read_arguments(
            function,
            {**RANGES, **(ranges or {})},
            optional=optional,
            integers=integers,
            choices=choices,
            skip=GIVEN,
        )
        return register(
            Definition(
                name=function.__name__,
                summary=_summary(function),
                reference=reference,
                matches=matches,
                body=(),
                state=tuple(slots),
                scalars={},
                arguments=arguments | {"maximize": WOVEN_ARGUMENTS["maximize"]},
                flavors=flavors,
                fixed={},
                init=init or {},
                refuse=refuse or {},
                arrays=ArrayRule(function, slots, takes, scratch, scope),
                scope=scope,
            ),
            OPTIMIZERS,
        )

    return define


def read_rule(
    function: Callable[..., Any],
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
    integers: Iterable[str] = (),
    static: Iterable[str] = (),
    inputs: Mapping[str, Need] | None = None,
    scope: Literal["tensor", "group"] = "tensor",
    widened: Callable[[Mapping[str, Any]], bool] | None = None,
    points: Mapping[str, Callable[..., Any]] | None = None,
    woven: Iterable[str] = (),
    given: Iterable[str] = GIVEN,
    arrays: Sequence[str] = ("param", "grad"),
    target: Literal["param", "grad"] = "param",
    kind: str = "optimizer",
    infinite: Iterable[str] = (),
    idle: Idle | None = None,
) -> Definition:
    """A definition from a function's source; not registered yet. arrays: what comes first in its signature."""
    tree = _tree(function)
    names = [argument.arg for argument in tree.args.args]
    inputs = inputs or {}
    first = [*arrays, *inputs]
    assert names[: len(first)] == first, f"{function.__name__}: {', '.join(first)} come first"
    known = [argument.arg for argument in tree.args.kwonlyargs]
    arguments = read_arguments(
        function,
        {**RANGES, **(ranges or {})},
        optional=optional,
        integers=integers,
        choices=choices,
        skip=given,
        infinite=infinite,
    )
    body, arguments = weave(_without_docstring(tree.body), arguments, woven)
    return Definition(
        name=function.__name__,
        summary=_summary(function),
        reference=reference,
        matches=matches,
        body=body,
        state=tuple(names[len(first) :]),
        scalars=scalars or {},
        arguments=arguments,
        flavors=flavors,
        fixed={},
        init=init or {},
        refuse=refuse or {},
        kind=kind,
        first=tuple(arrays),
        inputs=inputs,
        given=tuple(name for name in given if name in known),
        static=frozenset(static),
        scope=scope,
        widened=widened,
        points=_rules(points or {}),
        target=target,
        idle=idle,
    )


def when_idle(
    function: Callable[..., Any],
    *,
    refuse: Mapping[str, Callable[[Mapping[str, Any]], bool]] | None = None,
    decays: bool = True,
) -> Idle:
    """A companion from a function's source, see `Idle` and `idle.py`."""
    return Idle(Rule(tuple(_without_docstring(_tree(function).body))), refuse or {}, decays)


def weave(
    body: Iterable[ast.stmt], arguments: Mapping[str, Argument], woven: Iterable[str]
) -> tuple[tuple[ast.stmt, ...], dict[str, Argument]]:
    """A body and its arguments with what no body writes, of "length", "maximize" and "weight_decay"."""
    woven = tuple(woven)
    added = [*(("weight_decay", "decoupled_weight_decay") if "weight_decay" in woven else ())]
    added += ["maximize"] if "maximize" in woven else []
    return (*_woven(woven), *body), {**arguments, **{name: WOVEN_ARGUMENTS[name] for name in added}}


def find_optimizer(name: str) -> Definition:
    """The optimizer of this name; raises UnknownOptimizer with the nearest one."""
    if name not in OPTIMIZERS:
        raise unknown(UnknownOptimizer, "optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def register(definition: Definition, registry: dict[str, Definition]) -> Definition:
    """Enter a definition under its name."""
    if definition.name in registry:
        raise ValueError(f"two {definition.kind}s are called '{definition.name}'; call one something else")
    registry[definition.name] = definition
    return definition


@lru_cache
def _woven(names: tuple[str, ...]) -> tuple[ast.stmt, ...]:
    parts = dict(zip(("length", "maximize", "weight_decay"), ast.parse(_WOVEN).body, strict=True))
    return tuple(part for name, part in parts.items() if name in names)


def _rules(points: Mapping[str, Callable[..., Any]]) -> dict[str, Rule]:
    return {name: Rule(tuple(_without_docstring(_tree(point).body))) for name, point in points.items()}


def _tree(function: Callable[..., Any]) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if documented else body


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or function.__name__).strip().splitlines()[0]
