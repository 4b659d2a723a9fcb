"""Adam whose scale is the curvature instead of the gradients' size."""

from typing import Any

from stepwell_server.core.arguments import NON_NEGATIVE, POSITIVE
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum, minimum


@optimizer(
    reference="Liu, Li, Hall, Liang & Ma 2024, Algorithm 3, https://arxiv.org/abs/2305.14342",
    matches="optax.contrib.sophia",
    flavors={"optax": {"weight_decay": 1e-4, "decoupled_weight_decay": True}},
    inputs={"hessian": "optional"},
    ranges={"gamma": NON_NEGATIVE, "clip_threshold": NON_NEGATIVE, "eps": POSITIVE},
    optional=["clip_threshold"],
)
def sophia(
    param: Any,
    grad: Any,
    hessian: Any,
    exp_avg: Any,
    exp_avg_hessian: Any,
    *,
    step: int,
    lr: float,
    beta1: float = 0.965,
    beta2: float = 0.99,
    eps: float = 1e-8,
    gamma: float = 0.01,
    clip_threshold: float | None = 1.0,
) -> Any:
    """Sophia: momentum over gamma times a running mean of the Hessian's diagonal, at most clip_threshold.

    An update may carry an estimate of that diagonal, made with the parameters that its gradient is of; one in ten is
    usual. Without one the mean stays. As in optax the step is made before the estimate enters the mean, so that the
    first one, over eps, is clipped almost everywhere.
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    direction = exp_avg / (1 - beta1**step) / maximum(gamma * exp_avg_hessian, eps)
    if clip_threshold is not None:
        direction = minimum(maximum(direction, -clip_threshold), clip_threshold)
    if hessian is not None:
        exp_avg_hessian = beta2 * exp_avg_hessian + (1 - beta2) * hessian
    return param - lr * direction, exp_avg, exp_avg_hessian
