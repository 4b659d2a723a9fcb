"""What can be asked of a server. Written once; `stepwell.Client` blocks and `stepwell.aio.Client` is awaited."""

import os
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from stepwell._allocator import tune_allocator
from stepwell._calls import Patience, Settings, Transport, again, ask, end
from stepwell._descriptions import (
    OptimizerDescription,
    PartDescription,
    RunDescription,
    ScheduleDescription,
    ServerDescription,
    describe_optimizer,
    describe_part,
    describe_run,
    describe_schedule,
    describe_server,
)
from stepwell._layout import Layout, LayoutPieces
from stepwell._membership import check_name
from stepwell._methods import (
    CREATE_RUN,
    DELETE_RUN,
    GET_RUN,
    GET_SERVER,
    LIST_OPTIMIZERS,
    LIST_PARTS,
    LIST_RUNS,
    LIST_SCHEDULES,
    PREVIEW_SCHEDULE,
)
from stepwell._operation import Connection, Driven, operation
from stepwell._packing import contiguous, pack
from stepwell._progress import Progress, Transfer
from stepwell._receiving import BufferPool
from stepwell._requests import Disconnect, Lost, Open, Receive, Send, Silent, Steps, Stream
from stepwell._run import RunOperations
from stepwell._spec import Parameters, Schedules, as_arrays, encode_spec, spec_requests
from stepwell.errors import Internal, InvalidValue
from stepwell.v1 import control_pb2, run_pb2
from stepwell.wire import WireError, encode_schedule

ADDRESS_VARIABLE: Final = "STEPWELL_ADDRESS"
PREVIEW_STEPS_MAX: Final = 100_000

RunT = TypeVar("RunT", bound=RunOperations)


class ClientOperations(Driven, Generic[RunT]):
    """A connection to a server. A context manager; made by `connect`.

    It may be used from several threads. The connection is made at the first call, and again whenever it was lost.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        super().__init__(connection)
        self._settings = settings
        self._pool = BufferPool()
        tune_allocator()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} of {self._settings.address}>"

    @operation
    def create_run(
        self,
        name: str,
        parameters: Parameters,
        *,
        optimizer: str = "",
        flavor: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        schedules: Schedules | None = None,
        groups: Iterable[Mapping[str, Any]] = (),
        nonfinite: Literal["reject", "skip", "allow"] = "reject",
        samples_per_epoch: float | None = None,
        definition: str | None = None,
        transforms: Iterable[Mapping[str, Any]] = (),
        wrappers: Iterable[Mapping[str, Any]] = (),
        report_norms: bool = False,
        encodings: Mapping[str, str | Mapping[str, Any]] | None = None,
        policy: str | Mapping[str, Any] | None = None,
        tables: Iterable[Mapping[str, Any]] = (),
    ) -> Steps[RunT]:
        """Create a run, or find it where it exists with the same spec, and join it as a worker.

        parameters: arrays of floats of 16, 32 or 64 bits by name; beside 16-bit ones (float16, bfloat16) the server
        keeps float32 copies, and slots in float32. The first creator's values win. `run.created` tells. (Where the
        connection broke after the creation and before the word of it came, it says False.)
        optimizer, flavor, hyperparameters, schedules: by the catalogue's names, see list_optimizers and
        list_schedules. `betas=[b1, b2]` is taken for beta1 and beta2. None switches off what a hyperparameter controls.
        groups: dictionaries with "name", "parameters" (globs; the first match wins, the rest is "default") and any of
        "optimizer", "flavor", "hyperparameters", "schedules", "frozen".
        nonfinite: what happens to gradients with a NaN or an infinity: an error, counted and skipped, or applied.
        samples_per_epoch: for schedules on the clock of epochs.
        definition: an optimizer of your own, as the text of a function; parsed and compiled, never evaluated. Then
        `optimizer` is left out, or the function's name.
        transforms: what happens to the combined gradient, in order: [{"name": "clip_by_global_norm", "max_norm": 1.0}];
        see list_transforms. wrappers: what runs around the optimizer: [{"name": "ema", "decay": 0.999}]; see
        list_wrappers. report_norms: whether `run.last_answer` tells the norms of gradients and parameters.
        encodings: what gradients and parameters are made smaller with where they travel, as {"gradients": "int8",
        "parameters": "bfloat16"} or with arguments, {"gradients": {"name": "top_k", "density": 0.05}}; see
        list_encodings. Shared memory has no need of them. What an update drops of a gradient is owed and sent later.
        policy: how the updates of several workers become commits, by name or with arguments: "async" (the default, each
        as it comes), {"name": "bounded", "lead_max": 3} (nobody runs far ahead), {"name": "sync", "quorum": 3} (rounds
        in which the gradients of all are averaged); see list_policies. Whoever finds the run gets the policy it has.
        tables: embedding tables, rows by 64-bit id that are created when a gradient for them first comes; dictionaries
        with "name" and "width", how many elements a row has, and any of "dtype" ("float32", "float64"); "initializer",
        what rows begin with: {"name": "uniform", "minimum": -0.05, "maximum": 0.05} (the default), {"name": "normal",
        "mean", "std"} or {"name": "constant", "value"}, and its "seed"; "optimizer" (by default adagrad), "flavor",
        "hyperparameters", "schedules"; "sparse_mode": "lazy", where a commit touches only the rows that it brings, or
        "exact", as if each brought every row a gradient, of zero where none came; "rows_max"; "admission":
        {"touches": n}, a row is created by the n-th commit that brings its id; "eviction": {"by": "least_recent"} where
        there is no more room, or {"by": "age", "age": n} after n commits without the row. See push_rows and pull_rows.

        Raises RunDiffers if a run of this name exists with another spec; Unknown... and Invalid... for what the server
        does not know or take; MemoryExhausted.
        """
        arrays = as_arrays(parameters)
        spec = encode_spec(
            arrays,
            optimizer=optimizer,
            flavor=flavor,
            hyperparameters=hyperparameters,
            schedules=schedules,
            groups=groups,
            nonfinite=nonfinite,
            samples_per_epoch=samples_per_epoch,
            definition=definition,
            transforms=transforms,
            wrappers=wrappers,
            report_norms=report_norms,
            encodings=encodings,
            policy=policy,
            tables=tables,
        )
        response = yield from self._create(name, spec, arrays)
        created = response.creation == control_pb2.CREATION_CREATED
        run = self._make_run(response.run, created)
        yield from run._join()
        return run

    @operation
    def get_run(self, name: str) -> Steps[RunT]:
        """A run that exists; joined only at the first push.

        name: the run's. Raises UnknownRun.
        """
        response = yield from ask(
            self._settings, GET_RUN, control_pb2.GetRunRequest(run=name), f"run '{name}': get_run"
        )
        return self._make_run(response.run, created=False)

    @operation
    def list_runs(self) -> Steps[list[RunDescription]]:
        """All runs by name, as they are now."""
        runs: list[RunDescription] = []
        token = ""
        while True:
            request = control_pb2.ListRunsRequest(page_token=token)
            page = yield from ask(self._settings, LIST_RUNS, request, "list_runs")
            runs += map(describe_run, page.runs)
            token = page.next_page_token
            if not token:
                return runs

    @operation
    def delete_run(self, name: str) -> Steps[None]:
        """Delete a run with its snapshots and checkpoints; its workers get RunReplaced or UnknownRun.

        name: the run's. Raises UnknownRun. Not repeated if the connection breaks: the run may then be gone or not.
        """
        request = control_pb2.DeleteRunRequest(run=name)
        yield from ask(self._settings, DELETE_RUN, request, f"run '{name}': delete_run", repeat=False)

    @operation
    def ping(self) -> Steps[ServerDescription]:
        """Who the server is, what its limits are, and how long the question took."""
        start = time.perf_counter()
        response = yield from ask(self._settings, GET_SERVER, control_pb2.GetServerRequest(), "ping")
        return describe_server(response, time.perf_counter() - start)

    @operation
    def list_optimizers(self) -> Steps[list[OptimizerDescription]]:
        """Every optimizer with its flavors, arguments, defaults and slots."""
        request = control_pb2.ListOptimizersRequest()
        response = yield from ask(self._settings, LIST_OPTIMIZERS, request, "list_optimizers")
        return [describe_optimizer(optimizer) for optimizer in response.optimizers]

    @operation
    def list_schedules(self) -> Steps[list[ScheduleDescription]]:
        """Every schedule with its arguments."""
        request = control_pb2.ListSchedulesRequest()
        response = yield from ask(self._settings, LIST_SCHEDULES, request, "list_schedules")
        return [describe_schedule(schedule) for schedule in response.schedules]

    @operation
    def list_transforms(self) -> Steps[list[PartDescription]]:
        """Every gradient transform with its arguments."""
        response = yield from ask(self._settings, LIST_PARTS, control_pb2.ListPartsRequest(), "list_transforms")
        return [describe_part(part) for part in response.transforms]

    @operation
    def list_wrappers(self) -> Steps[list[PartDescription]]:
        """Every wrapper with its arguments and the points that it offers."""
        response = yield from ask(self._settings, LIST_PARTS, control_pb2.ListPartsRequest(), "list_wrappers")
        return [describe_part(part) for part in response.wrappers]

    @operation
    def list_policies(self) -> Steps[list[PartDescription]]:
        """Every policy with its arguments."""
        response = yield from ask(self._settings, LIST_PARTS, control_pb2.ListPartsRequest(), "list_policies")
        return [describe_part(part) for part in response.policies]

    @operation
    def list_encodings(self) -> Steps[dict[str, list[PartDescription]]]:
        """Every encoding with its arguments, under "gradients" and "parameters"."""
        response = yield from ask(self._settings, LIST_PARTS, control_pb2.ListPartsRequest(), "list_encodings")
        return {
            "gradients": [describe_part(part) for part in response.gradient_encodings],
            "parameters": [describe_part(part) for part in response.parameter_encodings],
        }

    @operation
    def preview_schedule(
        self, spec: Mapping[str, Any], *, initial: float, steps: int
    ) -> Steps[npt.NDArray[np.float64]]:
        """A schedule's values at clock 0, 1, ..., steps - 1; at most 100,000.

        initial: the hyperparameter's own value, from which the schedule starts unless it sets absolute values.
        """
        if not 0 <= steps <= PREVIEW_STEPS_MAX:
            raise InvalidValue(f"got steps {steps}, expected 0 to {PREVIEW_STEPS_MAX:,}; ask for a part of them")
        try:
            schedule = encode_schedule(spec)
        except WireError as error:
            raise InvalidValue(str(error)) from None
        request = control_pb2.PreviewScheduleRequest(schedule=schedule, initial=initial, steps=steps)
        response = yield from ask(self._settings, PREVIEW_SCHEDULE, request, "preview_schedule")
        return np.array(response.values, np.float64)

    @operation
    def close(self) -> Steps[None]:
        """Close the connection, and with it every run that came from it. Nothing happens the second time."""
        yield Disconnect()
        self._pool.clear()

    @abstractmethod
    def _make_run(self, run: run_pb2.Run, created: bool) -> RunT:
        """A run that is driven as this client is."""

    def _create(
        self, name: str, spec: run_pb2.Spec, arrays: Mapping[str, np.ndarray[Any, Any]]
    ) -> Steps[control_pb2.CreateRunResponse]:
        what = f"run '{name}': create_run"
        patience = Patience(self._settings, what)
        with Transfer(self._settings.progress, what, sum(array.nbytes for array in arrays.values())) as transfer:
            while True:
                creation = Creation(name, spec, arrays, patience, transfer)
                stream = yield Open(CREATE_RUN)
                try:
                    response = yield from creation.carry_out(stream)
                    yield from end(stream)
                    return response
                except (Lost, Silent) as failure:
                    yield from again(stream, patience, failure)
                except BaseException:
                    stream.cancel()
                    raise


class Creation:
    """One try to create a run: the spec, then, if the server asks for them, the values."""

    def __init__(
        self,
        name: str,
        spec: run_pb2.Spec,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        patience: Patience,
        transfer: Transfer,
    ) -> None:
        self._name, self._spec, self._arrays, self._patience, self._transfer = name, spec, arrays, patience, transfer
        self._layout = LayoutPieces()
        self._sent = False
        self._end: control_pb2.CreateRunResponse | None = None

    def carry_out(self, stream: Stream) -> Steps[control_pb2.CreateRunResponse]:
        """Returns the last response: the run exists, or was created."""
        yield from self._send(stream, spec_requests(self._name, self._spec))
        while self._end is None:
            yield from self._receive(stream)
            if self._layout.complete and not self._sent:
                self._sent = True
                yield from self._send(stream, self._values(self._layout.layout()))
        return self._end

    def _send(self, stream: Stream, requests: Iterable[control_pb2.CreateRunRequest]) -> Steps[None]:
        for request in requests:
            while self._end is None and not (yield Send(stream, request, self._patience.seconds())):
                yield from self._receive(stream)

    def _receive(self, stream: Stream) -> Steps[None]:
        response: control_pb2.CreateRunResponse | None = yield Receive(stream, self._patience.seconds())
        if response is None:
            raise Internal(f"run '{self._name}': got no end of the creation from the server, expected one; see its log")
        self._patience.heard()
        if response.HasField("layout"):
            self._layout.add(response.layout)
        if response.creation in (control_pb2.CREATION_EXISTS, control_pb2.CREATION_CREATED):
            self._end = response

    def _values(self, layout: Layout) -> Iterator[control_pb2.CreateRunRequest]:
        pieces = (
            (group, parameter.offset_bytes, contiguous(self._arrays[parameter.name], parameter.dtype))
            for group, members in enumerate(layout.by_group)
            for parameter in members
        )
        request, done_bytes = None, 0
        for ranges in pack(pieces):
            if request is not None:
                yield request
            request = control_pb2.CreateRunRequest()
            for piece in ranges:
                request.values.append(piece.range(data=True))
                done_bytes += piece.size_bytes
            self._transfer.done(done_bytes)
        assert request is not None, "pack gives at least one message"
        request.values_complete = True
        yield request


def make_settings(
    address: str | None,
    *,
    worker: str | None,
    silence_seconds: float,
    patience_seconds: float,
    retry_seconds: float,
    retry_seconds_max: float,
    on_rewind: Literal["raise", "continue"],
    progress: Progress,
    transport: Transport,
    outstanding_updates_max: int,
    lease_seconds: float,
) -> Settings:
    """Check what `connect` was given; raises InvalidValue and InvalidName."""
    address = address or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise InvalidValue(
            f"got no address, expected HOST:PORT or unix:/path; give it to connect or set {ADDRESS_VARIABLE}"
        )
    if not address.startswith("unix:") and not address.rpartition(":")[2].isdigit():
        raise InvalidValue(f"got the address {address!r:.200}, expected HOST:PORT or unix:/path; add the port")
    if on_rewind not in ("raise", "continue"):
        raise InvalidValue(f"got on_rewind {on_rewind!r:.100}, expected 'raise' or 'continue'; choose one of them")
    if transport not in get_args(Transport):
        raise InvalidValue(
            f"got transport {transport!r:.100}, expected one of {', '.join(get_args(Transport))}; choose one of them"
        )
    if outstanding_updates_max < 1:
        raise InvalidValue(f"got outstanding_updates_max {outstanding_updates_max}, expected 1 or more; leave it out")
    limits = {
        "silence_seconds": silence_seconds,
        "patience_seconds": patience_seconds,
        "retry_seconds": retry_seconds,
        "retry_seconds_max": retry_seconds_max,
        "lease_seconds": lease_seconds,
    }
    for name, seconds in limits.items():
        if not seconds > 0:
            raise InvalidValue(f"got {name} {seconds}, expected more than 0 seconds; leave it out for the default")
    return Settings(
        address=address,
        worker=check_name(worker) if worker is not None else None,
        on_rewind=on_rewind,
        progress=progress,
        transport=transport,
        outstanding_updates_max=outstanding_updates_max,
        **limits,
    )
