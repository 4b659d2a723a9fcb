"""What a worker sees when the server is stopped, and when it is killed."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepwell
from tests.core.local import LocalRun
from tests.end_to_end.proxy import Proxy
from tests.end_to_end.pushing import gradients, parameters
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits, same_state

SEED = 20240607
SPEC: dict[str, Any] = {
    "optimizer": "adam",
    "flavor": "torch",
    "hyperparameters": {"lr": 0.05, "amsgrad": True},
    "schedules": {"lr": {"name": "cosine", "t_max": 300, "eta_min": 1e-4}},
}

Start = Callable[..., Server]
Connect = Callable[..., stepwell.Client]


@pytest.fixture
def stored(start: Start, tmp_path: Path) -> Server:
    """A server that writes snapshots only when it is stopped, or asked to."""
    return start("--snapshot-seconds", 0, data_dir=tmp_path / "data")


def restart(server: Server) -> None:
    server.stop()
    server.start()


def crash(server: Server) -> None:
    server.kill()
    server.start()


def replay(steps: int, kernel_cache: Path, start: Arrays | None = None) -> Arrays:
    """Where the first updates lead, without any server."""
    local = LocalRun(start or parameters(SEED), kernel_directory=kernel_cache, **SPEC)
    for sequence in range(1, steps + 1):
        local.step(gradients(SEED, 0, sequence), samples=2.0)
    return local.parameters()


def push(run: stepwell.Run, first: int, last: int) -> list[int]:
    return [run.push(gradients(SEED, 0, sequence), samples=2.0) for sequence in range(first, last + 1)]


def test_a_stop_in_the_middle_of_training_is_a_pause(stored: Server, connect: Connect, kernel_cache: Path) -> None:
    run = connect(stored).create_run("run", parameters(SEED), **SPEC)
    versions: list[int] = []
    reached = {at: threading.Event() for at in (100, 200)}

    def train() -> Arrays:
        params: Arrays = {}
        for sequence in range(1, 301):
            params = run.step(gradients(SEED, 0, sequence), samples=2.0)
            versions.append(run.version)
            if sequence in reached:
                reached[sequence].set()
        return params

    with ThreadPoolExecutor(1) as threads:
        training = threads.submit(train)
        for event in reached.values():
            assert event.wait(60)
            restart(stored)  # while updates are on their way
        params = training.result(120)

    assert versions == list(range(1, 301))
    same_bits(params, replay(300, kernel_cache))
    present = run.refresh()
    assert (present.generation, present.version, present.samples) == (0, 300, 600.0)
    assert present.groups[0].hyperparameters["lr"] == pytest.approx(1e-4)


def test_a_stop_keeps_everything(stored: Server, connect: Connect) -> None:
    """State, changes, counters, memberships: all is as it was, to the bit."""
    client = connect(stored)
    run = client.create_run("run", parameters(SEED), **SPEC, nonfinite="skip", samples_per_epoch=10.0)
    client.create_run("other", {"w": np.ones(3)}, optimizer="sgd")
    push(run, 1, 5)
    broken = gradients(SEED, 0, 6)
    broken["scale"][...] = np.nan
    assert run.push(broken) == 5
    run.push({**gradients(SEED, 0, 6), "größe": None})
    run.change(hyperparameters={"eps": 1e-6})
    run.change(schedules={"beta1": {"name": "linear", "start_factor": 0.5, "end_factor": 1.0, "total_iters": 10}})
    before, state = run.refresh(), run.get_state()
    restart(stored)
    assert run.refresh() == before
    same_state(run.get_state(), state)
    assert sorted(found.name for found in client.list_runs()) == ["other", "run"]
    assert run.push(gradients(SEED, 0, 7)) == before.version + 1


def test_the_answer_of_an_update_survives_a_stop(stored: Server, connect: Connect) -> None:
    """An update that was committed, and whose answer was lost with the server, is not applied again by its retry."""
    with Proxy(stored.address) as proxy:
        run = connect(proxy.address).create_run("run", {"w": np.zeros(3)}, optimizer="sgd", hyperparameters={"lr": 1.0})
        run.push({"w": np.ones(3)})

        def committed(requests: object) -> None:
            run._worker.before_answer = None
            reader = connect(stored).get_run("run")
            for _ in range(10_000):
                if reader.refresh().version == 2:
                    break
            proxy.cut()
            restart(stored)

        proxy.mute(answers_only=True)
        run._worker.before_answer = committed
        assert run.push({"w": np.ones(3)}) == 2
        assert run.push({"w": np.ones(3)}) == 3
    got = connect(stored).get_run("run").pull()
    assert got is not None
    np.testing.assert_array_equal(got["w"], -3.0)


def test_a_kill_rewinds(stored: Server, connect: Connect, kernel_cache: Path) -> None:
    run = connect(stored).create_run("run", parameters(SEED), **SPEC)
    reader = connect(stored).get_run("run")
    push(run, 1, 10)
    restart(stored)
    push(run, 11, 15)
    reader.pull()
    assert (run.version, reader.version) == (15, 15)
    crash(stored)

    # Told once, with both versions; the update is not applied.
    with pytest.raises(stepwell.RunRewound, match="went back") as rewound:
        run.push(gradients(SEED, 0, 16))
    assert (rewound.value.acknowledged_version, rewound.value.version) == (15, 10)
    present = run.refresh()
    assert (present.version, present.generation, present.samples) == (10, 1, 20.0)
    with pytest.raises(stepwell.RunRewound) as rewound:
        reader.pull()
    assert (rewound.value.acknowledged_version, rewound.value.version) == (15, 10)
    got = reader.pull()
    assert got is not None
    same_bits(got, replay(10, kernel_cache))

    # And it goes on: nothing was lost but the five, nothing comes twice.
    assert push(run, 11, 20) == list(range(11, 21))
    got = reader.pull()
    assert got is not None
    same_bits(got, replay(20, kernel_cache))
    assert run.refresh().generation == 1


def test_kills_never_reuse_a_generation(stored: Server, connect: Connect) -> None:
    client = connect(stored)
    run = client.create_run("run", parameters(SEED), **SPEC)
    restart(stored)
    assert run.refresh().generation == 0
    crash(stored)
    generations = [client.get_run("run").refresh().generation]
    crash(stored)
    crash(stored)  # nobody looked in between
    generations.append(client.get_run("run").refresh().generation)
    restart(stored)
    generations.append(client.get_run("run").refresh().generation)
    assert generations == [1, 3, 3]


def test_an_update_of_an_old_generation_is_never_applied(stored: Server, connect: Connect) -> None:
    """The server dies with an update on its way to it; the retry finds another generation and is refused."""
    run = connect(stored).create_run("run", {"w": np.zeros(3)}, optimizer="sgd", hyperparameters={"lr": 1.0})
    run.push({"w": np.ones(3)})
    restart(stored)
    assert run.push({"w": np.ones(3)}) == 2  # over a new stream; no snapshot will hold it

    def die(requests: object) -> None:
        run._worker.before_answer = None
        crash(stored)

    run._worker.before_answer = die
    stored.process.suspend()  # so that it dies before it has read the update
    with pytest.raises(stepwell.RunRewound) as rewound:
        run.push({"w": np.full(3, 100.0)})
    assert rewound.value.version == 1
    assert run.push({"w": np.ones(3)}) == 2
    got = run.pull()
    assert got is not None
    np.testing.assert_array_equal(got["w"], -2.0)


def test_going_on_without_being_told(stored: Server, connect: Connect, kernel_cache: Path) -> None:
    run = connect(stored, on_rewind="continue").create_run("run", parameters(SEED), **SPEC)
    reader = connect(stored, on_rewind="continue").get_run("run")
    push(run, 1, 10)
    restart(stored)
    push(run, 11, 15)
    reader.pull()
    crash(stored)
    params = run.step(gradients(SEED, 0, 16))
    same_bits(params, replay(10, kernel_cache))
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.REWOUND, 10)
    assert run.version == 10
    got = reader.pull(if_newer_than=15)
    assert got is not None
    same_bits(got, params)
    assert push(run, 11, 12) == [11, 12]
    crash(stored)
    assert run.push(gradients(SEED, 0, 13)) == 10
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.REWOUND, 10)


def beyond(version: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: bool(event["version"] > version)


def test_a_kill_while_snapshots_are_written(start: Start, connect: Connect, tmp_path: Path, kernel_cache: Path) -> None:
    """Training goes on while snapshots are written; what a kill leaves is a state that there was."""
    server = start("--snapshot-seconds", 0.05, data_dir=tmp_path / "data")
    run = connect(server).create_run("run", parameters(SEED), **SPEC)
    present = 0
    for _ in range(3):
        first, far = present + 1, threading.Event()

        def train(first: int = first, far: threading.Event = far) -> stepwell.RunRewound:
            for sequence in range(first, 100_000):
                try:
                    version = run.push(gradients(SEED, 0, sequence), samples=2.0)
                except stepwell.RunRewound as error:
                    return error
                assert version == sequence
                if version == first + 20:
                    far.set()
            raise AssertionError("the run was not rewound")

        with ThreadPoolExecutor(1) as threads:
            training = threads.submit(train)
            assert far.wait(60)
            server.wait_for_event("snapshot written", beyond(first))
            crash(server)
            rewound = training.result(60)
        assert present < rewound.version <= rewound.acknowledged_version
        present = rewound.version
        got = run.pull()
        assert got is not None
        same_bits(got, replay(present, kernel_cache))


def test_a_run_that_was_never_stored_is_gone_after_a_kill(start: Start, connect: Connect) -> None:
    server = start()
    run = connect(server).create_run("run", {"w": np.zeros(3)}, optimizer="sgd")
    server.kill()
    server.start()
    with pytest.raises(stepwell.UnknownRun, match="'run' is not known"):
        run.push({"w": np.zeros(3)})
    again = connect(server).create_run("run", {"w": np.zeros(3)}, optimizer="sgd")
    assert again.created
    with pytest.raises(stepwell.RunReplaced):
        run.push({"w": np.zeros(3)})
    assert again.push({"w": np.zeros(3)}) == 1


def test_a_second_server_is_refused(stored: Server, kernel_cache: Path, tmp_path: Path) -> None:
    for options, data_dir, said in (
        ([], tmp_path / "data", "in use by process"),
        (["--address", stored.address], None, "cannot be listened on"),
    ):
        with pytest.raises(AssertionError, match=said):
            Server(kernel_cache, *options, data_dir=data_dir).start()


def test_a_damaged_snapshot(stored: Server, connect: Connect, tmp_path: Path, kernel_cache: Path) -> None:
    """The one before it is used, in a new generation, for what was acknowledged since is lost."""
    run = connect(stored).create_run("run", parameters(SEED), **SPEC)
    push(run, 1, 5)
    restart(stored)
    push(run, 6, 8)
    stored.stop()
    newest = max((tmp_path / "data/runs/run/snapshots").iterdir()) / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    stored.start()
    assert [event["level"] for event in stored.events("snapshot damaged, using the one before")] == ["error"]
    with pytest.raises(stepwell.RunRewound) as rewound:
        run.push(gradients(SEED, 0, 9))
    assert (rewound.value.acknowledged_version, rewound.value.version) == (8, 5)
    got = run.pull()
    assert got is not None
    same_bits(got, replay(5, kernel_cache))


def test_a_disk_that_refuses(stored: Server, connect: Connect, tmp_path: Path) -> None:
    """What cannot be stored is an error and changes nothing; training goes on, also over the next restart."""
    run = connect(stored).create_run("run", parameters(SEED), **SPEC)
    push(run, 1, 2)
    restart(stored)
    state = run.get_state()
    push(run, 3, 4)
    before, description = run.get_state(), run.refresh()
    stored.failures_expected.add("snapshot failed")
    everything = tmp_path / "data/runs/run"
    for folder, refusals in (
        (everything, [lambda: run.save_checkpoint("c"), lambda: run.set_state(state)]),
        (everything / "checkpoints", [lambda: run.save_checkpoint("c")]),
        (everything / "snapshots", [lambda: run.set_state(state)]),
    ):
        if folder.exists():
            folder.rename(tmp_path / "aside")
        folder.write_text("not a folder")
        for refused in refusals:
            with pytest.raises(stepwell.StorageFailed):
                refused()
            same_state(run.get_state(), before)
            assert run.refresh() == description
        folder.unlink()
        if (tmp_path / "aside").exists():
            (tmp_path / "aside").rename(folder)
    # Memory that a refused state had taken is nobody else's and not the run's.
    other = connect(stored).create_run("other", parameters(1), **SPEC)
    assert other.push(gradients(1, 0, 1)) == 1
    same_state(run.get_state(), before)
    assert push(run, 5, 6) == [5, 6]
    restart(stored)
    assert push(run, 7, 8) == [7, 8]
