"""Adam with the order of its two moments turned around."""

from typing import Any

from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum, minimum, sqrt


@optimizer(
    reference="Taniguchi et al. 2024, https://arxiv.org/abs/2411.02853",
    matches="optax.contrib.adopt",
    flavors={"optax": {}},
)
def adopt(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.9999,
    eps: float = 1e-6,
    nesterov: bool = False,
    use_clipping: bool = True,
) -> Any:
    """ADOPT: momentum of gradients that were each scaled by the second moment from before they came.

    It converges for every beta2. The first step only fills the second moment: the parameters stay, but for weight
    decay. eps is a floor of the root, not a summand. use_clipping keeps scaled gradients within (step - 1)^(1/4).
    """
    scaled = grad / maximum(sqrt(exp_avg_sq), eps)
    if use_clipping:
        bound = (step - 1) ** 0.25
        scaled = maximum(minimum(scaled, bound), -bound)
    exp_avg = exp_avg if step == 1 else beta1 * exp_avg + (1 - beta1) * scaled
    exp_avg_sq = grad**2 if step == 1 else beta2 * exp_avg_sq + (1 - beta2) * grad**2
    direction = beta1 * exp_avg + (1 - beta1) * scaled if nesterov else exp_avg
    return param if step == 1 else param - lr * direction, exp_avg, exp_avg_sq
