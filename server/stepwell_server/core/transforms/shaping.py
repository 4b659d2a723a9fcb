"""Transforms that change a gradient's direction, or its size without a bound."""

from typing import Any

import numpy as np

from stepwell_server.core.arguments import DECAY_RATE, NON_NEGATIVE, Range
from stepwell_server.core.transforms.definition import array_transform, transform


@array_transform(
    reference="Yong et al. 2020, https://arxiv.org/abs/2004.01461",
    matches="optax.centralize",
)
def centralize(xp: Any, grad: Any, param: Any) -> Any:
    """Subtract from each row of a tensor (all axes but the first) its mean; vectors stay."""
    if grad.ndim <= 1:
        return grad
    mean = xp.mean(grad, axis=tuple(range(1, grad.ndim)), keepdims=True, dtype=xp.float64)
    return grad - mean.astype(grad.dtype)


@array_transform(
    reference="Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807",
    ranges={"eta": NON_NEGATIVE, "gamma": NON_NEGATIVE, "seed": Range(0.0, 2.0**53)},
    integers=["seed"],
)
def add_noise(
    xp: Any, grad: Any, param: Any, *, step: int, index: int, eta: float = 0.01, gamma: float = 0.55, seed: int = 0
) -> Any:
    """Add Gaussian noise of variance eta / step^gamma.

    The numbers are a function of seed, step and the parameter's place alone: a run that is started again repeats them.
    """
    counter = np.array([0, 0, index, step], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=int(seed), counter=counter))
    deviation = float(eta / step**gamma) ** 0.5
    noise = generator.standard_normal(grad.shape) * deviation
    return grad + xp.asarray(noise.astype(grad.dtype))


@transform(
    reference="Krogh & Hertz 1991",
    matches="optax.add_decayed_weights",
    ranges={"weight_decay": NON_NEGATIVE},
)
def add_decayed_weights(grad: Any, param: Any, *, weight_decay: float = 0.0) -> Any:
    """Add a share of the parameters: L2 regularization, before the optimizer's moments."""
    return grad + weight_decay * param


@transform(
    reference="optax.ema",
    matches="optax.ema",
    ranges={"decay": DECAY_RATE},
)
def grad_ema(grad: Any, average: Any, *, step: int, decay: float = 0.9, debias: bool = True) -> Any:
    """Replace the gradient by a running mean of it; debias corrects for the zero that the mean starts from."""
    average = decay * average + (1 - decay) * grad
    return average / (1 - decay**step) if debias else average, average


@array_transform(
    reference="the lecture notes' sparsity factor, which they leave undefined",
    choices={"source": ("gradient", "client"), "kind": ("inverse", "linear"), "scope": ("tensor", "row")},
    ranges={"floor": Range(0.0, 1.0, minimum_open=True), "k": NON_NEGATIVE},
)
def sparsity_lr(
    xp: Any,
    grad: Any,
    param: Any,
    *,
    sparsity_factor: float,
    source: str = "gradient",
    kind: str = "inverse",
    floor: float = 0.01,
    k: float = 1.0,
    scope: str = "tensor",
) -> Any:
    """Scale the gradient up where it is sparse, as the lecture notes ask of a learning rate.

    The density is the share of elements that are not zero, of a tensor or of each row. inverse: 1 / max(density,
    floor); linear: 1 + k (1 - density). With source "client" every update brings the factor itself.
    """
    if source == "client":
        return grad * sparsity_factor
    axes = tuple(range(1, grad.ndim)) if scope == "row" else None
    density = xp.mean(grad != 0, axis=axes, keepdims=True)
    factor = 1 / xp.maximum(density, floor) if kind == "inverse" else 1 + k * (1 - density)
    return grad * factor.astype(grad.dtype)
