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


def expect_close(
    case: ScheduleCase,
    seed: int,
    framework: Callable[[Spec, float, int], NDArray[np.float64]],
    steps: int,
    *,
    rtol: float,
    atol: float = 1e-12,
) -> None:
    """Draw the case, evaluate both sides and compare. atol: a share of the initial value, for what ends at 0."""
    rng = np.random.default_rng(seed)
    spec, initial = case.draw(rng), math.exp(between(rng, math.log(1e-4), math.log(1)))
    message = f"{case.id} seed {seed}: {spec} from {initial}"
    actual, expected = evaluate_schedule(spec, initial, steps), framework(spec, initial, steps)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol * initial, err_msg=message)
