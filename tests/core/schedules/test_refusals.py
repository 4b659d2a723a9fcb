"""Every spec that is refused: the class of the error, and that its message names the field."""

from typing import Any

import numpy as np
import pytest

from stepwell_server.core.errors import InvalidSpec, InvalidValue, LimitExceeded, UnknownArgument, UnknownSchedule
from stepwell_server.core.schedules import (
    DEPTH_MAX,
    LIST_LENGTH_MAX,
    NODES_MAX,
    PREVIEW_STEPS_MAX,
    Schedule,
    list_schedules,
    preview,
)

STEP = {"name": "step", "step_size": 10}


def pair(**second: Any) -> dict[str, Any]:
    return {"name": "sequential", "milestones": [5], "schedules": [STEP, second]}


def nest(depth: int) -> dict[str, Any]:
    spec: dict[str, Any] = STEP
    for _ in range(depth - 1):
        spec = {"name": "warmup", "num_warmup_steps": 1, "schedules": [spec]}
    return spec


def many(nodes: int) -> dict[str, Any]:
    return {"name": "sequential", "milestones": list(range(nodes - 2)), "schedules": [STEP] * (nodes - 1)}


CYCLE: dict[str, Any] = {"name": "warmup", "num_warmup_steps": 1}
CYCLE["schedules"] = [CYCLE]

REFUSED = [
    ({"name": "stepp"}, UnknownSchedule, "schedule 'stepp' .* did you mean 'step'"),
    (pair(name="cosin"), UnknownSchedule, r"schedules\[1\].*'cosin' .* did you mean 'cosine'"),
    ({"name": "x" * 100_000}, UnknownSchedule, "schedule 'x{128}' "),
    ({}, InvalidSpec, "'name'"),
    ({"name": 3}, InvalidSpec, "'name'"),
    ("step", InvalidSpec, "expected a mapping"),
    ({"name": "warmup", "num_warmup_steps": 1, "schedules": ["step"]}, InvalidSpec, r"schedules\[0\]"),
    (STEP | {"gama": 1}, UnknownArgument, "'gama' .* did you mean 'gamma'"),
    (STEP | {3: 1}, UnknownArgument, "'3'"),
    (pair(**STEP, gama=1), UnknownArgument, r"schedules\[1\].*'gama' .* did you mean 'gamma'"),
    ({"name": "step"}, InvalidSpec, "'step_size' is missing"),
    (pair(name="step"), InvalidSpec, r"'schedules\[1\].step_size' is missing"),
    (STEP | {"gamma": -0.5}, InvalidValue, "'gamma' is -0.5"),
    (STEP | {"gamma": float("nan")}, InvalidValue, "'gamma' is nan"),
    (STEP | {"gamma": float("inf")}, InvalidValue, "'gamma' is inf"),
    (STEP | {"gamma": 10**400}, InvalidValue, "'gamma'"),
    (STEP | {"gamma": True}, InvalidValue, "'gamma' is True"),
    (STEP | {"gamma": "0.1"}, InvalidValue, "'gamma' is '0.1'"),
    (STEP | {"gamma": [0.1]}, InvalidValue, "'gamma'"),
    (STEP | {"gamma": None}, InvalidValue, "'gamma' is None"),
    (STEP | {"step_size": 0}, InvalidValue, "'step_size' is 0"),
    (pair(**STEP, gamma=-1), InvalidValue, r"'schedules\[1\].gamma' is -1"),
    ({"name": "warmup", "num_warmup_steps": 1, "schedules": [pair(**STEP, gamma=-1)]}, InvalidValue,
     r"'schedules\[0\].schedules\[1\].gamma' is -1"),
    ({"name": "constant", "factor": -1}, InvalidValue, "'factor'"),
    ({"name": "constant", "total_iters": -1}, InvalidValue, "'total_iters'"),
    ({"name": "multistep", "milestones": [3, 1]}, InvalidSpec, "'milestones' has 1 after 3"),
    ({"name": "multistep", "milestones": [-1, 1]}, InvalidValue, "'milestones'"),
    ({"name": "multistep", "milestones": 3}, InvalidValue, "'milestones' is 3"),
    ({"name": "multistep", "milestones": ["3"]}, InvalidValue, "'milestones'"),
    ({"name": "exponential"}, InvalidSpec, "neither of 'gamma' and 'decay_lambda'"),
    ({"name": "exponential", "gamma": 1, "decay_lambda": 1}, InvalidSpec, "both of 'gamma' and 'decay_lambda'"),
    ({"name": "linear", "start_factor": -1}, InvalidValue, "'start_factor'"),
    ({"name": "linear", "end_factor": -1}, InvalidValue, "'end_factor'"),
    ({"name": "cosine", "t_max": 0}, InvalidValue, "'t_max' is 0"),
    ({"name": "cosine", "t_max": 5, "hold": 1}, InvalidValue, "'hold' is 1"),
    ({"name": "cosine_restarts", "t_0": 0}, InvalidValue, "'t_0'"),
    ({"name": "cosine_restarts", "t_0": 5, "t_mult": 0}, InvalidValue, "'t_mult'"),
    ({"name": "cosine_restarts", "t_0": 5, "t_mult": 1.5}, InvalidValue, "'t_mult' is 1.5"),
    ({"name": "cosine_restarts", "t_0": 5, "m_mul": -1}, InvalidValue, "'m_mul'"),
    ({"name": "cosine_restarts", "t_0": 5, "eta_min": 0.1, "alpha": 0.1}, InvalidSpec, "'eta_min' .* 'alpha'"),
    ({"name": "triangular", "period": 0, "eta_min": 0, "eta_max": 1}, InvalidValue, "'period'"),
    ({"name": "triangular_literal", "period": -1, "eta_min": 0, "eta_max": 1}, InvalidValue, "'period'"),
    ({"name": "cyclic", "base_lr": 0, "max_lr": 1, "mode": "square"}, InvalidValue, "'mode' .* triangular2"),
    ({"name": "cyclic", "base_lr": 0, "max_lr": 1, "output": "beta"}, InvalidValue, "'output' .* momentum"),
    ({"name": "cyclic", "base_lr": 0, "max_lr": 1, "step_size_up": 0}, InvalidValue, "'step_size_up'"),
    ({"name": "cyclic", "base_lr": 0, "max_lr": 1, "step_size_down": 0}, InvalidValue, "'step_size_down'"),
    ({"name": "table", "values": []}, InvalidSpec, "'values' is empty"),
    ({"name": "table", "values": [1.0, float("nan")]}, InvalidValue, "'values'"),
    ({"name": "warmup", "num_warmup_steps": -1, "schedules": [STEP]}, InvalidValue, "'num_warmup_steps'"),
    ({"name": "warmup", "num_warmup_steps": 1, "start": -1, "schedules": [STEP]}, InvalidValue, "'start'"),
    ({"name": "warmup", "num_warmup_steps": 1}, InvalidSpec, "'schedules' holds 0 .* exactly one"),
    ({"name": "warmup", "num_warmup_steps": 1, "schedules": [STEP, STEP]}, InvalidSpec, "'schedules' holds 2"),
    ({"name": "warmup", "num_warmup_steps": 1, "schedules": STEP}, InvalidValue, "'schedules' is dict"),
    ({"name": "sequential", "milestones": []}, InvalidSpec, "'schedules' holds 0 .* at least one"),
    (STEP | {"schedules": [STEP]}, InvalidSpec, "'schedules' holds 1 .* none"),
    ({"name": "sequential", "milestones": [5], "schedules": [STEP]}, InvalidSpec, "'milestones' has 1 numbers for 1"),
    ({"name": "sequential", "milestones": [5, 5], "schedules": [STEP] * 3}, InvalidSpec, "'milestones' has 5 after 5"),
    (STEP | {"clock": "seconds"}, InvalidValue, "'clock' is 'seconds', .* epochs"),
    (STEP | {"clock": ["epochs"]}, InvalidValue, "'clock'"),
    (pair(**STEP, clock="epochs"), InvalidSpec, r"'schedules\[1\].clock'"),
    (nest(DEPTH_MAX + 1), LimitExceeded, "nesting depth is 9, expected at most 8"),
    (CYCLE, LimitExceeded, "nesting depth"),
    (many(NODES_MAX + 1), LimitExceeded, "number of schedules is 65, expected at most 64"),
    ({"name": "table", "values": [0.0] * (LIST_LENGTH_MAX + 1)}, LimitExceeded, "'values' is 100001"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "error", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(spec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Schedule.parse(spec)
    assert type(caught.value) is error
    assert len(str(caught.value)) < 1000


def test_limits_are_reached() -> None:
    for spec in (nest(DEPTH_MAX), many(NODES_MAX), {"name": "table", "values": [0.5] * LIST_LENGTH_MAX}):
        assert np.isfinite(preview(Schedule.parse(spec), 0.1, 10)).all()


def test_no_children_is_an_empty_list() -> None:
    assert Schedule.parse(STEP | {"schedules": []}) == Schedule.parse(STEP)


@pytest.mark.parametrize(
    ("spec", "t", "initial"),
    [
        ({"name": "exponential", "decay_lambda": -1.0}, 1000.0, 0.1),  # math.exp overflows
        ({"name": "exponential", "gamma": 10.0}, 1000.0, 0.1),  # so does math.pow
        ({"name": "step", "step_size": 1, "gamma": 1e10}, 31.0, 0.0),
        ({"name": "constant", "factor": 1e300, "total_iters": 5}, 0.0, 1e300),  # a product, silently infinite
        ({"name": "cosine", "t_max": 5}, 0.0, float("nan")),
        ({"name": "triangular_literal", "period": 1e-300, "eta_min": 0, "eta_max": 1}, 1e300, 0.1),
    ],
)
def test_nonfinite_value_is_an_error(spec: dict[str, Any], t: float, initial: float) -> None:
    with pytest.raises(InvalidValue, match=f"schedule '{spec['name']}': the value at clock"):
        Schedule.parse(spec)(t, initial)


def test_preview_refuses() -> None:
    schedule = Schedule.parse(STEP)
    assert preview(schedule, 0.1, 0).shape == (0,)
    with pytest.raises(InvalidValue, match="steps is -1"):
        preview(schedule, 0.1, -1)
    with pytest.raises(LimitExceeded, match="steps"):
        preview(schedule, 0.1, PREVIEW_STEPS_MAX + 1)
    with pytest.raises(InvalidValue, match="initial is nan"):
        preview(Schedule.parse({"name": "table", "values": [1]}), float("nan"), 5)


def test_no_schedule_takes_a_reserved_name() -> None:
    reserved = {"name", "clock", "schedules", "t", "initial", "children"}
    assert not [entry.name for entry in list_schedules() for a in entry.arguments if a.name in reserved]
