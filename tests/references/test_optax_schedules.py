"""Every schedule that optax has against optax, in float64, at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from tests.references.jaxed import import_jax
from tests.references.schedule_cases import ScheduleCase, Spec, between, count, expect_close, maybe

jax = import_jax()
optax = pytest.importorskip("optax")
pytestmark = pytest.mark.references

STEPS = 1000
SEEDS = range(10)
RTOL = 1e-9


def optax_schedule(spec: Spec, initial: float) -> Any:
    """optax's schedule for a spec."""
    arguments = {key: value for key, value in spec.items() if key != "name"}
    match spec["name"]:
        case "exponential_decay":
            return optax.exponential_decay(initial, **arguments)
        case "cosine_decay":
            return optax.cosine_decay_schedule(initial, **arguments)
        case "polynomial_decay":
            arguments["transition_steps"] = arguments.pop("decay_steps")
            return optax.polynomial_schedule(initial, **arguments)
        case "linear":
            return optax.linear_schedule(initial, initial * spec["end_factor"], spec["total_iters"])
        case "piecewise_constant":
            return optax.piecewise_constant_schedule(
                initial, dict(zip(spec["boundaries"], spec["scales"], strict=True))
            )
        case "piecewise_interpolate":
            scales = dict(zip(spec["boundaries"], spec["scales"], strict=True))
            return optax.piecewise_interpolate_schedule(spec["interpolate_type"], initial, scales)
        case "linear_onecycle" | "cosine_onecycle" | "warmup_cosine_decay" | "warmup_exponential_decay":
            return getattr(optax, f"{spec['name']}_schedule")(**arguments)
        case "cosine_restarts":
            waves, start = [], 0
            for i in range(20):
                length = spec["t_0"] * spec["t_mult"] ** i
                peak = initial * spec["m_mul"] ** i
                waves.append({"init_value": 0.0, "peak_value": peak, "warmup_steps": 0, "decay_steps": length}
                             | {"end_value": spec["eta_min"]})  # fmt: skip
                start += length
                if start >= STEPS:
                    break
            return optax.sgdr_schedule(waves)
        case "sequential":
            children = [optax_schedule(child, initial) for child in spec["schedules"]]
            return optax.join_schedules(children, spec["milestones"])
        case name:
            raise ValueError(f"optax has no schedule for {name!r}")


def run_optax(spec: Spec, initial: float, steps: int) -> NDArray[np.float64]:
    schedule = optax_schedule(spec, initial)
    # A schedule that is constant returns its number for all of them.
    return np.broadcast_to(np.asarray(jax.vmap(lambda t: schedule(t) + 0.0 * t)(np.arange(steps))), (steps,))


def _boundaries(rng: Generator) -> list[int]:
    return sorted(int(t) for t in rng.choice(np.arange(1, 1100), size=count(rng, 1, 6), replace=False))


def _exponential_decay(rng: Generator) -> Spec:
    return (
        {"name": "exponential_decay"}
        | {"transition_steps": count(rng, 0, 8) and count(rng, 20, 300)}
        | {"decay_rate": 0.0 if rng.random() < 0.1 else between(rng, 0.5, 1.2)}
        | maybe(rng, transition_begin=count(rng, 0, 300), staircase=True)
        | maybe(rng, end_value=between(rng, 0, 0.1))
    )


def _polynomial_decay(rng: Generator) -> Spec:
    # optax has no default for its end.
    return {"name": "polynomial_decay", "decay_steps": count(rng, 1, 900), "power": between(rng, 0.2, 3)} | {
        "end_value": between(rng, 0, 0.01),
        "transition_begin": count(rng, 0, 200),
    }


def _linear(rng: Generator) -> Spec:
    return {"name": "linear", "start_factor": 1.0, "end_factor": between(rng, 0, 2), "total_iters": count(rng, 1, 900)}


def _cosine_decay(rng: Generator) -> Spec:
    return {"name": "cosine_decay", "decay_steps": count(rng, 1, 900)} | maybe(
        rng, alpha=between(rng, 0, 1), exponent=between(rng, 0.2, 3)
    )


def _cosine_restarts(rng: Generator) -> Spec:
    # optax writes the warm restarts out, wave by wave.
    return {"name": "cosine_restarts", "t_0": count(rng, 50, 200), "t_mult": count(rng, 1, 3)} | {
        "m_mul": between(rng, 0.5, 1),
        "eta_min": between(rng, 0, 1e-4),
    }


def _piecewise_constant(rng: Generator) -> Spec:
    boundaries = _boundaries(rng)
    return {"name": "piecewise_constant", "boundaries": boundaries} | {
        "scales": [between(rng, 0, 2) for _ in boundaries]
    }


def _piecewise_interpolate(rng: Generator) -> Spec:
    kind = str(rng.choice(["linear", "cosine"]))
    return _piecewise_constant(rng) | {"name": "piecewise_interpolate", "interpolate_type": kind}


def _onecycle(rng: Generator) -> Spec:
    return (
        {"transition_steps": count(rng, 20, 1200), "peak_value": between(rng, 0.01, 1)}
        | maybe(rng, pct_start=between(rng, 0.05, 0.5))
        | maybe(rng, div_factor=between(rng, 1, 50), final_div_factor=between(rng, 1, 1e4))
    )


def _linear_onecycle(rng: Generator) -> Spec:
    return {"name": "linear_onecycle"} | _onecycle(rng) | maybe(rng, pct_final=between(rng, 0.6, 0.95))


def _cosine_onecycle(rng: Generator) -> Spec:
    return {"name": "cosine_onecycle"} | _onecycle(rng)


def _warmup(rng: Generator) -> Spec:
    return {"init_value": between(rng, 0, 0.1), "peak_value": between(rng, 0.1, 1), "warmup_steps": count(rng, 0, 400)}


def _warmup_cosine_decay(rng: Generator) -> Spec:
    warmup = _warmup(rng)
    decay_steps = warmup["warmup_steps"] + count(rng, 1, 600)
    return {"name": "warmup_cosine_decay", "decay_steps": decay_steps, **warmup} | maybe(
        rng, end_value=between(rng, 0, 0.1), exponent=between(rng, 0.2, 3)
    )


def _warmup_exponential_decay(rng: Generator) -> Spec:
    return _exponential_decay(rng) | _warmup(rng) | {"name": "warmup_exponential_decay"}


def _sequential(rng: Generator) -> Spec:
    draws = [_exponential_decay, _polynomial_decay, _linear, _cosine_decay, _piecewise_constant, _linear_onecycle]
    schedules = [draws[i](rng) for i in rng.integers(len(draws), size=3)]
    first = count(rng, 1, 400)
    return {"name": "sequential", "schedules": schedules, "milestones": [first, first + count(rng, 1, 400)]}


CASES = [
    ScheduleCase(draw.__name__.removeprefix("_"), draw)
    for draw in (
        _exponential_decay,
        _polynomial_decay,
        _linear,
        _cosine_decay,
        _cosine_restarts,
        _piecewise_constant,
        _piecewise_interpolate,
        _linear_onecycle,
        _cosine_onecycle,
        _warmup_cosine_decay,
        _warmup_exponential_decay,
        _sequential,
    )
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_implementation_follows_optax(case: ScheduleCase, seed: int) -> None:
    expect_close(case, seed, run_optax, STEPS, rtol=RTOL)
