"""From a definition and the values of its flags to a program that a device can run.

1. Pick branches: flags, texts, none, and whether a number is zero, decide every plain `if` (`branches.py`).
2. Append the wrappers: their statements follow the optimizer's, so that one pass does both.
3. Divide: what depends on hyperparameters, the step and scalars alone is for the host, in float64; what is left works
   on elements, in one pass, or in several where there are reductions (`stages.py`). (`1 - beta2**step` in float32
   loses five digits.)

The result is plain data: stages for the elements, a host function for each, and the NumPy reference.
"""

import ast
import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.branches import BranchPicker, Known, Presence
from stepwell_server.core.compiler.definition import GIVEN_NUMBERS, Definition, Rule
from stepwell_server.core.compiler.grammar import Refused, check_body
from stepwell_server.core.compiler.idle import extract, needed
from stepwell_server.core.compiler.stages import Splitter, Stage, function
from stepwell_server.core.errors import InvalidValue


@dataclass(frozen=True)
class Program:
    """A specialised rule.

    target: the array that it makes anew, param or grad. inputs: the arrays that come with an update, grad first.
    slots, scalars: those that this variant uses, in the order of the signature.
    stages: passes over the elements; the last one writes the target and slots.
    scope: what reductions run over, and what `size` counts: a "tensor", or the "group"; "" if there is neither.
    """

    name: str
    target: str
    inputs: tuple[str, ...]
    slots: tuple[str, ...]
    scalars: tuple[str, ...]
    stages: tuple[Stage, ...]
    scope: str
    _reference: Callable[..., Any]
    _arguments: tuple[str, ...]

    __hash__ = object.__hash__

    @property
    def last(self) -> Stage:
        return self.stages[-1]

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays that kernels take, in order."""
        return ("param", *self.inputs, *self.slots)

    def host(
        self,
        step: int,
        values: Mapping[str, Value],
        scalars: Iterable[float],
        *,
        stage: int = -1,
        reductions: Sequence[float] = (),
        size: float = 0.0,
        given: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The coefficients of a stage, float64, and after the last one the scalars.

        reductions: the values of all earlier stages' reductions, in order. given: what came with the update. Raises
        InvalidValue if these hyperparameters divide by zero or overflow at this step.
        """
        numbers_given = (given.get(name, math.nan) for name in GIVEN_NUMBERS)
        arguments = (values[name] for name in self._arguments)
        try:
            coefficients, advanced = self.stages[stage].host(
                step, *numbers_given, size, *scalars, *arguments, *reductions
            )
        except (ArithmeticError, ValueError, TypeError) as error:
            raise self._refusal(step, values, str(error)) from error
        # A root of a negative number is complex.
        numbers: tuple[Any, ...] = (*coefficients, *advanced)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise self._refusal(step, values, "no finite number")
        return coefficients, advanced

    def host_rows(self, count: int, values: Mapping[str, Any]) -> NDArray[np.float64]:
        """The coefficients of a companion for so many rows at once, shape (count, coefficients).

        values: hyperparameters, and by their names arrays of shape (count,). Raises InvalidValue as `host`.
        """
        arguments = [values[name] for name in self._arguments]
        numbers_given = [math.nan for _ in GIVEN_NUMBERS]
        try:
            with np.errstate(all="ignore"):
                coefficients, _ = self.last.host(0, *numbers_given, 0.0, *arguments)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise self._refusal(0, values, str(error)) from error
        table = np.empty((count, self.last.coefficients))
        for column, each in enumerate(coefficients):
            table[:, column] = each
        if not np.isfinite(table).all():
            raise self._refusal(0, {}, "no finite number")
        return table

    def reference(
        self,
        param: Any,
        grad: Any,
        *arrays: Any,
        step: int,
        values: Mapping[str, Value],
        given: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[Any, ...]:
        """The same rule on NumPy arrays, as written: the new target and state from old ones.

        arrays: the further inputs, then slots and scalars as they stand in the signature.
        """
        result: tuple[Any, ...] = self._reference(
            param,
            grad,
            *arrays,
            step,
            *(given.get(name, math.nan) for name in GIVEN_NUMBERS),
            *(values[name] for name in self._arguments),
        )
        return result

    def _refusal(self, step: int, values: Mapping[str, Value], what: str) -> InvalidValue:
        return InvalidValue(
            f"optimizer '{self.name}' at step {step}: the hyperparameters {dict(values)} give {what}, expected finite "
            "coefficients; change them"
        )


def specialise(
    definition: Definition,
    values: Mapping[str, Value],
    live: Iterable[str] = (),
    inputs: Iterable[str] = (),
    wrappers: Sequence[Definition] = (),
) -> Program:
    """The program of a rule for these values.

    live: numbers that may change, and count as non-zero. inputs: the optional inputs that an update carries.
    wrappers: applied in order; the values of their arguments stand under "<wrapper>_<argument>".
    """
    live, inputs = frozenset(live), frozenset(inputs)
    static = _static(definition, values, live, inputs)
    wrapped = tuple((each, _static(each, values, live, inputs, f"{each.name}_")) for each in wrappers)
    return _specialise(definition, static, wrapped)


def straighten(
    definition: Definition, values: Mapping[str, Value], live: Iterable[str] = ()
) -> tuple[list[ast.stmt], dict[str, ast.expr]]:
    """The assignments of the variant that these values pick, and what it returns by name."""
    body = _straighten(definition, _static(definition, values, frozenset(live), frozenset()))
    return body.statements, body.returned


def point_program(definition: Definition, rule: Rule, values: Mapping[str, Value], prefix: str = "") -> Program:
    """The program of a point of an optimizer, or of a wrapper, whose names have a prefix; it makes param anew."""
    return _point(definition, rule, _static(definition, values, frozenset(), frozenset(), prefix), prefix)


@dataclass(frozen=True)
class IdleProgram:
    """A companion, see `idle.py`: what missed steps make of a row.

    program: makes param and slots anew; takes "last" and what the pairs give as hyperparameters, arrays by row.
    pairs: how many pairs of numbers each step gives.
    """

    program: Program
    pairs: int
    _host: Callable[..., tuple[float, ...]]
    _arguments: tuple[str, ...]

    @property
    def moves(self) -> bool:
        """Whether missed steps change anything."""
        return bool(self.program.last.outputs)

    def numbers(self, step: int, values: Mapping[str, Value]) -> NDArray[np.float64]:
        """The pairs of one step, shape (pairs, 2): each a factor and a rate. Raises InvalidValue."""
        try:
            found = self._host(step, *(values[name] for name in self._arguments))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise self.program._refusal(step, values, str(error)) from error
        numbers = np.array(found, np.float64).reshape(self.pairs, 2)
        if not np.isfinite(numbers).all():
            raise self.program._refusal(step, values, "no finite number")
        return numbers


def idle_program(definition: Definition, values: Mapping[str, Value], live: Iterable[str] = ()) -> IdleProgram:
    """The program of an optimizer's companion, which it has."""
    static = _static(definition, values, frozenset(live), frozenset())
    known = dict(static)
    decays = bool(known.get("weight_decay")) and bool(known.get("decoupled_weight_decay"))
    return _idle(definition, static, decays)


Static = tuple[tuple[str, Known], ...]


def _static(
    definition: Definition, values: Mapping[str, Value], live: frozenset[str], inputs: frozenset[str], prefix: str = ""
) -> Static:
    """What is known of a definition's names before it runs."""
    tested = _tested(definition)
    static: dict[str, Known] = dict.fromkeys(
        (name for name, need in definition.inputs.items() if need == "optional" and name not in inputs), None
    )
    for name in definition.arguments:
        value = values[prefix + name]
        if isinstance(value, bool | str | tuple) or value is None or name in definition.static:
            static[name] = value
        elif name in tested:
            static[name] = Presence(bool(value) or prefix + name in live)
    return tuple(static.items())


@dataclass(frozen=True)
class _Straight:
    """A body without branches: assignments, and what it returns by name: the target first, then the state in use."""

    statements: list[ast.stmt]
    returned: dict[str, ast.expr]


@lru_cache(maxsize=1024)
def _specialise(
    definition: Definition, static: Static, wrappers: tuple[tuple[Definition, Static], ...] = ()
) -> Program:
    body = _straighten(definition, static)
    absent = {name for name, value in static if value is None}
    inputs = tuple(name for name in ("grad", *definition.inputs) if name not in absent)
    scalars = dict(definition.scalars)
    arguments = list(definition.arguments)
    if wrappers:
        body = _Straight([_assign("_before", _name("param")), *body.statements], body.returned)
    for wrapper, wrapper_static in wrappers:
        body = _append(body, wrapper, _straighten(wrapper, wrapper_static))
        scalars |= {f"{wrapper.name}_{name}": value for name, value in wrapper.scalars.items()}
        arguments += [f"{wrapper.name}_{name}" for name in wrapper.arguments]
        if "lr" in wrapper.given and "lr" not in arguments:
            arguments.append("lr")  # behind array code, whose own arguments the pass does not know
    name = "_".join([definition.name, *(wrapper.name for wrapper, _ in wrappers)])
    return _make(name, definition, inputs, scalars, arguments, body, scope=definition.scope_of(dict(static)))


@lru_cache(maxsize=256)
def _point(definition: Definition, rule: Rule, static: Static, prefix: str) -> Program:
    known = ["param", *definition.state, "step", *definition.arguments]
    check_body(rule.body, known)
    statements = BranchPicker(dict(static)).run(rule.body)
    if prefix:
        names = {"param": "param", "step": "step"}
        names |= {name: prefix + name for name in (*definition.state, *definition.arguments)}
        rename = _Prefixed(names, f"_{prefix}")
        statements = [rename.visit(copy.deepcopy(statement)) for statement in statements]
    (result,) = _returned(definition.name, statements, 1)
    mentioned = _mentioned(statements)
    return _make(
        f"{definition.name}_point",
        definition,
        (),
        {prefix + name: value for name, value in definition.scalars.items()},
        [prefix + name for name in definition.arguments],
        _Straight(statements[:-1], {"param": result}),
        [prefix + name for name in definition.state if prefix + name in mentioned],
        definition.scope,
    )


@lru_cache(maxsize=256)
def _idle(definition: Definition, static: Static, decays: bool) -> IdleProgram:
    assert definition.idle is not None
    statements, missed = extract(BranchPicker(dict(static)).run(definition.idle.rule.body), decays)
    own = ["last", *missed.names]
    check_body(statements, ["param", *definition.state, "step", *definition.arguments, *own])
    returned = _returned(definition.name, statements, 1 + len(definition.state), ("param", *definition.state))
    names = ("param", *definition.state)
    used = _used(names, statements[:-1], returned)
    numbers = [number for pair in missed.pairs for number in pair]
    host: list[ast.stmt] = [*needed(statements[:-1], numbers), ast.Return(ast.Tuple(numbers, ast.Load()))]
    program = _make(
        f"{definition.name}_idle",
        definition,
        (),
        {},
        [*definition.arguments, *own],
        _Straight(
            needed(statements[:-1], returned),
            {name: value for name, value in zip(names, returned, strict=True) if name in used},
        ),
    )
    return IdleProgram(
        program=program,
        pairs=len(missed.pairs),
        _host=function("missed", ["step", *definition.arguments], host),
        _arguments=tuple(definition.arguments),
    )


def _make(
    name: str,
    definition: Definition,
    inputs: tuple[str, ...],
    declared: Mapping[str, float],
    arguments: list[str],
    body: _Straight,
    read: Iterable[str] = (),
    scope: str = "tensor",
) -> Program:
    """declared: the scalars' first values. read: state that the body reads and does not return."""
    target, *state = body.returned
    state = [*state, *read]
    scalars = tuple(one for one in state if one in declared)
    slots = tuple(one for one in state if one not in declared)
    splitter = Splitter(["param", *inputs, *slots], ["step", *GIVEN_NUMBERS, "_size", *scalars, *arguments])
    for statement in body.statements:
        assert isinstance(statement, ast.Assign)
        assert isinstance(statement.targets[0], ast.Name)
        splitter.assign(statement.targets[0].id, statement.value)
    for scalar in scalars:
        if scalar in body.returned and splitter.is_element(body.returned[scalar]):
            raise Refused(
                f"{definition.name}: the scalar '{scalar}' is computed from elements; make it a slot",
                body.returned[scalar],
            )
    stages = splitter.stages(
        {one: value for one, value in body.returned.items() if one not in declared},
        [body.returned[one] for one in scalars if one in body.returned],
    )
    wide = len(stages) > 1 or any(re.search(r"\b_size\b", stage.host_source) for stage in stages)
    reference = [*body.statements, ast.Return(ast.Tuple(list(body.returned.values()), ast.Load()))]
    return Program(
        name=name,
        target=target,
        inputs=inputs,
        slots=slots,
        scalars=scalars,
        stages=stages,
        scope=scope if wide else "",
        _reference=function("reference", ["param", *inputs, *state, "step", *GIVEN_NUMBERS, *arguments], reference),
        _arguments=tuple(arguments),
    )


def _straighten(definition: Definition, static: Static) -> _Straight:
    known = [*definition.first, *definition.inputs, *definition.state, *definition.given, *definition.arguments]
    check_body(definition.body, known)
    statements = BranchPicker(dict(static)).run(definition.body)
    # What is left is straight; names that only another branch sets are missing now.
    check_body(statements, [name for name in known if (name, None) not in static or name not in definition.inputs])
    returned = _returned(definition.name, statements, 1 + len(definition.state), [definition.target, *definition.state])
    names = (definition.target, *definition.state)
    used = _used(names, statements[:-1], returned)
    return _Straight(
        statements[:-1], {name: value for name, value in zip(names, returned, strict=True) if name in used}
    )


def _returned(owner: str, statements: list[ast.stmt], count: int, names: Iterable[str] = ()) -> list[ast.expr]:
    result = statements[-1] if statements else None
    if not isinstance(result, ast.Return) or result.value is None:
        raise Refused(f"{owner}: a path without a return has no place in an optimizer", result)
    returned = result.value.elts if isinstance(result.value, ast.Tuple) else [result.value]
    if len(returned) != count:
        raise Refused(
            f"{owner}: returns {len(returned)} values, expected those of {', '.join(names) or 'one'}; return all",
            result,
        )
    return returned


def _append(body: _Straight, wrapper: Definition, own: _Straight) -> _Straight:
    """The wrapper's statements after the body's; the wrapper's names get its own as a prefix."""
    statements = list(body.statements)
    returned: dict[str, ast.expr] = {}
    # All values first: the new param must not be seen by the slots that were computed from the old one.
    for name, value in body.returned.items():
        fresh = f"_{wrapper.name}_of_{name}"
        statements.append(_assign(fresh, value))
        returned[name] = _name(fresh)
    target = next(iter(body.returned))
    names = {"param": returned[target].id, "before": "_before", "step": "step", "lr": "lr"}  # type: ignore[attr-defined]
    names |= {name: f"{wrapper.name}_{name}" for name in (*wrapper.state, *wrapper.arguments)}
    rename = _Prefixed(names, f"_{wrapper.name}_")
    for statement in own.statements:
        assert isinstance(statement, ast.Assign)
        statements.append(rename.visit(copy.deepcopy(statement)))
    new_param, *state = own.returned.items()
    returned[target] = rename.visit(copy.deepcopy(new_param[1]))
    for name, value in state:
        returned[f"{wrapper.name}_{name}"] = rename.visit(copy.deepcopy(value))
    return _Straight(statements, returned)


class _Prefixed(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str], prefix: str) -> None:
        self._names = dict(names)
        self._prefix = prefix

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        value = self.visit(node.value)
        (target,) = node.targets
        assert isinstance(target, ast.Name)
        # A name that the body assigns is its own from here on, also where it was an argument's.
        self._names[target.id] = f"{self._prefix}{target.id}"
        return _assign(self._names[target.id], value)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return ast.Call(node.func, [self.visit(argument) for argument in node.args], [])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return _name(self._names[node.id])


def _used(names: Sequence[str], statements: Iterable[ast.stmt], returned: Sequence[ast.expr]) -> set[str]:
    """The target, and the slots and scalars that do more than pass through."""
    working: list[ast.AST] = list(statements)
    for name, value in zip(names, returned, strict=True):
        if not (isinstance(value, ast.Name) and value.id == name):
            working += [value, _name(name)]
    return {names[0], *_mentioned(working)}


@lru_cache(maxsize=256)
def _tested(definition: Definition) -> frozenset[str]:
    """The names that conditions look at."""
    tests = [
        node.test
        for statement in (*definition.body, *(part for rule in definition.points.values() for part in rule.body))
        for node in ast.walk(statement)
        if isinstance(node, ast.If | ast.IfExp)
    ]
    return frozenset(_mentioned(tests))


def _mentioned(nodes: Iterable[ast.AST]) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _assign(name: str, value: ast.expr) -> ast.Assign:
    return ast.Assign([ast.Name(name, ast.Store())], value, lineno=0)
