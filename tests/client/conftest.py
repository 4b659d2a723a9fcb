import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import stepwell
import stepwell.aio
from tests.client.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=["blocking", "awaiting"])
def connect(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Any]:
    """`connect` of either client. The awaiting one is wrapped so that one test serves both: it awaits by itself."""
    clients = []
    with asyncio.Runner() as runner:

        def connect(address: str | None = None, **options: Any) -> Any:
            options = {"patience_seconds": 60.0, "silence_seconds": 30.0, "retry_seconds": 0.01, **options}
            if request.param == "blocking":
                client: Any = stepwell.connect(address or server.address, **options)
            else:
                client = Awaited(stepwell.aio.connect(address or server.address, **options), runner)
            clients.append(client)
            return client

        yield connect
        for client in clients:
            client.close()


class Awaited:
    """An object of stepwell.aio whose operations are awaited at once."""

    def __init__(self, inner: Any, runner: asyncio.Runner) -> None:
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_runner", runner)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        return self._awaited(attribute) if inspect.iscoroutinefunction(attribute) else attribute

    def __repr__(self) -> str:
        return repr(self._inner)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _awaited(self, operation: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def awaited() -> Any:
                return await operation(*args, **kwargs)

            result = self._runner.run(awaited())
            return Awaited(result, self._runner) if isinstance(result, stepwell.aio.Run) else result

        return call


@pytest.fixture
def parameters() -> dict[str, np.ndarray[Any, Any]]:
    """Two dtypes, 0-d and empty ones, a large one, and names as people give them."""
    rng = np.random.default_rng(7)
    return {
        "layers/0.weight": rng.standard_normal((5, 3)).astype(np.float32),
        "scale": np.array(1.5),
        "leer": np.zeros((0, 4), np.float32),
        "größe.bias": rng.standard_normal(7),
        "embedding": rng.standard_normal((700, 501)).astype(np.float32),
        "b": rng.standard_normal(1).astype(np.float32),
    }
