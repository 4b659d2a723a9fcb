"""The optimizers that several frameworks have, one plain loop each, and `LOOPS`, which says what each flavor sets.

Every loop takes one tensor's parameter, its gradients and learning rates step by step, and returns the parameter after
every step. Its state starts inside. Arrays are float32 or float64 of any shape, 0-d and empty included, and stay in
their dtype: all that depends only on hyperparameters and the step is a Python float (a `np.float64` scalar would
promote float32 arrays, NEP 50), so pass Python floats.

Words that recur. `eps` is added outside the root, `eps_root` inside it. `decay_form` says what `weight_decay` does:

    "l2"      g += weight_decay * p              before the moments            torch, and optax unless named *w
    "before"  p *= 1 - lr * weight_decay         before the step               torch.adamw, keras
    "added"   direction += weight_decay * p      then scaled by lr             optax.adamw

`maximize` negates the gradient, never the decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from tests.textbook.loops import Array, DecayForm, Key, TensorLoop, steps


def sgd(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """torch.optim.SGD and optax.sgd: the buffer sums gradients, the current lr scales all of it."""
    p, buffer, trajectory = param, None, []
    for _, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        g = g + weight_decay * p
        if momentum == 0:
            direction = g
        else:
            # The first gradient enters whole: torch dampens only from the second step on.
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            direction = g + momentum * buffer if nesterov else buffer
        p = p - lr * direction
        trajectory.append(np.asarray(p))
    return trajectory


def sgd_keras(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    lr_in_momentum: bool = True,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """keras.optimizers.SGD: a velocity that has the lr of its day in it; lr_in_momentum=False takes it out again."""
    p, velocity, trajectory = param, np.zeros_like(param), []
    for _, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        p = p * (1 - lr * weight_decay)
        if lr_in_momentum:
            velocity = momentum * velocity - lr * g
            p = p + momentum * velocity - lr * g if nesterov else p + velocity
        else:
            velocity = momentum * velocity - g
            p = p + lr * (momentum * velocity - g) if nesterov else p + lr * velocity
        trajectory.append(np.asarray(p))
    return trajectory


def nag(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    momentum: float,
    serve: Literal["lookahead", "theta"] = "lookahead",
) -> list[Array]:
    """Nesterov's accelerated gradient as the lecture writes it, lr inside the velocity.

        u = momentum * u + lr * g(theta - momentum * u),  theta = theta - u

    The parameter that is given, and by default returned, is the look-ahead point theta - momentum * u at which the next
    gradient is taken; serve="theta" returns theta. The velocity starts at zero, where the two are one.
    """
    theta, velocity, trajectory = param, np.zeros_like(param), []
    for _, g, lr in steps(grads, lrs):
        velocity = momentum * velocity + lr * g
        theta = theta - velocity
        lookahead = theta - momentum * velocity
        trajectory.append(np.asarray(lookahead if serve == "lookahead" else theta))
    return trajectory


def adagrad(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    lr_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    eps_root: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay_form: DecayForm = "l2",
    maximize: bool = False,
) -> list[Array]:
    """AdaGrad; `momentum` is the lecture's open idea, a buffer after the scaling, without dampening and without lr."""
    p, trajectory = param, []
    total = np.full_like(param, initial_accumulator_value)
    buffer = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        if decay_form == "l2":
            g = g + weight_decay * p
        else:
            p = p * (1 - lr * weight_decay)
        total = total + g * g
        direction = g / (np.sqrt(total + eps_root) + eps)
        if momentum != 0:
            buffer = momentum * buffer + direction
            direction = buffer
        p = p - lr / (1 + (step - 1) * lr_decay) * direction
        trajectory.append(np.asarray(p))
    return trajectory


def rmsprop(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    alpha: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    centered: bool = False,
    momentum: float = 0.0,
    nesterov: bool = False,
    lr_in_momentum: bool = False,
    initial_scale: float = 0.0,
    bias_correction: bool = False,
    weight_decay: float = 0.0,
    decay_form: DecayForm = "l2",
    maximize: bool = False,
) -> list[Array]:
    """RMSprop; centered, the scale is a running standard deviation instead of a root mean square.

    bias_correction is optax's: both running means are divided by 1 - alpha**t, also when initial_scale is not zero.
    """
    p, trajectory = param, []
    square_avg = np.full_like(param, initial_scale)
    grad_avg = np.zeros_like(param)
    buffer = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        if decay_form == "l2":
            g = g + weight_decay * p
        else:
            p = p * (1 - lr * weight_decay)

        square_avg = alpha * square_avg + (1 - alpha) * (g * g)
        grad_avg = alpha * grad_avg + (1 - alpha) * g
        correction = 1 - alpha**step if bias_correction else 1.0
        variance = square_avg / correction
        if centered:
            mean = grad_avg / correction
            variance = variance - mean * mean
        direction = g / (np.sqrt(variance + eps_root) + eps)

        if momentum == 0:
            p = p - lr * direction
        elif lr_in_momentum:
            buffer = momentum * buffer + lr * direction
            p = p - (momentum * buffer + lr * direction if nesterov else buffer)
        else:
            buffer = momentum * buffer + direction
            p = p - lr * (momentum * buffer + direction if nesterov else buffer)
        trajectory.append(np.asarray(p))
    return trajectory


def adadelta(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    decay_form: DecayForm = "l2",
    maximize: bool = False,
) -> list[Array]:
    """AdaDelta: the ratio of two running means, of past steps and of gradients; the lr stays out of the former."""
    p, trajectory = param, []
    square_avg = np.zeros_like(param)
    acc_delta = np.zeros_like(param)
    for _, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        if decay_form == "l2":
            g = g + weight_decay * p
        else:
            p = p * (1 - lr * weight_decay)
        square_avg = rho * square_avg + (1 - rho) * (g * g)
        delta = np.sqrt(acc_delta + eps) / np.sqrt(square_avg + eps) * g
        acc_delta = rho * acc_delta + (1 - rho) * (delta * delta)
        p = p - lr * delta
        trajectory.append(np.asarray(p))
    return trajectory


def adadelta_ratio(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    rho: float = 0.9,
    eps: float = 1e-6,
) -> list[Array]:
    """The lecture's misprinted AdaDelta: the numerator is the gradients' own mean, one step old. Nearly plain SGD."""
    p, trajectory = param, []
    square_avg = np.zeros_like(param)
    for _, g, lr in steps(grads, lrs):
        previous = square_avg
        square_avg = rho * previous + (1 - rho) * (g * g)
        ratio = np.sqrt((previous + eps) / (square_avg + eps))
        p = p - lr * ratio * g
        trajectory.append(np.asarray(p))
    return trajectory


def adam(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    eps_hat: bool = False,
    bias_correction: bool = True,
    nesterov: bool = False,
    amsgrad: bool = False,
    amsgrad_corrected: bool = False,
    weight_decay: float = 0.0,
    decay_form: DecayForm = "l2",
    maximize: bool = False,
) -> list[Array]:
    """Adam and AdamW.

    eps_hat       eps joins before the correction: (sqrt(v) + eps) / sqrt(bc2) instead of sqrt(v / bc2) + eps.
    nesterov      optax's: the mean looks one step ahead, with the gradient of this step in the place of the next one.
    amsgrad       the maximum is of v itself (torch, keras); amsgrad_corrected, of v / bc2 (optax).
    """
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    max_exp_avg_sq = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        if decay_form == "l2":
            g = g + weight_decay * p
        elif decay_form == "before":
            p = p * (1 - lr * weight_decay)

        bc1 = 1 - beta1**step if bias_correction else 1.0
        bc1_next = 1 - beta1 ** (step + 1) if bias_correction else 1.0
        bc2 = 1 - beta2**step if bias_correction else 1.0

        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)

        if nesterov:
            numerator = beta1 * exp_avg / bc1_next + (1 - beta1) * g / bc1
        else:
            numerator = exp_avg / bc1

        if amsgrad and amsgrad_corrected:
            max_exp_avg_sq = np.maximum(max_exp_avg_sq, exp_avg_sq / bc2)
            denominator = np.sqrt(max_exp_avg_sq + eps_root) + eps
        else:
            max_exp_avg_sq = np.maximum(max_exp_avg_sq, exp_avg_sq)
            raw = max_exp_avg_sq if amsgrad else exp_avg_sq
            if eps_hat:
                denominator = (np.sqrt(raw + eps_root) + eps) / math.sqrt(bc2)
            else:
                denominator = np.sqrt(raw / bc2 + eps_root) + eps

        direction = numerator / denominator
        if decay_form == "added":
            direction = direction + weight_decay * p
        p = p - lr * direction
        trajectory.append(np.asarray(p))
    return trajectory


def adamax(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """torch.optim.Adamax and optax.adamax: eps is added to |g|, inside the maximum, and so enters the state."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_inf = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        g = g + weight_decay * p
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_inf = np.maximum(beta2 * exp_inf, np.abs(g) + eps)
        p = p - lr / (1 - beta1**step) * exp_avg / exp_inf
        trajectory.append(np.asarray(p))
    return trajectory


def adamax_keras(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-7,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """keras.optimizers.Adamax: eps is added to the denominator and stays out of the state."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_inf = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        p = p * (1 - lr * weight_decay)
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_inf = np.maximum(beta2 * exp_inf, np.abs(g))
        p = p - lr / (1 - beta1**step) * exp_avg / (exp_inf + eps)
        trajectory.append(np.asarray(p))
    return trajectory


def nadam(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """NAdam of torch (momentum_decay 0.004) and keras (momentum_decay 1): beta1 warms up from half its value."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    mu_product = 1.0
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        if decoupled_weight_decay:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p

        mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
        mu_product = mu_product * mu

        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        denominator = np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps
        p = p - lr * (1 - mu) / (1 - mu_product) * g / denominator
        p = p - lr * mu_next / (1 - mu_product * mu_next) * exp_avg / denominator
        trajectory.append(np.asarray(p))
    return trajectory


def nadam_constant(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> list[Array]:
    """optax.nadam: the same step with mu = beta1 throughout, so that the product is beta1**t."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        denominator = np.sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
        p = p - lr * (1 - beta1) / (1 - beta1**step) * g / denominator
        p = p - lr * beta1 / (1 - beta1 ** (step + 1)) * exp_avg / denominator
        trajectory.append(np.asarray(p))
    return trajectory


adamw = partial(adam, decay_form="before")

LOOPS: dict[Key, TensorLoop] = {
    ("sgd", "torch"): sgd,
    ("sgd", "optax"): sgd,
    ("sgd", "keras"): sgd_keras,
    ("nag", "lecture"): nag,
    ("adagrad", "torch"): adagrad,
    ("adagrad", "optax"): partial(adagrad, eps=0.0, eps_root=1e-7, initial_accumulator_value=0.1),
    ("adagrad", "keras"): partial(adagrad, eps=0.0, eps_root=1e-7, initial_accumulator_value=0.1, decay_form="before"),
    ("adagrad", "lecture"): partial(adagrad, eps=0.0, eps_root=1e-8),
    ("rmsprop", "torch"): rmsprop,
    ("rmsprop", "optax"): partial(rmsprop, alpha=0.9, eps=0.0, eps_root=1e-8, lr_in_momentum=True),
    ("rmsprop", "keras"): partial(rmsprop, alpha=0.9, eps=0.0, eps_root=1e-7, lr_in_momentum=True, decay_form="before"),
    ("rmsprop", "lecture"): partial(rmsprop, alpha=0.9, eps=0.0, eps_root=1e-8),
    ("adadelta", "torch"): adadelta,
    ("adadelta", "optax"): adadelta,
    ("adadelta", "keras"): partial(adadelta, rho=0.95, eps=1e-7, decay_form="before"),
    ("adadelta", "lecture"): adadelta,
    ("adadelta_ratio", "lecture"): adadelta_ratio,
    ("adam", "torch"): adam,
    ("adam", "optax"): partial(adam, amsgrad_corrected=True),
    ("adam", "keras"): partial(adam, eps=1e-7, eps_hat=True, decay_form="before"),
    ("adam", "lecture"): adam,
    ("adam", "lecture_schedule"): partial(adam, bias_correction=False, eps=0.0, eps_root=1e-8),
    ("amsgrad", "optax"): partial(adam, amsgrad=True, amsgrad_corrected=True),
    ("adamax", "torch"): adamax,
    ("adamax", "optax"): adamax,
    ("adamax", "keras"): adamax_keras,
    ("adamax", "lecture"): adamax,  # the notes only name it
    ("adamw", "torch"): partial(adamw, weight_decay=1e-2),
    ("adamw", "optax"): partial(adam, decay_form="added", weight_decay=1e-4, amsgrad_corrected=True),
    ("adamw", "keras"): partial(adamw, eps=1e-7, eps_hat=True, weight_decay=4e-3),
    ("nadam", "torch"): nadam,
    ("nadam", "optax"): nadam_constant,
    ("nadam", "keras"): partial(nadam, eps=1e-7, momentum_decay=1.0, decoupled_weight_decay=True),
}
