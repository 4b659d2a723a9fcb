"""Optimizers that look at the gradient's sign and not at its size."""

from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, NON_NEGATIVE, REQUIRED, Range
from stepwell_server.core.compiler.definition import optimizer, when_idle
from stepwell_server.core.compiler.functions import maximum, minimum, sign, where
from stepwell_server.core.compiler.idle import idle_product, idle_sum


def _still(param: Any, exp_avg: Any) -> Any:
    return param, exp_avg


@optimizer(
    reference="Bernstein, Wang, Azizzadenesheli & Anandkumar 2018, Algorithm 2, https://arxiv.org/abs/1802.04434",
    matches="optax.signum",
    flavors={"optax": {}},
    ranges={"momentum": DECAY_RATE},
)
def signum(param: Any, grad: Any, exp_avg: Any, *, step: int, lr: float, momentum: float = 0.9) -> Any:
    """Signum: steps of one length, with the sign of a running mean of the gradient; none where that is zero."""
    if not momentum:
        return param - lr * sign(grad), exp_avg
    exp_avg = momentum * exp_avg + (1 - momentum) * grad
    return param - lr * sign(exp_avg), exp_avg


sign_sgd = signum.variant(
    "sign_sgd",
    "signSGD: steps of one length, with the sign of the gradient; none where that is zero.",
    reference="Bernstein, Wang, Azizzadenesheli & Anandkumar 2018, Algorithm 1, https://arxiv.org/abs/1802.04434",
    matches="optax.sign_sgd",
    flavors={"optax": {}},
    fixed={"momentum": 0.0},
    idle=when_idle(_still),
)


def _rprop_idle(
    param: Any, prev: Any, step_size: Any, *, last: int, lr: float, step_size_min: float, step_size_max: float
) -> Any:
    """A zero gradient makes the next one count as the first. What the sizes start from is the first step's lr."""
    first = where(last == 0, idle_sum(lr, 0.0), 0.0)
    kept = idle_product(0.0)
    sizes = minimum(maximum(step_size + first, step_size_min), step_size_max)
    return param, kept * prev, kept * step_size + (1 - kept) * sizes


@optimizer(
    reference="Chen et al. 2023, Algorithm 2, https://arxiv.org/abs/2302.06675",
    matches="optax.lion",
    flavors={
        "optax": {"lr": REQUIRED, "weight_decay": 1e-3, "decoupled_weight_decay": True},
        "keras": {},
    },
)
def lion(
    param: Any,
    grad: Any,
    exp_avg: Any,
    *,
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.99,
) -> Any:
    """Lion: the sign of a mean that weighs this gradient by 1 - beta1, of which 1 - beta2 is remembered."""
    direction = sign(beta1 * exp_avg + (1 - beta1) * grad)
    exp_avg = beta2 * exp_avg + (1 - beta2) * grad
    return param - lr * direction, exp_avg


@optimizer(
    reference="Riedmiller & Braun 1993, https://doi.org/10.1109/ICNN.1993.298623",
    matches="torch.optim.Rprop",
    flavors={"torch": {}},
    ranges={
        "etaminus": Range(0.0, 1.0, minimum_open=True, maximum_open=True),
        "etaplus": Range(1.0, minimum_open=True),
        "step_size_min": NON_NEGATIVE,
        "step_size_max": NON_NEGATIVE,
    },
    refuse={
        "step_size_min is above step_size_max, expected it to be no larger; exchange them": lambda v: (
            v["step_size_min"] > v["step_size_max"]
        )
    },
    decay=False,
    idle=when_idle(_rprop_idle),
)
def rprop(
    param: Any,
    grad: Any,
    prev: Any,
    step_size: Any,
    *,
    step: int,
    lr: float = 1e-2,
    etaminus: float = 0.5,
    etaplus: float = 1.2,
    step_size_min: float = 1e-6,
    step_size_max: float = 50.0,
) -> Any:
    """Rprop: a step size per element, which grows while the gradient keeps its sign and shrinks where it turns.

    Where it turns the element stays where it is, and the next gradient counts as the first (the iRprop- form that
    PyTorch has). lr is what the sizes start from; later changes of it have no effect.
    """
    turn = grad * prev
    step_size = step_size + (lr if step == 1 else 0.0)
    step_size = where(turn > 0, etaplus * step_size, where(turn < 0, etaminus * step_size, step_size))
    step_size = minimum(maximum(step_size, step_size_min), step_size_max)
    prev = where(turn < 0, 0.0, grad)
    return param - sign(prev) * step_size, prev, step_size
