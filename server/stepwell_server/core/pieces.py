"""What a launch works on: parts of a flat vector, and for each part which row of a table of coefficients it takes."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# A reduction's partial sums are added in this grain, whatever the number of threads, so that its bits do not depend
# on it.
REDUCTION_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Pieces:
    """begins, ends: in elements, ascending and apart. rows: each piece's row. All of one length."""

    begins: Integers
    ends: Integers
    rows: Integers

    @cached_property
    def elements(self) -> int:
        return int((self.ends - self.begins).sum())

    def __len__(self) -> int:
        return len(self.begins)

    def part(self, first: int, last: int) -> "Pieces":
        return Pieces(self.begins[first:last], self.ends[first:last], self.rows[first:last])

    def cut(self, elements_max: int) -> "Pieces":
        """The same elements in pieces of at most so many."""
        counts = np.maximum(1, -(-(self.ends - self.begins) // elements_max))
        if counts.max(initial=1) == 1:
            return self
        begins = np.repeat(self.begins, counts) + elements_max * _positions(counts)
        ends = np.minimum(begins + elements_max, np.repeat(self.ends, counts))
        return Pieces(begins, ends, np.repeat(self.rows, counts))

    def shares(self, count: int, grain: int) -> "list[Pieces]":
        """At most `count` parts of about as many elements each, cut on multiples of `grain` from a piece's begin."""
        sizes = np.cumsum(self.ends - self.begins)
        share = -(-int(sizes[-1]) // count)
        parts, first, begin = [], 0, int(self.begins[0])
        for number in range(1, count + 1):
            goal = share * number
            last = int(np.searchsorted(sizes, goal))
            if last >= len(self):
                parts.append(self._from(first, len(self), begin, int(self.ends[-1])))
                break
            end = int(self.ends[last]) - (int(sizes[last]) - goal)
            end = min(int(self.ends[last]), int(self.begins[last]) - (int(self.begins[last]) - end) // grain * grain)
            parts.append(self._from(first, last + 1, begin, end))
            first, begin = (last, end) if end < self.ends[last] else (last + 1, 0)
            if first >= len(self):
                break
            begin = max(begin, int(self.begins[first]))
        return [part for part in parts if part.elements]

    def _from(self, first: int, last: int, begin: int, end: int) -> "Pieces":
        begins, ends = self.begins[first:last].copy(), self.ends[first:last].copy()
        begins[0], ends[-1] = begin, end
        return Pieces(begins, ends, self.rows[first:last])


@lru_cache(maxsize=1024)
def whole(elements: int) -> Pieces:
    """One piece with the first row. What nearly every launch works on."""
    return Pieces(np.zeros(1, np.int64), np.array([elements], np.int64), np.zeros(1, np.int64))


def add_up(partials: NDArray[np.float64], pieces: Pieces, rows: int, kinds: list[str]) -> NDArray[np.float64]:
    """What each row's pieces give together: shape (rows, kinds). Squares are not yet rooted."""
    result = np.zeros((rows, len(kinds)))
    for column, kind in enumerate(kinds):
        combine: Any = np.maximum if kind == "max_abs" else np.add
        # A NaN is a sum like any other here: NumPy need not warn of it.
        with np.errstate(invalid="ignore", over="ignore"):
            combine.at(result[:, column], pieces.rows, partials[:, column])
    return result


def _positions(counts: Integers) -> Integers:
    """0, 1, ... within each run of the given lengths."""
    ends = np.cumsum(counts)
    positions: Integers = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    return positions
