"""Schedules that change smoothly in one direction."""

import math

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
