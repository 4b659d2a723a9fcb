"""The client that blocks."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self

from stepwell._blocking import BlockingConnection
from stepwell._calls import Settings, Transport
from stepwell._client import ClientOperations, make_settings
from stepwell._layers import LayersBase
from stepwell._operation import Blocking, Connection
from stepwell._outstanding import Threaded
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

    def add(self, name: str, gradient: Any) -> None:
        """Send a gradient.

        name: a parameter that has had none in this block. gradient: an array of its shape, which must stay as it is
        until the block ends; None for a parameter without one. Raises InvalidGradient.
        """
        assert self._begun is not None, "add belongs into the block"
        self._run._add(self._begun, name, gradient)

    def __enter__(self) -> Self:
        self._begun = self._run._begin(self._header, self._received, self._out, self._timeout)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._begun is not None
        if kind is not None:
            self._run._abandon(self._begun)
        else:
            self._end(self._run._finish(self._begun), self._run.version)


class Run(RunOperations, Blocking):
    __doc__ = RunOperations.__doc__

    def __init__(
        self, connection: Connection, settings: Settings, pool: BufferPool, run: run_pb2.Run, *, created: bool
    ) -> None:
        super().__init__(connection, settings, pool, run, created=created)
        self._outstanding = Threaded(run.name, settings.outstanding_updates_max)

    def update(self, **options: Any) -> Update:
        """A block that commits an update at its end, for gradients that come one after another.

            with run.update(samples=32) as update:
                for name, gradient in backward(loss):
                    update.add(name, gradient)
            params = update.parameters

        options: samples, loss, hyperparameters, loss_scale, sparsity_factor, out and timeout as for `step`; pull=False
        to get no parameters. Within the block the run takes no other calls. Raises RunRewound at the end of the block
        whatever on_rewind says.
        """
        return Update(self, **options)

    def step_async(self, grads: Mapping[str, Any], **options: Any) -> "Future[Arrays]":
        """Begin a step and return at once; the future gives what `step` returns or raises. The arguments are step's.

        Steps are made one after another. The gradients must stay as they are until the future is done. Raises
        LimitExceeded where `outstanding_updates_max` are under way. When the run went back to an older state, the step
        that finds out raises RunRewound, and those that wait behind it are cancelled.
        """
        return self._outstanding.start(self.step, grads, **options)

    def pull_async(self, names: Iterable[str] | None = None, **options: Any) -> "Future[Arrays | None]":
        """Begin a pull and return at once, as `step_async` does; the future gives what `pull` returns or raises.

        names, options: pull's arguments. Raises LimitExceeded where `outstanding_updates_max` are under way.
        """
        return self._outstanding.start(self.pull, names, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outstanding.finish()
        self.close()


class Client(ClientOperations[Run], Blocking):
    __doc__ = ClientOperations.__doc__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
    """A client of the server at an address. Nothing is sent before the first call.

    From then on a child that this process forks can make no calls, over this client or another: it gets
    ServerUnavailable, since gRPC does not survive a fork. Fork before, or spawn processes, and connect in each.

    address: HOST:PORT or unix:/path; by default what STEPWELL_ADDRESS says.
    worker: the name under which runs are joined; by default each run object has one of its own, of host and process. A
    second join under the same name fences the first, so a name must be one worker's alone.
    lease_seconds: after how long without a sign of life the server counts this worker as gone; the SDK gives one three
    times in it, in the background, also while the program computes or waits.
    silence_seconds: how long the server may give no word before the connection is given up and made again.
    patience_seconds: how long that goes on before a call raises ServerUnavailable or TimedOut. While the server gives
    word a call waits as long as it takes, unless it was given a timeout.
    retry_seconds, retry_seconds_max: the longest pause before the second try, which doubles with each, and its bound.
    on_rewind: what happens when the run went back to an older state: "raise" RunRewound, once, or "continue" with the
    present parameters, the update being dropped.
    progress: for transfers of 16 MiB and more: True draws a bar (needs rich), or a function of the bytes done and the
    bytes in all.
    transport: "shared_memory" shares the memory of gradients and parameters with a server on this machine and of the
    same user, and raises SharedMemoryUnavailable where that cannot be; "stream" sends them; "auto" shares where it can
    and the run is not small. Run.transport tells.
    outstanding_updates_max: how many operations of step_async and pull_async may be under way on one run object.
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
    return Client(BlockingConnection(settings.address), settings)
