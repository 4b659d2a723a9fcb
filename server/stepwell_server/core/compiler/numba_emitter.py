"""Source text of a program's fused CPU kernels: one loop over pieces of the vectors, one pass over memory.

In place and out of place are two kernels: an array passed under two names would fail LLVM's run-time alias check and
halve the speed.
"""

import ast
import re
from string import Template

from stepwell_server.core.compiler.functions import EMITTED
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.compiler.stages import Stage

_HEADER = '''"""The fused kernels of {name}. Written by Stepwell's compiler; do not edit."""

import math

import numpy as np
'''

_KERNEL = """def {name}(begins, ends, rows, table, {arrays}):
    zero, one = table.dtype.type(0), table.dtype.type(1)
    for piece in range(len(begins)):
        row = rows[piece]
        {before}
        for i in range(begins[piece], ends[piece]):
            {body}
        {after}
"""

# The same body over rows of a table. A row's arrays lie one after another from an address on; `offsets` says where, in
# bytes, and at its end how much there is of it. Rows lie anywhere, so those to come are fetched ahead.
_ROWS = """def {name}(addresses, others, places, table, offsets, width):
    zero, one = table.dtype.type(0), table.dtype.type(1)
    record = min(offsets[len(offsets) - 1], np.uint64(4096))
    for piece in range(len(addresses)):
        if piece + 8 < len(addresses):
            fetch(addresses[piece + 8], record)
        row = places[piece]
        {numbers}
        at = addresses[piece]
        {arrays}
        for i in range(width):
            {body}
"""

# Kernels call it, and whoever compiles them compiles it with them: see `HELPERS`. A library's cube root takes twelve
# times as long, since it keeps the loop from being vectorised. This one starts from the bits of x^(-1/3), which are
# about -1/3 of those of x; each pass takes the error e in x y^3 = 1 - e to about e^4, by the series of (1 - e)^(-1/3);
# a Newton step for the root ends it, halved so that the cube of the largest number's root does not overflow.
_CBRT = """real, bits = np.$real, np.$bits
one, half, third = real(1), real(1 / 2), real(1 / 3)
smallest, up, down = np.finfo(real).smallest_normal, real(2.0**$up), real(2.0**$down)


def cbrt(x):
    subnormal = abs(x) < smallest
    size = real(abs(x) * (up if subnormal else one))
    y = bits($start).view(real)
    for _ in range($passes):
        e = one - size * y * (y * y)
        y += y * (e * (third + e * (real(2 / 9) + e * real(14 / 81))))
    root = size * (y * y)
    root += (size * half - root * root * (root * half)) * (y * y) * (third + third)
    root *= down if subnormal else one
    return x if (x + x == x) | (x != x) else (-root if x < real(0) else root)
"""
_CBRT_PARTS = {
    # Numbers of 32 bits are divided as floats: that vectorises best, and a start need not be exact.
    "float32": {
        "bits": "int32",
        "start": "real(0x54A2FA8C) - real(size.view(bits)) * third",
        "passes": "1",
        "up": "24",
        "down": "-8",
    },
    "float64": {
        "bits": "uint64",
        "start": "bits(0x553EF0FF289DD796) - size.view(bits) // bits(3)",
        "passes": "2",
        "up": "54",
        "down": "-18",
    },
}
# What `emit` and `emit_rows` may write beside the kernels.
HELPERS = ("cbrt",)

_COEFFICIENT = re.compile(r"_c\d+")

# How each reduction takes an operand `w`, and what its sum is turned into. A NaN is not lost in a maximum.
_TAKEN = {
    "sum_all": ["r{n} += w{n}"],
    "norm": ["r{n} += w{n} * w{n}"],
    "max_abs": ["r{n} = max(r{n}, abs(w{n}))", "n{n} += w{n} != w{n}"],
}


def emit(program: Program, dtype: str) -> str:
    """A module with `in_place` and `out_of_place`, and `reduce_0`, ... for the stages before the last.

    dtype: of the arrays and the table, float32 or float64.

    All take (begins, ends, rows, table, *program.arrays): pieces as element indices, each piece's row in the table of
    coefficients, and one-dimensional arrays. `out_of_place` takes one more
    array, for the new parameters; slots are written in place by both. `reduce_N` takes one more, float64, for what each
    piece (first axis) gives for each reduction (second axis).
    """
    parts = [_HEADER.format(name=program.name)]
    if any(_calls_cbrt(expression) for stage in program.stages for expression in stage.expressions):
        parts.append(Template(_CBRT).substitute(_CBRT_PARTS[dtype], real=dtype))
    parts += [_reduction(program, number, stage) for number, stage in enumerate(program.stages[:-1])]
    parts.append(_update(program, "in_place", f"array_{program.target}"))
    if program.target == "param":
        parts.append(_update(program, "out_of_place", "out"))
    return "\n\n".join(parts)


def emit_rows(program: Program, dtype: str) -> str:
    """A module with `rows`, which makes rows of a table anew, and `rows_out`, which puts the new parameters elsewhere.

    Both take (addresses, others, places, table, offsets, width): each row's address, and that of its gradient, or of
    where the new parameters go; its row in the table of coefficients; the offsets, in bytes, of param and of each slot
    from a row's address on, and what a row takes; the elements of each array. `rows_out` writes nothing else, and is
    there for programs without a gradient.

    Whoever compiles it provides `elements_at(address, count, like)` and `fetch(address, size)`.
    """
    parts = [_HEADER.format(name=f"{program.name} on rows")]
    if any(_calls_cbrt(expression) for expression in program.last.expressions):
        parts.append(Template(_CBRT).substitute(_CBRT_PARTS[dtype], real=dtype))
    parts.append(_on_rows(program, "rows"))
    if not program.inputs:
        parts.append(_on_rows(program, "rows_out"))
    return "\n\n".join(parts)


def _on_rows(program: Program, name: str) -> str:
    stage, outputs = program.last, dict(program.last.outputs)
    if name == "rows_out":
        outputs = {"out": outputs.get("param", ast.Name("param", ast.Load()))}
    used = {part.id for value in stage.expressions for part in ast.walk(value) if isinstance(part, ast.Name)} | {
        "param"
    }
    kept = [array for array in ("param", *program.slots) if array in used or array in outputs]
    slots = {array: number for number, array in enumerate(("param", *program.slots))}
    arrays = [f"array_{array} = elements_at(at + offsets[{slots[array]}], width, table)" for array in kept]
    other = program.inputs[0] if program.inputs else "out"
    arrays.append(f"array_{other} = elements_at(others[piece], width, table)")
    # Loads stand in the order in which the dense kernel has them: on it depends which of two products is fused with
    # their sum, and so the last bit.
    loads = [f"v_{array} = array_{array}[i]" for array in program.arrays if array in used]
    locals_ = [f"v_{local} = {_text(value)}" for local, value in stage.elements]
    news = [f"new_{output} = {_text(value)}" for output, value in outputs.items()]
    stores = [f"array_{output}[i] = new_{output}" for output in outputs]
    numbers = [f"_c{index} = table[row, {index}]" for index in range(stage.coefficients)]
    return _ROWS.format(
        name=name,
        numbers="\n        ".join(numbers) or "pass",
        arrays="\n        ".join(arrays),
        body="\n            ".join([*loads, *locals_, *news, *stores]) or "pass",
    )


def _update(program: Program, name: str, target: str) -> str:
    # Every name of the body gets a prefix of its kind, so that it cannot meet another kind's, or what the kernel calls.
    outputs = dict(program.last.outputs)
    if target == "out":
        outputs.setdefault("param", ast.Name("param", ast.Load()))
    news = [f"new_{output} = {_text(value)}" for output, value in outputs.items()]
    stores = [f"{target if output == program.target else f'array_{output}'}[i] = new_{output}" for output in outputs]
    return _kernel(program, program.last, name, ["out"] if target == "out" else [], [], [*news, *stores], [])


def _reduction(program: Program, number: int, stage: Stage) -> str:
    before, body, after = [], [], []
    for n, (kind, operand) in enumerate(stage.reductions):
        before += [f"r{n} = 0.0", f"n{n} = 0"]
        body += [f"w{n} = np.float64({_text(operand)})", *(line.format(n=n) for line in _TAKEN[kind])]
        after.append(f"partials[piece, {n}] = r{n} if n{n} == 0 else np.nan")
    return _kernel(program, stage, f"reduce_{number}", ["partials"], before, body, after)


def _kernel(
    program: Program, stage: Stage, name: str, more: list[str], before: list[str], body: list[str], after: list[str]
) -> str:
    used = {part.id for value in stage.expressions for part in ast.walk(value) if isinstance(part, ast.Name)}
    if "out" in more:
        used.add("param")
    loads = [f"v_{array} = array_{array}[i]" for array in program.arrays if array in used]
    locals_ = [f"v_{local} = {_text(value)}" for local, value in stage.elements]
    numbers = [f"_c{index} = table[row, {index}]" for index in range(stage.coefficients)]
    return _KERNEL.format(
        name=name,
        arrays=", ".join([*(f"array_{array}" for array in program.arrays), *more]),
        before="\n        ".join([*numbers, *before]) or "pass",
        body="\n            ".join([*loads, *locals_, *body]) or "pass",
        after="\n        ".join(after) or "pass",
    )


def _calls_cbrt(expression: ast.expr) -> bool:
    return any(isinstance(part, ast.Name) and part.id == "cbrt" for part in ast.walk(expression))


def _text(node: ast.expr) -> str:
    return ast.unparse(ast.fix_missing_locations(_Spelled().visit(ast.parse(ast.unparse(node), mode="eval").body)))


class _Spelled(ast.NodeTransformer):
    """Spells each name with its prefix, and each function as Numba compiles it best."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return node if _COEFFICIENT.fullmatch(node.id) else ast.Name(f"v_{node.id}", ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.expr:
        assert isinstance(node.func, ast.Name)
        arguments = [ast.unparse(self.visit(argument)) for argument in node.args]
        return ast.parse(EMITTED[node.func.id].format(*(f"({text})" for text in arguments)), mode="eval").body
