"""Vectors in memory that other processes of the same user can map, by descriptors and without a name (Linux's memfd).

The kernel keeps the memory until the last descriptor and mapping are gone, so neither side can pull it away from
under the other; seals keep its size.
"""

import fcntl
import itertools
import mmap
import os
import weakref
from typing import Any, NamedTuple

import numpy as np

from stepwell_server.core.devices.device import Vector

# As in Linux's fcntl.h; Python knows it from 3.13 on. Mappings that exist may go on writing, new ones may not.
_F_SEAL_FUTURE_WRITE = 0x0010


class _Shared(NamedTuple):
    descriptor: int
    owner: str
    number: int


class SharedVectors:
    """Every vector that this process shares."""

    def __init__(self) -> None:
        # By address: vectors are looked up by what they are, and views of them come and go.
        self._open: dict[int, _Shared] = {}
        self._numbers = itertools.count(1)

    @property
    def count(self) -> int:
        """How many vectors there are."""
        return len(self._open)

    @staticmethod
    def available() -> bool:
        return hasattr(os, "memfd_create")

    def allocate(self, elements: int, dtype: np.dtype[Any], owner: str) -> Vector:
        """A zeroed vector on a page boundary. owner: who alone gets its memory again when it is free."""
        size = max(1, elements * dtype.itemsize)
        descriptor = os.memfd_create("stepwell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            memory = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        vector = np.frombuffer(memory, dtype, elements)
        address = _address(vector)
        self._open[address] = _Shared(descriptor, owner, next(self._numbers))
        # Of the vector, not of its memory: that may be unmapped, and its address given out again, before it is told of.
        weakref.finalize(vector, self._close, address).atexit = False
        return vector

    def owner(self, vector: Vector) -> str:
        """As given to `allocate`; "" for a vector that is not shared."""
        found = self._open.get(_address(vector)) if self._open else None
        return found.owner if found else ""

    def number(self, vector: Vector) -> int:
        """What tells the vector from all others that there ever were."""
        return self._open[_address(vector)].number

    def descriptor(self, vector: Vector, *, writable: bool) -> int:
        """What another process maps the vector by; stays this process's own. writable: whether the other may write."""
        descriptor = self._open[_address(vector)].descriptor
        seals = fcntl.F_SEAL_SEAL if writable else _F_SEAL_FUTURE_WRITE
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL == 0:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        return descriptor

    def _close(self, address: int) -> None:
        os.close(self._open.pop(address).descriptor)


def _address(vector: Vector) -> int:
    address: int = vector.__array_interface__["data"][0]  # a third of the time that vector.ctypes takes
    return address
