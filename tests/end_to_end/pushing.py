"""A worker process for the tests of exactly-once, and the numbers that it pushes."""

import random
import secrets
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np

import stepwell
from stepwell.v1 import data_pb2, data_pb2_grpc
from tests.end_to_end.states import Arrays

SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "layer/0.weight": ((13, 5), "f4"),
    "scale": ((), "f4"),
    "leer": ((0, 3), "f4"),
    "größe": ((7,), "f8"),
    "temperature": ((), "f8"),
}


def parameters(seed: int) -> Arrays:
    return _draw(np.random.default_rng(seed))


def gradients(seed: int, worker: int, sequence: int) -> Arrays:
    """What this worker pushes as this update: anybody can make it again."""
    return _draw(np.random.default_rng([seed, worker, sequence]))


def _draw(rng: np.random.Generator) -> Arrays:
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, (shape, dtype) in SHAPES.items()}


@dataclass
class Pushed:
    """What a worker was told. versions: by sequence, from 1; repeated: those of everything that was sent again."""

    versions: list[int] = field(default_factory=list)
    repeated: list[tuple[int, int]] = field(default_factory=list)
    concurrent_count: int = 0
    later_count: int = 0
    failures: list[str] = field(default_factory=list)


class Repeater:
    """Sends updates again over a second connection, straight to the server: some meanwhile, some after the answer."""

    def __init__(self, address: str, chance: random.Random, pushed: Pushed) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = data_pb2_grpc.DataServiceStub(self._channel)
        self._chance, self._pushed = chance, pushed
        self._threads: list[threading.Thread] = []

    def before_answer(self, requests: list[data_pb2.WorkRequest]) -> None:
        if self._chance.random() < 0.1:
            self._pushed.concurrent_count += 1
            thread = threading.Thread(target=self._send, args=[list(requests)])
            self._threads.append(thread)
            thread.start()

    def after_answer(self, requests: list[data_pb2.WorkRequest]) -> None:
        if self._chance.random() < 0.1:
            self._pushed.later_count += 1
            self._send(requests)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def close(self) -> None:
        self._channel.close()

    def _send(self, requests: list[data_pb2.WorkRequest]) -> None:
        sequence = requests[0].stage.header.identity.sequence
        try:
            for response in self._stub.Work(iter(requests), timeout=60):
                if response.HasField("error"):
                    self._pushed.failures.append(f"sequence {sequence}: {response.error}")
                if response.HasField("answer"):
                    self._pushed.repeated.append((sequence, response.answer.committed_version))
        except grpc.RpcError as error:
            self._pushed.failures.append(f"sequence {sequence}: {error}")


def push_updates(
    channel: "Connection[Any, Any]", proxy: str, server: str, run: str, seed: int, worker: int, count: int
) -> None:
    """The process: push `count` updates through the proxy, and report through the channel what came of it."""
    pushed = Pushed()
    try:
        with stepwell.connect(
            proxy, worker=f"worker-{worker}", retry_seconds=0.01, retry_seconds_max=0.1, silence_seconds=10
        ) as client:
            joined = client.get_run(run)
            repeater = Repeater(server, random.Random(f"{seed}/{worker}"), pushed)
            joined._worker.before_answer = repeater.before_answer
            joined._worker.after_answer = repeater.after_answer
            for sequence in range(1, count + 1):
                pushed.versions.append(joined.push(gradients(seed, worker, sequence), samples=1.0))
            repeater.close()
    except stepwell.StepwellError as error:
        pushed.failures.append(f"{type(error).__name__} after {len(pushed.versions)} updates: {error}")
    channel.send(pushed)
    channel.close()


def new_seed() -> int:
    """A seed for this run of the tests; whoever draws one prints it."""
    return secrets.randbits(32)
