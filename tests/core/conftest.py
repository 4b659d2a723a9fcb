"""What the tests of the core share: one device for all of them, since compiling takes longer than anything else."""

from unittest.mock import patch

import pytest

from stepwell_server.core.compiler.definition import OPTIMIZERS
from stepwell_server.core.devices.cpu import CpuDevice
from tests.kernels import kept_kernels


@pytest.fixture(scope="session")
def kernel_directory():
    """Where kernels are kept, so that a test that needs another device does not compile them again."""
    return kept_kernels()


@pytest.fixture(scope="session")
def device(kernel_directory):
    made = CpuDevice(2, kernel_directory)
    yield made
    made.close()


@pytest.fixture
def registry():
    """The registered optimizers; what a test defines is forgotten after it."""
    with patch.dict(OPTIMIZERS):
        yield OPTIMIZERS
