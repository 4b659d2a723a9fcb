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


def chain(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "chained", "schedules": [STEP, {"name": name, **arguments}]}


WITH_WARMUP: dict[str, Any] = {"num_warmup_steps": 5, "num_training_steps": 10}
ONE_CYCLE: dict[str, Any] = {"name": "one_cycle", "max_lr": 1, "total_steps": 10}
DECAY: dict[str, Any] = {"transition_steps": 1, "decay_rate": 1}
COSINE_DECAY: dict[str, Any] = {"name": "cosine_decay", "decay_steps": 1}
PIECES: dict[str, Any] = {"name": "piecewise_constant", "boundaries": [5, 4]}
CORNERS: dict[str, Any] = {"name": "piecewise_interpolate", "boundaries": [5], "scales": [1]}
PEAK: dict[str, Any] = {"init_value": 0, "peak_value": 1}
WSD: dict[str, Any] = {"name": "wsd", "num_warmup_steps": 1, "num_stable_steps": 1, "num_decay_steps": 1}
COMPOSITIONS: dict[str, dict[str, Any]] = {
    "chained": {},
    "clamp": {"minimum": 0},
    "scale": {"factor": 1},
    "sequential": {"milestones": []},
    "shift": {"by": 1},
    "warmup": {"num_warmup_steps": 1},
}
TRAININGS: dict[str, dict[str, Any]] = {
    "linear_with_warmup": {},
    "cosine_with_warmup": {},
    "cosine_with_hard_restarts": {},
    "cosine_with_min_lr": {"min_lr": 0},
    "polynomial_with_warmup": {},
}


def nest(depth: int) -> dict[str, Any]:
    spec: dict[str, Any] = STEP
    for _ in range(depth - 1):
        spec = {"name": "warmup", "num_warmup_steps": 1, "schedules": [spec]}
    return spec


def many(nodes: int) -> dict[str, Any]:
    return {"name": "sequential", "milestones": list(range(nodes - 2)), "schedules": [STEP] * (nodes - 1)}


CYCLE: dict[str, Any] = {"name": "warmup", "num_warmup_steps": 1}
CYCLE["schedules"] = [CYCLE]

REFUSED: list[tuple[Any, type[Exception], str]] = [
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
    ({"name": "exponential_decay", "transition_steps": -1, "decay_rate": 1}, InvalidValue, "'transition_steps'"),
    ({"name": "exponential_decay", "transition_steps": 1, "decay_rate": -1}, InvalidValue, "'decay_rate'"),
    ({"name": "exponential_decay", **DECAY, "transition_begin": -1}, InvalidValue, "'transition_begin'"),
    ({"name": "inverse_time", "decay_steps": 0, "decay_rate": 1}, InvalidValue, "'decay_steps' is 0"),
    ({"name": "inverse_time", "decay_steps": 1, "decay_rate": -1}, InvalidValue, "'decay_rate'"),
    ({"name": "polynomial", "total_iters": -1}, InvalidValue, "'total_iters'"),
    ({"name": "polynomial", "power": -1}, InvalidValue, "'power'"),
    ({"name": "polynomial_decay", "decay_steps": 0}, InvalidValue, "'decay_steps'"),
    ({"name": "polynomial_decay", "decay_steps": 1, "cycle": 1}, InvalidValue, "'cycle'"),
    ({"name": "cosine_decay", "decay_steps": 0}, InvalidValue, "'decay_steps'"),
    (COSINE_DECAY | {"exponent": -1}, InvalidValue, "'exponent'"),
    (COSINE_DECAY | {"warmup_target": 1, "warmup_steps": -1}, InvalidValue, "'warmup_steps'"),
    (COSINE_DECAY | {"warmup_steps": 5}, InvalidSpec, "'warmup_steps' is 5 .*'warmup_target'"),
    ({"name": "swa", "swa_lr": 1, "anneal_epochs": -1}, InvalidValue, "'anneal_epochs'"),
    ({"name": "swa", "swa_lr": 1, "anneal_strategy": "cosine"}, InvalidValue, "'anneal_strategy' .* cos, linear"),
    (ONE_CYCLE | {"total_steps": 0}, InvalidValue, "'total_steps'"),
    (ONE_CYCLE | {"pct_start": 1.5}, InvalidValue, "'pct_start'"),
    (ONE_CYCLE | {"div_factor": 0}, InvalidValue, "'div_factor'"),
    (ONE_CYCLE | {"final_div_factor": -1}, InvalidValue, "'final_div_factor'"),
    (ONE_CYCLE | {"anneal_strategy": "cosine"}, InvalidValue, "'anneal_strategy'"),
    (ONE_CYCLE | {"output": "beta1"}, InvalidValue, "'output'"),
    ({"name": "linear_onecycle", "transition_steps": 0, "peak_value": 1}, InvalidValue, "'transition_steps' is 0"),
    ({"name": "linear_onecycle", "transition_steps": 9, "peak_value": 1, "pct_final": 0.2}, InvalidSpec,
     "'pct_final' is 0.2"),
    ({"name": "cosine_onecycle", "transition_steps": 9, "peak_value": 1, "pct_final": 0.9}, UnknownArgument,
     "'pct_final'"),
    ({"name": "cosine_onecycle", "transition_steps": -9, "peak_value": 1}, InvalidValue, "'transition_steps'"),
    ({"name": "piecewise_constant", "boundaries": [5]}, InvalidSpec, "neither of 'scales' and 'values'"),
    ({"name": "piecewise_constant", "boundaries": [5], "scales": [1], "values": [1, 2]}, InvalidSpec,
     "both of 'scales' and 'values'"),
    ({"name": "piecewise_constant", "boundaries": [5], "scales": [1, 2]}, InvalidSpec, "'scales' has 2 .* 1"),
    ({"name": "piecewise_constant", "boundaries": [5], "values": [1]}, InvalidSpec, "'values' has 1 .* 1"),
    (PIECES | {"scales": [1, 2]}, InvalidSpec, "'boundaries' has 4 after 5"),
    (PIECES | {"values": [1, 2, 3]}, InvalidSpec, "'boundaries' has 4 after 5"),
    ({"name": "piecewise_constant", "boundaries": [-5], "scales": [1]}, InvalidValue, "'boundaries'"),
    ({"name": "piecewise_constant", "boundaries": [5], "scales": [-1]}, InvalidValue, "'scales'"),
    (CORNERS | {"scales": []}, InvalidSpec, "'scales' has 0 .* 1"),
    (CORNERS | {"boundaries": [5, 4], "scales": [1, 2]}, InvalidSpec, "'boundaries' has 4 after 5"),
    (CORNERS | {"interpolate_type": "cos"}, InvalidValue, "'interpolate_type'"),
    (CORNERS | {"boundaries": [5] * 10_001, "scales": [1] * 10_001}, InvalidSpec, "'scales' has 10001"),
    ({"name": "multiplicative", "factor": []}, InvalidSpec, "'factor' is empty"),
    ({"name": "multiplicative", "factor": -1}, InvalidValue, "'factor' is -1"),
    ({"name": "multiplicative", "factor": [1, -1]}, InvalidValue, "'factor'"),
    ({"name": "multiplicative", "factor": True}, InvalidValue, "'factor' is True"),
    ({"name": "multiplicative", "factor": None}, InvalidValue, "'factor' is None"),
    ({"name": "multiplicative", "factor": [1] * 10_001}, InvalidSpec, "'factor' has 10001"),
    ({"name": "noam", "d_model": 0}, InvalidValue, "'d_model'"),
    ({"name": "noam", "d_model": 1, "warmup": -1}, InvalidValue, "'warmup'"),
    ({"name": "inverse_sqrt", "num_warmup_steps": -1}, InvalidValue, "'num_warmup_steps'"),
    ({"name": "inverse_sqrt", "num_warmup_steps": 1, "timescale": 0}, InvalidValue, "'timescale'"),
    ({"name": "constant_with_warmup", "num_warmup_steps": -1}, InvalidValue, "'num_warmup_steps'"),
    *(({"name": name, "num_warmup_steps": 5, "num_training_steps": 4, **more}, InvalidSpec, "'num_training_steps' is 4")
      for name, more in TRAININGS.items()),
    ({"name": "cosine_with_warmup", **WITH_WARMUP, "num_cycles": -1}, InvalidValue, "'num_cycles'"),
    ({"name": "cosine_with_warmup", **WITH_WARMUP, "num_training_steps": -1}, InvalidValue, "'num_training_steps'"),
    ({"name": "cosine_with_min_lr", **WITH_WARMUP}, InvalidSpec, "neither of 'min_lr' and 'min_lr_rate'"),
    ({"name": "cosine_with_min_lr", **WITH_WARMUP, "min_lr": 0, "min_lr_rate": 0}, InvalidSpec, "both of 'min_lr'"),
    ({"name": "cosine_with_min_lr", **WITH_WARMUP, "min_lr": -1}, InvalidValue, "'min_lr'"),
    ({"name": "polynomial_with_warmup", **WITH_WARMUP, "power": -1}, InvalidValue, "'power'"),
    ({"name": "warmup_cosine_decay", **PEAK, "warmup_steps": 5, "decay_steps": 5}, InvalidSpec,
     "'decay_steps' is 5 and 'warmup_steps' 5"),
    ({"name": "warmup_exponential_decay", **PEAK, **DECAY, "warmup_steps": -1}, InvalidValue, "'warmup_steps'"),
    (WSD | {"num_stable_steps": -1}, InvalidValue, "'num_stable_steps'"),
    (WSD | {"num_decay_steps": -1}, InvalidValue, "'num_decay_steps'"),
    (WSD | {"decay_type": "sqrt"}, InvalidValue, "'decay_type' .* 1-sqrt"),
    ({"name": "plateau", "factor": 1}, InvalidValue, "'factor' is 1"),
    ({"name": "plateau", "patience": -1}, InvalidValue, "'patience'"),
    ({"name": "plateau", "patience": 1.5}, InvalidValue, "'patience'"),
    ({"name": "plateau", "threshold": -1}, InvalidValue, "'threshold'"),
    ({"name": "plateau", "mode": "low"}, InvalidValue, "'mode' .* min, max"),
    ({"name": "plateau", "threshold_mode": "relative"}, InvalidValue, "'threshold_mode' .* rel, abs"),
    *(({"name": name, **more, "schedules": [{"name": "plateau"}]}, InvalidSpec,
       r"schedule 'plateau' at 'schedules\[0\]'.* at the root only")
      for name, more in COMPOSITIONS.items()),
    ({"name": "chained"}, InvalidSpec, "'schedules' holds 0 .* at least one"),
    (chain("cosine", t_max=5, eta_min=0.1), InvalidSpec, r"'schedules\[1\].eta_min' gives an absolute value"),
    (chain("cosine_restarts", t_0=5, eta_min=0.1), InvalidSpec, r"'schedules\[1\].eta_min'"),
    (chain("exponential_decay", **DECAY, end_value=1), InvalidSpec, r"'schedules\[1\].end_value'"),
    (chain("polynomial_decay", decay_steps=1), InvalidSpec, r"'schedules\[1\].end_value'"),
    (chain("cosine_decay", decay_steps=1, warmup_target=1), InvalidSpec, r"'schedules\[1\].warmup_target'"),
    (chain("swa", swa_lr=1), InvalidSpec, r"'schedules\[1\].swa_lr'"),
    (chain("polynomial_with_warmup", **WITH_WARMUP), InvalidSpec, r"'schedules\[1\].lr_end'"),
    (chain("cosine_with_min_lr", **WITH_WARMUP, min_lr=1), InvalidSpec, r"'schedules\[1\].min_lr'"),
    (chain("piecewise_constant", boundaries=[1], values=[1, 2]), InvalidSpec, r"'schedules\[1\].values'"),
    (chain("cyclic", base_lr=0, max_lr=1), InvalidSpec, r"'schedules\[1\].name'"),
    (chain(**ONE_CYCLE), InvalidSpec, r"'schedules\[1\].name'"),
    (chain("table", values=[1]), InvalidSpec, r"'schedules\[1\].name'"),
    (chain("clamp", minimum=1, schedules=[STEP]), InvalidSpec, r"'schedules\[1\].minimum'"),
    (chain("warmup", num_warmup_steps=1, schedules=[{"name": "swa", "swa_lr": 1}]), InvalidSpec,
     r"'schedules\[1\].schedules\[0\].swa_lr'"),
    ({"name": "scale", "schedules": [STEP]}, InvalidSpec, "'factor' is missing"),
    ({"name": "scale", "factor": -1, "schedules": [STEP]}, InvalidValue, "'factor'"),
    ({"name": "scale", "factor": 1}, InvalidSpec, "'schedules' holds 0 .* exactly one"),
    ({"name": "clamp", "schedules": [STEP]}, InvalidSpec, "neither of 'minimum' and 'maximum'"),
    ({"name": "clamp", "minimum": 2, "maximum": 1, "schedules": [STEP]}, InvalidSpec, "'maximum' is 1 and 'minimum' 2"),
    ({"name": "clamp", "minimum": 2}, InvalidSpec, "'schedules' holds 0"),
    ({"name": "shift", "by": 2}, InvalidSpec, "'schedules' holds 0"),
    ({"name": "shift", "schedules": [STEP]}, InvalidSpec, "'by' is missing"),
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


def test_what_is_proportional_may_be_chained() -> None:
    for spec in (
        chain("cosine", t_max=5),
        chain("polynomial_decay", decay_steps=1, end_value=0),
        chain("cosine_with_min_lr", **WITH_WARMUP, min_lr_rate=0.5),
        chain("piecewise_constant", boundaries=[1], scales=[2]),
        chain("cosine_restarts", t_0=5, alpha=0.5),
    ):
        assert Schedule.parse(spec).level is None


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
