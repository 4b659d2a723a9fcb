"""The optimizers of the lecture notes that no framework has; their forms of the others are in the common table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.random import Generator

from tests.textbook.drawing import Case, also, betas_and_eps, between, defaults, fixed, flag
from tests.textbook.loops import Array, Grads, Hyper, JointLoop, Key, Params, TensorLoop, joint_steps, steps


def nadam_lecture(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta: float = 0.9,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    velocity: Literal["literal", "ema"] = "literal",
    bias_correction: bool = False,
    lookahead_grads: Sequence[Array] | None = None,
) -> list[Array]:
    """The notes' NADAM, as it is printed.

        u = beta * u + lr * g(theta - beta * u),  theta -= lr / (sqrt(v) + eps) * (beta1 * u + (1 - beta1) * g(theta))

    So the learning rate enters twice, and two gradients are needed; without `lookahead_grads` one serves for both.
    velocity="ema" reads u as a running mean, which has no learning rate in it. With bias_correction, and beta1 = beta,
    that is optax's Nesterov Adam: both gradients are corrected by beta's powers, u's one step ahead.
    """
    p, trajectory = param, []
    u = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    aheads = grads if lookahead_grads is None else lookahead_grads
    for (step, g, lr), ahead in zip(steps(grads, lrs), aheads, strict=True):
        u = beta * u + (lr if velocity == "literal" else 1 - beta) * ahead
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        bc1 = 1 - beta**step if bias_correction else 1.0
        bc1_next = 1 - beta ** (step + 1) if bias_correction else 1.0
        bc2 = 1 - beta2**step if bias_correction else 1.0
        direction = beta1 * u / bc1_next + (1 - beta1) * g / bc1
        p = p - lr * direction / (np.sqrt(exp_avg_sq / bc2) + eps)
        trajectory.append(np.asarray(p))
    return trajectory


def adam_max(
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    bias_correction: bool = True,
    norm_scope: Literal["tensor", "global"] = "tensor",
) -> list[Params]:
    """The notes' Adam Max: Adam whose second moment is one number, a mean of the squared largest gradient.

    Largest in each tensor, or with norm_scope="global" in all of them.
    """
    p, trajectory = dict(params), []
    exp_avg = {name: np.zeros_like(param) for name, param in params.items()}
    exp_avg_sq = dict.fromkeys(params, 0.0)
    for step, row, lr in joint_steps(grads, lrs):
        bc1 = 1 - beta1**step if bias_correction else 1.0
        bc2 = 1 - beta2**step if bias_correction else 1.0
        largest = {name: float(np.max(np.abs(g))) for name, g in row.items()}
        if norm_scope == "global":
            largest = dict.fromkeys(largest, max(largest.values()))
        for name, g in row.items():
            exp_avg[name] = beta1 * exp_avg[name] + (1 - beta1) * g
            exp_avg_sq[name] = beta2 * exp_avg_sq[name] + (1 - beta2) * largest[name] ** 2
            scale = math.sqrt(exp_avg_sq[name] / bc2) + eps
            p[name] = np.asarray(p[name] - lr / bc1 * exp_avg[name] / scale)
        trajectory.append(dict(p))
    return trajectory


LOOPS: dict[Key, TensorLoop] = {("nadam_lecture", "lecture"): nadam_lecture}
JOINT_LOOPS: dict[Key, JointLoop] = {("adam_max", "lecture"): adam_max}


def _nadam_lecture(rng: Generator) -> Hyper:
    return {"beta": between(rng, 0.5, 0.95), "velocity": "literal"}


def _adam_max(rng: Generator) -> Hyper:
    return {"bias_correction": flag(rng), "norm_scope": "global" if flag(rng) else "tensor"}


def _cases() -> tuple[Case, ...]:
    nag = Case("nag", "lecture", lambda rng: {"momentum": between(rng, 0.3, 0.95)})
    nadam = Case("nadam_lecture", "lecture", also(betas_and_eps, _nadam_lecture))
    adam_max = Case("adam_max", "lecture", also(betas_and_eps, _adam_max))

    return (
        fixed(nag, "theta", serve="theta"),
        nadam,
        fixed(nadam, "ema", velocity="ema"),
        # Where the two betas differ, the notes do not say whose powers correct what.
        fixed(nadam, "ema-corrected", velocity="ema", bias_correction=True, beta=0.8, beta1=0.8),
        defaults(nadam),
        adam_max,
        fixed(adam_max, "tensor", norm_scope="tensor", bias_correction=True),
        fixed(adam_max, "global", norm_scope="global", bias_correction=True),
        fixed(adam_max, "uncorrected", norm_scope="tensor", bias_correction=False),
        defaults(adam_max),
    )


CASES = _cases()
