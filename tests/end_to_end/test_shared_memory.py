"""A worker that shares memory with the server: the bits of the stream, and no harm to anybody, whatever it does."""

import asyncio
import ctypes
import fcntl
import gc
import logging
import math
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np
import pytest

import stepwell
from stepwell import _shared, aio
from stepwell._calls import Settings
from stepwell._shared import SharedMemory
from stepwell.v1 import data_pb2, run_pb2
from stepwell_server.core.errors import SharedMemoryUnavailable
from stepwell_server.service import sharing as sharing_module
from stepwell_server.service.hosted import HostedRun
from stepwell_server.service.machine import Machine
from stepwell_server.service.sharing import Sharing
from stepwell_server.service.turns import Turns
from tests.core.local import LocalRun
from tests.end_to_end import pushing
from tests.end_to_end.raw import Raw, RawWorker, Refusal, WorkStream
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits, same_state
from tests.end_to_end.test_restarts import beyond, crash, replay, restart

Start = Callable[..., Server]
Connect = Callable[..., stepwell.Client]

# Ends a hung test; nothing here takes so long.
SECONDS_MAX = 60.0
HANDLE = struct.Struct("<Q")
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
NOBODY = 65534
MEBIBYTE = 1 << 20
MEMORY_BYTES = 64 * MEBIBYTE

# After version v every element is v: sgd with lr 1 and gradients of -1. Three groups, two dtypes, padding.
COUNTING: Arrays = {
    "body.0": np.zeros((300, 500), np.float32),
    "head.0": np.zeros((60, 1000), np.float32),
    "body.1": np.zeros((30, 7), np.float32),
    "scale": np.zeros((), np.float32),
    "leer": np.zeros(0, np.float32),
    "double": np.zeros(10_001),
}
ONES: Arrays = {name: np.full_like(array, -1) for name, array in COUNTING.items()}


def create_counter(client: stepwell.Client, name: str, parameters: Arrays = COUNTING) -> stepwell.Run:
    """A run whose every element is its version."""
    groups = [{"name": "head", "parameters": ["head.*"]}] if "head.0" in parameters else []
    return client.create_run(name, parameters, optimizer="sgd", hyperparameters={"lr": 1.0}, groups=groups)


def ones(run: stepwell.Run) -> Arrays:
    """The run's own gradients, filled so that a step counts."""
    gradients = run.gradients()
    for gradient in gradients.values():
        gradient.fill(-1)
    return gradients


def look(run: stepwell.Run) -> Arrays:
    return run.parameters()


def check_version(arrays: Mapping[str, np.ndarray[Any, Any]], version: int) -> None:
    for name, array in arrays.items():
        assert (array == version).all(), f"'{name}' has {np.unique(array)[:5]} at version {version}"


def pull(run: stepwell.Run, **more: Any) -> Arrays:
    got = run.pull(**more)
    assert got is not None
    return got


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory for sockets that is not there yet. Their paths must be short, and those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "s"


@pytest.fixture(scope="module")
def lasting(kernel_cache: Path) -> Iterator[tuple[Server, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        directory = Path(folder) / "s"
        options = ["--max-memory", MEMORY_BYTES, "--shared-memory-dir", directory]
        with Server(kernel_cache, *options) as server:
            yield server, directory


@pytest.fixture
def alone(lasting: tuple[Server, Path], connect: Connect) -> Iterator[Server]:
    """A server with MEMORY_BYTES and with nobody else's runs, so that what is left behind can be counted."""
    server, _ = lasting
    yield server
    client = connect(server)
    for run in client.list_runs():
        client.delete_run(run.name)


@pytest.fixture
def directory(lasting: tuple[Server, Path]) -> Path:
    """Where it has its socket."""
    return lasting[1]


@pytest.fixture
def sharer(server: Server, connect: Connect) -> stepwell.Client:
    """A client that shares memory or fails."""
    return connect(server, transport="shared_memory")


@pytest.fixture
def streamer(server: Server, connect: Connect) -> stepwell.Client:
    return connect(server, transport="stream")


# 1. The same bits as over the stream.

MIXED: Arrays = {
    name: np.asarray(np.random.default_rng(1).normal(size=shape)).astype(dtype)
    for name, (shape, dtype) in {
        "body.weight": ((600, 500), "f4"),
        "body.bias": ((70,), "f4"),
        "temperature": ((), "f4"),
        "leer": ((0, 3), "f4"),
        "head.weight": ((33, 5), "f8"),
        "head.scale": ((), "f8"),
        "head.leer": ((0,), "f8"),
        "frozen.table": ((50,), "f4"),
        "frozen.double": ((3,), "f8"),
    }.items()
}
# Without padding, so that the client may copy it in one go; one group has no elements at all.
DENSE: Arrays = {
    "a": np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8),
    "b": np.linspace(0, 1, 16, dtype=np.float32),
    "c": np.linspace(0, 2, 5),
    "leer": np.zeros((0, 2), np.float32),
    "hollow": np.zeros((2, 0)),
}
FROZEN = {"name": "frozen", "parameters": ["frozen.*"], "frozen": True}
HOLLOW = {"name": "hollow", "parameters": ["hollow"]}

# Parameters, spec, and whether parameters may be without a gradient.
CASES: dict[str, tuple[Arrays, dict[str, Any], bool]] = {
    "groups and schedules": (
        MIXED,
        {
            "optimizer": "adam",
            "flavor": "torch",
            "hyperparameters": {"lr": 0.05, "amsgrad": True},
            "schedules": {"lr": {"name": "cosine", "t_max": 10, "eta_min": 1e-4}},
            "groups": [FROZEN, {"name": "head", "parameters": ["head.*"], "hyperparameters": {"weight_decay": 0.1}}],
        },
        True,
    ),
    "ema": (
        MIXED,
        {"optimizer": "adamw", "flavor": "torch", "wrappers": [{"name": "ema", "decay": 0.5}], "groups": [FROZEN]},
        True,
    ),
    "clipping": (
        MIXED,
        {
            "optimizer": "adam",
            "flavor": "torch",
            "transforms": [{"name": "clip_by_global_norm", "max_norm": 0.5}],
            "report_norms": True,
            "groups": [FROZEN],
        },
        True,
    ),
    "array code": (MIXED, {"optimizer": "adafactor", "hyperparameters": {"lr": 0.1}, "groups": [FROZEN]}, False),
    "reductions": (
        MIXED,
        {"optimizer": "lamb", "hyperparameters": {"lr": 0.1}, "report_norms": True, "groups": [FROZEN]},
        False,
    ),
    "inputs": (MIXED, {"optimizer": "sophia", "hyperparameters": {"lr": 0.1}, "groups": [FROZEN]}, False),
    "dense": (DENSE, {"optimizer": "sgd", "hyperparameters": {"lr": 0.1, "momentum": 0.9}, "groups": [HOLLOW]}, False),
    "loss scale": (
        DENSE,
        {"optimizer": "sgd", "hyperparameters": {"lr": 0.1}, "transforms": [{"name": "unscale", "init_scale": 8.0}]},
        False,
    ),
}


def drawn(parameters: Arrays, step: int, skips: bool) -> dict[str, Any]:
    """Gradients of one step, in one of the forms in which a caller may have them; None for some."""
    random = np.random.default_rng([7, step])
    gradients: dict[str, Any] = {}
    for number, (name, value) in enumerate(parameters.items()):
        if name.startswith("frozen."):
            continue
        gradient = np.asarray(random.normal(size=value.shape)).astype(value.dtype)
        if step % 4 == 2:  # not contiguous
            gradient = np.repeat(gradient[..., np.newaxis], 2, -1)[..., 0] if gradient.ndim else gradient
        elif step % 4 == 3 and number % 2:  # narrower than the parameter
            gradient = gradient.astype(np.float16 if value.dtype == np.float32 else np.float32)
        gradients[name] = None if skips and (step + number) % 5 == 0 else gradient
    return gradients


@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_over_the_stream(sharer: stepwell.Client, streamer: stepwell.Client, name: str, case: str) -> None:
    parameters, settings, skips = CASES[case]
    shared = sharer.create_run(name, parameters, **settings)
    streamed = streamer.create_run(f"{name}-streamed", parameters, **settings)
    views = look(shared)
    places = shared.gradients()
    for step in range(10):
        given = over_stream = drawn(parameters, step, skips)
        if step % 4 == 1:
            for key, gradient in given.items():
                if gradient is not None:
                    places[key][...] = gradient
            given = {key: None if gradient is None else places[key] for key, gradient in given.items()}
        more: dict[str, Any] = {"samples": float(step)}
        if case == "inputs" and step % 3 == 1:
            more["inputs"] = {"hessian": drawn(parameters, 100 + step, skips)}
        # What the server reads where it lies must be what it was: the caller may go on with it.
        places = shared.gradients()
        expected = {key: None if gradient is None else gradient.copy() for key, gradient in given.items()}
        same_bits(*both(step, shared, streamed, given, over_stream, views, **more))
        for key, gradient in expected.items():
            if gradient is not None:
                assert given[key].tobytes() == gradient.tobytes(), key
                assert (places[key] == gradient).all(), key
        views = look(shared)
        same_bits(views, pull(streamed))
        chosen = [key for key in parameters if len(key) % 2]
        same_bits(pull(shared, names=chosen, if_newer_than=step), pull(streamed, names=chosen))
        assert shared.pull(if_newer_than=step + 1) is None
        for point in shared.refresh().points:
            same_bits(pull(shared, of=point), pull(streamed, of=point))
        assert shared.last_answer == streamed.last_answer
        assert (shared.transport, streamed.transport) == ("shared_memory", "stream")
    same_state(shared.get_state(), streamed.get_state())


def both(
    step: int, shared: stepwell.Run, streamed: stepwell.Run, given: Any, over_stream: Any, views: Arrays, **more: Any
) -> tuple[Arrays, Arrays]:
    """One update to both runs, and where it led them, in one of the ways to do so."""
    expected = streamed.step(over_stream, **more)
    way = step % 5
    if way == 0:
        return shared.step(given, out=views, **more), expected
    if way == 1:
        assert shared.push(given, **more) == streamed.version
        return pull(shared), expected
    if way == 2:
        kept = {key: np.full_like(value, np.nan) for key, value in expected.items()}
        got = shared.step(given, out=kept, **more)
        assert all(got[key] is kept[key] for key in kept)
        return got, expected
    if way == 3:
        assert shared.push(given, **more) == streamed.version
        return pull(shared, out=views), expected
    return shared.step(given, **more), expected


def test_the_right_numbers(sharer: stepwell.Client, name: str, kernel_cache: Path) -> None:
    """Against the core without any server, and against plain NumPy."""
    random = np.random.default_rng(3)
    start: Arrays = {"w": random.normal(size=(300, 300)), "b": np.asarray(random.normal(), np.float32)}
    momentum: dict[str, Any] = {"optimizer": "sgd", "hyperparameters": {"lr": 0.1, "momentum": 0.5}}
    run = sharer.create_run(name, start, **momentum)
    local = LocalRun(start, kernel_directory=kernel_cache, **momentum)
    expected, velocity = dict(start), {key: np.zeros_like(value) for key, value in start.items()}
    gradients, views = run.gradients(), look(run)
    for _ in range(5):
        for gradient in gradients.values():
            gradient[...] = random.normal(size=gradient.shape)
        views = run.step(gradients, out=views)
        same_bits(views, local.step(gradients))
        for key, gradient in gradients.items():
            velocity[key] = 0.5 * velocity[key] + gradient
            expected[key] = expected[key] - 0.1 * velocity[key]
            np.testing.assert_allclose(views[key], expected[key], rtol=1e-5 if key == "b" else 1e-12, atol=1e-6)


def test_what_is_returned_without_views_belongs_to_the_caller(sharer: stepwell.Client, name: str) -> None:
    run = create_counter(sharer, name)
    first, second = run.step(ONES), run.step(ONES)
    third = pull(run)
    third["body.0"][:] = 99
    run.step(ONES)
    check_version(first, 1)
    check_version(second, 2)
    assert (third.pop("body.0") == 99).all()
    check_version(third, 2)


def test_gradients_that_lie_in_each_others_places(
    sharer: stepwell.Client, streamer: stepwell.Client, name: str
) -> None:
    """Whoever hands over a place as another parameter's gradient means what is in it, not what comes to be there."""
    for size in (16, 5, 100_000):  # in one go, one by one, and large
        start: Arrays = {
            key: np.zeros(size, dtype) for key, dtype in (("a", "f4"), ("b", "f4"), ("c", "f8"), ("d", "f8"))
        }
        results = []
        for client, run_name in ((sharer, f"{name}-{size}"), (streamer, f"{name}-{size}-streamed")):
            run = client.create_run(run_name, start, optimizer="sgd", hyperparameters={"lr": 1.0})
            places = run.gradients()
            for number, place in enumerate(places.values()):
                place[:] = number + 1
            swapped = {"a": places["b"], "b": places["a"], "c": places["d"], "d": places["c"]}
            results.append(run.step(swapped))
        same_bits(*results)
        assert {key: float(-value[0]) for key, value in results[0].items()} == {"a": 2, "b": 1, "c": 4, "d": 3}


def test_what_auto_chooses(server: Server, connect: Connect, name: str) -> None:
    client = connect(server)
    for elements, transport in ((65_536, "shared_memory"), (65_535, "stream")):
        run = create_counter(client, f"{name}-{elements}", {"w": np.zeros(elements, np.float32)})
        assert run.transport == "stream"  # it has not joined yet
        check_version(run.step(ones(run)), 1)
        assert run.transport == transport
        gradients = run.gradients()
        assert run.gradients()["w"] is gradients["w"]
        run.close()


# 2. Several workers.


def test_views_stay_at_their_version_while_others_commit(server: Server, connect: Connect, name: str) -> None:
    run = create_counter(connect(server, transport="shared_memory"), name)
    another = connect(server, transport="shared_memory").get_run(name)
    third = connect(server, transport="stream").get_run(name)
    views, kept = look(run), pull(third)
    others, gradients = look(another), ones(another)
    for version in range(1, 51):
        if version % 3:
            others = another.step(gradients, out=others)
            check_version(others, version)
        else:
            third.push(ONES)
        same_bits(views, kept)
    views = run.step(ones(run), out=views)
    assert (run.version, run.transport) == (51, "shared_memory")
    check_version(views, 51)
    check_version(others, 50)  # what the other one holds is still there


def test_three_workers_at_once(server: Server, connect: Connect, name: str) -> None:
    """Whatever each of them sees, it is one version, also after it has looked at it for a while."""
    create_counter(connect(server), name)
    updates = 40

    def train(worker: int) -> set[int]:
        run = connect(server, transport="shared_memory").get_run(name)
        gradients, views = ones(run), look(run)
        seen = set()
        for number in range(updates):
            if number % 4 == worker:
                run.push(gradients)
                views = pull(run, out=views)
            else:
                views = run.step(gradients, out=views)
            check_version(views, run.version)
            seen.add(run.version)
            check_version(views, run.version)
        return seen

    with ThreadPoolExecutor(3) as threads:
        seen = [training.result(SECONDS_MAX) for training in [threads.submit(train, worker) for worker in range(3)]]
    assert all(len(versions) == updates for versions in seen)
    check_version(pull(connect(server).get_run(name)), 3 * updates)


def work(channel: "Connection[Any, Any]", address: str, name: str) -> None:
    """A worker in a process of its own, that does what it is told and says what it sees."""
    client = stepwell.connect(address, transport="shared_memory")
    run = client.get_run(name)
    views, gradients = look(run), ones(run)

    def seen() -> tuple[int, list[float]]:
        return run.version, sorted({float(value) for view in views.values() for value in np.unique(view)})

    channel.send(seen())
    while True:
        match channel.recv():
            case "look":
                channel.send(seen())
            case "step":
                views = run.step(gradients, out=views)
                channel.send(seen())
            case "train":
                while True:
                    views = run.step(gradients, out=views)
                    channel.send(run.version)
            case "write":
                channel.send("writing")
                while True:
                    for gradient in gradients.values():
                        gradient.fill(-1)


class Child:
    """Such a process. Killed at the end, if not before."""

    def __init__(self, server: Server, name: str) -> None:
        spawn = multiprocessing.get_context("spawn")  # not forked: this process has threads of gRPC's
        self._channel, theirs = spawn.Pipe()
        self._process = spawn.Process(target=work, args=[theirs, server.address, name])
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._channel.close()

    def hear(self) -> Any:
        assert self._channel.poll(SECONDS_MAX), "the worker says nothing"
        return self._channel.recv()

    def tell(self, order: str) -> Any:
        self._channel.send(order)
        return self.hear()

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def test_a_stopped_worker_keeps_nobody(start: Start, connect: Connect, name: str) -> None:
    """Each worker's version is its own: there is memory for it from the beginning, and nobody waits for it."""
    # For the run, and for each of two workers gradients and a version; and not for one vector more.
    server = start("--max-memory", 5 * MEBIBYTE + (64 << 10))
    create_counter(connect(server), name, {"w": np.zeros(MEBIBYTE // 4, np.float32)})
    with Child(server, name) as child:
        assert child.hear() == (0, [0.0])
        run = connect(server, transport="shared_memory").get_run(name)
        gradients, views = ones(run), look(run)
        child.signal(signal.SIGSTOP)
        for version in range(1, 31):
            views = run.step(gradients, out=views)
            check_version(views, version)
        child.signal(signal.SIGCONT)
        assert child.tell("look") == (0, [0.0])
        assert child.tell("step") == (31, [31.0])
        check_version(views, 30)
        check_version(run.step(gradients, out=views), 32)


# By hand: what another language's client sends, or an attacker.


class Sharer:
    """A worker that shares memory without the SDK. own: what it writes, by group and input."""

    def __init__(self, worker: RawWorker, inputs: Sequence[str] = ()) -> None:
        self.worker = worker
        self.response = share(worker, inputs)
        self.token: bytes = self.response.token
        self.connection = reach(self.response.socket, self.token)
        self.own = {(vector.group, vector.input): self.map(vector, READ_WRITE) for vector in self.response.vectors}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def fetch(self, handle: int) -> tuple[int, list[int]]:
        """The size that the socket says, and the descriptors that come with it."""
        self.connection.sendall(HANDLE.pack(handle))
        answer, descriptors, _, _ = socket.recv_fds(self.connection, HANDLE.size, 4)
        return HANDLE.unpack(answer)[0], descriptors

    def map(self, vector: data_pb2.SharedVector, protection: int) -> np.ndarray[Any, Any]:
        size, descriptors = self.fetch(vector.handle)
        assert size == vector.size_bytes
        (descriptor,) = descriptors
        try:
            return np.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection), self.dtype(vector.group))
        finally:
            os.close(descriptor)

    def dtype(self, group: int) -> np.dtype[Any]:
        codes = {run_pb2.D_TYPE_FLOAT32: np.float32, run_pb2.D_TYPE_FLOAT64: np.float64}
        return np.dtype(codes[self.worker.groups[group].dtype])

    def places(self, number: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Flat views of the parameters' gradients, or of another input's places."""
        found = {}
        for parameter in self.worker.parameters:
            vector = self.own.get((parameter.group, number))
            if vector is not None:
                begin = parameter.vector_offset_bytes // vector.itemsize
                found[parameter.name] = vector[begin : begin + math.prod(parameter.shape)]
        return found

    def push(self, token: bytes | None = None, **header: Any) -> data_pb2.Answer:
        header_message = self.worker.header(**header)
        token = self.token if token is None else token
        message = data_pb2.PushRequest(
            stage=data_pb2.Stage(header=header_message, shared_memory=token), commit=data_pb2.Commit()
        )
        answer = self.worker.send([message])
        self.worker.sequence += 1
        return answer

    def pull(self, token: bytes | None = None, run: str | None = None) -> data_pb2.ParametersHeader:
        selection = data_pb2.Selection(run=run or self.worker.run, shared_memory=self.token if token is None else token)
        (response,) = self.worker.raw.data_call("Pull", data_pb2.PullRequest(selection=selection))
        header: data_pb2.ParametersHeader = response.parameters
        return header


def share(worker: RawWorker, inputs: Sequence[str] = (), **changes: Any) -> data_pb2.ShareMemoryResponse:
    asked = {"run": worker.run, "run_uid": worker.membership.run_uid, "inputs": inputs} | changes
    response: data_pb2.ShareMemoryResponse = worker.raw.data_call("ShareMemory", data_pb2.ShareMemoryRequest(**asked))
    return response


def reach(path: str, token: bytes = b"") -> socket.socket:
    """A connection to the server's socket that has sent this."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SECONDS_MAX)
    connection.connect(path)
    connection.sendall(token)
    return connection


@contextmanager
def raw_sharer(server: Server, name: str, inputs: Sequence[str] = ()) -> Iterator[Sharer]:
    with Raw(server.address) as raw, Sharer(raw.join(name, "by-hand"), inputs) as sharer:
        yield sharer


def test_memory_shows_no_points(server: Server, client: stepwell.Client, name: str) -> None:
    create_counter(client, name)
    with raw_sharer(server, name) as sharer:
        selection = data_pb2.Selection(run=name, shared_memory=sharer.token, point="average")
        with pytest.raises(Refusal, match="expected none") as refused:
            sharer.worker.raw.data_call("Pull", data_pb2.PullRequest(selection=selection))
        assert refused.value.reason == "MALFORMED_REQUEST"
        assert sharer.pull().version == 0


@pytest.mark.parametrize("via", ["Push", "Step", "Work"])
def test_by_hand(server: Server, client: stepwell.Client, name: str, via: str) -> None:
    """The contract is enough, over each of the calls."""
    create_counter(client, name)
    with raw_sharer(server, name) as sharer, ExitStack() as streams:
        if via == "Work":
            stream = WorkStream(sharer.worker.raw)
            streams.callback(stream.cancel)
            sharer.worker.via = stream
        else:
            sharer.worker.via = via
        for vector in sharer.own.values():
            vector[:] = -1
        assert [sharer.push().committed_version for _ in range(3)] == [1, 2, 3]
        header = sharer.pull()
        assert header.version == 3
        for described in header.vectors:
            flat = sharer.map(described, mmap.PROT_READ)
            for parameter in sharer.worker.parameters:
                if parameter.group == described.group:
                    begin = parameter.vector_offset_bytes // flat.itemsize
                    assert (flat[begin : begin + math.prod(parameter.shape)] == 3).all()
    check_version(pull(client.get_run(name)), 3)


# 3. Errors.


@pytest.mark.parametrize("as_views", [True, False], ids=["views", "arrays"])
def test_a_gradient_that_is_not_finite(sharer: stepwell.Client, name: str, as_views: bool) -> None:
    parameters, settings, _ = CASES["groups and schedules"]
    run = sharer.create_run(name, parameters, **settings)
    places = run.gradients()
    whole = {key: np.full_like(place, 0.5) for key, place in places.items()}
    run.step(whole)
    for key, place in places.items():
        for value in (np.nan, np.inf) if place.size else ():
            before = run.get_state()
            gradients: dict[str, Any] = places if as_views else {name: each.copy() for name, each in whole.items()}
            for each in places.values():
                each.fill(0.5)
            gradients[key].flat[-1] = value
            with pytest.raises(stepwell.NonfiniteGradient, match=key) as refused:
                run.step(gradients)
            assert refused.value.details["parameter"] == key
            same_state(run.get_state(), before)
            # It lies there still, and does not count where the update says that there is no gradient.
            places[key].flat[-1] = value
            without = {name: None if name == key else places[name] for name in places}
            assert run.push(without) == before.version + 1
            after = pull(run)
            assert after[key].tobytes() == before.parameters[key].tobytes()
            assert all(np.isfinite(array).all() for array in after.values())
    assert run.refresh().skipped_count == 0
    assert run.transport == "shared_memory"


def test_a_gradient_that_is_not_finite_far_inside(sharer: stepwell.Client, name: str) -> None:
    """Wherever it is: the search is divided among threads."""
    elements = 700_000
    start = {"front": np.zeros(3, np.float32), "w": np.zeros(elements, np.float32), "back": np.zeros(3, np.float32)}
    run = sharer.create_run(name, start, optimizer="sgd", hyperparameters={"lr": 1.0}, nonfinite="skip")
    places = ones(run)
    random = np.random.default_rng(5)
    where = [0, 1, elements // 2 - 1, elements // 2, elements - 1, *random.integers(0, elements, 5).tolist()]
    for count, at in enumerate(where, 1):
        places["w"][at] = -np.inf
        assert run.push(places) == 0
        assert run.last_answer == stepwell.Answer(stepwell.Outcome.SKIPPED_NONFINITE, 0)
        assert run.refresh().skipped_count == count
        places["w"][at] = -1
    check_version(run.step(places), 1)


@pytest.mark.parametrize("case", ["groups and schedules", "clipping", "reductions", "array code"])
def test_padding_does_not_count(server: Server, streamer: stepwell.Client, name: str, case: str) -> None:
    """What lies between parameters is not looked at, and does not come to be a parameter."""
    parameters, settings, _ = CASES[case]
    streamer.create_run(name, parameters, **settings)
    streamed = streamer.create_run(f"{name}-streamed", parameters, **settings)
    with raw_sharer(server, name) as sharer:
        for step in range(4):
            gradients = drawn(parameters, 4 * step, skips=False)
            for vector in sharer.own.values():
                vector.view(np.uint8)[:] = 0xFF  # NaNs
            for key, place in sharer.places().items():
                place[:] = gradients[key].ravel()
            assert sharer.push().outcome == data_pb2.OUTCOME_COMMITTED
            streamed.push(gradients)
    same_state(streamer.get_run(name).get_state(), streamed.get_state())


def test_inputs_that_are_not_whole(sharer: stepwell.Client, streamer: stepwell.Client, name: str) -> None:
    """What an earlier update left in a place is not taken for this one's, and both transports say so alike."""
    start: Arrays = {"a": np.zeros(300, np.float32), "b": np.zeros((7, 3), np.float32), "plain": np.zeros(5)}
    settings: dict[str, Any] = {
        "optimizer": "sophia",
        "hyperparameters": {"lr": 0.1},
        "groups": [{"name": "plain", "parameters": ["plain"], "optimizer": "sgd"}],
    }
    gradients: Arrays = {key: np.ones_like(value) for key, value in start.items()}
    states = []
    for client, run_name in ((sharer, name), (streamer, f"{name}-streamed")):
        run = client.create_run(run_name, start, **settings)
        taken = {key: gradients[key] for key in "ab"}
        run.push(gradients, inputs={"hessian": taken})
        before = run.get_state()
        for wrong, error in (
            ({"a": gradients["a"]}, stepwell.IncompleteUpdate),
            ({}, stepwell.IncompleteUpdate),
            (gradients, stepwell.InvalidRange),
            ({**taken, "c": gradients["a"]}, stepwell.UnknownParameter),
        ):
            with pytest.raises(error):
                run.push(gradients, inputs={"hessian": wrong})
            same_state(run.get_state(), before)
        with pytest.raises(stepwell.UnknownArgument, match="'hesse'"):
            run.push(gradients, inputs={"hesse": taken})
        run.push(gradients)
        run.push(gradients, inputs={"hessian": {key: 2 * value for key, value in taken.items()}})
        states.append(run.get_state())
    same_state(*states)


def test_inputs_that_come_later(server: Server, connect: Connect, name: str) -> None:
    """Nobody says beforehand which inputs there will be."""
    start = {"w": np.zeros(100_000, np.float32)}
    run = connect(server).create_run(name, start, optimizer="sophia", hyperparameters={"lr": 0.1})
    run.step(ones(run))
    assert run.transport == "shared_memory"
    run.step(ones(run), inputs={"hessian": {"w": np.ones(100_000, np.float32)}})
    assert run.transport == "shared_memory"


@pytest.fixture
def two(server: Server, client: stepwell.Client, name: str) -> Iterator[tuple[Sharer, Sharer]]:
    """Two runs that share memory by hand."""
    create_counter(client, name)
    create_counter(client, f"{name}-2")
    with raw_sharer(server, name) as one, raw_sharer(server, f"{name}-2") as other:
        for sharer in (one, other):
            for vector in sharer.own.values():
                vector[:] = -1
        yield one, other


# What is sent, and what it gets.
REFUSALS: list[tuple[str, Callable[[Sharer, Sharer], Any], str]] = [
    ("an unknown token", lambda one, other: one.push(bytes(16)), "SHARED_MEMORY_UNAVAILABLE"),
    ("no token at all", lambda one, other: one.push(b"x"), "SHARED_MEMORY_UNAVAILABLE"),
    ("another run's token", lambda one, other: one.push(other.token), "SHARED_MEMORY_UNAVAILABLE"),
    ("an unknown token to pull", lambda one, other: one.pull(bytes(16)), "SHARED_MEMORY_UNAVAILABLE"),
    ("another run's token to pull", lambda one, other: one.pull(other.token), "SHARED_MEMORY_UNAVAILABLE"),
    ("a run that is not there", lambda one, other: share(one.worker, run="nowhere"), "UNKNOWN_RUN"),
    ("another run's uid", lambda one, other: share(one.worker, run=other.worker.run), "RUN_REPLACED"),
    ("no uid", lambda one, other: share(one.worker, run_uid=b""), "RUN_REPLACED"),
    ("an unknown input", lambda one, other: share(one.worker, ["hessian"]), "UNKNOWN_ARGUMENT"),
    ("an unknown input's update", lambda one, other: one.push(inputs=["hessian"]), "UNKNOWN_ARGUMENT"),
    ("an update out of turn", lambda one, other: one.push(sequence=7), "SEQUENCE_GAP"),
    ("ranges, too", lambda one, other: with_ranges(one), "INVALID_RANGE"),
    ("ranges afterwards", lambda one, other: with_ranges(one, apart=True), "INVALID_RANGE"),
    ("no parameter's index", lambda one, other: one.push(without_gradient=[99]), "UNKNOWN_PARAMETER"),
]


def with_ranges(sharer: Sharer, apart: bool = False) -> Any:
    worker = sharer.worker
    stage = data_pb2.Stage(header=worker.header(), shared_memory=sharer.token)
    ranges = data_pb2.Stage(
        ranges=[run_pb2.Range(group=group, packed_offset_bytes=at, data=data) for group, at, data in worker.ranges()]
    )
    if not apart:
        stage.MergeFrom(ranges)
        return worker.send([data_pb2.PushRequest(stage=stage, commit=data_pb2.Commit())])
    return worker.send(
        [data_pb2.PushRequest(stage=stage), data_pb2.PushRequest(stage=ranges, commit=data_pb2.Commit())]
    )


@pytest.mark.parametrize(("send", "reason"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_refusals(two: tuple[Sharer, Sharer], send: Callable[[Sharer, Sharer], Any], reason: str) -> None:
    one, other = two
    with pytest.raises(Refusal) as refused:
        send(one, other)
    assert refused.value.reason == reason
    assert "expected" in refused.value.message
    # Both go on.
    assert one.push().committed_version == other.push().committed_version == 1


@pytest.fixture
def sophia(server: Server, client: stepwell.Client, name: str) -> str:
    """A run with two optimizers that take one further input each."""
    start = {"a": np.zeros(30, np.float32), "b": np.zeros(30, np.float32)}
    groups = [{"name": "b", "parameters": ["b"], "optimizer": "nadam_lecture"}]
    client.create_run(name, start, optimizer="sophia", hyperparameters={"lr": 0.1}, groups=groups)
    return name


def test_inputs_by_hand(server: Server, client: stepwell.Client, sophia: str) -> None:
    with Raw(server.address) as raw:
        worker = raw.join(sophia, "by-hand")
        with pytest.raises(Refusal, match="twice") as refused:
            share(worker, ["hessian"] * 1000)
        assert refused.value.reason == "INVALID_VALUE"
        with Sharer(worker) as sharer:
            with pytest.raises(Refusal, match="share memory with the same inputs") as refused:
                sharer.push(inputs=["hessian"])
            assert refused.value.reason == "INVALID_VALUE"
        with Sharer(worker, ["hessian", "lookahead_grad"]) as sharer:
            assert sorted(sharer.own) == [(0, 0), (0, 2), (1, 0), (1, 1)]
            assert sharer.push(inputs=["hessian", "lookahead_grad"]).committed_version == 1
            assert sharer.push(inputs=["hessian"]).committed_version == 2
            assert sharer.push().committed_version == 3


def test_another_input_in_the_place_of_one(start: Start, connect: Connect, server: Server, sophia: str) -> None:
    with Raw(server.address) as raw, Sharer(raw.join(sophia, "by-hand"), ["hessian"]) as sharer:
        with pytest.raises(Refusal) as refused:
            sharer.push(inputs=["lookahead_grad"])
        server.failures_expected.add("internal error")
        assert refused.value.reason == "INVALID_VALUE"


def test_what_the_socket_is_sent(two: tuple[Sharer, Sharer], sharer: stepwell.Client) -> None:
    """Nothing that comes there keeps the server from its work, or opens another worker's memory."""
    one, other = two
    path = one.response.socket
    theirs = [vector.handle for vector in other.response.vectors]
    held = other.pull().vectors
    for handle in (0, 2**64 - 1, *theirs, *(vector.handle for vector in held)):
        assert one.fetch(handle) == (0, [])
    for token in (bytes(16), b"GET / HTTP/1.1\r\n", other.token, one.token, b"\xff" * 100_000):
        with suppress(ConnectionError), reach(path, token) as stranger:
            assert stranger.recv(1) == b"", token[:16]  # the server hangs up
    for part in (b"", b"half"):
        reach(path, part).close()
    # The first connections are what they were.
    assert one.push().committed_version == other.push().committed_version == 1
    size, descriptors = one.fetch(one.response.vectors[0].handle)
    assert size == one.response.vectors[0].size_bytes
    for descriptor in descriptors:
        os.close(descriptor)


def test_who_asks_and_never_listens(server: Server, client: stepwell.Client, name: str) -> None:
    """Its connection ends before it has taken the server's memory for answers; and the token with it."""
    create_counter(client, name)
    with raw_sharer(server, name) as sharer:
        with suppress(ConnectionError):
            while True:
                sharer.connection.sendall(HANDLE.pack(0) * 10_000)
        with pytest.raises(Refusal) as refused:
            sharer.push()
        assert refused.value.reason == "SHARED_MEMORY_UNAVAILABLE"
    create_counter(client, name).push(ONES)


def test_selections_at_once_with_one_token(alone: Server, connect: Connect, name: str) -> None:
    """A worker that repeats itself over another connection holds one version, not two; else commits would wait."""
    client = connect(alone, transport="stream")
    parameters = {"w": np.zeros((600, 600), np.float32)}
    run = client.create_run(name, parameters, optimizer="muon", hyperparameters={"lr": 0.1})  # commits take a while
    gradients = {"w": np.random.default_rng(1).normal(size=(600, 600)).astype(np.float32)}
    with raw_sharer(alone, name) as sharer, ThreadPoolExecutor(9) as threads:
        for _ in range(8):
            pushing = threads.submit(run.push, gradients, timeout=SECONDS_MAX)
            for pulling in [threads.submit(sharer.pull) for _ in range(8)]:
                pulling.result()
            pushing.result()
    client.delete_run(name)
    wait_until_free(alone, client)


def wait_until_free(server: Server, client: stepwell.Client) -> None:
    """Until one run can have all of MEMORY_BYTES."""
    parameters = {"w": np.zeros(MEMORY_BYTES // 4 - 16, np.float32)}

    def fits() -> bool:
        with suppress(stepwell.MemoryExhausted):
            client.create_run("everything", parameters, optimizer="sgd", hyperparameters={"lr": 1.0})
            client.delete_run("everything")
            return True
        return False

    server.wait_for(fits, "give all memory back")


async def test_a_token_that_is_never_used(sockets: Path, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is given back; and who connects and says nothing is sent away."""
    monkeypatch.setattr(sharing_module, "_CONNECT_SECONDS", 0.05)
    local = LocalRun({"w": np.zeros(1000)}, hyperparameters={"lr": 1.0}, kernel_directory=kernel_cache)
    with ThreadPoolExecutor(1) as threads:
        hosted = HostedRun(local.run, Machine(local.memory, threads, Turns(2)))
        sharing = Sharing(local.memory, sockets)
        sharing.open()
        try:
            before = local.memory.used_bytes
            token, path, session = await sharing.share(hosted, ())
            assert sharing.find(token, hosted) is session
            assert local.memory.used_bytes > before
            with reach(path) as silent:
                silent.setblocking(False)
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(silent, 1), SECONDS_MAX) == b""
            for _ in range(1000):
                if session.closed:
                    break
                await asyncio.sleep(0.01)
            assert local.memory.used_bytes == before
            with pytest.raises(SharedMemoryUnavailable):
                sharing.find(token, hosted)
        finally:
            await sharing.close()
    assert [*sockets.iterdir()] == []


# 4. Another user.

STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
try:
    connection.connect(sys.argv[1])
    connection.sendall(bytes.fromhex(sys.argv[2]) + bytes.fromhex(sys.argv[3]))
    answer, descriptors, _, _ = socket.recv_fds(connection, 100, 4)
    print(len(answer), len(descriptors))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user(alone: Server, connect: Connect, name: str, directory: Path) -> None:
    create_counter(connect(alone), name)
    with Raw(alone.address) as raw:
        response = share(raw.join(name, "by-hand"))
        handle = HANDLE.pack(response.vectors[0].handle)

        def ask_as_nobody() -> str:
            command = [sys.executable, "-c", STRANGER, response.socket, response.token.hex(), handle.hex()]
            asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS_MAX)
            return asked.stdout.strip()

        # The directory is closed to everybody else.
        assert ask_as_nobody() == "PermissionError"
        assert alone.events("another user asked for shared memory") == []
        # And were it open, the kernel says who it is.
        directory.chmod(0o777)
        Path(response.socket).chmod(0o777)
        try:
            assert ask_as_nobody() in ("0 0", "ConnectionResetError", "BrokenPipeError")
        finally:
            directory.chmod(0o700)
        event = alone.wait_for_event("another user asked for shared memory")
        assert (event["uid"], event["level"]) == (NOBODY, "warning")
        # The token has not been used up by that.
        with reach(response.socket, response.token + handle) as connection:
            answer, descriptors, _, _ = socket.recv_fds(connection, HANDLE.size, 4)
            assert HANDLE.unpack(answer) == (response.vectors[0].size_bytes,)
            for descriptor in descriptors:
                os.close(descriptor)


# 5. Faults.


def descriptors_of(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def mappings_of(process: int) -> int:
    """How many of its mappings are shared memory of ours."""
    return Path(f"/proc/{process}/maps").read_text().count("memfd:stepwell")


def test_a_worker_that_is_killed(alone: Server, connect: Connect, name: str) -> None:
    """In the middle of its writing, and of its steps: all that it had goes back, and another one goes on."""
    client = connect(alone, transport="shared_memory")
    run = create_counter(client, name, COUNTING | {"large": np.zeros(1_000_000, np.float32)})
    gradients, views = ones(run), look(run)
    views = run.step(gradients, out=views)
    process, groups = alone.process.pid, len(run.refresh().groups)
    # This worker has gradients and a version in each group; the first one that it shares the run with leaves another
    # version behind, ready for the next time. Each vector is a mapping and two descriptors.
    assert mappings_of(process) == 2 * groups
    others = descriptors_of(process) - 2 * mappings_of(process)
    for killed in ("step", "write", "step", "train", "train"):
        with Child(alone, name) as child:
            before = run.version
            assert child.hear()[0] == before
            heard = child.tell(killed)
            if killed == "step":
                assert heard == (before + 1, [before + 1.0])
            assert mappings_of(process) > 3 * groups
            for _ in range(5 if killed == "train" else 0):
                child.hear()
            child.kill()
        for _ in range(3):
            views = run.step(gradients, out=views)
            check_version(views, run.version)
        if killed != "train":  # else nobody knows how far it came
            assert run.version == before + 3 + (killed == "step")
        alone.wait_for(lambda: mappings_of(process) == 3 * groups, "unmap what it had")
        alone.wait_for(lambda: descriptors_of(process) == others + 6 * groups, "close what it had")
    run.close()
    client.delete_run(name)
    wait_until_free(alone, client)
    alone.wait_for(lambda: mappings_of(process) == 0, "unmap it all")


def test_a_run_that_is_deleted_while_it_is_shared(alone: Server, connect: Connect, name: str) -> None:
    client = connect(alone, transport="shared_memory")
    run = create_counter(client, name)
    views = run.step(ones(run), out=look(run))
    client.delete_run(name)
    # All of it, though the worker is still connected and looks at its views.
    wait_until_free(alone, client)
    alone.wait_for(lambda: mappings_of(alone.process.pid) == 0, "unmap it all")
    check_version(views, 1)
    for call in (lambda: run.step(run.gradients()), run.parameters, run.pull):
        with pytest.raises(stepwell.UnknownRun, match=name):
            call()
    create_counter(client, name)
    with pytest.raises(stepwell.RunReplaced):
        run.push(ONES)


def shared_by_this_process() -> tuple[int, int]:
    """Its descriptors, and its mappings, of shared memory."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(str(entry.readlink()))
    return sum("memfd:stepwell" in link for link in links), mappings_of(os.getpid())


def connections(path: Path) -> int:
    """How many ends of connections the socket has on the server's side, the listener among them."""
    return Path("/proc/net/unix").read_text().count(path.name)


def test_a_server_that_is_killed(
    start: Start,
    connect: Connect,
    tmp_path: Path,
    sockets: Path,
    kernel_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As over the stream: the worker is told, goes on from where the run is, and shares memory again."""
    caplog.set_level(logging.CRITICAL, "stepwell")  # pytest keeps what is logged: errors, and frames that see views
    server = start("--snapshot-seconds", 0, "--shared-memory-dir", sockets, data_dir=tmp_path / "data")
    gc.collect()
    before = shared_by_this_process()
    spec: dict[str, Any] = {
        "optimizer": "adam",
        "flavor": "torch",
        "hyperparameters": {"lr": 0.05, "amsgrad": True},
        "schedules": {"lr": {"name": "cosine", "t_max": 300, "eta_min": 1e-4}},
    }
    seed = 20240607  # as `replay` has it
    run = connect(server, transport="shared_memory").create_run("run", pushing.parameters(seed), **spec)

    def train(first: int, last: int) -> Arrays:
        for sequence in range(first, last + 1):
            gradients = run.gradients()
            for key, gradient in pushing.gradients(seed, 0, sequence).items():
                gradients[key][...] = gradient
            views = run.step(gradients, out=look(run), samples=2.0)
        return views

    same_bits(train(1, 10), replay(10, kernel_cache))
    restart(server)
    same_bits(train(11, 15), replay(15, kernel_cache))
    assert run.transport == "shared_memory"
    views = look(run)
    crash(server)
    same_bits(views, replay(15, kernel_cache))  # they were the server's, and are still here
    with pytest.raises(stepwell.RunRewound) as rewound:
        run.step(run.gradients())
    assert (rewound.value.acknowledged_version, rewound.value.version) == (15, 10)
    del rewound
    views = train(11, 20)
    same_bits(views, replay(20, kernel_cache))
    assert (run.transport, run.version) == ("shared_memory", 20)
    (path,) = sockets.iterdir()
    assert connections(path) == 2
    run.close()
    assert shared_by_this_process() != before
    del views
    gc.collect()
    assert shared_by_this_process() == before
    server.wait_for(lambda: connections(path) == 1, "hang up")


def test_a_server_that_is_killed_while_a_worker_trains(start: Start, connect: Connect, tmp_path: Path) -> None:
    """Wherever the kill meets it: whoever wants to go on goes on, and every element is the version."""
    server = start("--snapshot-seconds", 0.05, data_dir=tmp_path / "data")
    run = create_counter(connect(server, on_rewind="continue"), "run")
    stop, told = threading.Event(), []

    def train() -> Arrays:
        views = look(run)
        while not stop.is_set():
            views = run.step(ones(run), out=views)
            check_version(views, run.version)
            told.append((run.version, run.transport))
        return views

    def went_on(from_: int) -> bool:
        """Whether it went back, and has shared memory since; or is over."""
        later = told[from_:]
        back = any(after < before for (before, _), (after, _) in pairwise(told))
        return training.done() or (back and later[-1:] != [] and later[-1][1] == "shared_memory")

    with ThreadPoolExecutor(1) as threads:
        training = threads.submit(train)
        try:
            server.wait_for(lambda: len(told) > 30 or training.done(), "go on")
            server.wait_for_event("snapshot written", beyond(5))
            seen = len(told)
            crash(server)
            server.wait_for(lambda: went_on(seen), "share memory again")
        finally:
            stop.set()
        check_version(training.result(SECONDS_MAX), run.version)
    assert went_on(0)


def test_memory_is_shared_again_after_a_stop(start: Start, connect: Connect, tmp_path: Path) -> None:
    """A stop is a pause, and what came before it comes again."""
    server = start(data_dir=tmp_path / "data")
    run = create_counter(connect(server), "run")
    run.step(ones(run))
    restart(server)
    check_version(run.step(ones(run)), 2)
    check_version(run.step(ones(run)), 3)
    assert run.transport == "shared_memory"


def test_going_back_while_memory_is_shared(server: Server, connect: Connect, name: str) -> None:
    """A state that is set has memory of its own; who shared the one before shares this one."""
    run = create_counter(connect(server, transport="shared_memory"), name)
    another = connect(server, transport="shared_memory", on_rewind="continue").get_run(name)
    start = run.get_state()
    views, others = look(run), look(another)
    for _ in range(3):
        others = another.step(ones(another), out=others)
    run.set_state(start)
    check_version(views, 0)
    check_version(others, 3)
    check_version(run.step(ones(run), out=views), 1)
    assert run.transport == "shared_memory"
    check_version(another.step(ones(another), out=others), 1)
    assert another.last_answer == stepwell.Answer(stepwell.Outcome.REWOUND, 0) or another.version == 1
    check_version(another.step(ones(another)), 2)
    assert another.transport == "shared_memory"


class Listener(logging.Handler):
    """What the SDK says; each message goes to `hear`."""

    def __init__(self, hear: Callable[[str], object]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


@contextmanager
def listening(hear: Callable[[str], object]) -> Iterator[None]:
    logger, listener = logging.getLogger("stepwell"), Listener(hear)
    before = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(listener)


def test_a_server_that_hangs_as_it_hands_memory_over(start: Start, connect: Connect, name: str) -> None:
    """The worker does not wait for ever, and takes its parameters over the stream."""
    server = start()
    client = connect(server)
    run, another = create_counter(client, name), client.get_run(name)
    run.push(ones(run))
    assert run._worker.shared is not None
    run._worker.shared._socket.settimeout(0.2)
    told: list[str] = []

    def hang(requests: object) -> None:
        run._worker.after_answer = None
        server.process.suspend()

    def go_on(message: str) -> None:
        server.process.resume()
        told.append(message)

    # It hangs when its answer has come, and before the worker has what the answer names.
    run._worker.after_answer = hang
    with listening(go_on):
        check_version(run.step(run.gradients()), 2)
    assert len(told) == 1
    assert "over the stream: the server's vector could not be had (timed out)" in told[0]
    check_version(another.step(ONES), 3)
    check_version(run.step(ones(run), out=look(run)), 4)


def test_a_late_answer_is_not_the_next_ones(
    server: Server, sharer: stepwell.Client, name: str, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All versions have one size, so nothing else would tell them apart."""
    run = create_counter(sharer, name, {"w": np.zeros(100, np.float32)})
    run.gradients()
    layout = run._worker.layout
    assert layout is not None
    monkeypatch.setattr(_shared, "_SECONDS_MAX", 0.2)
    path = str(sockets.parent / "late.socket")
    size, heard = 448, threading.Event()
    with ExitStack() as closing, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        memory = SharedMemory(layout, (), data_pb2.ShareMemoryResponse(socket=path, token=bytes(16)))
        closing.callback(memory.close)
        connection = closing.enter_context(listener.accept()[0])
        vectors = [os.memfd_create(f"late-{number}") for number in range(2)]
        for number, vector in enumerate(vectors):
            closing.callback(os.close, vector)
            os.write(vector, np.full(size // 4, number, np.float32).tobytes())
        wanted = [[data_pb2.SharedVector(group=0, handle=handle, size_bytes=size)] for handle in (1, 2)]
        with pytest.raises(stepwell.SharedMemoryUnavailable, match=r"timed out.*expected.*share memory again"):
            memory.parameters(wanted[0])
        with suppress(BrokenPipeError):
            socket.send_fds(connection, [HANDLE.pack(size)], [vectors[0]])
        with pytest.raises(stepwell.SharedMemoryUnavailable, match="expected"):
            memory.parameters(wanted[1])
        assert not heard.is_set()


def test_parameters_of_a_run_that_went_back(start: Start, connect: Connect, tmp_path: Path) -> None:
    """As with pull: the older parameters, without an error."""
    server = start("--snapshot-seconds", 0, data_dir=tmp_path / "data")
    run = create_counter(connect(server, transport="shared_memory", on_rewind="continue"), "run")
    server.wait_for_event("snapshot written")  # of the run as it was created
    run.step(ones(run))
    crash(server)
    check_version(look(run), 0)


def test_descriptors_run_out(start: Start, connect: Connect, name: str, sockets: Path) -> None:
    """Each vector takes two of the server's: what is left decides who shares memory, never who trains."""
    groups = 20
    parameters = {f"p{number}": np.zeros(100 + number, np.float32) for number in range(groups)}
    server = start("--shared-memory-dir", sockets)
    process = server.process.pid
    settings: dict[str, Any] = {"optimizer": "sgd", "hyperparameters": {"lr": 1.0}}
    settings["groups"] = [{"name": f"g{number}", "parameters": [f"p{number}"]} for number in range(1, groups)]
    limit = resource.prlimit(process, resource.RLIMIT_NOFILE)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (500, limit[1]))
    connect(server).create_run(name, parameters, **settings)
    transports, version = [], 0
    runs = [connect(server, transport="shared_memory").get_run(name) for _ in range(6)]
    for run in runs:
        with suppress(stepwell.SharedMemoryUnavailable):
            run.gradients()
        transports.append(run.transport)
    assert "shared_memory" in transports
    assert "stream" in transports
    with pytest.raises(stepwell.SharedMemoryUnavailable, match=r"descriptors.*expected.*ulimit"):
        runs[transports.index("stream")].gradients()
    sharing = [run for run, transport in zip(runs, transports, strict=True) if transport == "shared_memory"]
    held: list[Any] = [look(run) for run in sharing]
    for _ in range(2):
        for number, run in enumerate(sharing):
            version += 1
            held[number] = run.step(ones(run), out=held[number])
            check_version(held[number], version)
    # No descriptor at all: a connection waits until there is one.
    (path,) = sockets.iterdir()
    resource.prlimit(process, resource.RLIMIT_NOFILE, (descriptors_of(process), limit[1]))
    with reach(str(path), bytes(16)) as waiting:
        server.wait_for_event("a connection for shared memory was not accepted")
        resource.prlimit(process, resource.RLIMIT_NOFILE, limit)
        assert waiting.recv(1) == b""
    check_version(runs[-1].step(ones(runs[-1])), version + 1)
    assert runs[-1].transport == "shared_memory"


# 6. A client that writes while the server reads.


def test_workers_that_write_all_the_time(start: Start, connect: Connect, name: str, kernel_cache: Path) -> None:
    """They spoil their own runs at most; the server, and others, do not notice."""
    server = start()
    client = connect(server, transport="shared_memory")
    parameters: Arrays = {"w": np.zeros((500, 300), np.float32), "b": np.zeros((), np.float32), "c": np.zeros(70)}
    spoiled = [
        client.create_run(f"{name}-{optimizer}", parameters, optimizer=optimizer, hyperparameters={"lr": 0.1})
        for optimizer in ("adam", "lamb")
    ]
    other: dict[str, Any] = {"optimizer": "adam", "hyperparameters": {"lr": 0.1}}
    run = client.create_run(name, parameters, **other)
    local = LocalRun(parameters, kernel_directory=kernel_cache, **other)
    places = [place.reshape(-1) for each in spoiled for place in each.gradients().values()]
    stop = threading.Event()

    def scribble() -> None:
        random = np.random.default_rng(1)
        while not stop.is_set():
            for place in places:
                some = random.integers(0, place.size, 1 + place.size // 50)
                place[some] = random.choice(np.array([1.0, -1.0, 1e15, np.nan, np.inf], place.dtype), some.size)
                place[some] = 0.5

    refused = 0
    random = np.random.default_rng(2)
    with ThreadPoolExecutor(1) as threads:
        scribbling = threads.submit(scribble)
        try:
            for _ in range(30):
                for each in spoiled:
                    try:
                        each.step(each.gradients())
                    except (stepwell.NonfiniteGradient, stepwell.InvalidValue):
                        refused += 1
                gradients = drawn(parameters, 0, skips=False)
                gradients["c"] = random.normal(size=70)
                same_bits(run.step(gradients), local.step(gradients))
        finally:
            stop.set()
        scribbling.result(SECONDS_MAX)
    assert sum(each.refresh().version for each in spoiled) == 30 * len(spoiled) - refused
    server.check_log()


# 7. Without it.


@pytest.fixture
def reasons() -> Iterator[list[str]]:
    """What the SDK has said."""
    messages: list[str] = []
    with listening(messages.append):
        yield messages


WIDE: Arrays = {"w": np.zeros((300, 300), np.float32), "b": np.zeros(7, np.float32)}
HALVES: list[Any] = [np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("half", HALVES, ids=["float16", "bfloat16"])
def test_16_bits_go_over_the_stream(server: Server, connect: Connect, name: str, reasons: list[str], half: Any) -> None:
    parameters = WIDE | {"h": np.zeros(100, half)}
    run = create_counter(connect(server), name, parameters)
    check_without(run, reasons, parameters, "16 bits")
    with pytest.raises(stepwell.SharedMemoryUnavailable, match=r"16 bits.*expected.*transport='auto'"):
        connect(server, transport="shared_memory").get_run(name).step(parameters)


def check_without(run: stepwell.Run, reasons: list[str], parameters: Arrays, why: str) -> None:
    """That a worker goes on over the stream, and says why, once."""
    gradients = run.gradients()
    assert run.gradients()["w"] is gradients["w"]
    views: Any = look(run)
    assert not views["w"].flags.writeable
    for version in range(1, 4):
        for gradient in gradients.values():
            gradient.fill(-1)
        views = run.step(gradients, out=views)
        check_version(views, version)
    assert views["w"].dtype == parameters["w"].dtype
    assert run.transport == "stream"
    assert [("share memory" in reason, why in reason) for reason in reasons] == [(True, True)]


def test_a_server_that_shares_none(start: Start, connect: Connect, name: str, reasons: list[str]) -> None:
    server = start("--no-shared-memory")
    check_without(create_counter(connect(server), name, WIDE), reasons, WIDE, "the server shares no memory")
    with pytest.raises(stepwell.SharedMemoryUnavailable, match=r"shares no memory.*expected.*transport='auto'"):
        connect(server, transport="shared_memory").get_run(name).gradients()
    assert mappings_of(server.process.pid) == 0


async def test_directories_that_cannot_be_had(tmp_path: Path, kernel_cache: Path) -> None:
    """The server goes without, and says why to whoever asks."""
    local = LocalRun({"w": np.zeros(3)}, hyperparameters={"lr": 1.0}, kernel_directory=kernel_cache)
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("not a directory")
    with ThreadPoolExecutor(1) as threads:
        hosted = HostedRun(local.run, Machine(local.memory, threads, Turns(2)))
        for folder, why in (
            ("open", "has mode 0755"),
            ("link", "is a symbolic link"),
            ("file", "File exists"),
            ("x" * 107, "longer than 107 bytes"),
        ):
            sharing = Sharing(local.memory, tmp_path / folder)
            sharing.open()
            with pytest.raises(SharedMemoryUnavailable, match=f"could not make its socket .*{why}.*, expected"):
                await sharing.share(hosted, ())
            await sharing.close()
    assert (tmp_path / "file").read_text() == "not a directory"


def test_a_socket_that_is_gone(alone: Server, connect: Connect, name: str, directory: Path, reasons: list[str]) -> None:
    """As where the server's files are not the worker's, in a container."""
    client = connect(alone)
    (path,) = directory.iterdir()
    path.rename(directory / "elsewhere")
    try:
        run = create_counter(client, name, WIDE)
        check_without(run, reasons, WIDE, "No such file")
    finally:
        (directory / "elsewhere").rename(path)
    run.close()
    client.delete_run(name)
    wait_until_free(alone, client)


def test_too_little_memory(start: Start, connect: Connect, name: str, reasons: list[str]) -> None:
    """For one more worker's vectors; there is enough for those that share already, and for the stream."""
    parameters = {"w": np.zeros(MEBIBYTE // 4, np.float32)}
    server = start("--max-memory", 6 * MEBIBYTE + (64 << 10))
    first = create_counter(connect(server, transport="shared_memory"), name, parameters)
    second = connect(server, transport="shared_memory").get_run(name)
    for run in (first, second):
        run.gradients()
    third = connect(server).get_run(name)
    views, others = look(first), look(second)
    check_without(third, reasons, parameters, "no memory is left for another worker's vectors")
    check_version(views, 0)
    check_version(first.step(ones(first), out=views), 4)
    check_version(others, 0)
    check_version(second.step(ones(second), out=others), 5)
    with pytest.raises(stepwell.SharedMemoryUnavailable, match=r"no memory is left.*expected.*--max-memory"):
        connect(server, transport="shared_memory").get_run(name).step(parameters)
    # When one leaves, there is room for another.
    second.close()
    fourth = connect(server, transport="shared_memory").get_run(name)

    def joins() -> bool:
        with suppress(stepwell.SharedMemoryUnavailable):
            fourth.gradients()
        return fourth.transport == "shared_memory"

    server.wait_for(joins, "have room again")
    check_version(fourth.step(ones(fourth)), 6)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.1.2.3:1", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("unix:/run/stepwell.sock", True),
        ("10.0.0.1:50051", False),
        ("12.7.0.1:50051", False),
        ("[2001:db8::1]:50051", False),
        ("localhost.example.org:50051", False),
        ("trainer-127.0.0.1:50051", False),
    ],
)
def test_which_servers_are_on_this_machine(address: str, local: bool) -> None:
    assert Settings(address=address).local is local


def test_no_such_transport(server: Server) -> None:
    with pytest.raises(stepwell.InvalidValue, match=r"transport 'pigeon'.*expected.*auto, shared_memory, stream"):
        stepwell.connect(server.address, transport="pigeon")  # type: ignore[arg-type]


# 8. Forks.

FORK = """
import os, sys
import numpy as np
import stepwell

def ones(run):
    gradients = run.gradients()
    for gradient in gradients.values():
        gradient.fill(-1)
    return gradients

def check(views, version):
    assert all((view == version).all() for view in views.values()), (version, views)

with stepwell.connect(sys.argv[1], worker="trainer", transport="shared_memory") as client:
    run = client.create_run(sys.argv[2], {"w": np.zeros(1000), "b": np.zeros(3, np.float32)},
                            optimizer="sgd", hyperparameters={"lr": 1.0})
    views = run.step(ones(run), out=run.parameters())
    for number, ending in enumerate((os._exit, sys.exit)):
        mine = run.gradients()
        pid = os.fork()
        if pid == 0:
            try:
                run.step(mine, out=views)
            except stepwell.ServerUnavailable:
                ending(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        check(views, number + 1)  # nobody has touched the parent's version
        assert all(run.gradients()[name] is mine[name] for name in mine)
        views = run.step(ones(run), out=views)
        check(views, number + 2)
    assert (run.worker, run.transport) == ("trainer", "shared_memory")

    # A child that never asks for anything, as those that load data, keeps nothing of the parent's.
    waiting, going = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(going)
        os.read(waiting, 1)
        os._exit(0)
    os.close(waiting)
    run.close()
    client.delete_run(sys.argv[2])
    print("closed", flush=True)
    sys.stdin.readline()
    os.close(going)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_forks(alone: Server, directory: Path, name: str) -> None:
    (path,) = directory.iterdir()
    command = [sys.executable, "-c", FORK, alone.address, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "closed\n"
            alone.wait_for(lambda: connections(path) == 1, "hang up")
            alone.wait_for(lambda: mappings_of(alone.process.pid) == 0, "unmap it all")
            process.communicate("go\n", SECONDS_MAX)
            assert process.returncode == 0
        finally:
            process.kill()


# 9. With await.


async def test_with_await(server: Server, name: str, kernel_cache: Path) -> None:
    spec: dict[str, Any] = {"optimizer": "adam", "flavor": "torch", "hyperparameters": {"lr": 0.1}}
    start = {key: value for key, value in MIXED.items() if not key.startswith("frozen.")}
    local = LocalRun(start, kernel_directory=kernel_cache, **spec)
    async with aio.connect(server.address) as client:
        run = await client.create_run(name, start, **spec)
        gradients = await run.gradients()
        views: Arrays = await run.parameters()
        same_bits(views, start)
        for step in range(6):
            given = drawn(start, step, skips=step > 2)
            if step % 2:
                for key, gradient in given.items():
                    if gradient is not None:
                        gradients[key][...] = gradient
                own = {key: None if given[key] is None else gradients[key] for key in given}
                views = await run.step(own, out=views)
                same_bits(views, local.step(given))
            else:
                same_bits(await run.step(given), local.step(given))
        assert (run.transport, run.version) == ("shared_memory", 6)
        with pytest.raises(stepwell.NonfiniteGradient, match=r"'body.bias'"):
            await run.push(
                {key: np.full_like(value, np.nan if key == "body.bias" else 0) for key, value in start.items()}
            )
        pulled = await run.pull(out=views)
        assert pulled is not None
        same_bits(pulled, local.parameters())
        # Steps at once follow one another.
        await asyncio.gather(*(run.step(drawn(start, 0, False), out=views) for _ in range(5)))
        assert run.version == 11
        await run.close()


async def test_a_cancelled_step_writes_no_more(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was about to copy must not come to lie over the next gradients."""
    filling, going = threading.Event(), threading.Event()
    fill = SharedMemory.fill

    def slow(self: SharedMemory, gradients: Any) -> None:
        filling.set()
        assert going.wait(SECONDS_MAX)
        fill(self, gradients)

    async with aio.connect(server.address, transport="shared_memory") as client:
        run = await client.create_run(name, COUNTING, optimizer="sgd", hyperparameters={"lr": 1.0})
        gradients = await run.gradients()
        monkeypatch.setattr(SharedMemory, "fill", slow)
        step = asyncio.create_task(run.push({key: np.full_like(each, 5) for key, each in ONES.items()}))
        assert await asyncio.to_thread(filling.wait, SECONDS_MAX)
        step.cancel()
        try:
            for _ in range(100):
                await asyncio.sleep(0)
            early = step.done()
        finally:
            going.set()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert not early, "the caller may write now, and so may the step"
        for gradient in gradients.values():
            gradient.fill(-1)
        check_version(await run.step(gradients), 1)
        await run.close()


# 10. The socket's file.


def test_the_sockets_file(start: Start, connect: Connect, sockets: Path) -> None:
    directory = sockets / "private"
    server = start("--shared-memory-dir", directory)
    (first,) = directory.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(first.stat().st_mode)
    server.kill()
    assert [*directory.iterdir()] == [first]
    server.start()
    (second,) = directory.iterdir()
    assert second != first
    # A server that lives is not taken for a dead one.
    other = start("--shared-memory-dir", directory)
    assert len([*directory.iterdir()]) == 2
    assert second.exists()
    for one in (server, other):
        run = create_counter(connect(one, transport="shared_memory"), "run", WIDE)
        check_version(run.step(ones(run)), 1)
    other.stop()
    assert [*directory.iterdir()] == [second]
    server.stop()
    assert [*directory.iterdir()] == []


def test_sockets_of_servers_that_start_at_once(
    sockets: Path, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for the dead between another one's bind and its listen finds nothing to remove."""
    local = LocalRun({"w": np.zeros(3)}, hyperparameters={"lr": 1.0}, kernel_directory=kernel_cache)
    listen = socket.socket.listen

    def meddled(self: socket.socket, *args: Any) -> None:
        sharing_module._remove_dead(sockets)
        listen(self, *args)

    monkeypatch.setattr(socket.socket, "listen", meddled)

    async def open_one() -> None:
        sharing = Sharing(local.memory, sockets)
        sharing.open()
        try:
            (path,) = sockets.iterdir()
            reach(str(path)).close()
        finally:
            await sharing.close()

    asyncio.run(open_one())
    assert [*sockets.iterdir()] == []


# 11. What a worker cannot do.


def test_views_are_read_only(sharer: stepwell.Client, name: str) -> None:
    run = create_counter(sharer, name)
    views: Any = look(run)
    for _ in range(2):
        for key, view in views.items():
            with pytest.raises(ValueError, match="read-only"):
                view[...] = 1
            if view.size:
                with pytest.raises(ValueError, match="WRITEABLE"):
                    view.flags.writeable = True
                with pytest.raises(ValueError, match="WRITEABLE"):
                    np.asarray(view).flags.writeable = True
            assert view.shape == COUNTING[key].shape
        check_version(views, run.version)
        views = run.step(ones(run), out=views)


def test_the_servers_parameters_cannot_be_written(server: Server, client: stepwell.Client, name: str) -> None:
    """Not by their descriptors, however they are used; nor can anybody change a size under the server."""
    create_counter(client, name)
    library = ctypes.CDLL(None, use_errno=True)
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with raw_sharer(server, name) as sharer:
        for vector in (*sharer.response.vectors, *sharer.pull().vectors):
            writable = vector in sharer.response.vectors
            size, (descriptor,) = sharer.fetch(vector.handle)
            try:
                for length in (0, size - 1, size + 1, 1 << 30):
                    with pytest.raises(PermissionError):
                        os.ftruncate(descriptor, length)
                with pytest.raises(PermissionError):
                    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
                if writable:
                    continue
                for protection in (mmap.PROT_WRITE, READ_WRITE):
                    with pytest.raises(PermissionError):
                        mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection)
                with pytest.raises(PermissionError):
                    os.pwrite(descriptor, b"x", 0)
                # A hole would read as zeros: mode is FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
                assert library.fallocate(descriptor, 3, ctypes.c_long(0), ctypes.c_long(4096)) == -1
                flat = np.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8)
                assert library.mprotect(flat.ctypes.data, size, READ_WRITE) == -1
                # A mapping of one's own is one's own.
                private = np.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, READ_WRITE), np.uint8)
                private[:] = 0xFF
                assert not flat.any()
            finally:
                os.close(descriptor)
        for place in sharer.own.values():
            place[:] = -1
        assert sharer.push().committed_version == 1
    check_version(pull(client.get_run(name)), 1)
