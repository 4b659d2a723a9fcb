"""L-BFGS with one gradient for each step, over all tensors as one vector."""

from collections.abc import Sequence
from typing import Any

from stepwell_server.core.arguments import COUNT, NON_NEGATIVE
from stepwell_server.core.compiler.definition import tensorwise

Vector = Sequence[Any]


@tensorwise(
    reference="Nocedal & Wright 2006, Algorithm 7.5",
    matches="torch.optim.LBFGS(max_iter=1)",
    flavors={"torch": {}},
    slots={
        "prev_grad": lambda shape, values: shape,
        "prev_step": lambda shape, values: shape,
        "old_dirs": lambda shape, values: (int(values["history_size"]), *shape),
        "old_stps": lambda shape, values: (int(values["history_size"]), *shape),
        "ro": lambda shape, values: (int(values["history_size"]),),
    },
    scratch=8,
    scope="group",
    ranges={
        "max_iter": COUNT,
        "history_size": COUNT,
        "tolerance_grad": NON_NEGATIVE,
        "tolerance_change": NON_NEGATIVE,
    },
    refuse={
        "max_iter is above 1, expected 1: each iteration needs a gradient, and an update brings one; set it to 1 and "
        "push more updates": lambda v: v["max_iter"] != 1,
        "line_search_fn is given, expected none: a line search needs losses at points that the trainer is not asked "
        "for; leave it out": lambda v: v["line_search_fn"] is not None,
    },
)
def lbfgs(
    xp: Any,
    param: list[Any],
    grad: list[Any],
    prev_grad: list[Any],
    prev_step: list[Any],
    old_dirs: list[Any],
    old_stps: list[Any],
    ro: list[Any],
    *,
    step: int,
    lr: float = 1.0,
    max_iter: int = 1,
    history_size: int = 100,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    line_search_fn: str | None = None,
) -> Any:
    """L-BFGS: Newton's direction by a curvature that the last history_size steps and gradients have shown.

    old_dirs and old_stps hold how gradients changed and the steps that changed them, oldest first; ro, one over the
    product of each such pair, the same for every tensor, and 0 where no pair is yet. A pair is remembered only if that
    product is above 1e-10.

    Nothing happens where no element of the gradient is above tolerance_grad. The parameters stay where the direction
    descends by less than tolerance_change, though the step is remembered. The first step goes no further than lr, or
    lr times the gradient, by the sum of absolute values.
    """
    if not param or max(float(xp.max(xp.abs(each))) for each in grad) <= tolerance_grad:
        return param, prev_grad, prev_step, old_dirs, old_stps, ro
    if any(bool(xp.any(each)) for each in prev_grad):
        change = [each - before for each, before in zip(grad, prev_grad, strict=True)]
        curvature = _dot(xp, change, prev_step)
        if curvature > 1e-10:
            _remember(change, prev_step, curvature, old_dirs, old_stps, ro)
        direction = _newton_direction(xp, grad, old_dirs, old_stps, ro[0].tolist())
        length = lr
    else:
        direction = [-each for each in grad]
        length = lr * min(1.0, 1 / sum(float(xp.sum(xp.abs(each), dtype=xp.float64)) for each in grad))
    prev_step = [length * each for each in direction]
    if _dot(xp, grad, direction) <= -tolerance_change:
        param = [each + moved for each, moved in zip(param, prev_step, strict=True)]
    return param, grad, prev_step, old_dirs, old_stps, ro


def _remember(change: Vector, moved: Vector, curvature: float, old_dirs: Vector, old_stps: Vector, ro: Vector) -> None:
    """Write a pair at the end, in place: a history of a hundred vectors is not to be copied for one of them."""
    count, room = _count(ro[0].tolist()), len(ro[0])
    for histories, newest in ((old_dirs, change), (old_stps, moved), (ro, [1 / curvature] * len(ro))):
        for history, value in zip(histories, newest, strict=True):
            if count == room:
                # Place by place: overlapping slices would be copied whole first.
                for place in range(room - 1):
                    history[place] = history[place + 1]
            history[min(count, room - 1)] = value


def _newton_direction(
    xp: Any, grad: Vector, old_dirs: Vector, old_stps: Vector, inverses: Sequence[float]
) -> Sequence[Any]:
    """Minus the inverse Hessian times the gradient, by two loops over the pairs."""
    count = _count(inverses)
    changes = [[each[place] for each in old_dirs] for place in range(count)]
    steps = [[each[place] for each in old_stps] for place in range(count)]
    direction = [-each for each in grad]
    shares = [0.0] * count
    for place in reversed(range(count)):
        shares[place] = inverses[place] * _dot(xp, steps[place], direction)
        direction = _add(direction, -shares[place], changes[place])
    if count:
        scale = 1 / (inverses[-1 + count] * _dot(xp, changes[-1], changes[-1]))
        direction = [scale * each for each in direction]
    for place in range(count):
        share = inverses[place] * _dot(xp, changes[place], direction)
        direction = _add(direction, shares[place] - share, steps[place])
    return direction


def _count(inverses: Sequence[float]) -> int:
    return sum(inverse > 0 for inverse in inverses)


def _add(vector: Vector, factor: float, other: Vector) -> list[Any]:
    return [each + factor * part for each, part in zip(vector, other, strict=True)]


def _dot(xp: Any, left: Vector, right: Vector) -> float:
    return sum(float(xp.sum(xp.multiply(one, other, dtype=xp.float64))) for one, other in zip(left, right, strict=True))
