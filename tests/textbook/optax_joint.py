"""The optimizers of optax that reduce over all tensors: their loops, and the rows to try them with.

Norms and products are those of all tensors taken as one vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.random import Generator

from tests.textbook.drawing import (
    Case,
    also,
    betas_and_eps,
    between,
    decay,
    defaults,
    fixed,
    flag,
    magnitude,
    only,
    sometimes,
)
from tests.textbook.loops import (
    Array,
    Grads,
    Hyper,
    JointLoop,
    Key,
    Params,
    dot,
    ema,
    joint_steps,
    square_norm,
)
from tests.textbook.others import prodigy


def dog(
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    *,
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> list[Params]:
    """DoG: the largest distance from the start over the root of all squared gradients."""
    p, trajectory = dict(params), []
    distance = reps_rel * (1 + math.sqrt(all_of(square_norm, params)))
    squares = 0.0
    for _, row, lr in joint_steps(grads, lrs):
        row = {name: g + weight_decay * p[name] for name, g in row.items()}
        distance = max(distance, math.sqrt(square_distance(p, params)))
        squares += all_of(square_norm, row)
        rate = lr * distance / math.sqrt(squares + eps)
        p = {name: np.asarray(p[name] - rate * g) for name, g in row.items()}
        trajectory.append(p)
    return trajectory


def ldog(params: Params, grads: Sequence[Grads], lrs: Sequence[float], **hyper: float) -> list[Params]:
    """The same for each tensor by itself."""
    alone = [dog({name: param}, [{name: row[name]} for row in grads], lrs, **hyper) for name, param in params.items()]
    return [{name: value for part in parts for name, value in part.items()} for parts in zip(*alone, strict=True)]


def dowg(
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    *,
    init_estim_sq_dist: float | None = None,
    eps: float = 1e-4,
) -> list[Params]:
    """DoWG: the same, every gradient weighted with the squared distance of its day; eps starts the distance, too."""
    p, trajectory = dict(params), []
    distance = eps if init_estim_sq_dist is None else init_estim_sq_dist
    squares = 0.0
    for _, row, lr in joint_steps(grads, lrs):
        distance = max(distance, square_distance(p, params))
        squares += distance * all_of(square_norm, row)
        rate = lr * distance / (math.sqrt(squares) + eps)
        p = {name: np.asarray(p[name] - rate * g) for name, g in row.items()}
        trajectory.append(p)
    return trajectory


def dadapt_adamw(
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    d0: float = 1e-6,
    weight_decay: float = 0.0,
) -> list[Params]:
    """D-Adaptation of AdamW: the learning rate is times an estimate d of the distance, which can only grow."""
    kept = math.sqrt(beta2)
    p, trajectory = dict(params), []
    exp_avg = {name: np.zeros_like(param) for name, param in params.items()}
    exp_avg_sq, total = dict(exp_avg), dict(exp_avg)
    d, numerator = d0, 0.0
    for step, row, lr in joint_steps(grads, lrs):
        dlr = d * lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        agreement, length = 0.0, 0.0
        for name, g in row.items():
            agreement += dot(g, total[name] / (np.sqrt(exp_avg_sq[name]) + eps))
            exp_avg[name] = beta1 * exp_avg[name] + (1 - beta1) * dlr * g
            exp_avg_sq[name] = ema(exp_avg_sq[name], g * g, beta2)
            total[name] = kept * total[name] + (1 - kept) * dlr * g
            length += float(np.sum(np.abs(total[name]), dtype=np.float64))
            change = weight_decay * dlr * p[name] + exp_avg[name] / (np.sqrt(exp_avg_sq[name]) + eps)
            p[name] = np.asarray(p[name] - change)
        numerator = kept * numerator + (1 - kept) * dlr * agreement
        d = max(d, numerator / ((1 - kept) * length))
        trajectory.append(dict(p))
    return trajectory


def polyak_sgd(
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    *,
    losses: Sequence[float],
    max_learning_rate: float = 1.0,
    f_min: float = 0.0,
    eps: float = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> list[Params]:
    """Polyak's step size, from the loss and what it could be at best; the learning rate scales the gradient first.

    sps+ does not go back where the loss is below the best.
    """
    p, trajectory = dict(params), []
    for (_, row, lr), loss in zip(joint_steps(grads, lrs), losses, strict=True):
        row = {name: lr * g for name, g in row.items()}
        square = all_of(square_norm, row)
        gap = max(loss - f_min, 0.0) if variant == "sps+" else loss - f_min
        vanishes = square + eps <= np.finfo(np.float64).eps
        rate = 0.0 if vanishes else min(gap / (square + eps), max_learning_rate)
        p = {name: np.asarray(p[name] - rate * g) for name, g in row.items()}
        trajectory.append(p)
    return trajectory


def momo(
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    *,
    losses: Sequence[float],
    beta: float = 0.9,
    lower_bound: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Params]:
    """MoMo: Polyak's step size for the mean of the gradients, from the same mean of their linear models of the loss."""
    p, trajectory = dict(params), []
    exp_avg = {name: np.zeros_like(param) for name, param in params.items()}
    mean_loss, mean_product = 0.0, 0.0
    for (step, row, lr), loss in zip(joint_steps(grads, lrs), losses, strict=True):
        kept = beta if step > 1 else 0.0
        exp_avg = {name: ema(exp_avg[name], g, kept) for name, g in row.items()}
        mean_loss = kept * mean_loss + (1 - kept) * loss
        mean_product = kept * mean_product + (1 - kept) * all_of(dot, row, p)
        square = all_of(square_norm, exp_avg)
        gap = (1 + lr * weight_decay) * (mean_loss - lower_bound - mean_product) + all_of(dot, exp_avg, p)
        rate = 0.0 if square <= np.finfo(np.float64).eps else min(lr, max(gap, 0.0) / square)
        shrink = 1 - lr * weight_decay / (1 + lr * weight_decay)
        p = {name: np.asarray(shrink * p[name] - rate * mean) for name, mean in exp_avg.items()}
        trajectory.append(p)
    return trajectory


def momo_adam(
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    *,
    losses: Sequence[float],
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    lower_bound: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Params]:
    """MoMo in Adam's metric; the means start at 0 and are corrected where they meet what is not a mean."""
    p, trajectory = dict(params), []
    exp_avg = {name: np.zeros_like(param) for name, param in params.items()}
    exp_avg_sq = dict(exp_avg)
    mean_loss, mean_product = 0.0, 0.0
    for (step, row, lr), loss in zip(joint_steps(grads, lrs), losses, strict=True):
        bc1, bc2 = 1 - beta1**step, 1 - beta2**step
        exp_avg = {name: ema(exp_avg[name], g, beta1) for name, g in row.items()}
        exp_avg_sq = {name: ema(exp_avg_sq[name], g * g, beta2) for name, g in row.items()}
        direction = {name: exp_avg[name] / (np.sqrt(exp_avg_sq[name] / bc2) + eps) for name in row}
        mean_loss = beta1 * mean_loss + (1 - beta1) * loss
        mean_product = beta1 * mean_product + (1 - beta1) * all_of(dot, row, p)
        square = all_of(dot, exp_avg, direction)
        gap = (1 + lr * weight_decay) * (mean_loss - bc1 * lower_bound - mean_product) + all_of(dot, exp_avg, p)
        rate = 0.0 if square <= np.finfo(np.float64).eps else min(lr / bc1, max(gap, 0.0) / square)
        shrink = 1 - lr * weight_decay / (1 + lr * weight_decay)
        p = {name: np.asarray(shrink * p[name] - rate * direction[name]) for name in row}
        trajectory.append(p)
    return trajectory


def all_of(reduce: Callable[..., float], *rows: Params) -> float:
    """A sum over elements, taken over all tensors."""
    return sum(reduce(*(row[name] for row in rows)) for name in rows[0])


def square_distance(here: Params, there: Params) -> float:
    return sum(square_norm(here[name] - there[name]) for name in here)


JOINT_LOOPS: dict[Key, JointLoop] = {
    ("dadapt_adamw", "optax"): dadapt_adamw,
    ("dog", "optax"): dog,
    ("dowg", "optax"): dowg,
    ("ldog", "optax"): ldog,
    ("momo", "optax"): momo,
    ("momo_adam", "optax"): momo_adam,
    ("polyak_sgd", "optax"): polyak_sgd,
    ("prodigy", "optax"): partial(prodigy, bias_correction=True),
}


def _moving(hyper: Hyper, grads: list[Array]) -> list[Array]:
    """Something has to come first: optax divides 0 by 0 as long as no tensor has had any gradient."""
    return [np.where(grads[0] == 0, 0.1, grads[0]), *grads[1:]] if grads else []


def _onward(rng: Generator, hyper: Hyper, params: Params, lrs: Sequence[float]) -> list[Params]:
    """Gradients that point the same way for a while, so that estimates of the distance grow; then noise alone."""
    slope = {name: rng.normal(size=param.shape) for name, param in params.items()}
    return [
        {name: np.asarray((step < 25) * at + 0.3 * rng.normal(size=at.shape)) for name, at in slope.items()}
        for step in range(len(lrs))
    ]


def _dog(rng: Generator) -> Hyper:
    return {"reps_rel": magnitude(rng, 1e-4, 1e-1), "eps": magnitude(rng, 1e-8, 1e-2), **decay(rng)}


def _dowg(rng: Generator) -> Hyper:
    return {
        "eps": magnitude(rng, 1e-5, 1e-1),
        "init_estim_sq_dist": magnitude(rng, 1e-3, 1e-1) if flag(rng) else None,
    }


def _dadapt(rng: Generator) -> Hyper:
    return {**betas_and_eps(rng), "d0": magnitude(rng, 1e-4, 1e-2), **decay(rng)}


def _prodigy(rng: Generator) -> Hyper:
    return {
        **_dadapt(rng),
        "beta3": between(rng, 0.9, 0.999) if flag(rng) else None,
        "d_coef": between(rng, 0.5, 2),
        "safeguard_warmup": flag(rng),
    }


def _polyak(rng: Generator) -> Hyper:
    return {
        "max_learning_rate": magnitude(rng, 1e-2, 1),
        "f_min": sometimes(rng, between(rng, 0, 0.5)),
        "eps": sometimes(rng, magnitude(rng, 1e-8, 1)),
        "variant": "sps+" if flag(rng) else "sps",
    }


def _bound(rng: Generator) -> Hyper:
    return {"lower_bound": sometimes(rng, between(rng, -1, 0.5)), **decay(rng)}


def _cases() -> tuple[Case, ...]:
    polyak = Case("polyak_sgd", "optax", _polyak, learning_rate=1.0, takes_loss=True, atol=5e-6)
    momo = Case(
        "momo", "optax", also(lambda rng: {"beta": between(rng, 0.5, 0.95)}, _bound), takes_loss=True, atol=5e-6
    )
    momo_adam = Case("momo_adam", "optax", also(betas_and_eps, _bound), takes_loss=True, atol=5e-6)

    # Where a step depends on how far the steps before it led, round-off grows.
    def feedback(name: str, sample: Callable[[Generator], Hyper]) -> Case:
        case = Case(name, "optax", sample, learning_rate=1.0, adjust=_moving)
        return replace(case, rtol=5e-3, atol=5e-4 if name == "prodigy" else 2e-5, float64=(1e-9, 1e-11))

    dog, ldog, dowg = feedback("dog", _dog), feedback("ldog", _dog), feedback("dowg", _dowg)
    dadapt, prodigy = feedback("dadapt_adamw", _dadapt), feedback("prodigy", _prodigy)

    def onward(case: Case, variant: str, **hyper: object) -> Case:
        return replace(case, variant=variant, sample=also(case.sample, only(**hyper)), objective=_onward)

    return (
        dadapt,
        onward(dadapt, "onward"),
        onward(dadapt, "weight_decay", weight_decay=0.05),
        replace(defaults(dadapt), objective=_onward),
        dog,
        onward(dog, "onward"),
        onward(dog, "weight_decay", weight_decay=0.05),
        replace(defaults(dog), objective=_onward),
        ldog,
        onward(ldog, "onward"),
        replace(defaults(ldog), objective=_onward),
        dowg,
        onward(dowg, "onward"),
        onward(dowg, "distance", init_estim_sq_dist=0.01),
        replace(defaults(dowg), objective=_onward),
        prodigy,
        onward(prodigy, "onward"),
        onward(prodigy, "safeguard_warmup", safeguard_warmup=True),
        onward(prodigy, "beta3", beta3=0.95, safeguard_warmup=False),
        onward(prodigy, "weight_decay", weight_decay=0.05),
        replace(fixed(prodigy, "uncorrected", outside=True, bias_correction=False), objective=_onward),
        replace(defaults(prodigy), objective=_onward),
        polyak,
        fixed(polyak, "sps", variant="sps", f_min=0.5),
        fixed(polyak, "sps+", variant="sps+", f_min=0.5),
        fixed(polyak, "limited", max_learning_rate=0.01),
        defaults(polyak),
        momo,
        fixed(momo, "lower_bound", lower_bound=0.5),
        fixed(momo, "weight_decay", weight_decay=0.05),
        replace(defaults(momo), learning_rate=1.0),
        momo_adam,
        fixed(momo_adam, "lower_bound", lower_bound=0.5),
        fixed(momo_adam, "weight_decay", weight_decay=0.05),
        replace(defaults(momo_adam), learning_rate=0.1),
    )


CASES = _cases()
