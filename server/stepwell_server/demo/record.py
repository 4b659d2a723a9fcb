"""What the demo has seen so far."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stepwell_server.demo.report import Histogram, Step

LOSS_MEMORY: Final = 0.95
"""How much of the shown loss is the one shown before: single mini-batches jump."""


class Accuracy(NamedTuple):
    """share: of the test images that were right. at: in seconds of the monotonic clock."""

    version: int
    share: float
    at: float = 0.0


@dataclass
class WorkerRecord:
    """One worker's progress. Times are seconds of the monotonic clock. histogram: of its staleness, at its end."""

    steps: int = 0
    version: int = 0
    loss: float = float("nan")
    staleness_sum: int = 0
    began_at: float = 0.0
    stepped_at: float = 0.0
    histogram: Histogram | None = None

    def add(self, step: Step, now: float) -> None:
        if self.steps == 0:
            self.began_at, self.loss = now, step.loss
        self.loss = LOSS_MEMORY * self.loss + (1 - LOSS_MEMORY) * step.loss
        self.steps, self.version, self.stepped_at = step.number, step.version, now
        self.staleness_sum += step.staleness

    @property
    def steps_per_second(self) -> float:
        passed = self.stepped_at - self.began_at
        return (self.steps - 1) / passed if passed > 0 else 0.0

    @property
    def staleness(self) -> float:
        """On average, in commits of others."""
        return self.staleness_sum / self.steps if self.steps else 0.0


@dataclass
class Record:
    """All workers' steps in the order in which they were heard of, and the measurements.

    learning_rates: the schedule's value at clock 0, 1, ...: entry v made version v + 1. None where there is none.
    accuracies: by version. histogram: of the staleness of all updates, at the end.
    """

    workers: list[WorkerRecord]
    steps: list[Step] = field(default_factory=list)
    accuracies: list[Accuracy] = field(default_factory=list)
    learning_rates: npt.NDArray[np.float64] | None = None
    histogram: Histogram | None = None

    def add(self, worker: int, step: Step, now: float) -> None:
        self.workers[worker].add(step, now)
        self.steps.append(step)

    @property
    def version(self) -> int:
        """The newest that a worker made."""
        return max(worker.version for worker in self.workers)

    @property
    def accuracy(self) -> float | None:
        """The last one measured."""
        return self.accuracies[-1].share if self.accuracies else None

    def seconds_to(self, share: float) -> float | None:
        """From the first step until so many of the test images were seen to be right; None if they never were."""
        reached = (each.at for each in self.accuracies if each.share >= share)
        at = next(reached, None)
        return None if at is None else max(0.0, at - self.began_at)

    @property
    def staleness(self) -> float:
        """On average over all steps, in commits of others."""
        return sum(step.staleness for step in self.steps) / len(self.steps) if self.steps else 0.0

    @property
    def seconds(self) -> float:
        """From the first step to the last."""
        return max(worker.stepped_at for worker in self.workers) - self.began_at if self.steps else 0.0

    @property
    def began_at(self) -> float:
        """When the first step was heard of."""
        return min((worker.began_at for worker in self.workers if worker.steps), default=0.0)

    @property
    def steps_per_second(self) -> float:
        """Of all workers together."""
        return len(self.steps) / self.seconds if self.seconds else 0.0
