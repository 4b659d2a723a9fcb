"""A stand-in for CuPy on a machine without a GPU, as much of it as `devices/cuda.py` uses.

Arrays are NumPy's. RawModule compiles a text as C++ (`cuda_shim.h`) and runs its kernels here. Streams are as lazy as
CUDA allows: what is enqueued runs only when somebody waits for it, or when a later operation of the same stream runs;
so a wait that is missing between two streams shows, as contents that are not there yet.

What it does not show: whether CuPy takes these calls in this form, whether NVRTC compiles the texts, what a GPU's
memory and arithmetic do, and anything about speed. It never gives memory back.
"""

import ctypes
import itertools
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.core.compiler.cuda_shim import build

_MULTIPROCESSORS = 2

# Enqueued work holds addresses, not arrays.
_alive: list[Any] = []
_current = threading.local()


class ndarray(np.ndarray[Any, Any]):  # noqa: N801  # CuPy's name
    """An array in "the device's" memory: what is no such array is the host's."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    def fill(self, value: Any) -> None:
        _stream().enqueue(lambda: np.ndarray.fill(self, value))

    # What array code does at once comes after what its stream has enqueued.

    def __array_ufunc__(self, function: Any, method: Any, *inputs: Any, out: Any = (), **more: Any) -> Any:  # type: ignore[override]
        _stream().run()
        mixed = [
            each for each in inputs if isinstance(each, np.ndarray) and not isinstance(each, ndarray) and each.ndim
        ]
        if mixed:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        plain = [each.view(np.ndarray) if isinstance(each, ndarray) else each for each in inputs]
        if out:
            more["out"] = tuple(each.view(np.ndarray) for each in out)
        result = getattr(function, method)(*plain, **more)
        return out[0] if out else np.asarray(result).view(ndarray)

    def __array_function__(self, function: Any, types: Any, arguments: Any, more: Any) -> Any:
        # CuPy would dispatch much of this; array code that asks for `xp` should not rely on how much.
        if not _current.__dict__.get("inside"):
            raise TypeError(f"numpy.{function.__name__} was called on a device's array")
        return super().__array_function__(function, types, arguments, more)

    def __setitem__(self, key: Any, value: Any) -> None:
        _stream().run()
        super().__setitem__(key, value)

    def __array_finalize__(self, before: Any) -> None:
        _alive.append(self)


class Stream:
    """Runs nothing until it must."""

    def __init__(self, non_blocking: bool = False) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._ran = 0
        self._guard = threading.RLock()
        self.ptr = id(self)

    def enqueue(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)

    @property
    def length(self) -> int:
        return self._ran + len(self._waiting)

    def run(self, count: int | None = None) -> None:
        """Run the first `count` operations ever enqueued; all for None."""
        with self._guard:
            while self._waiting and (count is None or self._ran < count):
                work = self._waiting.popleft()
                self._ran += 1
                work()

    def synchronize(self) -> None:
        self.run()

    def wait_event(self, event: "Event") -> None:
        self.enqueue(event.snapshot())

    def use(self) -> "Stream":
        _current.stream = self
        return self

    def __enter__(self) -> "Stream":
        stack = _current.__dict__.setdefault("stack", [])
        stack.append(_stream())
        return self.use()

    def __exit__(self, *error: object) -> None:
        _current.stream = _current.stack.pop()


_null = Stream()


def _stream() -> Stream:
    found: Stream = _current.__dict__.get("stream", _null)
    return found


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self._recorded: tuple[Stream, int] | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or _stream()
        self._recorded = (stream, stream.length)

    def snapshot(self) -> Callable[[], None]:
        """What waits for the record that is the latest now."""
        recorded = self._recorded

        def wait() -> None:
            if recorded is not None:
                recorded[0].run(recorded[1])

        return wait

    def synchronize(self) -> None:
        self.snapshot()()


class Device:
    attributes = {"MultiProcessorCount": _MULTIPROCESSORS}  # noqa: RUF012  # CuPy's has it on the instance

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def use(self) -> None:
        pass

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class RawModule:
    _numbers = itertools.count()

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        self._code = code
        self._kernels: dict[str, Any] = {}

    def compile(self) -> None:
        with tempfile.TemporaryDirectory(prefix="fake-cupy-") as directory:
            (self._kernels,) = build([self._code], Path(directory), f"module_{next(self._numbers)}")

    def get_function(self, name: str) -> Callable[..., None]:
        kernel = self._kernels[name]

        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert grid[0] > 0, "CUDA refuses a launch without blocks"
            assert all(isinstance(each, np.int64 | np.uint64) for each in arguments)
            numbers = [int(each) for each in arguments]
            _stream().enqueue(lambda: kernel(grid[0], block[0], *numbers))

        return launch


class CUDARuntimeError(RuntimeError):
    pass


def _memcpy_async(target: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
    current = _stream()
    assert stream == current.ptr

    def copy() -> None:
        ctypes.memmove(target, source, size_bytes)

    current.enqueue(copy)


def _pinned(size_bytes: int) -> Any:
    memory = np.zeros(size_bytes, np.uint8)
    _alive.append(memory)
    return memory


def _zeros(elements: int, dtype: Any) -> ndarray:
    # On a device memory is set in the order of the stream; until then it holds anything.
    made = _empty(elements, dtype)
    made.fill(0)
    return made


def _empty(elements: int, dtype: Any) -> ndarray:
    raw = np.full(elements * np.dtype(dtype).itemsize + 512, 0xA5, np.uint8)
    start = -raw.ctypes.data % 512
    made: ndarray = raw[start : start + elements * np.dtype(dtype).itemsize].view(dtype).view(ndarray)
    return made


class _Eager(ModuleType):
    """The module. Its array functions are NumPy's: they run at once, after what the current stream has enqueued."""

    _numpy: ModuleType = np

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._numpy, name)
        if isinstance(found, ModuleType):
            inner = _Eager(name)
            inner._numpy = found
            return inner
        if not callable(found) or isinstance(found, type):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            _stream().run()
            before, _current.inside = _current.__dict__.get("inside"), True
            try:
                result = found(*arguments, **more)
            finally:
                _current.inside = before
            return result.view(ndarray) if type(result) is np.ndarray else result

        return call


def make(gpus: int = 1, free_bytes: int = 1 << 40) -> ModuleType:
    """A module to put into `sys.modules` under "cupy"."""
    module = _Eager("cupy")
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: gpus,
        getDeviceProperties=lambda number: {"name": b"a stand-in"},
        memGetInfo=lambda: (free_bytes, free_bytes),
        memcpyAsync=_memcpy_async,
        memcpyHostToDevice=1,
        memcpyDeviceToHost=2,
        memcpyDeviceToDevice=3,
    )
    module.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device,
        Stream=Stream,
        Event=Event,
        runtime=runtime,
        alloc_pinned_memory=_pinned,
        get_current_stream=_stream,
        get_elapsed_time=lambda begin, end: 1.0,
    )
    module.ndarray = ndarray  # type: ignore[attr-defined]
    module.RawModule = RawModule  # type: ignore[attr-defined]
    module.zeros = _zeros  # type: ignore[attr-defined]
    module.empty = _empty  # type: ignore[attr-defined]
    return module
