"""Gradient transforms and wrappers around optimizers, plain, and rows to try them with.

A transform is a function of a whole run, like an optimizer's loop:

    transform(grads, params, **arguments) -> the gradients that the optimizer sees, after every step

grads[i] and params[i] hold, by name, the gradients of step i and the parameters before it. Arrays keep their dtype;
norms are summed in float64, whatever the arrays are.

A wrapper acts on whole parameters. What it wraps is a rule: a function of (param, grad, lr) that returns the new
parameter and keeps its state to itself; `sgd_rule` and `adamw_rule` make two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike

from tests.textbook.drawing import Sample, Shapes, between, gradients, magnitude, only
from tests.textbook.loops import Array, Hyper, Params, root_mean_square

Transform = Callable[..., list[Params]]
Rule = Callable[[Array, Array, float], Array]


def clip_by_value(grads: Sequence[Params], params: Sequence[Params], *, clip_value: float) -> list[Params]:
    """Every element between -clip_value and clip_value."""
    return [{name: np.clip(g, -clip_value, clip_value) for name, g in row.items()} for row in grads]


def clip_by_norm(
    grads: Sequence[Params], params: Sequence[Params], *, max_norm: float, norm_type: float = 2.0
) -> list[Params]:
    """Every tensor's norm at most max_norm."""
    return [
        {name: np.asarray(g * (max_norm / max(p_norm([g], norm_type), max_norm))) for name, g in row.items()}
        for row in grads
    ]


def clip_by_global_norm(
    grads: Sequence[Params], params: Sequence[Params], *, max_norm: float, norm_type: float = 2.0, eps: float
) -> list[Params]:
    """The norm of all tensors as one vector at most max_norm.

    torch has eps 1e-6, and so shrinks a little also what is exactly as long as allowed; optax and Keras have 0.
    """
    clipped = []
    for row in grads:
        length = p_norm(list(row.values()), norm_type) + eps
        clipped.append(scaled(row, min(1.0, max_norm / length) if length > 0 else 1.0))
    return clipped


def clip_by_block_rms(grads: Sequence[Params], params: Sequence[Params], *, threshold: float) -> list[Params]:
    """Every tensor's root mean square at most threshold."""
    return [
        {name: np.asarray(g / max(1.0, root_mean_square(g) / threshold)) for name, g in row.items()} for row in grads
    ]


def adaptive_grad_clip(
    grads: Sequence[Params], params: Sequence[Params], *, clipping: float, eps: float = 1e-3
) -> list[Params]:
    """Every unit's norm at most `clipping` times that of its parameters, which counts as eps if it is smaller."""
    clipped = []
    for row, before in zip(grads, params, strict=True):
        after = {}
        for name, g in row.items():
            length, limit = unit_norms(g), clipping * np.maximum(unit_norms(before[name]), eps)
            shrunk = g * (limit / np.maximum(length, 1e-6)).astype(g.dtype)
            after[name] = np.where(length > limit, shrunk, g)
        clipped.append(after)
    return clipped


def unit_norms(x: Array) -> Array:
    """The norm of each unit of optax's layout, inputs first; a vector is one unit, with axes of length 1 or without."""
    if sum(length > 1 for length in x.shape) <= 1:
        axes = tuple(range(x.ndim))
    else:
        axes = (0,) if x.ndim <= 3 else tuple(range(x.ndim - 1))
    return np.asarray(np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes, keepdims=True)))


def normalize_by_update_norm(
    grads: Sequence[Params], params: Sequence[Params], *, scale_factor: float = 1.0, eps: float = 1e-6
) -> list[Params]:
    """All tensors as one vector, of length scale_factor."""
    return [scaled(row, scale_factor / (p_norm(list(row.values()), 2.0) + eps)) for row in grads]


def centralize(grads: Sequence[Params], params: Sequence[Params]) -> list[Params]:
    """From each row of a tensor its mean is taken, over all axes but the first; vectors and numbers stay."""
    return [
        {
            name: g - np.mean(g, axis=tuple(range(1, g.ndim)), keepdims=True, dtype=np.float64).astype(g.dtype)
            if g.ndim > 1
            else g
            for name, g in row.items()
        }
        for row in grads
    ]


def add_decayed_weights(grads: Sequence[Params], params: Sequence[Params], *, weight_decay: float) -> list[Params]:
    return [
        {name: np.asarray(g + weight_decay * before[name]) for name, g in row.items()}
        for row, before in zip(grads, params, strict=True)
    ]


def grad_ema(grads: Sequence[Params], params: Sequence[Params], *, decay: float, debias: bool = True) -> list[Params]:
    """A running mean of the gradients in their place."""
    means = {name: np.zeros_like(g) for name, g in grads[0].items()}
    smoothed = []
    for step, row in enumerate(grads, 1):
        means = {name: np.asarray(decay * means[name] + (1 - decay) * g) for name, g in row.items()}
        smoothed.append(scaled(means, 1 / (1 - decay**step)) if debias else means)
    return smoothed


def sparsity_lr(
    grads: Sequence[Params],
    params: Sequence[Params],
    *,
    source: Literal["gradient", "client"] = "gradient",
    kind: Literal["inverse", "linear"] = "inverse",
    floor: float = 0.01,
    k: float = 1.0,
    scope: Literal["tensor", "row"] = "tensor",
    densities: Sequence[float] | None = None,
) -> list[Params]:
    """Larger gradients where they are sparse; the factor is 1 where nothing is zero.

        inverse   1 / max(density, floor)
        linear    1 + k * (1 - density)

    source  the density is the share of the gradient's elements that are not zero, or what the client says
    scope   of the whole tensor, or of every index of its first axis for itself; a number is a tensor
    """
    changed = []
    for step, row in enumerate(grads):
        after = {}
        for name, g in row.items():
            if source == "client":
                assert densities is not None
                density = np.asarray(densities[step])
            else:
                axes = tuple(range(1 if scope == "row" and g.ndim > 0 else 0, g.ndim))
                density = np.asarray(np.mean(g != 0, axis=axes, keepdims=True))
            factor = 1 / np.maximum(density, floor) if kind == "inverse" else 1 + k * (1 - density)
            after[name] = np.asarray(g * factor.astype(g.dtype))
        changed.append(after)
    return changed


@dataclass(frozen=True)
class Unscaled:
    """grads are None where the step is skipped; scales are those that the gradients came with, then the next one."""

    grads: list[Params | None]
    scales: list[float]


def unscale(
    grads: Sequence[Params],
    *,
    init_scale: float = 2.0**16,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
) -> Unscaled:
    """Divide by the scale that the loss was multiplied by. It shrinks where a gradient is not finite, and the step is
    skipped; after growth_interval steps in a row without that, it grows."""
    scale, clean = init_scale, 0
    unscaled: list[Params | None] = []
    scales = [scale]
    for row in grads:
        if all(np.all(np.isfinite(g)) for g in row.values()):
            unscaled.append(scaled(row, 1 / scale))
            clean += 1
            if clean == growth_interval:
                scale, clean = scale * growth_factor, 0
        else:
            unscaled.append(None)
            scale, clean = scale * backoff_factor, 0
        scales.append(scale)
    return Unscaled(unscaled, scales)


def p_norm(arrays: Sequence[Array], p: float) -> float:
    """The p-norm of all elements together, in float64; the largest is taken out, so that no power leaves the range."""
    flat = np.concatenate([np.abs(np.ravel(array).astype(np.float64)) for array in arrays])
    largest = float(np.max(flat, initial=0.0))
    if largest == 0 or p == math.inf:
        return largest
    return largest * math.pow(np.sum((flat / largest) ** p), 1 / p)


def scaled(row: Params, factor: float) -> Params:
    return {name: np.asarray(g * factor) for name, g in row.items()}


TRANSFORMS: dict[str, Transform] = {
    "clip_by_value": clip_by_value,
    "clip_by_norm": clip_by_norm,
    "clip_by_global_norm": clip_by_global_norm,
    "clip_by_block_rms": clip_by_block_rms,
    "adaptive_grad_clip": adaptive_grad_clip,
    "normalize_by_update_norm": normalize_by_update_norm,
    "centralize": centralize,
    "add_decayed_weights": add_decayed_weights,
    "grad_ema": grad_ema,
    "sparsity_lr": sparsity_lr,
}


def sgd_rule(*, momentum: float = 0.0, weight_decay: float = 0.0) -> Rule:
    """SGD as torch and optax have it."""
    buffers: list[Array] = []

    def step(p: Array, g: Array, lr: float) -> Array:
        direction = g + weight_decay * p
        if momentum:
            direction = momentum * buffers.pop() + direction if buffers else direction
            buffers.append(direction)
        return np.asarray(p - lr * direction)

    return step


def adamw_rule(*, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4) -> Rule:
    """AdamW as optax has it."""
    moments: list[Array] = []
    count = 0

    def step(p: Array, g: Array, lr: float) -> Array:
        nonlocal count
        count += 1
        m, v = (moments.pop(0), moments.pop(0)) if moments else (np.zeros_like(p), np.zeros_like(p))
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * (g * g)
        moments.extend((m, v))
        direction = (m / (1 - beta1**count)) / (np.sqrt(v / (1 - beta2**count)) + eps)
        return np.asarray(p - lr * (direction + weight_decay * p))

    return step


@dataclass(frozen=True)
class Wrapped:
    """After every step: the parameters where the next gradient is taken, and the wrapper's other point."""

    parameters: list[Array]
    point: list[Array]


def lookahead(
    rule: Rule,
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    sync_period: int,
    slow_step_size: float = 0.5,
) -> Wrapped:
    """Every sync_period steps a slow copy goes a part of the way to the parameters, and they return to it."""
    fast, slow = param, param
    trajectory, point = [], []
    for step, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        fast = rule(fast, g, lr)
        if step % sync_period == 0:
            slow = np.asarray(slow + slow_step_size * (fast - slow))
            fast = slow
        trajectory.append(fast)
        point.append(slow)
    return Wrapped(trajectory, point)


def schedule_free(
    rule: Rule,
    param: Array,
    grads: Sequence[Array],
    lrs: Sequence[float],
    *,
    beta1: float = 0.9,
    weight_lr_power: float = 2.0,
) -> Wrapped:
    """What the rule would do at y moves z; x averages z, y lies between them, and is where gradients are taken."""
    y, z = param, param
    lr_max, weights = 0.0, 0.0
    trajectory, point = [], []
    for g, lr in zip(grads, lrs, strict=True):
        lr_max = max(lr_max, lr)
        weights += lr_max**weight_lr_power
        c = lr_max**weight_lr_power / weights if weights > 0 else 0.0
        x = (y - (1 - beta1) * z) / beta1
        z = z + (rule(y, g, lr) - y)
        x = (1 - c) * x + c * z
        y = np.asarray((1 - beta1) * z + beta1 * x)
        trajectory.append(y)
        point.append(np.asarray(x))
    return Wrapped(trajectory, point)


def ema(trajectory: Sequence[Array], *, decay: float = 0.999) -> list[Array]:
    """A running mean of the parameters after every step; it starts as the first of them."""
    averages = [trajectory[0]]
    for p in trajectory[1:]:
        averages.append(np.asarray(decay * averages[-1] + (1 - decay) * p))
    return averages


def swa(trajectory: Sequence[Array]) -> list[Array]:
    """The plain mean of the parameters after every step so far."""
    averages = [trajectory[0]]
    for count, p in enumerate(trajectory[1:], 1):
        averages.append(np.asarray(averages[-1] + (p - averages[-1]) / (count + 1)))
    return averages


SHAPES: Shapes = {
    "matrix": (5, 7),
    "row": (1, 8),
    "cube": (2, 3, 4),
    "image": (3, 3, 2, 4),
    "video": (2, 3, 2, 2, 3),
    "vector": (11,),
    "scalar": (),
}


@dataclass(frozen=True)
class TransformCase:
    """One row: a transform, and how to draw its arguments by their names on the wire."""

    name: str
    sample: Sample
    variant: str = ""
    profile: str | None = None

    @property
    def id(self) -> str:
        return "-".join(filter(None, (self.name, self.variant)))


@dataclass(frozen=True)
class TransformRun:
    """densities are what a client would say of its inputs: one for each step."""

    arguments: Hyper
    params: list[Params]
    grads: list[Params]
    densities: list[float]


def draw_transform(case: TransformCase, seed: int, dtype: DTypeLike, steps: int) -> TransformRun:
    """The run that belongs to a seed; every tensor has gradients of a profile of its own unless the row says which."""
    rng = np.random.default_rng(seed)
    arguments = case.sample(rng)
    params = [{name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()} for _ in range(steps)]
    columns = {name: gradients(rng, shape, steps, case.profile) for name, shape in SHAPES.items()}
    grads = [{name: np.asarray(column[step], dtype) for name, column in columns.items()} for step in range(steps)]
    return TransformRun(arguments, params, grads, [between(rng, 0, 1) for _ in range(steps)])


def run_transform(case: TransformCase, run: TransformRun) -> list[Params]:
    more = {"densities": run.densities} if run.arguments.get("source") == "client" else {}
    transformed = TRANSFORMS[case.name](run.grads, run.params, **run.arguments, **more)
    for after, before in zip(transformed, run.grads, strict=True):
        assert {name: (g.shape, g.dtype) for name, g in after.items()} == {
            name: (g.shape, g.dtype) for name, g in before.items()
        }, case.id
    return transformed


def _clip_value(rng: Generator) -> Hyper:
    return {"clip_value": magnitude(rng, 1e-3, 2)}


def _max_norm(rng: Generator) -> Hyper:
    return {"max_norm": magnitude(rng, 1e-2, 10)}


def _adaptive(rng: Generator) -> Hyper:
    return {"clipping": magnitude(rng, 1e-2, 1), "eps": magnitude(rng, 1e-3, 10)}


def _normalize(rng: Generator) -> Hyper:
    return {"scale_factor": between(rng, 0.1, 10), "eps": magnitude(rng, 1e-8, 1e-1)}


def _densities(rng: Generator) -> Hyper:
    return {"floor": magnitude(rng, 1e-2, 0.5), "k": between(rng, 0.1, 5)}


def _cases() -> tuple[TransformCase, ...]:
    by_norm = TransformCase("clip_by_norm", _max_norm)
    by_global_norm = TransformCase("clip_by_global_norm", _max_norm)
    sparsity = TransformCase("sparsity_lr", _densities, profile="sparse")

    def fixed(case: TransformCase, variant: str, **arguments: object) -> TransformCase:
        return replace(case, variant=variant, sample=lambda rng: {**case.sample(rng), **arguments})

    orders = {"1": 1.0, "2": 2.0, "inf": math.inf, "3.5": 3.5, "50": 50.0}
    return (
        TransformCase("clip_by_value", _clip_value),
        *(fixed(by_norm, f"norm_{word}", norm_type=order) for word, order in orders.items()),
        *(
            fixed(by_global_norm, f"{flavor}-norm_{word}", norm_type=order, eps=eps)
            for flavor, eps in (("torch", 1e-6), ("optax", 0.0))
            for word, order in orders.items()
        ),
        TransformCase("clip_by_block_rms", lambda rng: {"threshold": magnitude(rng, 1e-3, 2)}),
        TransformCase("adaptive_grad_clip", _adaptive),
        TransformCase("adaptive_grad_clip", only(clipping=0.01), "defaults"),
        TransformCase("normalize_by_update_norm", _normalize),
        TransformCase("normalize_by_update_norm", only(), "defaults"),
        TransformCase("centralize", only()),
        TransformCase("add_decayed_weights", lambda rng: {"weight_decay": magnitude(rng, 1e-4, 1e-1)}),
        TransformCase("grad_ema", lambda rng: {"decay": between(rng, 0.5, 0.99), "debias": True}, "debias"),
        TransformCase("grad_ema", lambda rng: {"decay": between(rng, 0.5, 0.99), "debias": False}, "biased"),
        *(
            fixed(sparsity, f"{source}-{kind}-{scope}", source=source, kind=kind, scope=scope)
            for source in ("gradient", "client")
            for kind in ("inverse", "linear")
            for scope in ("tensor", "row")
            if source == "gradient" or scope == "tensor"
        ),
    )


TRANSFORM_CASES = _cases()
