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
from stepwell._layers import LayersBase
from stepwell._operation import Awaiting, Connection
from stepwell._outstanding import Tasks
from stepwell._progress import Progress
from stepwell._receiving import BufferPool
from stepwell._run import RunOperations
from stepwell._run_base import Arrays
from stepwell.v1 import run_pb2


class Update(LayersBase):
    """An update that is sent gradient by gradient; `run.update()` makes it, and the end of its block commits it.

    `add` every parameter once, or None for one without a gradient. After the block `parameters` has what a step
    returns. An error in the block gives the update up, and the run stays as it was.
    """

    def __init__(self, run: "Run", **options: Any) -> None:
        super().__init__(run, **options)
        self._run = run

    async def add(self, name: str, gradient: Any) -> None:
        """Send a gradient.

        name: a parameter that has had none in this block. gradient: an array of its shape, which must stay as it is
        until the block ends; None for a parameter without one. Raises InvalidGradient.
        """
        assert self._begun is not None, "add belongs into the block"
        await self._run._add(self._begun, name, gradient)

    async def __aenter__(self) -> Self:
        self._begun = await self._run._begin(self._header, self._received, self._out, self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._begun is not None
        if kind is not None:
            await self._run._abandon(self._begun)
        else:
            self._end(await self._run._finish(self._begun), self._run.version)


class Run(RunOperations, Awaiting):
    __doc__ = RunOperations.__doc__

    def __init__(
        self, connection: Connection, settings: Settings, pool: BufferPool, run: run_pb2.Run, *, created: bool
    ) -> None:
        super().__init__(connection, settings, pool, run, created=created)
        self._outstanding = Tasks(run.name, settings.outstanding_updates_max)

    def update(self, **options: Any) -> Update:
        """A block that commits an update at its end, for gradients that come one after another.

            async with run.update(samples=32) as update:
                for name, gradient in backward(loss):
                    await update.add(name, gradient)
            params = update.parameters

        options: samples, loss, hyperparameters, loss_scale, sparsity_factor, out and timeout as for `step`; pull=False
        to get no parameters. Within the block the run takes no other calls. Raises RunRewound at the end of the block
        whatever on_rewind says.
        """
        return Update(self, **options)

    def step_async(self, grads: Mapping[str, Any], **options: Any) -> "asyncio.Task[Arrays]":
        """Begin a step and return at once; the task gives what `step` returns or raises. The arguments are step's.

        Steps are made one after another. The gradients must stay as they are until the task is done. Raises
        LimitExceeded where `outstanding_updates_max` are under way. When the run went back to an older state, the step
        that finds out raises RunRewound, and those that wait behind it are cancelled.
        """
        return self._outstanding.start(self.step(grads, **options))

    def pull_async(self, names: Iterable[str] | None = None, **options: Any) -> "asyncio.Task[Arrays | None]":
        """Begin a pull and return at once, as `step_async` does; the task gives what `pull` returns or raises.

        names, options: pull's arguments. Raises LimitExceeded where `outstanding_updates_max` are under way.
        """
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
    lease_seconds: float = 30.0,
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
        lease_seconds=lease_seconds,
    )
    return Client(AwaitingConnection(settings.address), settings)
