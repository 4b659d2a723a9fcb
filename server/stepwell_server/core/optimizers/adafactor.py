"""Adafactor, whose second moment of a matrix is kept as one vector of rows and one of columns."""

import math
from collections.abc import Mapping
from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, NON_NEGATIVE, POSITIVE, REQUIRED, Range
from stepwell_server.core.compiler.definition import tensorwise

Shape = tuple[int, ...]


def _factored_axes(shape: Shape, smallest: float | None) -> tuple[int, int] | None:
    """The axes over which row_var and col_var are means, or None for a shape that is not factored.

    The last two axes; or, for a smallest length to factor, the two longest ones if both have it.
    """
    if len(shape) < 2:
        return None
    if smallest is None:
        return len(shape) - 1, len(shape) - 2
    *_, second, longest = sorted(range(len(shape)), key=shape.__getitem__)
    return (longest, second) if shape[second] >= smallest else None


def _mean_shape(shape: Shape, values: Mapping[str, Any], which: int) -> Shape:
    axes = _factored_axes(shape, values["min_dim_size_to_factor"])
    return (0,) if axes is None else tuple(1 if axis == axes[which] else n for axis, n in enumerate(shape))


def _whole_shape(shape: Shape, values: Mapping[str, Any]) -> Shape:
    return shape if _factored_axes(shape, values["min_dim_size_to_factor"]) is None else (0,)


@tensorwise(
    reference="Shazeer & Stern 2018, Algorithms 4 and 5, https://arxiv.org/abs/1804.04235",
    matches="torch.optim.Adafactor",
    flavors={
        "torch": {},
        "optax": {
            "lr": REQUIRED,
            "decay_rate": 0.8,
            "eps": 1e-30,
            "eps1": 0.0,
            "d": None,
            "clipping_threshold": 1.0,
            "min_dim_size_to_factor": 128,
            "relative_step": False,
            "weight_decay_at": "update",
        },
        "keras": {"lr": 1e-3, "eps1": 1e-30, "eps1_at": "square", "weight_decay_at": "start"},
    },
    slots={
        "row_var": lambda shape, values: _mean_shape(shape, values, 0),
        "col_var": lambda shape, values: _mean_shape(shape, values, 1),
        "variance": _whole_shape,
        "exp_avg": lambda shape, values: None if values["momentum"] is None else shape,
    },
    scratch=8,
    ranges={
        "beta2_decay": Range(maximum=0.0),
        "decay_rate": NON_NEGATIVE,
        "eps1": NON_NEGATIVE,
        "eps2": NON_NEGATIVE,
        "d": POSITIVE,
        "clipping_threshold": POSITIVE,
        "min_dim_size_to_factor": Range(1.0),
        "momentum": DECAY_RATE,
    },
    choices={"eps1_at": ("floor", "square"), "weight_decay_at": ("start", "step", "update")},
    optional=["d"],
)
def adafactor(
    xp: Any,
    param: Any,
    grad: Any,
    row_var: Any,
    col_var: Any,
    variance: Any,
    exp_avg: Any,
    *,
    step: int,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    decay_rate: float | None = None,
    eps: float = 0.0,
    eps1: float | None = None,
    eps1_at: str = "floor",
    eps2: float = 1e-3,
    d: float | None = 1.0,
    clipping_threshold: float | None = None,
    min_dim_size_to_factor: int | None = None,
    multiply_by_parameter_scale: bool = True,
    relative_step: bool = True,
    momentum: float | None = None,
    weight_decay: float = 0.0,
    weight_decay_at: str = "step",
) -> Any:
    """Adafactor: the gradient over the root of a factored second moment, clipped, in proportion to the parameter.

    From two dimensions on the second moment is the product of row_var and col_var, its means over one axis and over
    another: the last two axes, or with min_dim_size_to_factor (optax) the two longest if both are as long as that.
    It forgets at the rate t^beta2_decay, or t^-decay_rate where that is given.

    d (PyTorch, Keras) or clipping_threshold (optax) is the root mean square to which the direction is clipped. lr is at
    most 1 / sqrt(t) with relative_step, and multiply_by_parameter_scale makes it a share of the parameter's root mean
    square, which counts as eps2 at least. eps is added to the squares (optax), and so is eps1 at "square" (Keras); at
    "floor" (PyTorch) it is the least root of the second moment, by default the dtype's epsilon.

    The decay shrinks the parameter by lr weight_decay, at the "start" (Keras) or at the "step", when the share has been
    taken (PyTorch); or it is added to the "update" (optax), where no lr multiplies it.
    """
    if weight_decay_at == "start":
        param = param * (1 - lr * weight_decay)
    rate = min(lr, 1 / math.sqrt(step)) if relative_step else lr
    if multiply_by_parameter_scale:
        rate *= max(eps2, _root_mean_square(xp, param))

    kept = 1 - float(step) ** (beta2_decay if decay_rate is None else -decay_rate)
    numbers = xp.finfo(param.dtype)
    eps1 = float(numbers.eps) if eps1 is None else eps1
    square = grad * grad + (eps + eps1 if eps1_at == "square" else eps)
    # No smaller than the smallest number, so that 0 / 0 is 0.
    floor = max(eps1 if eps1_at == "floor" else 0.0, float(numbers.tiny))
    axes = _factored_axes(param.shape, min_dim_size_to_factor)
    if axes is None:
        variance = kept * variance + (1 - kept) * square
        root = xp.sqrt(variance)
    else:
        row_var = kept * row_var + (1 - kept) * _mean(xp, square, axes[0])
        col_var = kept * col_var + (1 - kept) * _mean(xp, square, axes[1])
        # The roots are multiplied, not the variances, whose product may be too small for float32.
        root = xp.sqrt(row_var / xp.maximum(_mean(xp, row_var, axes[1]), floor)) * xp.sqrt(col_var)
    update = grad / xp.maximum(root, floor)

    for limit in (d, clipping_threshold):
        if limit is not None:
            update = update / max(1.0, _root_mean_square(xp, update) / limit)
    update = rate * update
    if momentum is not None:
        exp_avg = momentum * exp_avg + (1 - momentum) * update
        update = exp_avg
    if weight_decay_at == "step":
        param = param * (1 - lr * weight_decay)
    elif weight_decay_at == "update":
        update = update + weight_decay * param
    return param - update, row_var, col_var, variance, exp_avg


def _mean(xp: Any, array: Any, axis: int) -> Any:
    return xp.mean(array, axis=axis, keepdims=True, dtype=xp.float64).astype(array.dtype)


def _root_mean_square(xp: Any, array: Any) -> float:
    return math.sqrt(float(xp.mean(xp.square(array, dtype=xp.float64))))
