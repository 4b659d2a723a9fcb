"""The schedule that waits for a metric to stop improving: the only one whose value depends on what was reported.

It is a pure state machine. Reports come in whatever rhythm the caller has; the clock plays no part:

    state = PlateauState()
    state = report(schedule.keywords, state, metric, initial)
    lr = value(state, initial)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stepwell_server.core.arguments import DECAY_RATE
from stepwell_server.core.schedules.definition import schedule


@dataclass(frozen=True)
class PlateauState:
    """What is known after some reports.

    best: the best metric, None before one was better than nothing. bad_count: reports since that were not better.
    cooldown_count: reports that do not count as bad. value: the schedule's, None before the first report.
    """

    best: float | None = None
    bad_count: int = 0
    cooldown_count: int = 0
    value: float | None = None


@schedule(
    reference="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html",
    matches="torch.optim.lr_scheduler.ReduceLROnPlateau",
    stateful=True,
    ranges={"factor": DECAY_RATE},
    choices={"mode": ("min", "max"), "threshold_mode": ("rel", "abs")},
)
def plateau(
    t: float,
    initial: float,
    *,
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
    metric: str = "",
) -> float:
    """Lower the value by a factor when a reported metric has stopped improving.

    The value is initial until a report changes it. A metric a is better than the best one b if a < b * (1 - threshold)
    (rel) or a < b - threshold (abs); with mode max, a > b * (1 + threshold) or a > b + threshold. After more than
    patience reports in a row that are not better, the value becomes max(value * factor, min_lr), if that lowers it by
    more than eps, and the next cooldown reports count as good. min_lr and eps in the value's unit. As in PyTorch, rel
    is meant for positive metrics: below 0, one that is a little worse than the best counts as better. metric: the name
    of the metric to follow; may be left out where reports hold a single one.
    """
    return initial


def value(state: PlateauState, initial: float) -> float:
    """The schedule's value in this state: `initial` before the first report."""
    return initial if state.value is None else state.value


def report(arguments: Mapping[str, Any], state: PlateauState, metric: float, initial: float) -> PlateauState:
    """Return the state after one more report.

    arguments: all of the schedule's, as in Schedule.keywords. initial: what the value starts from at the first report.
    A metric that is NaN is not better.
    """
    best, bad_count, cooldown_count = state.best, state.bad_count + 1, state.cooldown_count
    if _is_better(arguments, metric, best):
        best, bad_count = metric, 0
    if cooldown_count > 0:
        cooldown_count, bad_count = cooldown_count - 1, 0
    after = replace(state, best=best, bad_count=bad_count, cooldown_count=cooldown_count, value=value(state, initial))
    if bad_count <= arguments["patience"]:
        return after
    return replace(
        after, bad_count=0, cooldown_count=int(arguments["cooldown"]), value=_lower(arguments, value(after, initial))
    )


def _is_better(arguments: Mapping[str, Any], metric: float, best: float | None) -> bool:
    falling = arguments["mode"] == "min"
    threshold = arguments["threshold"] if falling else -arguments["threshold"]
    if best is None:
        bound = math.inf if falling else -math.inf
    else:
        bound = best * (1 - threshold) if arguments["threshold_mode"] == "rel" else best - threshold
    return metric < bound if falling else metric > bound


def _lower(arguments: Mapping[str, Any], before: float) -> float:
    after = max(before * float(arguments["factor"]), float(arguments["min_lr"]))
    return after if before - after > arguments["eps"] else before
