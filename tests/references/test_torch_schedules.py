"""Every schedule that torch has against torch.optim.lr_scheduler, stepped the way that a training loop steps it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from tests.references.implementation import evaluate_schedule

torch = pytest.importorskip("torch")
lr_scheduler = torch.optim.lr_scheduler
pytestmark = pytest.mark.torch

STEPS = 1000
SEEDS = range(5)
RTOL = 1e-9
# Of the initial value: torch's recursions reach a zero of the cosine only up to round-off.
ATOL = 1e-12

Spec = dict[str, Any]
Draw = Callable[[Generator], Spec]


@dataclass(frozen=True)
class ScheduleCase:
    """One row: an id, and how to draw a schedule as the wire spells it."""

    id: str
    draw: Draw


def torch_scheduler(optimizer: Any, spec: Spec) -> Any:
    """torch's scheduler for a spec."""
    arguments = {key: value for key, value in spec.items() if key not in ("name", "output")}
    match spec["name"]:
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, **arguments)
        case "step":
            return lr_scheduler.StepLR(optimizer, **arguments)
        case "multistep":
            return lr_scheduler.MultiStepLR(optimizer, **arguments)
        case "exponential":
            return lr_scheduler.ExponentialLR(optimizer, **arguments)
        case "linear":
            return lr_scheduler.LinearLR(optimizer, **arguments)
        case "cyclic":
            return lr_scheduler.CyclicLR(optimizer, **arguments)
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=spec["t_max"], eta_min=spec.get("eta_min", 0.0))
        case "cosine_restarts":
            return lr_scheduler.CosineAnnealingWarmRestarts(
                optimizer, T_0=spec["t_0"], T_mult=spec.get("t_mult", 1), eta_min=spec.get("eta_min", 0.0)
            )
        case "sequential":
            children = [torch_scheduler(optimizer, child) for child in spec["schedules"]]
            return lr_scheduler.SequentialLR(optimizer, children, milestones=spec["milestones"])
        case name:
            raise ValueError(f"torch has no scheduler for {name!r}")


def run_torch(spec: Spec, initial: float, steps: int) -> NDArray[np.float64]:
    """What torch's optimizer would have used at each of its steps, the first included."""
    momentum = 0.9 if spec["name"] == "cyclic" else 0.0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial, momentum=momentum)
    output = spec.get("output", "lr")
    values = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter", category=UserWarning)
        scheduler = torch_scheduler(optimizer, spec)
        for _ in range(steps):
            values.append(optimizer.param_groups[0][output])
            optimizer.step()
            scheduler.step()
    return np.array(values, dtype=np.float64)


def _constant(rng: Generator) -> Spec:
    return {"name": "constant", "factor": _between(rng, 0.1, 1), "total_iters": _count(rng, 0, 600)}


def _step(rng: Generator) -> Spec:
    return {"name": "step", "step_size": _count(rng, 1, 200), "gamma": _between(rng, 0.5, 1)}


def _multistep(rng: Generator) -> Spec:
    milestones = sorted(_count(rng, 1, 900) for _ in range(4))
    # A milestone that is there twice counts twice.
    return {"name": "multistep", "milestones": [*milestones, milestones[-1]], "gamma": _between(rng, 0.1, 1)}


def _exponential(rng: Generator) -> Spec:
    return {"name": "exponential", "gamma": _between(rng, 0.98, 1)}


def _linear(rng: Generator) -> Spec:
    return {
        "name": "linear",
        "start_factor": _between(rng, 0.05, 1),
        "end_factor": _between(rng, 0, 1),
        "total_iters": _count(rng, 1, 800),
    }


def _cosine(rng: Generator) -> Spec:
    return {"name": "cosine", "t_max": _count(rng, 2, 900), "eta_min": _between(rng, 0, 0.01)}


def _cosine_restarts(rng: Generator, t_mult: int) -> Spec:
    return {"name": "cosine_restarts", "t_0": _count(rng, 1, 60), "t_mult": t_mult, "eta_min": _between(rng, 0, 0.01)}


def _cyclic(rng: Generator, mode: str, output: str) -> Spec:
    base_lr, base_momentum = _between(rng, 1e-3, 1e-2), _between(rng, 0.5, 0.8)
    spec = {
        "name": "cyclic",
        "base_lr": base_lr,
        "max_lr": base_lr * _between(rng, 2, 20),
        "step_size_up": _count(rng, 1, 150),
        "mode": mode,
        "base_momentum": base_momentum,
        "max_momentum": base_momentum + _between(rng, 0.05, 0.19),
        "output": output,
    }
    if rng.random() < 0.7:
        spec["step_size_down"] = _count(rng, 1, 150)
    if mode == "exp_range":
        spec["gamma"] = _between(rng, 0.99, 1)
    return spec


def _sequential(rng: Generator) -> Spec:
    draws: list[Draw] = [_constant, _step, _multistep, _exponential, _linear, _cosine]
    schedules = [draws[index](rng) for index in rng.integers(len(draws), size=3)]
    first = _count(rng, 1, 400)
    return {"name": "sequential", "schedules": schedules, "milestones": [first, first + _count(rng, 1, 400)]}


def _warmup_then_cosine(rng: Generator) -> Spec:
    warmup = {"name": "linear", "start_factor": 0.01, "end_factor": 1.0, "total_iters": 100}
    return {"name": "sequential", "schedules": [warmup, {"name": "cosine", "t_max": 300}], "milestones": [100]}


def _fixed(**spec: Any) -> Draw:
    return lambda rng: spec


def _between(rng: Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _count(rng: Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


CASES = [
    ScheduleCase("constant", _constant),
    ScheduleCase("step", _step),
    ScheduleCase("multistep", _multistep),
    ScheduleCase("exponential", _exponential),
    ScheduleCase("linear", _linear),
    ScheduleCase("linear-up", _fixed(name="linear", start_factor=0.1, end_factor=1.0, total_iters=500)),
    *(
        ScheduleCase(f"cyclic-{mode}-{output}", partial(_cyclic, mode=mode, output=output))
        for mode in ("triangular", "triangular2", "exp_range")
        for output in ("lr", "momentum")
    ),
    ScheduleCase("cosine", _cosine),
    ScheduleCase("cosine-to-zero-and-back", _fixed(name="cosine", t_max=7, eta_min=0.0)),
    *(ScheduleCase(f"cosine_restarts-{t_mult}", partial(_cosine_restarts, t_mult=t_mult)) for t_mult in (1, 2, 3)),
    ScheduleCase("sequential", _sequential),
    ScheduleCase("sequential-warmup-cosine", _warmup_then_cosine),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_implementation_follows_torch(case: ScheduleCase, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec, initial = case.draw(rng), math.exp(_between(rng, math.log(1e-4), math.log(1)))
    expected = run_torch(spec, initial, STEPS)
    actual = evaluate_schedule(spec, initial, STEPS)
    message = f"{case.id} seed {seed}: {spec} from {initial}"
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL * initial, err_msg=message)


@pytest.mark.parametrize("seed", SEEDS)
def test_cosine_follows_torchs_closed_form(seed: int) -> None:
    """torch has the cosine twice, as a recursion and closed; ours has to be both, far beyond t_max too."""
    rng = np.random.default_rng(seed)
    spec, initial = _cosine(rng), _between(rng, 0.01, 1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial)
    scheduler = torch_scheduler(optimizer, spec)
    expected = []
    for step in range(STEPS):
        scheduler.last_epoch = step
        expected.append(scheduler._get_closed_form_lr()[0])
    actual = evaluate_schedule(spec, initial, STEPS)
    message = f"seed {seed}: {spec} from {initial}"
    np.testing.assert_allclose(actual, np.array(expected), rtol=RTOL, atol=ATOL * initial, err_msg=message)
