"""The same client with `await`: `stepwell.aio.connect`, `Client` and `Run`.

    async with stepwell.aio.connect("127.0.0.1:50051") as client:
        run = await client.create_run("mnist", {"w": w, "b": b}, optimizer="adam")
        params = await run.step({"w": gw, "b": gb})

Errors and what calls return are those of `stepwell`."""

from collections.abc import Generator
from types import TracebackType
from typing import Literal, Self

from stepwell._awaiting import AwaitingConnection
from stepwell._calls import Transport
from stepwell._client import ClientOperations, make_settings
from stepwell._operation import Awaiting
from stepwell._progress import Progress
from stepwell._run import RunOperations
from stepwell.v1 import run_pb2


class Run(RunOperations, Awaiting):
    __doc__ = RunOperations.__doc__

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    )
    return Client(AwaitingConnection(settings.address), settings)
