"""The worker's side of shared memory: vectors that the server maps, too, and named views of them."""

import contextlib
import mmap
import os
import socket
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

import numpy as np

from stepwell._layout import Layout, listed
from stepwell._packing import Gradients
from stepwell.errors import IncompleteUpdate, InvalidRange, SharedMemoryUnavailable
from stepwell.v1 import data_pb2

Arrays = dict[str, np.ndarray[Any, Any]]

SHARED_BYTES_MIN: Final = 256 << 10
"""Below this size a stream alone is as fast."""

ROWS_BYTES_MIN: Final = 4 << 20
"""The least size of the vector for rows: so that it is not made anew as batches grow."""

_SECONDS_MAX: Final = 5.0
# How many versions stay mapped: each worker of the run may hold one, and they take turns in the same few vectors.
_MAPPED_MAX: Final = 64
_JOINED_BYTES_MAX: Final = 1 << 20
_COMPARED_BYTES_MIN: Final = 64 << 10
_HANDLE: Final = struct.Struct("<Q")
_PEER: Final = struct.Struct("iII")  # pid, uid, gid


class SharedMemory:
    """What one worker shares with the server until it closes this.

    token: what stands for it in messages. inputs: the names for which it has vectors beside the gradients. rows: the
    vector for rows of tables, which both sides write to, as bytes; none where none was asked for. Views stay valid
    memory when it is closed; they are only shared no more.
    """

    def __init__(self, layout: Layout, inputs: Sequence[str], response: data_pb2.ShareMemoryResponse) -> None:
        """Connect and map; blocks, but not for long. Raises OSError and SharedMemoryUnavailable."""
        self.token = response.token
        self.inputs = tuple(inputs)
        self._layout = layout
        self._pid = os.getpid()
        self._mapped: OrderedDict[tuple[int, ...], _Vectors] = OrderedDict()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_SECONDS_MAX)
            self._socket.connect(response.socket)
            uid = _PEER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1]
            if uid != os.geteuid():
                raise SharedMemoryUnavailable(
                    f"the server's socket belongs to user {uid}, expected {os.geteuid()}; run both as one user"
                )
            self._socket.sendall(self.token)
            # By the number of the input, 0 for gradients.
            self._own = [_Vectors() for _ in range(len(inputs) + 1)]
            for vector in response.vectors:
                memory = self._fetch(vector, mmap.PROT_READ | mmap.PROT_WRITE)
                self._own[vector.input].add(layout, vector.group, memory)
            rows = self._fetch(response.rows, mmap.PROT_READ | mmap.PROT_WRITE) if response.HasField("rows") else b""
            self.rows = np.frombuffer(rows, np.uint8)
            # Where what `fill` writes to lies, in order.
            flats = [np.frombuffer(flat, np.uint8) for own in self._own for flat in own.flat.values()]
            self._spans = sorted((_address(flat), _address(flat) + flat.nbytes) for flat in flats)
        except BaseException:
            self._socket.close()
            raise

    def gradients(self) -> Arrays:
        """The views to write gradients to, by name; always the same objects."""
        return {self._layout.parameters[index].name: view for index, view in self._own[0].views.items()}

    def fill(self, gradients: Gradients) -> None:
        """Copy gradients and inputs to their places, but for those that are there already.

        Raises IncompleteUpdate and InvalidRange for an input that is not whole: the server takes whatever is there.
        """
        for own, (name, arrays) in zip(self._own[1:], gradients.inputs.items(), strict=False):
            self._check_input(name, own.views.keys() & gradients.arrays.keys(), arrays)
        if gradients.whole and gradients.data_bytes <= _JOINED_BYTES_MAX and self._fill_joined(gradients.arrays):
            return
        moved = [
            (view, array)
            for own, arrays in zip(self._own, (gradients.arrays, *gradients.inputs.values()), strict=False)
            for index, array in arrays.items()
            if (view := own.views.get(index)) is not None and array is not view and not _same_memory(array, view)
        ]
        # An array may lie where another one is about to go.
        for view, array in [(view, array.copy() if self._is_own(array) else array) for view, array in moved]:
            np.copyto(view, array)

    def put(self, index: int, gradient: np.ndarray[Any, Any]) -> None:
        """Copy one gradient to its place, unless it is there already."""
        view = self._own[0].views[index]
        if gradient is not view and not _same_memory(gradient, view):
            np.copyto(view, gradient)

    def parameters(self, vectors: Iterable[data_pb2.SharedVector]) -> "_Vectors":
        """All parameters in the vectors that an answer named, read-only. Raises OSError and SharedMemoryUnavailable."""
        vectors = list(vectors)
        key = tuple(vector.handle for vector in vectors)
        found = self._mapped.get(key)
        if found is None:
            found = _Vectors()
            for vector in vectors:
                found.add(self._layout, vector.group, self._fetch(vector, mmap.PROT_READ))
            self._mapped[key] = found
            if len(self._mapped) > _MAPPED_MAX:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(key)
        return found

    def _fill_joined(self, arrays: Mapping[int, np.ndarray[Any, Any]]) -> bool:
        """Copy many small arrays in one go; False where a group has padding between them."""
        own = self._own[0]
        if not all(self._layout.dense[group] for group in own.flat):
            return False
        joined: dict[int, bytes] = {}
        for group in own.flat:
            parts: list[Any] = [arrays[parameter.index] for parameter in self._layout.by_group[group]]
            if parts and parts[0] is own.views[self._layout.by_group[group][0].index]:
                return False  # these are the views themselves
            joined[group] = b"".join(parts)
        for group, content in joined.items():
            if content:  # what is empty has no memory
                own.flat[group][: len(content)] = content
        return True

    def close(self) -> None:
        """Give it back. In a forked child: only this process's end."""
        if self._pid == os.getpid():
            # A child may have the socket, too; the server shall hear of it all the same.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _check_input(self, name: str, needed: Set[int], given: Mapping[int, np.ndarray[Any, Any]]) -> None:
        """Raise unless an input is there for exactly the parameters that need it."""
        parameters = self._layout.parameters
        missing = [parameters[index] for index in sorted(needed - given.keys()) if parameters[index].size_bytes]
        if missing:
            raise IncompleteUpdate(
                f"got no array of input '{name}' for {listed(parameter.name for parameter in missing)}, expected one "
                "for each parameter that has a gradient and whose optimizer takes the input; give the rest",
                {"missing_bytes": str(sum(parameter.size_bytes for parameter in missing))},
            )
        extra = [parameters[index].name for index in sorted(given.keys() - needed) if parameters[index].size_bytes]
        if extra:
            raise InvalidRange(
                f"got an array of input '{name}' for {listed(extra)}, expected none, since no optimizer takes it or "
                "there is no gradient; leave it out"
            )

    def _is_own(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether the array lies in memory that `fill` writes to."""
        address = _address(array)
        at = bisect_right(self._spans, (address + 1,)) - 1
        return at >= 0 and address < self._spans[at][1]

    def _fetch(self, vector: data_pb2.SharedVector, protection: int) -> mmap.mmap | bytes:
        """Map a vector."""
        if not vector.size_bytes:
            return b""
        answer, descriptors = b"", []
        try:
            self._socket.sendall(_HANDLE.pack(vector.handle))
            while len(answer) < _HANDLE.size:
                part, more, _, _ = socket.recv_fds(self._socket, _HANDLE.size - len(answer), 1)
                descriptors += more
                if not part:
                    break
                answer += part
            if len(descriptors) != 1 or answer != _HANDLE.pack(vector.size_bytes):
                raise SharedMemoryUnavailable("the server has no such vector any more, expected it; share memory again")
            return mmap.mmap(descriptors[0], vector.size_bytes, mmap.MAP_SHARED, protection)
        except BaseException as error:
            self.close()  # an answer that still comes would be taken for the next vector's
            if isinstance(error, OSError):
                raise SharedMemoryUnavailable(
                    f"the server's vector could not be had ({error}), expected it; share memory again"
                ) from error
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


class _Vectors:
    """Flat vectors, and views of the parameters in them. views: by the parameter's index; flat: bytes by group."""

    def __init__(self) -> None:
        self.views: dict[int, np.ndarray[Any, Any]] = {}
        self.flat: dict[int, memoryview] = {}

    def add(self, layout: Layout, group: int, memory: mmap.mmap | bytes) -> None:
        self.flat[group] = memoryview(memory)
        for parameter in layout.by_group[group]:
            self.views[parameter.index] = (
                np.ndarray(parameter.shape, parameter.dtype, memory, parameter.vector_offset_bytes)
                if parameter.size_bytes
                else np.empty(parameter.shape, parameter.dtype)
            )


def rows_vector_bytes(rows_bytes: int) -> int:
    """How large a vector to ask for, for rows that take so many bytes; 0: for whatever comes."""
    return max(ROWS_BYTES_MIN, 1 << max(0, rows_bytes - 1).bit_length())


def _same_memory(array: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> bool:
    """Whether a large array lies where the view does, perhaps through another library. Small ones are copied."""
    if array.nbytes < _COMPARED_BYTES_MIN or array.dtype != view.dtype:
        return False
    return _address(array) == _address(view)


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
