"""Every schedule against the catalogue, written here a second time as a walk along the clock, one unit after the other.

The seed of a failing case is its test id: `test_walk[cosine-3]` drew its arguments with random.Random("cosine-3").
"""

import cmath
import json
import math
import pickle
from collections.abc import Callable, Iterator
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

STEPS = 1000

# A row: draw arguments, and walk: yield f(0), f(1), ... from them.
ROWS: dict[str, tuple[Callable[[Random], dict[str, Any]], Callable[..., Iterator[float]]]] = {}


def row(draw: Callable[[Random], dict[str, Any]]) -> Callable[[Any], Any]:
    def enter(walk: Callable[..., Iterator[float]]) -> Callable[..., Iterator[float]]:
        ROWS[walk.__name__.removeprefix("walk_")] = (draw, walk)
        return walk

    return enter


@row(lambda r: {"factor": r.uniform(0, 2), "total_iters": r.randint(0, 1200)} if r.random() < 0.9 else {})
def walk_constant(lr, factor=1, total_iters=0):
    yield from [lr * factor] * total_iters
    while True:
        yield lr


@row(lambda r: {"step_size": r.randint(1, 300), "gamma": r.uniform(0.1, 1.1)})
def walk_step(lr, step_size, gamma):
    while True:
        yield from [lr] * step_size
        lr *= gamma


@row(lambda r: {"milestones": sorted(r.choices(range(1100), k=r.randint(0, 6))), "gamma": r.uniform(0.1, 1.5)})
def walk_multistep(lr, milestones, gamma):
    for t in range(STEPS):
        for milestone in milestones:
            if milestone == t:
                lr *= gamma
        yield lr


@row(lambda r: {"gamma": r.uniform(0.9, 1.01)} if r.random() < 0.5 else {"decay_lambda": r.uniform(-0.01, 0.1)})
def walk_exponential(lr, gamma=None, decay_lambda=None):
    while True:
        yield lr
        lr *= gamma if decay_lambda is None else math.e**-decay_lambda


@row(lambda r: {"start_factor": r.random(), "end_factor": r.uniform(0, 2), "total_iters": r.randint(0, 1200)})
def walk_linear(lr, start_factor, end_factor, total_iters):
    value = lr * start_factor
    for _ in range(total_iters):
        yield value
        value += lr * (end_factor - start_factor) / total_iters
    while True:
        yield lr * end_factor


@row(lambda r: {"t_max": r.randint(1, 1200), "eta_min": r.uniform(-0.1, 0.1), "hold": r.random() < 0.5})
def walk_cosine(lr, t_max, eta_min, hold):
    angle, turn = 1 + 0j, cmath.exp(1j * cmath.pi / t_max)
    for t in range(STEPS):
        yield (eta_min if hold and t >= t_max else eta_min + (lr - eta_min) * (1 + angle.real) / 2)
        angle *= turn


@row(
    lambda r: (
        {"t_0": r.randint(1, 300), "t_mult": r.randint(1, 4), "m_mul": r.uniform(0.5, 1.0)}
        | r.choice([{}, {"eta_min": r.uniform(-0.1, 0.1)}, {"alpha": r.random()}])
    )
)
def walk_cosine_restarts(lr, t_0, t_mult, m_mul, eta_min=0.0, alpha=0.0):
    peak, share = lr, 1.0
    while True:
        for c in range(t_0):
            wave = math.cos(math.pi * c / t_0 / 2) ** 2
            yield lr * ((1 - alpha) * share * wave + alpha) if alpha else peak * wave + eta_min * (1 - wave)
        t_0, peak, share = t_0 * t_mult, peak * m_mul, share * m_mul


@row(lambda r: {"period": 2 * r.randint(1, 300), "eta_min": r.uniform(-1, 1), "eta_max": r.uniform(-1, 1)})
def walk_triangular(_, period, eta_min, eta_max):
    half = period // 2
    while True:
        for k in [*range(half), *range(half, 0, -1)]:
            yield eta_min + (eta_max - eta_min) * k / half


@row(lambda r: {"period": r.randint(1, 1200), "eta_min": r.uniform(-1, 1), "eta_max": r.uniform(-1, 1)})
def walk_triangular_literal(_, period, eta_min, eta_max):
    for k in range(period):
        yield eta_min + (eta_max - eta_min) * k / period
    while True:
        yield eta_min


@row(
    lambda r: (
        {"base_lr": r.uniform(0, 0.1), "max_lr": r.random(), "step_size_up": r.randint(1, 300), "gamma": r.random()}
        | {"mode": r.choice(["triangular", "triangular2", "exp_range"]), "output": r.choice(["lr", "momentum"])}
        | r.choice([{}, {"step_size_down": r.randint(1, 300)}])
        | r.choice([{}, {"base_momentum": r.random(), "max_momentum": r.random()}])
    )
)
def walk_cyclic(
    _, base_lr, max_lr, step_size_up, gamma, mode, output, step_size_down=None, base_momentum=0.8, max_momentum=0.9
):
    t, per_cycle, per_step = 0, 1.0, 1.0
    down = step_size_down or step_size_up
    while True:
        for height in [k / step_size_up for k in range(step_size_up)] + [k / down for k in range(down, 0, -1)]:
            height *= {"triangular": 1.0, "triangular2": per_cycle, "exp_range": per_step}[mode]
            low, high = (base_lr, max_lr) if output == "lr" else (max_momentum, base_momentum)
            yield low + (high - low) * height
            t, per_step = t + 1, per_step * gamma
        per_cycle /= 2


@row(lambda r: {"values": [r.uniform(-1, 1) for _ in range(r.randint(1, 1200))]})
def walk_table(_, values):
    yield from values
    while True:
        yield values[-1]


def draw_children(r: Random, count: int) -> dict[str, Any]:
    names = [r.choice(sorted(ROWS.keys() - {"warmup", "sequential"})) for _ in range(count)]
    return {"schedules": [{"name": name, **ROWS[name][0](r)} for name in names]}


def walk(lr, name, **arguments):
    return ROWS[name][1](lr, **arguments)


@row(lambda r: {"num_warmup_steps": r.randint(0, 900), "start": r.random()} | draw_children(r, 1))
def walk_warmup(lr, num_warmup_steps, start, schedules):
    first = next(walk(lr, **schedules[0]))
    for t in range(num_warmup_steps):
        yield first * (start * (num_warmup_steps - t) + t) / num_warmup_steps
    yield from walk(lr, **schedules[0])


@row(lambda r: {"milestones": sorted(r.sample(range(1100), 3))} | draw_children(r, 4))
def walk_sequential(lr, milestones, schedules):
    bounds = [0, *milestones, milestones[-1] + STEPS]
    for child, begin, end in zip(schedules, bounds, bounds[1:], strict=False):
        yield from islice(walk(lr, **child), end - begin)


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
]


@pytest.mark.parametrize(("name", "arguments", "clock", "expected"), POINTS)
def test_points(name: str, arguments: dict[str, Any], clock: list[float], expected: list[float]) -> None:
    schedule = Schedule.parse({"name": name, **arguments})
    np.testing.assert_allclose([schedule(t, 1.0) for t in clock], expected, rtol=1e-12, atol=1e-9)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """A valid spec, up to three levels deep."""
    r = Random(draw(st.integers(0, 2**32)))

    def build(depth: int) -> dict[str, Any]:
        name = r.choice(sorted(ROWS.keys() - (set() if depth else {"warmup", "sequential"})))
        arguments = ROWS[name][0](r)
        if "schedules" in arguments and depth:
            arguments["schedules"] = [build(depth - 1) for _ in arguments["schedules"]]
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
