"""Whatever arrives on the port, the server goes on, and what half an update has taken is given back."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import stepwell
from stepwell.v1 import control_pb2, data_pb2, errors_pb2
from tests.end_to_end.proxy import Proxy
from tests.end_to_end.raw import Raw, RawWorker, Refusal, WorkStream, refusal, spec, stage
from tests.end_to_end.server import Server
from tests.end_to_end.states import same_state

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"

ELEMENTS = 1 << 20
PIECE = np.full(1 << 18, -1, "<f4").tobytes()

Begin = Callable[[RawWorker], Callable[[], object]]


def garbage() -> Iterator[bytes]:
    chance = random.Random(20240607)
    yield b""
    for size in (1, 24, 1000, 1 << 20):
        yield chance.randbytes(size)
    yield b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield b"POST /stepwell.v1.DataService/Push HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(32)  # a TLS client's hello
    for size in (3, 12, 23):
        yield PREFACE[:size]
    yield PREFACE
    yield PREFACE + SETTINGS
    yield PREFACE + SETTINGS + chance.randbytes(4096)
    yield PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(1000)  # a frame beyond any limit
    yield PREFACE + SETTINGS + b"\0\0\4\1\4\0\0\0\1" + chance.randbytes(4)  # headers that cannot be unpacked


def send(address: str, data: bytes, patient: bool) -> None:
    """Send and, if patient, take whatever comes until the server hangs up, for a while."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        if patient:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass


def test_garbage_bytes(server: Server, client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(3)}, optimizer="adam")
    run.push({"w": np.ones(3)})
    before = run.get_state()
    held = []
    for data in garbage():
        for patient in (False, True):
            send(server.address, data, patient)
        host, _, port = server.address.rpartition(":")
        held.append(socket.create_connection((host, int(port)), timeout=10))
        held[-1].sendall(data[: len(data) // 2])
    same_state(run.get_state(), before)
    assert run.push({"w": np.ones(3)}) == 2  # while half of each is still open
    for connection in held:
        connection.close()
    assert run.push({"w": np.ones(3)}) == 3
    assert client.ping().contract == "1.0"


def test_garbage_in_messages(server: Server, client: stepwell.Client, name: str) -> None:
    """Bytes that are no message of the contract, to every method."""
    run = client.create_run(name, {"w": np.zeros(3)}, optimizer="adam")
    before = run.get_state()
    chance = random.Random(20240608)
    methods = [
        (descriptor.full_name, method.name)
        for descriptor in (
            *control_pb2.DESCRIPTOR.services_by_name.values(),
            *data_pb2.DESCRIPTOR.services_by_name.values(),
        )
        for method in descriptor.methods
    ]
    assert len(methods) == 26
    with Raw(server.address) as raw:
        for service, method in [*methods, ("stepwell.v1.DataService", "Nothing"), ("nothing", "Push")]:
            bare: Any = raw.channel.stream_stream(f"/{service}/{method}")
            for data in (b"\xff" * 10, chance.randbytes(200), b"\x0a\xff\xff\xff\xff\x0f"):
                with pytest.raises(grpc.RpcError) as refused:
                    list(bare(iter([data]), timeout=30))
                failed: Any = refused.value
                # Single requests are read by gRPC, which has its own words; the messages of a stream are read by us.
                expected = {
                    grpc.StatusCode.UNKNOWN,
                    grpc.StatusCode.INTERNAL,
                    grpc.StatusCode.UNIMPLEMENTED,
                    grpc.StatusCode.INVALID_ARGUMENT,
                }
                assert failed.code() in expected
    same_state(run.get_state(), before)
    assert run.push({"w": np.ones(3)}) == 1


@pytest.fixture(scope="module")
def tight(kernel_cache: Path) -> Iterator[Server]:
    """Memory for one run of 4 MiB and one staged update; whoever is silent for a second is dropped."""
    with Server(kernel_cache, "--max-memory", "9MiB", "--silence-seconds", "3", "--word-seconds", "0.2") as server:
        yield server


@pytest.fixture
def large(tight: Server) -> Iterator[tuple[Server, Raw]]:
    with Raw(tight.address) as raw:
        description = spec({"w": (ELEMENTS,)})
        description.hyperparameters["lr"].number = 1.0
        raw.create("large", description, [(0, at, bytes(1 << 20)) for at in range(0, 4 << 20, 1 << 20)])
        yield tight, raw
        raw.control_call("DeleteRun", control_pb2.DeleteRunRequest(run="large"))


def pieces(count: int = 4) -> list[tuple[int, int, bytes]]:
    return [(0, number << 20, PIECE) for number in range(count)]


def half_pushed(worker: RawWorker) -> Callable[[], object]:
    """Half an update by the call Push, which stays open."""
    ended = threading.Event()

    def requests() -> Iterator[data_pb2.PushRequest]:
        yield from worker.push_requests(worker.header(), pieces(2), commit=False)
        ended.wait(60)

    future = worker.raw.data.Push.future(requests(), timeout=30)

    def leave() -> None:
        ended.set()
        future.cancel()

    return leave


def half_on_a_stream(worker: RawWorker) -> Callable[[], object]:
    """Half an update on a worker's stream."""
    stream = WorkStream(worker.raw)
    stream.send(data_pb2.WorkRequest(stage=stage(pieces(2), worker.header())))
    return stream.cancel


def staged_on_a_stream(worker: RawWorker) -> Callable[[], object]:
    """A whole update in an exchange that only stages; the commit never comes."""
    stream = WorkStream(worker.raw)
    stream.exchange(
        [data_pb2.WorkRequest(stage=stage([], worker.header()))]
        + [data_pb2.WorkRequest(stage=stage([piece])) for piece in pieces()]
    )
    return stream.cancel


def half_created(worker: RawWorker) -> Callable[[], object]:
    """Half the values of another run, which takes what is left."""
    ended = threading.Event()

    def requests() -> Iterator[control_pb2.CreateRunRequest]:
        yield control_pb2.CreateRunRequest(run="half", spec=spec({"w": (ELEMENTS,)}), spec_complete=True)
        yield control_pb2.CreateRunRequest(values=stage(pieces(1)).ranges)
        ended.wait(60)

    responses = worker.raw.control.CreateRun(requests(), timeout=30)
    assert next(responses).creation == control_pb2.CREATION_SEND_VALUES

    def leave() -> None:
        ended.set()
        responses.cancel()

    return leave


HALVES = [half_pushed, half_on_a_stream, staged_on_a_stream, half_created]


@pytest.mark.parametrize("begin", HALVES)
@pytest.mark.parametrize("how", ["cancelled", "cut", "silent"])
def test_half_an_update(large: tuple[Server, Raw], begin: Begin, how: str) -> None:
    """It takes all the memory there is; when its sender is gone, or silent for too long, the next one gets it."""
    server, raw = large
    with Proxy(server.address) as proxy, Raw(proxy.address) as other:
        leave = begin(other.join("large", "half"))
        if how == "cancelled":
            leave()
        elif how == "cut":
            proxy.cut()
        worker = raw.join("large", "worker")
        assert worker.push(ranges=pieces()).committed_version == 1
        leave()
    got = raw.data_call("Pull", data_pb2.PullRequest(selection=data_pb2.Selection(run="large")))
    assert b"".join(part.data for response in got for part in response.ranges) == np.full(ELEMENTS, 1, "<f4").tobytes()


def test_an_exchange_without_a_number_is_refused(server: Server, client: stepwell.Client, name: str) -> None:
    """At once: who waits for its end must not wait for ever. The stream goes on."""
    run = client.create_run(name, {"w": np.zeros(3, np.float32)}, optimizer="sgd")
    with Raw(server.address) as raw:
        selection = data_pb2.Selection(run=name)
        requests = [data_pb2.WorkRequest(exchange=number, selection=selection, last=True) for number in (0, 1, 0, 2)]
        answers = [response for response in raw.data.Work(iter(requests), timeout=30) if response.done]
    assert [answer.exchange for answer in answers] == [0, 1, 0, 2]
    refused, answered = answers[::2], answers[1::2]
    assert all(answer.error.reason == errors_pb2.ERROR_REASON_MALFORMED_REQUEST for answer in refused)
    assert not any(answer.HasField("error") for answer in answered)
    assert run.version == 0


def test_silence_is_answered(large: tuple[Server, Raw]) -> None:
    """Whoever is dropped for its silence is told so, if it still listens."""
    _, raw = large
    worker = raw.join("large", "worker")
    stream = WorkStream(raw)
    stream.send(data_pb2.WorkRequest(stage=stage(pieces(2), worker.header())))
    with pytest.raises(grpc.RpcError) as dropped:
        list(stream.answers())
    found: Any = refusal(dropped.value)
    assert found.reason == "LIMIT_EXCEEDED"
    assert "3.0 seconds" in found.message
    stream.close()


def test_a_worker_may_be_silent_between_updates(large: tuple[Server, Raw]) -> None:
    """A trainer computes for longer than the server's silence: its stream stays."""
    _, raw = large
    worker = raw.join("large", "worker")
    worker.via = stream = WorkStream(raw)
    assert worker.push(ranges=pieces()).committed_version == 1
    # Somebody else is dropped meanwhile: more than the silence has passed.
    other = WorkStream(raw)
    other.send(data_pb2.WorkRequest(stage=stage(pieces(1), raw.join("large", "other").header())))
    with pytest.raises(grpc.RpcError):
        list(other.answers())
    assert worker.push(ranges=pieces()).committed_version == 2
    stream.close()
    other.close()


def test_waiting_for_memory_gives_word(large: tuple[Server, Raw]) -> None:
    """Who waits for memory hears that the server is there, and gets it in turn."""
    _, raw = large
    first, second = raw.join("large", "first"), raw.join("large", "second")
    blocking = WorkStream(raw)
    blocking.exchange([data_pb2.WorkRequest(stage=stage([], first.header()))])
    waiting = WorkStream(raw)
    waiting.send(data_pb2.WorkRequest(stage=stage([], second.header())))
    words = waiting.answers()
    for _ in range(2):
        word = next(words)
        assert not any((word.HasField("answer"), word.HasField("error"), word.done))
    for stream in (blocking, waiting):
        stream.cancel()
    assert raw.join("large", "third").push(ranges=pieces()).committed_version == 1


def test_memory_is_not_lost_bit_by_bit(large: tuple[Server, Raw]) -> None:
    """Hundreds of updates that end in every way an update can; then the memory is as free as before."""
    server, raw = large
    chance = random.Random(20240609)
    for number in range(200):
        worker = raw.join("large", f"worker-{number % 7}")
        leave = chance.choice([half_pushed, half_on_a_stream])(worker)
        leave()
        with contextlib.suppress(Refusal):
            worker.push(ranges=chance.choice([pieces(1), [], [(0, 2, PIECE)], [(0, 0, PIECE)] * 2]))
    assert raw.join("large", "last").push(ranges=pieces()).committed_version == 1
    assert server.process.memory_info().rss < 400 << 20


def test_many_open_streams_cost_no_threads(server: Server, client: stepwell.Client, name: str) -> None:
    client.create_run(name, {"w": np.zeros(3)}, optimizer="sgd")
    before = server.process.num_threads()
    with Raw(server.address) as raw:
        worker = raw.join(name, "worker")
        streams = [WorkStream(raw) for _ in range(100)]
        for stream in streams:
            worker.via = stream
            worker.push()
        assert server.process.num_threads() <= before + 4
        for stream in streams:
            stream.close()


def test_two_limits_of_a_client(server: Server, connect: Callable[..., stepwell.Client], name: str) -> None:
    """A connection that is dead without a word: the SDK makes another, and the update counts once."""
    with Proxy(server.address) as proxy:
        client = connect(proxy.address, silence_seconds=0.5)
        run = client.create_run(name, {"w": np.zeros(3)}, optimizer="sgd", hyperparameters={"lr": 1.0})
        assert run.push({"w": np.ones(3)}) == 1
        proxy.mute(answers_only=True)
        assert run.push({"w": np.ones(3)}) == 2
        proxy.mute()
        got = run.step({"w": np.ones(3)})
        np.testing.assert_array_equal(got["w"], -3.0)
        assert run.version == 3


def test_no_server(connect: Callable[..., stepwell.Client]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        port = taken.getsockname()[1]
        client = connect(f"127.0.0.1:{port}", patience_seconds=0.5)
        with pytest.raises(stepwell.ServerUnavailable, match="expected an answer; see that the server runs") as refused:
            client.ping()
    assert isinstance(refused.value, ConnectionError)
