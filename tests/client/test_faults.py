import asyncio
import subprocess
import sys
import threading
import time
from concurrent import futures
from dataclasses import replace

import grpc
import numpy as np
import pytest

import stepwell
import stepwell.aio
from stepwell._exchange import Exchange
from stepwell.v1 import data_pb2, data_pb2_grpc, errors_pb2
from tests.client.fake_server import Cut, FakeRun, FakeServer, Refused
from tests.client.proxy import Proxy

LARGE = 96 << 20  # bytes; many messages more than what queues, gRPC and the system take while nobody reads
SECONDS_MAX = 60


def gradients(value=1.0):
    return {"w": np.full(4, value), "b": np.full((2, 2), value, np.float32)}


def start_values():
    return {"w": np.zeros(4), "b": np.zeros((2, 2), np.float32)}


def headers(server):
    return [request.stage.header for request in server.requests if request.stage.HasField("header")]


def fail(exchange, reason):
    return [data_pb2.WorkResponse(exchange=exchange, error=errors_pb2.Error(reason=reason, message="by the test"))]


def word(request):
    return data_pb2.WorkResponse(exchange=request.exchange)


@pytest.fixture
def run(connect):
    return connect().create_run("m", start_values(), optimizer="sgd", hyperparameters={"lr": 1.0})


@pytest.fixture
def release():
    """An event on which the fake server may wait; set at the latest when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def unresponsive(release):
    def action(_request):
        release.wait(SECONDS_MAX)
        return []

    return action


def once(action):
    """An intercept that acts on the first request only."""
    left = [action]
    return lambda request: left.pop()(request) if left else None


def cut(code=grpc.StatusCode.UNAVAILABLE):
    def action(_request):
        raise Cut(code)

    return action


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_cut_before_the_commit(run, server, code):
    server.intercept = once(cut(code))
    np.testing.assert_array_equal(run.step(gradients())["w"], -np.ones(4))
    first, second = headers(server)
    assert first == second, "a retry repeats the identity to the letter"
    assert server.runs["m"].version == 1
    assert len(server.joins) == 1


@pytest.mark.parametrize("lost", [1, 3])
def test_a_cut_after_the_commit_gets_the_stored_answer(run, server, lost):
    server.answers_lost = lost
    assert run.push(gradients()) == 1
    assert server.runs["m"].version == 1
    assert server.runs["m"].duplicates == lost
    assert len({header.identity.fingerprint for header in headers(server)}) == 1
    server.answers_lost = lost
    np.testing.assert_array_equal(run.step(gradients())["w"], np.full(4, -2.0))
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.COMMITTED, 2)


def test_a_step_that_has_its_answer_only_fetches(run, server):
    def answer_and_cut(request):
        list(server.exchanges[-1].take(request))
        answer = data_pb2.Answer(outcome=data_pb2.OUTCOME_COMMITTED, committed_version=1)
        yield data_pb2.WorkResponse(exchange=request.exchange, answer=answer)
        raise Cut

    server.intercept = once(answer_and_cut)
    assert run.step(gradients()) is not None
    assert len(headers(server)) == 1
    assert [request.HasField("selection") for request in server.requests] == [True, True]


def test_a_step_whose_commit_is_lost_after_its_answer(run, server):
    def answer_and_crash(request):
        list(server.exchanges[-1].take(request))
        answer = data_pb2.Answer(outcome=data_pb2.OUTCOME_COMMITTED, committed_version=1)
        yield data_pb2.WorkResponse(exchange=request.exchange, answer=answer)
        server.runs["m"].rewind(0)
        raise Cut

    server.intercept = once(answer_and_crash)
    with pytest.raises(stepwell.RunRewound) as raised:
        run.step(gradients())
    assert (raised.value.acknowledged_version, raised.value.version) == (1, 0)
    assert run.step(gradients()) is not None
    assert run.version == 1


def test_an_answer_on_the_way_ends_the_upload(connect, server, release, monkeypatch):
    run = connect().create_run("large", {"w": np.zeros(LARGE // 4, np.float32)}, optimizer="sgd")
    grads = {"w": np.ones(LARGE // 4, np.float32)}
    server.answers_lost = 1
    messages_before = []

    def stall(request):
        # From the retry's second message on, read nothing until the client has taken the early answer.
        if len(headers(server)) == 2 and not request.stage.HasField("header"):
            messages_before.append(request)
            assert release.wait(SECONDS_MAX)

    take = Exchange.take

    def noting(self, response):
        take(self, response)
        if self.answer is not None:
            release.set()

    monkeypatch.setattr(Exchange, "take", noting)
    server.intercept = stall
    assert run.push(grads) == 1
    whole = LARGE >> 20
    assert len(server.requests) < 2 * whole
    assert server.requests[-1].last
    assert server.runs["large"].version == 1
    assert run.push(grads) == 2


def test_an_error_on_the_way_ends_the_upload(connect, server, release):
    reports = []
    run = connect(progress=lambda done, total: reports.append(done)).create_run(
        "large", {"w": np.zeros(LARGE // 4, np.float32)}, optimizer="sgd"
    )
    reports.clear()

    def refuse_and_stop_reading(request):
        if request.stage.HasField("header"):
            server.exchanges[-1].over = True
            return fail(request.exchange, errors_pb2.ERROR_REASON_MEMORY_EXHAUSTED)
        assert release.wait(SECONDS_MAX)
        return []

    server.intercept = refuse_and_stop_reading
    with pytest.raises(stepwell.MemoryExhausted, match="by the test"):
        run.push({"w": np.ones(LARGE // 4, np.float32)})
    # What has been taken from the arrays is bounded: a queue, one message in grpc, and the transport's window.
    assert max(reports) <= LARGE // 2
    server.intercept = None
    release.set()
    assert run.push({"w": np.ones(LARGE // 4, np.float32)}) == 1
    assert server.streams == 1


def test_an_error_that_ends_the_call_ends_the_upload(connect, server):
    """The error is in the call's status, and later writes fail: it must not get lost (grpc/grpc#36066)."""
    values = {"w": np.zeros(LARGE // 4, np.float32)}
    reasons = {
        errors_pb2.ERROR_REASON_MEMORY_EXHAUSTED: stepwell.MemoryExhausted,
        errors_pb2.ERROR_REASON_LIMIT_EXCEEDED: stepwell.LimitExceeded,
        errors_pb2.ERROR_REASON_INTERNAL: stepwell.Internal,
    }
    for reason, error in reasons.items():
        server.refuse_values = Refused(reason, "by the test")
        with pytest.raises(error, match="by the test"):
            connect().create_run("large", values, optimizer="sgd")
    assert server.calls.count("CreateRun") == len(reasons)


def test_word_while_the_server_does_not_read(connect, server, release, monkeypatch):
    """As when it waits for memory: the upload is stuck, but word comes and is heard."""
    run = connect().create_run("large", {"w": np.zeros(LARGE // 4, np.float32)}, optimizer="sgd")
    words = 8
    heard = []
    take = Exchange.take

    def noting(self, response):
        take(self, response)
        heard.append(response)
        if len(heard) == words:
            release.set()

    def busy(request):
        server.intercept = None
        for _ in range(words):
            yield word(request)
        assert release.wait(SECONDS_MAX)
        yield from server.exchanges[-1].take(request)

    monkeypatch.setattr(Exchange, "take", noting)
    server.intercept = busy
    assert run.push({"w": np.ones(LARGE // 4, np.float32)}) == 1
    assert len(headers(server)) == 1


def test_silence_makes_a_new_connection(connect, server, release):
    run = connect(silence_seconds=0.3).create_run("m", start_values(), optimizer="sgd")
    server.intercept = once(unresponsive(release))
    assert run.push(gradients()) == 1
    first, *others = headers(server)
    assert others
    assert all(other == first for other in others)


def test_silence_runs_out_of_patience(connect, server, release):
    run = connect().create_run("m", start_values(), optimizer="sgd")
    assert run.push(gradients()) == 1
    settings = run._worker._settings
    run._worker._settings = replace(settings, silence_seconds=0.5, patience_seconds=1.0)  # while nothing comes
    server.intercept = unresponsive(release)
    with pytest.raises(stepwell.TimedOut, match="no word") as raised:
        run.push(gradients())
    assert isinstance(raised.value, TimeoutError)
    run._worker._settings = settings
    server.intercept = None
    assert run.push(gradients()) == 2
    silent, last = headers(server)[1].identity, headers(server)[-1].identity
    assert last.epoch > silent.epoch, "the fate of the one before was not known, so a new epoch fences it"


def test_timeout_ends_a_wait_that_has_word(run, server):
    def busy(request):
        while server.intercept is not None:
            yield word(request)
            time.sleep(0.05)

    server.intercept = busy
    with pytest.raises(stepwell.TimedOut, match="timeout="):
        run.push(gradients(), timeout=0.3)
    server.intercept = None
    assert run.push(gradients()) == 1


def test_nobody_there(connect, server):
    server.stop()
    client = connect(patience_seconds=0.3)
    for call in (client.ping, lambda: client.create_run("m", start_values(), optimizer="sgd")):
        with pytest.raises(stepwell.ServerUnavailable, match="see that the server runs") as raised:
            call()
        assert isinstance(raised.value, ConnectionError)


def test_a_server_that_dies_for_good(connect, server):
    """Every call on its run says so after the stated patience, and leaving it does not hang."""
    client = connect(patience_seconds=0.3)
    run = client.create_run("m", start_values(), optimizer="sgd")
    assert run.push(gradients()) == 1
    server.stop()
    for call in (lambda: run.step(gradients()), run.pull, lambda: run.report({"loss": 1.0}), run.get_state):
        with pytest.raises(stepwell.ServerUnavailable, match=f"run 'm': .*{server.address} for 0.3 s") as raised:
            call()
        assert raised.value.details == {"address": server.address, "patience_seconds": "0.3"}
    run.close()
    client.close()


def test_a_server_that_comes_back_is_a_pause(run, server):
    assert run.push(gradients()) == 1
    server.stop()
    again = FakeServer(server.runs, listen=server.address)
    timer = threading.Timer(0.2, again.__enter__)
    timer.start()
    try:
        assert run.push(gradients()) == 2
        assert headers(again)[0].identity.epoch == 1
        assert not again.joins
    finally:
        timer.join()
        again.stop()


def test_a_stopping_server_is_a_pause(run, server):
    server.intercept = once(lambda request: fail(request.exchange, errors_pb2.ERROR_REASON_SERVER_STOPPING))
    assert run.push(gradients()) == 1
    server.refuse["GetRun"] = [Refused(errors_pb2.ERROR_REASON_SERVER_STOPPING)]
    server.refuse["UpdateRun"] = [Refused(errors_pb2.ERROR_REASON_SERVER_STOPPING)]
    run.refresh()
    run.change(hyperparameters={"lr": 0.5})
    assert server.calls.count("UpdateRun") == 2


def test_what_may_have_been_done_is_not_done_twice(connect, run, server):
    state = run.get_state()
    for method, call in {
        "UpdateRun": lambda: run.change(hyperparameters={"lr": 0.5}),
        "SaveCheckpoint": run.save_checkpoint,
        "RestoreCheckpoint": lambda: run.restore_checkpoint("x"),
        "SetState": lambda: run.set_state(state),
        "DeleteRun": lambda: connect().delete_run("m"),
    }.items():
        server.refuse[method] = [Cut()]
        with pytest.raises(stepwell.ServerUnavailable, match="may have been done or not"):
            call()
        assert server.calls.count(method) == 1
    for method, call in {
        "GetRun": run.refresh,
        "ListCheckpoints": run.list_checkpoints,
        "GetState": run.get_state,
        "CreateRun": lambda: connect().create_run("m", start_values(), optimizer="sgd"),
        "Join": lambda: connect().create_run("m", start_values(), optimizer="sgd"),
    }.items():
        before = server.calls.count(method)
        server.refuse[method] = [Cut()]
        call()
        assert server.calls.count(method) == before + 2


def test_a_slow_call_lives_while_the_server_does(connect, server):
    run = connect(silence_seconds=2.0).create_run("m", start_values(), optimizer="sgd")
    pinged = threading.Event()

    def slow():
        assert pinged.wait(SECONDS_MAX)

    server.hold["SaveCheckpoint"] = slow

    def count_pings():
        if server.calls.count("GetServer") >= 2:
            pinged.set()

    server.hold["GetServer"] = count_pings
    assert run.save_checkpoint().name == "version-0"
    assert server.calls.count("SaveCheckpoint") == 1


def test_a_rewind_is_raised_once(run, server, connect):
    for _ in range(3):
        run.push(gradients())
    server.runs["m"].rewind(1)
    with pytest.raises(stepwell.RunRewound) as raised:
        run.step(gradients(7.0))
    assert (raised.value.acknowledged_version, raised.value.version) == (3, 1)
    assert run.version == 1
    assert run.step(gradients()) is not None
    assert run.version == 2
    last = headers(server)[-1].identity
    assert (last.generation, last.epoch, last.sequence) == (1, 1, 1)
    server.runs["m"].rewind(2)
    with pytest.raises(stepwell.RunRewound):
        run.step(gradients())
    server.runs["m"].rewind(2)
    with pytest.raises(stepwell.RunRewound):
        run.step(gradients(7.0))
    assert server.runs["m"].version == 2


def test_a_rewind_can_be_gone_on_from(connect, server):
    run = connect(on_rewind="continue").create_run("m", start_values(), optimizer="sgd", hyperparameters={"lr": 1.0})
    run.push(gradients())
    present = run.step(gradients())
    server.runs["m"].rewind(1)
    stepped = run.step(gradients(7.0))
    np.testing.assert_array_equal(stepped["w"], present["w"])
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.REWOUND, 1)
    assert run.push(gradients()) == 2
    server.runs["m"].rewind(0)
    assert run.push(gradients(7.0)) == 0
    server.runs["m"].rewind(0)
    assert run.push(gradients()) == 0, "a rewind to the same version drops the update, too"


def test_a_reader_hears_of_a_rewind(connect, run, server):
    run.push(gradients())
    reader = connect().get_run("m")
    careless = connect(on_rewind="continue").get_run("m")
    reader.pull()
    careless.pull()
    server.runs["m"].rewind(0)
    with pytest.raises(stepwell.RunRewound) as raised:
        reader.pull(if_newer_than=reader.version)
    assert (raised.value.acknowledged_version, raised.value.version) == (1, 0)
    assert reader.pull() is not None
    assert careless.pull(if_newer_than=careless.version) is not None
    assert careless.version == 0


def test_joining_late_on_an_older_run_is_a_rewind(connect, run, server):
    run.push(gradients())
    late = connect().get_run("m")
    late.pull()
    server.runs["m"].rewind(0)
    with pytest.raises(stepwell.RunRewound):
        late.push(gradients())
    assert late.push(gradients()) == 1


def test_a_fenced_worker_stays_out(connect, server):
    first = connect(worker="same").create_run("m", start_values(), optimizer="sgd")
    first.push(gradients())
    second = connect(worker="same").get_run("m")
    second.push(gradients())
    for _ in range(2):
        with pytest.raises(stepwell.WorkerFenced):
            first.push(gradients())
    assert len(server.joins) == 2
    assert second.push(gradients()) == 3


def test_a_replaced_run(connect, run, server):
    run.push(gradients())
    server.runs["m"] = FakeRun("m", server.runs["m"].spec)
    with pytest.raises(stepwell.RunReplaced):
        run.push(gradients())
    with pytest.raises(stepwell.RunReplaced):
        run.pull()
    with pytest.raises(stepwell.RunReplaced):
        run.refresh()
    assert connect().get_run("m").push(gradients()) == 1


@pytest.mark.parametrize(
    "reason",
    [
        value
        for name, value in errors_pb2.ErrorReason.items()
        if name not in ("ERROR_REASON_UNSPECIFIED", "ERROR_REASON_SERVER_STOPPING", "ERROR_REASON_UNKNOWN_WORKER")
    ],
)
def test_every_reason_is_raised_as_its_class(run, server, reason):
    name = errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    server.intercept = once(lambda request: fail(request.exchange, reason))
    with pytest.raises(stepwell.StepwellError, match="by the test") as raised:
        run.push(gradients())
    assert type(raised.value).__name__.upper() == name.replace("_", "")
    assert raised.value.reason == name
    server.refuse["GetRun"] = [Refused(reason, "by the test", fact=3)]
    with pytest.raises(type(raised.value), match="by the test") as raised:
        run.refresh()
    assert raised.value.details == {"fact": "3"}


def test_whoever_is_not_live_any_more_joins_again_and_sends_again(run, server):
    run.push(gradients())
    epochs = len(server.joins)
    server.intercept = once(lambda request: fail(request.exchange, errors_pb2.ERROR_REASON_UNKNOWN_WORKER))
    assert run.push(gradients()) == 2
    assert len(server.joins) == epochs + 1
    server.refuse["GetRun"] = [Refused(errors_pb2.ERROR_REASON_UNKNOWN_WORKER, "by the test")]
    with pytest.raises(stepwell.UnknownWorker, match="by the test"):
        run.refresh()


def test_a_reason_of_a_newer_server(run, server):
    server.intercept = once(lambda request: fail(request.exchange, 99))
    with pytest.raises(stepwell.StepwellError, match="by the test") as raised:
        run.push(gradients())
    assert type(raised.value) is stepwell.StepwellError


def test_what_is_no_stepwell_server(connect):
    other = grpc.server(futures.ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with pytest.raises(stepwell.ContractMismatch):
        connect(f"127.0.0.1:{port}").ping()
    other.stop(None).wait()


def test_hooks_see_what_is_sent(run, server):
    """What the exactly-once tests do: send every update again, at once and after its answer."""
    channel = grpc.insecure_channel(server.address)
    stub = data_pb2_grpc.DataServiceStub(channel)
    answers = []

    def again(messages):
        responses = list(stub.Work(iter(messages)))
        answers.append(next(response.answer.committed_version for response in responses if response.HasField("answer")))

    run._worker.before_answer = run._worker.after_answer = again
    for version in (1, 2, 3):
        assert run.step(gradients()) is not None
        assert run.version == version
    assert answers == [1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(run.pull()["w"], np.full(4, -3.0))
    channel.close()


class Stop(BaseException):
    """Like a KeyboardInterrupt."""


def test_an_interrupted_update_is_fenced(run, server):
    def stop(_messages):
        raise Stop

    run._worker.before_answer = stop
    with pytest.raises(Stop):
        run.push(gradients())
    run._worker.before_answer = None
    version = run.push(gradients())
    assert version == server.runs["m"].version
    assert headers(server)[-1].identity.epoch == 2


async def test_a_cancelled_await(server, release):
    async with stepwell.aio.connect(server.address) as client:
        run = await client.create_run("m", start_values(), optimizer="sgd")
        arrived = threading.Event()

        def hold(request):
            arrived.set()
            release.wait(SECONDS_MAX)
            raise Cut

        server.intercept = once(hold)
        task = asyncio.create_task(run.push(gradients()))
        await asyncio.to_thread(arrived.wait, SECONDS_MAX)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await run.push(gradients()) == 1


async def test_awaiting_does_not_block_the_loop(server, release):
    async with await stepwell.aio.connect(server.address) as client:
        one = await client.create_run("one", start_values(), optimizer="sgd")
        two = await client.create_run("two", start_values(), optimizer="sgd")
        server.intercept = once(lambda request: release.wait(SECONDS_MAX) and None)
        waiting = asyncio.create_task(one.push(gradients()))
        while len(server.requests) < 1:
            await asyncio.sleep(0)
        assert await two.push(gradients()) == 1
        release.set()
        assert await waiting == 1


def test_threads_take_turns(server):
    with stepwell.connect(server.address) as client, client.create_run("m", start_values(), optimizer="sgd") as run:
        versions: list[int] = []
        threads = [
            threading.Thread(target=lambda: versions.extend(run.push(gradients()) for _ in range(10))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(versions) == list(range(1, 41))


@pytest.mark.parametrize("seed", range(2))
def test_exactly_once_through_broken_connections(connect, server, seed):
    rng = np.random.default_rng(seed)
    shapes = {"w": (300, 1000), "b": (17,)}
    wanted = {name: np.zeros(shape) for name, shape in shapes.items()}
    with Proxy(server.port, seed, bytes_max=None) as proxy:
        run = connect(proxy.address).create_run("p", wanted, optimizer="sgd", hyperparameters={"lr": 0.5})
        proxy.bytes_max = 12_000_000
        run.close()
        run = connect(proxy.address).get_run("p")
        for version in range(1, 13):
            grads = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
            wanted = {name: value - 0.5 * grads[name] for name, value in wanted.items()}
            if version % 2:
                assert run.push(grads) == version
                got = run.pull()
            else:
                got = run.step(grads)
            for name, value in wanted.items():
                np.testing.assert_array_equal(got[name], value, err_msg=f"seed {seed}, version {version}")
        assert proxy.cuts > 0
    assert server.runs["p"].version == 12


def test_unix_sockets(connect, tmp_path):
    address = f"unix:{tmp_path}/s"
    with FakeServer(listen=address), connect(address) as client:
        assert client.create_run("m", start_values(), optimizer="sgd").push(gradients()) == 1


FORK = """
import os, sys
import numpy as np
import stepwell

with stepwell.connect(sys.argv[1], worker="trainer") as client:
    run = client.create_run("m", {"w": np.zeros(4)}, optimizer="sgd")
    grads = {"w": np.ones(4)}
    run.step(grads)
    for ending in (os._exit, sys.exit):
        pid = os.fork()
        if pid == 0:
            try:
                run.step(grads)
            except stepwell.ServerUnavailable:
                run.close()
                ending(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        run.step(grads)
    assert run.worker == "trainer"
    assert run.version == 3, run.version
    run.close()
"""


def test_a_forked_child_sends_nothing_and_leaves_nothing(server):
    subprocess.run([sys.executable, "-c", FORK, server.address], check=True, timeout=SECONDS_MAX)
    assert server.runs["m"].version == 3
    assert [join.worker for join in server.joins] == ["trainer"]
    assert server.calls.count("Leave") == 1, "the parent's own"
    assert {header.identity.epoch for header in headers(server)} == {1}


def test_two_event_loops(server):
    client = stepwell.aio.connect(server.address)

    async def create():
        run = await client.create_run("m", start_values(), optimizer="sgd")
        await run.push(gradients())
        return run

    async def go_on(run):
        version = await run.push(gradients())
        await run.close()
        await client.close()
        return version

    run = asyncio.run(create())
    assert asyncio.run(go_on(run)) == 2
    assert len(server.joins) == 1
