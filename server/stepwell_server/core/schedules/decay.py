"""Schedules that change smoothly in one direction."""

import math

from stepwell_server.core.schedules.cosine import half_wave
from stepwell_server.core.schedules.definition import schedule


def check_exponential(*, gamma: float | None, decay_lambda: float | None) -> str | None:
    """Object to two rates, and to none."""
    if (gamma is None) != (decay_lambda is None):
        return None
    return (
        f"{'neither' if gamma is None else 'both'} of 'gamma' and 'decay_lambda' given, expected exactly one; "
        "gamma = exp(-decay_lambda)"
    )


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ExponentialLR.html",
    matches="torch.optim.lr_scheduler.ExponentialLR",
    check=check_exponential,
)
def exponential(t: float, initial: float, *, gamma: float | None = None, decay_lambda: float | None = None) -> float:
    """Multiply the value by the same factor at every unit of the clock.

    f(t) = initial * γ^t with gamma, initial * e^(-λt) with decay_lambda: exactly one is given. decay_lambda is
    per clock unit; a negative one grows.
    """
    if gamma is not None:
        return initial * math.pow(gamma, t)
    assert decay_lambda is not None  # as check_exponential says
    return initial * math.exp(-decay_lambda * t)


@schedule(
    reference="https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html#optax.schedules.exponential_decay",
    matches="optax.exponential_decay",
    levels={"end_value"},
)
def exponential_decay(
    t: float,
    initial: float,
    *,
    transition_steps: float,
    decay_rate: float,
    transition_begin: float = 0.0,
    staircase: bool = False,
    end_value: float | None = None,
) -> float:
    """Multiply the value by decay_rate every transition_steps, smoothly or in steps, down to an end value.

    f(t) = initial * r^((t - b) / T) from b = transition_begin on, initial before; b and T = transition_steps in clock
    units. staircase takes the floor of the exponent. end_value, in the value's unit, is a floor for r < 1 and a
    ceiling for r >= 1. As in optax, r = 0 and T = 0 leave the value as it is. Keras's ExponentialDecay has b = 0 and
    no end_value.
    """
    if transition_steps == 0 or decay_rate == 0:
        return initial
    share = max(0.0, t - transition_begin) / transition_steps
    value = initial * _power(decay_rate, math.floor(share) if staircase else share)
    if end_value is None:
        return value
    return max(value, end_value) if decay_rate < 1 else min(value, end_value)


@schedule(
    reference="https://keras.io/api/optimizers/learning_rate_schedules/inverse_time_decay/",
    matches="keras.optimizers.schedules.InverseTimeDecay",
)
def inverse_time(t: float, initial: float, *, decay_steps: float, decay_rate: float, staircase: bool = False) -> float:
    """Divide the value by a number that grows linearly.

    f(t) = initial / (1 + r * t / T), r = decay_rate, T = decay_steps in clock units; staircase takes the floor of
    t / T. With T = 1 it is the lr_decay of PyTorch's Adagrad.
    """
    share = t / decay_steps
    return initial / (1 + decay_rate * (math.floor(share) if staircase else share))


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LinearLR.html",
    matches="torch.optim.lr_scheduler.LinearLR",
)
def linear(
    t: float, initial: float, *, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: float = 5.0
) -> float:
    """Move a factor on the value linearly from start_factor to end_factor, then hold it.

    f(t) = initial * (s + (e - s) * min(t, T) / T), T = total_iters in clock units. T = 0 gives e at once.
    """
    if t >= total_iters:
        return initial * end_factor
    return initial * (start_factor + (end_factor - start_factor) * (t / total_iters))


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.PolynomialLR.html",
    matches="torch.optim.lr_scheduler.PolynomialLR",
)
def polynomial(t: float, initial: float, *, total_iters: float = 5.0, power: float = 1.0) -> float:
    """Fall to 0 along a power of the share that is left.

    f(t) = initial * (1 - min(t, T) / T)^power, T = total_iters in clock units: 0 from T on. T = 0 gives 0 at once.
    """
    left = 1 - t / total_iters if t < total_iters else 0.0
    return initial * math.pow(left, power)


@schedule(
    reference="https://keras.io/api/optimizers/learning_rate_schedules/polynomial_decay/",
    matches="keras.optimizers.schedules.PolynomialDecay",
    levels={"end_value"},
)
def polynomial_decay(
    t: float,
    initial: float,
    *,
    end_value: float = 1e-4,
    decay_steps: float,
    power: float = 1.0,
    cycle: bool = False,
    transition_begin: float = 0.0,
) -> float:
    """Fall to an end value along a power of the share that is left, once or again and again.

    f(t) = e + (initial - e) * (1 - c / T)^power, c = t - transition_begin cut to [0, T], T = decay_steps, in clock
    units; e = end_value in the value's unit. cycle does not cut c at T but takes the next multiple of T >= c instead
    of T (T itself at c = 0). optax's polynomial_schedule has no cycle, Keras's PolynomialDecay no transition_begin.
    """
    since, end = max(0.0, t - transition_begin), decay_steps
    if cycle:
        end *= max(1, math.ceil(since / decay_steps))
    left = 1 - since / end if since < end else 0.0
    return end_value + (initial - end_value) * math.pow(left, power)


@schedule(
    reference="Izmailov et al. 2018, Averaging weights leads to wider optima, https://arxiv.org/abs/1803.05407",
    matches="torch.optim.swa_utils.SWALR",
    levels={"swa_lr"},
    choices={"anneal_strategy": ("cos", "linear")},
)
def swa(t: float, initial: float, *, swa_lr: float, anneal_epochs: float = 10.0, anneal_strategy: str = "cos") -> float:
    """Move from the value to swa_lr, for the averaging of weights, and stay there.

    f(t) = swa_lr * a + initial * (1 - a), x = min(1, t / anneal_epochs), a = x (linear) or (1 - cos(π x)) / 2 (cos).
    swa_lr in the value's unit; anneal_epochs in clock units, 0 gives swa_lr at once.
    """
    share = t / anneal_epochs if t < anneal_epochs else 1.0
    left = half_wave(share) if anneal_strategy == "cos" else 1 - share
    return swa_lr + (initial - swa_lr) * left


def _power(base: float, exponent: float) -> float:
    """The power, infinite where it exceeds float64, so that an end value still bounds it."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf
