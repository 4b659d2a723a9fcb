"""Emitted CUDA kernels, compiled as C++ and run on this machine, against the NumPy reference of the same definition.

Every optimizer in every flavor with every flag that the textbook's table fixes, every compiled transform and wrapper,
and every point. `cuda_shim.h` says what that shows and what not.
"""

import ast
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.array_program import ADOPT
from stepwell_server.core.compiler.cuda_emitter import BLOCK_THREADS, REALS, emit, tile_starts
from stepwell_server.core.compiler.definition import GIVEN_NUMBERS, Definition, read_rule
from stepwell_server.core.compiler.functions import (
    ELEMENTWISE,
    cbrt,
    exp,
    log,
    max_abs,
    maximum,
    minimum,
    norm,
    sign,
    sqrt,
    sum_all,
    where,
)
from stepwell_server.core.compiler.program import Program, point_program, specialise
from stepwell_server.core.gradients import NORMS
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.pieces import REDUCTION_ELEMENTS, Pieces, add_up
from stepwell_server.core.transforms import TRANSFORMS
from stepwell_server.core.wrappers import WRAPPERS
from tests.core.compiler.cuda_shim import build
from tests.textbook.cases import CASES, draw_run

DTYPES = tuple(REALS)
GIVEN = dict.fromkeys(GIVEN_NUMBERS, 0.75)
# The steps that rows are at; over a group all are at the last one.
STEPS = (1, 2, 7)


@dataclass(frozen=True)
class Row:
    """One program, and what it runs with. start: what scalars and slots begin as, those that do not begin as zero."""

    id: str
    program: Program
    values: Mapping[str, Any]
    start: Mapping[str, Any]
    rtol: float = 2e-5
    atol: float = 1e-6


def _optimizer_rows() -> Iterator[Row]:
    for definition in OPTIMIZERS.values():
        for flavor in definition.flavors:
            yield from _variants(definition, f"{definition.name}-{flavor}", _plausible(definition, flavor))
    for case in CASES:
        # Whether the table and the definitions have the same names is for `test_optimizers.py` to say.
        known = OPTIMIZERS.get(case.name)
        if known is not None:
            values = _plausible(known, case.flavor)
            values |= {name: each for name, each in draw_run(case, 1, "float64", 3).hyper.items() if name in values}
            yield from _variants(known, case.id, values, *case.tolerance("float32"))


def _variants(definition: Definition, name: str, values: Mapping[str, Any], *tolerance: float) -> Iterator[Row]:
    """With and without each optional input, and every point."""
    if definition.arrays:
        return
    start = _start(definition)
    for chosen in itertools.product(
        *([each] if need == "required" else [each, ""] for each, need in definition.inputs.items())
    ):
        program = specialise(definition, values, live=["lr"], inputs=filter(None, chosen))
        yield Row("-".join([name, *filter(None, chosen)]), program, values, start, *tolerance)
    for point, rule in definition.points.items():
        yield Row(f"{name}-{point}", point_program(definition, rule, values), values, start)


def _wrapper_rows() -> Iterator[Row]:
    chosen = [[each] for each in WRAPPERS.values()] + [[WRAPPERS["lookahead"], WRAPPERS["ema"]]]
    for definition, wrappers in itertools.product((OPTIMIZERS["sgd"], OPTIMIZERS["adam"], ADOPT), chosen):
        values = {"lr": 0.01, **_plausible(definition)}
        start = _start(definition)
        for each in wrappers:
            prefix = f"{each.name}_"
            values |= {prefix + name: value for name, value in _plausible(each).items()}
            start |= _start(each, prefix)
        program = specialise(definition, values, live=["lr"], wrappers=wrappers)
        yield Row(program.name, program, values, start)
        for each in wrappers:
            for name, rule in each.points.items():
                point = point_program(each, rule, values, f"{each.name}_")
                yield Row(f"{point.name}-{each.name}-{name}", point, values, _start(each, f"{each.name}_"))


def _transform_rows() -> Iterator[Row]:
    for definition in TRANSFORMS.values():
        if definition.arrays:
            continue
        variants = (
            [{"norm_type": p} for p in (1.0, 2.0, 3.0, math.inf)] if "norm_type" in definition.arguments else [{}]
        )
        for given in variants:
            values = _plausible(definition) | given
            yield Row(
                "-".join([definition.name, *map(str, given.values())]), specialise(definition, values), values, {}
            )


def _plausible(definition: Definition, flavor: str = "") -> dict[str, Any]:
    """A flavor's values, and a number where it has none."""
    defaults = definition.defaults(definition.flavor(flavor))
    return {name: 0.01 if value is REQUIRED else value for name, value in defaults.items()}


def _start(definition: Definition, prefix: str = "") -> dict[str, Any]:
    return {prefix + name: value for name, value in {**definition.init, **definition.scalars}.items()}


def _rows() -> list[Row]:
    found: dict[Program, Row] = {}
    for row in (*_optimizer_rows(), *_wrapper_rows(), *_transform_rows()):
        found.setdefault(row.program, row)
    found[NORMS] = Row("norms", NORMS, {}, dict.fromkeys(NORMS.scalars, 0.0))
    return list(found.values())


ROWS = _rows()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """For each dtype the kernels of every row, and those of further programs."""
    directory = tmp_path_factory.mktemp("cuda")
    programs = [*(row.program for row in ROWS), FUNCTIONS, REDUCTIONS]
    with ThreadPoolExecutor(len(DTYPES)) as threads:
        made = threads.map(lambda dtype: build([emit(each, dtype) for each in programs], directory, dtype), DTYPES)
        return {dtype: dict(zip(programs, built, strict=True)) for dtype, built in zip(DTYPES, made, strict=True)}


# The textbook's table has a row for every optimizer and flavor; its own test sees to that.
def test_every_program_kind_has_rows():
    names = {row.program.name for row in ROWS}
    assert {name for name, each in OPTIMIZERS.items() if not each.arrays} <= names
    assert {name for name, each in TRANSFORMS.items() if not each.arrays} <= names
    assert {f"adam_{name}" for name in WRAPPERS} <= names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_kernel_equals_reference(kernels, row, dtype):
    """Several rows at other steps, in pieces that begin and end anywhere; nothing is written beside them."""
    state = State(row, dtype)
    # One row's pieces need not be neighbours; tiles have 1,024 elements, or 512.
    edges = [(3, 4, 0), (5, 1100, 1), (1100, 1101, 2), (1536, 4000, 0), (4001, 4003, 1), (4032, 5000, 2)]
    pieces = Pieces(*(np.array(column, np.int64) for column in zip(*edges, strict=True)))
    steps = STEPS if row.program.scope != "group" else STEPS[-1:] * 3
    expected = {name: array.copy() for name, array in state.arrays.items()}
    chosen = [np.concatenate([np.arange(b, e) for b, e, r in edges if r == number]) for number in range(3)]
    rows = [np.concatenate(chosen)] if row.program.scope == "group" else chosen
    scalars = []
    for elements, step in zip(rows, steps, strict=False):
        scalars.append(state.advance(expected, elements, step))
    before = {name: array.copy() for name, array in state.arrays.items()}
    table = run_stages(row, kernels[dtype][row.program], dtype, pieces, before, steps, scalars * 3)
    for apart in (True, False) if row.program.target == "param" else (False,):
        arrays = {name: aligned(array) for name, array in before.items()}
        out = aligned(arrays["param"])
        run_update(row.program, kernels[dtype][row.program], dtype, pieces, table, arrays, out if apart else None)
        if apart:
            np.testing.assert_array_equal(arrays["param"], before["param"])
            arrays["param"] = out
        rtol, atol = (1e-11, 1e-12) if dtype == "float64" else (row.rtol, row.atol)
        inside = np.zeros(len(arrays["param"]), np.bool_)
        inside[np.concatenate(chosen)] = True
        for name in arrays:
            np.testing.assert_allclose(arrays[name][inside], expected[name][inside], rtol, atol, err_msg=name)
            np.testing.assert_array_equal(arrays[name][~inside], before[name][~inside], err_msg=name)


class State:
    """The arrays of a program, random; `advance` brings a row's elements and scalars to a step by the reference."""

    def __init__(self, row: Row, dtype: str, elements: int = 5120) -> None:
        self.row = row
        random = np.random.default_rng(5)
        names = row.program.arrays
        self.arrays = {name: random.normal(size=elements).astype(dtype) for name in names}
        for name in row.program.slots:
            start = row.start.get(name, 0.0)
            start = row.values.get(start, start)
            self.arrays[name] = self.arrays["param"].copy() if start == "param" else np.full(elements, start, dtype)

    def advance(self, expected, elements, step):
        """Bring `self.arrays` to before `step` and `expected` behind it, at some elements; the scalars before it."""
        program = self.row.program
        now = {name: self.arrays[name][elements] for name in program.arrays}
        scalars = {name: self.row.start[name] for name in program.scalars}
        for at in range(1, step + 1):
            # Gradients that alternate and do not vanish in sums.
            now |= {name: now[name] * (-0.75 if at % 3 else 1.25) for name in program.inputs}
            for name in program.arrays:
                self.arrays[name][elements] = now[name]
            before = dict(scalars)
            new = reference(self.row, now, scalars, at)
            scalars |= {name: value for name, value in new.items() if name in scalars}
            after = now | {name: value for name, value in new.items() if name not in scalars}
            if program.target == "param":
                now = after
            else:
                now |= {name: after[name] for name in program.slots}
        for name, value in after.items():
            expected[name][elements] = value
        return tuple(before[name] for name in program.scalars)


def reference(row: Row, arrays: Mapping[str, Any], scalars: Mapping[str, float], step: int) -> dict[str, Any]:
    """The new target, slots and scalars, by the plain NumPy reference."""
    program = row.program
    code = program._reference.__code__
    names = code.co_varnames[: code.co_argcount]
    known = {**row.values, **GIVEN, **arrays, **scalars, "step": step}
    with np.errstate(all="ignore"):
        result = program._reference(*(known[name] for name in names))
    state = [name for name in names if name in program.slots + program.scalars]
    return dict(zip([program.target, *state], result, strict=False))


def run_stages(row, kernels, dtype, pieces, arrays, steps, scalars) -> Any:
    """The table of the last stage's coefficients, after the reductions of those before it."""
    program = row.program
    sizes = np.bincount(pieces.rows, pieces.ends - pieces.begins)
    if program.scope == "group":
        sizes[:] = sizes.sum()
    found: list[list[float]] = [[] for _ in steps]
    for number, stage in enumerate(program.stages):
        table = [
            program.host(step, row.values, own, stage=number, reductions=known, size=size, given=GIVEN)[0]
            for step, own, known, size in zip(steps, scalars, found, sizes.tolist(), strict=False)
        ]
        cast = aligned(np.array(table, dtype).reshape(len(steps), stage.coefficients))
        if number == len(program.stages) - 1:
            return cast
        values = reduce(program, kernels, number, pieces, cast, {name: aligned(each) for name, each in arrays.items()})
        kinds = [kind for kind, _ in stage.reductions]
        if program.scope == "group":
            joined = [values[:, n].max() if kind == "max_abs" else values[:, n].sum() for n, kind in enumerate(kinds)]
            values = np.repeat([joined], len(steps), axis=0)
        for known, own in zip(found, values.tolist(), strict=True):
            known += [math.sqrt(value) if kind == "norm" else value for kind, value in zip(kinds, own, strict=True)]
    raise AssertionError("no last stage")


def reduce(program, kernels, number, pieces, table, arrays, blocks=3, threads=BLOCK_THREADS):
    kinds = [kind for kind, _ in program.stages[number].reductions]
    cut = pieces.cut(REDUCTION_ELEMENTS)
    partials = np.full((len(cut), len(kinds)), 99.0)
    launch = kernels[f"reduce_{number}"]
    vectors = [arrays[name] for name in program.arrays]
    launch(blocks, threads, len(cut), cut.begins, cut.ends, cut.rows, table, *vectors, partials)
    return add_up(partials, cut, len(table), kinds)


def run_update(program, kernels, dtype, pieces, table, arrays, out=None, blocks=3):
    vectors = [arrays[name] for name in program.arrays] + ([] if out is None else [out])
    launch = kernels["in_place" if out is None else "out_of_place"]
    tiles = tile_starts(pieces, dtype)
    launch(blocks, BLOCK_THREADS, len(pieces), tiles, pieces.begins, pieces.ends, pieces.rows, table, *vectors)


def aligned(array):
    """A copy that begins on 64 bytes."""
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copied = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copied[...] = array
    return copied


# Functions on values that are no ordinary numbers.


def _functions(param, grad, other, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, *, half=0.5):  # noqa: E741
    mask = (grad > other) & (other != half) | (grad <= -half)
    return (
        param,
        other,
        sqrt(grad),
        exp(grad),
        log(grad),
        cbrt(grad),
        abs(grad),
        maximum(grad, other),
        minimum(grad, other),
        sign(grad),
        where(grad >= other, grad, other),
        where(mask, half * grad, -other),
        grad % other,
        grad**other,
        grad**3 / 4,
        mask * grad,
        where(grad, half, other),
        (grad == other) / (1 + mask),
    )


def _rule(function, **more) -> Program:
    return specialise(read_rule(function, reference="", flavors={"": {}}, **more), {"half": 0.5})


FUNCTIONS = _rule(_functions)


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_follow_numpy(kernels, dtype):
    """NaN, infinities, zeros of both signs, and numbers near the ends of the range."""
    limits = np.finfo(dtype)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, limits.max, limits.tiny, 1e-3, 7.25, -8.0]
    grad, other = (np.array(column, dtype) for column in zip(*itertools.product(special, special), strict=True))
    arrays = {name: aligned(np.zeros_like(grad)) for name in FUNCTIONS.arrays} | {"grad": aligned(grad)}
    arrays["other"] = aligned(other)
    row = Row("functions", FUNCTIONS, {"half": 0.5}, {})
    pieces = Pieces(np.array([0]), np.array([len(grad)]), np.array([0]))
    expected = reference(row, arrays, {}, 1)
    table = run_stages(row, kernels[dtype][FUNCTIONS], dtype, pieces, arrays, [1], [()])
    run_update(FUNCTIONS, kernels[dtype][FUNCTIONS], dtype, pieces, table, arrays)
    parts = [part for value in FUNCTIONS.last.expressions for part in ast.walk(value)]
    assert {ast.unparse(part.func) for part in parts if isinstance(part, ast.Call)} == ELEMENTWISE.keys()
    for name in FUNCTIONS.slots:
        there = np.asarray(expected[name], dtype)
        close = {"rtol": 4 * limits.eps, "atol": 0}
        np.testing.assert_allclose(arrays[name], there, **close, err_msg=name)
        assert np.array_equal(np.isnan(arrays[name]), np.isnan(there)), name


# Reductions.


def _reductions(param, grad, *, half=0.5):
    return param * (sum_all(grad * half) + norm(grad + half * param) + max_abs(grad) + max_abs(param))


REDUCTIONS = _rule(_reductions, scope="tensor")


def reduced(kernels, dtype, pieces, arrays, **launch):
    rows = int(pieces.rows.max()) + 1
    table = aligned(np.full((rows, REDUCTIONS.stages[0].coefficients), 0.5, dtype))
    return reduce(REDUCTIONS, kernels[dtype][REDUCTIONS], 0, pieces, table, arrays, **launch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reductions_have_the_same_bits_on_any_number_of_blocks(kernels, dtype):
    elements = 3 * REDUCTION_ELEMENTS + 100
    arrays = {name: aligned(np.random.default_rng(9).normal(size=elements).astype(dtype)) for name in ("param", "grad")}
    pieces = Pieces(np.array([1, 70]), np.array([69, elements]), np.array([1, 0]))
    got = reduced(kernels, dtype, pieces, arrays)
    assert got.tobytes() == reduced(kernels, dtype, pieces, arrays, blocks=1).tobytes()
    assert got.tobytes() == reduced(kernels, dtype, pieces, arrays, blocks=64).tobytes()
    for number, part in ((1, slice(1, 69)), (0, slice(70, None))):
        grad, param = (arrays[name][part] for name in ("grad", "param"))
        half = grad.dtype.type(0.5)
        moved = (grad + half * param).astype("float64")
        expected = [(grad * half).astype("float64").sum(), (moved**2).sum(), np.abs(grad).max(), np.abs(param).max()]
        # The operand is computed in the kernel's type, with or without a fused multiply-add; sums are float64.
        np.testing.assert_allclose(got[number], expected, rtol=1e-12 if dtype == "float64" else 2e-7, atol=1e-12)


@pytest.mark.parametrize("place", [0, 3, 255, 256, 1000, 1022])
def test_a_nan_is_not_lost_in_a_maximum(kernels, place):
    arrays = {name: aligned(np.ones(1023, "float32")) for name in ("param", "grad")}
    arrays["grad"][place] = np.nan
    got = reduced(kernels, "float32", Pieces(np.array([0]), np.array([1023]), np.array([0])), arrays)
    assert np.isnan(got[0]).tolist() == [True, True, True, False]


# Launches.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [1, 2, 100])
def test_ten_thousand_small_pieces_are_one_launch(kernels, dtype, blocks):
    """Each with its own row, on one block or on many."""
    row = next(row for row in ROWS if row.id.startswith("sgd-torch") and not row.program.slots)
    count = 10_000
    begins = np.arange(count) * 16
    ends = begins + np.random.default_rng(1).integers(1, 17, count)
    pieces = Pieces(begins, ends, np.arange(count))
    width = row.program.last.coefficients
    table = aligned(np.zeros((count, width), dtype))
    values = dict(row.values)
    for number in range(count):
        table[number] = row.program.host(1, values | {"lr": 1e-3 * number}, (), given=GIVEN)[0]
    arrays = {name: aligned(np.ones(count * 16, dtype)) for name in row.program.arrays}
    expected = {name: array.copy() for name, array in arrays.items()}
    for number in (0, 1, 2, 17, 4999, 9999):
        part = slice(begins[number], ends[number])
        at = Row("", row.program, values | {"lr": 1e-3 * number}, {})
        expected["param"][part] = reference(at, {name: each[part] for name, each in arrays.items()}, {}, 1)["param"]
    run_update(row.program, kernels[dtype][row.program], dtype, pieces, table, arrays, blocks=blocks)
    for number in (0, 1, 2, 17, 4999, 9999):
        part = slice(begins[number], begins[number] + 16)
        np.testing.assert_allclose(arrays["param"][part], expected["param"][part], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_cover_pieces(dtype):
    tile = BLOCK_THREADS * 16 // np.dtype(dtype).itemsize
    begins, ends = (
        np.array([0, tile, 3 * tile - 1, 9 * tile + 5]),
        np.array([tile, 2 * tile + 1, 3 * tile + 1, 10 * tile]),
    )
    starts = tile_starts(Pieces(begins, ends, np.zeros(4, np.int64)), dtype)
    assert starts.tolist() == [0, 1, 3, 5, 6]


# Text.


def test_each_array_is_loaded_once_and_stored_once():
    for row in ROWS:
        for kernel in emit(row.program, "float32").split('extern "C"')[1:]:
            loaded, stored = re.findall(r"= load\((\w+),", kernel), re.findall(r"store\((\w+),", kernel)
            assert len(loaded) == len(set(loaded)), row.id
            assert len(stored) == len(set(stored)), row.id
            assert "double" not in kernel or "reduce_" in kernel, row.id
