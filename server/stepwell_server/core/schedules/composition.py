"""Schedules made of schedules."""

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
