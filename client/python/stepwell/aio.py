"""The same client with `await`: `stepwell.aio.connect`, `Client` and `Run`.

    async with stepwell.aio.connect("127.0.0.1:50051") as client:
        run = await client.create_run("mnist", {"w": w, "b": b}, optimizer="adam")
        params = await run.step({"w": gw, "b": gb})

Errors and what calls return are those of `stepwell`."""

import asyncio
from collections.abc import Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from stepwell._awaiting import AwaitingConnection
from stepwell._calls import Settings, Transport
from stepwell._client import ClientOperations, make_settings
from stepwell._operation import Awaiting, Connection
from stepwell._outstanding import Tasks
from stepwell._progress import Progress
from stepwell._receiving import BufferPool
from stepwell._run import Arrays, RunOperations
from stepwell.v1 import run_pb2


class Run(RunOperations, Awaiting):
    __doc__ = RunOperations.__doc__

    def __init__(
        self, connection: Connection, settings: Settings, pool: BufferPool, run: run_pb2.Run, *, created: bool
    ) -> None:
        super().__init__(connection, settings, pool, run, created=created)
        self._outstanding = Tasks(run.name, settings.outstanding_updates_max)

    def step_async(self, grads: Mapping[str, Any], **options: Any) -> "asyncio.Task[Arrays]":
        """Begin a step and return at once; the task gives what `step` returns or raises. The arguments are step's.

        Steps are made one after another. The gradients must stay as they are until the task is done. Raises
        LimitExceeded where `outstanding_updates_max` are under way. When the run went back to an older state, the step
        that finds out raises RunRewound, and those that wait behind it are cancelled.
        """
        return self._outstanding.start(self.step(grads, **options))

    def pull_async(self, names: Iterable[str] | None = None, **options: Any) -> "asyncio.Task[Arrays | None]":
        """Begin a pull and return at once, as `step_async` does. The arguments are pull's."""
        return self._outstanding.start(self.pull(names, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._outstanding.finish()
        await self.close()


class Client(ClientOperations[Run], Awaiting):
    __doc__ = ClientOperations.__doc__

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[None, None, Self]:
        return self
        yield  # makes this a generator

    def _make_run(self, run: run_pb2.Run, created: bool) -> Run:
        return Run(self._connection, self._settings, self._pool, run, created=created)


def connect(
    address: str | None = None,
    *,
    worker: str | None = None,
    silence_seconds: float = 30.0,
    patience_seconds: float = 120.0,
    retry_seconds: float = 0.05,
    retry_seconds_max: float = 2.0,
    on_rewind: Literal["raise", "continue"] = "raise",
    progress: Progress = False,
    transport: Transport = "auto",
    outstanding_updates_max: int = 4,
) -> Client:
    """A client of the server at an address; the arguments are those of `stepwell.connect`.

    Nothing is sent before the first call, so there is nothing to wait for: `async with connect(...)`, `connect(...)`
    and `await connect(...)` all give the client.
    """
    settings = make_settings(
        address,
        worker=worker,
        silence_seconds=silence_seconds,
        patience_seconds=patience_seconds,
        retry_seconds=retry_seconds,
        retry_seconds_max=retry_seconds_max,
        on_rewind=on_rewind,
        progress=progress,
        transport=transport,
        outstanding_updates_max=outstanding_updates_max,
    )
    return Client(AwaitingConnection(settings.address), settings)
