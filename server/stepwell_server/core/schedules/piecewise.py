"""Schedules that stay constant between jumps."""

import math
from bisect import bisect_right
from itertools import pairwise

from stepwell_server.core.schedules.definition import schedule


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
    for earlier, later in pairwise(milestones):
        if later < earlier:
            return f"'milestones' has {later:g} after {earlier:g}, expected ascending numbers; sort them"
    return None


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
