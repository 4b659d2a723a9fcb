"""What a worker tells about its steps, each as one line of JSON."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import stepwell


@dataclass(frozen=True, slots=True)
class Step:
    """One update that was committed.

    number: of this worker's steps, from 1. version: what the commit made of the run.
    loss: of the mini-batch, in nats, at the parameters that the gradients were taken at.
    staleness: how many commits of others came between those parameters and this commit.
    """

    number: int
    version: int
    loss: float
    staleness: int

    def to_line(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How stale updates were, as the run's tally counts it: in commits of others.

    counts: how many had 0, 1, 2 to 3, 4 to 7, ... of them. largest: the largest that occurred.
    """

    counts: tuple[int, ...] = ()
    largest: int = 0

    @staticmethod
    def of(tally: stepwell.Tally) -> "Histogram":
        return Histogram(tuple(tally.staleness_counts), tally.staleness_max)

    def to_line(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def total(self) -> int:
        return sum(self.counts)


def read_line(line: str) -> Step | Histogram:
    """Raises ValueError or TypeError where the line is none of ours."""
    fields = json.loads(line)
    if "counts" in fields:
        return Histogram(tuple(fields.pop("counts")), **fields)
    return Step(**fields)


def bucket_names(count: int) -> Sequence[str]:
    """What the first so many counts of a histogram stand for."""
    return ["0", "1", *(f"{1 << number - 1}–{(1 << number) - 1}" for number in range(2, count))][:count]
