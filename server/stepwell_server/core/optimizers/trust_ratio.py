"""Steps in proportion to the length of the parameter that they change."""

from typing import Any

from stepwell_server.core.arguments import NON_NEGATIVE, POSITIVE
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum, norm, sqrt


@optimizer(
    reference="You et al. 2020, Algorithm 2, https://arxiv.org/abs/1904.00962",
    matches="optax.lamb",
    flavors={"optax": {}, "keras": {"lr": 1e-3, "eps": 1e-7}},
    decay=False,
)
def lamb(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
) -> Any:
    """LAMB: Adam's direction, made as long as the parameter.

    The decay is part of the direction and of its length, as in the paper and optax; decoupled (Keras) it comes before
    the step and leaves the direction alone. Where parameter or direction is zero, the direction stays as long as it is.
    """
    if weight_decay and decoupled_weight_decay:
        param = param * (1 - lr * weight_decay)
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    scale = sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
    direction = exp_avg / (1 - beta1**step) / scale
    if weight_decay and not decoupled_weight_decay:
        direction = direction + weight_decay * param
    ratio = norm(param) / norm(direction) if norm(param) > 0 and norm(direction) > 0 else 1.0
    return param - lr * ratio * direction, exp_avg, exp_avg_sq


@optimizer(
    reference="You, Gitman & Ginsburg 2017, Algorithm 1, https://arxiv.org/abs/1708.03888",
    matches="optax.lars",
    flavors={"optax": {}},
    ranges={"trust_coefficient": NON_NEGATIVE},
)
def lars(
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    *,
    step: int,
    lr: float,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    nesterov: bool = False,
) -> Any:
    """LARS: momentum on gradients that are as long as a share of the parameter, trust_coefficient.

    The gradient has the decay in it. Where parameter or gradient is zero, the gradient stays as long as it is. The
    buffer holds steps, so that an old learning rate stays in it.
    """
    ratio = trust_coefficient * norm(param) / (norm(grad) + eps) if norm(param) > 0 and norm(grad) > 0 else 1.0
    change = lr * ratio * grad
    if not momentum:
        return param - change, momentum_buffer
    momentum_buffer = momentum * momentum_buffer + change
    update = change + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - update, momentum_buffer


@optimizer(
    reference="Bernstein, Vahdat, Yue & Liu 2020, Algorithm 1, https://arxiv.org/abs/2002.03432",
    matches="optax.fromage",
    flavors={"optax": {}},
    ranges={"min_norm": POSITIVE},
    # The step brings every length back to where it was.
    decay=False,
)
def fromage(param: Any, grad: Any, *, step: int, lr: float, min_norm: float = 1e-6) -> Any:
    """Fromage: a step of lr times the parameter's length, and then back to that length.

    That is exact where gradient and parameter stand at a right angle. Lengths below min_norm count as min_norm.
    """
    ratio = maximum(norm(param), min_norm) / maximum(norm(grad), min_norm)
    return (param - lr * ratio * grad) / sqrt(1 + lr**2)
