"""Adam with the squared deviations of the gradient from its running mean in place of its squares."""

from typing import Any

from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import sqrt


@optimizer(
    reference="Zhuang et al. 2020, Algorithm 2, https://arxiv.org/abs/2010.07468",
    matches="optax.adabelief",
    flavors={"optax": {}},
)
def adabelief(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_var: Any,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    nesterov: bool = False,
) -> Any:
    """AdaBelief: Adam that takes long steps where the gradient is what its running mean led it to expect.

    The deviation is from the mean that knows this gradient already. eps_root is added to the slot at every step, as in
    the paper and optax, so that it accumulates. nesterov is optax's: Dozat's look-ahead without a momentum schedule.
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * (grad - exp_avg) ** 2 + eps_root
    if nesterov:
        ahead = 1 - beta1 ** (step + 1)
        direction = beta1 / ahead * exp_avg + (1 - beta1) / (1 - beta1**step) * grad
    else:
        direction = exp_avg / (1 - beta1**step)
    return param - lr * direction / (sqrt(exp_avg_var / (1 - beta2**step)) + eps), exp_avg, exp_avg_var


@optimizer(
    reference="Zhuang et al. 2021, https://arxiv.org/abs/2110.05454",
    matches="optax.contrib.acprop",
    flavors={"optax": {"decoupled_weight_decay": True}},
)
def acprop(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_var: Any,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
) -> Any:
    """ACProp: the gradient over the root of its mean squared deviation as it was before this gradient.

    That keeps the two independent; the first gradient is divided by 1 + eps. The running mean serves the deviations
    only. eps_root is added to the slot at every step, as in optax.
    """
    known = 1 - beta2 ** (step - 1) if step > 1 else 1.0
    variance = exp_avg_var / known if step > 1 else 1.0
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * (grad - exp_avg) ** 2 + eps_root
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    return param - lr * grad / (sqrt(variance) + eps), exp_avg, exp_avg_var
