"""Every schedule that torch has against torch.optim.lr_scheduler, stepped the way that a training loop steps it."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from stepwell_server.core.schedules import Schedule
from stepwell_server.core.schedules.plateau import PlateauState, report, value
from tests.references.implementation import evaluate_schedule
from tests.references.schedule_cases import ATOL, Draw, ScheduleCase, Spec, between, count, expect_close, fixed, maybe

torch = pytest.importorskip("torch")
lr_scheduler = torch.optim.lr_scheduler
pytestmark = pytest.mark.references

STEPS = 1000
SEEDS = range(5)
RTOL = 1e-9


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
            return lr_scheduler.ExponentialLR(optimizer, gamma=spec.get("gamma") or math.exp(-spec["decay_lambda"]))
        case "polynomial":
            return lr_scheduler.PolynomialLR(optimizer, **arguments)
        case "multiplicative":
            factors = spec["factor"] if isinstance(spec["factor"], list) else [spec["factor"]]
            return lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: factors[min(epoch, len(factors)) - 1])
        case "one_cycle":
            return lr_scheduler.OneCycleLR(optimizer, **arguments)
        case "swa":
            return torch.optim.swa_utils.SWALR(optimizer, **arguments)
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
        case "chained":
            return lr_scheduler.ChainedScheduler([torch_scheduler(optimizer, child) for child in spec["schedules"]])
        case name:
            raise ValueError(f"torch has no scheduler for {name!r}")


def run_torch(spec: Spec, initial: float, steps: int) -> NDArray[np.float64]:
    """What torch's optimizer would have used at each of its steps, the first included."""
    momentum = 0.9 if spec["name"] in ("cyclic", "one_cycle") else 0.0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial, momentum=momentum)
    output = spec.get("output", "lr")
    values = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter", category=UserWarning)
        scheduler = torch_scheduler(optimizer, spec)
        # One cycle jumps up after its last step and then fails; ours holds.
        until = min(steps, spec["total_steps"]) if spec["name"] == "one_cycle" else steps
        for _ in range(until):
            values.append(optimizer.param_groups[0][output])
            optimizer.step()
            scheduler.step()
    return np.array(values + values[-1:] * (steps - until), dtype=np.float64)


def _constant(rng: Generator) -> Spec:
    return {"name": "constant", "factor": between(rng, 0.1, 1), "total_iters": count(rng, 0, 600)}


def _step(rng: Generator) -> Spec:
    return {"name": "step", "step_size": count(rng, 1, 200), "gamma": between(rng, 0.5, 1)}


def _multistep(rng: Generator) -> Spec:
    milestones = sorted(count(rng, 1, 900) for _ in range(4))
    # A milestone that is there twice counts twice.
    return {"name": "multistep", "milestones": [*milestones, milestones[-1]], "gamma": between(rng, 0.1, 1)}


def _exponential(rng: Generator) -> Spec:
    return {"name": "exponential"} | (
        maybe(rng, gamma=between(rng, 0.98, 1)) or {"decay_lambda": between(rng, 0, 0.02)}
    )


def _polynomial(rng: Generator) -> Spec:
    return {"name": "polynomial"} | maybe(rng, total_iters=count(rng, 1, 1200), power=between(rng, 0.2, 3))


def _multiplicative(rng: Generator) -> Spec:
    factors = rng.uniform(0.98, 1.02, size=count(rng, 1, 1200)).tolist()
    return {"name": "multiplicative", "factor": factors if rng.random() < 0.5 else factors[0]}


def _swa(rng: Generator, strategy: str) -> Spec:
    return {"name": "swa", "swa_lr": between(rng, 1e-3, 1), "anneal_strategy": strategy} | maybe(
        rng, anneal_epochs=count(rng, 0, 900)
    )


def _one_cycle(rng: Generator, strategy: str, three_phase: bool, output: str) -> Spec:
    return (
        {"name": "one_cycle", "max_lr": between(rng, 1e-3, 1), "total_steps": count(rng, 5, 1200)}
        | {"anneal_strategy": strategy, "three_phase": three_phase, "output": output}
        | maybe(rng, pct_start=between(rng, 0.21, 0.45))
        | maybe(rng, div_factor=between(rng, 1, 50), final_div_factor=between(rng, 1, 1e5))
        | maybe(rng, base_momentum=between(rng, 0.5, 0.8), max_momentum=between(rng, 0.81, 0.99))
    )


def _linear(rng: Generator) -> Spec:
    return {
        "name": "linear",
        "start_factor": between(rng, 0.05, 1),
        "end_factor": between(rng, 0, 1),
        "total_iters": count(rng, 1, 800),
    }


def _cosine(rng: Generator) -> Spec:
    return {"name": "cosine", "t_max": count(rng, 2, 900), "eta_min": between(rng, 0, 0.01)}


def _cosine_restarts(rng: Generator, t_mult: int) -> Spec:
    return {"name": "cosine_restarts", "t_0": count(rng, 1, 60), "t_mult": t_mult, "eta_min": between(rng, 0, 0.01)}


def _cyclic(rng: Generator, mode: str, output: str) -> Spec:
    base_lr, base_momentum = between(rng, 1e-3, 1e-2), between(rng, 0.5, 0.8)
    spec = {
        "name": "cyclic",
        "base_lr": base_lr,
        "max_lr": base_lr * between(rng, 2, 20),
        "step_size_up": count(rng, 1, 150),
        "mode": mode,
        "base_momentum": base_momentum,
        "max_momentum": base_momentum + between(rng, 0.05, 0.19),
        "output": output,
    }
    if rng.random() < 0.7:
        spec["step_size_down"] = count(rng, 1, 150)
    if mode == "exp_range":
        spec["gamma"] = between(rng, 0.99, 1)
    return spec


def _sequential(rng: Generator) -> Spec:
    draws: list[Draw] = [_constant, _step, _multistep, _exponential, _linear, _polynomial, _cosine]
    schedules = [draws[index](rng) for index in rng.integers(len(draws), size=3)]
    first = count(rng, 1, 400)
    return {"name": "sequential", "schedules": schedules, "milestones": [first, first + count(rng, 1, 400)]}


def _chained(rng: Generator) -> Spec:
    draws: list[Draw] = [_constant, _step, _multistep, _exponential, _linear, _polynomial, _multiplicative]
    return {"name": "chained", "schedules": [draws[i](rng) for i in rng.integers(len(draws), size=count(rng, 1, 3))]}


def _warmup_then_cosine(rng: Generator) -> Spec:
    warmup = {"name": "linear", "start_factor": 0.01, "end_factor": 1.0, "total_iters": 100}
    return {"name": "sequential", "schedules": [warmup, {"name": "cosine", "t_max": 300}], "milestones": [100]}


CASES = [
    ScheduleCase("constant", _constant),
    ScheduleCase("step", _step),
    ScheduleCase("multistep", _multistep),
    ScheduleCase("exponential", _exponential),
    ScheduleCase("linear", _linear),
    ScheduleCase("linear-up", fixed(name="linear", start_factor=0.1, end_factor=1.0, total_iters=500)),
    *(
        ScheduleCase(f"cyclic-{mode}-{output}", partial(_cyclic, mode=mode, output=output))
        for mode in ("triangular", "triangular2", "exp_range")
        for output in ("lr", "momentum")
    ),
    ScheduleCase("cosine", _cosine),
    ScheduleCase("cosine-to-zero-and-back", fixed(name="cosine", t_max=7, eta_min=0.0)),
    *(ScheduleCase(f"cosine_restarts-{t_mult}", partial(_cosine_restarts, t_mult=t_mult)) for t_mult in (1, 2, 3)),
    ScheduleCase("polynomial", _polynomial),
    ScheduleCase("multiplicative", _multiplicative),
    *(ScheduleCase(f"swa-{strategy}", partial(_swa, strategy=strategy)) for strategy in ("cos", "linear")),
    *(
        ScheduleCase(
            f"one_cycle-{strategy}-{'three' if three_phase else 'two'}-{output}",
            partial(_one_cycle, strategy=strategy, three_phase=three_phase, output=output),
        )
        for strategy in ("cos", "linear")
        for three_phase in (False, True)
        for output in ("lr", "momentum")
    ),
    ScheduleCase("chained", _chained),
    ScheduleCase("sequential", _sequential),
    ScheduleCase("sequential-warmup-cosine", _warmup_then_cosine),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_implementation_follows_torch(case: ScheduleCase, seed: int) -> None:
    expect_close(case, seed, run_torch, STEPS, rtol=RTOL)


@pytest.mark.parametrize("seed", range(50))
def test_plateau_follows_torch(seed: int) -> None:
    arguments, initial, actual, expected = follow_plateau(seed)
    for reports, (got, wanted) in enumerate(zip(actual, expected, strict=True), 1):
        assert got == wanted, f"seed {seed}: {arguments} from {initial} after {reports} reports"


def follow_plateau(seed: int) -> tuple[Spec, float, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Arguments and initial value; then after every report, by us and by torch: the value, and what is remembered."""
    rng = np.random.default_rng(seed)
    initial = between(rng, 0.01, 1)
    arguments: dict[str, Any] = {
        "mode": str(rng.choice(["min", "max"])),
        "threshold_mode": str(rng.choice(["rel", "abs"])),
        **maybe(rng, factor=between(rng, 0, 0.99), patience=count(rng, 0, 6)),
        **maybe(rng, threshold=between(rng, 0, 0.2)),
        **maybe(rng, cooldown=count(rng, 1, 5)),
        **maybe(rng, min_lr=between(rng, 0, 0.1), eps=between(rng, 0, 0.01)),
    }
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)
    keywords, state = Schedule.parse({"name": "plateau", **arguments}).keywords, PlateauState()
    actual: list[tuple[Any, ...]] = []
    expected: list[tuple[Any, ...]] = []
    for i in range(STEPS):
        # Few values, so that equal ones and small steps occur.
        metric = round(float(rng.normal(0.5, 1 / (i + 1))), 3)
        scheduler.step(metric)
        state = report(keywords, state, metric, initial)
        rate = optimizer.param_groups[0]["lr"]
        expected.append((rate, scheduler.best, scheduler.num_bad_epochs, scheduler.cooldown_counter))
        actual.append((value(state, initial), state.best, state.bad_count, state.cooldown_count))
    return arguments, initial, actual, expected


@pytest.mark.parametrize("seed", SEEDS)
def test_cosine_follows_torchs_closed_form(seed: int) -> None:
    """torch has the cosine twice, as a recursion and closed; ours has to be both, far beyond t_max too."""
    rng = np.random.default_rng(seed)
    spec, initial = _cosine(rng), between(rng, 0.01, 1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial)
    scheduler = torch_scheduler(optimizer, spec)
    expected = []
    for step in range(STEPS):
        scheduler.last_epoch = step
        expected.append(scheduler._get_closed_form_lr()[0])
    actual = evaluate_schedule(spec, initial, STEPS)
    message = f"seed {seed}: {spec} from {initial}"
    np.testing.assert_allclose(actual, np.array(expected), rtol=RTOL, atol=ATOL * initial, err_msg=message)
