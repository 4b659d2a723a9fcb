"""Every optimizer of the torch flavor against torch.optim, element by element, after every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from tests.textbook.cases import CASES, Case, Grads, Hyper, Params, Run

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # tensors of a few elements; tests run side by side
pytestmark = pytest.mark.references

TORCH_CASES = [case for case in CASES if case.flavor == "torch" and case.in_framework]
# What is missing is zero for L-BFGS, whose vector is that of all parameters.
COUNTED_APART = [case for case in TORCH_CASES if case.name != "lbfgs"]
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "sparse_adam": torch.optim.SparseAdam,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
    "lbfgs": torch.optim.LBFGS,
}
# These have no other than the loop over single tensors.
SINGLE_ONLY = ("sparse_adam", "muon", "lbfgs")


@every_dtype
@every_run(TORCH_CASES)
def test_implementation_follows_torch(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_torch(case, seed, dtype)
    expect_same_run(follow_implementation(case, run), expected, case, run, case.tolerance(dtype), f"seed {seed}")


@every_dtype
@every_run(TORCH_CASES)
def test_textbook_follows_torch(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_torch(case, seed, dtype)
    expect_same_run(follow_textbook(case, run), expected, case, run, case.tolerance(dtype), f"seed {seed}")


@every_dtype
@every_run(COUNTED_APART)
def test_missing_gradient_keeps_value_and_step(case: Case, dtype: Float, seed: int) -> None:
    """torch counts steps for each parameter: without a gradient neither the value nor the count moves."""
    run = draw(case, seed, dtype)
    run = replace(run, grads=without_some(run.grads, seed))
    actual = follow_implementation(case, run)
    before = run.params
    for step, (grads, after) in enumerate(zip(run.grads, actual, strict=True)):
        for name, grad in grads.items():
            if grad is None:
                message = f"{case.id} seed {seed}: {name!r} moved without a gradient at step {step}"
                np.testing.assert_array_equal(after[name], before[name], err_msg=message)
        before = after
    expect_same_run(actual, step_torch(case, run, dtype), case, run, case.tolerance(dtype), f"seed {seed}")


@every_dtype
@every_run(TORCH_CASES)
def test_textbook_leaves_out_what_is_missing(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    run = replace(run, grads=without_some(run.grads, seed))
    actual = follow_textbook(case, run)
    expect_same_run(actual, step_torch(case, run, dtype), case, run, case.tolerance(dtype), f"seed {seed}")


def without_some(grads: Sequence[Grads], seed: int) -> list[Grads]:
    """The same gradients with a third left out, differently for each parameter, and one parameter's first always."""
    rng = np.random.default_rng([seed, 1])
    kept = [{name: None if rng.random() < 1 / 3 else grad for name, grad in row.items()} for row in grads]
    last = list(grads[0])[-1]
    return [{**kept[0], last: None}, *kept[1:]]


@remembered
def follow_torch(case: Case, seed: int, dtype: Float) -> list[Params]:
    return step_torch(case, draw(case, seed, dtype), dtype)


def step_torch(case: Case, run: Run, dtype: Float) -> list[Params]:
    """The same run by torch.optim's single-tensor loop."""
    # nadam's mu_product, asgd's rates and the step counts are made in torch's default dtype, not in the parameter's.
    with default_dtype(torch.float64 if dtype == np.float64 else torch.float32):
        params = {name: torch.tensor(value, requires_grad=True) for name, value in run.params.items()}
        arguments = torch_arguments(run.hyper) | ({} if case.name in SINGLE_ONLY else {"foreach": False})
        optimizer = OPTIMIZERS[case.name](params.values(), **arguments)
        trajectory = []
        for grads, lr in zip(run.grads, run.lrs, strict=True):
            # rprop reads its first learning rate when the first gradient comes, so it has to be there from the start.
            optimizer.param_groups[0]["lr"] = lr
            for name, param in params.items():
                grad = grads[name]
                param.grad = None if grad is None else torch.tensor(grad)
                if case.name == "sparse_adam" and param.grad is not None:
                    param.grad = with_every_row(param.grad)
            # Only L-BFGS takes, and wants, something that gives the loss; without a line search it does not use it.
            optimizer.step(*([lambda: 0.0] if case.name == "lbfgs" else []))
            trajectory.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return trajectory


def with_every_row(grad: Any) -> Any:
    """A sparse gradient that has all rows, also those of zeros."""
    indices = torch.arange(grad.shape[0])[None]
    return torch.sparse_coo_tensor(indices, grad, grad.shape, check_invariants=True)


def torch_arguments(hyper: Hyper) -> Hyper:
    """torch's names for the wire's."""
    arguments = dict(hyper)
    if "beta1" in arguments:
        arguments["betas"] = (arguments.pop("beta1"), arguments.pop("beta2"))
    if "etaminus" in arguments:
        arguments["etas"] = (arguments.pop("etaminus"), arguments.pop("etaplus"))
        arguments["step_sizes"] = (arguments.pop("step_size_min"), arguments.pop("step_size_max"))
    if "eps2" in arguments:
        arguments["eps"] = (arguments.pop("eps1"), arguments.pop("eps2"))
    return arguments


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
