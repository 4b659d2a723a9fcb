"""Prodigy against the authors' package, after every step."""

from __future__ import annotations

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
from tests.textbook.cases import CASES, Case, Params

prodigyopt = pytest.importorskip("prodigyopt")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.references

ROWS = [case for case in CASES if case.flavor == "prodigyopt" and case.in_framework]


@every_dtype
@every_run(ROWS)
def test_implementation_follows_prodigyopt(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_prodigyopt(case, seed, dtype)
    expect_same_run(follow_implementation(case, run), expected, case, run, case.tolerance(dtype), f"seed {seed}")


@every_dtype
@every_run(ROWS)
def test_textbook_follows_prodigyopt(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_prodigyopt(case, seed, dtype)
    expect_same_run(follow_textbook(case, run), expected, case, run, case.tolerance(dtype), f"seed {seed}")


@remembered
def follow_prodigyopt(case: Case, seed: int, dtype: Float) -> list[Params]:
    run = draw(case, seed, dtype)
    params = {name: torch.tensor(value, requires_grad=True) for name, value in run.params.items()}
    arguments = dict(run.hyper)
    if "beta1" in arguments:
        arguments["betas"] = (arguments.pop("beta1"), arguments.pop("beta2"))
        arguments["use_bias_correction"] = arguments.pop("bias_correction")
    optimizer = prodigyopt.Prodigy(params.values(), lr=run.lrs[0], **arguments)
    trajectory = []
    for row, lr in zip(run.grads, run.lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for name, param in params.items():
            param.grad = torch.tensor(row[name])
        optimizer.step()
        trajectory.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return trajectory
