"""Divides straight statements into passes over the elements and host code between them.

A subexpression of hyperparameters, the step and scalars is hoisted: the host evaluates it in float64 and hands it to
the pass as a coefficient. A reduction of elements (`norm(grad)`) ends a pass: its value is a number for the host, and
what depends on it belongs to a later pass. A body without reductions is one pass.

Every name is assigned once here: a name that is assigned again gets a new one, so that equal text means equal value.
"""

import ast
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwell_server.core.compiler.functions import FUNCTIONS, REDUCTIONS
from stepwell_server.core.compiler.grammar import Refused

Host = Callable[..., tuple[tuple[float, ...], tuple[float, ...]]]


@dataclass(frozen=True)
class Stage:
    """One pass. The last one has outputs, those before it have reductions.

    elements: assignments per element, over arrays, locals and coefficients _c0, _c1, ...
    outputs: the new element of each array that is written, by the array's name.
    reductions: (the reduction's name, its operand per element).
    coefficients: how many the host yields for this pass.
    """

    elements: tuple[tuple[str, ast.expr], ...]
    outputs: Mapping[str, ast.expr]
    reductions: tuple[tuple[str, ast.expr], ...]
    coefficients: int
    host_source: str
    host: Host

    @property
    def expressions(self) -> list[ast.expr]:
        return [
            *(value for _, value in self.elements),
            *self.outputs.values(),
            *(operand for _, operand in self.reductions),
        ]


class Splitter:
    """Takes statements one after another, then makes the stages.

    arrays: the names that hold elements. inputs: the host function's arguments.
    """

    def __init__(self, arrays: Iterable[str], inputs: Sequence[str]) -> None:
        self._inputs = inputs
        self._elements: dict[str, ast.expr] = {}
        self._host: dict[str, ast.expr] = {}
        self._coefficients: dict[str, ast.expr] = {}
        self._reductions: dict[str, tuple[str, ast.expr]] = {}
        self._element_names = set(arrays)
        self._holds_elements = set(arrays)
        self._renamed: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        # How many passes must have ended before a name's value is known.
        self._levels: dict[str, int] = {}

    def assign(self, name: str, value: ast.expr) -> None:
        """Take `name = value`."""
        resolved = self._resolve(value)
        if self._is_element(resolved):
            self._holds_elements.add(name)
            resolved = self._element(resolved)
            if isinstance(resolved, ast.Name):
                self._renamed[name] = resolved.id
                return
            fresh = f"_{name}_{len(self._elements) + len(self._host)}"
            self._elements[fresh] = resolved
            self._element_names.add(fresh)
        else:
            if name in self._holds_elements:
                raise Refused(f"'{name}' holds elements and cannot become a scalar; use another name", value)
            fresh = f"_{name}_{len(self._elements) + len(self._host)}"
            self._host[fresh] = resolved
        self._levels[fresh] = self._level(resolved)
        self._renamed[name] = fresh

    def is_element(self, value: ast.expr) -> bool:
        """Whether an expression is computed from elements."""
        return self._is_element(self._resolve(value))

    def stages(self, outputs: Mapping[str, ast.expr], advanced: Iterable[ast.expr]) -> tuple[Stage, ...]:
        """outputs: the new elements, by array; those that do not change are left out. advanced: the new scalars."""
        last = {name: self._element(self._resolve(value)) for name, value in outputs.items()}
        last = {name: value for name, value in last.items() if not (isinstance(value, ast.Name) and value.id == name)}
        scalars = [self._resolve(value) for value in advanced]
        needed = self._reachable([*last.values(), *scalars])
        reductions = {name: found for name, found in self._reductions.items() if name in needed}
        levels = max((self._levels[name] for name in reductions), default=0)
        stages = []
        known: list[str] = []
        for level in range(1, levels + 1):
            here = [name for name in reductions if self._levels[name] == level]
            stages.append(self._stage(level - 1, needed, known, {}, [reductions[name] for name in here], []))
            known = [*known, *here]
        return (*stages, self._stage(levels, needed, known, last, [], scalars))

    def _stage(
        self,
        level: int,
        needed: set[str],
        known: Sequence[str],
        outputs: Mapping[str, ast.expr],
        reductions: Iterable[tuple[str, ast.expr]],
        advanced: Iterable[ast.expr],
    ) -> Stage:
        """needed: the names that some result depends on. known: the reductions whose values the host has."""
        reductions = list(reductions)
        wanted = _names([*outputs.values(), *(operand for _, operand in reductions)])
        kept: list[tuple[str, ast.expr]] = []
        for name, value in reversed(self._elements.items()):
            if name in wanted:
                kept.append((name, value))
                wanted |= _names([value])
        used = [name for name in self._coefficients if name in wanted]
        renumber = _Renumber({name: f"_c{index}" for index, name in enumerate(used)})
        host: list[ast.stmt] = [
            ast.Assign([ast.Name(name, ast.Store())], value, lineno=0)
            for name, value in self._host.items()
            if name in needed and self._levels[name] <= level
        ]
        parts = [_tuple([self._coefficients[name] for name in used]), _tuple(list(advanced))]
        host.append(ast.Return(_tuple(parts)))
        return Stage(
            elements=tuple((name, renumber.of(value)) for name, value in reversed(kept)),
            outputs={name: renumber.of(value) for name, value in outputs.items()},
            reductions=tuple((kind, renumber.of(operand)) for kind, operand in reductions),
            coefficients=len(used),
            host_source="\n".join(ast.unparse(ast.fix_missing_locations(statement)) for statement in host),
            host=function("host", [*self._inputs, *known], host),
        )

    def _resolve(self, value: ast.expr) -> ast.expr:
        """The same expression over names that are assigned once; reductions become numbers."""
        resolved: ast.expr = _Resolver(self).visit(copy.deepcopy(value))
        return resolved

    def reduce(self, kind: str, operand: ast.expr, call: ast.expr) -> ast.expr:
        """The name of a reduction's value."""
        if not self._is_element(operand):
            raise Refused(f"{kind}({ast.unparse(operand)}): takes elements, not a number", call)
        if kind == "size":
            return ast.Name("_size", ast.Load())
        operand = self._element(operand)
        key = f"{kind}({ast.unparse(operand)})"
        if key not in self._texts:
            name = self._texts[key] = f"_r{len(self._reductions)}"
            self._reductions[name] = (kind, operand)
            self._levels[name] = self._level(operand) + 1
        return ast.Name(self._texts[key], ast.Load())

    def rename(self, name: str) -> str:
        return self._renamed.get(name, name)

    def _is_element(self, node: ast.expr) -> bool:
        return not _names([node]).isdisjoint(self._element_names)

    def _level(self, node: ast.expr) -> int:
        return max((self._levels.get(name, 0) for name in _names([node])), default=0)

    def _hoist(self, value: ast.expr) -> ast.expr:
        key = ast.unparse(value)
        if key not in self._texts:
            name = self._texts[key] = f"_c{len(self._coefficients)}"
            self._coefficients[name] = value
            self._levels[name] = self._level(value)
        return ast.Name(self._texts[key], ast.Load())

    def _element(self, node: ast.expr) -> ast.expr:
        """The same expression with its scalar parts hoisted."""
        if not self._is_element(node):
            return self._hoist(node)
        match node:
            case ast.Name():
                return node
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))) if 1 <= power <= 4:
                factor = self._element(left)
                product = factor
                for _ in range(power - 1):
                    product = ast.BinOp(product, ast.Mult(), factor)
                return product
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as op, right=right):
                return ast.BinOp(self._condition(left), op, self._condition(right))
            case ast.BinOp(left=left, op=op, right=right):
                return ast.BinOp(self._element(left), op, self._element(right))
            case ast.UnaryOp(op=op, operand=operand):
                return ast.UnaryOp(op, self._element(operand))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return ast.Compare(self._element(left), ops, [self._element(part) for part in comparators])
            case ast.Call(func=func, args=args):
                return ast.Call(func, [self._element(part) for part in args], [])
            case ast.IfExp(test=test, body=body, orelse=orelse) if not self._is_element(test):
                return ast.IfExp(self._condition(test), self._element(body), self._element(orelse))
        raise Refused(
            f"{ast.unparse(node)}: {type(node).__name__} has no place in an element's expression; use where", node
        )

    def _condition(self, node: ast.expr) -> ast.expr:
        """A condition; one that the host decides comes as a coefficient, and those are numbers."""
        if self._is_element(node):
            return self._element(node)
        decided = self._hoist(ast.IfExp(node, ast.Constant(1.0), ast.Constant(0.0)))
        return ast.Compare(decided, [ast.NotEq()], [self._hoist(ast.Constant(0.0))])

    def _reachable(self, roots: list[ast.expr]) -> set[str]:
        found: set[str] = set()
        waiting = list(_names(roots))
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found.add(name)
            value = self._elements.get(name) or self._host.get(name) or self._coefficients.get(name)
            if value is None and name in self._reductions:
                value = self._reductions[name][1]
            if value is not None:
                waiting += _names([value])
        return found


class _Resolver(ast.NodeTransformer):
    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self._splitter.rename(node.id), ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.expr:
        assert isinstance(node.func, ast.Name)
        arguments = [self.visit(argument) for argument in node.args]
        if node.func.id in REDUCTIONS:
            return self._splitter.reduce(node.func.id, arguments[0], node)
        return ast.Call(node.func, arguments, [])


class _Renumber(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def of(self, value: ast.expr) -> ast.expr:
        renamed: ast.expr = self.visit(copy.deepcopy(value))
        return renamed

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self._names.get(node.id, node.id), ast.Load())


def function(name: str, arguments: Sequence[str], body: list[ast.stmt]) -> Callable[..., Any]:
    """A Python function from statements that came from an admitted body."""
    module = ast.parse(f"def {name}({', '.join(arguments)}):\n    pass")
    definition = module.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body = body
    namespace: dict[str, Any] = {"__builtins__": {}, **FUNCTIONS}
    exec(compile(ast.fix_missing_locations(module), f"<{name}>", "exec"), namespace)  # noqa: S102  # a tree that `check_body` has admitted
    compiled: Callable[..., Any] = namespace[name]
    return compiled


def _names(nodes: Iterable[ast.expr]) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def _tuple(parts: list[Any]) -> ast.Tuple:
    return ast.Tuple(parts, ast.Load())
