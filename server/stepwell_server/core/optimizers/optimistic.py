"""Optimistic descent: the gradient is expected to change again as it has just changed."""

from typing import Any

from stepwell_server.core.arguments import NON_NEGATIVE
from stepwell_server.core.compiler.definition import optimizer, when_idle
from stepwell_server.core.compiler.functions import sqrt
from stepwell_server.core.compiler.idle import idle_product, idle_sum


def _idle(param: Any, prev_grad: Any, *, lr: float, beta: float) -> Any:
    """The first step takes the change to zero, the others see none."""
    return param + idle_sum(lr * beta, 0.0) * prev_grad, idle_product(0.0) * prev_grad


@optimizer(
    reference="Mokhtari, Ozdaglar & Pattathil 2020, https://arxiv.org/abs/1901.08511",
    matches="optax.optimistic_gradient_descent",
    flavors={"optax": {}},
    ranges={"alpha": NON_NEGATIVE, "beta": NON_NEGATIVE},
    idle=when_idle(_idle),
)
def optimistic_gradient_descent(
    param: Any, grad: Any, prev_grad: Any, *, step: int, lr: float, alpha: float = 1.0, beta: float = 1.0
) -> Any:
    """Optimistic gradient descent: alpha times the gradient, and beta times its change since the last step."""
    before = grad if step == 1 else prev_grad
    return param - lr * ((alpha + beta) * grad - beta * before), grad


@optimizer(
    reference="Daskalakis, Ilyas, Syrgkanis & Zeng 2018, Algorithm 1, https://arxiv.org/abs/1711.00141",
    matches="optax.optimistic_adam_v2",
    flavors={"optax": {}},
    ranges={"alpha": NON_NEGATIVE, "beta": NON_NEGATIVE},
)
def optimistic_adam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    prev_direction: Any,
    *,
    step: int,
    lr: float,
    alpha: float = 1.0,
    beta: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = True,
) -> Any:
    """Optimistic Adam: optimistic gradient descent along Adam's direction.

    alpha and beta multiply the learning rate, as in optax's second version. nesterov, on by default there, is Dozat's
    look-ahead without a momentum schedule.
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    scale = sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
    if nesterov:
        ahead = 1 - beta1 ** (step + 1)
        direction = (beta1 / ahead * exp_avg + (1 - beta1) / (1 - beta1**step) * grad) / scale
    else:
        direction = exp_avg / (1 - beta1**step) / scale
    before = direction if step == 1 else prev_direction
    return param - lr * ((alpha + beta) * direction - beta * before), exp_avg, exp_avg_sq, direction
