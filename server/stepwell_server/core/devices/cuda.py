"""A GPU as a device: vectors in its memory, kernels compiled by NVRTC, and streams. The one place that imports CuPy.

Three streams. `commit` runs kernels, array code and copies between vectors, one after another. `upload` brings in what
arrives, `download` brings out what is read. Uploads wait for the commits before them, whose vectors they may reuse;
commits wait for the uploads before them; a download waits for the commits before it, so that it reads one version,
while what it reads is held against later ones. So updates come in while parameters go out, and the only waits of
the host are for what it reads: bytes on their way out, and one wait for each level of reductions.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.compiler.cuda_emitter import BLOCK_THREADS, emit, tile_starts
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.devices import cuda_copies
from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.devices.device import Bytes, DeviceUnavailable, Offsets, Vector
from stepwell_server.core.pieces import REDUCTION_ELEMENTS, Pieces, add_up

# Blocks of a launch, for each multiprocessor: enough to fill it twice over; blocks take tile after tile.
_BLOCKS_PER_MULTIPROCESSOR = 16
# Pinned memory on the way in and out: as many messages as can be under way.
_BUFFER_BYTES = 1 << 20
_BUFFERS = 32
# Layouts whose offsets are kept on the device.
_LAYOUTS_MAX = 64


class Kernel:
    """A program compiled for one dtype."""

    def __init__(self, device: "CudaDevice", program: Program, dtype: np.dtype[Any]) -> None:
        self._device = device
        self._program = program
        self._dtype = dtype.name
        functions = device.load(emit(program, dtype.name))
        self._in_place = functions("in_place")
        self._out_of_place = functions("out_of_place") if program.target == "param" else None
        self._reductions = [functions(f"reduce_{number}") for number in range(len(program.stages) - 1)]

    def update(
        self, pieces: Pieces, table: NDArray[Any], arrays: Mapping[str, Vector], out: Vector | None = None
    ) -> None:
        """Run the last stage. table: coefficients by row, of the vectors' type. out: where the new parameters go."""
        if not len(pieces):
            return
        vectors = [arrays[name] for name in self._program.arrays]
        function = self._in_place
        if out is not None and out is not arrays["param"]:
            assert self._out_of_place is not None
            function = self._out_of_place
            vectors.append(out)
        tiles = tile_starts(pieces, self._dtype)
        with self._device.committing():
            self._device.launch(
                function, int(tiles[-1]), pieces, [tiles, pieces.begins, pieces.ends, pieces.rows], table, vectors
            )

    def reduce(
        self, stage: int, pieces: Pieces, table: NDArray[Any], arrays: Mapping[str, Vector]
    ) -> Callable[[], NDArray[np.float64]]:
        """Run an earlier stage; the function that is returned waits for the result."""
        kinds = [kind for kind, _ in self._program.stages[stage].reductions]
        # The grain is the CPU's: a sum does not depend on how many blocks there are.
        cut = pieces.cut(REDUCTION_ELEMENTS)
        rows = len(table)
        if not len(cut):
            return lambda: np.zeros((rows, len(kinds)))
        vectors = [arrays[name] for name in self._program.arrays]
        with self._device.committing():
            partials = self._device.scratch(len(cut) * len(kinds), np.dtype(np.float64))
            self._device.launch(
                self._reductions[stage], len(cut), cut, [cut.begins, cut.ends, cut.rows], table, [*vectors, partials]
            )
            wait = self._device.fetch(partials)
        return lambda: add_up(wait().reshape(len(cut), len(kinds)), cut, rows, kinds)


class CudaDevice:
    """Memory and kernels on one GPU.

    kernel_directory: where CuPy keeps machine code between processes; None leaves it to CuPy. Raises
    DeviceUnavailable.
    """

    # Its vectors are no memory that another process of the host could map.
    shared = None

    def __init__(self, number: int = 0, kernel_directory: Path | None = None) -> None:
        if kernel_directory is not None:
            # CuPy reads it when it is imported, and has no other way to be told.
            os.environ["CUPY_CACHE_DIR"] = str(kernel_directory / "cuda")
        self._cupy = _import_cupy(number)
        cuda = self._cupy.cuda
        self.number = number
        self._gpu = cuda.Device(number)
        # What does not concern the GPU: tests of arriving bytes, and arrays that stay on the host.
        self._host = CpuDevice(1, kernel_directory)
        self._kernels: dict[tuple[Program, str], Kernel] = {}
        self._layouts: dict[tuple[int, int], tuple[Offsets, Offsets, Any, Any]] = {}
        self._lock = threading.Lock()
        with self._gpu:
            self._blocks_max = _BLOCKS_PER_MULTIPROCESSOR * int(self._gpu.attributes["MultiProcessorCount"])
            self._commit, self._upload, self._download = (cuda.Stream(non_blocking=True) for _ in range(3))
            self._committed, self._uploaded = (cuda.Event(disable_timing=True) for _ in range(2))
            self._buffers: queue.SimpleQueue[tuple[Bytes, Any, Any]] = queue.SimpleQueue()
            for _ in range(_BUFFERS):
                memory = cuda.alloc_pinned_memory(_BUFFER_BYTES)
                content = np.frombuffer(memory, np.uint8, _BUFFER_BYTES)
                self._buffers.put((content, memory, cuda.Event(disable_timing=True)))
            self._copies = self.load(cuda_copies.text())

    @property
    def name(self) -> str:
        """The model, such as NVIDIA H200."""
        properties = self._cupy.cuda.runtime.getDeviceProperties(self.number)
        return str(properties["name"].decode())

    @property
    def xp(self) -> Any:
        """CuPy, its work in order with the commits: their stream becomes the calling thread's own."""
        self._gpu.use()
        self._commit.use()
        self._commit.wait_event(self._uploaded)
        return self._cupy

    def check_holds(self, bytes_max: int) -> None:
        """Raise DeviceUnavailable if the GPU has not so much memory free."""
        with self._gpu:
            free = int(self._cupy.cuda.runtime.memGetInfo()[0])
        if bytes_max > free:
            raise DeviceUnavailable(
                f"device cuda:{self.number} ({self.name}) has {free} bytes free, expected {bytes_max} as "
                "--max-memory says; give a smaller --max-memory or another device"
            )

    def allocate(self, elements: int, dtype: np.dtype[Any]) -> Vector:
        """A zeroed vector."""
        with self.committing():
            vector: Vector = self._cupy.zeros(elements, dtype)
        return vector

    def compile(self, program: Program, dtype: np.dtype[Any]) -> Kernel:
        """The program's kernel for a dtype; part of a second the first time, then kept in memory and on disk."""
        key = (program, dtype.str)
        if key not in self._kernels:
            self._kernels[key] = Kernel(self, program, dtype)
        return self._kernels[key]

    def place(
        self,
        vector: Vector,
        packed: Bytes,
        begin: int,
        packed_offsets: Offsets,
        vector_offsets: Offsets,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        """Copy packed bytes to their places, converted on the device; returns when they need not be kept any more."""
        if not self._is_here(vector):
            self._host.place(vector, packed, begin, packed_offsets, vector_offsets, dtype)
            return
        dtype = vector.dtype if dtype is None else dtype
        place = int(np.searchsorted(packed_offsets, begin, side="right")) - 1
        with self._uploading():
            if dtype == vector.dtype and begin + len(packed) <= packed_offsets[place + 1]:
                start = int(vector_offsets[place]) + begin - int(packed_offsets[place])
                self._bring_in(packed, _address(vector) + start)
                return
            arrived = self._cupy.empty(len(packed), np.uint8)
            self._bring_in(packed, _address(arrived))
            count = len(packed) // dtype.itemsize
            self._copy_elements(
                f"place_{dtype.name}_{vector.dtype.name}", vector, arrived, begin, count, packed_offsets, vector_offsets
            )

    def gather(
        self,
        vector: Vector,
        packed: Bytes,
        begin: int,
        packed_offsets: Offsets,
        vector_offsets: Offsets,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        """Fill `packed` with the elements that begin at packed offset `begin`, narrowed here."""
        if not self._is_here(vector):
            self._host.gather(vector, packed, begin, packed_offsets, vector_offsets, dtype)
            return
        if dtype is not None and dtype != vector.dtype:
            narrow = packed.view(dtype)
            own = np.empty(len(narrow), vector.dtype)
            self.gather(vector, own.view(np.uint8), begin, packed_offsets, vector_offsets)
            with np.errstate(over="ignore"):
                narrow[:] = own
            return
        with self._downloading():
            leaving = self._cupy.empty(len(packed), np.uint8)
            count = len(packed) // vector.dtype.itemsize
            self._copy_elements(
                f"gather_{vector.dtype.name}", vector, leaving, begin, count, packed_offsets, vector_offsets
            )
            self._bring_out(_address(leaving), packed)

    def finite_pieces(self, vector: Vector, begins: Offsets, ends: Offsets) -> bool:
        return self._host.finite_pieces(vector, begins, ends)

    def is_finite(self, packed: Bytes, dtype: np.dtype[Any]) -> bool:
        """Whether no element is a NaN or an infinity; on the host, where the bytes are still in the cache."""
        return self._host.is_finite(packed, dtype)

    def copy(self, source: Vector, target: Vector) -> None:
        """Copy a whole vector."""
        with self.committing():
            self._memcpy(_address(target), _address(source), source.nbytes, "DeviceToDevice")

    def fill(self, vector: Vector, value: float) -> None:
        with self.committing():
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
        base = target if base is None else base
        with self.committing():
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
                part, before = target[begin:end], base[begin:end]
                if share == 0:
                    part[...] = kept * before if kept else 0
                else:
                    part[...] = kept * before + share * source[begin:end] if kept else share * source[begin:end]

    def read(self, vector: Vector, begin: int, end: int) -> memoryview:
        """Bytes of a vector, from `begin` to `end`, as the commits before leave them."""
        if not self._is_here(vector):
            return self._host.read(vector, begin, end)
        content = np.empty(end - begin, np.uint8)
        with self._downloading():
            self._bring_out(_address(vector) + begin, content)
        return content.data

    def write(self, vector: Vector, begin: int, values: NDArray[Any]) -> None:
        """Set the elements that start at `begin`."""
        if not self._is_here(vector):
            self._host.write(vector, begin, values)
            return
        content = np.ascontiguousarray(values, vector.dtype).view(np.uint8).reshape(-1)
        with self._uploading():
            self._bring_in(content, _address(vector) + begin * vector.dtype.itemsize)

    def close(self) -> None:
        """Wait for what is under way; the memory goes with the vectors."""
        with self._gpu:
            for stream in (self._upload, self._commit, self._download):
                stream.synchronize()
        self._host.close()

    # For kernels.

    def load(self, source: str) -> Callable[[str], Any]:
        """Compile a text, or find it in CuPy's cache; returns what gives its kernels by name."""
        with self._gpu:
            module = self._cupy.RawModule(code=source, options=("-std=c++14",))
            module.compile()
        get: Callable[[str], Any] = module.get_function
        return get

    @contextmanager
    def committing(self) -> Iterator[None]:
        """What is enqueued inside comes after all uploads and commits so far."""
        with self._gpu, self._commit:
            self._commit.wait_event(self._uploaded)
            yield
            self._committed.record(self._commit)

    def scratch(self, elements: int, dtype: np.dtype[Any]) -> Vector:
        """Memory for a launch, given back in the order of the stream."""
        vector: Vector = self._cupy.empty(elements, dtype)
        return vector

    def launch(
        self,
        function: Any,
        blocks: int,
        pieces: Pieces,
        numbers: list[NDArray[np.int64]],
        table: NDArray[Any],
        vectors: list[Vector],
    ) -> None:
        """Enqueue a kernel. Pieces and table travel in one copy."""
        host = np.concatenate([*(each.view(np.uint8) for each in numbers), np.ravel(table).view(np.uint8)])
        sent = self._cupy.empty(max(1, len(host)), np.uint8)
        self._bring_in(host, _address(sent))
        places, at = [], 0
        for each in (*numbers, table):
            places.append(np.uint64(_address(sent) + at))
            at += each.nbytes
        addresses = [np.uint64(_address(vector)) for vector in vectors]
        function((min(blocks, self._blocks_max),), (BLOCK_THREADS,), (np.int64(len(pieces)), *places, *addresses))

    def fetch(self, vector: Vector) -> Callable[[], NDArray[Any]]:
        """Enqueue a copy to the host; the function that is returned waits for it."""
        cuda = self._cupy.cuda
        memory = cuda.alloc_pinned_memory(vector.nbytes)
        content = np.frombuffer(memory, vector.dtype, len(vector))
        self._memcpy(content.ctypes.data, _address(vector), vector.nbytes, "DeviceToHost")
        done = cuda.Event(disable_timing=True)
        done.record()

        def wait() -> NDArray[Any]:
            done.synchronize()
            return content.copy()

        return wait

    # Ways in and out.

    @contextmanager
    def _uploading(self) -> Iterator[None]:
        with self._gpu, self._upload:
            self._upload.wait_event(self._committed)
            yield
            self._uploaded.record(self._upload)

    @contextmanager
    def _downloading(self) -> Iterator[None]:
        with self._gpu, self._download:
            self._download.wait_event(self._committed)
            # Bytes that a client has just stored, of a state that no commit has touched yet.
            self._download.wait_event(self._uploaded)
            yield

    def _bring_in(self, content: Bytes, address: int) -> None:
        """Enqueue a copy to the device; `content` is free when this returns."""
        for begin in range(0, len(content), _BUFFER_BYTES):
            part = content[begin : begin + _BUFFER_BYTES]
            buffer, memory, used = self._buffers.get()
            # Its last copy was enqueued long ago, as a rule: this waits only where more arrives than the bus can take.
            used.synchronize()
            buffer[: len(part)] = part
            self._memcpy(address + begin, buffer.ctypes.data, len(part), "HostToDevice")
            used.record()
            self._buffers.put((buffer, memory, used))

    def _bring_out(self, address: int, content: Bytes) -> None:
        """Copy to the host, part by part, the next one under way while one is unpacked."""
        waiting: list[tuple[int, int, tuple[Bytes, Any, Any]]] = []
        for begin in range(0, len(content), _BUFFER_BYTES):
            size = min(_BUFFER_BYTES, len(content) - begin)
            if waiting and self._buffers.empty():
                # Whoever holds a buffer and waits for another could wait for somebody who does the same.
                self._unpack(content, *waiting.pop(0))
            taken = self._buffers.get()
            taken[2].synchronize()
            self._memcpy(taken[0].ctypes.data, address + begin, size, "DeviceToHost")
            taken[2].record()
            waiting.append((begin, size, taken))
            if len(waiting) > 1:
                self._unpack(content, *waiting.pop(0))
        for each in waiting:
            self._unpack(content, *each)

    def _unpack(self, content: Bytes, begin: int, size: int, taken: tuple[Bytes, Any, Any]) -> None:
        taken[2].synchronize()
        content[begin : begin + size] = taken[0][:size]
        self._buffers.put(taken)

    def _copy_elements(
        self,
        kernel: str,
        vector: Vector,
        packed: Vector,
        begin: int,
        count: int,
        packed_offsets: Offsets,
        vector_offsets: Offsets,
    ) -> None:
        here = self._offsets(packed_offsets, vector_offsets)
        arguments = (
            np.uint64(_address(vector)),
            np.uint64(_address(packed)),
            np.int64(begin),
            np.int64(count),
            *(np.uint64(_address(each)) for each in here),
            np.int64(len(vector_offsets)),
        )
        self._copies(kernel)((-(-count // BLOCK_THREADS),), (BLOCK_THREADS,), arguments)

    def _offsets(self, packed_offsets: Offsets, vector_offsets: Offsets) -> tuple[Any, Any]:
        """A layout's offsets on the device."""
        key = (id(packed_offsets), id(vector_offsets))
        with self._lock:
            if key not in self._layouts:
                if len(self._layouts) == _LAYOUTS_MAX:
                    del self._layouts[next(iter(self._layouts))]
                copies = []
                for each in (packed_offsets, vector_offsets):
                    copied = self._cupy.empty(len(each), np.int64)
                    self._bring_in(each.view(np.uint8), _address(copied))
                    copies.append(copied)
                # Once, so that streams which did not bring them find them, too.
                self._cupy.cuda.get_current_stream().synchronize()
                # The host's arrays are kept, or their ids might become another's.
                self._layouts[key] = (packed_offsets, vector_offsets, copies[0], copies[1])
            return self._layouts[key][2:]

    def _memcpy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        if not size_bytes:
            return
        runtime = self._cupy.cuda.runtime
        stream = self._cupy.cuda.get_current_stream()
        runtime.memcpyAsync(target, source, size_bytes, getattr(runtime, f"memcpy{kind}"), stream.ptr)

    def _is_here(self, vector: Vector) -> bool:
        return isinstance(vector, self._cupy.ndarray)


def _address(vector: Vector) -> int:
    return int(vector.data.ptr)  # type: ignore[attr-defined]  # CuPy's arrays


def _import_cupy(number: int) -> Any:
    """CuPy, if there is such a GPU; raises DeviceUnavailable."""
    try:
        import cupy  # noqa: PLC0415  # heavy, and not there on most machines
    except ImportError as error:
        raise DeviceUnavailable(
            f"device cuda needs CuPy, which cannot be imported ({error}); install stepwell[server,cuda12] or "
            "stepwell[server,cuda13], whichever fits the CUDA version that nvidia-smi shows"
        ) from error
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceUnavailable(
            f"device cuda: CUDA finds no GPU ({error}); see whether nvidia-smi does, or use --device cpu"
        ) from error
    if number >= count:
        raise DeviceUnavailable(
            f"device cuda:{number} is not there, expected cuda:0 to cuda:{count - 1}; nvidia-smi lists them"
            if count
            else "device cuda: CUDA finds no GPU; see whether nvidia-smi does, or use --device cpu"
        )
    return cupy
