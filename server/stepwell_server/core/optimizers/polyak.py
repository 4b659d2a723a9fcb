"""Polyak's step size: as far as the loss, taken as linear, is above what it could be at best."""

from collections.abc import Callable, Mapping
from typing import Any

from stepwell_server.core.arguments import ANY, DECAY_RATE, NON_NEGATIVE
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum, minimum, norm, sqrt, sum_all

_ONE_DIRECTION: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "maximize is given, but the step goes by how far the loss is above its minimum, expected false; negate loss "
    "and gradients where they are made": lambda v: v["maximize"]
}


@optimizer(
    reference="Loizou, Vaswani, Laradji & Lacoste-Julien 2021, https://arxiv.org/abs/2002.10542; "
    "sps+: Garrigos, Gower & Schaipp 2023, https://arxiv.org/abs/2307.14528",
    matches="optax.polyak_sgd",
    flavors={"optax": {}},
    ranges={"max_learning_rate": NON_NEGATIVE, "f_min": ANY},
    choices={"variant": ("sps", "sps+")},
    refuse=_ONE_DIRECTION,
    scope="group",
    decay=False,
)
def polyak_sgd(
    param: Any,
    grad: Any,
    *,
    step: int,
    loss: float,
    lr: float = 1.0,
    max_learning_rate: float = 1.0,
    f_min: float = 0.0,
    eps: float = 0.0,
    variant: str = "sps",
) -> Any:
    """SGD with Polyak's step size: the loss above f_min over the squared gradient, at most max_learning_rate.

    lr scales the gradient first, in the square, too. sps+ does not step back where the loss is below f_min. There is no
    step where the gradient vanishes.
    """
    square = (lr * norm(grad)) ** 2 + eps
    gap = maximum(loss - f_min, 0.0) if variant == "sps+" else loss - f_min
    rate = minimum(gap / square, max_learning_rate) if square > 2.0**-52 else 0.0
    return param - rate * lr * grad


@optimizer(
    reference="Schaipp, Ohana, Eickenberg, Defazio & Gower 2024, Algorithm 1, https://arxiv.org/abs/2305.07583",
    matches="optax.contrib.momo",
    flavors={"optax": {}},
    scalars={"mean_loss": 0.0, "mean_product": 0.0},
    ranges={"beta": DECAY_RATE},
    refuse=_ONE_DIRECTION,
    scope="group",
    decay=False,
)
def momo(
    param: Any,
    grad: Any,
    exp_avg: Any,
    mean_loss: float,
    mean_product: float,
    *,
    step: int,
    loss: float,
    lr: float = 1.0,
    beta: float = 0.9,
    lower_bound: float = 0.0,
    weight_decay: float = 0.0,
) -> Any:
    """MoMo: Polyak's step size, at most lr, for the mean of the linear models that the last losses and gradients give.

    mean_product is the mean of gradient times parameter. The first update starts all means. The decay is implicit: it
    divides by 1 + lr weight_decay. There is no step where the mean gradient vanishes.
    """
    kept = 0.0 if step == 1 else beta
    exp_avg = kept * exp_avg + (1 - kept) * grad
    mean_loss = kept * mean_loss + (1 - kept) * loss
    mean_product = kept * mean_product + (1 - kept) * sum_all(grad * param)
    square = norm(exp_avg) ** 2
    shrink = 1 + lr * weight_decay
    gap = maximum(shrink * (mean_loss - lower_bound - mean_product) + sum_all(exp_avg * param), 0.0)
    rate = minimum(lr, gap / square) if square > 2.0**-52 else 0.0
    return param / shrink - rate * exp_avg, exp_avg, mean_loss, mean_product


@optimizer(
    reference="Schaipp, Ohana, Eickenberg, Defazio & Gower 2024, Algorithm 2, https://arxiv.org/abs/2305.07583",
    matches="optax.contrib.momo_adam",
    flavors={"optax": {}},
    scalars={"mean_loss": 0.0, "mean_product": 0.0},
    refuse=_ONE_DIRECTION,
    scope="group",
    decay=False,
)
def momo_adam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    mean_loss: float,
    mean_product: float,
    *,
    step: int,
    loss: float,
    lr: float = 1e-2,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    lower_bound: float = 0.0,
    weight_decay: float = 0.0,
) -> Any:
    """MoMo-Adam: MoMo where lengths are measured as Adam scales them.

    All means start at zero, so that what they are compared with is corrected, and not they.
    """
    correction = 1 - beta1**step
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    mean_loss = beta1 * mean_loss + (1 - beta1) * loss
    mean_product = beta1 * mean_product + (1 - beta1) * sum_all(grad * param)
    direction = exp_avg / (sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    square = sum_all(exp_avg * direction)
    shrink = 1 + lr * weight_decay
    gap = maximum(shrink * (mean_loss - correction * lower_bound - mean_product) + sum_all(exp_avg * param), 0.0)
    rate = minimum(lr / correction, gap / square) if square > 2.0**-52 else 0.0
    return param / shrink - rate * direction, exp_avg, exp_avg_sq, mean_loss, mean_product
