"""Dual averaging: the parameters are computed afresh at every step, from sums over all gradients."""

from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, NON_NEGATIVE, POSITIVE, REQUIRED, Range
from stepwell_server.core.compiler.definition import optimizer, when_idle
from stepwell_server.core.compiler.functions import cbrt, maximum, minimum, sqrt, where
from stepwell_server.core.compiler.idle import idle_product


def _ftrl_idle(
    param: Any,
    accumulator: Any,
    linear: Any,
    *,
    last: int,
    lr: float,
    lr_power: float,
    l1: float,
    l2: float,
    beta: float,
) -> Any:
    """Sums stay as they are, and the parameters follow a change of lr; a row without any gradient so far stays."""
    root = sqrt(accumulator) if lr_power == -0.5 else accumulator**-lr_power
    curvature = root * (1 / lr) + (2 * l2 + beta / lr)
    within = minimum(maximum(linear, -l1), l1)
    found = where(curvature > 0, (within - linear) / where(curvature > 0, curvature, 1.0), param)
    touched = where(last > 0, 1.0, 0.0)
    return where(touched > 0, found, param), accumulator, linear


@optimizer(
    reference="McMahan et al. 2013, Algorithm 1, https://doi.org/10.1145/2487575.2488200",
    matches="keras.optimizers.Ftrl",
    flavors={
        "keras": {},
        "mcmahan": {"lr": REQUIRED, "beta": 1.0, "initial_accumulator_value": 0.0},
    },
    init={"accumulator": "initial_accumulator_value"},
    ranges={
        "lr": POSITIVE,  # it divides
        "beta": NON_NEGATIVE,
        "l1": NON_NEGATIVE,
        "l2": NON_NEGATIVE,
        "l2_shrinkage": NON_NEGATIVE,
        "lr_power": Range(maximum=0.0),
    },
    static=["lr_power"],
    idle=when_idle(
        _ftrl_idle,
        refuse={"l2_shrinkage draws idle rows along; leave it at 0": lambda v: v["l2_shrinkage"]},
        decays=False,
    ),
)
def ftrl(
    param: Any,
    grad: Any,
    accumulator: Any,
    linear: Any,
    *,
    step: int,
    lr: float = 1e-3,
    lr_power: float = -0.5,
    initial_accumulator_value: float = 0.1,
    l1: float = 0.0,
    l2: float = 0.0,
    l2_shrinkage: float = 0.0,
    beta: float = 0.0,
) -> Any:
    """FTRL-Proximal: the parameters that minimise all linearised losses so far and a regulariser that grows with them.

    l1 makes parameters exactly zero. The paper's alpha is lr, its lambda_1 is l1, its lambda_2 twice l2 (Keras's
    convention). l2_shrinkage is a decay that only linear sees. An element without any gradient so far goes to zero at
    the first step, but keeps its value where there is nothing to divide by: accumulator, beta and l2 all zero.
    """
    # The usual power is a root, which is a tenth of a power's work.
    before = sqrt(accumulator) if lr_power == -0.5 else accumulator**-lr_power
    accumulator = accumulator + grad**2
    after = sqrt(accumulator) if lr_power == -0.5 else accumulator**-lr_power
    linear = linear + grad + 2 * l2_shrinkage * param - (after - before) * (1 / lr) * param
    curvature = after * (1 / lr) + (2 * l2 + beta / lr)
    within = minimum(maximum(linear, -l1), l1)
    param = where(curvature > 0, (within - linear) / where(curvature > 0, curvature, 1.0), param)
    return param, accumulator, linear


def _madgrad_idle(param: Any, grad_sum_sq: Any, grad_sum: Any, x0: Any, *, momentum: float, eps: float) -> Any:
    """The sums stay, so the point to approach stays, too."""
    z = x0 - grad_sum / (cbrt(grad_sum_sq) + eps)
    return z + idle_product(momentum) * (param - z), grad_sum_sq, grad_sum, x0


@optimizer(
    reference="Defazio & Jelassi 2022, Algorithm 1, https://arxiv.org/abs/2101.11075",
    matches="optax.contrib.madgrad",
    flavors={"optax": {}},
    init={"x0": "param"},
    ranges={"momentum": DECAY_RATE},
    idle=when_idle(_madgrad_idle, decays=False),
)
def madgrad(
    param: Any,
    grad: Any,
    grad_sum_sq: Any,
    grad_sum: Any,
    x0: Any,
    *,
    step: int,
    lr: float,
    momentum: float = 0.9,
    eps: float = 1e-6,
) -> Any:
    """MADGRAD: AdaGrad from where training began, with a cube root, approached by momentum.

    Gradients count in proportion to lr sqrt(step). x0 is the parameters before the first step. eps is added to the root
    and, as in the authors' code and optax, to lr.
    """
    weight = (lr + eps) * sqrt(step)
    grad_sum_sq = grad_sum_sq + weight * grad**2
    grad_sum = grad_sum + weight * grad
    z = x0 - grad_sum / (cbrt(grad_sum_sq) + eps)
    return (1 - momentum) * z + momentum * param, grad_sum_sq, grad_sum, x0
