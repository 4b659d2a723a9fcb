"""How large a text's function may be: depth, operations, reductions, literals and names."""

import ast
import sys

from stepwell_server.core.compiler.functions import REDUCTIONS
from stepwell_server.core.compiler.grammar import Refused

# The largest built-in one, with all its variants, is 12 deep and has 69 operations.
DEPTH_MAX = 40
OPERATIONS_MAX = 200
# Each may be a pass over memory.
REDUCTIONS_MAX = 8
NAME_CHARACTERS_MAX = 64
NUMBER_CHARACTERS_MAX = 40
STRING_CHARACTERS_MAX = 64

# How many operations a call counts as, by how long it takes to compile.
_WEIGHTS = {"cbrt": 40, "maximum": 2, "minimum": 2, "sign": 2, "where": 2}

# Powers up to this one are products, as `stages.py` has them.
PRODUCT_MAX = 4


def check_bounds(tree: ast.FunctionDef) -> None:
    """Raise Refused for what is too deep, too long or too large; what passes can be walked and printed."""
    waiting: list[tuple[ast.AST, int, ast.AST]] = [(tree, 0, tree)]
    documented = find_docstring(tree)
    operations = reductions = 0
    while waiting:
        node, depth, placed = waiting.pop()
        placed = node if hasattr(node, "lineno") else placed
        if depth > DEPTH_MAX:
            raise Refused(f"the text nests deeper here than {DEPTH_MAX}, expected less; give parts a name", placed)
        if node is not documented:
            _check_literal(node)
        reductions += isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REDUCTIONS
        if reductions > REDUCTIONS_MAX:
            raise Refused(f"there are more than {REDUCTIONS_MAX} reductions here, expected at most as many", placed)
        children = [(child, depth + 1, placed) for child in ast.iter_child_nodes(node) if child._fields]
        waiting += reversed(children)
    for statement in tree.body:
        operations += count_operations(statement)
        if operations > OPERATIONS_MAX:
            raise Refused(
                f"there are more than {OPERATIONS_MAX} operations up to here, expected at most as many; simplify it",
                statement,
            )


def _check_literal(node: ast.AST) -> None:
    match node:
        case ast.Constant(value=bool() | None):
            pass
        case ast.Constant(value=int() | float() as number):
            # Compared by its bits: Python refuses to print a number of thousands of digits.
            too_long = isinstance(number, int) and number.bit_length() > 4 * NUMBER_CHARACTERS_MAX
            if too_long or (node.end_col_offset or 0) - node.col_offset > NUMBER_CHARACTERS_MAX:
                raise Refused(f"a number of more than {NUMBER_CHARACTERS_MAX} characters, expected a shorter one", node)
            if not abs(number) <= sys.float_info.max:
                raise Refused(f"a number beyond float64, expected at most {sys.float_info.max:g}", node)
        case ast.Constant(value=str() as text):
            if len(text) > STRING_CHARACTERS_MAX or not text.isprintable():
                raise Refused(
                    f"a text of {len(text)} characters, expected at most {STRING_CHARACTERS_MAX} printable ones", node
                )
        case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
            if len(name) > NAME_CHARACTERS_MAX or not name.isascii():
                raise Refused(
                    f"'{name[:NAME_CHARACTERS_MAX]}' is no name here, expected at most {NAME_CHARACTERS_MAX} of A-Z, "
                    "a-z, 0-9 and _",
                    node,
                )


def count_operations(node: ast.AST) -> int:
    """The operations of the kernel, where small powers are products that repeat their base; bounded."""
    match node:
        case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=int(power))) if 1 <= power <= PRODUCT_MAX:
            count = power * count_operations(left) + power - 1
        case ast.Call(func=ast.Name(id=name), args=args):
            count = _WEIGHTS.get(name, 1) + sum(count_operations(argument) for argument in args)
        case _:
            count = int(isinstance(node, ast.expr) and not isinstance(node, ast.Name | ast.Constant))
            count += sum(count_operations(child) for child in ast.iter_child_nodes(node))
    return min(count, OPERATIONS_MAX + 1)


def find_docstring(tree: ast.FunctionDef) -> ast.Constant | None:
    match tree.body[0]:
        case ast.Expr(value=ast.Constant(value=str()) as text):
            return text
    return None


def without_docstring(tree: ast.FunctionDef) -> list[ast.stmt]:
    return tree.body[1:] if find_docstring(tree) else tree.body
