"""Adam whose scaling waits until it has seen enough gradients."""

from typing import Any

from stepwell_server.core.arguments import REQUIRED, Range
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import sqrt


@optimizer(
    reference="Liu et al. 2020, Algorithm 2, https://arxiv.org/abs/1908.03265",
    matches="torch.optim.RAdam",
    flavors={"torch": {}, "optax": {"lr": REQUIRED, "eps_hat": False}},
    # At 4 and below there is no root to take: the variance of the scale is infinite there.
    ranges={"threshold": Range(4.0)},
)
def radam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    eps_hat: bool = True,
    threshold: float = 5.0,
) -> Any:
    """RAdam: Adam that starts as plain momentum and scales once the variance of the scale is known well enough.

    That is when length, the number of gradients that the mean of squares amounts to, has passed threshold; the step is
    then shortened by what the variance still exceeds its limit. The paper's threshold is 4, that of PyTorch and optax
    5. eps_hat (PyTorch) adds eps before the bias correction; without it (optax) eps and eps_root come after.
    """
    correction2 = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction2
    rectified = length > threshold
    limit = (longest - 4) * (longest - 2) / longest
    rectification = sqrt((length - 4) * (length - 2) / length / limit) if rectified else 1.0

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    direction = exp_avg / (1 - beta1**step)
    if eps_hat:
        scale = (sqrt(exp_avg_sq + eps_root) + eps) / sqrt(correction2)
    else:
        scale = sqrt(exp_avg_sq / correction2 + eps_root) + eps
    return param - lr * (rectification * direction / scale if rectified else direction), exp_avg, exp_avg_sq
