"""The optimizers of optax that reduce over a tensor: their loops, and the rows to try them with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from tests.textbook.drawing import (
    MATRICES,
    NO_SCALAR,
    SHAPES,
    Case,
    also,
    betas_and_eps,
    between,
    decay,
    defaults,
    eps_root,
    fixed,
    flag,
    magnitude,
    sometimes,
)
from tests.textbook.loops import (
    Array,
    Hyper,
    Key,
    TensorLoop,
    ema,
    norm,
    root_mean_square,
    square_norm,
    steps,
)


def lamb(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Array]:
    """optax.lamb: Adam's direction and the decay, together as long as the parameter."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, beta1)
        exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
        direction = exp_avg / (1 - beta1**step) / (np.sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps)
        direction = direction + weight_decay * p
        p = p - lr * trust(norm(p), norm(direction)) * direction
        trajectory.append(np.asarray(p))
    return trajectory


def lars(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[Array]:
    """optax.lars: the gradient and the decay, in a fixed proportion to the parameter; the lr is in the buffer."""
    p, buffer, trajectory = param, np.zeros_like(param), []
    for _, g, lr in steps(grads, lrs):
        direction = g + weight_decay * p
        change = lr * trust(norm(p), norm(direction), trust_coefficient, eps) * direction
        buffer = momentum * buffer + change
        p = p - (momentum * buffer + change if nesterov else buffer)
        trajectory.append(np.asarray(p))
    return trajectory


def trust(param: float, update: float, coefficient: float = 1.0, eps: float = 0.0) -> float:
    """The ratio of two norms; 1 if one of them is 0."""
    return coefficient * param / (update + eps) if param > 0 and update > 0 else 1.0


def novograd(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Array]:
    """NovoGrad: the gradient over its norm's running mean, summed. The first gradient starts both as it is."""
    p, buffer, trajectory = param, np.zeros_like(param), []
    mean_square = 0.0
    for step, g, lr in steps(grads, lrs):
        mean_square = square_norm(g) if step == 1 else beta2 * mean_square + (1 - beta2) * square_norm(g)
        buffer = beta1 * buffer + g / (math.sqrt(mean_square + eps_root) + eps) + weight_decay * p
        p = p - lr * buffer
        trajectory.append(np.asarray(p))
    return trajectory


def sm3(
    param: Array, grads: Sequence[Array], lrs: Sequence[float], *, momentum: float = 0.9, eps: float = 1e-8
) -> list[Array]:
    """SM3: each axis keeps a maximum for each of its places; an element has the least that its places allow."""
    p, exp_avg, trajectory = param, np.zeros_like(param), []
    axes = range(param.ndim)
    largest = [np.zeros_like(np.max(param, axis=others(axis, axes), keepdims=True)) for axis in axes]
    for _, g, lr in steps(grads, lrs):
        bound = largest[0]
        for other in largest[1:]:
            bound = np.minimum(bound, other)
        total = bound + g * g
        largest = [np.max(total, axis=others(axis, axes), keepdims=True) for axis in axes]
        root = np.sqrt(total + eps)
        exp_avg = ema(exp_avg, np.divide(g, root, out=np.zeros_like(g), where=total > 0), momentum)
        p = p - lr * exp_avg
        trajectory.append(np.asarray(p))
    return trajectory


def others(axis: int, axes: Iterable[int]) -> tuple[int, ...]:
    return tuple(other for other in axes if other != axis)


def fromage(param: Array, grads: Sequence[Array], lrs: Sequence[float], *, min_norm: float = 1e-6) -> list[Array]:
    """Fromage: a step in proportion to the parameter, and then back to where its norm came from."""
    p, trajectory = param, []
    for _, g, lr in steps(grads, lrs):
        ratio = max(norm(p), min_norm) / max(norm(g), min_norm)
        p = (p - lr * ratio * g) / math.sqrt(1 + lr * lr)
        trajectory.append(np.asarray(p))
    return trajectory


def adafactor(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    momentum: float | None = None,
    eps: float = 1e-30,
    weight_decay: float = 0.0,
) -> list[Array]:
    """optax.adafactor: factored over the two largest dimensions if the smaller of them is large enough.

    The decay is a share of the parameter at every step, whatever the learning rate.
    """
    p, exp_avg, trajectory = param, np.zeros_like(param), []
    by_size = sorted(range(param.ndim), key=lambda axis: param.shape[axis])
    factored = param.ndim >= 2 and param.shape[by_size[-2]] >= min_dim_size_to_factor
    second, first = by_size[-2:] if factored else (None, None)
    variance = np.zeros_like(param)
    row, column = np.mean(variance, axis=first, keepdims=True), np.mean(variance, axis=second, keepdims=True)
    for step, g, lr in steps(grads, lrs):
        kept = 1 - float(step) ** -decay_rate
        square = g * g + eps
        if factored:
            row = ema(row, np.mean(square, axis=first, keepdims=True), kept)
            column = ema(column, np.mean(square, axis=second, keepdims=True), kept)
            update = g / np.sqrt(row / row.mean(axis=second, keepdims=True)) / np.sqrt(column)
        else:
            variance = ema(variance, square, kept)
            update = g / np.sqrt(variance)
        if clipping_threshold is not None:
            update = update / max(1.0, root_mean_square(update) / clipping_threshold)
        update = lr * update
        if multiply_by_parameter_scale:
            update = max(root_mean_square(p), 1e-3) * update
        if momentum is not None:
            exp_avg = update = ema(exp_avg, update, momentum)
        p = p - (update + weight_decay * p)
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
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> list[Array]:
    """optax.contrib.muon of a matrix, which has inputs for rows and outputs for columns."""
    p, exp_avg, trajectory = param, np.zeros_like(param), []
    rows, columns = param.shape
    for step, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, momentum)
        if nesterov:
            mean = exp_avg / (1 - momentum ** (step + 1)), g / (1 - momentum**step)
            direction = momentum * mean[0] + (1 - momentum) * mean[1]
        else:
            direction = exp_avg / (1 - momentum**step)
        x = direction / (norm(direction) + eps)
        for _ in range(ns_steps):
            a, b, c = ns_coefficients
            gram = x @ x.T
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        p = p - lr * (math.sqrt(max(1.0, columns / rows)) * x + weight_decay * p)
        trajectory.append(np.asarray(p))
    return trajectory


LOOPS: dict[Key, TensorLoop] = {
    ("adafactor", "optax"): adafactor,
    ("fromage", "optax"): fromage,
    ("lamb", "optax"): lamb,
    ("lars", "optax"): lars,
    ("muon", "optax"): muon,
    ("novograd", "optax"): novograd,
    ("sm3", "optax"): sm3,
}


def _lars(rng: Generator) -> Hyper:
    return {
        "momentum": between(rng, 0.3, 0.95),
        "trust_coefficient": magnitude(rng, 1e-3, 1e-1),
        "eps": sometimes(rng, magnitude(rng, 1e-8, 1e-2)),
        "nesterov": flag(rng),
    }


def _novograd(rng: Generator) -> Hyper:
    return {"beta1": between(rng, 0.5, 0.95), "beta2": between(rng, 0.1, 0.95), "eps": magnitude(rng, 1e-6, 1e-2)}


def _adafactor(rng: Generator) -> Hyper:
    return {
        "min_dim_size_to_factor": int(rng.integers(2, 6)),
        "decay_rate": between(rng, 0.5, 1),
        "clipping_threshold": between(rng, 0.5, 2) if flag(rng) else None,
        "multiply_by_parameter_scale": flag(rng),
        "momentum": between(rng, 0.5, 0.95) if flag(rng) else None,
        "eps": magnitude(rng, 1e-30, 1e-6),
        "weight_decay": sometimes(rng, magnitude(rng, 1e-5, 1e-3)),
    }


def _muon(rng: Generator) -> Hyper:
    return {
        "momentum": between(rng, 0.5, 0.99),
        "nesterov": flag(rng),
        "ns_steps": int(rng.integers(1, 7)),
        **decay(rng),
    }


def _cases() -> tuple[Case, ...]:
    # The two largest dimensions of the brick are not its last ones.
    factored = {**SHAPES, "brick": (6, 2, 5)}
    adafactor = Case("adafactor", "optax", _adafactor, shapes=factored)
    fromage = Case("fromage", "optax", lambda rng: {"min_norm": magnitude(rng, 1e-6, 1)})
    lamb = Case("lamb", "optax", also(betas_and_eps, eps_root, decay))
    lars = Case("lars", "optax", also(_lars, decay), learning_rate=0.5)
    muon = Case("muon", "optax", _muon, shapes=MATRICES)
    novograd = Case("novograd", "optax", also(_novograd, eps_root, decay))
    sm3 = Case("sm3", "optax", lambda rng: {"momentum": between(rng, 0, 0.95)}, shapes=NO_SCALAR, constant_lr=True)
    return (
        adafactor,
        fixed(adafactor, "whole", min_dim_size_to_factor=128),
        fixed(adafactor, "factored", min_dim_size_to_factor=2, momentum=None, clipping_threshold=None),
        fixed(adafactor, "momentum", momentum=0.9),
        fixed(adafactor, "clipped", clipping_threshold=0.3),
        fixed(adafactor, "unscaled", multiply_by_parameter_scale=False),
        fixed(adafactor, "weight_decay", weight_decay=1e-2),
        defaults(adafactor),
        fromage,
        fixed(fromage, "clipped", min_norm=3.0),
        defaults(fromage),
        lamb,
        fixed(lamb, "weight_decay", weight_decay=0.05),
        defaults(lamb),
        lars,
        fixed(lars, "plain", nesterov=False),
        fixed(lars, "nesterov", nesterov=True),
        fixed(lars, "weight_decay", weight_decay=0.05),
        defaults(lars),
        muon,
        fixed(muon, "plain", nesterov=False),
        fixed(muon, "nesterov", nesterov=True),
        fixed(muon, "coefficients", ns_coefficients=[2.0, -1.5, 0.5], ns_steps=6),
        fixed(muon, "eps", eps=2.0),
        fixed(muon, "weight_decay", weight_decay=0.05),
        defaults(muon),
        novograd,
        fixed(novograd, "weight_decay", weight_decay=0.05),
        defaults(novograd),
        sm3,
        replace(fixed(sm3, "eps", outside=True, eps=1e-2), constant_lr=False),
        defaults(sm3),
    )


CASES = _cases()
