"""Adam with the largest gradient in place of the root mean square."""

from typing import Any

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum


@optimizer(
    reference="Kingma & Ba 2015, Algorithm 2, https://arxiv.org/abs/1412.6980",
    matches="torch.optim.Adamax",
    flavors={
        "torch": {},
        "optax": {"lr": REQUIRED},
        "keras": {"lr": 1e-3, "eps": 1e-7, "eps_at": "denominator"},
        "lecture": {},
    },
    choices={"eps_at": ("norm", "denominator")},
)
def adamax(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_inf: Any,
    *,
    step: int,
    lr: float = 2e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_at: str = "norm",
) -> Any:
    """Adamax: momentum, scaled by a decaying maximum of the gradient's size.

    eps_at says where eps is added: to the gradient's size inside the maximum (norm, PyTorch and optax), or to the
    maximum where it divides (denominator, Keras).
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    if eps_at == "norm":
        exp_inf = maximum(beta2 * exp_inf, abs(grad) + eps)
        return param - lr / (1 - beta1**step) * exp_avg / exp_inf, exp_avg, exp_inf
    exp_inf = maximum(beta2 * exp_inf, abs(grad))
    return param - lr / (1 - beta1**step) * exp_avg / (exp_inf + eps), exp_avg, exp_inf


adamaxw = adamax.variant(
    "adamaxw",
    "AdamaxW: Adamax with weight decay that bypasses the moments.",
    reference="Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, applied to Adamax",
    matches="optax.adamaxw",
    flavors={"optax": {"lr": REQUIRED, "weight_decay": 1e-4}},
    fixed={"decoupled_weight_decay": True},
    without=["eps_at"],
)
