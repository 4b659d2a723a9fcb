"""Every schedule against the catalogue, written here a second time as a walk along the clock, one unit after the other.

The seed of a failing case is its test id: `test_walk[cosine-3]` drew its arguments with random.Random("cosine-3").
"""

import json
import math
import pickle
from collections.abc import Iterable
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.errors import InvalidSpec
from stepwell_server.core.schedules import Schedule, list_schedules, preview
from tests.core.schedules.walks import COMPOSITIONS, PROPORTIONAL, ROWS, STEPS, walk


def test_every_schedule_has_a_row() -> None:
    assert sorted(ROWS) == [entry.name for entry in list_schedules()]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ROWS)
def test_walk(name: str, seed: int) -> None:
    r = Random(f"{name}-{seed}")
    arguments, initial = ROWS[name][0](r), r.uniform(0.01, 1)
    got = preview(Schedule.parse({"name": name, **arguments}), initial, STEPS)
    assert got.dtype == np.float64
    expected = list(islice(walk(initial, name, **arguments), STEPS))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13, err_msg=f"{arguments}, {initial=}")


@pytest.mark.parametrize("name", ROWS)
def test_catalogue_entry(name: str) -> None:
    entry = next(entry for entry in list_schedules() if entry.name == name)
    assert entry.summary.endswith(".")
    assert entry.reference
    arguments = ROWS[name][0](Random(name))
    assert arguments.keys() - {"schedules"} <= {argument.name for argument in entry.arguments}
    assert (entry.children is not None) == ("schedules" in arguments)
    schedule = Schedule.parse({"name": name, **arguments})
    if schedule.absolute:
        np.testing.assert_array_equal(preview(schedule, 0.5, 50), preview(schedule, 2.0, 50))
    for argument in entry.arguments:
        if argument.default is REQUIRED:
            with pytest.raises(InvalidSpec, match=f"'{argument.name}' is missing"):
                Schedule.parse({"name": name, **{key: arguments[key] for key in arguments if key != argument.name}})


# name, arguments, clock, expected: values from the catalogue's text and edges that a walk in whole units misses.
POINTS = [
    ("triangular_literal", {"period": 4, "eta_min": 0, "eta_max": 1}, range(7), [0, 0.25, 0.5, 0.75, 0, 0, 0]),
    ("cosine_restarts", {"t_0": 10, "t_mult": 3}, [1209.999, 1210], [0, 1]),  # torch's logarithm is one wave early
    ("cosine_restarts", {"t_0": 0.5}, [0, 0.25, 0.5, 0.75], [1, 0.5, 1, 0.5]),
    ("cosine", {"t_max": 4}, [0, 2, 4, 6, 8, 4e15], [1, 0.5, 0, 0.5, 1, 1]),
    ("cosine", {"t_max": 4, "hold": True}, [4, 8, 1e300], [0, 0, 0]),
    ("linear", {"total_iters": 0, "end_factor": 0.5}, [0, 1], [0.5, 0.5]),
    ("linear", {}, [0, 2.5, 5, 9], [1 / 3, 2 / 3, 1, 1]),
    ("constant", {}, [0, 1], [1, 1]),
    ("constant", {"factor": 0, "total_iters": 2}, [0, 1.99, 2], [0, 0, 1]),
    ("step", {"step_size": 0.5}, [0, 0.49, 0.5, 1], [1, 1, 0.1, 0.01]),
    ("multistep", {"milestones": [2, 2, 2.5], "gamma": 0.5}, [1.9, 2, 2.5], [1, 0.25, 0.125]),
    ("exponential", {"gamma": 0.0}, [0, 1], [1, 0]),
    ("exponential", {"decay_lambda": 2.0}, [0.5], [1 / math.e]),
    ("triangular", {"period": 3, "eta_min": 0, "eta_max": 1}, [0, 0.75, 1.5, 2.25, 3], [0, 0.5, 1, 0.5, 0]),
    ("table", {"values": [3, 4]}, [0, 0.9, 1, 1e300], [3, 3, 4, 4]),
    ("cyclic", {"base_lr": 0, "max_lr": 1, "mode": "triangular2"}, [2000, 6000, 1e9], [1, 0.5, 0]),
    ("warmup", {"num_warmup_steps": 0, "schedules": [{"name": "constant"}]}, [0], [1]),
    (
        "warmup",
        {"num_warmup_steps": 4, "schedules": [{"name": "step", "step_size": 1}]},
        [0, 2, 4, 5],
        [0, 0.5, 1, 0.1],
    ),
    ("exponential_decay", {"transition_steps": 0, "decay_rate": 0.5}, [0, 9], [1, 1]),
    ("exponential_decay", {"transition_steps": 9, "decay_rate": 0, "end_value": 3}, [0, 9], [1, 1]),
    (
        "exponential_decay",
        {"transition_steps": 2, "decay_rate": 0.25, "transition_begin": 1},
        [1, 2, 3],
        [1, 0.5, 0.25],
    ),
    ("exponential_decay", {"transition_steps": 1, "decay_rate": 2, "end_value": 3}, [1, 2, 1e6], [2, 3, 3]),
    ("inverse_time", {"decay_steps": 2, "decay_rate": 1}, [0, 2, 5], [1, 1 / 2, 2 / 7]),
    ("inverse_time", {"decay_steps": 2, "decay_rate": 1, "staircase": True}, [1.9, 2, 5], [1, 1 / 2, 1 / 3]),
    ("polynomial", {"total_iters": 0}, [0, 1], [0, 0]),
    ("polynomial", {}, [0, 2.5, 5, 9], [1, 0.5, 0, 0]),
    ("polynomial_decay", {"decay_steps": 4, "end_value": 0, "cycle": True}, [0, 4, 4.5, 8, 9], [1, 0, 7 / 16, 0, 0.25]),
    ("polynomial_decay", {"decay_steps": 4, "power": 2}, [0, 2, 4], [1, 0.250075, 1e-4]),
    ("cosine_decay", {"decay_steps": 4, "alpha": 0.1}, [2, 4, 1e300], [0.55, 0.1, 0.1]),
    ("cosine_decay", {"decay_steps": 4, "warmup_target": 2}, [0, 2, 4], [2, 1, 0]),
    (
        "cosine_decay",
        {"decay_steps": 4, "warmup_target": 2, "warmup_steps": 2},
        [0, 1, 2, 4, 6],
        [1, 1.5, 2, 1, 0],
    ),
    ("cosine_restarts", {"t_0": 2, "t_mult": 2, "m_mul": 0.5, "alpha": 0.2}, [0, 1, 2, 4], [1, 0.6, 0.6, 0.4]),
    ("swa", {"swa_lr": 3, "anneal_epochs": 0}, [0, 1], [3, 3]),
    ("swa", {"swa_lr": 3}, [0, 5, 10, 99], [1, 2, 3, 3]),
    # PyTorch jumps up again at N = 10 and fails after it; pct_start * N = 1 is 0 / 0 there.
    ("one_cycle", {"max_lr": 1, "total_steps": 10}, [0, 2, 5.5, 9, 10, 1e9], [0.04, 1, 0.500002, *[4e-6] * 3]),
    ("one_cycle", {"max_lr": 1, "total_steps": 10, "pct_start": 0.1}, [0, 9], [1, 4e-6]),
    ("one_cycle", {"max_lr": 1, "total_steps": 1}, [0, 1], [4e-6, 4e-6]),
    ("one_cycle", {"max_lr": 1, "total_steps": 10, "output": "momentum"}, [0, 2, 9, 99], [0.95, 0.85, 0.95, 0.95]),
    (
        "one_cycle",
        {"max_lr": 1, "total_steps": 10, "three_phase": True, "anneal_strategy": "linear"},
        [0, 1, 2, 3, 4, 9],
        [0.04, 0.52, 1, 0.52, 0.04, 4e-6],
    ),
    (
        "linear_onecycle",
        {"transition_steps": 10, "peak_value": 1},
        [0, 3, 8, 10, 11],
        [0.04, 1, 0.04, 4e-6, 4e-6],
    ),
    ("cosine_onecycle", {"transition_steps": 10, "peak_value": 1}, [0, 1.5, 3, 10, 11], [0.04, 0.52, 1, 4e-6, 4e-6]),
    ("cosine_onecycle", {"transition_steps": 10, "peak_value": 1, "pct_start": 0}, [0, 5], [1, 0.500002]),
    ("piecewise_constant", {"boundaries": [2], "scales": [0.5]}, [1.9, 2, 2.1], [1, 0.5, 0.5]),
    ("piecewise_constant", {"boundaries": [2], "scales": [0.5], "inclusive": False}, [1.9, 2, 2.1], [1, 1, 0.5]),
    ("piecewise_constant", {"boundaries": [2, 2], "values": [5, 6, 7]}, [1.9, 2], [5, 7]),
    ("piecewise_constant", {"boundaries": [], "values": [5]}, [0, 9], [5, 5]),
    ("piecewise_interpolate", {"boundaries": [2, 2], "scales": [2, 3]}, [0, 1, 2, 9], [1, 1.5, 6, 6]),
    ("piecewise_interpolate", {"boundaries": [0, 2], "scales": [2, 3]}, [0, 1, 2], [2, 4, 6]),
    ("piecewise_interpolate", {"boundaries": [], "scales": []}, [0, 9], [1, 1]),
    ("multiplicative", {"factor": 0.5}, [0, 0.9, 1, 3], [1, 1, 0.5, 0.125]),
    ("multiplicative", {"factor": [4, 0.5]}, [0, 1, 2, 3], [1, 4, 2, 1]),
    ("multiplicative", {"factor": [0.5, 0, 1]}, [1, 2, 1e300], [0.5, 0, 0]),
    ("noam", {"d_model": 4, "warmup": 4}, [0, 3, 15], [1 / 16, 1 / 4, 1 / 8]),
    ("noam", {"d_model": 4, "warmup": 0}, [0, 3], [1 / 2, 1 / 4]),
    ("inverse_sqrt", {"num_warmup_steps": 0}, [0, 30_000], [1, 0.5]),
    ("inverse_sqrt", {"num_warmup_steps": 4}, [0, 2, 4, 16], [0, 0.5, 1, 0.5]),
    ("inverse_sqrt", {"num_warmup_steps": 4, "timescale": 1}, [4, 7], [1, 0.5]),
    ("constant_with_warmup", {"num_warmup_steps": 0.5}, [0, 0.25, 0.5], [0, 0.5, 1]),
    ("linear_with_warmup", {"num_warmup_steps": 2, "num_training_steps": 2}, [0, 1, 2, 3], [0, 0.5, 0, 0]),
    ("linear_with_warmup", {"num_warmup_steps": 0.5, "num_training_steps": 1}, [0, 0.25, 0.5, 0.75], [0, 0.5, 1, 0.5]),
    (
        "cosine_with_warmup",
        {"num_warmup_steps": 2, "num_training_steps": 6},
        [0, 1, 2, 4, 6, 8, 10],
        [0, 0.5, 1, 0.5, 0, 0.5, 1],
    ),
    ("cosine_with_warmup", {"num_warmup_steps": 2, "num_training_steps": 2}, [1, 2, 3], [0.5, 1, 0]),
    ("cosine_with_warmup", {"num_warmup_steps": 0, "num_training_steps": 0.5}, [0, 0.25, 0.5], [1, 0.5, 0]),
    (
        "cosine_with_min_lr",
        {"num_warmup_steps": 1, "num_training_steps": 3, "min_lr_rate": 0.5},
        [0, 1, 2, 3],
        [0, 1, 0.75, 0.5],
    ),
    # 49 * (1 / 49) is less than 1 in float64: without exact remainders the first restart would be at the bottom.
    (
        "cosine_with_hard_restarts",
        {"num_warmup_steps": 0, "num_training_steps": 49, "num_cycles": 49},
        [0, 1, 48.5, 49],
        [1, 1, 0.5, 0],
    ),
    ("cosine_with_hard_restarts", {"num_warmup_steps": 2, "num_training_steps": 2}, [1, 2, 3], [0.5, 1, 0]),
    (
        "polynomial_with_warmup",
        {"num_warmup_steps": 2, "num_training_steps": 2, "lr_end": 0.25},
        [1, 2, 3],
        [0.5, 0.25, 0.25],
    ),
    (
        "polynomial_with_warmup",
        {"num_warmup_steps": 2, "num_training_steps": 4, "lr_end": 0.25, "power": 0},
        [2, 4, 4.1],
        [1, 1, 0.25],
    ),
    (
        "warmup_cosine_decay",
        {"init_value": 1, "peak_value": 3, "warmup_steps": 2, "decay_steps": 6, "end_value": 2},
        [0, 1, 2, 4, 6, 7],
        [1, 2, 3, 2.5, 2, 2],
    ),
    (
        "warmup_cosine_decay",
        {"init_value": 1, "peak_value": 0, "warmup_steps": 0, "decay_steps": 2, "end_value": 2},
        [0, 1, 2],
        [0, 1, 2],
    ),
    (
        "warmup_exponential_decay",
        {"init_value": 0, "peak_value": 4, "warmup_steps": 2, "transition_steps": 1, "decay_rate": 0.5}
        | {"transition_begin": 1},
        [0, 1, 2, 3, 4],
        [0, 2, 4, 4, 2],
    ),
    ("wsd", {"num_warmup_steps": 0, "num_stable_steps": 0, "num_decay_steps": 0, "min_lr_ratio": 0.5}, [0], [0.5]),
    (
        "wsd",
        {"num_warmup_steps": 2, "num_stable_steps": 1, "num_decay_steps": 2, "min_lr_ratio": 0.5},
        [0, 1, 2, 2.9, 3, 4, 5, 6],
        [0.5, 0.75, 1, 1, 1, 0.75, 0.5, 0.5],
    ),
    ("plateau", {}, [0, 9], [1, 1]),
    ("chained", {"schedules": [{"name": "polynomial"}, {"name": "multiplicative", "factor": 0.5}]}, [1, 5], [0.4, 0]),
    ("scale", {"factor": 0.5, "schedules": [{"name": "table", "values": [3]}]}, [0], [1.5]),
    ("clamp", {"minimum": 0.25, "schedules": [{"name": "polynomial"}]}, [0, 4, 9], [1, 0.25, 0.25]),
    ("clamp", {"maximum": 0.5, "schedules": [{"name": "polynomial"}]}, [0, 4, 9], [0.5, 0.2, 0]),
    ("shift", {"by": 0.5, "schedules": [{"name": "polynomial"}]}, [0, 0.5, 3], [1, 1, 0.5]),
    ("shift", {"by": -2, "schedules": [{"name": "polynomial"}]}, [0, 1, 3], [0.6, 0.4, 0]),
]


@pytest.mark.parametrize(("name", "arguments", "clock", "expected"), POINTS)
def test_points(name: str, arguments: dict[str, Any], clock: list[float], expected: list[float]) -> None:
    schedule = Schedule.parse({"name": name, **arguments})
    np.testing.assert_allclose([schedule(t, 1.0) for t in clock], expected, rtol=1e-12, atol=1e-9)


def test_values_make_a_schedule_absolute() -> None:
    scales = Schedule.parse({"name": "piecewise_constant", "boundaries": [2], "scales": [0.5]})
    values = Schedule.parse({"name": "piecewise_constant", "boundaries": [2], "values": [5, 6]})
    assert (scales.absolute, values.absolute) == (False, True)
    assert Schedule.parse({"name": "scale", "factor": 2, "schedules": [values.spec]}).absolute


def test_a_number_is_a_list_of_one() -> None:
    number = Schedule.parse({"name": "multiplicative", "factor": 0.5})
    assert number == Schedule.parse({"name": "multiplicative", "factor": [0.5]})
    assert number.spec == {"name": "multiplicative", "factor": [0.5]}


def test_keywords_have_the_defaults() -> None:
    schedule = Schedule.parse({"name": "clamp", "minimum": 1, "schedules": [{"name": "constant"}]})
    assert schedule.keywords == {"minimum": 1.0, "maximum": None}
    assert schedule.children[0].keywords == {"factor": 1.0, "total_iters": 0.0}


def test_chained_from_zero_is_zero() -> None:
    spec = {"name": "chained", "schedules": [{"name": "step", "step_size": 1}, {"name": "linear"}]}
    assert Schedule.parse(spec)(3.0, 0.0) == 0.0


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """A valid spec, up to three levels deep."""
    r = Random(draw(st.integers(0, 2**32)))

    def build(depth: int, names: Iterable[str] = ROWS.keys() - {"plateau"}) -> dict[str, Any]:
        name = r.choice(sorted(set(names) - (set() if depth else set(COMPOSITIONS))))
        arguments = ROWS[name][0](r)
        if "schedules" in arguments and depth:
            below = PROPORTIONAL if name == "chained" else ROWS.keys() - {"plateau"}
            arguments["schedules"] = [build(depth - 1, below) for _ in arguments["schedules"]]
        return {"name": name, **arguments}

    clock = draw(st.sampled_from([None, "updates", "samples", "epochs"]))
    return build(2) | ({"clock": clock} if clock else {})


@given(specs())
def test_spec_round_trip(spec: dict[str, Any]) -> None:
    schedule = Schedule.parse(spec)
    assert schedule.spec == spec
    again = [Schedule.parse(schedule.spec), Schedule.parse(json.loads(json.dumps(schedule.spec)))]
    again += [Schedule.parse(dict(reversed(spec.items()))), pickle.loads(pickle.dumps(schedule))]
    for other in again:
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert other.spec == schedule.spec
    assert schedule.clock == spec.get("clock", "updates")
    assert Schedule.parse({"name": "constant", "factor": 0.25}) != schedule


@given(specs(), st.lists(st.integers(0, 1500), max_size=20), st.floats(-10, 10))
def test_random_access_equals_sequential(spec: dict[str, Any], clock: list[int], initial: float) -> None:
    along = preview(Schedule.parse(spec), initial, max(clock, default=0) + 1)
    fresh = Schedule.parse(spec)
    assert [fresh(t, initial) for t in clock] == [along[t] for t in clock]
