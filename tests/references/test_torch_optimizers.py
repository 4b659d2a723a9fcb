"""Every optimizer of the torch flavor against torch.optim, element by element, after every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.references.implementation import step_through
from tests.textbook.cases import CASES, Case, Grads, Hyper, Params, Run, draw_run, run_textbook

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

STEPS = 100
SEEDS = range(3)
TORCH_CASES = [case for case in CASES if case.flavor == "torch" and case.in_framework]
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
}

every_case = pytest.mark.parametrize("case", TORCH_CASES, ids=lambda case: case.id)
every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
every_seed = pytest.mark.parametrize("seed", SEEDS)


@every_seed
@every_dtype
@every_case
def test_implementation_follows_torch(case: Case, dtype: type[np.floating], seed: int) -> None:
    run = draw_run(case, seed, dtype, STEPS)
    actual = step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs)
    expect_close(actual, step_torch(case, run, dtype), case, run, dtype, seed)


@every_seed
@every_dtype
@every_case
def test_textbook_follows_torch(case: Case, dtype: type[np.floating], seed: int) -> None:
    run = draw_run(case, seed, dtype, STEPS)
    actual = run_textbook(case, run.hyper, run.params, run.grads, run.lrs)
    expect_close(actual, step_torch(case, run, dtype), case, run, dtype, seed)


@every_seed
@every_dtype
@every_case
def test_missing_gradient_keeps_value_and_step(case: Case, dtype: type[np.floating], seed: int) -> None:
    """torch counts steps for each parameter: without a gradient neither the value nor the count moves."""
    run = draw_run(case, seed, dtype, STEPS)
    run = Run(run.hyper, run.params, without_some(run.grads, seed), run.lrs)
    actual = step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs)
    before = run.params
    for step, (grads, after) in enumerate(zip(run.grads, actual, strict=True)):
        for name, grad in grads.items():
            if grad is None:
                message = f"{case.id} seed {seed}: {name!r} moved without a gradient at step {step}"
                np.testing.assert_array_equal(after[name], before[name], err_msg=message)
        before = after
    expect_close(actual, step_torch(case, run, dtype), case, run, dtype, seed)


def without_some(grads: Sequence[Grads], seed: int) -> list[Grads]:
    """The same gradients with a third left out, differently for each parameter, and the vector's first always."""
    rng = np.random.default_rng([seed, 1])
    kept = [{name: None if rng.random() < 1 / 3 else grad for name, grad in row.items()} for row in grads]
    return [{**kept[0], "vector": None}, *kept[1:]]


def step_torch(case: Case, run: Run, dtype: type[np.floating]) -> list[Params]:
    """The same run by torch.optim's single-tensor loop."""
    # nadam's mu_product and the step counts are made in torch's default dtype, not in the parameter's.
    with default_dtype(torch.float64 if dtype == np.float64 else torch.float32):
        params = {name: torch.tensor(value, requires_grad=True) for name, value in run.params.items()}
        optimizer = OPTIMIZERS[case.name](params.values(), foreach=False, **torch_arguments(run.hyper))
        trajectory = []
        for grads, lr in zip(run.grads, run.lrs, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            for name, param in params.items():
                grad = grads[name]
                param.grad = None if grad is None else torch.tensor(grad)
            optimizer.step()
            trajectory.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return trajectory


def torch_arguments(hyper: Hyper) -> Hyper:
    """torch's names for the wire's: only the betas differ."""
    arguments = dict(hyper)
    if "beta1" in arguments:
        arguments["betas"] = (arguments.pop("beta1"), arguments.pop("beta2"))
    return arguments


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def expect_close(
    actual: Sequence[Params],
    expected: Sequence[Params],
    case: Case,
    run: Run,
    dtype: type[np.floating],
    seed: int,
) -> None:
    """Every element of every parameter after every step is within the case's tolerance."""
    assert len(actual) == len(expected)
    rtol, atol = case.tolerance(dtype)
    for step, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert got.keys() == wanted.keys()
        for name, value in got.items():
            assert value.dtype == dtype
            message = f"{case.id} seed {seed}, step {step}, parameter {name!r}, hyperparameters {run.hyper}"
            np.testing.assert_allclose(value, wanted[name], rtol=rtol, atol=atol, err_msg=message)
