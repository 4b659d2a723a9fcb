"""Adam with Nesterov's look-ahead."""

from typing import Any

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import sqrt


@optimizer(
    reference="Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
    matches="torch.optim.NAdam",
    flavors={
        "torch": {},
        "optax": {"lr": REQUIRED, "momentum_decay": None},
        "keras": {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0},
    },
    scalars={"mu_product": 1.0},
    optional=["momentum_decay"],
)
def nadam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    mu_product: float,
    *,
    step: int,
    lr: float = 2e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    momentum_decay: float | None = 4e-3,
) -> Any:
    """NAdam: Adam that looks one step ahead, with a momentum that warms up.

    The momentum of step t is beta1 (1 - 0.96^(t momentum_decay) / 2); mu_product is the product so far. Without a
    momentum_decay it is beta1 throughout, which is optax's nadam.
    """
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay)) if momentum_decay is not None else beta1
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay)) if momentum_decay is not None else beta1
    mu_product = mu_product * mu
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    scale = sqrt(exp_avg_sq / (1 - beta2**step)) + eps
    change = lr * (1 - mu) / (1 - mu_product) * grad + lr * mu_next / (1 - mu_product * mu_next) * exp_avg
    return param - change / scale, exp_avg, exp_avg_sq, mu_product
