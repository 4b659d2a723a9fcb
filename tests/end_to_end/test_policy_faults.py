"""Workers die, freeze and join in one synchronous run; the server's update log tells what each version was made of."""

import multiprocessing
import multiprocessing.connection
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import stepwell
from tests.end_to_end.pushing import new_seed
from tests.end_to_end.rounds import HALF, PATTERNS, Told, factor, parameters, samples, take_part
from tests.end_to_end.server import Server
from tests.simulator.log_replay import Logged, LogReplay

# For a machine that hangs; nothing here waits so long.
WAIT_SECONDS = 120.0
LONG, SHORT = 1000.0, 5.0  # leases; of the living ones no stall is as long
LEARNING_RATE = 1e-3
ROUNDS = 3
HALF_AT = 4


class Party:
    """Worker processes of one run, and all that they have told so far."""

    def __init__(self, address: str, run: str, seed: int) -> None:
        self.told: dict[str, list[Told]] = {}
        self.half: set[str] = set()
        self.ended: set[str] = set()
        self._address, self._run, self._seed = address, run, seed
        # Not forked: this process has threads of gRPC's.
        self._spawn = multiprocessing.get_context("spawn")
        self._processes: dict[str, Any] = {}
        self._channels: dict[Any, str] = {}

    def start(self, worker: str, lease_seconds: float, half_at: int = 0) -> None:
        here, there = self._spawn.Pipe()
        arguments = (there, self._address, self._run, self._seed, worker, lease_seconds, half_at)
        process = self._spawn.Process(target=take_part, args=arguments)
        process.start()
        there.close()
        self._processes[worker], self._channels[here], self.told[worker] = process, worker, []

    def send_signal(self, worker: str, number: int) -> None:
        os.kill(self._processes[worker].pid, number)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Hear all of them, so that none waits for a reader, until it holds."""
        while not holds():
            ready = multiprocessing.connection.wait(list(self._channels), WAIT_SECONDS)
            assert ready, f"nothing was heard, expected: {what}"
            for channel in ready:
                self._hear(channel)

    def until_version(self, version: int, worker: str) -> None:
        """Until this version or a newer one holds an update of the worker."""

        def holds() -> bool:
            committed = (each for each in self.told[worker] if each.outcome == stepwell.Outcome.COMMITTED)
            return any(each.committed_version >= version for each in committed)

        self.until(holds, f"version {version} with {worker}")

    def stop(self, *workers: str) -> None:
        for channel, worker in self._channels.items():
            if worker in workers:
                channel.send("stop")
        self.until(lambda: self.ended >= set(workers), f"the end of {workers}")

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()  # also one that is frozen
            process.join()
        for channel in self._channels:
            channel.close()

    def _hear(self, channel: Any) -> None:
        worker = self._channels[channel]
        try:
            said = channel.recv()
        except (EOFError, ConnectionResetError):
            said = None
        if isinstance(said, Told):
            self.told[worker].append(said)
        elif said == HALF:
            self.half.add(worker)
        else:
            self.ended.add(worker)
            del self._channels[channel]
            channel.close()


@contextmanager
def party(address: str, run: str, seed: int) -> Iterator[Party]:
    crew = Party(address, run, seed)
    try:
        yield crew
    finally:
        crew.end()


def test_one_dies_one_freezes_one_joins(
    start: Callable[..., Server], connect: Callable[..., stepwell.Client], name: str, tmp_path: Path
) -> None:
    seed = int(os.environ.get("STEPWELL_TEST_SEED") or new_seed())
    print(f"seed {seed}; repeat with STEPWELL_TEST_SEED={seed}")  # noqa: T201
    path = tmp_path / "updates.jsonl"
    server = start("--update-log", path)
    reader = connect(server).create_run(
        name, parameters(), optimizer="sgd", hyperparameters={"lr": LEARNING_RATE}, policy="sync"
    )
    reader.close()  # it looks on, and takes no part
    reader = connect(server).get_run(name)

    with party(server.address, name, seed) as crew:
        crew.start("steady", LONG)
        crew.start("dies", SHORT, half_at=HALF_AT)
        crew.start("freezes", SHORT)
        crew.until(lambda: "dies" in crew.half, "half an update")
        crew.send_signal("dies", signal.SIGKILL)
        crew.until_version(reader.refresh().version + ROUNDS, "freezes")
        crew.send_signal("freezes", signal.SIGSTOP)
        crew.until_version(reader.refresh().version + ROUNDS, "steady")
        crew.start("joins", LONG)
        crew.until_version(reader.refresh().version + ROUNDS, "joins")
        crew.send_signal("freezes", signal.SIGCONT)
        crew.until_version(reader.refresh().version + ROUNDS, "freezes")
        crew.stop("steady", "freezes", "joins")
        told = crew.told

    got = reader.pull()
    assert got is not None
    server.stop()
    with path.open() as lines:
        replay = LogReplay(lines, name)
    assert sorted(replay.versions) == list(range(1, reader.version + 1))
    check_contents(replay, told, seed, got)
    check_absence(replay, told)


def check_contents(replay: LogReplay, told: dict[str, list[Told]], seed: int, got: dict[str, Any]) -> None:
    """Every version is the mean of what the log declares, each in one version at most; and the workers know it."""
    declared = {(row.worker, number_of(row)): version for version, rows in replay.versions.items() for row in rows}
    assert len(declared) == sum(len(rows) for rows in replay.versions.values()), "an update is in two versions"
    # All gradients are multiples of one pattern, so a state is a multiple of it, too.
    multiples = {0: 0.0}
    for version in sorted(replay.versions):
        rows = replay.versions[version]
        mean = sum(row.samples * factor(seed, row.worker, number_of(row)) for row in rows)
        multiples[version] = multiples[version - 1] - LEARNING_RATE * mean / sum(row.samples for row in rows)
    seen = set()
    for worker, answers in told.items():
        for each in answers:
            held = declared.get((worker, each.number))
            assert (held is not None) == (each.outcome == stepwell.Outcome.COMMITTED), (worker, each)
            # Whoever was fenced after its update was folded hears only that it counts.
            if held is not None and worker != "freezes":
                assert held == each.committed_version, (worker, each)
            close(each.small, multiples[each.version] * PATTERNS["small"])
            seen.add(each.version)
    assert seen >= replay.versions.keys(), "somebody has looked at each version"
    assert ("dies", HALF_AT) not in declared
    for name, pattern in PATTERNS.items():
        close(got[name], multiples[max(multiples)] * pattern)


def check_absence(replay: LogReplay, told: dict[str, list[Told]]) -> None:
    """Who has died or is frozen costs the others its lease, and nothing else: the log tells what was made without."""
    expired = {change.worker for change in replay.changes if change.kind == "expire"}
    assert expired == {"dies", "freezes"}
    last = [change.kind for change in replay.changes if change.worker == "dies"][-1]
    assert last == "expire"
    # At the end they leave one after another, "steady" perhaps before "joins".
    without = [
        version
        for version in sorted(replay.versions)
        if "steady" in replay.live[version]
        and not {"dies", "freezes"} & {row.worker for row in replay.versions[version]}
    ]
    assert len(without) >= ROUNDS - 1, "the others went on"
    for version in without:
        assert "dies" not in replay.live[version]
        assert "steady" in {row.worker for row in replay.versions[version]}
    # Whoever was frozen came back in another epoch; nothing is in a version that it had begun in the one before.
    epochs = Counter(change.epoch for change in replay.changes if (change.kind, change.worker) == ("join", "freezes"))
    assert len(epochs) >= 2
    assert {row.worker for row in replay.versions[max(replay.versions)]} <= {"steady", "freezes", "joins"}
    assert any(each.outcome == stepwell.Outcome.COMMITTED for each in told["freezes"][-ROUNDS:])


def number_of(row: Logged) -> int:
    return round(row.samples) - samples(0)


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-15)


def test_a_full_disk_costs_the_log_and_nothing_else(
    start: Callable[..., Server], connect: Callable[..., stepwell.Client], name: str
) -> None:
    server = start("--update-log", "/dev/full")
    run = connect(server).create_run(name, {"w": np.zeros(3)}, optimizer="sgd", hyperparameters={"lr": 1.0})
    for _ in range(3):
        run.step({"w": np.ones(3)})
    assert run.version == 3
    assert len(server.events("update log has gaps; training goes on")) == 1


def test_the_line_is_there_before_the_answer(
    start: Callable[..., Server], connect: Callable[..., stepwell.Client], name: str, tmp_path: Path
) -> None:
    path = tmp_path / "updates.jsonl"
    server = start("--update-log", path)
    run = connect(server, worker="only").create_run(name, {"w": np.zeros(3)}, optimizer="sgd", nonfinite="skip")
    for value, version in ((1.0, 1), (np.nan, 1), (2.0, 2)):
        run.step({"w": np.full(3, value)}, samples=7)
        with path.open() as lines:
            replay = LogReplay(lines, name)
        assert replay.version == version
    assert [rows[0].sequence for rows in replay.versions.values()] == [1, 3]
    assert replay.versions[2][0].samples == 7
