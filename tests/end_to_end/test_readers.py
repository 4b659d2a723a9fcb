"""Whoever reads sees one version, whatever commits meanwhile."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepwell
from stepwell.v1 import control_pb2, data_pb2
from tests.end_to_end.raw import Raw, RawWorker, spec
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays

UPDATES, UPDATES_MAX = 1000, 100_000
WORKERS = 2

# After version v every element is v: sgd with lr 1 and gradients of -1. Three groups, two dtypes, a message and more.
SHAPES = {"body.0": (200, 1000), "head.0": (60, 1000), "body.1": (30, 1000), "scale": (), "leer": (0,)}
PARAMETERS: Arrays = {
    **{name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
    "double": np.zeros(40_000),
}
GRADIENTS: Arrays = {name: np.full_like(array, -1) for name, array in PARAMETERS.items()}


def create_counter(client: stepwell.Client, name: str) -> stepwell.Run:
    """A run whose every element is its version."""
    return client.create_run(
        name,
        PARAMETERS,
        optimizer="sgd",
        hyperparameters={"lr": 1.0},
        groups=[{"name": "head", "parameters": ["head.*"]}],
    )


def check_one_version(arrays: Arrays, version: int) -> None:
    for name, array in arrays.items():
        assert (array == version).all(), f"'{name}' has {np.unique(array)[:5]} at version {version}"


def test_pulls_during_a_thousand_updates(
    server: Server, connect: Callable[..., stepwell.Client], client: stepwell.Client, name: str
) -> None:
    create_counter(client, name)
    done = threading.Event()
    seen: list[set[int]] = []

    def met() -> bool:
        return len(seen) == len(readers) and all(len(versions) > 10 for versions in seen)

    def push(worker: int) -> int:
        run = connect(server, worker=f"worker-{worker}").get_run(name)
        # So many, and more where readers come late or are slow: they and commits are to meet.
        for number in range(UPDATES_MAX // WORKERS):
            if number >= UPDATES // WORKERS and met():
                return number
            if number % 10:
                run.push(GRADIENTS)
            else:
                check_one_version(run.step(GRADIENTS), run.version)
        raise AssertionError(f"the readers have seen {[len(versions) for versions in seen]} versions")

    def read(pull: Callable[[stepwell.Run], Any]) -> None:
        run = connect(server).get_run(name)
        versions: set[int] = set()
        seen.append(versions)
        while not done.is_set():
            arrays = pull(run)
            if arrays is not None:
                check_one_version(arrays, run.version)
                versions.add(run.version)

    kept = {name: np.empty_like(array) for name, array in PARAMETERS.items()}
    readers: list[Callable[[stepwell.Run], Any]] = [
        lambda run: run.pull(),
        lambda run: run.pull(names=["double", "body.1", "scale"]),
        lambda run: run.pull(if_newer_than=run.version, out=kept),
    ]
    with ThreadPoolExecutor(WORKERS + len(readers)) as threads:
        reading = [threads.submit(read, reader) for reader in readers]
        try:
            pushing = [threads.submit(push, worker) for worker in range(WORKERS)]
            updates = sum(each.result() for each in pushing)
        finally:
            done.set()
        for each in reading:
            each.result()
    final = client.get_run(name).pull()
    assert final is not None
    assert updates >= UPDATES
    check_one_version(final, updates)


def test_states_during_updates(
    server: Server, connect: Callable[..., stepwell.Client], client: stepwell.Client, name: str
) -> None:
    """get_state is of one version, too: with momentum 1 the slot is -version, the parameter 0 + 1 + ... + version."""
    parameters = {"a": np.zeros(100_000), "b": np.zeros(100_000), "c": np.zeros(50_000, np.float32)}
    gradients = {name: np.full_like(array, -1) for name, array in parameters.items()}
    reader = client.create_run(name, parameters, optimizer="sgd", hyperparameters={"lr": 1.0, "momentum": 1.0})
    done = threading.Event()
    versions: set[int] = set()

    def push() -> None:
        run = connect(server).get_run(name)
        try:
            for number in range(UPDATES_MAX):
                if number >= 100 and len(versions) > 3:
                    break
                run.push(gradients, samples=3)
        finally:
            done.set()

    with ThreadPoolExecutor(1) as threads:
        pushing = threads.submit(push)
        while not done.is_set():
            state = reader.get_state()
            version = state.version
            versions.add(version)
            assert state.samples == 3 * version
            assert state.steps == dict.fromkeys(parameters, version)
            for name in parameters:
                assert (state.slots[name]["momentum_buffer"] == -version).all()
                assert (state.parameters[name] == version * (version + 1) // 2).all()
        pushing.result()
    assert len(versions) > 3


@pytest.fixture(scope="module")
def tight(kernel_cache: Path) -> Iterator[Server]:
    """Memory for a run of 16 MiB, one update and one copy for a reader."""
    with Server(kernel_cache, "--max-memory", "49MiB") as server:
        yield server


@pytest.fixture
def slow(tight: Server) -> Iterator[tuple[Server, Raw, RawWorker]]:
    """A run beyond what a connection buffers, so that a reader can stop in the middle of it."""
    with Raw(tight.address) as raw:
        yield tight, raw, create_large(raw)
        raw.control_call("DeleteRun", control_pb2.DeleteRunRequest(run="slow"))


def create_large(raw: Raw, mebibytes: int = 16) -> RawWorker:
    description = spec({"w": (mebibytes << 18,)})
    description.hyperparameters["lr"].number = 1.0
    raw.create("slow", description, [(0, at << 20, bytes(1 << 20)) for at in range(mebibytes)])
    return raw.join("slow", "worker")


def pieces(worker: RawWorker) -> list[tuple[int, int, bytes]]:
    data = np.full(1 << 18, -1, "<f4").tobytes()
    return [(0, at, data) for at in range(0, worker.groups[0].packed_bytes, 1 << 20)]


def test_a_reader_that_takes_its_time(slow: tuple[Server, Raw, RawWorker]) -> None:
    """It holds its version while others commit, at the price of one copy however many commits there are."""
    server, _, worker = slow
    with Raw(server.address) as other:
        reading = other.data.Pull(data_pb2.PullRequest(selection=data_pb2.Selection(run="slow")), timeout=60)
        first = next(reading)
        assert first.parameters.version == 0
        versions = [worker.push(ranges=pieces(worker)).committed_version for _ in range(3)]
        assert versions == [1, 2, 3]
        received = [piece.data for response in (first, *reading) for piece in response.ranges]
    assert b"".join(received) == bytes(16 << 20)
    with Raw(server.address) as other:
        responses = other.data_call("Pull", data_pb2.PullRequest(selection=data_pb2.Selection(run="slow")))
    assert {response.parameters.version for response in responses if response.HasField("parameters")} == {3}
    assert b"".join(p.data for r in responses for p in r.ranges) == np.full(4 << 20, 3, "<f4").tobytes()


def test_a_commit_waits_for_memory_that_readers_hold(slow: tuple[Server, Raw, RawWorker]) -> None:
    """With two readers at two versions there is no third copy: the next commit waits for one of them, and then goes."""
    server, _, worker = slow
    request = data_pb2.PullRequest(selection=data_pb2.Selection(run="slow"))
    with Raw(server.address) as one, Raw(server.address) as two, ThreadPoolExecutor(1) as threads:
        first = one.data.Pull(request, timeout=60)
        assert next(first).parameters.version == 0
        assert worker.push(ranges=pieces(worker)).committed_version == 1
        second = two.data.Pull(request, timeout=60)
        assert next(second).parameters.version == 1
        pushing = threads.submit(worker.push, ranges=pieces(worker))
        assert {piece.data for response in first for piece in response.ranges} == {bytes(1 << 20)}
        assert pushing.result(60).committed_version == 2
        one_everywhere = np.full(1 << 18, 1, "<f4").tobytes()
        assert {piece.data for response in second for piece in response.ranges} == {one_everywhere}


def test_a_reader_that_goes_away_frees_its_version(slow: tuple[Server, Raw, RawWorker]) -> None:
    server, _, worker = slow
    request = data_pb2.PullRequest(selection=data_pb2.Selection(run="slow"))
    for version in range(1, 7):
        with Raw(server.address) as other:
            reading = other.data.Pull(request, timeout=60)
            assert next(reading).parameters.version == version - 1
            assert worker.push(ranges=pieces(worker)).committed_version == version
            if version % 2:
                reading.cancel()


def test_a_reader_that_stops_reading_is_dropped(start: Callable[..., Server]) -> None:
    """After the silence that the server allows it loses the call, and the memory that it held is free."""
    # A connection can hold 16 MiB on its way.
    server = start("--max-memory", "129MiB", "--silence-seconds", "3")
    with Raw(server.address) as raw, Raw(server.address) as other:
        worker = create_large(raw, 64)
        reading = other.data.Pull(data_pb2.PullRequest(selection=data_pb2.Selection(run="slow")), timeout=60)
        assert next(reading).parameters.version == 0
        # There is no memory for a copy: this waits until the reader is dropped.
        assert worker.push(ranges=pieces(worker)).committed_version == 1
        with pytest.raises(Exception, match="did not take what it asked for"):
            list(reading)


def test_reading_some_and_only_news(client: stepwell.Client, name: str) -> None:
    run = create_counter(client, name)
    assert run.pull(if_newer_than=0) is None
    run.push(GRADIENTS)
    got = run.pull(names=["scale", "head.0"], if_newer_than=0)
    assert got is not None
    assert list(got) == ["scale", "head.0"]
    check_one_version(got, 1)
    assert run.pull(if_newer_than=1) is None
    assert run.pull(if_newer_than=2**63) is None
    with pytest.raises(stepwell.UnknownParameter, match=r"'headd.0'.*expected.*choose"):
        run.pull(names=["headd.0"])
    assert run.pull(names=["leer"]).keys() == {"leer"}  # type: ignore[union-attr]


def test_what_is_returned_belongs_to_the_caller(client: stepwell.Client, name: str) -> None:
    run = create_counter(client, name)
    first = run.step(GRADIENTS)
    second = run.step(GRADIENTS)
    check_one_version(first, 1)
    check_one_version(second, 2)
    second["body.0"][:] = -7
    third = run.pull()
    assert third is not None
    check_one_version(third, 2)
