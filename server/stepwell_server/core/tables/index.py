"""From an id to the number of its row: a hash index that grows a little at a time, see `index_loops.py`."""

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.errors import LimitExceeded
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.tables import hashing, index_loops
from stepwell_server.core.tables.index_loops import NEEDS_DIRECTORY, NEEDS_SEGMENT, WORDS

Integers = NDArray[np.int64]

# Segments come in blocks: an eighth of what there is, and at most this many, a megabyte.
_BLOCK_SEGMENTS_MAX = 64
# A directory that is so much larger than its segments is one that somebody makes grow on purpose.
_SLOTS_PER_SEGMENT_MAX = 256


def index_loops_of(device: CpuDevice) -> SimpleNamespace:
    """The compiled loops."""
    return device.compile_loops(hashing, index_loops)


class HashIndex:
    """ids are any int64 numbers, rows are numbers from 0 on.

    key: 64 secret bits, so that nobody can choose ids that collide. block: a vector of `block_size(0)`.
    """

    def __init__(self, device: CpuDevice, key: int, block: Vector) -> None:
        self.loops = index_loops_of(device)
        self.key = np.uint64(key & (1 << 64) - 1)
        self.blocks: list[Vector] = []
        self.segments_count = 1
        self._depth = 1
        self._spare = np.zeros(2 * _BLOCK_SEGMENTS_MAX, np.uint64)
        # Spare segments, what `reserve` needs, entries: ids with a row, or with room kept for one.
        self._state = np.zeros(3, np.int64)
        self._scratch = np.zeros(WORDS, np.int64)
        self.add_block(block)
        self._state[0] -= 1
        self._directory = np.full(2, self._spare[self._state[0]], np.uint64)

    @staticmethod
    def block_size(segments: int) -> Size:
        """The next block of an index with so many segments; `add_block` takes it."""
        return Size(_block_segments(segments) * WORDS, np.dtype(np.int64))

    @property
    def next_block(self) -> Size:
        return self.block_size(self.segments_count)

    @property
    def entries(self) -> int:
        """How many ids there are, with those for which room is kept."""
        return int(self._state[2])

    def add_block(self, block: Vector) -> None:
        """Take a vector of `next_block` for further segments."""
        self.blocks.append(block)
        count = len(block) // WORDS
        fresh = np.uint64(block.ctypes.data) + np.uint64(8 * WORDS) * np.arange(count, dtype=np.uint64)
        block[: WORDS * count].reshape(count, WORDS)[:, :8] = 0
        self.loops.clear_segments(fresh, count, self._scratch)
        spare = int(self._state[0])
        self._spare[spare : spare + count] = fresh
        self._state[0] += count

    def lookup(self, ids: Integers, rows: Integers) -> int:
        """Write the row of each id, -1 where there is none; how many have none."""
        missing: int = self.loops.lookup(ids, rows, self._directory, self._depth_word, self.key)
        return missing

    def reserve(self, ids: Integers, begin: int = 0) -> int:
        """Keep room for ids from `begin` on; how far it came. If not to the end, it needs `next_block` to go on.

        An id for which room is kept is not there: `lookup` does not find it. Raises LimitExceeded for ids that collide;
        for those before room is kept.
        """
        while True:
            spare = int(self._state[0])
            begin = self.loops.reserve(
                ids, begin, self._directory, self._depth_word, self.key, self._spare, self._state, self._scratch
            )
            self.segments_count += spare - int(self._state[0])
            if self._state[1] != NEEDS_DIRECTORY:
                assert begin == len(ids) or self._state[1] == NEEDS_SEGMENT
                return begin
            if len(self._directory) > _SLOTS_PER_SEGMENT_MAX * (self.segments_count + 64):
                raise LimitExceeded(
                    f"the table's index cannot tell apart id {ids[begin]} and those around it, expected ids that do "
                    "not collide; number the rows in another way",
                    got=int(ids[begin]),
                )
            self._directory = np.repeat(self._directory, 2)
            self._depth += 1

    def assign(self, ids: Integers, rows: Integers) -> None:
        """Set the rows of ids for which room is kept. Cannot fail."""
        self._state[2] += self.loops.assign(ids, rows, self._directory, self._depth_word, self.key)

    def remove(self, ids: Integers) -> None:
        """Forget ids. Cannot fail."""
        self._state[2] -= self.loops.remove(ids, self._directory, self._depth_word, self.key)

    def release(self, ids: Integers) -> None:
        """Give up the room that is kept for ids; those with a row stay."""
        self._state[2] -= self.loops.release(ids, self._directory, self._depth_word, self.key)

    @property
    def _depth_word(self) -> np.uint64:
        return np.uint64(self._depth)


def _block_segments(segments: int) -> int:
    return max(1, min(_BLOCK_SEGMENTS_MAX, segments // 8))
