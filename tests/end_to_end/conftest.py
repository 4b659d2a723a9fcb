import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import stepwell
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels


@pytest.fixture(scope="session")
def kernel_cache() -> Path:
    """One directory for all servers, so that each kernel is compiled once."""
    return kept_kernels()


@pytest.fixture(scope="session")
def server(kernel_cache: Path) -> Iterator[Server]:
    """A server with default options, shared: a test names its runs by `name`."""
    with Server(kernel_cache, "--reflection") as server:
        yield server


@pytest.fixture
def start(kernel_cache: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own; arguments as of Server."""
    with ExitStack() as servers:
        yield lambda *options, **more: servers.enter_context(Server(kernel_cache, *options, **more))


@pytest.fixture
def connect() -> Iterator[Callable[..., stepwell.Client]]:
    """`stepwell.connect` with closing; takes a server or an address."""
    with ExitStack() as clients:

        def connect(to: Server | str, **options: Any) -> stepwell.Client:
            address = to if isinstance(to, str) else to.address
            options = {"retry_seconds": 0.01, "retry_seconds_max": 0.2, "patience_seconds": 60.0, **options}
            return clients.enter_context(stepwell.connect(address, **options))

        yield connect


@pytest.fixture
def client(server: Server, connect: Callable[..., stepwell.Client]) -> stepwell.Client:
    return connect(server)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A run's name that no other test has."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", request.node.name)[:100] + "-" + os.urandom(4).hex()
