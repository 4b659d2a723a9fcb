"""Stochastic gradient descent, with momentum and look-ahead."""

from typing import Any

from stepwell_server.core.arguments import REQUIRED, Argument, Kind
from stepwell_server.core.compiler.definition import optimizer, when_idle
from stepwell_server.core.compiler.idle import idle_product, idle_sum


def _coast(
    param: Any, momentum_buffer: Any, *, lr: float, momentum: float, nesterov: bool, lr_in_momentum: bool
) -> Any:
    """Without a gradient the buffer decays, and the parameter goes on by what is left of it at each step."""
    if not momentum:
        return param, momentum_buffer
    rate = momentum if lr_in_momentum else lr * momentum
    rate = rate * momentum if nesterov else rate
    return param - idle_sum(rate, momentum) * momentum_buffer, idle_product(momentum) * momentum_buffer


@optimizer(
    reference="Sutskever, Martens, Dahl & Hinton 2013, https://proceedings.mlr.press/v28/sutskever13.html",
    matches="torch.optim.SGD",
    flavors={"torch": {}, "optax": {"lr": REQUIRED}, "keras": {"lr": 1e-2, "lr_in_momentum": True}},
    refuse={
        "nesterov needs momentum and no dampening, expected momentum > 0 and dampening 0; set them so": lambda v: (
            v["nesterov"] and (v["momentum"] == 0 or v["dampening"] != 0)
        )
    },
    idle=when_idle(_coast),
)
def sgd(
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    *,
    step: int,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    lr_in_momentum: bool = False,
) -> Any:
    """SGD: the gradient, or a running sum of it, times the learning rate.

    The first step takes the gradient undampened, as PyTorch does. With lr_in_momentum (Keras) the buffer holds
    steps, not gradients, so that an old learning rate stays in it.
    """
    if not momentum:
        return param - lr * grad, momentum_buffer
    if lr_in_momentum:
        momentum_buffer = momentum * momentum_buffer + lr * grad
        update = momentum * momentum_buffer + lr * grad if nesterov else momentum_buffer
        return param - update, momentum_buffer
    momentum_buffer = momentum * momentum_buffer + (1.0 if step == 1 else 1 - dampening) * grad
    update = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - lr * update, momentum_buffer


def _evaluation(param: Any, momentum_buffer: Any, *, momentum: float) -> Any:
    return param + momentum * momentum_buffer


def _lookahead(param: Any) -> Any:
    return param


nag = sgd.variant(
    "nag",
    # theta, the point that the look-ahead is from, is served instead if serve says so.
    "Nesterov's accelerated gradient, with the parameters kept at the look-ahead point where gradients are taken.",
    reference="the lecture notes; Nesterov 1983",
    matches="keras.optimizers.SGD(nesterov=True)",
    flavors={"lecture": {"momentum": 0.9}},
    fixed={"nesterov": True, "lr_in_momentum": True},
    without=["dampening"],
    extra=[Argument("serve", Kind.TEXT, "lookahead", choices=("lookahead", "theta"))],
    points={"evaluation": _evaluation, "lookahead": _lookahead},
)
