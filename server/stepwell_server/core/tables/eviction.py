"""Which rows go where there is no room for new ones, or when nobody has touched them for long.

The rows that were not touched for the longest stand in a queue, which is made by going over the marks of all rows; so
many go into it that this is rare. Whoever is touched meanwhile is passed over when its turn comes, and whoever is not
in the queue was touched later than all in it. So the order is exact: by the last commit, then by the id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.tables import eviction_loops, hashing, row_loops
from stepwell_server.core.tables.chunks import Chunks
from stepwell_server.core.tables.eviction_loops import DIGIT_BITS, DIGITS

Integers = NDArray[np.int64]

# At most so many rows go at once because of their age; what is left goes with the next commits.
EVICTED_MAX = 1 << 16
_QUEUE_MIN = 1 << 16


def eviction_loops_of(device: CpuDevice) -> SimpleNamespace:
    """The compiled loops."""
    return device.compile_loops(hashing, row_loops, eviction_loops)


@dataclass(frozen=True)
class Batch:
    """The ids of a commit, none of which is evicted: see `distinguish`."""

    places: Integers
    distinct: Integers
    key: np.uint64


@dataclass(frozen=True)
class Victims:
    """Rows that go, and their ids. position: how far in the queue they stood."""

    ids: Integers
    rows: Integers
    position: int


class Eviction:
    """spec: {"by": "least_recent"} or {"by": "age", "age"}, checked. rows: where the rows are."""

    def __init__(self, device: CpuDevice, spec: Mapping[str, Any], rows: Chunks, rows_max: int) -> None:
        self._rows_max = rows_max
        self._loops = eviction_loops_of(device)
        self.age = int(spec["age"]) if spec["by"] == "age" else None
        self._chunks = rows
        self._vectors: list[Vector] = []
        self._rows = self._stamps = np.zeros(0, np.int64)
        self._position = 0
        # Every row that was touched last before this commit is in the queue.
        self._covered = 0

    def sizes(self, count: int, batch: int) -> list[Size]:
        """What the queue needs so that `choose` can take so many rows beside a batch; nothing if it has it."""
        wanted = max(min(_QUEUE_MIN, self._rows_max), count + batch)
        if self._vectors and len(self._vectors[0]) >= wanted:
            return []
        return [Size(1 << (wanted - 1).bit_length(), np.dtype(np.int64))] * 3

    def take(self, vectors: list[Vector]) -> list[Vector]:
        """Take vectors of `sizes`; those before."""
        before, self._vectors = self._vectors, vectors
        self.forget()
        return before

    def forget(self) -> None:
        """Begin with an empty queue."""
        self._rows = self._stamps = np.zeros(0, np.int64)
        self._position = self._covered = 0

    def choose(self, count: int, before: int, now: int, live: int, batch: Batch) -> Victims:
        """At most `count` rows of `live` that were touched last before the commit `before`, the longest ago first.

        now: the commit that is planned.
        """
        victims = self._pick(count, before, batch)
        ended = victims.position == len(self._rows) and self._covered < before
        if len(victims.rows) < count and ended:
            self._refill(now, live)
            victims = self._pick(count, before, batch)
        return victims

    def finish(self, victims: Victims) -> None:
        """The rows are gone."""
        self._position = victims.position

    @property
    def vectors(self) -> list[Vector]:
        return self._vectors

    def _pick(self, count: int, before: int, batch: Batch) -> Victims:
        ids, picked = np.empty(count, np.int64), np.empty(count + 1, np.int64)
        position = self._loops.pick(
            self._rows,
            self._stamps,
            self._position,
            before,
            self._chunks.marks,
            self._chunks.layout.shift,
            batch.places,
            batch.distinct,
            batch.key,
            ids,
            picked,
        )
        found = int(picked[-1])
        return Victims(ids[:found], picked[:found], int(position))

    def _refill(self, now: int, live: int) -> None:
        """Put the rows into the queue that were not touched for the longest."""
        most = len(self._vectors[0])
        stamp, id_max = now, np.uint64((1 << 64) - 1)
        if live > most:
            stamp, left = self._find(-1, most)
            if left:
                last, _ = self._find(stamp, left)
                id_max = np.uint64(last)
            else:
                stamp -= 1
        rows, stamps, ids = self._vectors
        found = self._loops.collect(
            self._chunks.marks, self._chunks.used, self._chunks.layout.shift, stamp, id_max, rows, stamps, ids
        )
        assert found <= most
        order = np.lexsort((ids[:found], stamps[:found]))
        rows[:found], stamps[:found] = rows[:found][order], stamps[:found][order]
        self._rows, self._stamps, self._position, self._covered = rows[:found], stamps[:found], 0, stamp

    def _find(self, stamp: int, wanted: int) -> tuple[int, int]:
        """The largest key with at most `wanted` rows up to it, digit by digit; see `count_digits` for keys.

        For commits (stamp below 0) the first one with too many rows, and how many of them are wanted.
        """
        prefix, bits = 0, 0
        while bits < 64:
            digit_bits = min(DIGIT_BITS, 64 - bits)
            counts = np.zeros(DIGITS, np.int64)
            self._loops.count_digits(
                self._chunks.marks,
                self._chunks.used,
                self._chunks.layout.shift,
                stamp,
                np.uint64(prefix),
                bits,
                digit_bits,
                counts,
            )
            ends = np.cumsum(counts)
            digit = int(np.searchsorted(ends, wanted, side="right"))
            wanted -= int(ends[digit - 1]) if digit else 0
            prefix, bits = (prefix << digit_bits) | digit, bits + digit_bits
        if stamp < 0:
            return prefix, wanted
        # The key itself is one too many.
        return prefix - 1, wanted
