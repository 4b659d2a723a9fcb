"""A claim, the comparison that shows it, and what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwell_server.experiments.runner import Comparison, Trace


@dataclass(frozen=True)
class Finding:
    """One part of a claim, measured.

    measured: the number. theory: what it should be, and why, in words. held: whether it is so.
    """

    key: str
    part: str
    measured: float
    theory: str
    held: bool


@dataclass(frozen=True)
class Claim:
    """name: of the picture. title: of the section. text: the claim. comparison: what is drawn.

    measure: the findings from the comparison's traces, perhaps with more runs.
    """

    name: str
    title: str
    text: str
    comparison: Comparison
    measure: Callable[[Mapping[str, Trace]], list[Finding]]


def verdict(findings: Sequence[Finding]) -> str:
    """In one word or three."""
    held = sum(finding.held for finding in findings)
    if held == len(findings):
        return "held"
    return "held in part" if held else "did not hold"


def log_slope(values: npt.NDArray[np.float64], first: int) -> float:
    """The exponent p of values ~ step^p from a step on, by least squares on logarithms."""
    steps = np.arange(first, len(values))
    known = np.isfinite(values[first:]) & (values[first:] > 0)
    return float(np.polyfit(np.log(steps[known] + 1), np.log(values[first:][known]), 1)[0])


def near(measured: float, expected: float, share: float) -> bool:
    """Whether a number is what theory says, up to a share of it."""
    return abs(measured - expected) <= share * abs(expected)
