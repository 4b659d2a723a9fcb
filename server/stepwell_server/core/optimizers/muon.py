"""Muon, which moves a matrix along its momentum with all singular values made nearly equal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, NON_NEGATIVE, REQUIRED, Range
from stepwell_server.core.compiler.definition import tensorwise


@tensorwise(
    reference="Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scales: Liu et al. 2025, "
    "https://arxiv.org/abs/2502.16982",
    matches="torch.optim.Muon",
    flavors={
        "torch": {},
        "optax": {
            "lr": REQUIRED,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "bias_correction": True,
            "bfloat16": False,
            "eps_at": "sum",
            "adjust_lr_fn": "transposed",
        },
        "keras": {
            "weight_decay": 4e-3,
            "ema": False,
            "bfloat16": False,
            "eps_at": "sum",
            "adjust_lr_fn": "unscaled",
            "rms_rate": 0.2,
        },
    },
    slots={"momentum_buffer": lambda shape, values: shape},
    takes=lambda shape: None if len(shape) == 2 else "two dimensions",
    scratch=10,
    ranges={"momentum": DECAY_RATE, "rms_rate": NON_NEGATIVE, "ns_steps": Range(0.0, 99.0)},
    choices={
        "eps_at": ("floor", "sum"),
        "adjust_lr_fn": ("original", "transposed", "match_rms_adamw", "unscaled"),
    },
    integers=["ns_steps"],
    optional=["adjust_lr_fn"],
    refuse={
        "ns_coefficients has another length than 3, expected the three of a polynomial a X + b X^3 + c X^5": lambda v: (
            len(v["ns_coefficients"]) != 3
        ),
        "bias_correction is given with a momentum that is a sum, expected a mean; set ema": lambda v: (
            v["bias_correction"] and not v["ema"]
        ),
    },
)
def muon(
    xp: Any,
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    *,
    step: int,
    lr: float = 1e-3,
    momentum: float = 0.95,
    nesterov: bool = True,
    ema: bool = True,
    bias_correction: bool = False,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    eps: float = 1e-7,
    eps_at: str = "floor",
    bfloat16: bool = True,
    adjust_lr_fn: str | None = None,
    rms_rate: float | None = None,
    weight_decay: float = 0.1,
) -> Any:
    """Muon: a matrix moves along its momentum, made nearly orthogonal by Newton-Schulz iterations.

    The momentum is a running mean, or without ema (Keras) a running sum; nesterov and bias_correction (optax) are as in
    Adam. The iterations need a norm of 1 at most: the momentum is divided by its norm, which counts as eps at least
    ("floor", PyTorch) or has eps added to it ("sum"). bfloat16 rounds every product to eight bits, as PyTorch does.

    lr is multiplied with rms_rate sqrt(max(rows, columns)) (Keras), or if there is no rms_rate with what adjust_lr_fn
    names: "original", the default, sqrt(max(1, rows / columns)), for rows that are outputs (PyTorch); "transposed" the
    same for columns that are outputs (optax); "match_rms_adamw" 0.2 sqrt(max(rows, columns)); "unscaled" 1.
    """
    share = 1 - momentum if ema else 1.0
    momentum_buffer = momentum * momentum_buffer + share * grad
    now = 1 - momentum**step if bias_correction else 1.0
    ahead = 1 - momentum ** (step + 1) if bias_correction else 1.0
    if nesterov:
        direction = momentum / ahead * momentum_buffer + share / now * grad
    else:
        direction = momentum_buffer / now

    rows, columns = param.shape
    scales = {
        "original": math.sqrt(max(1.0, rows / columns)),
        "transposed": math.sqrt(max(1.0, columns / rows)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
        "unscaled": 1.0,
    }
    scale = scales[adjust_lr_fn or "original"] if rms_rate is None else rms_rate * math.sqrt(max(rows, columns))

    def rounded(array: Any) -> Any:
        return _to_bfloat16(xp, array) if bfloat16 else array

    direction = rounded(direction)
    length = math.sqrt(float(xp.sum(xp.square(direction, dtype=xp.float64))))
    if bfloat16:
        length, eps = (float(number) for number in rounded(xp.asarray([length, eps])))
    length = max(length, eps) if eps_at == "floor" else length + eps
    orthogonal = _orthogonalise(direction, length or 1.0, ns_coefficients, int(ns_steps), rounded)
    param = param * (1 - lr * weight_decay)
    return param - lr * scale * orthogonal.astype(param.dtype), momentum_buffer


def _orthogonalise(
    matrix: Any, length: float, coefficients: Sequence[float], count: int, rounded: Callable[[Any], Any]
) -> Any:
    """A matrix with the same singular vectors and singular values near 1, by iterations of an odd polynomial."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = rounded((matrix.T if tall else matrix) / length)
    for _ in range(count):
        gram = rounded(x @ x.T)
        polynomial = rounded(b * gram + c * (gram @ gram))
        x = rounded(a * x + polynomial @ x)
    return x.T if tall else x


def _to_bfloat16(xp: Any, array: Any) -> Any:
    """To the nearest number of eight bits, ties to even, as float32."""
    single = array.astype(xp.float32)
    bits = single.view(xp.uint32)
    nearest = ((bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000).astype(xp.uint32).view(xp.float32)
    # A NaN may have all its bits set, to which nothing can be added.
    return xp.where(xp.isnan(single), single, nearest)
