"""What the steps of a table were, as far as rows that have missed some of them need it.

Each step gives a few pairs of a factor and a rate (`compiler/idle.py`). Pairs join: of two spans one after the other,
(p, s) and (q, t), the product is p q and the sum s + p t. A row asks for the pairs of all steps since its last one,
joined. So that this takes a few operations however many there are, the pairs from each step to the end of its 64 are
kept, from each 64 to the end of their 4,096, and so on, and for those that have not ended yet, the pairs up to now. No
number is ever divided, and products may well come to nothing: momentum of a million steps ago has.

That is 16 bytes for each pair and step, in vectors from the one budget, which double.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.tables import history_loops
from stepwell_server.core.tables.history_loops import LEVELS, RADIX, RADIX_BITS

_STEPS_MIN = RADIX * RADIX


def history_loops_of(device: CpuDevice) -> SimpleNamespace:
    """The compiled loops."""
    return device.compile_loops(history_loops)


@dataclass
class History:
    """pairs: how many each step gives. base: the step before the first one that is known; count: of known steps.

    start: the pairs of all steps since the table's beginning, joined, shape (pairs, 2).
    closed: spans that have ended; what is in it does not change. opened: the others.
    """

    pairs: int
    base: int
    start: NDArray[np.float64]
    opened: NDArray[np.float64]
    closed: Vector
    count: int = 0
    steps_max: int = 0

    @staticmethod
    def begin(pairs: int, base: int, start: NDArray[np.float64] | None = None) -> "History":
        """Without any step after `base`."""
        identity = np.tile(np.array([1.0, 0.0]), (pairs, 1))
        return History(
            pairs,
            base,
            identity if start is None else start,
            np.zeros((LEVELS, RADIX, pairs, 2)),
            np.zeros(0),
        )

    @property
    def growth(self) -> Size | None:
        """The vector that `grow` wants before the next step, None if there is room."""
        if self.count < self.steps_max or not self.pairs:
            return None
        return Size(self._elements(max(_STEPS_MIN, 2 * self.steps_max)), np.dtype(np.float64))

    def grow(self, vector: Vector) -> Vector:
        """Go over to a larger vector; the one before."""
        before, offsets = self.closed, self._offsets
        self.steps_max, self.closed = max(_STEPS_MIN, 2 * self.steps_max), vector
        for level, (old, new) in enumerate(zip(offsets, self._offsets, strict=True)):
            # Whole blocks only: `append` writes them, and no others are read.
            ended = self.count >> RADIX_BITS * (level + 1) << RADIX_BITS
            size = ended * 2 * self.pairs
            vector[new : new + size] = before[old : old + size]
        return before

    def append(self, loops: SimpleNamespace, numbers: NDArray[np.float64]) -> None:
        """Take the pairs of one more step, shape (pairs, 2). Cannot fail."""
        self.count += 1
        if not self.pairs:
            return
        assert self.count <= self.steps_max
        loops.append(numbers, self.opened, self.closed, self._offsets, self.count - 1)
        self.start = np.stack(
            [self.start[:, 0] * numbers[:, 0], self.start[:, 1] + self.start[:, 0] * numbers[:, 1]], axis=1
        )

    def compose(self, loops: SimpleNamespace, lasts: NDArray[np.int64]) -> NDArray[np.float64]:
        """The pairs of the steps after each row's last one, shape (rows, pairs, 2); all steps after 0."""
        out = np.empty((len(lasts), self.pairs, 2))
        loops.compose(lasts, self.base, self.count, self.opened, self.closed, self._offsets, self.start, out)
        return out

    def frozen(self) -> "History":
        """As it is now; it shares what does not change any more."""
        return History(self.pairs, self.base, self.start, self.opened.copy(), self.closed, self.count, self.steps_max)

    @property
    def _offsets(self) -> NDArray[np.int64]:
        return self._layout(self.steps_max)[0]

    def _elements(self, steps: int) -> int:
        return self._layout(steps)[1]

    def _layout(self, steps: int) -> tuple[NDArray[np.int64], int]:
        """Where each level begins, and where the last one ends."""
        sizes = [(steps >> RADIX_BITS * level) * 2 * self.pairs for level in range(LEVELS)]
        ends: Any = np.cumsum(sizes)
        return np.concatenate([[0], ends[:-1]]).astype(np.int64), int(ends[-1])
