"""The table of all optimizers on a real GPU: what `test_optimizers.py` asks of the CPU's kernels."""

import pytest

from stepwell_server.core.devices.device import DeviceUnavailable, open_device
from tests.core.test_optimizers import DTYPES, STEPS, compare, hash_of
from tests.references.implementation import step_through
from tests.textbook.cases import CASES, draw_run, run_textbook

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu(kernel_directory):
    try:
        made = open_device("cuda", 2, kernel_directory)
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_equals_textbook(gpu, case, dtype):
    seed = hash_of(case.id, dtype)
    run = draw_run(case, seed, dtype, STEPS)
    ours = step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs, run.losses, gpu)
    theirs = run_textbook(case, run.hyper, run.params, run.grads, run.lrs, run.losses)
    compare(ours, theirs, case, dtype, f"seed {seed}, {run.hyper}")
