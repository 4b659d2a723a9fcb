"""Picks the branches of a body that flags, texts, none and structural numbers decide; what is left is straight."""

import ast
import copy
import math
from collections.abc import Iterable, Mapping
from enum import Enum

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.grammar import Refused


class Presence(Enum):
    """What is known of a number that may change: whether it counts as zero."""

    ZERO = False
    NONZERO = True

    def __bool__(self) -> bool:
        return self is Presence.NONZERO


Known = Value | Presence


class _NotStatic(Exception):
    """A condition that only the host or the elements can decide."""


class BranchPicker(ast.NodeTransformer):
    """static: the values that are known when the program is made; none for an input that an update lacks."""

    def __init__(self, static: Mapping[str, Known]) -> None:
        self.static = static

    def run(self, body: Iterable[ast.stmt]) -> list[ast.stmt]:
        """The statements that are executed, up to and with the first return."""
        statements: list[ast.stmt] = []
        for statement in body:
            if isinstance(statement, ast.If):
                try:
                    chosen = statement.body if self._decide(statement.test) else statement.orelse
                except _NotStatic:
                    raise Refused(
                        f"if {ast.unparse(statement.test)}: has no place in an optimizer: a plain if is decided by "
                        "flags; use a conditional expression on scalars, where on elements",
                        statement,
                    ) from None
                statements += self.run(chosen)
            else:
                statements.append(self.visit(copy.deepcopy(statement)))
            if statements and isinstance(statements[-1], ast.Return):
                break
        return statements

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        try:
            chosen = node.body if self._decide(node.test) else node.orelse
        except _NotStatic:
            return self.generic_visit(node)  # type: ignore[return-value]
        result: ast.expr = self.visit(chosen)
        return result

    def _decide(self, test: ast.expr) -> bool:
        return bool(self._evaluate(test))

    def _evaluate(self, node: ast.expr) -> Known:
        match node:
            case ast.Name(id=name) if name in self.static:
                return self.static[name]
            case ast.Name(id="infinity"):
                return math.inf
            case ast.Constant(value=value) if value is None or isinstance(value, str | bool | int | float):
                return value
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._evaluate(operand)
            case ast.BoolOp(op=op, values=values):
                combine = all if isinstance(op, ast.And) else any
                return combine([self._decide(value) for value in values])
            case ast.Compare(left=left, ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(value=None)]):
                return (self._evaluate_or_present(left) is None) == isinstance(op, ast.Is)
            case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as op], comparators=[right]):
                compared = (self._evaluate(left), self._evaluate(right))
                if None in compared or not any(isinstance(value, Presence) for value in compared):
                    return (compared[0] == compared[1]) == isinstance(op, ast.Eq)
        raise _NotStatic(ast.unparse(node))

    def _evaluate_or_present(self, node: ast.expr) -> Known:
        """A number that is not none is no static value, but `is None` on it is decided."""
        try:
            return self._evaluate(node)
        except _NotStatic:
            if isinstance(node, ast.Name) and node.id != "step":
                return 0.0
            raise
