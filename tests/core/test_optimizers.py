"""Every optimizer in every flavor and dtype against the textbook loops, which were written from the catalogue alone.

Two implementations are tested: the fused kernel, through a whole run, and the NumPy reference of the same definition.
"""

import zlib

import numpy as np
import pytest

from stepwell_server.core.compiler.program import specialise
from stepwell_server.core.optimizers import OPTIMIZERS, find_optimizer
from tests.core.local import LocalRun
from tests.references.implementation import step_through
from tests.textbook.cases import CASES, Case, Params, Run, draw_run, run_textbook

STEPS = 100
DTYPES = ("float64", "float32")


def test_every_optimizer_and_flavor_has_a_row():
    rows = {(case.name, case.flavor) for case in CASES} | {("sophia", "optax")}
    assert rows == {(name, flavor) for name, definition in OPTIMIZERS.items() for flavor in definition.flavors}


# Each kernel takes a second to compile, so a variant's, which is another program and not another type, is compiled for
# one type, among the long tests. Its NumPy reference is always tried.
KERNELS = [
    pytest.param(case, dtype, id=f"{case.id}-{dtype}", marks=[pytest.mark.long] if case.variant else [])
    for case in CASES
    for dtype in DTYPES
    if dtype == "float64" or not case.variant
]
# Array code is its own reference. nag's theta is served, not stored: a run shows it.
COMPILED = [
    pytest.param(
        case, dtype, id=f"{case.id}-{dtype}", marks=[pytest.mark.long] if case.variant and dtype == "float32" else []
    )
    for case in CASES
    for dtype in DTYPES
    if find_optimizer(case.name).arrays is None and case.id != "nag-lecture-theta"
]


@pytest.mark.parametrize(("case", "dtype"), KERNELS)
def test_kernel_equals_textbook(case: Case, dtype: str):
    seed = hash_of(case.id, dtype)
    run = draw_run(case, seed, dtype, STEPS)
    ours = step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs, run.losses)
    theirs = run_textbook(case, run.hyper, run.params, run.grads, run.lrs, run.losses)
    compare(ours, theirs, case, dtype, f"seed {seed}, {run.hyper}")


@pytest.mark.parametrize(("case", "dtype"), COMPILED)
def test_reference_equals_textbook(case: Case, dtype: str):
    seed = hash_of(case.id, dtype) + 1
    run = draw_run(case, seed, dtype, STEPS)
    ours = step_reference(case, run)
    theirs = run_textbook(case, run.hyper, run.params, run.grads, run.lrs, run.losses)
    compare(ours, theirs, case, dtype, f"seed {seed}, {run.hyper}")


def step_reference(case: Case, run: Run) -> list[Params]:
    """The definition on plain NumPy arrays: tensor by tensor, or, over a group, on all tensors as one flat array."""
    definition = find_optimizer(case.name)
    given = {"lr": 1.0, **run.hyper} if "lr" in definition.arguments else run.hyper
    values = definition.resolve(case.flavor, given)
    program = specialise(definition, values, live=["lr"])
    flat = program.scope == "group"
    params: Params = joined(run.params) if flat else dict(run.params)
    state = {
        name: [
            definition.scalars[key]
            if key in definition.scalars
            else starting_slot(param, definition.init.get(key), values)
            for key in definition.state
            if key in program.slots + program.scalars
        ]
        for name, param in params.items()
    }
    trajectory = []
    for step, (grads, lr, loss) in enumerate(zip(run.grads, run.lrs, run.losses or run.lrs, strict=True), 1):
        at = values | {"lr": lr} if "lr" in values else values
        for name, grad in (joined(grads) if flat else grads).items():
            param, *state[name] = program.reference(
                params[name], grad, *state[name], step=step, values=at, given={"loss": loss}
            )
            assert np.asarray(param).dtype == params[name].dtype, "a float64 scalar has promoted float32 arrays"
            params[name] = np.asarray(param)
        trajectory.append(taken_apart(params["all"], run.params) if flat else dict(params))
    return trajectory


def joined(arrays) -> Params:
    return {"all": np.concatenate([np.ravel(array) for array in arrays.values()])}


def taken_apart(flat, like: Params) -> Params:
    cuts = np.cumsum([array.size for array in like.values()])[:-1]
    parts = np.split(flat, cuts)
    return {name: part.reshape(array.shape) for part, (name, array) in zip(parts, like.items(), strict=True)}


def starting_slot(param, start: str | None, values):
    """What a slot holds before the first step: zeros, a hyperparameter, or the parameter itself."""
    if start == "param":
        return param.copy()
    return np.full_like(param, 0.0 if start is None else values[start])


def compare(ours, theirs, case: Case, dtype: str, message: str) -> None:
    rtol, atol = case.tolerance(dtype)
    for step, (here, there) in enumerate(zip(ours, theirs, strict=True), 1):
        for name in there:
            np.testing.assert_allclose(
                here[name], there[name], rtol=rtol, atol=atol, err_msg=f"step {step}, {name}, {message}"
            )


def hash_of(*words: str) -> int:
    """A seed that stays the same from run to run."""
    return zlib.crc32("-".join(words).encode())


def test_sophia_takes_a_hessian_now_and_then(device):
    """It needs more than the table's rows have: the catalogue's row and the paper's Algorithm 3, written out."""
    random = np.random.default_rng(3)
    param = random.normal(size=(3, 4))
    run = LocalRun({"w": param}, "sophia", hyperparameters={"lr": 0.1, "weight_decay": 0.0}, device=device)
    m, h = np.zeros_like(param), np.zeros_like(param)
    for step in range(1, 31):
        grad, hessian = random.normal(size=(3, 4)), random.normal(size=(3, 4)) ** 2
        m = 0.965 * m + 0.035 * grad
        param = param - 0.1 * np.clip(m / (1 - 0.965**step) / np.maximum(0.01 * h, 1e-8), -1, 1)
        given = step % 5 == 1
        if given:
            h = 0.99 * h + 0.01 * hessian
        got = run.step({"w": grad}, **({"inputs": {"hessian": {"w": hessian}}} if given else {}))
        np.testing.assert_allclose(got["w"], param, rtol=1e-11, atol=1e-13)
