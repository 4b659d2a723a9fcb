"""The optimizers that only Keras has, or that it writes in a way of its own; the others are in the common table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from tests.textbook.drawing import (
    MATRICES,
    Case,
    also,
    betas_and_eps,
    between,
    decay,
    defaults,
    fixed,
    flag,
    magnitude,
    sometimes,
)
from tests.textbook.loops import Array, Hyper, Key, TensorLoop, norm, root_mean_square, steps


def ftrl(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    lr_power: float = -0.5,
    initial_accumulator_value: float = 0.1,
    l1: float = 0.0,
    l2: float = 0.0,
    l2_shrinkage: float = 0.0,
    beta: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Array]:
    """Follow the regularised leader: z sums gradients, and the parameter is computed from it afresh at every step.

    Where nothing has been accumulated there is nothing to divide by: such an element keeps its value.
    """
    p, trajectory = param, []
    accumulator = np.full_like(param, initial_accumulator_value)
    linear = np.zeros_like(param)
    for _, g, lr in steps(grads, lrs):
        p = p * (1 - lr * weight_decay)
        before, accumulator = accumulator, accumulator + g * g
        sigma = (accumulator**-lr_power - before**-lr_power) / lr
        linear = linear + g + 2 * l2_shrinkage * p - sigma * p
        quadratic = accumulator**-lr_power / lr + 2 * l2 + beta / lr
        pulled = np.sign(linear) * np.maximum(np.abs(linear) - l1, 0)
        p = np.where(quadratic > 0, -pulled / np.where(quadratic > 0, quadratic, 1), p)
        trajectory.append(np.asarray(p))
    return trajectory


def lion(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
) -> list[Array]:
    """Lion: the sign of one mean is the step, another mean is kept."""
    p, exp_avg, trajectory = param, np.zeros_like(param), []
    for _, g, lr in steps(grads, lrs):
        p = p * (1 - lr * weight_decay)
        p = p - lr * np.sign(beta1 * exp_avg + (1 - beta1) * g)
        exp_avg = beta2 * exp_avg + (1 - beta2) * g
        trajectory.append(np.asarray(p))
    return trajectory


def lamb(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-7,
    weight_decay: float = 0.0,
) -> list[Array]:
    """LAMB as Keras has it: the decay comes before the step and stays out of the trust ratio."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        p = p * (1 - lr * weight_decay)
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        direction = (exp_avg / (1 - beta1**step)) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
        p_norm, u_norm = norm(p), norm(direction)
        ratio = p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0
        p = p - lr * ratio * direction
        trajectory.append(np.asarray(p))
    return trajectory


def adafactor(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta2_decay: float = -0.8,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    d: float = 1.0,
    weight_decay: float = 0.0,
) -> list[Array]:
    """Adafactor as Keras has it: eps1 is added to the squares, and the scale of p is taken after the decay.

    Two dimensions or more: the mean square is the product of a mean over the last axis and one over the axis before it.
    """
    p, trajectory = param, []
    factored = param.ndim >= 2
    row = np.zeros_like(param[..., 0]) if factored else None
    column = np.zeros_like(param[..., 0, :]) if factored else None
    variance = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        p = p * (1 - lr * weight_decay)
        size = max(eps2, root_mean_square(p)) * min(lr, 1 / math.sqrt(step))
        kept = 1 - step**beta2_decay
        square = g * g + eps1
        if row is not None and column is not None:
            row = kept * row + (1 - kept) * mean(square, -1)
            column = kept * column + (1 - kept) * mean(square, -2)
            share = row / mean(row, -1)[..., None]
            variance = share[..., :, None] * column[..., None, :]
        else:
            variance = kept * variance + (1 - kept) * square
        direction = g / np.sqrt(variance)
        p = p - size / max(1.0, root_mean_square(direction) / d) * direction
        trajectory.append(np.asarray(p))
    return trajectory


def muon(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: Sequence[float] = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    rms_rate: float | None = 0.2,
    weight_decay: float = 4e-3,
) -> list[Array]:
    """Muon as Keras has it: the buffer sums gradients, and the iteration runs in the parameter's own dtype."""
    p, buffer, trajectory = param, np.zeros_like(param), []
    scale = 1.0 if rms_rate is None else rms_rate * math.sqrt(max(param.shape))
    for _, g, lr in steps(grads, lrs):
        p = p * (1 - lr * weight_decay)
        buffer = momentum * buffer + g
        direction = newton_schulz(g + momentum * buffer if nesterov else buffer, ns_coefficients, ns_steps, eps=1e-7)
        p = p - lr * scale * direction
        trajectory.append(np.asarray(p))
    return trajectory


def newton_schulz(matrix: Array, coefficients: Sequence[float], iterations: int, eps: float) -> Array:
    """A matrix with the same singular vectors, its singular values pushed towards 1; works on the wider shape."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (norm(x) + eps)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def mean(x: Array, axis: int) -> Array:
    """Summed in float64, returned in the array's dtype."""
    return np.asarray(np.mean(x, axis=axis, dtype=np.float64), dtype=x.dtype)


LOOPS: dict[Key, TensorLoop] = {
    ("ftrl", "keras"): ftrl,
    ("lion", "keras"): lion,
    ("lamb", "keras"): lamb,
    ("adafactor", "keras"): adafactor,
    ("muon", "keras"): muon,
}


def _ftrl(rng: Generator) -> Hyper:
    return {
        "l1": sometimes(rng, magnitude(rng, 1e-2, 1)),
        "l2": sometimes(rng, magnitude(rng, 1e-2, 1)),
        "beta": sometimes(rng, between(rng, 0.1, 2)),
        "lr_power": -between(rng, 0.3, 0.7),
        "initial_accumulator_value": between(rng, 0.01, 1),
        "l2_shrinkage": sometimes(rng, magnitude(rng, 1e-3, 1e-1)),
    }


def _lion(rng: Generator) -> Hyper:
    return {"beta1": between(rng, 0.5, 0.95), "beta2": between(rng, 0.8, 0.999)}


def _off_the_edge(hyper: Hyper, grads: list[Array]) -> list[Array]:
    """Doubles the gradients that nearly cancel the mean: there the last bit would decide on the sign of a step."""
    case = {"beta1": 0.9, "beta2": 0.99} | hyper
    beta1, beta2 = float(str(case["beta1"])), float(str(case["beta2"]))
    exp_avg, mended = np.zeros_like(grads[0]), []
    for g in grads:
        share = (1 - beta1) * g
        near = np.abs(beta1 * exp_avg + share) < 1e-3 * np.abs(share)
        g = np.where(near, 2 * g, g)
        exp_avg = beta2 * exp_avg + (1 - beta2) * g
        mended.append(np.asarray(g))
    return mended


def _adafactor(rng: Generator) -> Hyper:
    return {
        "beta2_decay": -between(rng, 0.5, 1),
        "eps1": magnitude(rng, 1e-12, 1e-6),
        "eps2": magnitude(rng, 1e-4, 1),
        "d": between(rng, 0.5, 3),
    }


def _no_zeros(hyper: Hyper, grads: list[Array]) -> list[Array]:
    """Where a row and a column have been empty, Keras multiplies two eps1: too small for float32, and 0 / 0 follows."""
    return [np.where(g == 0, 1e-3, g) for g in grads]


def _muon(rng: Generator) -> Hyper:
    return {
        "momentum": between(rng, 0.5, 0.95),
        "nesterov": flag(rng),
        "rms_rate": between(rng, 0.1, 0.5) if flag(rng) else None,
    }


def _cases() -> tuple[Case, ...]:
    ftrl = Case("ftrl", "keras", _ftrl, learning_rate=0.1)
    lion = Case("lion", "keras", also(_lion, decay), adjust=_off_the_edge)
    lamb = Case("lamb", "keras", also(betas_and_eps, decay))
    adafactor = Case("adafactor", "keras", also(_adafactor, decay))
    muon = Case("muon", "keras", also(_muon, decay), shapes=MATRICES)

    return (
        ftrl,
        fixed(ftrl, "plain", l1=0.0, l2=0.0, l2_shrinkage=0.0, beta=0.0),
        fixed(ftrl, "l1", l1=0.3),
        fixed(ftrl, "l2-beta", l2=0.3, beta=0.5),
        fixed(ftrl, "l2_shrinkage", l2_shrinkage=0.05),
        fixed(ftrl, "constant_rate", lr_power=0.0),
        # Keras has 0 / 0 where no gradient has come yet.
        fixed(
            ftrl,
            "empty_accumulator",
            outside=True,
            lr_power=-0.5,
            initial_accumulator_value=0.0,
            beta=0.0,
            l1=0.0,
            l2=0.0,
            l2_shrinkage=0.0,
        ),
        defaults(ftrl),
        lion,
        fixed(lion, "weight_decay", weight_decay=0.05),
        defaults(lion),
        lamb,
        fixed(lamb, "weight_decay", weight_decay=0.05),
        defaults(lamb),
        adafactor,
        fixed(adafactor, "clipped", d=0.3),
        fixed(adafactor, "unclipped", d=1e3),
        fixed(adafactor, "weight_decay", weight_decay=0.05),
        replace(defaults(adafactor), adjust=_no_zeros),
        muon,
        fixed(muon, "plain", nesterov=False),
        fixed(muon, "nesterov", nesterov=True),
        fixed(muon, "unscaled", rms_rate=None),
        fixed(muon, "iterations", ns_steps=3, ns_coefficients=[2.0, -1.5, 0.5]),
        fixed(muon, "weight_decay", weight_decay=0.05),
        defaults(muon),
    )


CASES = _cases()
