"""From a definition and the values of its flags to a program that a device can run.

1. Specialise: flags, texts, none, and whether a number is zero, pick the branch of every plain `if`.
2. Split: a subexpression that depends only on hyperparameters, the step and scalars is hoisted. The host evaluates it
   in float64 once per launch and hands it to the kernel as a coefficient, cast to the kernel's type. (`1 - beta2**step`
   in float32 loses five digits.) What is left works on elements.

The result is plain data: statements for the elements, a host function for the coefficients, and the NumPy reference.
"""

import ast
import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.definition import Definition
from stepwell_server.core.compiler.functions import FUNCTIONS
from stepwell_server.core.compiler.grammar import check_body
from stepwell_server.core.errors import InvalidValue


@dataclass(frozen=True)
class Program:
    """A specialised optimizer.

    slots, scalars: those that this variant uses, in the order of the signature.
    elements: assignments per element, over `param`, `grad`, slots, locals and coefficients _c0, _c1, ...
    outputs: the expression of the new param, then of each slot.
    coefficients: how many coefficients the host function yields.
    """

    name: str
    slots: tuple[str, ...]
    scalars: tuple[str, ...]
    elements: tuple[tuple[str, ast.expr], ...]
    outputs: Mapping[str, ast.expr]
    coefficients: int
    host_source: str
    _host: Callable[..., tuple[tuple[float, ...], tuple[float, ...]]]
    _reference: Callable[..., Any]
    _arguments: tuple[str, ...]

    __hash__ = object.__hash__

    def host(
        self, step: int, values: Mapping[str, Value], scalars: Iterable[float]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The coefficients for a launch, float64, and the scalars after it.

        Raises InvalidValue if these hyperparameters divide by zero or overflow at this step.
        """
        try:
            coefficients, advanced = self._host(step, *scalars, *(values[name] for name in self._arguments))
        except (ArithmeticError, ValueError) as error:
            raise self._refusal(step, values, str(error)) from error
        # A root of a negative number is complex.
        numbers: tuple[Any, ...] = (*coefficients, *advanced)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise self._refusal(step, values, "no finite number")
        return coefficients, advanced

    def _refusal(self, step: int, values: Mapping[str, Value], what: str) -> InvalidValue:
        return InvalidValue(
            f"optimizer '{self.name}' at step {step}: the hyperparameters {dict(values)} give {what}, expected finite "
            "coefficients; change them"
        )

    def reference(self, param: Any, grad: Any, *state: Any, step: int, values: Mapping[str, Value]) -> tuple[Any, ...]:
        """The same rule on NumPy arrays, as written: new param and state from old ones."""
        result: tuple[Any, ...] = self._reference(param, grad, *state, step, *(values[n] for n in self._arguments))
        return result


def specialise(definition: Definition, values: Mapping[str, Value], live: Iterable[str] = ()) -> Program:
    """The program of an optimizer for these values; numbers named in `live` may change and count as non-zero."""
    live = frozenset(live)
    tested = _tested(definition)
    static: dict[str, Value] = {}
    for name in definition.arguments:
        value = values[name]
        if isinstance(value, bool | str | tuple) or value is None:
            static[name] = value
        elif name in tested:
            static[name] = bool(value) or name in live
    return _specialise(definition, tuple(static.items()))


@lru_cache(maxsize=1024)
def _specialise(definition: Definition, static: tuple[tuple[str, Value], ...]) -> Program:
    check_body(definition.body, ["param", "grad", *definition.state, "step", *definition.arguments])
    statements = _Specialiser(dict(static)).run(definition.body)
    # What is left is straight; names that only another branch sets are missing now.
    check_body(statements, ["param", "grad", *definition.state, "step", *definition.arguments])
    result = statements[-1] if statements else None
    if not isinstance(result, ast.Return) or result.value is None:
        raise TypeError(f"{definition.name}: a path without a return has no place in an optimizer")
    returned = result.value.elts if isinstance(result.value, ast.Tuple) else [result.value]
    if len(returned) != 1 + len(definition.state):
        expected = ", ".join(["param", *definition.state])
        raise TypeError(f"{definition.name}: returns {len(returned)} values, expected those of {expected}; return all")

    state = _used(definition.state, statements[:-1], returned)
    outputs = {"param": returned[0]} | {name: returned[1 + definition.state.index(name)] for name in state}
    arguments = tuple(definition.arguments)
    reference = [*statements[:-1], ast.Return(ast.Tuple(list(outputs.values()), ast.Load()))]
    split = _Split(definition, state, statements[:-1], outputs)
    scalars = tuple(name for name in state if name in definition.scalars)
    host = [*split.host, ast.Return(_tuple([_tuple(split.coefficients), _tuple(split.advanced)]))]
    return Program(
        name=definition.name,
        slots=tuple(name for name in state if name not in definition.scalars),
        scalars=scalars,
        elements=tuple(split.elements),
        outputs=split.outputs,
        coefficients=len(split.coefficients),
        host_source="\n".join(ast.unparse(ast.fix_missing_locations(statement)) for statement in host),
        _host=_function("host", ["step", *scalars, *arguments], host),
        _reference=_function("reference", ["param", "grad", *state, "step", *arguments], reference),
        _arguments=arguments,
    )


class _NotStatic(Exception):
    """A condition that only the host or the elements can decide."""


class _Specialiser(ast.NodeTransformer):
    """Picks the branches that static values decide."""

    def __init__(self, static: Mapping[str, Value]) -> None:
        self.static = static

    def run(self, body: Iterable[ast.stmt]) -> list[ast.stmt]:
        """The statements that are executed, up to and with the first return."""
        statements: list[ast.stmt] = []
        for statement in body:
            if isinstance(statement, ast.If):
                try:
                    chosen = statement.body if self.decide(statement.test) else statement.orelse
                except _NotStatic:
                    raise TypeError(
                        f"line {statement.lineno}: if {ast.unparse(statement.test)}: has no place in an optimizer: a "
                        "plain if is decided by flags; use a conditional expression on scalars, where on elements"
                    ) from None
                statements += self.run(chosen)
            else:
                statements.append(self.visit(copy.deepcopy(statement)))
            if statements and isinstance(statements[-1], ast.Return):
                break
        return statements

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        try:
            chosen = node.body if self.decide(node.test) else node.orelse
        except _NotStatic:
            return self.generic_visit(node)  # type: ignore[return-value]
        result: ast.expr = self.visit(chosen)
        return result

    def decide(self, test: ast.expr) -> bool:
        return bool(self.evaluate(test))

    def evaluate(self, node: ast.expr) -> Value:
        match node:
            case ast.Name(id=name) if name in self.static:
                return self.static[name]
            case ast.Constant(value=value) if value is None or isinstance(value, str | bool):
                return value
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.evaluate(operand)
            case ast.BoolOp(op=op, values=values):
                combine = all if isinstance(op, ast.And) else any
                return combine([self.decide(value) for value in values])
            case ast.Compare(left=left, ops=[ast.Is() | ast.Eq()], comparators=[right]):
                return self.evaluate_or_present(left) == self.evaluate(right)
            case ast.Compare(left=left, ops=[ast.IsNot() | ast.NotEq()], comparators=[right]):
                return self.evaluate_or_present(left) != self.evaluate(right)
        raise _NotStatic(ast.unparse(node))

    def evaluate_or_present(self, node: ast.expr) -> Value:
        """A number that is not none is no static value, but `is None` on it is decided."""
        try:
            return self.evaluate(node)
        except _NotStatic:
            if isinstance(node, ast.Name) and node.id != "step":
                return 0.0
            raise


class _Split:
    """Divides specialised statements into host code and element code."""

    def __init__(
        self,
        definition: Definition,
        state: tuple[str, ...],
        statements: list[ast.stmt],
        outputs: Mapping[str, ast.expr],
    ) -> None:
        self.element_names = {"param", "grad", *(name for name in state if name not in definition.scalars)}
        # Host names are assigned once: a reassigned one gets a new name, so that equal text means equal value.
        self.renamed: dict[str, str] = {}
        self.hoisted: dict[str, ast.expr] = {}
        self.host: list[ast.stmt] = []
        self.elements: list[tuple[str, ast.expr]] = []
        for statement in statements:
            assert isinstance(statement, ast.Assign)
            assert isinstance(statement.targets[0], ast.Name)
            self.assign(statement.targets[0].id, statement.value)
        self.outputs = {name: self.element(value) for name, value in outputs.items() if name not in definition.scalars}
        self.advanced = [self.scalar(value) for name, value in outputs.items() if name in definition.scalars]
        for name in definition.scalars:
            if name in self.element_names or (name in outputs and self.is_element(outputs[name])):
                raise TypeError(f"{definition.name}: the scalar '{name}' is computed from elements; make it a slot")
        self.coefficients = list(self.hoisted.values())

    def assign(self, name: str, value: ast.expr) -> None:
        if self.is_element(value):
            self.elements.append((name, self.element(value)))
            self.element_names.add(name)
            return
        if name in self.element_names:
            raise TypeError(f"'{name}' holds elements and cannot become a scalar; use another name")
        fresh = f"_{name}_{len(self.host)}"
        self.host.append(ast.Assign([ast.Name(fresh, ast.Store())], self.scalar(value), lineno=0))
        self.renamed[name] = fresh

    def is_element(self, node: ast.expr) -> bool:
        return any(isinstance(part, ast.Name) and part.id in self.element_names for part in ast.walk(node))

    def scalar(self, node: ast.expr) -> ast.expr:
        renamed = copy.deepcopy(node)
        for part in ast.walk(renamed):
            if isinstance(part, ast.Name):
                part.id = self.renamed.get(part.id, part.id)
        return renamed

    def hoist(self, node: ast.expr) -> ast.expr:
        value = self.scalar(node)
        key = ast.unparse(value)
        self.hoisted.setdefault(key, value)
        return ast.Name(f"_c{list(self.hoisted).index(key)}", ast.Load())

    def element(self, node: ast.expr) -> ast.expr:
        """The same expression with its scalar parts hoisted."""
        if not self.is_element(node):
            return self.hoist(node)
        match node:
            case ast.Name():
                return node
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))) if 1 <= power <= 4:
                factor = self.element(left)
                product = factor
                for _ in range(power - 1):
                    product = ast.BinOp(product, ast.Mult(), factor)
                return product
            case ast.BinOp(left=left, op=op, right=right):
                return ast.BinOp(self.element(left), op, self.element(right))
            case ast.UnaryOp(op=op, operand=operand):
                return ast.UnaryOp(op, self.element(operand))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return ast.Compare(self.element(left), ops, [self.element(part) for part in comparators])
            case ast.Call(func=func, args=args):
                return ast.Call(func, [self.element(part) for part in args], [])
            case ast.IfExp(test=test, body=body, orelse=orelse) if not self.is_element(test):
                decided = self.hoist(ast.IfExp(test, ast.Constant(1.0), ast.Constant(0.0)))
                condition = ast.Compare(decided, [ast.NotEq()], [self.hoist(ast.Constant(0.0))])
                return ast.IfExp(condition, self.element(body), self.element(orelse))
        raise TypeError(
            f"{ast.unparse(node)}: {type(node).__name__} has no place in an element's expression; use where"
        )


def _used(state: Iterable[str], statements: Iterable[ast.stmt], returned: Iterable[ast.expr]) -> tuple[str, ...]:
    """The slots and scalars that do more than pass through. returned: the new param, then the state in order."""
    state = tuple(state)
    working: list[ast.AST] = list(statements)
    for name, value in zip(("param", *state), returned, strict=True):
        if not (isinstance(value, ast.Name) and value.id == name):
            working += [value, ast.Name(name, ast.Load())]
    mentioned = {part.id for node in working for part in ast.walk(node) if isinstance(part, ast.Name)}
    return tuple(name for name in state if name in mentioned)


@lru_cache(maxsize=256)
def _tested(definition: Definition) -> frozenset[str]:
    """The names that conditions look at."""
    tests = [
        node.test
        for statement in definition.body
        for node in ast.walk(statement)
        if isinstance(node, ast.If | ast.IfExp)
    ]
    return frozenset(part.id for test in tests for part in ast.walk(test) if isinstance(part, ast.Name))


def _tuple(parts: list[Any]) -> ast.Tuple:
    return ast.Tuple(parts, ast.Load())


def _function(name: str, arguments: list[str], body: list[ast.stmt]) -> Callable[..., Any]:
    """A Python function from statements that came from a definition's own tree."""
    source = f"def {name}({', '.join(arguments)}):\n    pass"
    module = ast.parse(source)
    function = module.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = body
    namespace: dict[str, Any] = {"__builtins__": {}, **FUNCTIONS}
    exec(compile(ast.fix_missing_locations(module), f"<{name}>", "exec"), namespace)  # noqa: S102  # a tree that `check_body` has admitted
    compiled: Callable[..., Any] = namespace[name]
    return compiled
