"""Optimizers whose reference is a paper, a package of its own, or a wrapper: FTRL, schedule-free, Prodigy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from tests.textbook.drawing import Case, also, between, decay, defaults, fixed, flag, magnitude, sometimes
from tests.textbook.keras import ftrl
from tests.textbook.loops import Array, Grads, Hyper, JointLoop, Key, Params, TensorLoop, dot, joint_steps, steps

Point = Literal["parameters", "evaluation"]


def schedule_free(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float | None = None,
    eps: float = 1e-8,
    r: float = 0.0,
    warmup_steps: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: float = 0.0,
    decay_form: Literal["direction", "before"] = "direction",
    warmup_from_zero: bool = False,
    point: Point = "parameters",
) -> list[Array]:
    """Schedule-free SGD, and with beta2 AdamW without its momentum.

        z = z - lr * u(y),  x = (1 - c) * x + c * z,  y = (1 - beta1) * z + beta1 * x

    c is this step's share of all weights so far, a weight being step**r * (largest lr so far)**weight_lr_power. The
    parameter that is given, and by default returned, is y, where the gradients are taken; point="evaluation" returns
    the average x. At the start all three are one.

    warmup_from_zero  optax's: z moves by the lr of the step before, 0 at first, while the weights use this step's
    decay_form        u += weight_decay * y, or Keras's y *= 1 - lr * weight_decay, with the lr before its warmup
    """
    y, z, trajectory = param, param, []
    exp_avg_sq = np.zeros_like(param)
    lr_max, weights = 0.0, 0.0
    for step, g, peak in steps(grads, lrs):
        if decay_form == "before":
            y = y * (1 - peak * weight_decay)
        weighing = peak * min(1.0, step / warmup_steps) if warmup_steps > 0 else peak
        moving = peak * min(1.0, (step - 1) / warmup_steps) if warmup_from_zero and warmup_steps > 0 else weighing

        lr_max = max(lr_max, weighing)
        weight = step**r * lr_max**weight_lr_power
        weights += weight
        c = weight / weights if weights > 0 else 0.0

        direction = g
        if beta2 is not None:
            exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
            direction = g / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
        if decay_form == "direction":
            direction = direction + weight_decay * y

        x = (y - (1 - beta1) * z) / beta1
        z = z - moving * direction
        x = (1 - c) * x + c * z
        y = (1 - beta1) * z + beta1 * x
        trajectory.append(np.asarray(y if point == "parameters" else x))
    return trajectory


class Prodigy:
    """Prodigy as prodigyopt has it: Adam whose learning rate is an estimate of the distance to the solution.

    The estimate d is one number for all tensors. It can only grow, and is new in eps but still the old one in the step.
    As long as no tensor has had any gradient, nothing happens and no step is counted.
    """

    def __init__(
        self,
        params: Params,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        beta3: float | None = None,
        eps: float = 1e-8,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
        safeguard_warmup: bool = False,
    ) -> None:
        self.params, self.start = dict(params), dict(params)
        self.beta1, self.beta2 = beta1, beta2
        self.beta3 = math.sqrt(beta2) if beta3 is None else beta3
        self.eps, self.d0, self.d_coef, self.weight_decay = eps, d0, d_coef, weight_decay
        self.bias_correction, self.safeguard_warmup = bias_correction, safeguard_warmup
        self.exp_avg = {name: np.zeros_like(param) for name, param in params.items()}
        self.exp_avg_sq = dict(self.exp_avg)
        self.grad_sum = dict(self.exp_avg)
        self.d, self.numerator, self.count = d0, 0.0, 0

    def step(self, grads: Params, lr: float) -> Params:
        t, d = self.count + 1, self.d
        correction = math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t) if self.bias_correction else 1.0
        dlr = d * lr * correction
        weight = d / self.d0 * (d if self.safeguard_warmup else dlr)
        travelled, length = 0.0, 0.0
        for name, g in grads.items():
            self.exp_avg[name] = self.beta1 * self.exp_avg[name] + (1 - self.beta1) * d * g
            self.exp_avg_sq[name] = self.beta2 * self.exp_avg_sq[name] + (1 - self.beta2) * d * d * (g * g)
            self.grad_sum[name] = self.beta3 * self.grad_sum[name] + weight * g
            travelled += dot(g, self.start[name] - self.params[name])
            length += float(np.sum(np.abs(self.grad_sum[name]), dtype=np.float64))
        if length > 0:
            self.count = t
            self.numerator = self.beta3 * self.numerator + d / self.d0 * dlr * travelled
            self.d = max(d, self.d_coef * self.numerator / length)
            for name in grads:
                p = self.params[name]
                direction = self.exp_avg[name] / (np.sqrt(self.exp_avg_sq[name]) + self.d * self.eps)
                self.params[name] = np.asarray(p - dlr * self.weight_decay * p - dlr * direction)
        return dict(self.params)


def prodigy(params: Params, grads: Sequence[Grads], lrs: Sequence[float], **hyper: Any) -> list[Params]:
    optimizer = Prodigy(params, **hyper)
    return [optimizer.step(row, lr) for _, row, lr in joint_steps(grads, lrs)]


_adamw = partial(schedule_free, beta2=0.999)

LOOPS: dict[Key, TensorLoop] = {
    # One definition serves both flavors: McMahan's lambda2 is 2 * l2, and nothing has been accumulated at the start.
    ("ftrl", "mcmahan"): partial(ftrl, initial_accumulator_value=0.0, beta=1.0),
    ("schedule_free_sgd", "schedulefree"): schedule_free,
    ("schedule_free_sgd", "optax"): partial(schedule_free, warmup_from_zero=True),
    ("schedule_free_adamw", "schedulefree"): _adamw,
    ("schedule_free_adamw", "optax"): partial(_adamw, warmup_from_zero=True),
    # Keras weighs all steps alike.
    ("schedule_free_adamw", "keras"): partial(_adamw, weight_lr_power=0.0, decay_form="before"),
}


JOINT_LOOPS: dict[Key, JointLoop] = {("prodigy", "prodigyopt"): prodigy}


def _mcmahan(rng: Generator) -> Hyper:
    return {
        "l1": sometimes(rng, magnitude(rng, 1e-2, 1)),
        "l2": sometimes(rng, magnitude(rng, 1e-2, 1)),
        "beta": between(rng, 0.1, 2),
    }


def _schedule_free(rng: Generator) -> Hyper:
    return {"beta1": between(rng, 0.5, 0.98), "warmup_steps": float(rng.integers(2, 40)) if flag(rng) else 0.0}


def _weighted(rng: Generator) -> Hyper:
    return {"weight_lr_power": between(rng, 0, 3)}


def _scaled(rng: Generator) -> Hyper:
    return {"beta2": between(rng, 0.9, 0.9999), "eps": magnitude(rng, 1e-8, 1e-3)}


def _prodigy(rng: Generator) -> Hyper:
    return {
        "beta1": between(rng, 0.5, 0.95),
        "beta2": between(rng, 0.9, 0.9999),
        "beta3": between(rng, 0.9, 0.9999) if flag(rng) else None,
        "eps": magnitude(rng, 1e-8, 1e-4),
        # Much less, and float32 loses a step that small, and with it what the estimate is made of.
        "d0": magnitude(rng, 1e-3, 1e-1),
        "d_coef": between(rng, 0.3, 3),
        "bias_correction": flag(rng),
        "safeguard_warmup": flag(rng),
        **decay(rng),
    }


def _bowl(rng: Generator, hyper: Hyper, params: Params, lrs: Sequence[float]) -> list[Params]:
    """Noisy gradients of a bowl, where Prodigy itself goes: unrelated ones would leave its estimate where it starts."""
    centre = {name: rng.normal(size=param.shape) for name, param in params.items()}
    curvature = {name: rng.uniform(0.1, 1, size=param.shape) for name, param in params.items()}
    arguments: dict[str, Any] = dict(hyper)
    optimizer, rows = Prodigy(params, **arguments), []
    for lr in lrs:
        row = {}
        for name, p in optimizer.params.items():
            row[name] = np.asarray(curvature[name] * (p - centre[name]) + 0.1 * rng.normal(size=p.shape))
        optimizer.step(row, lr)
        rows.append(row)
    return rows


def _cases() -> tuple[Case, ...]:
    mcmahan = Case("ftrl", "mcmahan", _mcmahan, learning_rate=0.1)
    sgd = Case("schedule_free_sgd", "schedulefree", also(_schedule_free, _weighted, decay))
    sgd_optax = Case("schedule_free_sgd", "optax", also(_schedule_free, _weighted, decay))
    adamw = Case("schedule_free_adamw", "schedulefree", also(_schedule_free, _weighted, _scaled, decay))
    adamw_optax = Case("schedule_free_adamw", "optax", also(_schedule_free, _weighted, _scaled, decay))
    adamw_keras = Case("schedule_free_adamw", "keras", also(_schedule_free, _scaled, decay))
    prodigy = Case("prodigy", "prodigyopt", _prodigy, learning_rate=1.0, rtol=5e-3, atol=5e-5, objective=_bowl)

    return (
        mcmahan,
        fixed(mcmahan, "l1", l1=0.3),
        fixed(mcmahan, "l2", l2=0.3),
        defaults(mcmahan),
        sgd,
        fixed(sgd, "warmup", warmup_steps=30.0),
        fixed(sgd, "r", r=1.0),
        fixed(sgd, "unweighted", weight_lr_power=0.0),
        fixed(sgd, "weight_decay", weight_decay=0.05),
        defaults(sgd),
        sgd_optax,
        fixed(sgd_optax, "warmup", warmup_steps=30.0),
        fixed(sgd_optax, "r", outside=True, r=1.0),
        fixed(sgd_optax, "weight_decay", weight_decay=0.05),
        defaults(sgd_optax),
        adamw,
        fixed(adamw, "warmup", warmup_steps=30.0),
        fixed(adamw, "r", r=1.0),
        fixed(adamw, "unweighted", weight_lr_power=0.0),
        fixed(adamw, "weight_decay", weight_decay=0.05),
        defaults(adamw),
        adamw_optax,
        fixed(adamw_optax, "warmup", warmup_steps=30.0),
        fixed(adamw_optax, "weight_decay", weight_decay=0.05),
        defaults(adamw_optax),
        adamw_keras,
        fixed(adamw_keras, "warmup", warmup_steps=30.0),
        fixed(adamw_keras, "weighted", outside=True, weight_lr_power=2.0),
        fixed(adamw_keras, "weight_decay", weight_decay=0.05),
        defaults(adamw_keras),
        prodigy,
        fixed(prodigy, "bias_correction", bias_correction=True),
        fixed(prodigy, "safeguard_warmup", safeguard_warmup=True),
        fixed(prodigy, "beta3", beta3=0.95),
        fixed(prodigy, "weight_decay", weight_decay=0.05),
        # The first steps are of 1e-6. On parameters of 1, float32 keeps one digit of them, and the estimate is made of
        # that: the package's own float32 run then ends 1 or 2 away from its float64 run. From 0 all digits are there.
        replace(defaults(prodigy), start=0.0),
    )


CASES = _cases()
