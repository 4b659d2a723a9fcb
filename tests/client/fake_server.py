"""A server that speaks the contract and knows nothing but plain SGD, also of rows: enough to see what the client does.

It is written from the contract alone, byte by byte and without a thought for speed, so that it shares no mistake with
the client. Tests make it misbehave with `intercept`.
"""

import contextlib
import secrets
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from math import prod
from typing import Any

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from stepwell.v1 import (
    control_pb2,
    control_pb2_grpc,
    data_pb2,
    data_pb2_grpc,
    errors_pb2,
    run_pb2,
    values_pb2,
)

SIZES = {run_pb2.D_TYPE_FLOAT32: ("<f4", 4), run_pb2.D_TYPE_FLOAT64: ("<f8", 8)}
PIECES = 3  # of a layout, at least
RANGE_BYTES = 1 << 20  # the most data that a piece of rows has
ANSWER_ROWS = 1000
ANSWER_BYTES = 64 * 1024  # data per message that goes to the client: odd against the client's own

Intercept = Callable[[data_pb2.WorkRequest], Iterable[data_pb2.WorkResponse] | None]


class Refused(Exception):
    """An error of the contract."""

    def __init__(self, reason: errors_pb2.ErrorReason, message: str = "refused by the fake", **details: object) -> None:
        super().__init__(message)
        self.error = errors_pb2.Error(
            reason=reason, message=message, details={name: str(value) for name, value in details.items()}
        )


@dataclass
class FakeWorker:
    epoch: int = 0
    last_sequence: int = 0
    answers: dict[int, tuple[bytes, data_pb2.Answer]] = field(default_factory=dict)


class FakeRun:
    """One run. values: one bytearray per group, packed. rows: by table and id; they begin as zeros."""

    def __init__(self, name: str, spec: run_pb2.Spec) -> None:
        self.name, self.spec = name, spec
        self.uid = secrets.token_bytes(16)
        self.generation = 0
        self.version = 0
        self.samples = 0.0
        self.etag = 0
        self.workers: dict[str, FakeWorker] = {}
        self.lr = {"default": spec.hyperparameters["lr"].number or 0.1}
        self.layout = run_pb2.Layout()
        self.values: list[bytearray] = []
        self.momentum: list[bytearray] = []
        self.steps: list[int] = []
        self.checkpoints: dict[str, tuple[int, list[bytearray]]] = {}
        self.duplicates = 0
        self.rows: list[dict[int, np.ndarray[Any, Any]]] = [{} for _ in spec.tables]
        self._lay_out()

    def _lay_out(self) -> None:
        """Two dtypes make two groups; a group of the spec named "frozen*" is frozen."""
        groups: dict[tuple[str, int], int] = {}
        for parameter in self.spec.parameters:
            name = next((group.name for group in self.spec.groups if parameter.name in group.parameters), "default")
            frozen = any(group.frozen for group in self.spec.groups if group.name == name)
            index = groups.setdefault((name, parameter.dtype), len(groups))
            if index == len(self.layout.groups):
                self.layout.groups.add(name=name, dtype=parameter.dtype, frozen=frozen)
            group = self.layout.groups[index]
            size = prod(parameter.shape) * SIZES[parameter.dtype][1]
            self.layout.parameters.add(
                name=parameter.name,
                shape=parameter.shape,
                group=index,
                vector_offset_bytes=group.vector_bytes,
                packed_offset_bytes=group.packed_bytes,
            )
            group.packed_bytes += size
            group.vector_bytes += -(-size // 64) * 64
        for table in self.spec.tables:
            dtype = table.dtype or run_pb2.D_TYPE_FLOAT32
            self.layout.tables.add(name=table.name, width=table.width, dtype=dtype)
        self.values = [bytearray(group.packed_bytes) for group in self.layout.groups]
        self.momentum = [bytearray(group.packed_bytes) for group in self.layout.groups]
        self.steps = [0] * len(self.layout.parameters)

    def array(self, group: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.values[group], SIZES[self.layout.groups[group].dtype][0])

    def row_dtype(self, table: int) -> np.dtype[Any]:
        return np.dtype(SIZES[self.layout.tables[table].dtype][0])

    def pull_rows(self, table: int, ids: list[int]) -> np.ndarray[Any, Any]:
        values = np.zeros((len(ids), self.layout.tables[table].width), self.row_dtype(table))
        for place, number in enumerate(ids):
            values[place] = self.rows[table].get(number, 0)
        return values

    def bounds(self, index: int) -> tuple[int, int, int]:
        parameter = self.layout.parameters[index]
        size = prod(parameter.shape) * SIZES[self.layout.groups[parameter.group].dtype][1]
        return parameter.group, parameter.packed_offset_bytes, parameter.packed_offset_bytes + size

    def describe(self) -> run_pb2.Run:
        run = run_pb2.Run(
            name=self.name,
            uid=self.uid,
            generation=self.generation,
            version=self.version,
            etag=str(self.etag),
            samples=self.samples,
            parameters_count=len(self.layout.parameters),
            duplicates_count=self.duplicates,
        )
        run.spec.CopyFrom(self.spec)
        del run.spec.parameters[:]
        for group in self.layout.groups:
            lr = self.lr.get(group.name, self.lr["default"])
            run.groups.add(name=group.name, dtype=group.dtype, optimizer=self.spec.optimizer, slots=["momentum"])
            run.groups[-1].hyperparameters["lr"].number = lr
        for number, table in enumerate(self.layout.tables):
            run.tables.add(name=table.name, rows=len(self.rows[number]), optimizer="sgd")
        for name, worker in self.workers.items():
            run.workers.add(name=name, epoch=worker.epoch, last_sequence=worker.last_sequence)
        return run

    def rewind(self, version: int, values: list[bytearray] | None = None) -> None:
        self.generation += 1
        self.version = version
        self.workers.clear()
        for group, value in enumerate(values or []):
            self.values[group][:] = value

    def check_identity(self, identity: data_pb2.UpdateIdentity) -> data_pb2.Answer | None:
        """The stored answer of a retry, or None for the worker's next update."""
        if identity.run_uid != self.uid:
            raise Refused(errors_pb2.ERROR_REASON_RUN_REPLACED)
        if identity.generation != self.generation:
            raise Refused(
                errors_pb2.ERROR_REASON_RUN_REWOUND,
                acknowledged_version=identity.acknowledged_version,
                version=self.version,
            )
        worker = self.workers.get(identity.worker)
        if worker is None:
            raise Refused(errors_pb2.ERROR_REASON_UNKNOWN_WORKER)
        if identity.epoch != worker.epoch:
            raise Refused(errors_pb2.ERROR_REASON_WORKER_FENCED)
        if identity.sequence in worker.answers:
            fingerprint, answer = worker.answers[identity.sequence]
            if fingerprint != identity.fingerprint:
                raise Refused(errors_pb2.ERROR_REASON_SEQUENCE_REUSED)
            self.duplicates += 1
            return answer
        if identity.sequence != worker.last_sequence + 1:
            raise Refused(errors_pb2.ERROR_REASON_SEQUENCE_GAP)
        return None

    def commit(self, header: data_pb2.UpdateHeader, staged: "Staged") -> data_pb2.Answer:
        absent = set(header.without_gradient)
        for index, parameter in enumerate(self.layout.parameters):
            group, start, end = self.bounds(index)
            frozen = self.layout.groups[parameter.group].frozen
            sends = index not in absent and not frozen and not header.rows_only
            if (staged.counts[group][start:end] != sends).any():
                raise Refused(errors_pb2.ERROR_REASON_INCOMPLETE_UPDATE, parameter=parameter.name)
        declared = {each.table: each.count for each in header.rows}
        if declared != {table: len(ids) for table, (ids, _) in staged.rows.items()}:
            raise Refused(errors_pb2.ERROR_REASON_INCOMPLETE_UPDATE)
        gradients = [
            np.frombuffer(data, SIZES[group.dtype][0])
            for data, group in zip(staged.data, self.layout.groups, strict=True)
        ]
        worker = self.workers[header.identity.worker]
        finite = all(np.isfinite(gradient).all() for gradient in gradients)
        if not finite and self.spec.nonfinite == run_pb2.NONFINITE_REJECT:
            raise Refused(errors_pb2.ERROR_REASON_NONFINITE_GRADIENT)
        outcome = data_pb2.OUTCOME_COMMITTED if finite else data_pb2.OUTCOME_SKIPPED_NONFINITE
        if finite:
            for change in header.hyperparameters:
                if "lr" in change.values:  # reading what is absent would add it to the message
                    self.lr[change.group or "default"] = change.values["lr"]
            for group, gradient in enumerate(gradients):
                lr = self.lr.get(self.layout.groups[group].name, self.lr["default"])
                self.array(group)[:] -= (lr * gradient).astype(gradient.dtype)
            for table, (ids, data) in staged.rows.items():
                grads = np.frombuffer(bytes(data), self.row_dtype(table)).reshape(len(ids), -1) if ids else ()
                for number, gradient in zip(ids, grads, strict=True):
                    before = self.rows[table].get(number, np.zeros_like(gradient))
                    self.rows[table][number] = before - (self.lr["default"] * gradient).astype(gradient.dtype)
            for index in range(len(self.steps)):
                self.steps[index] += index not in absent and not header.rows_only
            self.samples += header.samples
            self.version += 1
        answer = data_pb2.Answer(outcome=outcome, committed_version=self.version)
        worker.last_sequence = header.identity.sequence
        worker.answers[header.identity.sequence] = (header.identity.fingerprint, answer)
        return answer


class Staged:
    """One update as it arrives; counts how often each byte came. rows: ids and bytes of gradients by table."""

    def __init__(self, run: FakeRun, counts: Iterable[data_pb2.RowsCount] = ()) -> None:
        self._run = run
        self.rows: dict[int, tuple[list[int], bytearray]] = {each.table: ([], bytearray()) for each in counts}
        self.data = [bytearray(group.packed_bytes) for group in run.layout.groups]
        self.counts = [np.zeros(group.packed_bytes, np.uint8) for group in run.layout.groups]

    def put(self, piece: run_pb2.Range) -> None:
        start, end = piece.packed_offset_bytes, piece.packed_offset_bytes + len(piece.data)
        item = SIZES[self._run.layout.groups[piece.group].dtype][1]
        if end > len(self.data[piece.group]) or start % item or end % item or self.counts[piece.group][start:end].any():
            raise Refused(errors_pb2.ERROR_REASON_INVALID_RANGE, start=start, end=end)
        self.data[piece.group][start:end] = piece.data
        self.counts[piece.group][start:end] += 1

    def put_rows(self, piece: run_pb2.Rows) -> None:
        ids, data = self.rows[piece.table]
        count = len(piece.ids) // 8
        row_bytes = self._run.layout.tables[piece.table].width * self._run.row_dtype(piece.table).itemsize
        if len(piece.ids) % 8 or len(piece.data) != count * row_bytes or len(piece.data) > RANGE_BYTES:
            raise Refused(errors_pb2.ERROR_REASON_INVALID_ROWS, ids=len(piece.ids), data=len(piece.data))
        ids += struct.unpack(f"<{count}q", piece.ids)
        data += piece.data


class FakeServer(control_pb2_grpc.ControlServiceServicer, data_pb2_grpc.DataServiceServicer):
    """A context manager; `address` is where it listens. One lock over everything.

    requests: every message of every Work stream. joins, metadata, calls: what came. intercept: sees each WorkRequest
    first; what it returns is sent instead of the fake's own responses, and it may raise Cut or Refused.
    answers_lost: how many exchanges are carried out but cut before a word of it gets out.
    refuse: errors by method, each raised once in place of the method. refuse_values: by CreateRun at the first value.
    hold: waits by method, before it is carried out.
    """

    def __init__(self, runs: dict[str, FakeRun] | None = None, listen: str = "127.0.0.1:0") -> None:
        self.runs = runs if runs is not None else {}
        self.requests: list[data_pb2.WorkRequest] = []
        self.exchanges: list[FakeExchange] = []
        self.streams = 0
        self.joins: list[control_pb2.JoinRequest] = []
        self.creations: list[control_pb2.CreateRunRequest] = []
        self.creation_words = 0
        self.calls: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self.intercept: Intercept | None = None
        self.answers_lost = 0
        self.refuse: dict[str, list[Exception]] = {}
        self.refuse_values: Refused | None = None
        self.hold: dict[str, Callable[[], object]] = {}
        self.page_size = 2
        self.lock = threading.RLock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(24),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4 << 20)],
        )
        control_pb2_grpc.add_ControlServiceServicer_to_server(self, self._server)
        data_pb2_grpc.add_DataServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(listen)
        self.address = listen if listen.startswith("unix:") else f"127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def _enter(self, call: str, context: grpc.ServicerContext) -> None:
        self.calls.append(call)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.refuse.get(call):
            raise self.refuse[call].pop(0)
        if call in self.hold:
            self.hold[call]()

    @contextlib.contextmanager
    def _call(self, call: str, context: grpc.ServicerContext) -> Iterator[None]:
        try:
            self._enter(call, context)
            yield
        except Refused as refused:
            abort(context, refused)
        except Cut as cut:
            context.abort(cut.code, "cut by the test")

    def _run(self, name: str) -> FakeRun:
        if name not in self.runs:
            raise Refused(errors_pb2.ERROR_REASON_UNKNOWN_RUN, f"run '{name}' is not known", run=name)
        return self.runs[name]

    def GetServer(self, request: Any, context: Any) -> Any:
        with self._call("GetServer", context):
            return control_pb2.GetServerResponse(version="fake", contract="1.0", word_seconds=1.0)

    def CreateRun(self, requests: Any, context: Any) -> Any:
        with self._call("CreateRun", context):
            spec, first = run_pb2.Spec(), None
            for request in requests:
                self.creations.append(request)
                first = first or request
                spec.MergeFrom(request.spec)
                if request.spec_complete:
                    break
            assert first is not None
            for _ in range(self.creation_words):
                yield control_pb2.CreateRunResponse(creation=control_pb2.CREATION_WAIT)
            if first.run in self.runs:
                run = self.runs[first.run]
                if run.spec.optimizer != spec.optimizer:
                    raise Refused(errors_pb2.ERROR_REASON_RUN_DIFFERS)
                yield control_pb2.CreateRunResponse(creation=control_pb2.CREATION_EXISTS, run=run.describe())
                return
            if spec.optimizer != "sgd":
                raise Refused(errors_pb2.ERROR_REASON_UNKNOWN_OPTIMIZER, got=spec.optimizer)
            run = FakeRun(first.run, spec)
            for piece in pieces(run.layout):
                yield control_pb2.CreateRunResponse(creation=control_pb2.CREATION_SEND_VALUES, layout=piece)
            staged = Staged(run)
            for request in requests:
                if self.refuse_values:
                    raise self.refuse_values
                for piece in request.values:
                    staged.put(piece)
                yield control_pb2.CreateRunResponse(creation=control_pb2.CREATION_WORKING)
                if request.values_complete:
                    break
            assert all((counts == 1).all() for counts in staged.counts), "the values cover every group once"
            run.values = staged.data
            self.runs[first.run] = run
            yield control_pb2.CreateRunResponse(creation=control_pb2.CREATION_CREATED, run=run.describe())

    def Join(self, request: Any, context: Any) -> Any:
        with self._call("Join", context):
            self.joins.append(request)
            run = self._run(request.run)
            before = run.workers.get(request.worker, FakeWorker())
            worker = run.workers[request.worker] = FakeWorker(epoch=before.epoch + 1)
            membership = control_pb2.Membership(
                run_uid=run.uid,
                generation=run.generation,
                epoch=worker.epoch,
                version=run.version,
                last_sequence=before.last_sequence,
            )
            yield control_pb2.JoinResponse(membership=membership)
            for piece in pieces(run.layout):
                yield control_pb2.JoinResponse(layout=piece)

    def Leave(self, request: Any, context: Any) -> Any:
        with self._call("Leave", context):
            return control_pb2.LeaveResponse()

    def GetLayout(self, request: Any, context: Any) -> Any:
        with self._call("GetLayout", context):
            run = self._run(request.run)
            yield control_pb2.GetLayoutResponse(run_uid=run.uid)
            for piece in pieces(run.layout):
                yield control_pb2.GetLayoutResponse(layout=piece)

    def GetRun(self, request: Any, context: Any) -> Any:
        with self._call("GetRun", context):
            return control_pb2.GetRunResponse(run=self._run(request.run).describe())

    def ListRuns(self, request: Any, context: Any) -> Any:
        with self._call("ListRuns", context):
            names, start = sorted(self.runs), int(request.page_token or 0)
            end = start + self.page_size
            return control_pb2.ListRunsResponse(
                runs=[self.runs[name].describe() for name in names[start:end]],
                next_page_token=str(end) if end < len(names) else "",
            )

    def UpdateRun(self, request: Any, context: Any) -> Any:
        with self._call("UpdateRun", context):
            run = self._run(request.run)
            if request.etag and request.etag != str(run.etag):
                raise Refused(errors_pb2.ERROR_REASON_ETAG_MISMATCH)
            run.etag += 1
            if "lr" in request.hyperparameters:
                run.lr[request.group or "default"] = request.hyperparameters["lr"].number
            for name in request.schedules_removed:
                run.spec.schedules.pop(name, None)
            for name, schedule in request.schedules.items():
                run.spec.schedules[name].CopyFrom(schedule)
            return control_pb2.UpdateRunResponse(run=run.describe())

    def DeleteRun(self, request: Any, context: Any) -> Any:
        with self._call("DeleteRun", context):
            self._run(request.run)
            del self.runs[request.run]
            return control_pb2.DeleteRunResponse()

    def ListOptimizers(self, request: Any, context: Any) -> Any:
        with self._call("ListOptimizers", context):
            lr = values_pb2.Argument(
                name="lr",
                kind=values_pb2.ARGUMENT_KIND_NUMBER,
                default=values_pb2.Value(number=1e-3),
                minimum=0.0,
            )
            flavor = control_pb2.Flavor(name="torch", arguments=[lr], slots=["momentum"], step_per_parameter=True)
            return control_pb2.ListOptimizersResponse(
                optimizers=[control_pb2.Optimizer(name="sgd", summary="Plain.", flavors=[flavor])]
            )

    def ListSchedules(self, request: Any, context: Any) -> Any:
        with self._call("ListSchedules", context):
            gamma = values_pb2.Argument(name="gamma", kind=values_pb2.ARGUMENT_KIND_NUMBER)
            schedule = control_pb2.ScheduleDescription(name="step", arguments=[gamma], children_max=0)
            return control_pb2.ListSchedulesResponse(schedules=[schedule])

    def PreviewSchedule(self, request: Any, context: Any) -> Any:
        with self._call("PreviewSchedule", context):
            gamma = request.schedule.arguments["gamma"].number
            values = [request.initial * gamma**step for step in range(request.steps)]
            return control_pb2.PreviewScheduleResponse(values=values)

    def GetState(self, request: Any, context: Any) -> Any:
        with self._call("GetState", context):
            run = self._run(request.run)
            header = control_pb2.StateHeader(
                version=run.version, samples=run.samples, run_uid=run.uid, generation=run.generation
            )
            yield control_pb2.GetStateResponse(header=header)
            for group in range(len(run.layout.groups)):
                members = [i for i, parameter in enumerate(run.layout.parameters) if parameter.group == group]
                steps = np.array([run.steps[index] for index in members], "<i8").tobytes()
                scalars = np.arange(len(members), dtype="<f8").tobytes()
                for kind, name, data in (
                    (control_pb2.STATE_KIND_PARAMETERS, "", bytes(run.values[group])),
                    (control_pb2.STATE_KIND_SLOT, "momentum", bytes(run.momentum[group])),
                    (control_pb2.STATE_KIND_SCALAR, "mu", scalars),
                    (control_pb2.STATE_KIND_STEPS, "", steps),
                ):
                    for start in range(0, len(data), ANSWER_BYTES):
                        piece = run_pb2.Range(
                            group=group, packed_offset_bytes=start, data=data[start : start + ANSWER_BYTES]
                        )
                        state = control_pb2.StateRange(kind=kind, name=name, range=piece)
                        yield control_pb2.GetStateResponse(ranges=[state])

    def SetState(self, requests: Any, context: Any) -> Any:
        with self._call("SetState", context):
            first = next(requests)
            run = self._run(first.run)
            if first.HasField("expected_version") and first.expected_version != run.version:
                raise Refused(errors_pb2.ERROR_REASON_VERSION_MISMATCH)
            kinds = (control_pb2.STATE_KIND_PARAMETERS, control_pb2.STATE_KIND_SLOT)
            staged = {kind: Staged(run) for kind in kinds}
            counts: dict[tuple[int, int, str], int] = {}
            for request in (first, *requests):
                for piece in request.ranges:
                    key = (piece.range.group, piece.kind, piece.name)
                    counts[key] = counts.get(key, 0) + len(piece.range.data)
                    if piece.kind in staged:
                        staged[piece.kind].put(piece.range)
                    if piece.kind == control_pb2.STATE_KIND_STEPS:
                        members = [i for i, p in enumerate(run.layout.parameters) if p.group == piece.range.group]
                        steps = np.frombuffer(piece.range.data, "<i8").tolist()
                        for index, count in zip(members, steps, strict=True):
                            run.steps[index] = count
            assert all((count == 1).all() for part in staged.values() for count in part.counts), "each array whole"
            assert {name for _, kind, name in counts if kind == control_pb2.STATE_KIND_SCALAR} == {"mu"}
            run.rewind(first.header.version, staged[control_pb2.STATE_KIND_PARAMETERS].data)
            run.momentum = staged[control_pb2.STATE_KIND_SLOT].data
            run.samples = first.header.samples
            return control_pb2.SetStateResponse(run=run.describe())

    def SaveCheckpoint(self, request: Any, context: Any) -> Any:
        with self._call("SaveCheckpoint", context):
            run = self._run(request.run)
            name = request.checkpoint or f"version-{run.version}"
            run.checkpoints[name] = (run.version, [bytearray(value) for value in run.values])
            checkpoint = control_pb2.Checkpoint(name=name, version=run.version)
            return control_pb2.SaveCheckpointResponse(checkpoint=checkpoint)

    def ListCheckpoints(self, request: Any, context: Any) -> Any:
        with self._call("ListCheckpoints", context):
            names, start = list(self._run(request.run).checkpoints.items()), int(request.page_token or 0)
            end = start + self.page_size
            return control_pb2.ListCheckpointsResponse(
                checkpoints=[control_pb2.Checkpoint(name=n, version=v) for n, (v, _) in names[start:end]],
                next_page_token=str(end) if end < len(names) else "",
            )

    def RestoreCheckpoint(self, request: Any, context: Any) -> Any:
        with self._call("RestoreCheckpoint", context):
            run = self._run(request.run)
            if request.checkpoint not in run.checkpoints:
                raise Refused(errors_pb2.ERROR_REASON_UNKNOWN_CHECKPOINT)
            run.rewind(*run.checkpoints[request.checkpoint])
            return control_pb2.RestoreCheckpointResponse(run=run.describe())

    def Work(self, requests: Any, context: Any) -> Any:
        with self._call("Work", context):
            self.streams += 1
            exchange: FakeExchange | None = None
            for request in requests:
                self.requests.append(request)
                if exchange is None or exchange.number != request.exchange:
                    exchange = FakeExchange(self, request.exchange)
                    self.exchanges.append(exchange)
                if self.intercept and (scripted := self.intercept(request)) is not None:
                    yield from scripted
                    continue
                if request.last and self.answers_lost:
                    self.answers_lost -= 1
                    list(exchange.take(request))
                    raise Cut
                yield from exchange.take(request)


class FakeExchange:
    """One exchange on a stream."""

    def __init__(self, server: FakeServer, number: int) -> None:
        self.number = number
        self._server = server
        self._header: data_pb2.UpdateHeader | None = None
        self._staged: Staged | None = None
        self._answer: data_pb2.Answer | None = None
        self.over = False

    def take(self, request: data_pb2.WorkRequest) -> Iterator[data_pb2.WorkResponse]:
        if self.over:
            return
        try:
            with self._server.lock:
                yield from list(self._take(request))
        except Refused as refused:
            self.over = True
            yield data_pb2.WorkResponse(exchange=self.number, error=refused.error)

    def _take(self, request: data_pb2.WorkRequest) -> Iterator[data_pb2.WorkResponse]:
        if request.HasField("stage"):
            if request.stage.HasField("header"):
                self._header = request.stage.header
                run = self._server._run(self._header.identity.run)
                self._staged = Staged(run, self._header.rows)
                self._answer = run.check_identity(self._header.identity)
                if self._answer:
                    yield data_pb2.WorkResponse(exchange=self.number, answer=self._answer)
            assert self._staged is not None
            for piece in request.stage.ranges:
                self._staged.put(piece)
            for rows in request.stage.rows:
                self._staged.put_rows(rows)
        if request.HasField("commit") and self._answer is None:
            assert self._header is not None
            assert self._staged is not None
            self._answer = self._server._run(self._header.identity.run).commit(self._header, self._staged)
            yield data_pb2.WorkResponse(exchange=self.number, answer=self._answer)
        if request.HasField("selection"):
            yield from self._send(request.selection)
        if request.last:
            self.over = True
            yield data_pb2.WorkResponse(exchange=self.number, done=True)

    def _send(self, selection: data_pb2.Selection) -> Iterator[data_pb2.WorkResponse]:
        run = self._server._run(selection.run)
        if selection.run_uid and selection.run_uid != run.uid:
            raise Refused(errors_pb2.ERROR_REASON_RUN_REPLACED)
        header = data_pb2.ParametersHeader(version=run.version)
        header.unchanged = selection.HasField("if_newer_than") and run.version <= selection.if_newer_than
        yield data_pb2.WorkResponse(exchange=self.number, parameters=header)
        if header.unchanged:
            return
        for rows in selection.rows:
            ids = list(struct.unpack(f"<{len(rows.ids) // 8}q", rows.ids))
            for first in range(0, len(ids), ANSWER_ROWS):
                values = run.pull_rows(rows.table, ids[first : first + ANSWER_ROWS])
                part = run_pb2.Rows(table=rows.table, first=first, data=values.tobytes())
                yield data_pb2.WorkResponse(exchange=self.number, rows=[part])
        if selection.rows_only:
            return
        for index in selection.parameters or range(len(run.layout.parameters)):
            group, start, end = run.bounds(index)
            for at in range(start, end, ANSWER_BYTES):
                data = bytes(run.values[group][at : min(end, at + ANSWER_BYTES)])
                piece = run_pb2.Range(group=group, packed_offset_bytes=at, data=data)
                yield data_pb2.WorkResponse(exchange=self.number, ranges=[piece])


class Cut(Exception):
    """Raised by a test's intercept: the call ends as if the connection had broken."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__()
        self.code = code


def pieces(layout: run_pb2.Layout) -> Iterator[run_pb2.Layout]:
    """The layout in pieces, the groups first."""
    yield run_pb2.Layout(groups=layout.groups, tables=layout.tables, last=not layout.parameters)
    count = max(1, len(layout.parameters) // PIECES)
    for start in range(0, len(layout.parameters), count):
        members = layout.parameters[start : start + count]
        yield run_pb2.Layout(parameters=members, last=start + count >= len(layout.parameters))


def abort(context: grpc.ServicerContext, refused: Refused) -> None:
    """Fail a call as the contract says: google.rpc.Status with ErrorInfo."""
    reason = errors_pb2.ErrorReason.Name(refused.error.reason).removeprefix("ERROR_REASON_")
    info = error_details_pb2.ErrorInfo(reason=reason, domain="stepwell", metadata=refused.error.details)
    packed = AnyMessage()
    packed.Pack(info)
    code = grpc.StatusCode.FAILED_PRECONDITION
    status = status_pb2.Status(code=code.value[0], message=refused.error.message, details=[packed])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, refused.error.message)
