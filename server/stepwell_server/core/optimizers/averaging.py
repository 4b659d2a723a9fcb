"""Descent whose result is an average of the iterates."""

from typing import Any

from stepwell_server.core.arguments import NON_NEGATIVE, Range
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum, minimum, sqrt


def _average(param: Any, ax: Any) -> Any:
    return ax


@optimizer(
    reference="Polyak & Juditsky 1992, https://doi.org/10.1137/0330046",
    matches="torch.optim.ASGD",
    flavors={"torch": {}},
    scalars={"eta": 0.0, "mu": 1.0},
    init={"ax": "param"},
    ranges={"alpha": NON_NEGATIVE, "lambd": NON_NEGATIVE, "t0": NON_NEGATIVE},
    points={"average": _average},
)
def asgd(
    param: Any,
    grad: Any,
    ax: Any,
    eta: float,
    mu: float,
    *,
    step: int,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
) -> Any:
    """ASGD: descent with a decaying rate and decay of its own, and the mean of the iterates from step t0 on.

    eta, the rate, is computed for the next step at the end of each, as in PyTorch: a new lr acts one step late. ax is
    the mean; until t0 it is the parameter itself.
    """
    rate = lr if step == 1 else eta
    param = param * (1 - lambd * rate) - rate * grad
    ax = param if mu == 1 else ax + mu * (param - ax)
    eta = lr / (1 + lambd * lr * step) ** alpha
    mu = 1 / maximum(1, step - t0)
    return param, ax, eta, mu


def _evaluation(param: Any, z: Any, *, beta1: float) -> Any:
    return (param - (1 - beta1) * z) / beta1


@optimizer(
    reference="Defazio et al. 2024, Algorithm 1, https://arxiv.org/abs/2405.15682",
    matches="schedulefree.AdamWScheduleFree",
    flavors={
        "optax": {"warmup_from_zero": True},
        "schedulefree": {},
        "keras": {"weight_lr_power": 0.0},
    },
    scalars={"lr_max": 0.0, "weight_sum": 0.0},
    init={"z": "param"},
    ranges={
        # At 0 the average cannot be told from the parameters.
        "beta1": Range(0.0, 1.0, minimum_open=True),
        "r": NON_NEGATIVE,
        "warmup_steps": NON_NEGATIVE,
        "weight_lr_power": NON_NEGATIVE,
    },
    points={"evaluation": _evaluation},
    decay=False,
)
def schedule_free_adamw(
    param: Any,
    grad: Any,
    z: Any,
    exp_avg_sq: Any,
    lr_max: float,
    weight_sum: float,
    *,
    step: int,
    lr: float = 2.5e-3,
    beta1: float = 0.9,
    beta2: float | None = 0.999,  # none in schedule_free_sgd alone: nothing is scaled
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    warmup_steps: int = 0,
    warmup_from_zero: bool = False,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Any:
    """Schedule-free AdamW: the average of the iterates serves in place of a decaying learning rate.

    The paper's three sequences are z, which descends; x, their weighted average, which is to be evaluated; and
    y = (1 - beta1) z + beta1 x, where gradients are taken. The parameters are y, and x follows from y and z. An
    iterate's weight is step^r times the largest learning rate so far to the power weight_lr_power; with both zero
    (Keras) all count alike. Weight decay joins the scaled gradient, or, decoupled (Keras), shrinks y alone. With
    warmup_from_zero (optax) the descent is one step behind the weights in its warmup and starts at a rate of zero.
    """
    if weight_decay and decoupled_weight_decay:
        param = param * (1 - lr * weight_decay)
    direction = grad
    if beta2 is not None:
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
        direction = grad / (sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    if weight_decay and not decoupled_weight_decay:
        direction = direction + weight_decay * param

    rate = lr
    weighted = lr
    if warmup_steps:
        rate = lr * minimum(1.0, (step - 1 if warmup_from_zero else step) / warmup_steps)
        weighted = lr * minimum(1.0, step / warmup_steps)
    lr_max = maximum(lr_max, weighted)
    weight = step**r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    share = weight / weight_sum if weight_sum > 0 else 0.0

    param = param + share * (z - param) + rate * (beta1 * (1 - share) - 1) * direction
    return param, z - rate * direction, exp_avg_sq, lr_max, weight_sum


schedule_free_sgd = schedule_free_adamw.variant(
    "schedule_free_sgd",
    "Schedule-free SGD: the average of the iterates serves in place of a decaying learning rate.",
    reference="Defazio et al. 2024, https://arxiv.org/abs/2405.15682",
    matches="schedulefree.SGDScheduleFree",
    flavors={"optax": {"lr": 1.0, "warmup_from_zero": True}, "schedulefree": {"lr": 1.0}},
    fixed={"beta2": None},
    without=["eps", "decoupled_weight_decay"],
)
