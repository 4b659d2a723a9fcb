"""What the demo has seen so far."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from stepwell_server.demo.report import Step

LOSS_MEMORY: Final = 0.95
"""How much of the shown loss is the one shown before: single mini-batches jump."""


@dataclass
class WorkerRecord:
    """One worker's progress. Times are seconds of the monotonic clock."""

    steps: int = 0
    version: int = 0
    loss: float = float("nan")
    staleness_sum: int = 0
    began_at: float = 0.0
    stepped_at: float = 0.0

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
    accuracies: (version, share of the test images), by version.
    """

    workers: list[WorkerRecord]
    steps: list[Step] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)
    learning_rates: npt.NDArray[np.float64] | None = None

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
        return self.accuracies[-1][1] if self.accuracies else None

    @property
    def staleness(self) -> float:
        """On average over all steps, in commits of others."""
        return sum(step.staleness for step in self.steps) / len(self.steps) if self.steps else 0.0

    @property
    def seconds(self) -> float:
        """From the first step to the last."""
        began = [worker.began_at for worker in self.workers if worker.steps]
        return max(worker.stepped_at for worker in self.workers) - min(began) if began else 0.0
