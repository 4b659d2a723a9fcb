"""Ranges into arrays: what comes in."""

import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stepwell._encoding import Decoder
from stepwell._layout import Layout, Parameter, listed
from stepwell.errors import Internal, InvalidValue
from stepwell.payload import Buffer
from stepwell.v1 import run_pb2

Bytes = npt.NDArray[np.uint8]

POOLED_BYTES_MIN: Final = 1 << 20
POOLED_BUFFERS_MAX: Final = 2
"""As many as a loop needs that holds one step's parameters while it receives the next."""


class BufferPool:
    """Memory for arrays that the caller owns, used again once the caller has dropped every view of it.

    A fresh 100 MB buffer costs 25 ms in page faults at every step.
    """

    def __init__(self) -> None:
        # A deque's single operations need no lock, and `append` may be called at any point, by the garbage collector.
        self._free: deque[Bytes] = deque(maxlen=POOLED_BUFFERS_MAX)

    def take(self, size_bytes: int) -> Bytes:
        """A buffer of undefined content; all arrays made on it keep it from being given out again."""
        if size_bytes < POOLED_BYTES_MIN:
            return np.empty(size_bytes, np.uint8)
        memory = self._find(size_bytes)
        if memory is None:
            memory = np.empty(size_bytes, np.uint8)
        # NumPy makes the base of a view of a view the first array in the chain whose own base is no array. Here that
        # is `lease`, because of the memoryview: it dies when the last view does, not before.
        lease = np.frombuffer(memory.data, np.uint8)
        lease.flags.writeable = True
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return lease

    def clear(self) -> None:
        """Let go of what is free now."""
        self._free.clear()

    def _find(self, size_bytes: int) -> Bytes | None:
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread was faster
                return None
            if memory.nbytes == size_bytes:
                return memory
            self._free.append(memory)
        return None


class Destination:
    """Arrays that ranges are put into.

    Segments are contiguous parts of a group's packed vector and the bytes that they go to; in order, not overlapping.
    """

    def __init__(self, segments: Sequence[tuple[int, int, Bytes]], groups: int) -> None:
        """segments: (group, offset in the group, bytes to fill)."""
        self._starts: list[list[int]] = [[] for _ in range(groups)]
        self._targets: list[list[Bytes]] = [[] for _ in range(groups)]
        self.size_bytes = 0
        self.filled_bytes = 0
        for group, offset, target in segments:
            if target.nbytes:
                self._starts[group].append(offset)
                self._targets[group].append(target)
                self.size_bytes += target.nbytes

    def spans(self, group: int, offset: int, size_bytes: int) -> Iterator[tuple[Bytes, int, int]]:
        """Where a range goes: memory, and which bytes of the range, from where to where, belong there.

        Raises Internal if it lies outside of what was asked for.
        """
        self.filled_bytes += size_bytes
        starts, targets = self._starts[group], self._targets[group]
        taken = 0
        at = bisect_right(starts, offset) - 1
        while taken < size_bytes:
            inside = offset + taken - starts[at] if 0 <= at < len(starts) else -1
            if inside < 0 or inside >= targets[at].nbytes:
                raise Internal(f"got bytes at {offset + taken} of group {group}, expected none; report this")
            size = min(targets[at].nbytes - inside, size_bytes - taken)
            yield targets[at][inside : inside + size], taken, taken + size
            taken += size
            at += 1

    def fill(self, groups: Sequence[memoryview]) -> None:
        """Copy the beginning of each group's bytes to the one segment that the group has."""
        for targets, source in zip(self._targets, groups, strict=True):
            for target in targets:
                target[:] = source[: target.nbytes]
        self.filled_bytes = self.size_bytes

    def check_full(self) -> None:
        """Raise Internal unless every byte has come; ranges do not overlap, so counting is enough."""
        if self.filled_bytes != self.size_bytes:
            raise Internal(f"got {self.filled_bytes} bytes, expected {self.size_bytes}; report this")


class Views(dict[str, np.ndarray[Any, Any]]):
    """Read-only views of all parameters, as `run.parameters()` gives them: valid until the next step or pull.

    Given to `step` or `pull` as `out`, they say that no copy is wanted; what comes back is the next such views.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray[Any, Any]], *, own: bool) -> None:
        """own: whether the arrays are memory of this process alone, that the next parameters may be written to."""
        self.own = dict(arrays) if own else None
        super().__init__({name: array.view() for name, array in arrays.items()})
        for view in self.values():
            view.flags.writeable = False


class Received:
    """The arrays of some parameters, and where their ranges go.

    parameters: in the order in which they shall be returned. out: arrays to fill in place, else fresh ones are made,
    one buffer per group. decoder: for ranges that come encoded.
    """

    def __init__(
        self,
        layout: Layout,
        parameters: Sequence[Parameter],
        pool: BufferPool,
        out: Mapping[str, Any] | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        self._layout, self._parameters, self._pool, self._decoder = layout, parameters, pool, decoder
        self._as_views = isinstance(out, Views)
        self._out = out.own if isinstance(out, Views) else out
        self._shared = False
        if self._out is not None:
            check_out(parameters, self._out)
        # All of them, in the layout's own order: what nearly every step asks for.
        self._everything = parameters is layout.parameters
        self.size_bytes = (
            layout.size_bytes if self._everything else sum(parameter.size_bytes for parameter in parameters)
        )
        self._destination: Destination | None = None
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._prepared = False

    @property
    def parameters_count(self) -> int:
        return len(self._parameters)

    @property
    def filled_bytes(self) -> int:
        return self._destination.filled_bytes if self._destination else 0

    @property
    def copies(self) -> bool:
        """Whether parameters in shared memory are to be copied from there."""
        return not self._as_views

    def take(self, views: Mapping[int, np.ndarray[Any, Any]], flat: Mapping[int, memoryview]) -> None:
        """Take parameters that lie in shared memory. views: by index; flat: the vectors that they lie in, by group."""
        if self._as_views:
            self._arrays = {parameter.name: views[parameter.index] for parameter in self._parameters}
            self._shared = True
            return
        self.begin()
        assert self._destination is not None
        if self._everything and self._out is None and all(self._layout.dense):
            self._destination.fill([flat[group] for group in range(len(self._layout.groups))])
            return
        for parameter in self._parameters:
            np.copyto(self._arrays[parameter.name], views[parameter.index])
        self._destination.filled_bytes = self._destination.size_bytes

    def prepare(self) -> None:
        """Make room ahead of `begin`, while there is nothing else to do."""
        self.begin()
        self._prepared = True

    def begin(self) -> None:
        """Make room, or start over."""
        if self._prepared:
            self._prepared = False
            return
        if self._out is not None:
            self._arrays = dict(self._out)
            segments = [
                (parameter.group, parameter.offset_bytes, flat_bytes(self._out[parameter.name]))
                for parameter in sorted(self._parameters, key=lambda parameter: parameter.offset_bytes)
            ]
        else:
            segments = self._allocate()
        self._destination = Destination(segments, len(self._layout.groups))

    def put(self, piece: run_pb2.Range, data: Buffer) -> None:
        """Take a range."""
        if self._destination is None or piece.group >= len(self._layout.groups):
            raise Internal(f"got a range of group {piece.group} that was not announced, expected none; report this")
        group, offset = piece.group, piece.packed_offset_bytes
        if self._decoder is not None and (piece.dtype or piece.encoding):
            dtype = self._layout.groups[group].dtype
            size_bytes = self._decoder.count(piece, data) * dtype.itemsize
            self._decoder.write(piece, data, dtype, self._destination.spans(group, offset, size_bytes))
            return
        content = np.frombuffer(data, np.uint8)
        for target, begin, end in self._destination.spans(group, offset, content.nbytes):
            target[:] = content[begin:end]

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays by name, once all has come."""
        if self._shared:
            return Views(self._arrays, own=False)
        if self._destination is None:
            raise Internal("got no parameters, expected them; report this")
        self._destination.check_full()
        arrays = self._arrays
        if not self._everything or self._out is not None:
            arrays = {parameter.name: self._arrays[parameter.name] for parameter in self._parameters}
        return Views(arrays, own=True) if self._as_views else arrays

    def _allocate(self) -> list[tuple[int, int, Bytes]]:
        """One buffer per group, in which the wanted parameters follow one another; neighbours make one segment."""
        if self._everything:
            buffers = [self._pool.take(group.packed_bytes) for group in self._layout.groups]
            self._arrays = {
                name: np.ndarray(shape, dtype, buffers[group], offset)
                for name, shape, dtype, group, offset in self._layout.places
            }
            return [(group, 0, buffer) for group, buffer in enumerate(buffers)]
        wanted: list[list[Parameter]] = [[] for _ in self._layout.groups]
        for parameter in self._parameters:
            wanted[parameter.group].append(parameter)
        segments: list[tuple[int, int, Bytes]] = []
        for group, members in enumerate(wanted):
            members.sort(key=lambda parameter: parameter.offset_bytes)
            buffer = self._pool.take(sum(parameter.size_bytes for parameter in members))
            at = first = 0  # in the buffer: where the next parameter goes, where the open segment began
            for index, parameter in enumerate(members):
                self._arrays[parameter.name] = np.ndarray(parameter.shape, parameter.dtype, buffer, at)
                at += parameter.size_bytes
                end = parameter.offset_bytes + parameter.size_bytes
                if index + 1 == len(members) or members[index + 1].offset_bytes != end:
                    segments.append((group, end - (at - first), buffer[first:at]))
                    first = at
        return segments


def check_out(parameters: Sequence[Parameter], out: Mapping[str, Any]) -> None:
    """Raise InvalidValue unless `out` has an array to fill for each of these parameters and for nothing else."""
    names = {parameter.name for parameter in parameters}
    if names != set(out):
        raise InvalidValue(
            f"got out= for {listed(sorted(out))}, expected arrays for {listed(sorted(names))}; give exactly these"
        )
    for parameter in parameters:
        check_array_out(parameter.name, out[parameter.name], parameter.shape, parameter.dtype)


def check_array_out(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise InvalidValue for what is no array of this shape and dtype that can be filled."""
    if not (
        isinstance(array, np.ndarray)
        and array.shape == shape
        and array.dtype == dtype
        and array.flags.c_contiguous
        and array.flags.writeable
    ):
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidValue(
            f"out= for '{name}': got {got}, expected a writable C-contiguous {dtype.name} array of shape {shape}; make "
            f"it with np.empty({shape}, np.{dtype.name})"
        )


def flat_bytes(array: np.ndarray[Any, Any]) -> Bytes:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)
