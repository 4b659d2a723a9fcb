"""Schedules made of schedules."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from stepwell_server.core.schedules.definition import Child, schedule


def check_sequential(*, milestones: tuple[float, ...], children: Sequence[Child]) -> str | None:
    """Object to milestones that do not separate the children."""
    if len(milestones) != len(children) - 1:
        return (
            f"'milestones' has {len(milestones)} numbers for {len(children)} under 'schedules', expected "
            f"{len(children) - 1}; give one milestone between each two schedules"
        )
    for earlier, later in pairwise(milestones):
        if later <= earlier:
            return f"'milestones' has {later:g} after {earlier:g}, expected increasing numbers; sort them"
    return None


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.SequentialLR.html",
    matches="torch.optim.lr_scheduler.SequentialLR",
    children="many",
    check=check_sequential,
)
def sequential(t: float, initial: float, *, milestones: tuple[float, ...], children: Sequence[Child]) -> float:
    """Run one schedule after the other, each from the initial value.

    f(t) = f_i(t - milestone_{i-1}), i = the number of milestones <= t, milestone_{-1} = 0: every child counts from 0
    at its own beginning and starts from the *initial* value, not from where the one before it ended. milestones in
    clock units, increasing, one fewer than the schedules.
    """
    i = bisect_right(milestones, t)
    began = milestones[i - 1] if i else 0.0
    return children[i](t - began, initial)


def check_chained(*, children: Sequence[Child]) -> str | None:
    """Object to members that are more than a factor on the initial value."""
    for i, child in enumerate(children):
        if child.level is not None:
            return (
                f"'schedules[{i}].{child.level}' gives an absolute value, expected schedules that only scale the "
                "initial one; set it to 0 or leave it out, or use another schedule"
            )
    return None


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ChainedScheduler.html",
    matches="torch.optim.lr_scheduler.ChainedScheduler",
    children="many",
    check=check_chained,
)
def chained(t: float, initial: float, *, children: Sequence[Child]) -> float:
    """Multiply schedules: each one's factor on the initial value.

    f(t) = initial * m_0(t) * m_1(t) * ..., where m_i(t) is schedule i from the initial value 1. That is a product only
    of schedules that are proportional to the initial value: one with a floor, an end value or absolute values is
    refused, because the result would depend on the order.
    """
    return initial * math.prod(child(t, 1.0) for child in children)


@schedule(reference="A product: factor * inner(t)", children=1)
def scale(t: float, initial: float, *, factor: float, children: Sequence[Child]) -> float:
    """Multiply another schedule's value by a factor.

    f(t) = factor * inner(t). An absolute schedule stays absolute.
    """
    (inner,) = children
    return factor * inner(t, initial)


def check_clamp(*, minimum: float | None, maximum: float | None, **_: object) -> str | None:
    """Object to no bound at all, and to bounds that cross."""
    if minimum is None and maximum is None:
        return "neither of 'minimum' and 'maximum' given, expected at least one; give a bound"
    if minimum is not None and maximum is not None and maximum < minimum:
        return f"'maximum' is {maximum:g} and 'minimum' {minimum:g}, expected minimum <= maximum; swap them"
    return None


@schedule(
    reference="A cut: min(max(inner(t), minimum), maximum)",
    children=1,
    levels={"minimum", "maximum"},
    check=check_clamp,
)
def clamp(
    t: float,
    initial: float,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    children: Sequence[Child],
) -> float:
    """Keep another schedule's value between bounds.

    f(t) = min(max(inner(t), minimum), maximum), both in the value's unit; none is no bound, one at least is given.
    """
    (inner,) = children
    value = inner(t, initial)
    if minimum is not None:
        value = max(value, minimum)
    return value if maximum is None else min(value, maximum)


@schedule(reference="A shift of the clock: inner(max(0, t - by))", children=1)
def shift(t: float, initial: float, *, by: float, children: Sequence[Child]) -> float:
    """Let another schedule begin later, or start in its middle.

    f(t) = inner(max(0, t - by)), by in clock units: until then the first value holds. A negative one skips the first
    units of the schedule.
    """
    (inner,) = children
    return inner(max(0.0, t - by), initial)


@schedule(
    reference="Goyal et al. 2017, section 2.2 (gradual warmup), https://arxiv.org/abs/1706.02677",
    children=1,
)
def warmup(
    t: float, initial: float, *, num_warmup_steps: float, start: float = 0.0, children: Sequence[Child]
) -> float:
    """Ramp up linearly to the first value of another schedule, then run that.

    f(t) = inner(0) * (start + (1 - start) * t / n) for t < n, then inner(t - n): the child counts from 0 when the
    warmup ends. n = num_warmup_steps in clock units; 0 has no warmup. start is a share of inner(0), not a value;
    with its default 0 the first update has the value 0.
    """
    (inner,) = children
    if t >= num_warmup_steps:
        return inner(t - num_warmup_steps, initial)
    return inner(0.0, initial) * (start + (1 - start) * (t / num_warmup_steps))
