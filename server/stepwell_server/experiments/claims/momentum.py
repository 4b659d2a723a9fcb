"""Momentum: on AdaGrad, and Nesterov's against the classical one."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from stepwell_server.experiments.claims.claim import Claim, Finding, log_slope, near
from stepwell_server.experiments.problems import CURVATURES
from stepwell_server.experiments.runner import Comparison, Trace

_MOMENTUM = 0.9


def _measure_adagrad_momentum(traces: Mapping[str, Trace]) -> list[Finding]:
    steady = {label: trace.effective_rates([0]) for label, trace in traces.items()}
    alternating = {label: trace.effective_rates([1]) for label, trace in traces.items()}
    faster = float(steady["momentum"][-1] / steady["plain"][-1])
    calmer = float(alternating["momentum"][-1] / alternating["plain"][-1])
    slope = log_slope(steady["momentum"], len(steady["momentum"]) // 10)
    ravine = replace(ADAGRAD_MOMENTUM.comparison, problem="ravine", steps=100).run()
    gain = float(ravine["momentum"].losses[-1] / ravine["tenfold"].losses[-1])
    return [
        Finding(
            "steady",
            "step at the steady gradient, in plain AdaGrad's, at the end",
            faster,
            "10 = 1/(1−μ); ± 5 %",
            near(faster, 1 / (1 - _MOMENTUM), 0.05),
        ),
        Finding(
            "alternating",
            "step at the alternating gradient, in plain AdaGrad's, at the end",
            calmer,
            f"{1 / (1 + _MOMENTUM):.3f} = 1/(1+μ); ± 5 %",
            near(calmer, 1 / (1 + _MOMENTUM), 0.05),
        ),
        Finding(
            "collapse",
            "it keeps the rate from collapsing; measured: the exponent p of rate ~ step^p",
            slope,
            "0, if so; −1/2 as without it, since the sum of squares is the same",
            slope > -0.25,
        ),
        Finding(
            "ravine",
            "it does more than a tenfold rate; measured: its loss on the ravine after 100 steps over that of lr 1",
            gain,
            "below 1, if so",
            gain < 1,
        ),
    ]


ADAGRAD_MOMENTUM = Claim(
    "adagrad_momentum",
    "Momentum on AdaGrad",
    "Momentum may help AdaGrad: an open idea of the notes.",
    Comparison(
        ("plain=adagrad@lecture", "momentum=adagrad@lecture", "tenfold=adagrad@lecture"),
        problem="alternating",
        steps=1000,
        assignments=("lr=0.1", "tenfold.lr=1", f"momentum.momentum={_MOMENTUM}"),
    ),
    _measure_adagrad_momentum,
)

_LR = 0.01
_TARGET = 1e-6


def _measure_nag(traces: Mapping[str, Trace]) -> list[Finding]:
    shrink = {
        (label, place): contraction(traces[label].stored[:, place])
        for label in ("momentum", "nag")
        for place in range(len(CURVATURES))
    }
    steps = {label: int(np.argmax(trace.losses < _TARGET * trace.losses[0])) for label, trace in traces.items()}
    classical = math.sqrt(_MOMENTUM)
    across, along = (math.sqrt(_MOMENTUM * (1 - _LR * curve)) for curve in reversed(CURVATURES))
    # Between the limits of the two: 1.36 and 3.8 over the largest curvature.
    hotter = Comparison(("momentum=sgd", "nag"), "ravine", 500, assignments=("lr=0.03", f"momentum={_MOMENTUM}")).run()
    grown = float(hotter["nag"].losses[100] / hotter["nag"].losses[0])
    return [
        Finding(
            "across",
            f"factor per step across the ravine (momentum: {shrink['momentum', 1]:.3f})",
            shrink["nag", 1],
            f"{across:.3f} = √(μ(1−lr·λ)); momentum: {classical:.3f} = √μ",
            near(shrink["nag", 1], across, 0.01) and near(shrink["momentum", 1], classical, 0.01),
        ),
        Finding(
            "along",
            f"factor per step along the ravine (momentum: {shrink['momentum', 0]:.3f})",
            shrink["nag", 0],
            f"{along:.3f} = √(μ(1−lr·λ)); momentum: {classical:.3f} = √μ",
            near(shrink["nag", 0], along, 0.01) and near(shrink["momentum", 0], classical, 0.01),
        ),
        Finding(
            "sooner",
            f"steps to a millionth of the starting loss (momentum: {steps['momentum']})",
            steps["nag"],
            "fewer than with momentum",
            steps["nag"] < steps["momentum"],
        ),
        Finding(
            "every_rate",
            "it is better at any rate; measured: its loss after 100 steps at lr 0.03 over the starting one "
            f"(momentum: {hotter['momentum'].losses[100] / hotter['momentum'].losses[0]:.1e})",
            grown,
            f"grows without end above lr·λ = {2 * (1 + _MOMENTUM) / (1 + 2 * _MOMENTUM):.2f}; "
            f"momentum only above {2 * (1 + _MOMENTUM):.1f}",
            grown < 1,
        ),
    ]


def contraction(values: npt.NDArray[np.float64]) -> float:
    """The factor per step of x_{t+1} = a x_t + b x_{t-1}, where its roots are complex: √(−b)."""
    # The first step has no velocity behind it and follows another rule.
    (_, b), *_ = np.linalg.lstsq(np.column_stack([values[2:-1], values[1:-2]]), values[3:], rcond=None)
    return math.sqrt(-b)


NAG = Claim(
    "nag",
    "Nesterov's momentum against the classical one",
    "NAG looks ahead, so it overshoots less and arrives sooner than momentum.",
    Comparison(
        ("momentum=sgd", "nag", "sgd"),
        problem="ravine",
        steps=300,
        assignments=(f"lr={_LR}", f"momentum.momentum={_MOMENTUM}", f"nag.momentum={_MOMENTUM}"),
    ),
    _measure_nag,
)
