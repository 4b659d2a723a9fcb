"""Where rows lie: chunks of a fixed number of rows, which never move while a commit may write in place.

A chunk's vectors are its records (parameters and slots), its marks (id, last commit, number of commits), and the
scalars of its rows where rows have such. A reader holds chunks; a commit that would write to one that is held copies it
first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import Addresses, CpuDevice
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.tables import hashing, row_loops
from stepwell_server.core.tables.row_loops import MARKS

Integers = NDArray[np.int64]

# A commit of a few thousand ids touches as many chunks, and copies as many if somebody holds them: so they are small.
# Smaller ones would cost more to count than to copy.
_CHUNK_BYTES = 256 << 10
_CHUNK_ROWS_MAX = 1 << 14


def row_loops_of(device: CpuDevice, dtype: np.dtype[Any]) -> SimpleNamespace:
    """The compiled loops."""
    return device.compile_loops(hashing, row_loops, dtype=dtype)


@dataclass(frozen=True)
class RowLayout:
    """What a row takes. slots, scalars: how many it has."""

    width: int
    dtype: np.dtype[Any]
    slots: int
    scalars: int = 0

    @cached_property
    def record_bytes(self) -> int:
        return self.width * (1 + self.slots) * self.dtype.itemsize

    @cached_property
    def row_bytes(self) -> int:
        """All that a row takes but for its place in the index."""
        return self.record_bytes + 8 * (MARKS + self.scalars)

    @cached_property
    def shift(self) -> int:
        """A chunk has 2^shift rows."""
        rows = max(1, min(_CHUNK_ROWS_MAX, _CHUNK_BYTES // self.row_bytes))
        return rows.bit_length() - 1

    @cached_property
    def chunk_rows(self) -> int:
        return 1 << self.shift

    @cached_property
    def chunk_sizes(self) -> list[Size]:
        """The vectors of a chunk."""
        sizes = [
            Size(self.chunk_rows * self.record_bytes // self.dtype.itemsize, self.dtype),
            Size(self.chunk_rows * MARKS, np.dtype(np.int64)),
        ]
        if self.scalars:
            sizes.append(Size(self.chunk_rows * self.scalars, np.dtype(np.float64)))
        return sizes


@dataclass(eq=False)
class Chunk:
    """Vectors of `RowLayout.chunk_sizes`. holders: how many readers hold it, once it is not a table's any more."""

    vectors: list[Vector]
    holders: int = 0


class Chunks:
    """The chunks of one table.

    records, marks, scalars: where the vectors of each begin. holders: how many readers hold each.
    used: rows that were ever in use. free_first: the first of the rows without an id, a list through their marks.
    """

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.chunks: list[Chunk] = []
        self._bases: NDArray[np.uint64] = np.zeros((3, 16), np.uint64)
        self._holders = np.zeros(16, np.int64)
        # When the present chunk took its place, in holds and copies: a hold knows by it which of its are current.
        self._installed = np.zeros(16, np.int64)
        self._clock = 0
        self.holds = 0
        self.used = 0
        self.free_first = -1
        self.free_count = 0

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def records(self) -> Addresses:
        bases: Addresses = self._bases[0]
        return bases

    @property
    def marks(self) -> Addresses:
        bases: Addresses = self._bases[1]
        return bases

    @property
    def scalars(self) -> Addresses:
        bases: Addresses = self._bases[2]
        return bases

    @property
    def capacity(self) -> int:
        return len(self.chunks) * self.layout.chunk_rows

    def append(self, vectors: Sequence[Vector]) -> None:
        """Add a chunk with vectors of `RowLayout.chunk_sizes`."""
        number = len(self.chunks)
        if number == len(self._holders):
            self._bases = np.concatenate([self._bases, np.zeros_like(self._bases)], axis=1)
            self._holders = np.concatenate([self._holders, np.zeros_like(self._holders)])
            self._installed = np.concatenate([self._installed, np.zeros_like(self._installed)])
        self.chunks.append(Chunk(list(vectors)))
        self._place(number)

    def replace(self, number: int, vectors: Sequence[Vector]) -> None:
        """Put a copy in a chunk's place, so that who holds it keeps it as it is."""
        before = self.chunks[number]
        before.holders = int(self._holders[number])
        self._holders[number] = 0
        self.chunks[number] = Chunk(list(vectors))
        self._place(number)

    def held(self, flags: NDArray[np.uint8]) -> list[int]:
        """Which of the flagged chunks somebody holds."""
        count = min(len(flags), len(self.chunks))
        found: list[int] = np.flatnonzero((flags[:count] != 0) & (self._holders[:count] > 0)).tolist()
        return found

    def hold(self) -> tuple[list[Chunk], int]:
        """All chunks, held, and the time, both of which `release` wants back."""
        self._clock += 1
        self.holds += 1
        self._holders[: len(self.chunks)] += 1
        return list(self.chunks), self._clock

    def release(self, chunks: Sequence[Chunk], time: int) -> list[Vector]:
        """End a hold; the vectors that nobody needs any more."""
        self.holds -= 1
        count = len(chunks)
        current = self._installed[:count] <= time
        self._holders[:count][current] -= 1
        unneeded: list[Vector] = []
        for number in np.flatnonzero(~current).tolist():
            chunk = chunks[number]
            chunk.holders -= 1
            if not chunk.holders:
                unneeded += chunk.vectors
        return unneeded

    def drop(self) -> list[Vector]:
        """Give up all chunks; the vectors that nobody holds. The others come from `release`."""
        unneeded = []
        self._clock += 1
        for number, chunk in enumerate(self.chunks):
            chunk.holders = int(self._holders[number])
            self._installed[number] = self._clock
            unneeded += [] if chunk.holders else chunk.vectors
        self.chunks = []
        return unneeded

    def _place(self, number: int) -> None:
        for base, vector in zip(self._bases, self.chunks[number].vectors, strict=False):
            base[number] = vector.ctypes.data
        self._clock += 1
        self._installed[number] = self._clock
