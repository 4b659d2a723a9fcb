"""Adam: its bias correction, and the max norm in place of the root mean square."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stepwell_server.experiments.claims.claim import Claim, Finding, near
from stepwell_server.experiments.problems import BURST, PERIOD
from stepwell_server.experiments.runner import Comparison, Trace

_LR, _BETA1, _BETA2 = 0.01, 0.9, 0.999


def uncorrected(step: int) -> float:
    """Adam's step without the correction over that with it, at a gradient that stays as it is."""
    return float((1 - _BETA1**step) / np.sqrt(1 - _BETA2**step))


def _measure_bias(traces: Mapping[str, Trace]) -> list[Finding]:
    steady = {label: trace.effective_rates([0]) for label, trace in traces.items()}
    ratio = steady["uncorrected"] / steady["corrected"]
    peak = int(np.argmax(ratio)) + 1
    last = len(ratio)
    return [
        Finding(
            "corrected",
            "corrected: the first step at a steady gradient, in learning rates",
            float(steady["corrected"][0] / _LR),
            "1: both means are the gradient itself",
            near(float(steady["corrected"][0]), _LR, 1e-3),
        ),
        Finding(
            "first",
            "uncorrected: the first step, in corrected ones",
            float(ratio[0]),
            f"{uncorrected(1):.3f} = (1−β₁)/√(1−β₂)",
            near(float(ratio[0]), uncorrected(1), 1e-3),
        ),
        Finding(
            "peak",
            f"uncorrected: the longest step, in corrected ones; it is step {peak}",
            float(ratio.max()),
            f"{max(map(uncorrected, range(1, last))):.3f} = max (1−β₁ᵗ)/√(1−β₂ᵗ)",
            near(float(ratio.max()), max(map(uncorrected, range(1, last))), 1e-3),
        ),
        Finding(
            "late",
            f"uncorrected: step {last:,}, in corrected ones",
            float(ratio[-1]),
            f"{uncorrected(last):.3f}: no more than early on",
            near(float(ratio[-1]), 1.0, 0.05),
        ),
    ]


BIAS_CORRECTION = Claim(
    "bias_correction",
    "Adam with and without bias correction",
    "The bias correction matters early.",
    Comparison(
        ("corrected=adam", "uncorrected=adam"),
        problem="alternating",
        steps=3000,
        assignments=(f"lr={_LR}", "uncorrected.bias_correction=false"),
    ),
    _measure_bias,
)

_PERIODS = 20


def _measure_max_norm(traces: Mapping[str, Trace]) -> list[Finding]:
    returns = np.arange(_PERIODS // 2, _PERIODS) * PERIOD
    rate = {label: float(trace.effective_rates([1])[returns].mean()) / _LR for label, trace in traces.items()}
    silence = PERIOD - BURST
    # The same runs, ended with the last burst: how much of each norm is left when the silence is over.
    burst_end = replace(MAX_NORM.comparison, steps=_PERIODS * PERIOD - silence).run()
    left_max = float(traces["adamax"].state["exp_inf"][1] / burst_end["adamax"].state["exp_inf"][1])
    left_vector = float(np.sqrt(traces["adam_max"].state["exp_avg_sq"] / burst_end["adam_max"].state["exp_avg_sq"]))
    left_root = float(np.sqrt(traces["adam"].state["exp_avg_sq"][1] / burst_end["adam"].state["exp_avg_sq"][1]))
    return [
        Finding(
            "max_returns",
            "adamax: rate at the gradient that returns, in learning rates",
            rate["adamax"],
            "1: the first gradient that returns is the maximum",
            near(rate["adamax"], 1.0, 1e-3),
        ),
        Finding(
            "vector_returns",
            "adam_max: the same",
            rate["adam_max"],
            "1: its norm is the largest of the vector, and the steady gradient is in it",
            near(rate["adam_max"], 1.0, 1e-3),
        ),
        Finding(
            "root_returns",
            "adam, with its L2 norm: the same; the claim is that it is not 1",
            rate["adam"],
            f"{(BURST / PERIOD) ** -0.5:.2f} = √(period/burst): the zeros are in the mean; ± 10 %",
            near(rate["adam"], (BURST / PERIOD) ** -0.5, 0.1),
        ),
        Finding(
            "sum_returns",
            "adagrad, with its L2 norm: the same, at the last return",
            float(traces["adagrad"].effective_rates([1])[returns[-1]]) / _LR,
            f"{(1 + (_PERIODS - 1) * BURST) ** -0.5:.4f} = 1/√(gradients so far): zeros change nothing, "
            "but the rate falls with every gradient",
            near(
                float(traces["adagrad"].effective_rates([1])[returns[-1]]) / _LR,
                (1 + (_PERIODS - 1) * BURST) ** -0.5,
                0.01,
            ),
        ),
        Finding(
            "vector_silence",
            f"adam_max: what is left of the norm itself after {silence} zeros",
            left_vector,
            "1: the steady gradient keeps it; ± 1 %",
            near(left_vector, 1.0, 0.01),
        ),
        Finding(
            "max_silence",
            f"adamax: its norm, too, keeps better than adam's; measured: the same (adam: {left_root:.3f})",
            left_max,
            f"{_BETA2**silence:.3f} = β₂ᵏ, and √(β₂ᵏ) = {_BETA2 ** (silence / 2):.3f} for adam",
            left_max >= left_root,
        ),
    ]


MAX_NORM = Claim(
    "max_norm",
    "The max norm over zero gradients",
    "The max norm keeps its rate over zero gradients where the L2 norm does not.",
    Comparison(
        ("adamax", "adam_max", "adam", "adagrad=adagrad@lecture"),
        problem="zeros",
        steps=_PERIODS * PERIOD,
        # Without momentum, which is another matter, a step shows what divides the gradient.
        assignments=(f"lr={_LR}", "beta1=0"),
    ),
    _measure_max_norm,
)
