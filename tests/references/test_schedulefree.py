"""Schedule-free SGD and AdamW against the authors' package and against optax, both points, after every step.

Keras's is among its other optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.references.comparison import (
    Float,
    draw,
    every_dtype,
    every_run,
    expect_same_run,
    follow_implementation,
    follow_textbook,
    remembered,
)
from tests.references.jaxed import import_jax
from tests.textbook.cases import CASES, Case, Params, Run

jax = import_jax()
optax = pytest.importorskip("optax")
schedulefree = pytest.importorskip("schedulefree")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.references

Schedule = Callable[[Any], Any]

NAMES = ("schedule_free_sgd", "schedule_free_adamw")
ROWS = [case for case in CASES if case.name in NAMES and case.flavor != "keras" and case.in_framework]
BY_ID = {case.id: case for case in ROWS}


@every_dtype
@every_run(ROWS)
def test_implementation_follows_framework(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected, _ = follow_framework(case, seed, dtype)
    expect_same_run(follow_implementation(case, run), expected, case, run, case.tolerance(dtype), f"seed {seed}")


@every_dtype
@every_run(ROWS)
def test_textbook_follows_framework(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected, _ = follow_framework(case, seed, dtype)
    expect_same_run(follow_textbook(case, run), expected, case, run, case.tolerance(dtype), f"seed {seed}")


@every_dtype
@every_run(ROWS)
def test_textbook_follows_evaluation_point(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    _, expected = follow_framework(case, seed, dtype)
    actual = follow_textbook(case, replace(run, hyper=run.hyper | {"point": "evaluation"}))
    # The package gives its average at the end only: to ask for it is to move the parameters there and back.
    steps = len(expected)
    expect_same_run(actual[-steps:], expected, case, run, case.tolerance(dtype), f"seed {seed}")


@every_dtype
@pytest.mark.parametrize("name", NAMES)
def test_textbook_follows_optax_by_its_own_name(name: str, dtype: Float) -> None:
    """optax's shorthand takes one learning rate and warms up by itself, from zero; its names are nearly ours."""
    case = BY_ID[f"{name}-optax-warmup"]
    run = draw(case, 0, dtype)
    run = replace(run, lrs=[0.02] * len(run.lrs))
    names = {"beta1": "b1", "beta2": "b2"}
    arguments = {names.get(key, key): value for key, value in run.hyper.items()}
    optimizer = getattr(optax.contrib, name)(run.lrs[0], **arguments | {"warmup_steps": 30})
    expected, _ = step_transformation(optimizer, run)
    # optax's schedules are computed in float32.
    expect_same_run(
        follow_textbook(case, run), expected, case, run, (2e-6, 1e-7) if dtype == np.float64 else (2e-5, 1e-6)
    )


@remembered
def follow_framework(case: Case, seed: int, dtype: Float) -> tuple[list[Params], list[Params]]:
    """The parameters after every step, and the average at the evaluation point, which may be the last only."""
    run = draw(case, seed, dtype)
    return step_optax(case, run) if case.flavor == "optax" else step_schedulefree(case, run)


def step_schedulefree(case: Case, run: Run) -> tuple[list[Params], list[Params]]:
    params = {name: torch.tensor(value, requires_grad=True) for name, value in run.params.items()}
    arguments = dict(run.hyper)
    if case.name == "schedule_free_sgd":
        kind = schedulefree.SGDScheduleFree
        arguments |= {"momentum": arguments.pop("beta1")} if "beta1" in arguments else {}
    else:
        kind = schedulefree.AdamWScheduleFree
        arguments |= {"betas": (arguments.pop("beta1"), arguments.pop("beta2"))} if "beta1" in arguments else {}
    optimizer = kind(params.values(), lr=run.lrs[0], foreach=False, **arguments)
    optimizer.train()
    trajectory = []
    for row, lr in zip(run.grads, run.lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for name, param in params.items():
            param.grad = torch.tensor(row[name])
        optimizer.step()
        trajectory.append(copies(params))
    optimizer.eval()
    return trajectory, [copies(params)]


def step_optax(case: Case, run: Run) -> tuple[list[Params], list[Params]]:
    """Put together from its parts, so that the learning rate can vary: the wrapper reads its schedule from 1 on."""
    hyper: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_lr_power": 2.0, **run.hyper}
    warmup = hyper.get("warmup_steps", 0.0)
    moving = [lr * min(1.0, step / warmup) if warmup else lr for step, lr in enumerate(run.lrs)]
    weighing = [lr * min(1.0, (step + 1) / warmup) if warmup else lr for step, lr in enumerate(run.lrs)]
    decay = optax.add_decayed_weights(hyper.get("weight_decay", 0.0))
    move = optax.scale_by_learning_rate(table(moving))
    if case.name == "schedule_free_sgd":
        base = optax.chain(decay, move)
    else:
        adam = optax.scale_by_rms(decay=hyper["beta2"], eps=hyper["eps"], eps_in_sqrt=False, bias_correction=True)
        base = optax.chain(adam, decay, move)
    return step_transformation(
        optax.contrib.schedule_free(
            base, table([0.0, *weighing]), b1=hyper["beta1"], weight_lr_power=hyper["weight_lr_power"]
        ),
        run,
    )


def step_transformation(transformation: Any, run: Run) -> tuple[list[Params], list[Params]]:
    params = {name: jax.numpy.asarray(value) for name, value in run.params.items()}
    state, update = transformation.init(params), jax.jit(transformation.update)
    trajectory, averages = [], []
    for row in run.grads:
        updates, state = update({name: jax.numpy.asarray(grad) for name, grad in row.items()}, state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append({name: np.asarray(value) for name, value in params.items()})
        average = optax.contrib.schedule_free_eval_params(state, params)
        averages.append({name: np.asarray(value) for name, value in average.items()})
    return trajectory, averages


def table(values: Sequence[float]) -> Schedule:
    held = jax.numpy.asarray([*values, values[-1]])
    return lambda count: held[count]


def copies(params: dict[str, Any]) -> Params:
    return {name: param.detach().numpy().copy() for name, param in params.items()}
