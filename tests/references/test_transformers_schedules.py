"""Every schedule that transformers has against transformers.optimization, stepped the way that a training loop does."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from tests.references.schedule_cases import ScheduleCase, Spec, between, count, expect_close, fixed, maybe

torch = pytest.importorskip("torch")
optimization = pytest.importorskip("transformers.optimization")
pytestmark = pytest.mark.references

STEPS = 1000
SEEDS = range(10)
RTOL = 1e-9

FUNCTIONS = {
    "constant_with_warmup": "get_constant_schedule_with_warmup",
    "linear_with_warmup": "get_linear_schedule_with_warmup",
    "cosine_with_warmup": "get_cosine_schedule_with_warmup",
    "cosine_with_hard_restarts": "get_cosine_with_hard_restarts_schedule_with_warmup",
    "cosine_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup",
    "polynomial_with_warmup": "get_polynomial_decay_schedule_with_warmup",
    "inverse_sqrt": "get_inverse_sqrt_schedule",
    "wsd": "get_wsd_schedule",
}


def run_transformers(spec: Spec, initial: float, steps: int) -> NDArray[np.float64]:
    """What the optimizer would have used at each of its steps, the first included."""
    arguments: dict[str, Any] = {key: value for key, value in spec.items() if key != "name"}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial)
    values = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter", category=UserWarning)
        scheduler = getattr(optimization, FUNCTIONS[spec["name"]])(optimizer, **arguments)
        for _ in range(steps):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return np.array(values, dtype=np.float64)


def _training(rng: Generator, name: str, **more: Any) -> Spec:
    warmup = count(rng, 0, 400)
    return {"name": name, "num_warmup_steps": warmup, "num_training_steps": warmup + count(rng, 1, 900)} | more


def _constant_with_warmup(rng: Generator) -> Spec:
    return {"name": "constant_with_warmup", "num_warmup_steps": count(rng, 0, 1200)}


def _cosine_with_warmup(rng: Generator) -> Spec:
    return _training(rng, "cosine_with_warmup") | maybe(rng, num_cycles=between(rng, 0.1, 3))


def _cosine_with_hard_restarts(rng: Generator) -> Spec:
    # At a restart, transformers' own rounding decides; with few cycles it is exact.
    return _training(rng, "cosine_with_hard_restarts") | maybe(rng, num_cycles=count(rng, 1, 5))


def _cosine_with_min_lr(rng: Generator) -> Spec:
    floor = maybe(rng, min_lr=between(rng, 0, 0.01)) or {"min_lr_rate": between(rng, 0, 1)}
    return _training(rng, "cosine_with_min_lr", **floor) | maybe(rng, num_cycles=between(rng, 0.1, 3))


def _polynomial_with_warmup(rng: Generator) -> Spec:
    return _training(rng, "polynomial_with_warmup") | maybe(
        rng, lr_end=between(rng, 0, 1e-5), power=between(rng, 0.2, 3)
    )


def _inverse_sqrt(rng: Generator) -> Spec:
    return {"name": "inverse_sqrt", "num_warmup_steps": count(rng, 0, 4) and count(rng, 1, 400)} | maybe(
        rng, timescale=count(rng, 1, 1000)
    )


def _wsd(rng: Generator, warmup_type: str, decay_type: str) -> Spec:
    return (
        {"name": "wsd", "num_warmup_steps": count(rng, 0, 300), "num_stable_steps": count(rng, 0, 300)}
        | {"num_decay_steps": count(rng, 0, 400), "warmup_type": warmup_type, "decay_type": decay_type}
        | maybe(rng, min_lr_ratio=between(rng, 0, 0.5))
        | maybe(rng, num_cycles=between(rng, 0.1, 2))
    )


SHAPES = ("linear", "cosine", "1-sqrt")

CASES = [
    ScheduleCase("constant_with_warmup", _constant_with_warmup),
    ScheduleCase("linear_with_warmup", partial(_training, name="linear_with_warmup")),
    ScheduleCase("cosine_with_warmup", _cosine_with_warmup),
    ScheduleCase("cosine_with_hard_restarts", _cosine_with_hard_restarts),
    ScheduleCase("cosine_with_min_lr", _cosine_with_min_lr),
    ScheduleCase("polynomial_with_warmup", _polynomial_with_warmup),
    ScheduleCase("inverse_sqrt", _inverse_sqrt),
    *(ScheduleCase(f"wsd-{first}-{last}", partial(_wsd, warmup_type=first, decay_type=last))
      for first in SHAPES for last in SHAPES),
    # A training that ends with its warmup. Not the polynomial, which divides by 0 there.
    *(ScheduleCase(f"{name}-N=w", fixed(name=name, num_warmup_steps=7, num_training_steps=7))
      for name in ("linear_with_warmup", "cosine_with_warmup", "cosine_with_hard_restarts")),
]  # fmt: skip


def test_every_function_has_a_case() -> None:
    assert {case.id.split("-")[0] for case in CASES} == FUNCTIONS.keys()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_implementation_follows_transformers(case: ScheduleCase, seed: int) -> None:
    expect_close(case, seed, run_transformers, STEPS, rtol=RTOL)
