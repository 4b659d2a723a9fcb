"""Which kind of value each expression of a text has: a number, a condition or a text, and whether of elements.

A built-in body is tried before it is delivered; one that a client sends is not. Python would answer `"a" * 10**9` and
`True + True`, and both must not be asked. After this check every number that the host computes is a float, so that no
operation takes longer than another.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stepwell_server.core.arguments import Kind
from stepwell_server.core.compiler.functions import REDUCTIONS
from stepwell_server.core.compiler.grammar import Refused

_WORDS = {
    Kind.NUMBER: "a number",
    Kind.FLAG: "a condition",
    Kind.TEXT: "a text",
    Kind.NUMBERS: "a list of numbers",
}
_PLAIN_IF = (
    "a plain if is decided when the optimizer is compiled, by flags, texts, none, and whether a number is zero; "
    "write 'x if c else y' on scalars, where(c, x, y) on elements"
)


@dataclass(frozen=True)
class Type:
    """elements: whether an array's element may be in it; everything else is for the host."""

    kind: Kind
    elements: bool = False


_NUMBER = Type(Kind.NUMBER)
_CONDITION = Type(Kind.FLAG)


class KindChecker:
    """Goes through a body that `check_body` has admitted and raises Refused where kinds do not fit.

    arrays: what holds elements. arguments: the hyperparameters. given: the numbers that the run gives.
    """

    def __init__(self, arrays: Iterable[str], arguments: Mapping[str, Kind], given: Iterable[str]) -> None:
        self._arguments = arguments
        self._given = frozenset(given)
        self._known = {name: Type(kind) for name, kind in arguments.items()}
        self._known |= dict.fromkeys(given, _NUMBER)
        self._known |= dict.fromkeys(arrays, Type(Kind.NUMBER, elements=True))

    def check(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name() as target], value=value):
                    self._assign(target, value)
                case ast.If(test=test, body=inner, orelse=orelse):
                    self._check_plain_test(test)
                    self.check(inner)
                    self.check(orelse)
                case ast.Return(value=ast.Tuple(elts=parts)):
                    for part in parts:
                        self._number(part)
                case ast.Return(value=ast.expr() as value):
                    self._number(value)

    def _assign(self, target: ast.Name, value: ast.expr) -> None:
        name = target.id
        if name in self._arguments or name in self._given:
            raise Refused(f"'{name}' is given and does not change in a body; use another name", target)
        found = self._of(value)
        if found.kind not in (Kind.NUMBER, Kind.FLAG):
            raise Refused(f"'{name}' becomes {_WORDS[found.kind]}, expected a number or a condition", value)
        before = self._known.setdefault(name, found)
        if before.kind is not found.kind:
            raise Refused(
                f"'{name}' was {_WORDS[before.kind]} and becomes {_WORDS[found.kind]}; use another name", value
            )
        # After an if, either branch may have been taken.
        self._known[name] = Type(found.kind, before.elements or found.elements)

    def _of(self, node: ast.expr) -> Type:
        match node:
            case ast.Name(id=name) if name in self._known:
                return self._known[name]
            case ast.Constant(value=bool()):
                return _CONDITION
            case ast.Constant(value=int() | float()):
                return _NUMBER
            case ast.Constant(value=str()):
                return Type(Kind.TEXT)
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr(), right=right):
                return self._join(self._condition(left), self._condition(right))
            case ast.BinOp(left=left, right=right):
                return self._join(self._number(left), self._number(right))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._check_test(operand)
                return _CONDITION
            case ast.UnaryOp(operand=operand):
                return self._number(operand)
            case ast.BoolOp(values=values):
                for value in values:
                    self._of_host(self._condition(value), value)
                return _CONDITION
            case ast.Compare():
                return self._of_comparison(node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._check_test(test)
                return self._of_either(body, orelse)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._of_call(name, args)
        raise Refused(f"{_short(node)} has no place here, expected a number, a condition or a text", node)

    def _of_comparison(self, node: ast.Compare) -> Type:
        (operator,), (right,) = node.ops, node.comparators
        if isinstance(operator, ast.Is | ast.IsNot):
            if isinstance(node.left, ast.Name) and node.left.id in self._arguments and _is_none(right):
                return _CONDITION
            raise Refused(f"{_short(node)}: 'is' has a place between a hyperparameter and None only", node)
        left_type, right_type = self._of(node.left), self._of(right)
        if left_type.kind is not right_type.kind:
            words = f"{_WORDS[left_type.kind]} with {_WORDS[right_type.kind]}"
            raise Refused(f"{_short(node)} compares {words}, expected two of a kind", node)
        if left_type.kind is Kind.NUMBER:
            return Type(Kind.FLAG, left_type.elements or right_type.elements)
        if left_type.kind is Kind.TEXT and isinstance(operator, ast.Eq | ast.NotEq):
            return _CONDITION
        raise Refused(
            f"{_short(node)} compares {_WORDS[left_type.kind]}, expected numbers, or texts with == or !=", node
        )

    def _of_either(self, body: ast.expr, orelse: ast.expr) -> Type:
        types = self._of(body), self._of(orelse)
        if types[0].kind is not types[1].kind or types[0].kind not in (Kind.NUMBER, Kind.FLAG):
            words = f"{_WORDS[types[0].kind]} and {_WORDS[types[1].kind]}"
            raise Refused(f"the two sides are {words}, expected two numbers or two conditions", orelse)
        joined = self._join(*types)
        if joined == Type(Kind.FLAG, elements=True):
            raise Refused("a condition on elements has no place in 'x if c else y'; combine it with & and |", orelse)
        return joined

    def _of_call(self, name: str, args: list[ast.expr]) -> Type:
        if name == "where":
            condition, *rest = args
            decided = self._condition(condition)
            joined = self._join(*(self._number(part) for part in rest))
            return Type(Kind.NUMBER, joined.elements or decided.elements)
        joined = self._join(*(self._number(part) for part in args))
        if name not in REDUCTIONS:
            return joined
        if not joined.elements:
            raise Refused(
                f"{name}({_short(args[0])}) reduces a number, expected elements of param, grad or slots", args[0]
            )
        return _NUMBER

    def _number(self, node: ast.expr) -> Type:
        return self._expect(node, Kind.NUMBER, "write where(c, 1, 0) for a condition")

    def _condition(self, node: ast.expr) -> Type:
        return self._expect(node, Kind.FLAG, "compare it with something")

    def _expect(self, node: ast.expr, kind: Kind, remedy: str) -> Type:
        found = self._of(node)
        if found.kind is not kind:
            raise Refused(f"{_short(node)} is {_WORDS[found.kind]}, expected {_WORDS[kind]}; {remedy}", node)
        return found

    def _check_test(self, node: ast.expr) -> None:
        """What the host decides: a condition, or whether a number is zero."""
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._check_test(operand)
            case ast.BoolOp(values=values):
                for value in values:
                    self._check_test(value)
            case _:
                found = self._of(node)
                if found.kind not in (Kind.NUMBER, Kind.FLAG):
                    raise Refused(f"{_short(node)} is {_WORDS[found.kind]}, expected a condition", node)
                self._of_host(found, node)

    def _of_host(self, found: Type, node: ast.expr) -> None:
        if found.elements:
            raise Refused(f"{_short(node)} is about elements, which only where, & and | can decide", node)

    def _check_plain_test(self, node: ast.expr) -> None:
        """What can be decided before the optimizer runs; see `branches`."""
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._check_plain_test(operand)
            case ast.BoolOp(values=values):
                for value in values:
                    self._check_plain_test(value)
            case ast.Name(id=name) if self._arguments.get(name) in (Kind.NUMBER, Kind.FLAG):
                pass
            case ast.Compare(ops=[ast.Is() | ast.IsNot()]):
                self._of(node)
            case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq()], comparators=[right]) if self._is_text(
                left, right
            ):
                self._of(node)
            case _:
                raise Refused(f"if {_short(node)}: {_PLAIN_IF}", node)

    def _is_text(self, *nodes: ast.expr) -> bool:
        return all(
            isinstance(node, ast.Name | ast.Constant) and self._of(node).kind is Kind.TEXT and not _is_none(node)
            for node in nodes
        )

    @staticmethod
    def _join(*types: Type) -> Type:
        return Type(types[0].kind, any(each.elements for each in types))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 80 else f"{text[:77]}..."
