"""Schedules against fixed rates, on a gradient with noise."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from stepwell_server.experiments.claims.claim import Claim, Finding, near
from stepwell_server.experiments.problems import NOISE
from stepwell_server.experiments.runner import Comparison, Trace

_STEPS = 1000
_WAVE = 250
_FIRST = 0.2
_FIXED = ("0.2", "0.02", "0.002")
SEEDS = 16


def expected_losses(rates: Sequence[float], start: float = 10.0) -> npt.NDArray[np.float64]:
    """What SGD's loss on `noisy` is on average, before each step and after the last.

    Each component's mean square s follows s ← (1 − lr)² s + lr² σ², and the loss is half the sum over both.
    """
    losses = [start]
    for rate in rates:
        losses.append((1 - rate) ** 2 * losses[-1] + rate**2 * NOISE**2)
    return np.array(losses)


def _measure(traces: Mapping[str, Trace]) -> list[Finding]:
    told = replace(
        SCHEDULES.comparison,
        contestants=(*SCHEDULES.comparison.contestants, "best=sgd"),
        assignments=(*SCHEDULES.comparison.assignments, f"best.lr={_best_rate()}"),
    )
    runs = [replace(told, seed=seed).run() for seed in range(SEEDS)]
    mean = {label: np.mean([run[label].losses for run in runs], axis=0) for label in runs[0]}
    floor = float(mean[f"fixed-{_FIRST}"][_STEPS // 2 :].mean())
    expected_floor = _FIRST * NOISE**2 / (2 - _FIRST)
    last = {label: float(losses[-1]) for label, losses in mean.items()}
    fixed = {rate: last[f"fixed-{rate}"] for rate in _FIXED}
    early = float(mean["restarts"][_WAVE] / mean["cosine"][_WAVE])
    return [
        Finding(
            "floor",
            f"fixed {_FIRST}: mean loss over the second half",
            floor,
            f"{expected_floor:.3f} = lr σ²/(2−lr): the noise keeps it there; ± 20 %",
            near(floor, expected_floor, 0.2),
        ),
        Finding(
            "cosine",
            "cosine: last loss; fixed " + ", ".join(f"{rate}: {loss:.2g}" for rate, loss in fixed.items()),
            last["cosine"],
            f"{_expected('cosine')[-1]:.2g} on average: below every fixed rate in the picture",
            last["cosine"] < min(fixed.values()),
        ),
        Finding(
            "best_fixed",
            f"no fixed rate ends lower than cosine; measured: last loss of {_best_rate()}, the best for exactly so "
            "many steps, over cosine's",
            last["best"] / last["cosine"],
            f"{expected_losses([_best_rate()] * _STEPS)[-1] / _expected('cosine')[-1]:.2f} on average",
            last["best"] > last["cosine"],
        ),
        Finding(
            "anytime",
            f"restarts: loss after the first wave, step {_WAVE}, over cosine's at that time",
            early,
            f"{_expected('restarts')[_WAVE] / _expected('cosine')[_WAVE]:.2f} on average: each wave ends usable",
            early < 0.5,
        ),
        Finding(
            "restarts",
            "restarts: last loss over cosine's, where a restart has no other minimum to find",
            last["restarts"] / last["cosine"],
            f"{_expected('restarts')[-1] / _expected('cosine')[-1]:.2f} on average; below 1, if restarts help here",
            last["restarts"] < last["cosine"],
        ),
    ]


def _expected(schedule: str) -> npt.NDArray[np.float64]:
    clock = np.arange(_STEPS)
    share = clock / _STEPS if schedule == "cosine" else clock % _WAVE / _WAVE
    return expected_losses(list(_FIRST * (1 + np.cos(np.pi * share)) / 2))


def _best_rate() -> float:
    """The fixed rate that ends lowest on average, to two digits."""
    tried = [round(float(rate), 5) for rate in np.arange(0.001, 0.02, 0.0001)]
    return min(tried, key=lambda rate: expected_losses([rate] * _STEPS)[-1])


SCHEDULES = Claim(
    "schedules",
    "Cosine and restarts against fixed rates",
    "A cosine, with or without warm restarts, does better than a fixed rate.",
    Comparison(
        (*(f"fixed-{rate}=sgd" for rate in _FIXED), "cosine=sgd", "restarts=sgd"),
        problem="noisy",
        steps=_STEPS,
        assignments=(f"lr={_FIRST}", *(f"fixed-{rate}.lr={rate}" for rate in _FIXED)),
        schedules=(
            f'cosine.lr={{"name":"cosine","t_max":{_STEPS}}}',
            f'restarts.lr={{"name":"cosine_restarts","t_0":{_WAVE}}}',
        ),
    ),
    _measure,
)
