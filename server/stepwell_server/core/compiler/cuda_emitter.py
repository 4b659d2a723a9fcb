"""Source text of a program's fused CUDA kernels: one launch over all pieces of the vectors, one pass over memory.

The text includes nothing, so that NVRTC, nvcc, and the C++ compiler of a machine without a GPU all take it as it is.
Elements are worked on in the kernel's own type throughout; only sums of reductions are float64.
"""

import ast
from collections.abc import Iterable
from string import Template

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.compiler.functions import ELEMENTWISE
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.compiler.stages import Stage
from stepwell_server.core.pieces import Pieces

# Threads of a block. Every kernel is launched with exactly so many.
BLOCK_THREADS = 256
# What one thread loads at once, the widest access that the hardware has. Arrays must begin on such a boundary.
PACK_BYTES = 16

REALS = {"float32": "float", "float64": "double"}

# Every function has the name that bodies call it by, so that `where` and its kin are found here, not in a library.
_PREAMBLE = """// The fused kernels of $name in $real. Written by Stepwell's compiler; do not edit.

typedef $real real;
typedef long long int64;

#define LANES $lanes
#define BLOCK_THREADS $threads

struct alignas($pack_bytes) Pack { real at[LANES]; };

static __device__ __forceinline__ real f_sqrt(real x) { return sqrt${suffix}(x); }
static __device__ __forceinline__ real f_exp(real x) { return exp${suffix}(x); }
static __device__ __forceinline__ real f_log(real x) { return log${suffix}(x); }
static __device__ __forceinline__ real f_cbrt(real x) { return cbrt${suffix}(x); }
static __device__ __forceinline__ real f_abs(real x) { return fabs${suffix}(x); }
static __device__ __forceinline__ real f_pow(real x, real y) { return pow${suffix}(x, y); }
// NaN propagates through these two from either side.
static __device__ __forceinline__ real f_maximum(real x, real y) { return x > y || x != x ? x : y; }
static __device__ __forceinline__ real f_minimum(real x, real y) { return x < y || x != x ? x : y; }
static __device__ __forceinline__ real f_sign(real x) {
    return x > real(0) ? real(1) : x < real(0) ? real(-1) : x == real(0) ? real(0) : x;
}
static __device__ __forceinline__ real f_where(bool condition, real x, real y) { return condition ? x : y; }
// The remainder has the divisor's sign.
static __device__ __forceinline__ real f_mod(real x, real y) {
    const real rest = fmod${suffix}(x, y);
    return rest != real(0) && (rest < real(0)) != (y < real(0)) ? rest + y : rest;
}

// A thread's elements, those from low to high of its pack; in one access where that is all of them.
static __device__ __forceinline__ Pack load(const real* __restrict__ array, int64 at, int low, int high) {
    if (high - low == LANES) return *reinterpret_cast<const Pack*>(array + at);
    Pack pack;
    #pragma unroll
    for (int lane = 0; lane < LANES; ++lane) pack.at[lane] = lane >= low && lane < high ? array[at + lane] : real(0);
    return pack;
}

static __device__ __forceinline__ void store(real* __restrict__ array, Pack pack, int64 at, int low, int high) {
    if (high - low == LANES) {
        *reinterpret_cast<Pack*>(array + at) = pack;
        return;
    }
    // All lanes again, since a pack that is indexed by a variable would not stay in registers.
    #pragma unroll
    for (int lane = 0; lane < LANES; ++lane)
        if (lane >= low && lane < high) array[at + lane] = pack.at[lane];
}
"""

# A block takes tile after tile. Tiles are aligned, so only a piece's first and last one are not whole; `tiles` says
# which is each piece's first, and how many there are. While a piece lasts nothing is looked up again.
_UPDATE = """extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) $name(
    int64 pieces, const int64* __restrict__ tiles, const int64* __restrict__ begins, const int64* __restrict__ ends,
    const int64* __restrict__ rows, const real* __restrict__ table,
    $arrays
) {
    const int64 all = tiles[pieces];
    int64 first = 0, following = 0, begin = 0, end = 0;
    $declarations
    for (int64 tile = blockIdx.x; tile < all; tile += gridDim.x) {
        if (tile >= following) {
            int64 piece = 0, after = pieces;
            while (after - piece > 1) {
                const int64 middle = (piece + after) / 2;
                if (tiles[middle] <= tile) piece = middle; else after = middle;
            }
            begin = begins[piece];
            end = ends[piece];
            following = tiles[piece + 1];
            first = begin / (BLOCK_THREADS * LANES) - tiles[piece];
            $coefficients
        }
        const int64 at = ((first + tile) * BLOCK_THREADS + threadIdx.x) * LANES;
        if (at + LANES <= begin || at >= end) continue;
        const int low = at < begin ? int(begin - at) : 0;
        const int high = end - at < LANES ? int(end - at) : LANES;
        $loads
        #pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
            $body
        }
        $stores
    }
}
"""

# Only where there are reductions. What a block's threads have summed is joined in an order that nothing changes.
_JOIN = """static __device__ __forceinline__ double greater(double x, double y) { return x > y || x != x ? x : y; }

static __device__ double join(double own, bool greatest) {
    __shared__ double sums[BLOCK_THREADS];
    sums[threadIdx.x] = own;
    for (unsigned half = BLOCK_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        const double other = sums[threadIdx.x + half];
        sums[threadIdx.x] = greatest ? greater(sums[threadIdx.x], other) : sums[threadIdx.x] + other;
    }
    __syncthreads();
    const double all = sums[0];
    __syncthreads();
    return all;
}
"""

# A block takes a whole piece, so that how many blocks there are does not matter.
_REDUCE = """extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) $name(
    int64 pieces, const int64* __restrict__ begins, const int64* __restrict__ ends, const int64* __restrict__ rows,
    const real* __restrict__ table,
    $arrays
) {
    for (int64 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        const int64 begin = begins[piece], end = ends[piece];
        $coefficients
        $sums
        for (int64 at = begin / LANES * LANES + threadIdx.x * LANES; at < end; at += BLOCK_THREADS * LANES) {
            const int low = at < begin ? int(begin - at) : 0;
            const int high = end - at < LANES ? int(end - at) : LANES;
            $loads
            #pragma unroll
            for (int lane = 0; lane < LANES; ++lane) {
                if (lane < low || lane >= high) continue;
                $body
            }
        }
        $joins
        if (threadIdx.x == 0) {
            $results
        }
    }
}
"""

# How each reduction takes an operand, in float64. A NaN is not lost in a maximum.
_TAKEN = {"sum_all": "r{n} + w{n}", "norm": "r{n} + w{n} * w{n}", "max_abs": "greater(r{n}, fabs(w{n}))"}

_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.BitAnd: "&",
    ast.BitOr: "|",
}
_CALLED: dict[type[ast.operator], str] = {ast.Pow: "f_pow", ast.Mod: "f_mod"}
_SIGNS: dict[type[ast.unaryop], str] = {ast.USub: "-", ast.UAdd: "+", ast.Not: "!"}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def emit(program: Program, dtype: str) -> str:
    """Kernels `in_place` and `out_of_place`, and `reduce_0`, ... for the stages before the last.

    dtype: of the arrays and the table, float32 or float64. `in_place` and `out_of_place` take (number of pieces, tiles,
    begins, ends, rows, table, *program.arrays) and run on any number of blocks; tiles as `tile_starts` gives them,
    pieces as int64, each piece's row in the table of coefficients. `out_of_place` takes one more array, for the new
    parameters; slots are written in place by both. `reduce_N` takes no tiles, and one more array, float64, for what
    each piece (first axis) gives for each reduction (second axis); it runs on any number of blocks, too, and gives the
    same bits. Blocks have BLOCK_THREADS threads; arrays begin on PACK_BYTES and do not overlap.
    """
    real = REALS[dtype]
    preamble = _fill(
        _PREAMBLE,
        name=program.name,
        real=real,
        suffix="f" if real == "float" else "",
        lanes=str(_lanes(dtype)),
        threads=str(BLOCK_THREADS),
        pack_bytes=str(PACK_BYTES),
    )
    parts = [preamble, *([_JOIN] if len(program.stages) > 1 else [])]
    parts += [_reduction(program, number, stage) for number, stage in enumerate(program.stages[:-1])]
    parts.append(_update(program, "in_place"))
    if program.target == "param":
        parts.append(_update(program, "out_of_place"))
    return "\n".join(parts)


def tile_starts(pieces: Pieces, dtype: str) -> NDArray[np.int64]:
    """The number of each piece's first tile, and at the end how many tiles there are. No piece is empty."""
    tile = BLOCK_THREADS * _lanes(dtype)
    counts = (pieces.ends - 1) // tile - pieces.begins // tile + 1
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _lanes(dtype: str) -> int:
    return PACK_BYTES // np.dtype(dtype).itemsize


def _update(program: Program, name: str) -> str:
    apart = name == "out_of_place"
    outputs = dict(program.last.outputs)
    if apart:
        outputs.setdefault("param", ast.Name("param", ast.Load()))
    targets = {one: "out" if apart and one == "param" else f"array_{_name(one)}" for one in outputs}
    spelling = _Spelling(program, program.last)
    body = spelling.locals()
    body += [f"new_{_name(one)}.at[lane] = {spelling.number(value)};" for one, value in outputs.items()]
    count = program.last.coefficients
    return _fill(
        _UPDATE,
        name=name,
        arrays=_parameters(program, targets.values(), ["real* __restrict__ out"] if apart else []),
        declarations=[f"real c{index} = real(0);" for index in range(count)],
        coefficients=[f"c{index} = table[rows[piece] * {count} + {index}];" for index in range(count)],
        loads=[
            *_loads(program, [*program.last.expressions, *outputs.values()]),
            *(f"Pack new_{_name(one)};" for one in outputs),
        ],
        body=body,
        stores=[f"store({target}, new_{_name(one)}, at, low, high);" for one, target in targets.items()],
    )


def _reduction(program: Program, number: int, stage: Stage) -> str:
    spelling = _Spelling(program, stage)
    body = spelling.locals()
    for n, (kind, operand) in enumerate(stage.reductions):
        body += [f"const double w{n} = double({spelling.number(operand)});", f"r{n} = {_TAKEN[kind].format(n=n)};"]
    count, kinds = stage.coefficients, [kind for kind, _ in stage.reductions]
    return _fill(
        _REDUCE,
        name=f"reduce_{number}",
        arrays=_parameters(program, [], ["double* __restrict__ partials"]),
        coefficients=[f"const real c{index} = table[rows[piece] * {count} + {index}];" for index in range(count)],
        sums=[f"double r{n} = 0;" for n in range(len(kinds))],
        loads=_loads(program, stage.expressions),
        body=body,
        joins=[f"const double all{n} = join(r{n}, {str(kind == 'max_abs').lower()});" for n, kind in enumerate(kinds)],
        results=[f"partials[piece * {len(kinds)} + {n}] = all{n};" for n in range(len(kinds))],
    )


def _parameters(program: Program, written: Iterable[str], more: list[str]) -> list[str]:
    written = set(written)
    names = [f"array_{_name(array)}" for array in program.arrays]
    parameters = [f"{'' if name in written else 'const '}real* __restrict__ {name}" for name in names] + more
    return [*(f"{parameter}," for parameter in parameters[:-1]), parameters[-1]]


def _loads(program: Program, expressions: Iterable[ast.expr]) -> list[str]:
    used = {part.id for value in expressions for part in ast.walk(value) if isinstance(part, ast.Name)}
    return [
        f"const Pack old_{_name(array)} = load(array_{_name(array)}, at, low, high);"
        for array in program.arrays
        if array in used
    ]


def _name(name: str) -> str:
    """A name as C++ takes it; Python's may have letters of any script."""
    return name if name.isascii() else f"x{name.encode().hex()}"


def _fill(template: str, **parts: str | list[str]) -> str:
    """Replace each $name: by a text within its line, or a line that is nothing else by lines with its indentation."""
    text = Template(template).safe_substitute({name: part for name, part in parts.items() if isinstance(part, str)})
    filled: list[str] = []
    for line in text.split("\n"):
        name = line.strip().removeprefix("$")
        if line.strip().startswith("$"):
            indentation = line[: line.index("$")]
            filled += [f"{indentation}{each}" for each in parts[name]]
        else:
            filled.append(line)
    return "\n".join(filled)


class _Spelling:
    """Spells a stage's expressions. Comparisons give bool, everything else the kernel's type; nothing is wider."""

    def __init__(self, program: Program, stage: Stage) -> None:
        self._arrays = frozenset(program.arrays)
        self._stage = stage
        self._conditions: set[str] = set()

    def locals(self) -> list[str]:
        """The assignments that the stage begins with."""
        lines = []
        for name, value in self._stage.elements:
            text, condition = self._text(value)
            if condition:
                self._conditions.add(name)
            lines.append(f"const {'bool' if condition else 'real'} v_{_name(name)} = {text};")
        return lines

    def number(self, node: ast.expr) -> str:
        text, condition = self._text(node)
        return f"real({text})" if condition else text

    def condition(self, node: ast.expr) -> str:
        text, condition = self._text(node)
        return text if condition else f"({text} != real(0))"

    def _text(self, node: ast.expr) -> tuple[str, bool]:
        """The text, and whether it is a condition."""
        match node:
            case ast.Name(id=name):
                return self._spell_name(name), name in self._conditions
            case ast.Constant(value=bool(value)):
                return str(value).lower(), True
            case ast.Constant(value=int(value) | float(value)):
                return f"real({float(value)!r})", False
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as op, right=right):
                return f"({self.condition(left)} {_OPERATORS[type(op)]} {self.condition(right)})", True
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _CALLED:
                return f"{_CALLED[type(op)]}({self.number(left)}, {self.number(right)})", False
            case ast.BinOp(left=left, op=op, right=right):
                return f"({self.number(left)} {_OPERATORS[type(op)]} {self.number(right)})", False
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return f"!{self.condition(operand)}", True
            case ast.UnaryOp(op=op, operand=operand):
                return f"({_SIGNS[type(op)]}{self.number(operand)})", False
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                return f"({self.number(left)} {_COMPARISONS[type(op)]} {self.number(right)})", True
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return f"({self.condition(test)} ? {self.number(body)} : {self.number(orelse)})", False
            case ast.Call(func=ast.Name(id="where"), args=[test, body, orelse]):
                return f"f_where({self.condition(test)}, {self.number(body)}, {self.number(orelse)})", False
            case ast.Call(func=ast.Name(id=name), args=args) if name in ELEMENTWISE:
                return f"f_{name}({', '.join(self.number(part) for part in args)})", False
        raise TypeError(f"{ast.unparse(node)}: {type(node).__name__} has no place in an element's expression")

    def _spell_name(self, name: str) -> str:
        if name in self._arrays:
            return f"old_{_name(name)}.at[lane]"
        if name.startswith("_c") and name[2:].isdigit():
            return f"c{name[2:]}"
        return f"v_{_name(name)}"
