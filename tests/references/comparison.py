"""What the comparisons of optimizers share: how many steps and seeds, and what is close."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import ParamSpec, TypeVar

import numpy as np
import pytest

from tests.references.implementation import step_through
from tests.textbook.cases import Case, Params, Run, draw_run, run_textbook
from tests.textbook.loops import Array

STEPS = 100
Float = type[np.floating]
P = ParamSpec("P")
R = TypeVar("R")

every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
every_seed = pytest.mark.parametrize("seed", range(3))


def seeds_of(case: Case) -> range:
    """Three runs of a row that draws everything, one of a row that fixes something."""
    return range(1 if case.variant else 3)


def every_run(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Each row with its seeds. An optimizer's rows stay in one process, where its kernels are compiled once."""
    return pytest.mark.parametrize(
        ("case", "seed"),
        [
            pytest.param(
                case, seed, id=f"{case.id}-{seed}", marks=pytest.mark.xdist_group(f"{case.name}-{case.flavor}")
            )
            for case in cases
            for seed in seeds_of(case)
        ],
    )


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """Run a framework once for all tests that compare with the same run of it."""
    # What the cache takes is typed as hashable, and mypy finds that NumPy's scalar types are not.
    return cache(function)  # type: ignore[return-value]


def draw(case: Case, seed: int, dtype: Float) -> Run:
    return draw_run(case, seed, dtype, STEPS)


def follow_implementation(case: Case, run: Run) -> list[Params]:
    return step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs, run.losses)


def follow_textbook(case: Case, run: Run) -> list[Params]:
    return run_textbook(case, run.hyper, run.params, run.grads, run.lrs, run.losses)


def error_over_tolerance(actual: Array, expected: Array, rtol: float, atol: float) -> float:
    """The largest |x - y| / (atol + rtol * |y|) of all elements: 1 is at the tolerance.

    Infinite where one is not finite and the other is not the same.
    """
    x, y = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        errors = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y) / (atol + rtol * np.abs(y)))
    return float(np.max(np.where(np.isnan(errors), math.inf, errors), initial=0.0))


def worst_error(actual: Sequence[Params], expected: Sequence[Params], tolerance: tuple[float, float]) -> float:
    """The same of every element of every parameter after every step; tolerance: (rtol, atol)."""
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.keys() == wanted.keys()
        for name, value in got.items():
            assert (value.dtype, value.shape) == (wanted[name].dtype, wanted[name].shape)
    return max(
        error_over_tolerance(
            np.stack([row[name] for row in actual]), np.stack([row[name] for row in expected]), *tolerance
        )
        for name in actual[0]
    )


def expect_close(
    actual: Sequence[Params],
    expected: Sequence[Params],
    tolerance: tuple[float, float],
    words: str,
) -> None:
    """Every element of every parameter after every step is within (rtol, atol); words: which run, for the message."""
    if worst_error(actual, expected, tolerance) <= 1:
        return
    rtol, atol = tolerance
    for step, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        for name, value in got.items():
            message = f"{words}, step {step}, {name!r}"
            np.testing.assert_allclose(value, wanted[name], rtol=rtol, atol=atol, err_msg=message)


def expect_same_run(
    actual: Sequence[Params],
    expected: Sequence[Params],
    case: Case,
    run: Run,
    tolerance: tuple[float, float],
    words: str = "",
) -> None:
    expect_close(actual, expected, tolerance, f"{case.id} {words}, hyperparameters {run.hyper}")
