"""Adam with Nesterov's look-ahead: Dozat's, and the lecture notes'."""

from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, REQUIRED
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


def _lookahead(param: Any, momentum_buffer: Any, *, lr: float, beta: float, velocity: str) -> Any:
    return param - beta * (momentum_buffer if velocity == "literal" else lr * momentum_buffer)


@optimizer(
    reference="the lecture notes' section on NADAM, with its two gradients and its learning rate applied twice",
    flavors={"lecture": {}},
    inputs={"lookahead_grad": "optional"},
    ranges={"beta": DECAY_RATE},
    choices={"velocity": ("literal", "ema")},
    refuse={
        "bias_correction is given with velocity literal, which is no mean; set velocity to ema": lambda v: (
            v["bias_correction"] and v["velocity"] == "literal"
        )
    },
    points={"lookahead": _lookahead},
)
def nadam_lecture(
    param: Any,
    grad: Any,
    lookahead_grad: Any,
    momentum_buffer: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float = 1e-3,
    beta: float = 0.9,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    velocity: str = "literal",
    bias_correction: bool = False,
    maximize: bool = False,
) -> Any:
    """NADAM as in the lecture notes: Adam's scaling of beta1 parts of a velocity and 1 - beta1 parts of the gradient.

    The velocity is made of gradients at the look-ahead point, theta - beta velocity, if an update carries them, and of
    the one gradient otherwise. velocity "literal" is the printed sum, beta u + lr g, so that lr acts twice; "ema" reads
    it as a running mean, whose look-ahead is lr times as far. bias_correction then corrects both means and the
    gradient: with beta = beta1 that is optax's nadam.
    """
    ahead = grad
    if lookahead_grad is not None:
        ahead = -lookahead_grad if maximize else lookahead_grad
    momentum_buffer = beta * momentum_buffer + (lr if velocity == "literal" else 1 - beta) * ahead
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    if bias_correction:
        direction = beta1 / (1 - beta ** (step + 1)) * momentum_buffer + (1 - beta1) / (1 - beta1**step) * grad
        scale = sqrt(exp_avg_sq / (1 - beta2**step)) + eps
    else:
        direction = beta1 * momentum_buffer + (1 - beta1) * grad
        scale = sqrt(exp_avg_sq) + eps
    return param - lr * direction / scale, momentum_buffer, exp_avg_sq
