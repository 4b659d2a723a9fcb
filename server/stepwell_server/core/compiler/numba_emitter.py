"""Source text of the fused CPU kernel of a program: one loop, one pass over memory.

The text is dtype-neutral; the device compiles it per dtype. In place and out of place are two kernels: an array passed
under two names would fail LLVM's run-time alias check and halve the speed.
"""

import ast

from stepwell_server.core.compiler.functions import EMITTED
from stepwell_server.core.compiler.program import Program

_HEADER = '''"""The fused kernel of {name}. Written by Stepwell's compiler; do not edit."""

import math

import numpy as np
'''


def emit(program: Program) -> str:
    """A module with `in_place` and `out_of_place`.

    Both take (begin, end, param, [param_out,] grad, *slots, *coefficients): element indices, one-dimensional arrays
    of one dtype, and numbers of that dtype. `out_of_place` writes the new parameters to param_out; slots are written
    in place by both.
    """
    return "\n\n".join(
        [_HEADER.format(name=program.name), _kernel(program, "in_place"), _kernel(program, "out_of_place")]
    )


def _kernel(program: Program, name: str) -> str:
    # Every name of the body gets a prefix of its kind, so that it cannot meet another kind's, or what the kernel calls.
    target = "array_param" if name == "in_place" else "out"
    arrays = ["array_param", *(["out"] if name == "out_of_place" else []), "array_grad"]
    arrays += [f"array_{slot}" for slot in program.slots]
    numbers = [f"_c{index}" for index in range(program.coefficients)]
    loads = [f"v_{array} = array_{array}[i]" for array in ("param", "grad", *program.slots)]
    body = [f"v_{local} = {_text(value)}" for local, value in program.elements]
    news = [f"new_{output} = {_text(value)}" for output, value in program.outputs.items()]
    stores = [f"{target}[i] = new_param", *(f"array_{slot}[i] = new_{slot}" for slot in program.slots)]
    lines = "\n        ".join([*loads, *body, *news, *stores])
    signature = ", ".join(["begin", "end", *arrays, *numbers])
    return f"def {name}({signature}):\n    for i in range(begin, end):\n        {lines}\n"


def _text(node: ast.expr) -> str:
    return ast.unparse(ast.fix_missing_locations(_Spelled().visit(ast.parse(ast.unparse(node), mode="eval").body)))


class _Spelled(ast.NodeTransformer):
    """Spells each name with its prefix, and each function as Numba compiles it best."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return node if node.id.startswith("_c") else ast.Name(f"v_{node.id}", ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.expr:
        assert isinstance(node.func, ast.Name)
        arguments = [ast.unparse(self.visit(argument)) for argument in node.args]
        return ast.parse(EMITTED[node.func.id].format(*(f"({text})" for text in arguments)), mode="eval").body
