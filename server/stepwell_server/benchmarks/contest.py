"""Contestants take turns in one run, so that whatever else the machine does falls on all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stepwell_server.benchmarks.options import SEED
from stepwell_server.benchmarks.report import Table

_UNITS = {"ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Contestant:
    """turn: does once what the words say."""

    key: str
    words: str
    turn: Callable[[], object]


@dataclass(frozen=True)
class Baseline:
    """A contestant to whose median the others' are put in relation, under a short name."""

    key: str
    name: str


def compete(
    title: str,
    contestants: Sequence[Contestant],
    baselines: Sequence[Baseline],
    *,
    rounds: int,
    warmup_rounds: int,
    unit: str = "ms",
    notes: Sequence[str] = (),
) -> Table:
    """A row of medians, extremes and ratios of medians for every contestant.

    A round gives everybody one turn, in an order drawn anew, so that nobody always follows the same one.
    """
    order = list(contestants)
    shuffle = random.Random(SEED).shuffle
    seconds: dict[str, list[float]] = {contestant.key: [] for contestant in contestants}
    for number in range(warmup_rounds + rounds):
        shuffle(order)
        for contestant in order:
            begin = time.perf_counter()
            contestant.turn()
            elapsed = time.perf_counter() - begin
            if number >= warmup_rounds:
                seconds[contestant.key].append(elapsed)
    medians = {key: statistics.median(samples) for key, samples in seconds.items()}
    rows = []
    for contestant in contestants:
        samples = [second * _UNITS[unit] for second in seconds[contestant.key]]
        row: dict[str, Any] = {
            "what": contestant.words,
            f"median {unit}": statistics.median(samples),
            f"min {unit}": min(samples),
            f"max {unit}": max(samples),
        }
        for baseline in baselines:
            if baseline.key in medians:
                row[f"x {baseline.name}"] = medians[contestant.key] / medians[baseline.key]
        rows.append(row | {"key": contestant.key, "samples": samples})
    return Table(f"{title}; {rounds} rounds", rows, tuple(notes))
