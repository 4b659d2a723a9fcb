"""Compiled kernels are kept from one run of the tests to the next, as a server keeps them from one start to the next.

Compiling takes longer than all else that the tests do. A kernel is found by its source, options and compiler, so none
is ever taken for another; `make clean` removes them.
"""

from functools import cache
from pathlib import Path

from stepwell_server.storage.kernel_cache import private_directory


@cache
def kept_kernels() -> Path:
    """The directory, private to the user."""
    directory = private_directory(Path(__file__).parent.parent / ".pytest_cache" / "kernels")
    assert directory is not None
    return directory
