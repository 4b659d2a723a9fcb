"""What an optimizer's body may be made of: assignments to names, plain `if`, one kind of return, and arithmetic.

The compiler understands nothing else, and nothing else is ever turned into code: a body is checked before it is
specialised. Names that begin with an underscore are the compiler's own.
"""

import ast
from collections.abc import Iterable

from stepwell_server.core.compiler.functions import ARITIES

_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr)
_SIGNS = (ast.USub, ast.UAdd, ast.Not)
# The one constant that has a name.
INFINITY = "infinity"
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.Is, ast.IsNot)


class Refused(TypeError):
    """What has no place in a body, and where it stands.

    line counts from 1; offset is the column in bytes of UTF-8, from 0. Both are None for what the compiler has made.
    """

    def __init__(self, message: str, node: ast.AST | None) -> None:
        self.reason = message
        self.node = node
        self.line: int | None = getattr(node, "lineno", None)
        self.offset: int | None = getattr(node, "col_offset", None)
        super().__init__(f"line {self.line}: {message}" if self.line else message)


def check_body(body: Iterable[ast.stmt], names: Iterable[str]) -> None:
    """Raise Refused for what has no place in a body. names: what is known before the first line."""
    known = {*names, INFINITY}
    for name in sorted(known):
        _check_name(name, None)
    _check_statements(body, known)


def _check_statements(body: Iterable[ast.stmt], known: set[str]) -> None:
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name) as target], value=value):
                _check_expression(value, known)
                _check_name(name, target)
                known.add(name)
            case ast.If(test=test, body=inner, orelse=orelse):
                _check_expression(test, known)
                # A name that one branch sets may be missing after the other; specialising picks one, and then shows it.
                _check_statements(inner, known)
                _check_statements(orelse, known)
            case ast.Return(value=ast.Tuple(elts=parts)):
                for part in parts:
                    _check_expression(part, known)
            case ast.Return(value=ast.expr() as value):
                _check_expression(value, known)
            case _:
                raise _refused(statement)


def _check_expression(node: ast.expr, known: set[str]) -> None:
    match node:
        case ast.Name(id=name):
            if name not in known:
                raise Refused(f"'{name}' is not known, expected one of {', '.join(sorted(known))}", node)
        case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
            pass
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            _check_expression(left, known)
            _check_expression(right, known)
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _SIGNS):
            _check_expression(operand, known)
        case ast.BoolOp(values=values):
            for part in values:
                _check_expression(part, known)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, _COMPARISONS):
            _check_expression(left, known)
            _check_expression(right, known)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            for part in (test, body, orelse):
                _check_expression(part, known)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in ARITIES:
                raise Refused(f"'{name}' is not known, expected one of {', '.join(sorted(ARITIES))}", node)
            if len(args) != ARITIES[name]:
                raise Refused(f"{ast.unparse(node)} has no place in an optimizer: '{name}' takes {ARITIES[name]}", node)
            for argument in args:
                _check_expression(argument, known)
        case _:
            raise _refused(node)


def _check_name(name: str, node: ast.AST | None) -> None:
    if name.startswith("_") or name in ARITIES:
        raise Refused(f"'{name}' has no place in an optimizer as a name; call it something else", node)


def _refused(node: ast.stmt | ast.expr) -> Refused:
    text = ast.unparse(node).splitlines()[0]
    return Refused(f"{text}: {type(node).__name__} has no place in an optimizer", node)
