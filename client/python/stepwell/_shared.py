"""The worker's side of shared memory: vectors that the server maps, too, and named views of them."""

import mmap
import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from stepwell._layout import Layout
from stepwell._packing import Gradients
from stepwell.errors import SharedMemoryUnavailable
from stepwell.v1 import data_pb2

Arrays = dict[str, np.ndarray[Any, Any]]

SHARED_BYTES_MIN: Final = 256 << 10
"""Below this size a stream alone is as fast."""

_SECONDS_MAX: Final = 5.0
# How many versions stay mapped: each worker of the run may hold one, and they take turns in the same few vectors.
_MAPPED_MAX: Final = 64
_JOINED_BYTES_MAX: Final = 1 << 20
_COMPARED_BYTES_MIN: Final = 64 << 10
_HANDLE: Final = struct.Struct("<Q")
_PEER: Final = struct.Struct("3i")  # pid, uid, gid


class SharedMemory:
    """What one worker shares with the server until it closes this.

    token: what stands for it in messages. inputs: the names for which it has vectors beside the gradients. Views stay
    valid memory when it is closed; they are only shared no more.
    """

    def __init__(self, layout: Layout, inputs: Sequence[str], response: data_pb2.ShareMemoryResponse) -> None:
        """Connect and map; blocks, but not for long. Raises OSError and SharedMemoryUnavailable."""
        self.token = response.token
        self.inputs = tuple(inputs)
        self._layout = layout
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
        except BaseException:
            self._socket.close()
            raise

    def gradients(self) -> Arrays:
        """The views to write gradients to, by name; always the same objects."""
        return {self._layout.parameters[index].name: view for index, view in self._own[0].views.items()}

    def fill(self, gradients: Gradients) -> None:
        """Copy gradients and inputs to their places, but for those that are there already."""
        if gradients.whole and gradients.data_bytes <= _JOINED_BYTES_MAX and self._fill_joined(gradients.arrays):
            return
        for own, arrays in zip(self._own, (gradients.arrays, *gradients.inputs.values()), strict=False):
            for index, array in arrays.items():
                view = own.views[index]
                if array is not view and not _same_memory(array, view):
                    np.copyto(view, array)

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
        for group, flat in own.flat.items():
            parts: list[Any] = [arrays[parameter.index] for parameter in self._layout.by_group[group]]
            if parts and parts[0] is own.views[self._layout.by_group[group][0].index]:
                return False  # these are the views themselves
            joined = b"".join(parts)
            flat[: len(joined)] = joined
        return True

    def close(self) -> None:
        """Give it back. In a forked child: only this process's end."""
        self._socket.close()

    def _fetch(self, vector: data_pb2.SharedVector, protection: int) -> mmap.mmap | bytes:
        """Map a vector."""
        if not vector.size_bytes:
            return b""
        self._socket.sendall(_HANDLE.pack(vector.handle))
        answer, descriptors = b"", []
        while len(answer) < _HANDLE.size:
            part, more, _, _ = socket.recv_fds(self._socket, _HANDLE.size - len(answer), 1)
            descriptors += more
            if not part:
                break
            answer += part
        try:
            if len(descriptors) != 1 or answer != _HANDLE.pack(vector.size_bytes):
                raise SharedMemoryUnavailable("the server has no such vector any more, expected it; share memory again")
            return mmap.mmap(descriptors[0], vector.size_bytes, mmap.MAP_SHARED, protection)
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


def _same_memory(array: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> bool:
    """Whether a large array lies where the view does, perhaps through another library. Small ones are copied."""
    if array.nbytes < _COMPARED_BYTES_MIN or array.dtype != view.dtype:
        return False
    ours: int = view.__array_interface__["data"][0]
    theirs: int = array.__array_interface__["data"][0]
    return ours == theirs
