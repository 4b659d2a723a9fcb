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
from stepwell.errors import SharedMemoryUnavailable
from stepwell.v1 import data_pb2

Arrays = dict[str, np.ndarray[Any, Any]]

SHARED_BYTES_MIN: Final = 256 << 10
"""Below this size a stream alone is as fast."""

_SECONDS_MAX: Final = 5.0
_MAPPED_MAX: Final = 64
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
        self._mapped: OrderedDict[int, mmap.mmap | bytes] = OrderedDict()
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
            # By the number of the input, 0 for gradients; by the parameter's index.
            self._own: list[dict[int, np.ndarray[Any, Any]]] = [{} for _ in range(len(inputs) + 1)]
            for vector in response.vectors:
                memory = self._map(vector, mmap.PROT_READ | mmap.PROT_WRITE)
                self._own[vector.input].update(_views(layout, vector.group, memory))
        except BaseException:
            self._socket.close()
            raise

    def gradients(self) -> Arrays:
        """The views to write gradients to, by name."""
        return {self._layout.parameters[index].name: view for index, view in self._own[0].items()}

    def fill(self, arrays: Iterable[Mapping[int, np.ndarray[Any, Any]]]) -> None:
        """Copy gradients and inputs to their places, but for those that are there already."""
        for views, given in zip(self._own, arrays, strict=False):
            for index, array in given.items():
                view = views[index]
                if array is not view and not (_address(array) == _address(view) and array.dtype == view.dtype):
                    np.copyto(view, array)

    def parameters(self, vectors: Iterable[data_pb2.SharedVector]) -> Arrays:
        """Read-only views of all parameters in the vectors that an answer named. Raises OSError, ..., as `__init__`."""
        found: dict[int, np.ndarray[Any, Any]] = {}
        for vector in vectors:
            found |= _views(self._layout, vector.group, self._map(vector, mmap.PROT_READ))
        return {parameter.name: found[parameter.index] for parameter in self._layout.parameters}

    def close(self) -> None:
        """Give it back. In a forked child: only this process's end."""
        self._socket.close()

    def _map(self, vector: data_pb2.SharedVector, protection: int) -> mmap.mmap | bytes:
        """The memory of a vector, mapped once."""
        memory = self._mapped.get(vector.handle)
        if memory is None:
            memory = self._fetch(vector, protection) if vector.size_bytes else b""
            self._mapped[vector.handle] = memory
            if len(self._mapped) > _MAPPED_MAX:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(vector.handle)
        return memory

    def _fetch(self, vector: data_pb2.SharedVector, protection: int) -> mmap.mmap:
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


def _views(layout: Layout, group: int, memory: mmap.mmap | bytes) -> dict[int, np.ndarray[Any, Any]]:
    return {
        parameter.index: np.ndarray(parameter.shape, parameter.dtype, memory, parameter.vector_offset_bytes)
        if parameter.size_bytes
        else np.empty(parameter.shape, parameter.dtype)
        for parameter in layout.by_group[group]
    }


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
