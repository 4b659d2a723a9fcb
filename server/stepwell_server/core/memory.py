"""The one budget from which all vectors come: state, staged updates, and copies made because a reader holds a version.

A freed vector is kept for the next taker of the same size, since fresh pages cost more than the copy that fills them;
kept vectors count, and go first when the budget is short. Vectors that other processes map have an owner, who alone
gets them again, and who may have a quota: so many are the owner's whatever happens.

Not thread-safe: one thread owns it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from stepwell_server.core.devices.device import ALIGNMENT_BYTES, Device
from stepwell_server.core.devices.device import Vector as Vector
from stepwell_server.core.errors import MemoryExhausted

# Of each size: as many as are taken and given back by a worker and a reader, and more of small ones, for many workers.
_KEPT_PER_SIZE = 2
_KEPT_PER_SIZE_BYTES = 64 << 20


class Size(NamedTuple):
    """owner: for memory that others map, who gets it again when it is free; "" for memory of this process alone."""

    elements: int
    dtype: np.dtype[Any]
    owner: str = ""

    @property
    def size_bytes(self) -> int:
        return self.elements * self.dtype.itemsize + ALIGNMENT_BYTES


@dataclass
class _Owned:
    """Vectors of one owner and size. taken: in use; idle: ready to be; quota: how many count at least."""

    size: Size
    quota: int = 0
    taken: int = 0
    idle: list[Vector] = field(default_factory=list)

    @property
    def used_bytes(self) -> int:
        return max(self.quota, self.taken) * self.size.size_bytes


class Memory:
    """Allocates vectors within a limit.

    bytes_max: the limit. on_free: called whenever memory has become free, for those who wait.
    """

    def __init__(self, device: Device, bytes_max: int) -> None:
        self.device = device
        self.bytes_max = bytes_max
        self.on_free: Callable[[], None] = lambda: None
        self._private_bytes = 0
        self._kept: dict[tuple[int, str], list[Vector]] = {}
        # Counted as they come and go: with many small ones a sum over all would take longer than a small step.
        self._kept_bytes = 0
        self._owned: dict[Size, _Owned] = {}

    @property
    def used_bytes(self) -> int:
        """What is taken, kept for the next taker, or some owner's quota."""
        return self._taken_bytes() + self._kept_bytes

    def check_fits(self, sizes: Sequence[Size], purpose: str, beside_bytes: int) -> None:
        """Raise MemoryExhausted if the vectors could never be had beside what stays taken."""
        needed = sum(size.size_bytes for size in sizes if not self._is_owed(size))
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

    def try_allocate(self, sizes: Sequence[Size], spare_bytes: int = 0) -> list[Vector] | None:
        """All the vectors, or None if the budget does not hold them now, and so many bytes beside."""
        if not sizes:
            return []
        private = [size for size in sizes if not size.owner]
        needed = sum([size.size_bytes for size in private])
        if len(private) < len(sizes):
            owned = Counter(size for size in sizes if size.owner)
            needed += sum(self._beyond_quota(size, count) * size.size_bytes for size, count in owned.items())
        taken = self._taken_bytes()
        if taken + needed + spare_bytes > self.bytes_max:
            return None
        kept = self._kept_bytes
        if (
            taken + kept + needed > self.bytes_max
            and taken + kept + needed - self._reusable_bytes(private) > self.bytes_max
        ):
            self.drop_kept()
        return [self._take(size) for size in sizes]

    def free(self, vectors: Sequence[Vector]) -> None:
        """Give vectors back, if only a hold; nobody of this process may look at them any more."""
        for vector in vectors:
            size = self._size_of(vector)
            if size.owner:
                owned = self._owned_of(size)
                owned.taken -= 1
                if owned.taken + len(owned.idle) < owned.quota:
                    owned.idle.append(vector)
                self._forget(owned)
                continue
            self._private_bytes -= size.size_bytes
            kept = self._kept.setdefault((len(vector), vector.dtype.str), [])
            if len(kept) < max(_KEPT_PER_SIZE, _KEPT_PER_SIZE_BYTES // size.size_bytes):
                kept.append(vector)
                self._kept_bytes += size.size_bytes
        assert self._private_bytes >= 0
        self.on_free()

    def try_set_quota(self, size: Size, quota: int) -> bool:
        """Let an owner have so many vectors of a size whatever happens; False if the budget does not hold them now."""
        owned = self._owned_of(size)
        more = (max(quota, owned.taken) - max(owned.quota, owned.taken)) * size.size_bytes
        if self._taken_bytes() + more > self.bytes_max:
            self._forget(owned)
            return False
        if self.used_bytes + more > self.bytes_max:
            self.drop_kept()
        owned.quota = quota
        del owned.idle[max(0, quota - owned.taken) :]
        self._forget(owned)
        self.on_free()
        return True

    def drop_kept(self) -> None:
        """Give the kept vectors back to the system, when a run of their size is gone."""
        self._kept.clear()
        self._kept_bytes = 0

    def _beyond_quota(self, size: Size, count: int) -> int:
        """How many of so many more vectors an owner's quota does not cover."""
        owned = self._owned.get(size)
        return count if owned is None else max(0, owned.taken + count - max(owned.quota, owned.taken))

    def _take(self, size: Size) -> Vector:
        if size.owner:
            assert self.device.shared is not None, "only memory that can be shared has an owner"
            owned = self._owned_of(size)
            owned.taken += 1
            return owned.idle.pop() if owned.idle else self.device.shared.allocate(*size)
        self._private_bytes += size.size_bytes
        kept = self._kept.get((size.elements, size.dtype.str))
        if not kept:
            return self.device.allocate(size.elements, size.dtype)
        self._kept_bytes -= size.size_bytes
        return kept.pop()

    def _size_of(self, vector: Vector) -> Size:
        return Size(len(vector), vector.dtype, self.device.shared.owner(vector) if self.device.shared else "")

    def _owned_of(self, size: Size) -> _Owned:
        return self._owned.setdefault(size, _Owned(size))

    def _forget(self, owned: _Owned) -> None:
        if not owned.quota and not owned.taken:
            del self._owned[owned.size]

    def _is_owed(self, size: Size) -> bool:
        return size in self._owned and self._owned[size].taken < self._owned[size].quota

    def _taken_bytes(self) -> int:
        return self._private_bytes + sum([owned.used_bytes for owned in self._owned.values()])

    def _reusable_bytes(self, sizes: Sequence[Size]) -> int:
        return sum(
            size.size_bytes * min(count, len(self._kept.get((size.elements, size.dtype.str), ())))
            for size, count in Counter(sizes).items()
        )

    def _refusal(self, sizes: Sequence[Size], purpose: str) -> MemoryExhausted:
        needed = sum(size.size_bytes for size in sizes)
        left = self.bytes_max - self._taken_bytes()
        return MemoryExhausted(
            f"{purpose} needs {needed} bytes, expected at most {left}, which is what is left of the server's "
            f"{self.bytes_max}; delete runs, or start the server with a larger --max-memory",
            needed_bytes=needed,
            free_bytes=left,
            limit_bytes=self.bytes_max,
        )
