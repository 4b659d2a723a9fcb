"""How the tests of schedules against frameworks draw their cases and compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.references.implementation import evaluate_schedule

Spec = dict[str, Any]
Draw = Callable[[Generator], Spec]
# Of the initial value: torch's recursions reach a zero of the cosine only up to round-off.
ATOL = 1e-12


@dataclass(frozen=True)
class ScheduleCase:
    """One row: an id, and how to draw a schedule as the wire spells it."""

    id: str
    draw: Draw


def fixed(**spec: Any) -> Draw:
    return lambda rng: spec


def between(rng: Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def count(rng: Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def maybe(rng: Generator, **arguments: Any) -> Spec:
    """The arguments, or none of them: then the defaults are compared."""
    return arguments if rng.random() < 0.5 else {}


Framework = Callable[[Spec, float, int], NDArray[np.float64]]


@dataclass(frozen=True)
class Followed:
    """What was drawn from a seed, and both sides of it: a value for every step."""

    spec: Spec
    initial: float
    actual: NDArray[np.float64]
    expected: NDArray[np.float64]


def follow(case: ScheduleCase, seed: int, framework: Framework, steps: int) -> Followed:
    rng = np.random.default_rng(seed)
    spec, initial = case.draw(rng), math.exp(between(rng, math.log(1e-4), math.log(1)))
    return Followed(spec, initial, evaluate_schedule(spec, initial, steps), framework(spec, initial, steps))


def expect_close(
    case: ScheduleCase, seed: int, framework: Framework, steps: int, *, rtol: float, atol: float = ATOL
) -> None:
    """Draw the case, evaluate both sides and compare. atol: a share of the initial value, for what ends at 0."""
    got = follow(case, seed, framework, steps)
    message = f"{case.id} seed {seed}: {got.spec} from {got.initial}"
    np.testing.assert_allclose(got.actual, got.expected, rtol=rtol, atol=atol * got.initial, err_msg=message)
