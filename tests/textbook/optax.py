"""The optimizers that optax has and that treat every element by itself: their loops, and the rows to try them with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.random import Generator

from tests.textbook.drawing import (
    Case,
    also,
    betas,
    betas_and_eps,
    between,
    decay,
    defaults,
    eps_root,
    fixed,
    magnitude,
    nesterov,
    only,
)
from tests.textbook.loops import Array, Hyper, Key, TensorLoop, ema, steps


def adabelief(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    nesterov: bool = False,
) -> list[Array]:
    """AdaBelief: Adam, scaled by how far gradients are from their mean; eps_root joins the state at every step."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    variance = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, beta1)
        variance = ema(variance, np.square(g - exp_avg), beta2) + eps_root
        if nesterov:
            mean = beta1 * exp_avg / (1 - beta1 ** (step + 1)) + (1 - beta1) * g / (1 - beta1**step)
        else:
            mean = exp_avg / (1 - beta1**step)
        p = p - lr * mean / (np.sqrt(variance / (1 - beta2**step)) + eps)
        trajectory.append(np.asarray(p))
    return trajectory


def acprop(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    weight_decay: float = 0.0,
) -> list[Array]:
    """ACProp: the gradient over the spread of the gradients before it, which is 1 at the first step."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    variance = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        before = variance / (1 - beta2 ** (step - 1)) if step > 1 else np.ones_like(param)
        variance = ema(variance, np.square(g - exp_avg), beta2) + eps_root
        exp_avg = ema(exp_avg, g, beta1)
        p = p - lr * (g / (np.sqrt(before) + eps) + weight_decay * p)
        trajectory.append(np.asarray(p))
    return trajectory


def yogi(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-3,
    initial_accumulator_value: float = 1e-6,
) -> list[Array]:
    """Yogi: Adam whose second moment moves by the squared gradient, whatever its distance.

    Both means start at the initial value, and are corrected for a start at zero all the same.
    """
    p, trajectory = param, []
    exp_avg = np.full_like(param, initial_accumulator_value)
    exp_avg_sq = np.full_like(param, initial_accumulator_value)
    for step, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, beta1)
        exp_avg_sq = exp_avg_sq - (1 - beta2) * np.sign(exp_avg_sq - g * g) * (g * g)
        scale = np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps
        p = p - lr * exp_avg / (1 - beta1**step) / scale
        trajectory.append(np.asarray(p))
    return trajectory


def radam(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
) -> list[Array]:
    """optax.radam: rectified from `threshold` on, itself included; eps joins after the bias correction."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    rho_inf = 2 / (1 - beta2) - 1
    for step, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, beta1)
        exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
        bc2 = 1 - beta2**step
        rho = rho_inf - 2 * step * beta2**step / bc2
        direction = exp_avg / (1 - beta1**step)
        if rho >= threshold:
            rectified = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            direction = math.sqrt(rectified) * direction / (np.sqrt(exp_avg_sq / bc2 + eps_root) + eps)
        p = p - lr * direction
        trajectory.append(np.asarray(p))
    return trajectory


def adamaxw(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> list[Array]:
    """optax.adamaxw: Adamax with eps inside the maximum, and decay of the parameter itself."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_inf = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, beta1)
        exp_inf = np.maximum(beta2 * exp_inf, np.abs(g) + eps)
        p = p - lr * (exp_avg / (1 - beta1**step) / exp_inf + weight_decay * p)
        trajectory.append(np.asarray(p))
    return trajectory


def adan(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.98,
    beta2: float = 0.92,
    beta3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 1e-8,
    weight_decay: float = 0.0,
) -> list[Array]:
    """Adan: means of the gradient, of its change, and of the square of the gradient moved on by its change."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_diff = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    previous = grads[0] if grads else param
    for step, g, lr in steps(grads, lrs):
        change, previous = g - previous, g
        exp_avg = ema(exp_avg, g, beta1)
        exp_avg_diff = ema(exp_avg_diff, change, beta2)
        exp_avg_sq = ema(exp_avg_sq, np.square(g + (1 - beta2) * change), beta3)
        numerator = exp_avg / (1 - beta1**step) + (1 - beta2) * exp_avg_diff / (1 - beta2**step)
        direction = numerator / (np.sqrt(exp_avg_sq / (1 - beta3**step) + eps_root) + eps)
        p = p - lr * (direction + weight_decay * p)
        trajectory.append(np.asarray(p))
    return trajectory


def lion(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 1e-3,
) -> list[Array]:
    """Lion: the sign of one interpolation is the step, another one is kept."""
    p, exp_avg, trajectory = param, np.zeros_like(param), []
    for _, g, lr in steps(grads, lrs):
        p = p - lr * (np.sign(ema(exp_avg, g, beta1)) + weight_decay * p)
        exp_avg = ema(exp_avg, g, beta2)
        trajectory.append(np.asarray(p))
    return trajectory


def signum(param: Array, grads: Sequence[Array], lrs: Sequence[float], *, momentum: float = 0.9) -> list[Array]:
    """The sign of the mean gradient; without momentum, sign_sgd."""
    p, exp_avg, trajectory = param, np.zeros_like(param), []
    for _, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, momentum)
        p = p - lr * np.sign(exp_avg)
        trajectory.append(np.asarray(p))
    return trajectory


def ademamix(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    alpha: float = 5.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    beta3: float = 0.9999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Array]:
    """AdEMAMix: Adam with a second, slow mean, which is not corrected for its start at zero."""
    p, trajectory = param, []
    fast = np.zeros_like(param)
    slow = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        fast = ema(fast, g, beta1)
        slow = ema(slow, g, beta3)
        exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
        scale = np.sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
        p = p - lr * ((fast / (1 - beta1**step) + alpha * slow) / scale + weight_decay * p)
        trajectory.append(np.asarray(p))
    return trajectory


def simplified_ademamix(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    alpha: float = 0.0,
    beta1: float = 0.99,
    beta2: float = 0.95,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Array]:
    """The same with one mean, which is a sum, and the gradient itself in the place of the other."""
    p, trajectory = param, []
    total = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        total = beta1 * total + g
        exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
        scale = np.sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
        p = p - lr * ((total + alpha * g) / scale + weight_decay * p)
        trajectory.append(np.asarray(p))
    return trajectory


def adopt(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.9999,
    eps: float = 1e-6,
    nesterov: bool = False,
    use_clipping: bool = True,
) -> list[Array]:
    """ADOPT: the gradient over the root of the second moment before it. The first gradient only starts that moment."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    for step, g, lr in steps(grads, lrs):
        if step == 1:
            exp_avg_sq = g * g
        else:
            update = g / np.maximum(np.sqrt(exp_avg_sq), eps)
            if use_clipping:
                update = np.clip(update, -((step - 1) ** 0.25), (step - 1) ** 0.25)
            exp_avg = ema(exp_avg, update, beta1)
            exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
            p = p - lr * (ema(exp_avg, update, beta1) if nesterov else exp_avg)
        trajectory.append(np.asarray(p))
    return trajectory


def madgrad(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    momentum: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> list[Array]:
    """MADGRAD: dual averaging from the first parameter, scaled by a cube root; the parameter follows at a distance."""
    p, start, trajectory = param, param, []
    square_sum = np.zeros_like(param)
    total = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = grad + weight_decay * p
        weight = (lr + eps) * math.sqrt(step)
        square_sum = square_sum + weight * (g * g)
        total = total + weight * g
        target = start - total / (np.cbrt(square_sum) + eps)
        p = (1 - momentum) * target + momentum * p
        trajectory.append(np.asarray(p))
    return trajectory


def cocob(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    alpha: float = 100.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> list[Array]:
    """COCOB: betting on a coin instead of a learning rate; what is given for one scales the gradient."""
    p, start, trajectory = param, param, []
    largest = np.full_like(param, eps)
    travelled = np.zeros_like(param)
    reward = np.zeros_like(param)
    total = np.zeros_like(param)
    for _, grad, lr in steps(grads, lrs):
        g = lr * (grad + weight_decay * p)
        largest = np.maximum(largest, np.abs(g))
        travelled = travelled + np.abs(g)
        reward = np.maximum(reward - g * (p - start), 0)
        total = total - g
        bet = total / (largest * np.maximum(travelled + largest, alpha * largest))
        p = start + bet * (largest + reward)
        trajectory.append(np.asarray(p))
    return trajectory


def optimistic_gradient_descent(
    param: Array, grads: Sequence[Array], lrs: Sequence[float], *, alpha: float = 1.0, beta: float = 1.0
) -> list[Array]:
    """The gradient, moved on by its change since the step before."""
    p, trajectory = param, []
    previous = grads[0] if grads else param
    for _, g, lr in steps(grads, lrs):
        p = p - lr * ((alpha + beta) * g - beta * previous)
        previous = g
        trajectory.append(np.asarray(p))
    return trajectory


def optimistic_adam(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = True,
) -> list[Array]:
    """optax.optimistic_adam_v2: the same with Adam's direction in the place of the gradient."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    previous = param
    for step, g, lr in steps(grads, lrs):
        exp_avg = ema(exp_avg, g, beta1)
        exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
        if nesterov:
            mean = beta1 * exp_avg / (1 - beta1 ** (step + 1)) + (1 - beta1) * g / (1 - beta1**step)
        else:
            mean = exp_avg / (1 - beta1**step)
        direction = mean / (np.sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps)
        previous = direction if step == 1 else previous
        p = p - lr * ((alpha + beta) * direction - beta * previous)
        previous = direction
        trajectory.append(np.asarray(p))
    return trajectory


LOOPS: dict[Key, TensorLoop] = {
    ("acprop", "optax"): acprop,
    ("adabelief", "optax"): adabelief,
    ("adamaxw", "optax"): adamaxw,
    ("adan", "optax"): adan,
    ("ademamix", "optax"): ademamix,
    ("adopt", "optax"): adopt,
    ("cocob", "optax"): cocob,
    ("lion", "optax"): lion,
    ("madgrad", "optax"): madgrad,
    ("optimistic_adam", "optax"): optimistic_adam,
    ("optimistic_gradient_descent", "optax"): optimistic_gradient_descent,
    ("radam", "optax"): radam,
    ("sign_sgd", "optax"): partial(signum, momentum=0.0),
    ("signum", "optax"): signum,
    ("simplified_ademamix", "optax"): simplified_ademamix,
    ("yogi", "optax"): yogi,
}


# Gradients that keep the argument of a sign away from 0, where round-off would decide between two steps.


def _away_from_turning(
    hyper: Hyper, grads: list[Array], *, names: tuple[str, str], usual: tuple[float, float]
) -> list[Array]:
    """For the sign of b * m + (1 - b) * g, with a mean m of its own decay."""
    leading, kept = (float(hyper.get(name, value)) for name, value in zip(names, usual, strict=True))  # type: ignore[arg-type]
    mean, mended = np.zeros_like(grads[0]), []
    for g in grads:
        old, new = leading * mean, (1 - leading) * g
        g = np.where(np.abs(old + new) < 1e-3 * (np.abs(old) + np.abs(new)), 1.05 * g, g)
        mean = ema(mean, g, kept)
        mended.append(np.asarray(g))
    return mended


_away_lion = partial(_away_from_turning, names=("beta1", "beta2"), usual=(0.9, 0.99))
_away_signum = partial(_away_from_turning, names=("momentum", "momentum"), usual=(0.9, 0.9))


def _away_yogi(hyper: Hyper, grads: list[Array]) -> list[Array]:
    """For the sign of v - g * g."""
    kept = float(hyper.get("beta2", 0.999))  # type: ignore[arg-type]
    square = np.full_like(grads[0], float(hyper.get("initial_accumulator_value", 1e-6)))  # type: ignore[arg-type]
    mended = []
    for g in grads:
        g = np.where(np.abs(square - g * g) < 1e-3 * (square + g * g), 1.05 * g, g)
        square = square - (1 - kept) * np.sign(square - g * g) * (g * g)
        mended.append(np.asarray(g))
    return mended


def _without_zeros(hyper: Hyper, grads: list[Array]) -> list[Array]:
    return [np.asarray(np.where(g == 0, 0.1 * (-1.0) ** step, g)) for step, g in enumerate(grads)]


def _adabelief(rng: Generator) -> Hyper:
    return {
        **betas(rng),
        "eps": magnitude(rng, 1e-10, 1e-3),
        "eps_root": magnitude(rng, 1e-8, 1e-3),
    }


def _adan(rng: Generator) -> Hyper:
    return {
        "beta1": between(rng, 0.8, 0.99),
        "beta2": between(rng, 0.7, 0.99),
        "beta3": between(rng, 0.9, 0.999),
        "eps": magnitude(rng, 1e-8, 1e-3),
        "eps_root": magnitude(rng, 1e-8, 1e-3),
    }


def _lion(rng: Generator) -> Hyper:
    return {"beta1": between(rng, 0.5, 0.95), "beta2": between(rng, 0.8, 0.99)}


def _ademamix(rng: Generator) -> Hyper:
    return {"alpha": between(rng, 0, 8), "beta3": between(rng, 0.99, 0.9999)}


def _adopt(rng: Generator) -> Hyper:
    return {**betas(rng), "eps": magnitude(rng, 1e-6, 1e-2), "use_clipping": True}


def _madgrad(rng: Generator) -> Hyper:
    return {"momentum": between(rng, 0, 0.95), "eps": magnitude(rng, 1e-6, 1e-3)}


def _cocob(rng: Generator) -> Hyper:
    return {"alpha": magnitude(rng, 1, 200), "eps": magnitude(rng, 1e-8, 1e-3)}


def _optimism(rng: Generator) -> Hyper:
    return {"alpha": between(rng, 0.3, 1.5), "beta": between(rng, 0, 1.5)}


def _cases() -> tuple[Case, ...]:
    # Near gradients are subtracted, from each other or from their mean, and float32 loses what they share.
    acprop = Case("acprop", "optax", also(_adabelief, decay), rtol=2e-3, atol=2e-5)
    adabelief = Case("adabelief", "optax", also(_adabelief, nesterov), rtol=2e-3, atol=2e-5)
    adamaxw = Case("adamaxw", "optax", also(betas_and_eps, decay))
    adan = Case("adan", "optax", also(_adan, decay))
    ademamix = Case("ademamix", "optax", also(betas_and_eps, _ademamix, eps_root, decay))
    adopt = Case("adopt", "optax", also(_adopt, nesterov))
    # The reward of a step depends on where the steps before it led.
    cocob = Case("cocob", "optax", also(_cocob, decay), learning_rate=2.0, rtol=1e-3, atol=1e-4)
    lion = Case("lion", "optax", also(_lion, decay), adjust=_away_lion)
    madgrad = Case("madgrad", "optax", also(_madgrad, decay))
    optimistic_adam = Case("optimistic_adam", "optax", also(betas_and_eps, eps_root, _optimism, nesterov))
    optimistic = Case("optimistic_gradient_descent", "optax", _optimism)
    radam = Case("radam", "optax", also(betas_and_eps, eps_root, lambda rng: {"threshold": between(rng, 4.5, 9)}))
    signum = Case("signum", "optax", lambda rng: {"momentum": between(rng, 0.3, 0.95)}, adjust=_away_signum)
    simplified = Case("simplified_ademamix", "optax", also(betas_and_eps, eps_root, decay), atol=5e-6)  # long steps
    yogi = Case("yogi", "optax", betas_and_eps, adjust=_away_yogi)
    return (
        acprop,
        fixed(acprop, "weight_decay", weight_decay=0.05),
        replace(defaults(acprop), adjust=_without_zeros),
        adabelief,
        fixed(adabelief, "plain", nesterov=False),
        fixed(adabelief, "nesterov", nesterov=True),
        defaults(adabelief),
        adamaxw,
        fixed(adamaxw, "weight_decay", weight_decay=0.05),
        defaults(adamaxw),
        adan,
        fixed(adan, "weight_decay", weight_decay=0.05),
        defaults(adan),
        ademamix,
        fixed(ademamix, "slow", alpha=5.0, beta3=0.9),
        fixed(ademamix, "weight_decay", weight_decay=0.05),
        defaults(ademamix),
        adopt,
        fixed(adopt, "plain", nesterov=False),
        fixed(adopt, "nesterov", nesterov=True),
        fixed(adopt, "unclipped", use_clipping=False, eps=0.01),
        defaults(adopt),
        cocob,
        replace(fixed(cocob, "weight_decay", weight_decay=0.05), adjust=_without_zeros),
        fixed(cocob, "bold", alpha=1.0),
        replace(defaults(cocob), learning_rate=1.0),
        lion,
        fixed(lion, "weight_decay", weight_decay=0.05),
        defaults(lion),
        madgrad,
        fixed(madgrad, "plain", momentum=0.0),
        fixed(madgrad, "weight_decay", weight_decay=0.05),
        defaults(madgrad),
        optimistic_adam,
        fixed(optimistic_adam, "plain", nesterov=False),
        fixed(optimistic_adam, "nesterov", nesterov=True),
        defaults(optimistic_adam),
        optimistic,
        defaults(optimistic),
        radam,
        fixed(radam, "early", beta2=0.999, threshold=5.0),
        fixed(radam, "late", beta2=0.999, threshold=20.0),
        defaults(radam),
        Case("sign_sgd", "optax", only()),
        signum,
        defaults(signum),
        simplified,
        fixed(simplified, "alpha", alpha=3.0, beta1=0.9),
        fixed(simplified, "weight_decay", weight_decay=0.05),
        defaults(simplified),
        yogi,
        fixed(yogi, "accumulator", outside=True, initial_accumulator_value=0.1),
        defaults(yogi),
    )


CASES = _cases()
