"""The optimizers whose PyTorch form is their own: their loops, and the rows to try them with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.random import Generator

from tests.textbook.drawing import (
    MATRICES,
    NO_SCALAR,
    Case,
    betas_and_eps,
    between,
    defaults,
    fixed,
    flag,
    magnitude,
    torch_decay,
)
from tests.textbook.loops import (
    Array,
    Grads,
    Hyper,
    JointLoop,
    Key,
    Params,
    TensorLoop,
    dot,
    ema,
    norm,
    root_mean_square,
    steps,
)


def radam(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decoupled_weight_decay: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """torch.optim.RAdam: Adam once the variance of its scale is known well enough, momentum alone before that.

    rho is the length of the moving average that v amounts to. eps joins before the bias correction.
    """
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    rho_inf = 2 / (1 - beta2) - 1
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        if decoupled_weight_decay:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        exp_avg = ema(exp_avg, g, beta1)
        exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
        bc2 = 1 - beta2**step
        rho = rho_inf - 2 * step * beta2**step / bc2
        direction = exp_avg / (1 - beta1**step)
        if rho > 5:
            rectified = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            direction = direction * math.sqrt(rectified) * math.sqrt(bc2) / (np.sqrt(exp_avg_sq) + eps)
        p = p - lr * direction
        trajectory.append(np.asarray(p))
    return trajectory


def rprop(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    etaminus: float = 0.5,
    etaplus: float = 1.2,
    step_size_min: float = 1e-6,
    step_size_max: float = 50.0,
    maximize: bool = False,
) -> list[Array]:
    """Rprop: every element has a step size of its own, which grows while the gradient keeps its sign.

    Where the sign has turned nothing moves, and the next step finds no previous gradient. The learning rate is where
    the step sizes start; later ones have no effect.
    """
    p, trajectory = param, []
    previous = np.zeros_like(param)
    size = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        if step == 1:
            size = np.full_like(param, lr)
        agreement = np.sign(g) * np.sign(previous)
        size = np.where(agreement > 0, size * etaplus, np.where(agreement < 0, size * etaminus, size))
        size = np.clip(size, step_size_min, step_size_max)
        previous = np.where(agreement < 0, np.zeros_like(g), g)
        p = p - np.sign(previous) * size
        trajectory.append(np.asarray(p))
    return trajectory


def asgd(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    average: bool = False,
) -> list[Array]:
    """torch.optim.ASGD; average=True returns the averaged iterate, which no update depends on.

    The rate of a step is computed at the end of the step before, so a new learning rate acts one step late.
    """
    p, averaged, trajectory = param, param, []
    eta, mu = float(lrs[0]) if lrs else 0.0, 1.0
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        g = g + weight_decay * p
        p = p * (1 - lambd * eta) - eta * g
        averaged = p if mu == 1 else averaged + mu * (p - averaged)
        eta = lr / (1 + lambd * lr * step) ** alpha
        mu = 1 / max(1, step - t0)
        trajectory.append(np.asarray(averaged if average else p))
    return trajectory


def sparse_adam(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    maximize: bool = False,
) -> list[Array]:
    """torch.optim.SparseAdam with a gradient that has every row: Adam with eps before the bias correction."""
    p, trajectory = param, []
    exp_avg = np.zeros_like(param)
    exp_avg_sq = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        exp_avg = ema(exp_avg, g, beta1)
        exp_avg_sq = ema(exp_avg_sq, g * g, beta2)
        rate = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        p = p - rate * exp_avg / (np.sqrt(exp_avg_sq) + eps)
        trajectory.append(np.asarray(p))
    return trajectory


def adafactor(
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta2_decay: float = -0.8,
    eps1: float | None = None,
    eps2: float = 1e-3,
    d: float = 1.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> list[Array]:
    """torch.optim.Adafactor: from two dimensions on, the second moment is kept as row means and column means.

    The step is relative to the root mean square of the parameter, and clipped at d times the root mean square that an
    update by a true second moment would have.
    """
    p, trajectory = param, []
    eps1 = float(np.finfo(param.dtype).eps) if eps1 is None else eps1
    factored = param.ndim > 1
    row = np.zeros_like(param[..., :1]) if factored else param
    column = np.zeros_like(param[..., :1, :]) if factored else param
    variance = np.zeros_like(param)
    for step, grad, lr in steps(grads, lrs):
        g = -grad if maximize else grad
        share = float(step) ** beta2_decay
        rate = max(eps2, root_mean_square(p)) * min(lr, 1 / math.sqrt(step))
        p = p * (1 - lr * weight_decay)
        if factored:
            row = ema(row, np.mean(g * g, axis=-1, keepdims=True), 1 - share)
            column = ema(column, np.mean(g * g, axis=-2, keepdims=True), 1 - share)
            variance = row * column / np.maximum(np.mean(row, axis=-2, keepdims=True), eps1)
        else:
            variance = ema(variance, g * g, 1 - share)
        update = g / np.sqrt(np.maximum(variance, eps1 * eps1))
        p = p - rate / max(1.0, root_mean_square(update) / d) * update
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
    eps: float = 1e-7,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
    weight_decay: float = 0.1,
) -> list[Array]:
    """torch.optim.Muon: a matrix moves along its momentum made nearly orthogonal, computed in bfloat16."""
    p, trajectory = param, []
    buffer = np.zeros_like(param)
    rows, columns = param.shape
    if adjust_lr_fn == "match_rms_adamw":
        scale = 0.2 * math.sqrt(max(rows, columns))
    else:
        scale = math.sqrt(max(1.0, rows / columns))
    for _, g, lr in steps(grads, lrs):
        buffer = ema(buffer, g, momentum)
        direction = ema(g, buffer, 1 - momentum) if nesterov else buffer
        orthogonal = orthogonalise(direction, ns_coefficients, ns_steps, eps).astype(param.dtype)
        p = p * (1 - lr * weight_decay) - lr * scale * orthogonal
        trajectory.append(np.asarray(p))
    return trajectory


def orthogonalise(matrix: Array, coefficients: Sequence[float], count: int, eps: float) -> Array:
    """Newton-Schulz iterations with every product rounded to bfloat16; the sums within one are float32."""
    a, b, c = coefficients
    x = bfloat16(matrix.T if matrix.shape[0] > matrix.shape[1] else matrix)
    x = bfloat16(x / max(float(bfloat16(np.float32(norm(x)))), eps))
    for _ in range(count):
        gram = bfloat16(x @ x.T)
        polynomial = bfloat16(b * gram + c * (gram @ gram))
        x = bfloat16(a * x + polynomial @ x)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def bfloat16(array: Array | np.float32) -> Array:
    """To the nearest number of eight bits, ties to even, as float32. Finite numbers only."""
    bits = np.atleast_1d(np.asarray(array, np.float32)).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).reshape(np.shape(array))


class LBFGS:
    """torch.optim.LBFGS with one iteration per gradient and no line search, over all tensors as one vector.

    A gradient that is missing is zero. The direction and the length of a step are remembered even if the step was not
    taken because the direction hardly descends.
    """

    def __init__(
        self,
        params: Params,
        *,
        history_size: int = 100,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        max_iter: int = 1,
        line_search_fn: None = None,
    ) -> None:
        assert max_iter == 1
        assert line_search_fn is None
        self.params = dict(params)
        self.history_size = history_size
        self.tolerance_grad = tolerance_grad
        self.tolerance_change = tolerance_change
        self.pairs: list[tuple[Array, Array]] = []
        self.inverse_curvature = 1.0
        self.direction: Array | None = None
        self.length = 0.0
        self.previous: Array | None = None

    def step(self, grads: Grads, lr: float) -> Params:
        g = self._flat(grads)
        if np.max(np.abs(g)) <= self.tolerance_grad:
            return dict(self.params)
        if self.direction is None or self.previous is None:
            self.direction = -g
            self.length = min(1.0, 1 / float(np.sum(np.abs(g)))) * lr
        else:
            self._remember(g - self.previous, self.direction * self.length)
            self.direction = self._two_loops(g)
            self.length = lr
        self.previous = g
        if dot(g, self.direction) <= -self.tolerance_change:
            self._move(self.length * self.direction)
        return dict(self.params)

    def _remember(self, y: Array, s: Array) -> None:
        if dot(y, s) > 1e-10:
            self.pairs = [*self.pairs, (y, s)][-self.history_size :]
            self.inverse_curvature = dot(y, s) / dot(y, y)

    def _two_loops(self, g: Array) -> Array:
        q, alphas = -g, []
        for y, s in reversed(self.pairs):
            alphas.append(dot(s, q) / dot(y, s))
            q = q - alphas[-1] * y
        r = self.inverse_curvature * q
        for y, s in self.pairs:
            r = r + (alphas.pop() - dot(y, r) / dot(y, s)) * s
        return r

    def _flat(self, grads: Grads) -> Array:
        parts = []
        for name, param in self.params.items():
            grad = grads[name]
            parts.append(np.zeros_like(param).ravel() if grad is None else grad.ravel())
        return np.concatenate(parts)

    def _move(self, change: Array) -> None:
        for name, param in self.params.items():
            part, change = change[: param.size], change[param.size :]
            self.params[name] = param + part.reshape(param.shape)


def lbfgs(params: Params, grads: Sequence[Grads], lrs: Sequence[float], **hyper: object) -> list[Params]:
    optimizer = LBFGS(params, **hyper)  # type: ignore[arg-type]
    return [optimizer.step(row, float(lr)) for row, lr in zip(grads, lrs, strict=True)]


LOOPS: dict[Key, TensorLoop] = {
    ("radam", "torch"): radam,
    ("rprop", "torch"): rprop,
    ("asgd", "torch"): asgd,
    ("sparse_adam", "torch"): sparse_adam,
    ("adafactor", "torch"): adafactor,
    ("muon", "torch"): muon,
}
JOINT_LOOPS: dict[Key, JointLoop] = {
    ("lbfgs", "torch"): lbfgs,
}


def _radam(rng: Generator) -> Hyper:
    return {**betas_and_eps(rng), "decoupled_weight_decay": flag(rng), **torch_decay(rng)}


def _rprop(rng: Generator) -> Hyper:
    return {
        "etaminus": between(rng, 0.3, 0.8),
        "etaplus": between(rng, 1.05, 1.4),
        "step_size_min": magnitude(rng, 1e-6, 1e-3),
        "step_size_max": magnitude(rng, 0.02, 1),
        "maximize": flag(rng),
    }


def _asgd(rng: Generator) -> Hyper:
    return {
        "lambd": magnitude(rng, 1e-4, 1e-1),
        "alpha": between(rng, 0.5, 1),
        "t0": float(rng.integers(1, 60)),
        **torch_decay(rng),
    }


def _sparse_adam(rng: Generator) -> Hyper:
    return {**betas_and_eps(rng), "maximize": flag(rng)}


def _adafactor(rng: Generator) -> Hyper:
    return {
        "beta2_decay": between(rng, -1, -0.5),
        "eps1": magnitude(rng, 1e-8, 1e-3) if flag(rng) else None,
        "eps2": magnitude(rng, 1e-4, 1e-1),
        "d": between(rng, 1, 2),  # torch takes no less
        **torch_decay(rng),
    }


def _muon(rng: Generator) -> Hyper:
    return {
        "momentum": between(rng, 0.5, 0.99),
        "nesterov": flag(rng),
        "ns_steps": int(rng.integers(1, 7)),
        "weight_decay": magnitude(rng, 1e-3, 1e-1),
        "adjust_lr_fn": [None, "original", "match_rms_adamw"][rng.integers(3)],
    }


def _lbfgs(rng: Generator) -> Hyper:
    return {"history_size": int(rng.integers(2, 20))}


def walking_bowl(rng: Generator, hyper: Hyper, params: Params, lrs: Sequence[float]) -> list[Params]:
    """Gradients of a quadratic at the points where L-BFGS gets; its centre walks, so that it may seem not convex."""
    curvature = {name: np.asarray(np.exp(rng.uniform(-1, 1, param.shape))) for name, param in params.items()}
    centre = {name: np.zeros_like(param) for name, param in params.items()}
    optimizer, rows = LBFGS(params, **hyper), []  # type: ignore[arg-type]
    for lr in lrs:
        centre = {name: np.asarray(at + 0.1 * rng.normal(size=at.shape)) for name, at in centre.items()}
        row = {name: np.asarray(curvature[name] * (at - centre[name])) for name, at in optimizer.params.items()}
        optimizer.step(dict(row), lr)
        rows.append(row)
    return rows


def _cases() -> tuple[Case, ...]:
    radam = Case("radam", "torch", _radam)
    rprop = Case("rprop", "torch", _rprop)
    asgd = Case("asgd", "torch", _asgd)
    sparse_adam = Case("sparse_adam", "torch", _sparse_adam, shapes=NO_SCALAR)
    adafactor = Case("adafactor", "torch", _adafactor)
    # The last bit of a sum decides how bfloat16 rounds: an update may be off by its 128th part.
    muon = Case("muon", "torch", _muon, shapes=MATRICES, atol=3e-4, float64=(1e-11, 3e-4))
    lbfgs = Case("lbfgs", "torch", _lbfgs, learning_rate=0.5, objective=walking_bowl, steps=50)
    # Each pair is a small difference of near vectors, and the next pairs are where the last ones led.
    lbfgs = replace(lbfgs, float64=(1e-9, 1e-10), rtol=5e-3, atol=1e-3)
    return (
        radam,
        fixed(radam, "early", beta2=0.999),  # rectified from the sixth step on
        fixed(radam, "coupled", decoupled_weight_decay=False, weight_decay=0.05),
        fixed(radam, "decoupled", decoupled_weight_decay=True, weight_decay=0.05),
        fixed(radam, "maximize", maximize=True, weight_decay=0.05),
        defaults(radam),
        rprop,
        fixed(rprop, "narrow", step_size_min=5e-3, step_size_max=1.5e-2),
        fixed(rprop, "maximize", maximize=True),
        defaults(rprop),
        asgd,
        fixed(asgd, "averaged", t0=5.0),
        fixed(asgd, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(asgd),
        sparse_adam,
        fixed(sparse_adam, "maximize", maximize=True),
        defaults(sparse_adam),
        adafactor,
        fixed(adafactor, "eps1", eps1=0.1),
        fixed(adafactor, "relative", eps2=10.0),
        fixed(adafactor, "unclipped", d=1e3),
        fixed(adafactor, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        replace(defaults(adafactor), learning_rate=0.5),  # above 1 / sqrt(t) for long
        muon,
        fixed(muon, "plain", nesterov=False, adjust_lr_fn=None),
        fixed(muon, "nesterov", nesterov=True, adjust_lr_fn=None),
        fixed(muon, "match_rms_adamw", adjust_lr_fn="match_rms_adamw"),
        fixed(muon, "coefficients", ns_coefficients=[2.0, -1.5, 0.5], ns_steps=6),
        fixed(muon, "eps", eps=2.0),
        defaults(muon),
        lbfgs,
        fixed(lbfgs, "history", history_size=2),
        fixed(lbfgs, "tolerance_grad", tolerance_grad=1.5),
        fixed(lbfgs, "tolerance_change", tolerance_change=2.0),
        replace(defaults(lbfgs), learning_rate=0.2, steps=25),
    )


CASES = _cases()
