"""Every optimizer in every flavor and dtype against the textbook loops, which were written from the catalogue alone.

Two implementations are tested: the fused kernel, through a whole run, and the NumPy reference of the same definition.
"""

import numpy as np
import pytest

from stepwell_server.core.compiler.program import specialise
from stepwell_server.core.optimizers import OPTIMIZERS, find_optimizer
from tests.references.implementation import step_through
from tests.textbook.cases import CASES, Case, draw_run, run_textbook

STEPS = 100
DTYPES = ("float64", "float32")


def test_every_optimizer_and_flavor_has_a_row():
    rows = {(case.name, case.flavor) for case in CASES}
    assert rows == {(name, flavor) for name, definition in OPTIMIZERS.items() for flavor in definition.flavors}


# Each kernel takes a second to compile. A variant is another program, not another type: one type shows it.
KERNELS = [(case, dtype) for case in CASES for dtype in DTYPES if dtype == "float64" or not case.variant]


@pytest.mark.parametrize(("case", "dtype"), KERNELS, ids=lambda part: getattr(part, "id", part))
def test_kernel_equals_textbook(case: Case, dtype: str):
    seed = abs(hash_of(case.id, dtype))
    run = draw_run(case, seed, dtype, STEPS)
    ours = step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs)
    theirs = run_textbook(case, run.hyper, run.params, run.grads, run.lrs)
    compare(ours, theirs, case, dtype, f"seed {seed}, {run.hyper}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_reference_equals_textbook(case: Case, dtype: str):
    seed = abs(hash_of(case.id, dtype)) + 1
    run = draw_run(case, seed, dtype, STEPS)
    definition = find_optimizer(case.name)
    values = definition.resolve(case.flavor, {"lr": 1.0, **run.hyper} if "lr" in definition.arguments else run.hyper)
    program = specialise(definition, values, live=["lr"])
    state = {}
    for name, param in run.params.items():
        state[name] = [
            definition.scalars[key]
            if key in definition.scalars
            else np.full_like(param, values[definition.init[key]] if key in definition.init else 0.0)
            for key in definition.state
            if key in program.slots + program.scalars
        ]
    params, ours = dict(run.params), []
    for step, (grads, lr) in enumerate(zip(run.grads, run.lrs, strict=True), 1):
        for name, grad in grads.items():
            at = values | {"lr": lr} if "lr" in values else values
            param, *state[name] = program.reference(params[name], grad, *state[name], step=step, values=at)
            params[name] = np.asarray(param)
            assert params[name].dtype == np.dtype(dtype), "a float64 scalar has promoted float32 arrays"
        ours.append(dict(params))
    theirs = run_textbook(case, run.hyper, run.params, run.grads, run.lrs)
    compare(ours, theirs, case, dtype, f"seed {seed}, {run.hyper}")


def compare(ours, theirs, case: Case, dtype: str, message: str) -> None:
    rtol, atol = case.tolerance(dtype)
    for step, (here, there) in enumerate(zip(ours, theirs, strict=True), 1):
        for name in there:
            np.testing.assert_allclose(
                here[name], there[name], rtol=rtol, atol=atol, err_msg=f"step {step}, {name}, {message}"
            )


def hash_of(*words: str) -> int:
    """A seed that stays the same from run to run."""
    return int.from_bytes("-".join(words).encode()[-7:], "little") % 2**31
