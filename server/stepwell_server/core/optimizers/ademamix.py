"""Adam with old gradients and the present one weighed apart."""

from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, NON_NEGATIVE
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import sqrt


@optimizer(
    reference="Pagliardini, Ablin & Grangier 2024, Algorithm 1, https://arxiv.org/abs/2409.03137",
    matches="optax.contrib.ademamix",
    flavors={"optax": {"decoupled_weight_decay": True}},
    ranges={"alpha": NON_NEGATIVE, "beta3": DECAY_RATE},
)
def ademamix(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_slow: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float,
    alpha: float = 5.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    beta3: float = 0.9999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> Any:
    """AdEMAMix: Adam with a second, very slow running mean of the gradient, alpha times, beside the fast one.

    The slow mean is not corrected for its start. The paper lets alpha and beta3 grow from 0 and beta1; schedules on
    them do that.
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_slow = beta3 * exp_avg_slow + (1 - beta3) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    direction = exp_avg / (1 - beta1**step) + alpha * exp_avg_slow
    scale = sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
    return param - lr * direction / scale, exp_avg, exp_avg_slow, exp_avg_sq


@optimizer(
    reference="Morwani, Vyas, Zhang & Kakade 2025, https://arxiv.org/abs/2502.02431",
    matches="optax.contrib.simplified_ademamix",
    flavors={"optax": {"decoupled_weight_decay": True}},
    ranges={"alpha": NON_NEGATIVE},
)
def simplified_ademamix(
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float,
    alpha: float = 0.0,
    beta1: float = 0.99,
    beta2: float = 0.95,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> Any:
    """Simplified AdEMAMix: one slow running sum, and alpha times the present gradient, over the root mean square.

    The first moment is a sum, so that learning rates are smaller than Adam's by about 1 - beta1.
    """
    momentum_buffer = beta1 * momentum_buffer + grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    scale = sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
    return param - lr * (momentum_buffer + alpha * grad) / scale, momentum_buffer, exp_avg_sq
