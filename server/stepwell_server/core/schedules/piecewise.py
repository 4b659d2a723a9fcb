"""Schedules given by pieces: constant between jumps, or interpolated between corners."""

import math
from bisect import bisect_left, bisect_right
from itertools import pairwise

from stepwell_server.core.schedules.cosine import half_wave
from stepwell_server.core.schedules.definition import schedule

# Factors are multiplied up at every evaluation.
FACTORS_MAX = 10_000


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ConstantLR.html",
    matches="torch.optim.lr_scheduler.ConstantLR",
)
def constant(t: float, initial: float, *, factor: float = 1.0, total_iters: float = 0.0) -> float:
    """Scale the value by a factor until total_iters, then leave it as it is.

    f(t) = initial * factor for t < total_iters, else initial. total_iters in clock units; 0 never scales.
    The defaults change nothing; PyTorch's are factor 1/3 and total_iters 5. factor 0 is legal (PyTorch divides by it).
    """
    return initial * factor if t < total_iters else initial


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.StepLR.html",
    matches="torch.optim.lr_scheduler.StepLR",
)
def step(t: float, initial: float, *, step_size: float, gamma: float = 0.1) -> float:
    """Multiply the value by gamma every step_size.

    f(t) = initial * γ^⌊t / step_size⌋. step_size in clock units.
    """
    return initial * math.pow(gamma, t // step_size)


def check_milestones(*, milestones: tuple[float, ...], **_: object) -> str | None:
    """Object to milestones that fall; equal ones are fine."""
    return _check_ascending("milestones", milestones)


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.MultiStepLR.html",
    matches="torch.optim.lr_scheduler.MultiStepLR",
    check=check_milestones,
)
def multistep(t: float, initial: float, *, milestones: tuple[float, ...], gamma: float = 0.1) -> float:
    """Multiply the value by gamma at each milestone.

    f(t) = initial * γ^n, n = the number of milestones <= t: the new value holds at the milestone itself.
    milestones in clock units, ascending; one that is listed twice counts twice.
    """
    return initial * math.pow(gamma, bisect_right(milestones, t))


def check_piecewise_constant(
    *, boundaries: tuple[float, ...], scales: tuple[float, ...] | None, values: tuple[float, ...] | None, **_: object
) -> str | None:
    """Object to scales with values, to none of both, and to a wrong number of them."""
    if values is None:
        if scales is None:
            return "neither of 'scales' and 'values' given, expected exactly one; give the factors or the values"
        return check_piecewise_interpolate(boundaries=boundaries, scales=scales)
    if scales is not None:
        return "both of 'scales' and 'values' given, expected exactly one; leave one out"
    if len(values) != len(boundaries) + 1:
        return (
            f"'values' has {len(values)} numbers for {len(boundaries)} in 'boundaries', expected one more than "
            "boundaries; the first holds before the first boundary"
        )
    return _check_ascending("boundaries", boundaries)


@schedule(
    reference="https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html#optax.schedules.piecewise_constant_schedule",
    matches="optax.piecewise_constant_schedule",
    absolute_with="values",
    levels={"values"},
    check=check_piecewise_constant,
)
def piecewise_constant(
    t: float,
    initial: float,
    *,
    boundaries: tuple[float, ...],
    scales: tuple[float, ...] | None = None,
    values: tuple[float, ...] | None = None,
    inclusive: bool = True,
) -> float:
    """Take another value at each boundary: a factor on the one before, or a value from a list.

    n = the number of boundaries <= t, or < t without inclusive. f(t) = initial * scales[0] * ... * scales[n - 1], or
    values[n], absolute and one more than boundaries: exactly one of the two is given. boundaries in clock units,
    ascending. optax has scales and the new value at the boundary; Keras's PiecewiseConstantDecay has values and
    inclusive = false: the new value after the boundary.
    """
    n = bisect_right(boundaries, t) if inclusive else bisect_left(boundaries, t)
    if values is not None:
        return values[n]
    assert scales is not None  # as check_piecewise_constant says
    return initial * math.prod(scales[:n])


def check_piecewise_interpolate(*, boundaries: tuple[float, ...], scales: tuple[float, ...], **_: object) -> str | None:
    """Object to boundaries that fall, and to too few or too many scales."""
    if len(scales) != len(boundaries):
        return (
            f"'scales' has {len(scales)} numbers for {len(boundaries)} in 'boundaries', expected as many; give a "
            "factor for each boundary"
        )
    return _check_ascending("boundaries", boundaries) or _check_factors("scales", scales)


@schedule(
    reference="https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html#optax.schedules.piecewise_interpolate_schedule",
    matches="optax.piecewise_interpolate_schedule",
    choices={"interpolate_type": ("linear", "cosine")},
    check=check_piecewise_interpolate,
)
def piecewise_interpolate(
    t: float,
    initial: float,
    *,
    boundaries: tuple[float, ...],
    scales: tuple[float, ...],
    interpolate_type: str = "linear",
) -> float:
    """Go from one value to the next, each a factor on the one before, along lines or half cosines.

    The value is initial at 0, initial * scales[0] at boundaries[0], initial * scales[0] * scales[1] at boundaries[1],
    and so on, interpolated in between; the last one holds. boundaries in clock units, ascending; two equal ones jump.
    """
    n = bisect_right(boundaries, t)
    left = initial * math.prod(scales[:n])
    if n == len(boundaries):
        return left
    right, begin, end = left * scales[n], boundaries[n - 1] if n else 0.0, boundaries[n]
    share = (t - begin) / (end - begin)
    return right + (left - right) * (half_wave(share) if interpolate_type == "cosine" else 1 - share)


def check_multiplicative(*, factor: tuple[float, ...]) -> str | None:
    """Object to no factors, and to too many."""
    if not factor:
        return "'factor' is empty, expected at least one number; give the factor between clock 0 and 1"
    return _check_factors("factor", factor)


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.MultiplicativeLR.html",
    matches="torch.optim.lr_scheduler.MultiplicativeLR",
    lists={"factor"},
    check=check_multiplicative,
)
def multiplicative(t: float, initial: float, *, factor: tuple[float, ...]) -> float:
    """Multiply the value by a factor of its own at every whole unit of the clock.

    f(t) = initial * factor[0] * ... * factor[⌊t⌋ - 1]: factor[0] is what PyTorch's function returns for 1. The last
    factor goes on for ever, so that a single number stands for the same factor every time; end a list with 1 to hold.
    """
    n = int(min(t, len(factor)))
    return initial * math.prod(factor[:n]) * math.pow(factor[-1], t // 1 - n)


def check_table(*, values: tuple[float, ...]) -> str | None:
    """Object to a table without values."""
    return None if values else "'values' is empty, expected at least one number; give the value at clock 0"


@schedule(
    reference="A lookup; see optax.schedules.piecewise_constant_schedule for factors instead of values",
    absolute=True,
    check=check_table,
)
def table(t: float, initial: float, *, values: tuple[float, ...]) -> float:
    """Look the value up in a list, and hold the last one.

    f(t) = values[min(⌊t⌋, n - 1)], n values: one for each clock unit. The initial value is not used.
    """
    return values[int(min(t, len(values) - 1))]


def _check_ascending(name: str, numbers: tuple[float, ...]) -> str | None:
    for earlier, later in pairwise(numbers):
        if later < earlier:
            return f"'{name}' has {later:g} after {earlier:g}, expected ascending numbers; sort them"
    return None


def _check_factors(name: str, factors: tuple[float, ...]) -> str | None:
    if len(factors) <= FACTORS_MAX:
        return None
    return f"'{name}' has {len(factors)} numbers, expected at most {FACTORS_MAX}; give the values in a table instead"
