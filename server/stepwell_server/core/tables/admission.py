"""Which ids get a row: those that have come often enough.

Ids without a row are counted in a sketch of fixed size (Cormode & Muthukrishnan 2005, count-min): each has a cell in
each of four lines, and its count is the smallest of them. Where ids share all four cells the count is too large, never
too small, so that a row may come too early. When half of the cells of a line are in use all counts are halved: ids that
came once are forgotten, and what remains follows what comes now.
"""

import hashlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.group import Held
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.tables import admission_loops, hashing
from stepwell_server.core.tables.admission_loops import LINES

_BYTE = np.dtype(np.uint8)


def admission_loops_of(device: CpuDevice) -> SimpleNamespace:
    """The compiled loops."""
    return device.compile_loops(hashing, admission_loops)


class Admission:
    """spec: {"touches", "bytes_max"}, checked. vector: zeros, of `size`. seed_text: what makes the cells of a table."""

    def __init__(self, device: CpuDevice, spec: Mapping[str, Any], vector: Vector, seed_text: str) -> None:
        self._loops = admission_loops_of(device)
        self.touches = int(spec["touches"])
        self.held = Held(vector)
        self._key = np.uint64(int.from_bytes(hashlib.blake2b(seed_text.encode(), digest_size=8).digest(), "little"))
        self.recount()

    @staticmethod
    def size(spec: Mapping[str, Any]) -> Size:
        """The vector that the counts take."""
        cells = max(1, int(spec["bytes_max"]) // LINES)
        return Size(LINES << cells.bit_length() - 1, _BYTE)

    @property
    def own_size(self) -> Size:
        return Size(len(self.held.vector), _BYTE)

    def estimate(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """How often each id came so far."""
        counts = np.empty(len(ids), np.int64)
        self._loops.estimate(ids, self._cells, self._key, counts)
        return counts

    def count(self, ids: NDArray[np.int64], copy: Vector | None) -> Vector | None:
        """Count distinct ids that came and get no row; the vector that nobody needs any more, if one is left over.

        copy: a vector of `own_size`, where somebody holds the counts.
        """
        unneeded = None
        if copy is not None:
            copy[:] = self.held.vector
            unneeded = None if self.held.holders else self.held.vector
            self.held = Held(copy)
        self._used += int(self._loops.count(ids, self._cells, self._key))
        if 2 * self._used >= self._cells.shape[1]:
            np.right_shift(self._cells, 1, out=self._cells)
            self.recount()
        return unneeded

    def recount(self) -> None:
        """Count the cells in use, when the counts come from elsewhere."""
        self._used = int(np.count_nonzero(self._cells[0]))

    @property
    def _cells(self) -> NDArray[np.uint8]:
        cells: NDArray[np.uint8] = self.held.vector.reshape(LINES, -1)
        return cells
