"""AdaGrad and what followed from it: rates that adapt to each element's squared gradients."""

from typing import Any

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.definition import optimizer, when_idle
from stepwell_server.core.compiler.functions import maximum, sqrt
from stepwell_server.core.compiler.idle import idle_product, idle_sum


def _adagrad_idle(
    param: Any,
    sum: Any,  # noqa: A002  # PyTorch's name of the slot
    momentum_buffer: Any,
    *,
    step: int,
    lr: float,
    lr_decay: float,
    momentum: float,
) -> Any:
    if not momentum:
        return param, sum, momentum_buffer
    travelled = idle_sum(lr / (1 + (step - 1) * lr_decay) * momentum, momentum)
    return param - travelled * momentum_buffer, sum, idle_product(momentum) * momentum_buffer


@optimizer(
    reference="Duchi, Hazan & Singer 2011, https://jmlr.org/papers/v12/duchi11a.html",
    matches="torch.optim.Adagrad",
    flavors={
        "torch": {},
        "optax": {"lr": REQUIRED, "eps": 0.0, "eps_root": 1e-7, "initial_accumulator_value": 0.1},
        "keras": {"lr": 1e-3, "eps": 0.0, "eps_root": 1e-7, "initial_accumulator_value": 0.1},
        "lecture": {"eps": 0.0, "eps_root": 1e-8},
    },
    init={"sum": "initial_accumulator_value"},
    idle=when_idle(_adagrad_idle),
)
def adagrad(
    param: Any,
    grad: Any,
    sum: Any,  # noqa: A002  # PyTorch's name of the slot
    momentum_buffer: Any,
    *,
    step: int,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    eps_root: float = 0.0,
    momentum: float = 0.0,
) -> Any:
    """AdaGrad: the gradient over the root of the sum of its squares.

    eps outside the root is PyTorch's, eps_root inside is optax's, Keras's and the lecture notes'. momentum is the
    notes' open idea: a running sum of the scaled gradients, undampened.
    """
    sum = sum + grad**2  # noqa: A001
    update = grad / (sqrt(sum + eps_root) + eps)
    if momentum:
        momentum_buffer = momentum * momentum_buffer + update
        update = momentum_buffer
    return param - lr / (1 + (step - 1) * lr_decay) * update, sum, momentum_buffer


def _rmsprop_idle(
    param: Any,
    square_avg: Any,
    grad_avg: Any,
    momentum_buffer: Any,
    *,
    lr: float,
    alpha: float,
    momentum: float,
    centered: bool,
    nesterov: bool,
    lr_in_momentum: bool,
) -> Any:
    """The means decay, and what the buffer still holds goes on."""
    square_avg = idle_product(alpha) * square_avg
    if centered:
        grad_avg = idle_product(alpha) * grad_avg
    if not momentum:
        return param, square_avg, grad_avg, momentum_buffer
    rate = momentum if lr_in_momentum else lr * momentum
    rate = rate * momentum if nesterov else rate
    param = param - idle_sum(rate, momentum) * momentum_buffer
    return param, square_avg, grad_avg, idle_product(momentum) * momentum_buffer


@optimizer(
    reference="Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013, https://arxiv.org/abs/1308.0850",
    matches="torch.optim.RMSprop",
    flavors={
        "torch": {},
        "optax": {"lr": REQUIRED, "alpha": 0.9, "eps": 0.0, "eps_root": 1e-8, "lr_in_momentum": True},
        "keras": {"lr": 1e-3, "alpha": 0.9, "eps": 0.0, "eps_root": 1e-7, "lr_in_momentum": True},
        "lecture": {"alpha": 0.9, "eps": 0.0, "eps_root": 1e-8},
    },
    init={"square_avg": "initial_scale"},
    refuse={
        "nesterov is given with momentum 0, expected momentum > 0; set it": lambda v: (
            v["nesterov"] and not v["momentum"]
        )
    },
    idle=when_idle(_rmsprop_idle),
)
def rmsprop(
    param: Any,
    grad: Any,
    square_avg: Any,
    grad_avg: Any,
    momentum_buffer: Any,
    *,
    step: int,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    nesterov: bool = False,
    lr_in_momentum: bool = False,
    bias_correction: bool = False,
    initial_scale: float = 0.0,
) -> Any:
    """RMSprop: the gradient over the root of a running mean of its square.

    centered subtracts the squared running mean of the gradient; the difference is kept from falling below zero, where
    PyTorch's would give NaN. With lr_in_momentum (optax, Keras) the buffer holds steps. bias_correction, nesterov and
    initial_scale (what square_avg starts as) are optax's.
    """
    correction = 1 - alpha**step if bias_correction else 1.0
    square_avg = alpha * square_avg + (1 - alpha) * grad**2
    variance = square_avg / correction if bias_correction else square_avg
    if centered:
        grad_avg = alpha * grad_avg + (1 - alpha) * grad
        mean = grad_avg / correction if bias_correction else grad_avg
        variance = maximum(variance - mean**2, 0.0)
    update = grad / (sqrt(variance + eps_root) + eps)
    if not momentum:
        return param - lr * update, square_avg, grad_avg, momentum_buffer
    scaled = lr * update if lr_in_momentum else update
    momentum_buffer = momentum * momentum_buffer + scaled
    change = scaled + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - (change if lr_in_momentum else lr * change), square_avg, grad_avg, momentum_buffer


def _adadelta_idle(param: Any, square_avg: Any, acc_delta: Any, *, rho: float) -> Any:
    return param, idle_product(rho) * square_avg, idle_product(rho) * acc_delta


@optimizer(
    reference="Zeiler 2012, Algorithm 1, https://arxiv.org/abs/1212.5701",
    matches="torch.optim.Adadelta",
    flavors={
        "torch": {},
        "optax": {},
        "keras": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7},
        "lecture": {},
    },
    idle=when_idle(_adadelta_idle),
)
def adadelta(
    param: Any,
    grad: Any,
    square_avg: Any,
    acc_delta: Any,
    *,
    step: int,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
) -> Any:
    """AdaDelta: steps in the units of the parameters, from running means of squared gradients and squared steps.

    The step uses acc_delta from before this update, and acc_delta does not know lr.
    """
    square_avg = rho * square_avg + (1 - rho) * grad**2
    delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * grad
    acc_delta = rho * acc_delta + (1 - rho) * delta**2
    return param - lr * delta, square_avg, acc_delta


def _ratio_idle(param: Any, square_avg: Any, *, rho: float) -> Any:
    return param, idle_product(rho) * square_avg


@optimizer(
    reference="the lecture notes' section on schedules; a misprint of AdaDelta, kept under its own name",
    flavors={"lecture": {}},
    decay=False,
    idle=when_idle(_ratio_idle),
)
def adadelta_ratio(param: Any, grad: Any, square_avg: Any, *, step: int, rho: float = 0.9, eps: float = 1e-6) -> Any:
    """AdaDelta as misprinted: the numerator holds the old mean of squared gradients instead of squared steps.

    That makes the rate sqrt((v_{t-1} + eps) / (v_t + eps)), near 1: close to SGD with a learning rate of 1.
    """
    before = square_avg
    square_avg = rho * square_avg + (1 - rho) * grad**2
    return param - sqrt(before + eps) / sqrt(square_avg + eps) * grad, square_avg
