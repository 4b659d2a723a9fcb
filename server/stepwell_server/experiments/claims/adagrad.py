"""AdaGrad and what followed from it."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stepwell_server.experiments.claims.claim import Claim, Finding, log_slope, near
from stepwell_server.experiments.problems import CURVATURES, DENSITY
from stepwell_server.experiments.runner import Comparison, Trace

_STEPS = 4000
_WINDOW = 200
_DENSE, _SPARSE = range(4), range(4, 8)


def _measure_adagrad(traces: Mapping[str, Trace]) -> list[Finding]:
    dense, sparse = (traces["adagrad"].effective_rates(which, _WINDOW) for which in (_DENSE, _SPARSE))
    proportion = float(sparse[-1] / dense[-1])
    lag, lag_of_sgd = _lag(traces["adagrad"]), _lag(traces["sgd"])
    early, late = (float(dense[2 * t - 1] / dense[t - 1]) for t in (_STEPS // 4, _STEPS // 2))
    quarter = float(dense[-1] / dense[_STEPS // 4 - 1])
    return [
        Finding(
            "proportion",
            "rate of sparse features over rate of dense ones, at the end",
            proportion,
            f"{DENSITY**-0.5:.2f} = 1/√density, because the mean squared gradient goes with the density; ± 25 %",
            near(proportion, DENSITY**-0.5, 0.25),
        ),
        Finding(
            "lag",
            f"sparse features take so many times the steps of dense ones to get half way (SGD: {lag_of_sgd:.1f})",
            lag,
            f"SGD: about 1/density = {1 / DENSITY:.0f}; here at most half of that",
            lag <= 1 / DENSITY / 2 and near(lag_of_sgd, 1 / DENSITY, 0.35),
        ),
        Finding(
            "collapse",
            f"rate of dense features at step {_STEPS:,} over that at step {_STEPS // 4:,}",
            quarter,
            "1/2, since the rate goes with 1/√t while gradients stay as they are; ± 20 %",
            near(quarter, 0.5, 0.2),
        ),
        Finding(
            "exponential",
            f"the collapse is exponential; measured: rate at step {_STEPS:,} over that at step {_STEPS // 2:,}",
            late,
            f"exponential: the square, {early**2:.2f}, of what step {_STEPS // 2:,} has over step {_STEPS // 4:,}; "
            f"1/√t: the same, {early:.2f}",
            abs(late - early**2) < abs(late - early),
        ),
    ]


def _lag(trace: Trace) -> float:
    """How much later sparse features are half way to the minimum than dense ones."""
    truth = np.array([1.0, -1.0] * 4)
    away = np.abs(trace.points - truth)
    dense, sparse = (int(np.argmax(away[:, list(which)].mean(axis=1) < 0.5)) for which in (_DENSE, _SPARSE))
    return sparse / dense


ADAGRAD = Claim(
    "adagrad",
    "AdaGrad on sparse and dense features",
    "AdaGrad moves in proportion on sparse and dense features; then its rate collapses, and it does so exponentially.",
    Comparison(
        ("sgd", "adagrad=adagrad@lecture", "rmsprop=rmsprop@lecture"),
        problem="sparse_dense",
        steps=_STEPS,
        assignments=("sgd.lr=0.05", "adagrad.lr=0.3", "rmsprop.lr=0.005"),
    ),
    _measure_adagrad,
)


_RATES = ("0.0001", "0.001", "0.01", "0.1", "1")
_RMSPROP_STEPS = 1000
_ALPHA = 0.9


def _measure_rmsprop(traces: Mapping[str, Trace]) -> list[Finding]:
    kept = log_slope(ADAGRAD.comparison.run()["rmsprop"].effective_rates(_DENSE, _WINDOW), _STEPS // 10)
    swing = float(np.abs(traces["lr-0.01"].points[-100:]).mean()) / 0.01
    lasts = {float(rate): float(traces[f"lr-{rate}"].losses[-100:].mean()) for rate in _RATES}
    tenfold = lasts[1.0] / lasts[0.1]
    floor = _loss_out_of_reach(1e-4)
    return [
        Finding(
            "kept",
            "it keeps its rate; measured as above: the exponent p of rate ~ step^p",
            kept,
            "0, since old gradients are forgotten; ± 0.1",
            abs(kept) <= 0.1,
        ),
        Finding(
            "oscillation",
            "distance from the minimum over the last 100 steps, in learning rates",
            swing,
            "1/2: near the minimum g/√v is ±1, so it jumps from one side to the other; ± 5 %",
            near(swing, 0.5, 0.05),
        ),
        Finding(
            "too_large",
            "last loss at lr 1 over last loss at lr 0.1",
            tenfold,
            "100: the loss of that swing is lr²/8 times the sum of the curvatures; ± 10 %",
            near(tenfold, 100.0, 0.1) and near(lasts[0.1], 0.1**2 / 8 * sum(CURVATURES), 0.1),
        ),
        Finding(
            "too_small",
            f"last loss at lr 0.0001, after {_RMSPROP_STEPS:,} steps",
            lasts[0.0001],
            f"above {floor:.3g}: no step is longer than lr/√(1−α), so the minimum is out of reach",
            lasts[0.0001] > floor,
        ),
    ]


def _loss_out_of_reach(lr: float) -> float:
    """The loss on the ravine of a point that has gone as far as all steps together can reach."""
    reach = _RMSPROP_STEPS * lr / math.sqrt(1 - _ALPHA)
    return sum(curve / 2 * max(0.0, start - reach) ** 2 for curve, start in zip(CURVATURES, (4.0, 1.0), strict=True))


RMSPROP = Claim(
    "rmsprop",
    "RMSprop and its first learning rate",
    "RMSprop keeps its rate, oscillates about the minimum, and is sensitive to the first learning rate.",
    Comparison(
        tuple(f"lr-{rate}=rmsprop@lecture" for rate in _RATES),
        problem="ravine",
        steps=_RMSPROP_STEPS,
        assignments=tuple(f"lr-{rate}.lr={rate}" for rate in _RATES),
    ),
    _measure_rmsprop,
)


def _measure_adadelta(traces: Mapping[str, Trace]) -> list[Finding]:
    plain = Comparison(("adadelta@lecture",), steps=_STEPS)
    left = 0.0
    for problem in ("sparse_dense", "ravine", "rosenbrock", "noisy"):
        (trace,) = replace(plain, problem=problem).run().values()
        left = max(left, float(trace.losses[-100:].mean() / trace.losses[0]))
    first = {label: float(np.abs(trace.moves[0]).max()) for label, trace in traces.items()}
    hidden = first["eps-1e-4"] / first["eps-1e-6"]
    rest = traces["eps-1e-6"].losses
    return [
        Finding(
            "descends",
            "the largest share of the starting loss that is left on any of the four problems with a minimum",
            left,
            "below 5 % with the defaults, without a rate",
            left < 0.05,
        ),
        Finding(
            "first_step",
            "it finds its first step by itself; measured: its length with the defaults, whatever the gradient",
            first["eps-1e-6"],
            f"{math.sqrt(1e-6 / 0.1):.5f} = √(ε/(1−ρ)); ± 1 %",
            near(first["eps-1e-6"], math.sqrt(1e-6 / 0.1), 0.01),
        ),
        Finding(
            "nothing_to_choose",
            "nothing has to be chosen in the rate's place; measured: first step at ε 1e-4 over that at 1e-6",
            hidden,
            "10: ε is a learning rate in disguise, the first step goes with √ε",
            not near(hidden, 10.0, 0.05),
        ),
        Finding(
            "rests",
            "it comes to rest; measured: loss of the last 100 steps over the lowest one",
            float(rest[-100:].mean() / rest.min()),
            "1 for a method that rests at the minimum",
            bool(rest[-100:].mean() <= 1.1 * rest.min()),
        ),
    ]


ADADELTA = Claim(
    "adadelta",
    "AdaDelta without a learning rate",
    "AdaDelta needs no first learning rate.",
    Comparison(
        tuple(f"eps-{eps}=adadelta@lecture" for eps in ("1e-8", "1e-6", "1e-4")),
        problem="ravine",
        steps=_STEPS,
        assignments=tuple(f"eps-{eps}.eps={eps}" for eps in ("1e-8", "1e-6", "1e-4")),
    ),
    _measure_adadelta,
)
