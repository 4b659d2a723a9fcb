"""The CPU device: memory, compiled kernels, and the threads that run them. The one place that imports Numba.

Kernels are serial functions that release the GIL; a launch cuts its pieces into one share per thread. (Numba's own
threading layer aborts when two Python threads call parallel kernels at once.)
"""

import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray  # type: ignore[attr-defined]  # numba's stubs lack it
from numba.extending import intrinsic, register_jitable
from numpy.typing import NDArray

from stepwell_server.core.compiler.numba_emitter import HELPERS, emit, emit_rows
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.devices import copies
from stepwell_server.core.devices.device import ALIGNMENT_BYTES, Bytes, HostMemory, Offsets, Vector
from stepwell_server.core.devices.shared import SharedVectors
from stepwell_server.core.layout import BFLOAT16
from stepwell_server.core.pieces import REDUCTION_ELEMENTS, Pieces, add_up, whole

# Addresses of memory; unsigned, as indices are.
Addresses = NDArray[np.uint64]

_FLOAT32 = np.dtype(np.float32)

# The exponent's bits of each type: all of them are set in a NaN and in an infinity.
_EXPONENTS: dict[np.dtype[Any], np.signedinteger[Any]] = {
    np.dtype(np.float16): np.int16(0x7C00),
    BFLOAT16: np.int16(0x7F80),
    _FLOAT32: np.int32(0x7F800000),
    np.dtype(np.float64): np.int64(0x7FF0000000000000),
}

# Below this many elements a launch stays on the calling thread: handing it over would cost more than it saves.
_SHARE_ELEMENTS_MIN = 1 << 16

# 'python' error handling and the strict NaN rules would stop vectorisation; full fastmath would delete NaN tests.
# Products and sums are not contracted: rounded one by one they are PyTorch's to the last bit or nearly so, and the same
# on processors without such instructions; memory bounds the kernels either way.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"nsz"}}


class Kernel:
    """A program compiled for one dtype."""

    def __init__(self, device: "CpuDevice", program: Program, dtype: np.dtype[Any], module: ModuleType) -> None:
        self._device = device
        self._program = program
        for helper in HELPERS:
            if hasattr(module, helper):
                setattr(module, helper, register_jitable(getattr(module, helper)))
        array = numba.from_dtype(dtype)[::1]
        arrays = [array] * len(program.arrays)
        # Unsigned indices need no wrap-around test, which would stop vectorisation.
        pieces = [numba.uint64[::1]] * 3 + [numba.from_dtype(dtype)[:, ::1]]
        updates = [("in_place", [])] + ([("out_of_place", [array])] if program.target == "param" else [])
        self._updates = {
            name: device.compile_function(getattr(module, name), numba.void(*pieces, *arrays, *more))
            for name, more in updates
        }
        self._reductions = [
            device.compile_function(
                getattr(module, f"reduce_{number}"),
                numba.void(*pieces, *arrays, numba.float64[:, ::1]),
                reassociated=True,
            )
            for number in range(len(program.stages) - 1)
        ]

    def update(
        self, pieces: Pieces, table: NDArray[Any], arrays: Mapping[str, Vector], out: Vector | None = None
    ) -> None:
        """Run the last stage. table: coefficients by row, of the vectors' type. out: where the new parameters go."""
        vectors = [arrays[name] for name in self._program.arrays]
        if out is None or out is arrays["param"]:
            kernel = self._updates["in_place"]
        else:
            kernel = self._updates["out_of_place"]
            vectors.append(out)
        self._device.spread(pieces, lambda part: kernel(*_spelled(part), table, *vectors))

    def reduce(
        self, stage: int, pieces: Pieces, table: NDArray[Any], arrays: Mapping[str, Vector]
    ) -> Callable[[], NDArray[np.float64]]:
        """Run an earlier stage, at once; the function that is returned gives the result."""
        vectors = [arrays[name] for name in self._program.arrays]
        kinds = [kind for kind, _ in self._program.stages[stage].reductions]
        cut = pieces.cut(REDUCTION_ELEMENTS)
        partials = np.zeros((len(cut), len(kinds)))
        kernel = self._reductions[stage]
        self._device.spread_whole(
            cut, lambda first, last: kernel(*_spelled(cut.part(first, last)), table, *vectors, partials[first:last])
        )
        result = add_up(partials, cut, len(table), kinds)
        return lambda: result


def _spelled(pieces: Pieces) -> tuple[NDArray[np.uint64], ...]:
    return pieces.begins.view(np.uint64), pieces.ends.view(np.uint64), pieces.rows.view(np.uint64)


class RowKernel:
    """A program compiled for rows of tables; see `emit_rows`."""

    def __init__(self, device: "CpuDevice", program: Program, dtype: np.dtype[Any], module: ModuleType) -> None:
        self._device = device
        _provide(module, HELPERS)
        addresses = numba.uint64[::1]
        signature = numba.void(
            addresses, addresses, numba.uint64[::1], numba.from_dtype(dtype)[:, ::1], addresses, numba.uint64
        )
        names = ["rows"] if program.inputs else ["rows", "rows_out"]
        self._functions = {name: device.compile_function(getattr(module, name), signature) for name in names}

    def update(
        self,
        addresses: Addresses,
        others: Addresses,
        places: Addresses,
        table: NDArray[Any],
        offsets: Addresses,
        width: int,
        out: bool = False,
    ) -> None:
        """Make rows anew, on all threads; no row stands twice. out: put the new parameters into `others` alone."""
        function = self._functions["rows_out" if out else "rows"]
        size = np.uint64(width)

        def work(first: int, last: int) -> None:
            rows = slice(first, last)
            function(addresses[rows], others[rows], places[rows], table, offsets, size)

        self._device.spread_rows(len(addresses), width * (len(offsets) - 1), work)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(numba.types.uint64), generate


@intrinsic
def _fetch_line(context: Any, address: Any) -> Any:
    """Tell the processor that it will need a cache line."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(fetch, [pointer, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return numba.types.void(numba.types.uint64), generate


@register_jitable
def _fetch(address: Any, size: Any) -> None:
    # The processor goes on by itself from a line of each row; asking it for every line only keeps it busy.
    for line in range(0, size, 256):
        _fetch_line(address + np.uint64(line))  # type: ignore[call-arg]  # the context is the compiler's


@register_jitable
def _elements_at(address: Any, count: Any, like: Any) -> Any:
    pointer: Any = _pointer(address)  # type: ignore[call-arg]  # likewise
    return carray(pointer, (count,), like.dtype)


# Part of the identity of kept machine code: it goes up when one of the four functions above changes.
_PROVIDED = "provided 1"


def _provide(module: ModuleType, helpers: Sequence[str]) -> None:
    """Give a module what loops over addresses call, and let its helpers be compiled with whoever calls them."""
    for name, helper in (("elements_at", _elements_at), ("fetch", _fetch)):
        setattr(module, name, helper)
    for name in helpers:
        if hasattr(module, name):
            setattr(module, name, register_jitable(getattr(module, name)))


class CpuDevice(HostMemory):
    """Memory and kernels on the host.

    kernel_directory: where sources and machine code are kept between processes; private to the user, see
    `storage/kernel_cache.py`. None keeps nothing.
    """

    # The module of array functions that array code gets.
    xp = np

    def __init__(self, threads: int, kernel_directory: Path | None = None) -> None:
        assert threads >= 1
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="kernel") if threads > 1 else None
        self._threads = threads
        self._kernel_directory = kernel_directory
        self._kernels: dict[tuple[Program, str], Kernel] = {}
        self._row_kernels: dict[tuple[Program, str], RowKernel] = {}
        self._loops: dict[tuple[str, str], SimpleNamespace] = {}
        self.shared = SharedVectors() if SharedVectors.available() else None
        self._compile_copies()

    def check_holds(self, bytes_max: int) -> None:
        """The system hands out pages when they are touched: what it can spare shows only then."""

    def allocate(self, elements: int, dtype: np.dtype[Any]) -> Vector:
        """A zeroed vector on a 64-byte boundary."""
        raw = np.zeros(elements * dtype.itemsize + ALIGNMENT_BYTES, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT_BYTES
        return raw[start : start + elements * dtype.itemsize].view(dtype)

    def compile(self, program: Program, dtype: np.dtype[Any]) -> Kernel:
        """The program's kernel for a dtype; about a second the first time, then kept in memory and on disk."""
        key = (program, dtype.str)
        if key not in self._kernels:
            self._kernels[key] = Kernel(self, program, dtype, self._module(emit(program, dtype.name), program.name))
        return self._kernels[key]

    def compile_rows(self, program: Program, dtype: np.dtype[Any]) -> RowKernel:
        """The program's kernel for rows of tables, likewise."""
        key = (program, dtype.str)
        if key not in self._row_kernels:
            module = self._module(emit_rows(program, dtype.name), f"{program.name}_rows", _PROVIDED)
            self._row_kernels[key] = RowKernel(self, program, dtype, module)
        return self._row_kernels[key]

    def compile_loops(self, *modules: ModuleType, dtype: np.dtype[Any] | None = None) -> SimpleNamespace:
        """The compiled functions of the last module; those before it define what it imports from them.

        It has SIGNATURES, Numba's by the name of each function, in which {real} is the dtype, and HELPERS, the names
        of functions that they call.
        They may call `elements_at(address, count, like)`, the elements of the type of `like` from an address on, and
        `fetch(address, size)`, which brings so many bytes into the cache.
        """
        last, real = modules[-1], "" if dtype is None else dtype.name
        key = (last.__name__, real)
        if key not in self._loops:
            source = "\n\n".join(inspect.getsource(module) for module in modules)
            # What they import from each other is there already, and must see what is provided.
            source = re.sub(
                rf"^from ({'|'.join(module.__name__ for module in modules)}) import .*\n",
                "",
                source,
                flags=re.MULTILINE,
            )
            module = self._module(source, last.__name__.rpartition(".")[2], _PROVIDED)
            _provide(module, module.HELPERS)
            compiled = {}
            for name, signatures in module.SIGNATURES.items():
                spelled = [signature.replace("{real}", real) for signature in signatures]
                compiled[name] = self.compile_function(getattr(module, name), *spelled)
            self._loops[key] = SimpleNamespace(**compiled)
        return self._loops[key]

    def spread_rows(self, count: int, elements: int, work: Callable[[int, int], None]) -> None:
        """Run `work` over (first, after the last) of so many rows of so many elements on all threads."""
        shares = min(self._threads, max(1, count), max(1, count * elements // _SHARE_ELEMENTS_MIN))
        cuts = [count * number // shares for number in range(shares + 1)]
        self._together([partial(work, first, last) for first, last in pairwise(cuts)])

    def spread(self, pieces: Pieces, work: Callable[[Pieces], None]) -> None:
        """Run `work` over shares of the pieces on all threads; cuts lie on whole cache lines."""
        shares = min(self._threads, max(1, pieces.elements // _SHARE_ELEMENTS_MIN))
        if shares == 1:
            work(pieces)
        else:
            self._together([partial(work, part) for part in pieces.shares(shares, ALIGNMENT_BYTES)])

    def spread_whole(self, pieces: Pieces, work: Callable[[int, int], None]) -> None:
        """Run `work` over (first, after the last) of the pieces on all threads; none is cut."""
        shares = min(self._threads, len(pieces), max(1, pieces.elements // _SHARE_ELEMENTS_MIN))
        cuts = [len(pieces) * number // shares for number in range(shares + 1)]
        self._together([partial(work, first, last) for first, last in pairwise(cuts)])

    def _together(self, works: Sequence[Callable[[], None]]) -> None:
        if not works:
            return
        if self._pool is None or len(works) == 1:
            for work in works:
                work()
            return
        others = [self._pool.submit(work) for work in works[1:]]
        try:
            works[0]()
        finally:
            wait(others)
        for other in others:
            other.result()

    def place(
        self,
        vector: Vector,
        packed: Bytes,
        begin: int,
        packed_offsets: Offsets,
        vector_offsets: Offsets,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        """Copy packed bytes to their places in a vector; offsets in bytes of its type. dtype: what the bytes hold."""
        if dtype == BFLOAT16 and vector.dtype == _FLOAT32:
            words, halves = vector.view(np.uint32), packed.view(np.uint16)
            self._place_bfloat16(words, halves, begin // 4, packed_offsets // 4, vector_offsets // 4)
            return
        if dtype is not None and dtype != vector.dtype:
            with np.errstate(over="ignore", invalid="ignore"):
                packed = packed.view(dtype).astype(vector.dtype).view(np.uint8)
        self._place(vector.view(np.uint8), packed, begin, packed_offsets, vector_offsets)

    def gather(
        self,
        vector: Vector,
        packed: Bytes,
        begin: int,
        packed_offsets: Offsets,
        vector_offsets: Offsets,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        """The way back: fill `packed` with the elements that begin at packed offset `begin`, as `dtype`."""
        if dtype == BFLOAT16 and vector.dtype == _FLOAT32:
            words, halves = vector.view(np.uint32), packed.view(np.uint16)
            self._gather_bfloat16(words, halves, begin // 4, packed_offsets // 4, vector_offsets // 4)
        elif dtype is None or dtype == vector.dtype:
            self._gather(vector.view(np.uint8), packed, begin, packed_offsets, vector_offsets)
        else:
            narrow = packed.view(dtype)
            own = np.empty(len(narrow), vector.dtype)
            self._gather(vector.view(np.uint8), own.view(np.uint8), begin, packed_offsets, vector_offsets)
            with np.errstate(over="ignore"):
                narrow[:] = own

    def is_finite(self, packed: Bytes, dtype: np.dtype[Any]) -> bool:
        """Whether no element is a NaN or an infinity; a whole number of elements of `dtype`."""
        exponent = _EXPONENTS[dtype]
        return bool(self._finite(packed.view(exponent.dtype), exponent))

    def finite_pieces(self, vector: Vector, begins: Offsets, ends: Offsets) -> bool:
        """Whether no element from some begin to its end is a NaN or an infinity; on all threads."""
        exponent = _EXPONENTS[vector.dtype]
        bits = vector.view(exponent.dtype)
        found: list[bool] = []
        pieces = Pieces(begins, ends, np.zeros(len(begins), np.int64))
        if len(pieces):
            self.spread(pieces, lambda part: found.append(self._finite_pieces(bits, part.begins, part.ends, exponent)))
        return all(found)

    def copy(self, source: Vector, target: Vector) -> None:
        """Copy a whole vector on all threads."""

        def work(part: Pieces) -> None:
            begin, end = part.begins[0], part.ends[-1]
            np.copyto(target[begin:end], source[begin:end])

        if len(source):
            self.spread(whole(len(source)), work)

    def fill(self, vector: Vector, value: float) -> None:
        vector.fill(value)

    def fold(
        self,
        target: Vector,
        source: Vector,
        begins: Offsets,
        ends: Offsets,
        kept: float,
        share: float,
        base: Vector | None = None,
    ) -> None:
        """Make elements of the target kept * base + share * source, on all threads."""
        number = target.dtype.type
        pieces = Pieces(begins, ends, np.zeros(len(begins), np.int64))
        if pieces.elements:
            self.spread(
                pieces,
                lambda part: self._fold(
                    target,
                    target if base is None else base,
                    source,
                    part.begins.view(np.uint64),
                    part.ends.view(np.uint64),
                    number(kept),
                    number(share),
                ),
            )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _module(self, source: str, name: str, beside: str = "") -> ModuleType:
        """A module from its source. beside: what else its machine code depends on."""
        # Machine code depends on the compiler and its options as much as on the source. Sets print in another order in
        # every process.
        options = sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in _OPTIONS.items())
        identity = f"{source}\n{options}\n{numba.__version__}{beside}"
        key = f"{name}_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        if self._kernel_directory is None:
            module = ModuleType(key)
            exec(compile(source, f"<kernel {key}>", "exec"), module.__dict__)  # noqa: S102  # our own emitter's text
            return module
        path = self._kernel_directory / f"{key}.py"
        if not path.exists() or path.read_text() != source:
            unfinished = path.with_suffix(f".{os.getpid()}-{id(self):x}.tmp")
            unfinished.write_text(source)
            unfinished.replace(path)
        spec = importlib.util.spec_from_file_location(f"stepwell_kernel_{key}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # Numba finds cached code by its module's name
        spec.loader.exec_module(module)
        return module

    def compile_function(
        self, function: Callable[..., Any], *signatures: Any, reassociated: bool = False
    ) -> Callable[..., Any]:
        """Machine code for the signatures. reassociated: sums may be taken in any order, and so vectorise."""
        caching = self._kernel_directory is not None
        options = _OPTIONS | ({"fastmath": _OPTIONS["fastmath"] | {"reassoc"}} if reassociated else {})
        compiled: Callable[..., Any] = numba.njit(list(signatures), cache=caching, **options)(function)
        return compiled

    def _compile_copies(self) -> None:
        module = self._module(inspect.getsource(copies), "copies")
        module.place_of = register_jitable(module.place_of)  # type: ignore[attr-defined]
        offsets = numba.int64[::1]
        packed = numba.types.Array(numba.uint8, 1, "C", readonly=True)
        integers = [
            (numba.types.Array(word, 1, "C", readonly=True), word) for word in (numba.int16, numba.int32, numba.int64)
        ]
        self._place = self.compile_function(
            module.place, numba.void(numba.uint8[::1], packed, numba.int64, offsets, offsets)
        )
        self._gather = self.compile_function(
            module.gather, numba.void(numba.uint8[::1], numba.uint8[::1], numba.int64, offsets, offsets)
        )
        halves = numba.types.Array(numba.uint16, 1, "C", readonly=True)
        words = numba.uint32[::1]
        self._place_bfloat16 = self.compile_function(
            module.place_bfloat16, numba.void(words, halves, numba.int64, offsets, offsets)
        )
        self._gather_bfloat16 = self.compile_function(
            module.gather_bfloat16, numba.void(words, numba.uint16[::1], numba.int64, offsets, offsets)
        )
        spans = numba.uint64[::1]
        self._fold = self.compile_function(
            module.fold,
            *(
                numba.void(number[::1], number[::1], number[::1], spans, spans, number, number)
                for number in (numba.float32, numba.float64)
            ),
        )
        self._finite = self.compile_function(module.finite, *(numba.boolean(array, word) for array, word in integers))
        self._finite_pieces = self.compile_function(
            module.finite_pieces, *(numba.boolean(word[::1], offsets, offsets, word) for _, word in integers)
        )
