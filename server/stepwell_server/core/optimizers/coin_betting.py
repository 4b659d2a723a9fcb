"""Optimizers without a learning rate to tune, from strategies of betting on a coin."""

from typing import Any

from stepwell_server.core.arguments import NON_NEGATIVE, POSITIVE
from stepwell_server.core.compiler.definition import optimizer, when_idle
from stepwell_server.core.compiler.functions import maximum


def _still(param: Any, x0: Any, grad_max: Any, grad_abs_sum: Any, grad_sum: Any, reward: Any) -> Any:
    return param, x0, grad_max, grad_abs_sum, grad_sum, reward


@optimizer(
    reference="Orabona & Tommasi 2017, Algorithm 2, https://arxiv.org/abs/1705.07795",
    matches="optax.contrib.cocob",
    flavors={"optax": {}},
    init={"x0": "param", "grad_max": "eps"},
    # grad_max divides, and is eps where no gradient has come yet.
    ranges={"alpha": NON_NEGATIVE, "eps": POSITIVE},
    refuse={"decoupled_weight_decay does not reach the sums; leave it false": lambda v: v["decoupled_weight_decay"]},
    idle=when_idle(_still),
)
def cocob(
    param: Any,
    grad: Any,
    x0: Any,
    grad_max: Any,
    grad_abs_sum: Any,
    grad_sum: Any,
    reward: Any,
    *,
    step: int,
    lr: float = 1.0,
    alpha: float = 100.0,
    eps: float = 1e-8,
) -> Any:
    """COCOB-Backprop: each element bets a part of what it has won on the sign of its next gradient.

    x0 is the parameters before the first step; what is won is the reward, and the stake starts at the largest gradient
    so far. alpha keeps the first bets small. lr multiplies the gradient, as in optax; the paper has none.
    """
    scaled = lr * grad
    grad_max = maximum(grad_max, abs(scaled))
    grad_abs_sum = grad_abs_sum + abs(scaled)
    grad_sum = grad_sum + scaled
    reward = maximum(reward - scaled * (param - x0), 0.0)
    bet = grad_sum / (grad_max * maximum(grad_abs_sum + grad_max, alpha * grad_max))
    return x0 - bet * (grad_max + reward), x0, grad_max, grad_abs_sum, grad_sum, reward
