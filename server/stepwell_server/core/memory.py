"""The one budget from which all vectors come: state, staged updates, and copies made because a reader holds a version.

A freed vector is kept for the next taker of the same size, since fresh pages cost more than the copy that fills them;
kept vectors count, and go first when the budget is short. Not thread-safe: one thread owns it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stepwell_server.core.devices.device import ALIGNMENT_BYTES, Device
from stepwell_server.core.devices.device import Vector as Vector
from stepwell_server.core.errors import MemoryExhausted

Size = tuple[int, np.dtype[Any]]

_KEPT_PER_SIZE = 2


class Memory:
    """Allocates vectors within a limit.

    bytes_max: the limit. on_free: called whenever memory has become free, for those who wait.
    """

    def __init__(self, device: Device, bytes_max: int) -> None:
        self.device = device
        self.bytes_max = bytes_max
        self.on_free: Callable[[], None] = lambda: None
        self._used_bytes = 0
        self._kept: dict[tuple[int, str], list[Vector]] = {}

    @property
    def used_bytes(self) -> int:
        """What is taken and what is kept for the next taker."""
        return self._used_bytes + self._kept_bytes()

    def check_fits(self, sizes: Sequence[Size], purpose: str, beside_bytes: int) -> None:
        """Raise MemoryExhausted if the vectors could never be had beside what stays taken."""
        needed = sum(_bytes(size) for size in sizes)
        if needed + beside_bytes > self.bytes_max:
            raise MemoryExhausted(
                f"{purpose} needs {needed} bytes, expected at most {self.bytes_max - beside_bytes} of the server's "
                f"{self.bytes_max}; use a smaller run or a server with a larger --max-memory",
                needed_bytes=needed,
                limit_bytes=self.bytes_max,
            )

    def allocate(self, sizes: Sequence[Size], purpose: str) -> list[Vector]:
        """All the vectors or MemoryExhausted; contents are whatever an earlier taker left."""
        vectors = self.try_allocate(sizes)
        if vectors is None:
            raise self._refusal(sizes, purpose)
        return vectors

    def try_allocate(self, sizes: Sequence[Size]) -> list[Vector] | None:
        """All the vectors, or None if the budget does not hold them now."""
        needed = sum(_bytes(size) for size in sizes)
        if self._used_bytes + needed > self.bytes_max:
            return None
        if self.used_bytes + needed - self._reusable_bytes(sizes) > self.bytes_max:
            self._kept.clear()
        self._used_bytes += needed
        return [self._take(elements, dtype) for elements, dtype in sizes]

    def free(self, vectors: Sequence[Vector]) -> None:
        """Give vectors back; nobody may look at them any more."""
        for vector in vectors:
            self._used_bytes -= _bytes((len(vector), vector.dtype))
            kept = self._kept.setdefault((len(vector), vector.dtype.str), [])
            if len(kept) < _KEPT_PER_SIZE:
                kept.append(vector)
        assert self._used_bytes >= 0
        self.on_free()

    def drop_kept(self) -> None:
        """Give the kept vectors back to the system, when a run of their size is gone."""
        self._kept.clear()

    def _take(self, elements: int, dtype: np.dtype[Any]) -> Vector:
        kept = self._kept.get((elements, dtype.str))
        return kept.pop() if kept else self.device.allocate(elements, dtype)

    def _reusable_bytes(self, sizes: Sequence[Size]) -> int:
        wanted = Counter((elements, dtype.str) for elements, dtype in sizes)
        return sum(
            _bytes((key[0], np.dtype(key[1]))) * min(count, len(self._kept.get(key, ())))
            for key, count in wanted.items()
        )

    def _kept_bytes(self) -> int:
        return sum(_bytes((len(vector), vector.dtype)) for kept in self._kept.values() for vector in kept)

    def _refusal(self, sizes: Sequence[Size], purpose: str) -> MemoryExhausted:
        needed = sum(_bytes(size) for size in sizes)
        return MemoryExhausted(
            f"{purpose} needs {needed} bytes, expected at most {self.bytes_max - self._used_bytes}, which is what is "
            f"left of the server's {self.bytes_max}; delete runs, or start the server with a larger --max-memory",
            needed_bytes=needed,
            free_bytes=self.bytes_max - self._used_bytes,
            limit_bytes=self.bytes_max,
        )


def _bytes(size: Size) -> int:
    elements, dtype = size
    return elements * dtype.itemsize + ALIGNMENT_BYTES
