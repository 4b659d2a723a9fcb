"""Every optimizer of the keras flavor against keras.optimizers on JAX, element by element, after every step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
from tests.textbook.cases import CASES, Case, Hyper, Params

os.environ["KERAS_BACKEND"] = "jax"
jax = import_jax()
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.references

KERAS_CASES = [case for case in CASES if case.flavor == "keras" and case.in_framework]
OPTIMIZERS = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "nadam": "Nadam",
    "ftrl": "Ftrl",
    "lion": "Lion",
    "lamb": "Lamb",
    "adafactor": "Adafactor",
    "muon": "Muon",
    "schedule_free_adamw": "ScheduleFreeAdamW",
}
ARGUMENTS = {
    "alpha": "rho",
    "beta1": "beta_1",
    "beta2": "beta_2",
    "beta2_decay": "beta_2_decay",
    "d": "clip_threshold",
    "eps": "epsilon",
    "eps1": "epsilon_1",
    "eps2": "epsilon_2",
    "eps_root": "epsilon",
    "l1": "l1_regularization_strength",
    "l2": "l2_regularization_strength",
    "l2_shrinkage": "l2_shrinkage_regularization_strength",
    "lr_power": "learning_rate_power",
}


@every_dtype
@every_run(KERAS_CASES)
def test_implementation_follows_keras(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_keras(case, seed, dtype)
    expect_same_run(follow_implementation(case, run), expected, case, run, tolerance(case, dtype), f"seed {seed}")


@every_dtype
@every_run(KERAS_CASES)
def test_textbook_follows_keras(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_keras(case, seed, dtype)
    expect_same_run(follow_textbook(case, run), expected, case, run, tolerance(case, dtype), f"seed {seed}")


def tolerance(case: Case, dtype: Float) -> tuple[float, float]:
    """The row's, or what Keras makes of it: it forms 1 - beta**t in float32, and means and norms always."""
    rtol, atol = case.tolerance(dtype)
    if dtype == np.float32:
        return max(rtol, 2e-4), max(atol, 2e-5)
    return (1e-7, 2e-8) if case.name in ("adafactor", "muon") else (rtol, atol)


@remembered
def follow_keras(case: Case, seed: int, dtype: Float) -> list[Params]:
    """The row's run of this seed by keras.optimizers."""
    run = draw(case, seed, dtype)
    with floatx(np.dtype(dtype).name):
        names = list(run.params)
        variables = [keras.Variable(run.params[name], dtype=np.dtype(dtype).name) for name in names]
        kind = getattr(keras.optimizers, OPTIMIZERS[case.name])
        optimizer = kind(learning_rate=1.0, **keras_arguments(run.hyper))
        optimizer.build(variables)
        step = jax.jit(optimizer.stateless_apply)
        rate = [v.path for v in optimizer.variables].index(optimizer.learning_rate.path)
        state, values = [v.value for v in optimizer.variables], [v.value for v in variables]
        trajectory = []
        for row, lr in zip(run.grads, run.lrs, strict=True):
            state[rate] = jax.numpy.asarray(lr, dtype=dtype)
            values, state = step(state, [jax.numpy.asarray(row[name]) for name in names], values)
            trajectory.append({name: np.asarray(value) for name, value in zip(names, values, strict=True)})
    return trajectory


def keras_arguments(hyper: Hyper) -> Hyper:
    """Keras's names for the wire's."""
    arguments = {ARGUMENTS.get(name, name): value for name, value in hyper.items()}
    if isinstance(coefficients := arguments.pop("ns_coefficients", None), list):
        arguments |= dict(zip(("muon_a", "muon_b", "muon_c"), coefficients, strict=True))
    return arguments


@contextmanager
def floatx(name: str) -> Iterator[None]:
    before = keras.config.floatx()
    keras.config.set_floatx(name)
    try:
        yield
    finally:
        keras.config.set_floatx(before)
