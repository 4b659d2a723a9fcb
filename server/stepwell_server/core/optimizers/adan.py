"""Adam with Nesterov's momentum in a form that needs the gradient at one point only."""

from typing import Any

from stepwell_server.core.arguments import DECAY_RATE
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import sqrt


@optimizer(
    reference="Xie et al. 2022, Algorithm 1, https://arxiv.org/abs/2208.06677",
    matches="optax.adan",
    flavors={"optax": {"decoupled_weight_decay": True}},
    ranges={"beta3": DECAY_RATE},
)
def adan(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_diff: Any,
    exp_avg_sq: Any,
    prev_grad: Any,
    *,
    step: int,
    lr: float,
    beta1: float = 0.98,
    beta2: float = 0.92,
    beta3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 1e-8,
) -> Any:
    """Adan: running means of the gradient, of its change, and of the square of what Nesterov's step would see.

    The betas are optax's, what a mean keeps; the paper's are their complements. On the first step nothing has changed.
    Weight decay multiplies the parameters by 1 - lr weight_decay, optax's form; the paper divides by 1 + lr
    weight_decay.
    """
    change = 0.0 if step == 1 else grad - prev_grad
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_diff = beta2 * exp_avg_diff + (1 - beta2) * change
    exp_avg_sq = beta3 * exp_avg_sq + (1 - beta3) * (grad + (1 - beta2) * change) ** 2
    direction = exp_avg / (1 - beta1**step) + (1 - beta2) / (1 - beta2**step) * exp_avg_diff
    scale = sqrt(exp_avg_sq / (1 - beta3**step) + eps_root) + eps
    return param - lr * direction / scale, exp_avg, exp_avg_diff, exp_avg_sq, grad
