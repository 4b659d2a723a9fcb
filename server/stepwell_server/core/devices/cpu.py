"""The CPU device: memory, compiled kernels, and the threads that run them. The one place that imports Numba.

Kernels are serial functions that release the GIL; a launch cuts its range into one piece per thread. (Numba's own
threading layer aborts when two Python threads call parallel kernels at once.)
"""

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.compiler.numba_emitter import emit
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.devices import copies

Vector = NDArray[Any]

ALIGNMENT_BYTES = 64
# Below this many elements a launch stays on the calling thread: handing it over would cost more than it saves.
_PIECE_ELEMENTS_MIN = 1 << 16

# 'python' error handling and the strict NaN rules would stop vectorisation; full fastmath would delete NaN tests.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


class Kernel:
    """A program compiled for one dtype."""

    def __init__(self, in_place: Callable[..., None], out_of_place: Callable[..., None]) -> None:
        self._in_place = in_place
        self._out_of_place = out_of_place

    def launch(
        self,
        device: "CpuDevice",
        begin: int,
        end: int,
        param: Vector,
        param_out: Vector,
        grad: Vector,
        slots: Sequence[Vector],
        coefficients: Sequence[np.floating[Any]],
    ) -> None:
        """Update the elements from `begin` to `end`; param_out may be param itself, then the update is in place.

        coefficients: of the vectors' type.
        """
        if param_out is param:
            device.spread(begin, end, lambda a, b: self._in_place(a, b, param, grad, *slots, *coefficients))
        else:
            device.spread(
                begin, end, lambda a, b: self._out_of_place(a, b, param, param_out, grad, *slots, *coefficients)
            )


class CpuDevice:
    """Memory and kernels on the host.

    kernel_directory: where sources and machine code are kept between processes; private to the user, see
    `storage/kernel_cache.py`. None keeps nothing.
    """

    def __init__(self, threads: int, kernel_directory: Path | None = None) -> None:
        assert threads >= 1
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="kernel") if threads > 1 else None
        self._pieces = threads
        self._kernel_directory = kernel_directory
        self._kernels: dict[tuple[Program, str], Kernel] = {}
        self._compile_copies()

    def allocate(self, elements: int, dtype: np.dtype[Any]) -> Vector:
        """A zeroed vector on a 64-byte boundary."""
        raw = np.zeros(elements * dtype.itemsize + ALIGNMENT_BYTES, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT_BYTES
        return raw[start : start + elements * dtype.itemsize].view(dtype)

    def compile(self, program: Program, dtype: np.dtype[Any]) -> Kernel:
        """The program's kernel for a dtype; about a second the first time, then kept in memory and on disk."""
        key = (program, dtype.str)
        if key not in self._kernels:
            module = self._module(emit(program), program.name)
            array, number = numba.from_dtype(dtype)[::1], numba.from_dtype(dtype)
            slots = [array] * len(program.slots)
            numbers = [number] * program.coefficients
            # Unsigned indices need no wrap-around test, which would stop vectorisation.
            span = [numba.uint64, numba.uint64]
            self._kernels[key] = Kernel(
                self._compile(module.in_place, numba.void(*span, array, array, *slots, *numbers)),
                self._compile(module.out_of_place, numba.void(*span, array, array, array, *slots, *numbers)),
            )
        return self._kernels[key]

    def spread(self, begin: int, end: int, work: Callable[[int, int], None]) -> None:
        """Run `work` over pieces of the range on all threads; pieces begin on whole cache lines."""
        elements = end - begin
        pieces = min(self._pieces, max(1, elements // _PIECE_ELEMENTS_MIN))
        if pieces == 1 or self._pool is None:
            work(begin, end)
            return
        step = -(-elements // pieces // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        cuts = [*range(begin, end, step), end]
        others = [self._pool.submit(work, a, b) for a, b in pairwise(cuts[1:])]
        try:
            work(cuts[0], cuts[1])
        finally:
            wait(others)
        for other in others:
            other.result()

    def place(
        self,
        vector: Vector,
        packed: NDArray[np.uint8],
        begin: int,
        packed_offsets: NDArray[np.int64],
        vector_offsets: NDArray[np.int64],
    ) -> None:
        """Copy packed bytes, which begin at packed offset `begin`, to their places in a vector; offsets in bytes."""
        self._place(vector.view(np.uint8), packed, begin, packed_offsets, vector_offsets)

    def gather(
        self,
        vector: Vector,
        packed: NDArray[np.uint8],
        begin: int,
        packed_offsets: NDArray[np.int64],
        vector_offsets: NDArray[np.int64],
    ) -> None:
        """The way back: fill `packed` with the bytes that begin at packed offset `begin`."""
        self._gather(vector.view(np.uint8), packed, begin, packed_offsets, vector_offsets)

    def is_finite(self, packed: NDArray[np.uint8], dtype: np.dtype[Any]) -> bool:
        """Whether no element is a NaN or an infinity; a whole number of elements of `dtype`."""
        if dtype.itemsize == 4:
            return bool(self._finite(packed.view(np.uint32), np.uint32(0x7F800000)))
        return bool(self._finite(packed.view(np.uint64), np.uint64(0x7FF0000000000000)))

    def copy(self, source: Vector, target: Vector) -> None:
        """Copy a whole vector on all threads."""
        self.spread(0, len(source), lambda a, b: np.copyto(target[a:b], source[a:b]))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _module(self, source: str, name: str) -> ModuleType:
        # Machine code depends on the compiler and its options as much as on the source.
        identity = f"{source}\n{_OPTIONS}\n{numba.__version__}"
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

    def _compile(self, function: Callable[..., Any], *signatures: Any) -> Callable[..., Any]:
        caching = self._kernel_directory is not None
        compiled: Callable[..., Any] = numba.njit(list(signatures), cache=caching, **_OPTIONS)(function)
        return compiled

    def _compile_copies(self) -> None:
        module = self._module(inspect.getsource(copies), "copies")
        offsets = numba.int64[::1]
        packed = numba.types.Array(numba.uint8, 1, "C", readonly=True)
        words = [(numba.types.Array(word, 1, "C", readonly=True), word) for word in (numba.uint32, numba.uint64)]
        self._place = self._compile(module.place, numba.void(numba.uint8[::1], packed, numba.int64, offsets, offsets))
        self._gather = self._compile(
            module.gather, numba.void(numba.uint8[::1], numba.uint8[::1], numba.int64, offsets, offsets)
        )
        self._finite = self._compile(module.finite, *(numba.boolean(array, word) for array, word in words))
