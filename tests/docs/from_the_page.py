"""A client written from docs/protocol.md alone, on grpcio, NumPy and generated stubs; nothing of Stepwell's own client.

Run as `python from_the_page.py ADDRESS RUN`, with the stubs of proto/ on the path. It creates a run with Adam, makes
three updates over a Work stream, of which the second one's answer is lost, and prints what it has got as JSON.
"""

import itertools
import json
import os
import queue
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from stepwell.v1 import control_pb2, control_pb2_grpc, data_pb2, data_pb2_grpc, run_pb2

CONTRACT = [("stepwell-contract", "1.0")]
TRIES_MAX = 12
SECONDS_MAX = 60.0

Arrays = Mapping[str, Any]
Messages = queue.SimpleQueue[Any]


class Client:
    """One worker of one run, whose parameters are float32 and all in one group."""

    def __init__(self, address: str, run: str, worker: str) -> None:
        self.run, self.worker = run, worker
        self.sequence = self.version = self.answers_lost = 0
        self.channel = grpc.insecure_channel(address, [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)])
        self.control = control_pb2_grpc.ControlServiceStub(self.channel)
        self.data = data_pb2_grpc.DataServiceStub(self.channel)
        self.stream: tuple[Messages, Iterator[data_pb2.WorkResponse]] | None = None
        self.exchange = 0

    def create(self, spec: run_pb2.Spec, values: Arrays) -> None:
        """Make the run or find it, then join it."""
        requests: Messages = queue.SimpleQueue()
        requests.put(control_pb2.CreateRunRequest(run=self.run, spec=spec, spec_complete=True))
        responses = self.control.CreateRun(iter(requests.get, None), metadata=CONTRACT, timeout=SECONDS_MAX)
        layout = run_pb2.Layout()
        for response in responses:
            layout.MergeFrom(response.layout)
            if response.creation == control_pb2.CREATION_SEND_VALUES and response.layout.last:
                ranges = self.cut(layout, values)
                requests.put(control_pb2.CreateRunRequest(values=ranges, values_complete=True))
        requests.put(None)
        self.layout = run_pb2.Layout()
        request = control_pb2.JoinRequest(run=self.run, worker=self.worker, lease_seconds=SECONDS_MAX)
        for joined in self.control.Join(request, metadata=CONTRACT, timeout=SECONDS_MAX):
            if joined.HasField("membership"):
                self.membership = joined.membership
            self.layout.MergeFrom(joined.layout)

    def step(self, gradients: Arrays, lose_answer: bool = False) -> tuple[data_pb2.Answer, Arrays]:
        """An update, applied once however often it must be sent, and the parameters after it."""
        identity = data_pb2.UpdateIdentity(
            run=self.run,
            run_uid=self.membership.run_uid,
            generation=self.membership.generation,
            worker=self.worker,
            epoch=self.membership.epoch,
            sequence=self.sequence + 1,
            fingerprint=os.urandom(16),
            acknowledged_version=self.version,
        )
        header = data_pb2.UpdateHeader(identity=identity, base_version=self.version)
        request = data_pb2.WorkRequest(
            stage=data_pb2.Stage(header=header, ranges=self.cut(self.layout, gradients)),
            commit=data_pb2.Commit(),
            selection=data_pb2.Selection(run=self.run, run_uid=self.membership.run_uid),
            last=True,
        )
        for number in itertools.count():
            try:
                responses = list(self.carry_out(request, lose_answer and number == 0))
                break
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or number == TRIES_MAX:
                    raise
                self.stream, self.answers_lost = None, self.answers_lost + 1
                time.sleep(random.uniform(0, min(2.0, 0.05 * 2**number)))
        (answer,) = [response.answer for response in responses if response.HasField("answer")]
        (parameters,) = [response.parameters for response in responses if response.HasField("parameters")]
        self.sequence += 1
        self.version = max(answer.committed_version, parameters.version)
        return answer, self.fill(self.layout.parameters, responses)

    def pull(
        self, indices: Sequence[int] = (), if_newer_than: int | None = None
    ) -> tuple[data_pb2.ParametersHeader, Arrays]:
        """Parameters by their indices, all for none."""
        wanted = data_pb2.Selection(
            run=self.run, run_uid=self.membership.run_uid, parameters=indices, if_newer_than=if_newer_than
        )
        call = self.data.Pull(data_pb2.PullRequest(selection=wanted), metadata=CONTRACT, timeout=SECONDS_MAX)
        responses = list(call)
        parameters = [self.layout.parameters[index] for index in indices] or self.layout.parameters
        header = responses[0].parameters
        return header, {} if header.unchanged else self.fill(parameters, responses)

    def carry_out(self, request: data_pb2.WorkRequest, lose_answer: bool) -> Iterator[data_pb2.WorkResponse]:
        """One exchange on the stream, which is opened where there is none."""
        if self.stream is None:
            requests: Messages = queue.SimpleQueue()
            responses = self.data.Work(iter(requests.get, None), metadata=CONTRACT, timeout=SECONDS_MAX)
            self.stream, self.exchange = (requests, responses), 0
        self.exchange += 1
        request.exchange = self.exchange
        self.stream[0].put(request)
        if lose_answer:
            deadline = time.monotonic() + SECONDS_MAX
            while self.pull()[0].version == self.version and time.monotonic() < deadline:
                time.sleep(0.01)  # until the server has made it; then the answer is on its way
            self.stream[1].cancel()  # type: ignore[attr-defined]  # a response iterator is a call, too
        for response in self.stream[1]:
            if response.exchange != self.exchange:
                continue
            if response.HasField("error"):
                raise RuntimeError(f"{response.error.reason}: {response.error.message}")
            yield response
            if response.done:
                return

    def cut(self, layout: run_pb2.Layout, arrays: Arrays) -> list[run_pb2.Range]:
        """Arrays by name as ranges, one for each parameter."""
        return [
            run_pb2.Range(
                group=parameter.group,
                packed_offset_bytes=parameter.packed_offset_bytes,
                data=np.asarray(arrays[parameter.name], "<f4").tobytes(),
            )
            for parameter in layout.parameters
        ]

    def fill(self, parameters: Iterable[run_pb2.LayoutParameter], responses: Iterable[Any]) -> Arrays:
        """Arrays by name from ranges, wherever those were cut."""
        packed = bytearray(self.layout.groups[0].packed_bytes)
        for part in (part for response in responses for part in response.ranges):
            packed[part.packed_offset_bytes : part.packed_offset_bytes + len(part.data)] = part.data
        return {
            each.name: np.frombuffer(
                packed, "<f4", int(np.prod(each.shape, dtype=int)), each.packed_offset_bytes
            ).reshape(each.shape)
            for each in parameters
        }


def main(address: str, run: str) -> dict[str, Any]:
    inputs = json.load(sys.stdin)
    client = Client(address, run, f"page-{os.getpid()}")
    spec = run_pb2.Spec(optimizer="adam")
    for name, value in inputs["parameters"].items():
        spec.parameters.add(name=name, shape=np.shape(value), dtype=run_pb2.D_TYPE_FLOAT32)
    for name, value in inputs["hyperparameters"].items():
        spec.hyperparameters[name].number = value
    client.create(spec, inputs["parameters"])
    steps = [client.step(grads, lose_answer=number == 1) for number, grads in enumerate(inputs["gradients"])]
    header, pulled = client.pull()
    last = len(client.layout.parameters) - 1
    return {
        "versions": [answer.committed_version for answer, _ in steps],
        "outcomes": [data_pb2.Outcome.Name(answer.outcome) for answer, _ in steps],
        "stepped": [{name: array.tolist() for name, array in parameters.items()} for _, parameters in steps],
        "pulled": {name: array.tolist() for name, array in pulled.items()},
        "part": {name: array.tolist() for name, array in client.pull([last])[1].items()},
        "version": header.version,
        "unchanged": client.pull(if_newer_than=header.version)[0].unchanged,
        "answers_lost": client.answers_lost,
        "stubs": control_pb2.__file__,
    }


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
