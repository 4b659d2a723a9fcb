"""Scratch memory for planning commits, kept from one to the next."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.memory import Size, Vector

_IDS_MIN = 1 << 10
# Words for each id: two places of the hash table, and one in each of the arrays below.
_ARRAYS = ("ids", "distinct", "firsts", "which", "numbers", "addresses", "grads", "places")


@dataclass
class Work:
    """arrays: int64, by name, for so many ids. places: a power of two and at least twice as many.

    sums: rows for the sums of gradients of ids that occur several times.
    """

    ids_max: int
    arrays: dict[str, NDArray[np.int64]]
    hashed: NDArray[np.int64]
    sums: NDArray[Any]
    vectors: list[Vector] = field(default_factory=list)

    @staticmethod
    def none(width: int, dtype: np.dtype[Any]) -> "Work":
        return Work(0, {}, np.zeros(0, np.int64), np.zeros((0, width), dtype))

    def size(self, ids: int) -> Size | None:
        """What `grow` wants for so many ids; None if there is room."""
        if self.ids_max and ids <= self.ids_max:
            return None
        return Size((len(_ARRAYS) + 2) * _rounded(ids), np.dtype(np.int64))

    def grow(self, vector: Vector) -> list[Vector]:
        """Go over to a larger vector; what is not needed any more."""
        before = self.vectors[:1]
        self.ids_max = len(vector) // (len(_ARRAYS) + 2)
        parts = vector.reshape(len(_ARRAYS) + 2, self.ids_max)
        self.hashed = vector[: 2 * self.ids_max]
        self.arrays = dict(zip(_ARRAYS, parts[2:], strict=True))
        self.vectors = [vector, *self.vectors[1:]]
        return before

    def sums_size(self, rows: int, width: int, dtype: np.dtype[Any]) -> Size | None:
        """What `grow_sums` wants for so many sums; None if there is room."""
        if rows <= len(self.sums):
            return None
        return Size(max(64, _rounded(rows, 64)) * width, dtype)

    def grow_sums(self, vector: Vector, width: int) -> list[Vector]:
        before = self.vectors[1:]
        self.sums = vector.reshape(-1, width)
        self.vectors = [*self.vectors[:1], vector]
        return before

    def hash_places(self, ids: int) -> NDArray[np.int64]:
        """Zeros, a power of two and at least twice as many as ids."""
        places = self.hashed[: 2 * _rounded(ids, 16)]
        places.fill(0)
        return places


def _rounded(ids: int, least: int = _IDS_MIN) -> int:
    return max(least, 1 << (ids - 1).bit_length()) if ids else least
