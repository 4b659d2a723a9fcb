"""Adaptive steps whose second moment is one number for a whole tensor."""

from typing import Any

from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import max_abs, norm, sqrt


@optimizer(
    reference="Ginsburg et al. 2019, Algorithm 1, https://arxiv.org/abs/1905.11286",
    matches="optax.novograd",
    flavors={"optax": {}},
    scalars={"exp_avg_sq": 0.0},
    decay=False,
)
def novograd(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: float,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Any:
    """NovoGrad: momentum on gradients over the root of a running mean of their squared length.

    The first squared length is that mean's first value. The decay enters after the scaling, and into the momentum.
    """
    square = norm(grad) ** 2
    exp_avg_sq = square if step == 1 else beta2 * exp_avg_sq + (1 - beta2) * square
    update = grad / (sqrt(exp_avg_sq + eps_root) + eps)
    if weight_decay:
        update = update + weight_decay * param
    exp_avg = beta1 * exp_avg + update
    return param - lr * exp_avg, exp_avg, exp_avg_sq


@optimizer(
    reference="the lecture notes' Adam Max, which gives the second moment; the rest is Adam's",
    flavors={"lecture": {}},
    scalars={"exp_avg_sq": 0.0},
    choices={"norm_scope": ("tensor", "global")},
    widened=lambda v: v["norm_scope"] == "global",
)
def adam_max(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: float,
    *,
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    bias_correction: bool = True,
    norm_scope: str = "tensor",
) -> Any:
    """Adam Max: Adam whose second moment is a running mean of the square of the largest gradient.

    The largest in each tensor, or with norm_scope "global" in all of them. (Adamax is another one: a maximum over time,
    element by element.)
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * max_abs(grad) ** 2
    correction1 = 1 - beta1**step if bias_correction else 1.0
    correction2 = 1 - beta2**step if bias_correction else 1.0
    scale = sqrt(exp_avg_sq / correction2) + eps
    return param - lr / correction1 * exp_avg / scale, exp_avg, exp_avg_sq
