"""Adam whose second moment moves by amounts that do not depend on how large it is."""

from typing import Any

from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import sign, sqrt


@optimizer(
    reference="Zaheer et al. 2018, Algorithm 2, https://papers.nips.cc/paper/8186",
    matches="optax.yogi",
    flavors={"optax": {}},
    init={"exp_avg": "initial_accumulator_value", "exp_avg_sq": "initial_accumulator_value"},
)
def yogi(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-3,
    initial_accumulator_value: float = 1e-6,
) -> Any:
    """Yogi: Adam whose second moment goes towards the squared gradient in steps of the squared gradient's own size.

    So it cannot collapse when gradients become small. As in optax both moments start at initial_accumulator_value and
    are corrected as if they had started at zero; the paper corrects neither.
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = exp_avg_sq - (1 - beta2) * sign(exp_avg_sq - grad**2) * grad**2
    scale = sqrt(exp_avg_sq / (1 - beta2**step)) + eps
    return param - lr / (1 - beta1**step) * exp_avg / scale, exp_avg, exp_avg_sq
