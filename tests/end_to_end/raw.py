"""The contract spoken by hand, without the SDK: what another language's client, or an attacker, may send."""

import queue
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from stepwell.v1 import control_pb2, control_pb2_grpc, data_pb2, data_pb2_grpc, errors_pb2, run_pb2

# Ends a hung test; nothing here takes so long.
SECONDS_MAX = 60.0

Ranges = Sequence[tuple[int, int, bytes]]


@dataclass
class Refusal(Exception):
    """A typed error as it comes over the wire."""

    reason: str
    message: str
    details: dict[str, str] = field(default_factory=dict)


class Raw:
    """A channel and both stubs. A call that is refused with a typed error raises Refusal, others grpc.RpcError."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 << 20)]
        )
        self.control = control_pb2_grpc.ControlServiceStub(self.channel)
        self.data = data_pb2_grpc.DataServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def control_call(self, method: str, request: Any, **more: Any) -> Any:
        return call(getattr(self.control, method), request, **more)

    def data_call(self, method: str, request: Any, **more: Any) -> Any:
        return call(getattr(self.data, method), request, **more)

    def create(self, run: str, spec: run_pb2.Spec, values: Ranges | None = None) -> list[Any]:
        """CreateRun without waiting for what the server says; each of the values in a message."""
        requests = [control_pb2.CreateRunRequest(run=run, spec=spec, spec_complete=True)]
        if values is not None:
            requests += [control_pb2.CreateRunRequest(values=stage([piece]).ranges) for piece in values]
            requests.append(control_pb2.CreateRunRequest(values_complete=True))
        answers: list[Any] = self.control_call("CreateRun", iter(requests))
        return answers

    def join(self, run: str, worker: str) -> "RawWorker":
        pieces = self.control_call("Join", control_pb2.JoinRequest(run=run, worker=worker))
        return RawWorker(self, run, worker, pieces[0].membership, pieces)


class RawWorker:
    """A worker of a run that says what it is told to. sequence: of the last update that was answered.

    via: how updates go: by the calls Push or Step, or over a stream that is kept.
    """

    via: "str | WorkStream" = "Push"

    def __init__(self, raw: Raw, run: str, worker: str, membership: control_pb2.Membership, pieces: list[Any]) -> None:
        self.raw, self.run, self.worker, self.membership = raw, run, worker, membership
        self.groups = [group for piece in pieces for group in piece.layout.groups]
        self.parameters = [parameter for piece in pieces for parameter in piece.layout.parameters]
        self.sequence = 0

    def header(self, **changes: Any) -> data_pb2.UpdateHeader:
        """The header of the next update. Changes to the identity by its fields, to the rest by theirs."""
        identity: dict[str, Any] = {
            "run": self.run,
            "run_uid": self.membership.run_uid,
            "generation": self.membership.generation,
            "worker": self.worker,
            "epoch": self.membership.epoch,
            "sequence": self.sequence + 1,
            "fingerprint": secrets.token_bytes(16),
            "acknowledged_version": self.membership.version,
        }
        rest = {key: changes.pop(key) for key in list(changes) if key not in identity}
        return data_pb2.UpdateHeader(identity=data_pb2.UpdateIdentity(**(identity | changes)), **rest)

    def ranges(self, fill: float = 1.0) -> list[tuple[int, int, bytes]]:
        """One range per group that takes gradients, all elements the same."""
        dtypes = {run_pb2.D_TYPE_FLOAT32: "<f4", run_pb2.D_TYPE_FLOAT64: "<f8"}
        return [
            (number, 0, np.full(group.packed_bytes // int(dtypes[group.dtype][2]), fill, dtypes[group.dtype]).tobytes())
            for number, group in enumerate(self.groups)
            if not group.frozen and group.packed_bytes
        ]

    def push(self, header: data_pb2.UpdateHeader | None = None, ranges: Ranges | None = None) -> data_pb2.Answer:
        """An update, each of its ranges in a message."""
        header = self.header() if header is None else header
        answer = self.send(self.push_requests(header, ranges))
        self.sequence = max(self.sequence, header.identity.sequence)
        return answer

    def send(self, requests: list[data_pb2.PushRequest]) -> data_pb2.Answer:
        answers: list[Any]
        if isinstance(self.via, WorkStream):
            answers = self.via.exchange([data_pb2.WorkRequest(**parts(request)) for request in requests])
        elif self.via == "Step":
            everything = data_pb2.Selection(run=self.run)
            steps = [data_pb2.StepRequest(**parts(request)) for request in requests]
            if steps and steps[-1].HasField("commit"):
                steps[-1].selection.CopyFrom(everything)
            answers = self.raw.data_call("Step", iter(steps))
        else:
            answers = [self.raw.data_call("Push", iter(requests))]
        found: list[data_pb2.Answer] = [response.answer for response in answers if response.HasField("answer")]
        assert found
        assert all(answer == found[0] for answer in found)  # a retry hears it at its header and at its end
        return found[0]

    def push_requests(
        self, header: data_pb2.UpdateHeader, ranges: Ranges | None = None, commit: bool = True
    ) -> list[data_pb2.PushRequest]:
        ranges = self.ranges() if ranges is None else ranges
        requests = [data_pb2.PushRequest(stage=data_pb2.Stage(header=header))]
        requests += [data_pb2.PushRequest(stage=stage([piece])) for piece in ranges]
        if commit:
            requests.append(data_pb2.PushRequest(commit=data_pb2.Commit()))
        return requests


def parts(request: data_pb2.PushRequest) -> dict[str, Any]:
    return {field.name: value for field, value in request.ListFields()}


def stage(ranges: Ranges, header: data_pb2.UpdateHeader | None = None) -> data_pb2.Stage:
    parts = [run_pb2.Range(group=group, packed_offset_bytes=at, data=data) for group, at, data in ranges]
    return data_pb2.Stage(header=header, ranges=parts)


def spec(shapes: Mapping[str, Sequence[int]], optimizer: str = "sgd", **more: Any) -> run_pb2.Spec:
    """A spec of float32 parameters."""
    parameters = [
        run_pb2.ParameterSpec(name=name, shape=shape, dtype=run_pb2.D_TYPE_FLOAT32) for name, shape in shapes.items()
    ]
    return run_pb2.Spec(parameters=parameters, optimizer=optimizer, **more)


def call(method: Any, request: Any, **more: Any) -> Any:
    """Call to the end: the answer, or the list of a stream's answers."""
    try:
        if isinstance(method, grpc.UnaryUnaryMultiCallable | grpc.StreamUnaryMultiCallable):
            return method(request, timeout=SECONDS_MAX, **more)
        return list(method(request, timeout=SECONDS_MAX, **more))
    except grpc.RpcError as error:
        raise refusal(error) from None


def refusal(error: grpc.RpcError) -> Exception:
    """The typed error inside a failed call; the error itself if there is none."""
    failed: Any = error
    for key, value in failed.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.code == failed.code().value[0]
            for packed in status.details:
                info = error_details_pb2.ErrorInfo()
                if packed.Unpack(info):
                    assert info.domain == "stepwell"
                    return Refusal(info.reason, status.message, dict(info.metadata))
    return error


class WorkStream:
    """A worker's long-lived stream."""

    def __init__(self, raw: Raw) -> None:
        self._requests: queue.SimpleQueue[data_pb2.WorkRequest | None] = queue.SimpleQueue()
        self._responses = raw.data.Work(iter(self._requests.get, None), timeout=SECONDS_MAX)
        self._number = 0

    def exchange(self, requests: list[data_pb2.WorkRequest], last: bool = True) -> list[data_pb2.WorkResponse]:
        """Send an exchange and wait for its end; raises Refusal. last: whether it says that it is over."""
        self._number += 1
        for request in requests:
            request.exchange = self._number
            request.last = last and request is requests[-1]
            self._requests.put(request)
        return list(self._answers())

    def send(self, request: data_pb2.WorkRequest) -> None:
        """Begin an exchange, and wait for nothing."""
        self._number += 1
        request.exchange = self._number
        self._requests.put(request)

    def answers(self) -> Iterator[data_pb2.WorkResponse]:
        """What comes until the server ends the stream."""
        return iter(self._responses)

    def close(self) -> None:
        """Say that nothing follows."""
        self._requests.put(None)

    def cancel(self) -> None:
        self._requests.put(None)
        self._responses.cancel()

    def _answers(self) -> Iterator[data_pb2.WorkResponse]:
        for response in self._responses:
            assert response.exchange == self._number
            if response.HasField("error"):
                assert response.done
                raise of_error(response.error)
            yield response
            if response.done:
                return
        raise AssertionError("the stream ended in the middle of an exchange")


def of_error(error: errors_pb2.Error) -> Refusal:
    """The typed error of an exchange."""
    reason = errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    return Refusal(reason, error.message, dict(error.details))
