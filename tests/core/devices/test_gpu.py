"""The table of all optimizers on a real GPU: what `test_optimizers.py` asks of the CPU's kernels."""

import pytest

from stepwell_server.core.devices.device import DeviceUnavailable, open_device
from tests.core.test_optimizers import DTYPES, STEPS, compare, hash_of
from tests.references import implementation
from tests.textbook.cases import CASES, draw_run, run_textbook

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def on_the_gpu(kernel_directory):
    try:
        open_device("cuda", 2, kernel_directory).close()
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    before = dict(implementation._used)
    implementation.use("cuda", kernel_directory)
    yield
    implementation.use(**before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_equals_textbook(case, dtype):
    seed = hash_of(case.id, dtype)
    run = draw_run(case, seed, dtype, STEPS)
    ours = implementation.step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs, run.losses)
    theirs = run_textbook(case, run.hyper, run.params, run.grads, run.lrs, run.losses)
    compare(ours, theirs, case, dtype, f"seed {seed}, {run.hyper}")
