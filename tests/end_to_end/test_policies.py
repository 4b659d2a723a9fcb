"""How the updates of several workers become commits, through a real server."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

import stepwell
import stepwell.aio
from stepwell.v1 import control_pb2
from tests.end_to_end.raw import Raw
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits

WAIT_SECONDS = 60
LONG, SHORT = 1000.0, 1.0  # leases
KEPT = 10.0  # a lease that heartbeats renew: over before long, but not by a stall
SHAPES = {"w": (3, 5), "b": (7,)}


def zeros(dtype: str = "float64") -> Arrays:
    return {name: np.zeros(shape, dtype) for name, shape in SHAPES.items()}


def filled(value: float, dtype: str = "float64") -> Arrays:
    return {name: np.full(shape, value, dtype) for name, shape in SHAPES.items()}


class Crew:
    """Workers of one run, each with a client and a thread of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._stack = ExitStack()
        self._threads = self._stack.enter_context(ThreadPoolExecutor(16))

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def join(self, name: str, worker: str, lease_seconds: float = LONG, **spec: Any) -> stepwell.Run:
        client = stepwell.connect(self.address, worker=worker, lease_seconds=lease_seconds, transport="stream")
        self._stack.callback(client.close)
        if spec:
            return client.create_run(name, spec.pop("parameters", zeros()), **{"optimizer": "sgd"} | spec)
        return client.get_run(name)

    def crew(self, name: str, count: int, **spec: Any) -> list[stepwell.Run]:
        return [self.join(name, f"w{number}", **spec) for number in range(count)]

    def begin(self, work: Callable[..., Any], *arguments: Any, **more: Any) -> "Future[Any]":
        return self._threads.submit(work, *arguments, **more)


@pytest.fixture
def crew(server: Server) -> Iterator[Crew]:
    with Crew(server.address) as crew:
        yield crew


def answer_of(run: stepwell.Run) -> stepwell.Answer:
    assert run.last_answer is not None
    return run.last_answer


def until_waiting(run: stepwell.Run, *workers: str) -> None:
    """Until the updates of exactly these workers wait for others."""
    deadline = threading.Event()
    for _ in range(WAIT_SECONDS * 50):
        if {worker.name for worker in run.refresh().workers if worker.waits} == set(workers):
            return
        deadline.wait(0.02)
    raise AssertionError(f"{workers} do not wait: {run.refresh().workers}")


def test_a_round_is_the_mean_of_all_weighed_by_samples(crew: Crew, name: str) -> None:
    runs = crew.crew(name, 3, policy="sync", hyperparameters={"lr": 1.0})
    steps = [
        crew.begin(run.step, filled(value), samples=samples)
        for run, value, samples in zip(runs, (1.0, 2.0, 4.0), (1, 2, 5), strict=True)
    ]
    results = [step.result(WAIT_SECONDS) for step in steps]
    expected = -(1 * 1 + 2 * 2 + 4 * 5) / 8
    for run, result in zip(runs, results, strict=True):
        assert run.version == 1
        assert answer_of(run).committed_version == 1
        for array in result.values():
            np.testing.assert_allclose(array, expected, rtol=1e-15)
    assert runs[0].refresh().samples == 8


def test_the_order_of_arrival_changes_no_bit(crew: Crew, name: str) -> None:
    random = np.random.default_rng(5)
    gradients = [{key: random.normal(size=shape) for key, shape in SHAPES.items()} for _ in range(4)]
    results = []
    for number, order in enumerate(([0, 1, 2, 3], [3, 1, 0, 2])):
        runs = crew.crew(f"{name}-{number}", 4, policy="sync", optimizer="adam")
        waiting: list[str] = []
        steps = []
        for index in order:
            steps.append(crew.begin(runs[index].step, gradients[index]))
            waiting.append(f"w{index}")
            if len(waiting) < 4:
                until_waiting(runs[0], *waiting)
        results += [step.result(WAIT_SECONDS) for step in steps]
    for result in results[1:]:
        same_bits(result, results[0])


def test_four_quarters_make_the_whole(crew: Crew, name: str) -> None:
    """Least squares on a fixed batch: 200 rounds of quarters are 200 steps of one process."""
    random = np.random.default_rng(2)
    x, y = random.normal(size=(64, 6)), random.normal(size=64)

    def gradient(w: Any, part: slice) -> Any:
        error = x[part] @ w - y[part]
        return x[part].T @ error / len(error)

    runs = [
        crew.join(name, f"w{n}", parameters={"w": np.zeros(6)}, policy="sync", hyperparameters={"lr": 0.05})
        for n in range(4)
    ]

    def train(number: int) -> Any:
        w = runs[number].pull()["w"]  # type: ignore[index]
        for _ in range(200):
            w = runs[number].step({"w": gradient(w, slice(number * 16, number * 16 + 16))})["w"]
        return w

    found = [each.result(WAIT_SECONDS) for each in [crew.begin(train, number) for number in range(4)]]
    w = np.zeros(6)
    for _ in range(200):
        w = w - 0.05 * gradient(w, slice(0, 64))
    for each in found:
        np.testing.assert_allclose(each, w, rtol=0, atol=1e-12)
    assert runs[0].version == 200


def test_a_dead_worker_costs_a_round_its_lease(crew: Crew, name: str) -> None:
    """It joined over a raw connection, which gives no sign of life."""
    alive = crew.join(name, "alive", policy="sync", hyperparameters={"lr": 1.0})
    with Raw(crew.address) as raw:
        request = control_pb2.JoinRequest(run=name, worker="dead", lease_seconds=SHORT)
        joined, *_ = raw.control.Join(request)
        assert (joined.membership.place.index, joined.membership.place.count) == (1, 2)
        for array in alive.step(filled(1.0), timeout=WAIT_SECONDS).values():
            np.testing.assert_array_equal(array, -1.0)
    assert [worker.name for worker in alive.refresh().workers] == ["alive"]


def test_whoever_returns_after_its_lease_goes_on(crew: Crew, name: str) -> None:
    run = crew.join(name, "sleeper", lease_seconds=SHORT, hyperparameters={"lr": 1.0}, policy="async")
    run.step(filled(1.0))
    run._worker._stop_heartbeat()
    assert run._worker._membership is not None
    epoch = run._worker._membership.epoch
    other = crew.join(name, "other")
    until_gone(other, "sleeper")
    run._worker._settings = dataclasses.replace(run._worker._settings, lease_seconds=LONG)
    result = run.step(filled(1.0))
    assert run.version == 2
    np.testing.assert_array_equal(result["b"], -2.0)
    described = {worker.name: worker for worker in run.refresh().workers}
    assert described["sleeper"].epoch == epoch + 1


def until_gone(run: stepwell.Run, worker: str) -> None:
    pause = threading.Event()
    for _ in range(WAIT_SECONDS * 50):
        if worker not in {each.name for each in run.refresh().workers}:
            return
        pause.wait(0.02)
    raise AssertionError(f"'{worker}' is still live")


def test_heartbeats_keep_a_worker_that_computes(crew: Crew, name: str) -> None:
    """For longer than its lease: one that joins later, with the same lease and no sign of life, is gone meanwhile."""
    run = crew.join(name, "busy", lease_seconds=KEPT, policy="async")
    other = crew.join(name, "other")
    epoch = other.refresh().workers[0].epoch
    with Raw(crew.address) as raw:
        list(raw.control.Join(control_pb2.JoinRequest(run=name, worker="dead", lease_seconds=KEPT)))
    until_gone(other, "dead")
    assert [(worker.name, worker.epoch) for worker in other.refresh().workers] == [("busy", epoch)]
    run.step(filled(1.0))


def test_a_bounded_worker_waits_for_the_slowest(crew: Crew, name: str) -> None:
    fast, slow = crew.crew(name, 2, policy={"name": "bounded", "lead_max": 2}, hyperparameters={"lr": 1.0})
    fast.step(filled(1.0))
    fast.step(filled(1.0))
    third = crew.begin(fast.step, filled(1.0))
    until_waiting(slow, "w0")
    assert slow.refresh().version == 2
    slow.step(filled(1.0))
    third.result(WAIT_SECONDS)
    assert fast.version == 4


def test_accumulated_updates_make_one_version(crew: Crew, name: str) -> None:
    run = crew.join(name, "only", policy={"name": "async", "accumulate": 3}, hyperparameters={"lr": 1.0})
    for value, version in ((3.0, 0), (6.0, 0), (9.0, 1), (1.0, 1), (2.0, 1), (3.0, 2)):
        run.push(filled(value))
        assert run.version == version
        folded = value != 9.0 and (value, version) != (3.0, 2)
        outcome = stepwell.Outcome.FOLDED if folded else stepwell.Outcome.COMMITTED
        assert answer_of(run).outcome == outcome
        if (value, version) == (1.0, 1):
            np.testing.assert_allclose(run.pull()["b"], -6.0, rtol=1e-15)  # type: ignore[index]
    np.testing.assert_allclose(run.pull()["b"], -8.0, rtol=1e-15)  # type: ignore[index]
    described = run.refresh()
    assert (described.tally.commits, described.tally.folded) == (2, 4)


def test_an_accumulation_goes_on_after_a_clean_restart(start: Callable[..., Server], tmp_path: Any, name: str) -> None:
    server = start("--data-dir", str(tmp_path))
    policy = {"name": "async", "accumulate": 2}
    with Crew(server.address) as crew:
        run = crew.join(name, "only", policy=policy, hyperparameters={"lr": 1.0})
        run.push(filled(4.0))
        server.stop()
        again = start("--data-dir", str(tmp_path), "--address", server.address)
        with Crew(again.address) as others:
            assert others.join(name, "other").refresh().accumulated_count == 1
            run.push(filled(2.0))
            np.testing.assert_allclose(run.pull()["b"], -3.0, rtol=1e-15)  # type: ignore[index]


def test_what_is_too_stale_is_refused_with_the_present_version(crew: Crew, name: str) -> None:
    slow, fast = crew.crew(name, 2, policy={"name": "async", "staleness_max": 1}, hyperparameters={"lr": 1.0})
    slow.pull()
    for _ in range(3):
        fast.step(filled(1.0))
    with pytest.raises(stepwell.StaleUpdate, match="3 versions ago, expected at most 1") as caught:
        slow.step(filled(1.0))
    assert caught.value.details["version"] == "3"
    slow.pull()
    slow.step(filled(1.0))
    assert slow.version == 4
    assert slow.refresh().tally.refused == 1


def test_damping_lowers_the_rate_of_what_is_stale(crew: Crew, name: str) -> None:
    slow, fast = crew.crew(name, 2, policy={"name": "async", "damping": "inverse"}, hyperparameters={"lr": 1.0})
    slow.pull()
    fast.step(filled(0.0))
    np.testing.assert_allclose(slow.step(filled(1.0))["b"], -0.5, rtol=1e-15)
    assert slow.refresh().tally.staleness_counts == (1, 1)


def test_a_quorum_drops_the_late_or_folds_them(crew: Crew, name: str) -> None:
    for late, expected in (("drop", stepwell.Outcome.DROPPED_LATE), ("fold", None)):
        policy = {"name": "sync", "quorum": 2, "late": late}
        runs = crew.crew(f"{name}-{late}", 3, policy=policy, hyperparameters={"lr": 1.0})
        for run in runs:
            run.pull()
        first = [crew.begin(run.step, filled(1.0)) for run in runs[:2]]
        [each.result(WAIT_SECONDS) for each in first]
        third = crew.begin(runs[2].step, filled(7.0))
        if expected is None:
            until_waiting(runs[0], "w2")
            runs[0].step(filled(1.0))
        third.result(WAIT_SECONDS)
        assert answer_of(runs[2]).outcome == (expected or stepwell.Outcome.COMMITTED)
        np.testing.assert_allclose(
            runs[2].pull()["b"],  # type: ignore[index]
            -1.0 if late == "drop" else -5.0,
            rtol=1e-15,
        )


def test_a_barrier_that_was_given_up_is_no_obstacle(crew: Crew, name: str) -> None:
    first, second = crew.crew(name, 2, policy="async")
    for run in (first, second):
        run.push(filled(1.0))
    for _ in range(2):
        with pytest.raises(stepwell.TimedOut):
            first.barrier("a", timeout=0.5)
    with pytest.raises(stepwell.TimedOut):
        first.barrier("b", timeout=0.5)
    waiting = crew.begin(first.barrier, "c")
    second.barrier("c")
    waiting.result(WAIT_SECONDS)


def test_whoever_was_late_goes_on_with_the_next_round(crew: Crew, name: str) -> None:
    policy = {"name": "sync", "quorum": 2}
    first, second, late = crew.crew(name, 3, policy=policy, hyperparameters={"lr": 1.0})
    late.pull()
    for step in [crew.begin(run.step, filled(1.0)) for run in (first, second)]:
        step.result(WAIT_SECONDS)
    late.step(filled(7.0))
    assert answer_of(late).outcome == stepwell.Outcome.DROPPED_LATE
    steps = [crew.begin(run.step, filled(value)) for run, value in ((late, 2.0), (first, 4.0))]
    for step in steps:
        np.testing.assert_array_equal(step.result(WAIT_SECONDS)["b"], -4.0)
    assert {worker.name: worker.tally.dropped for worker in first.refresh().workers} == {"w0": 0, "w1": 0, "w2": 1}


@pytest.mark.parametrize("bad", [{"w0"}, {"w2"}, {"w0", "w1"}, {"w1", "w2"}, {"w0", "w1", "w2"}])
@pytest.mark.parametrize("rows", [False, True])
def test_a_round_goes_on_without_what_is_not_finite(crew: Crew, name: str, bad: set[str], rows: bool) -> None:
    """Whoever is skipped has had its turn; where nothing else comes last, what was folded alone makes the version."""
    table = {"name": "t", "width": 2, "dtype": "float64", "optimizer": "sgd", "hyperparameters": {"lr": 1.0}}
    tables = [{**table, "initializer": "constant"}] if rows else []
    runs = crew.crew(name, 3, policy="sync", nonfinite="skip", hyperparameters={"lr": 1.0}, tables=tables)
    values = {"w0": 3.0, "w1": 6.0, "w2": 12.0}
    steps = []
    for run in runs:
        value = np.nan if run.worker in bad else values[run.worker]
        brought = {"rows": {"t": ([5], np.full((1, 2), values[run.worker]))}} if rows else {}
        steps.append(crew.begin(run.step, filled(value), **brought))
        if run is not runs[-1]:
            until_waiting(runs[-1], *(f"w{place}" for place in range(len(steps))))
    good = [value for worker, value in values.items() if worker not in bad]
    expected = -np.mean(good) if good else 0.0
    for step in steps:
        np.testing.assert_allclose(step.result(WAIT_SECONDS)["b"], expected, rtol=1e-15)
    for run in runs:
        skipped = answer_of(run).outcome == stepwell.Outcome.SKIPPED_NONFINITE
        assert skipped == (run.worker in bad)
    assert runs[0].refresh().version == bool(good)
    if rows:
        np.testing.assert_allclose(runs[0].pull_rows("t", [5]), expected, rtol=1e-15)


def test_a_policy_changes_under_those_who_wait(crew: Crew, name: str) -> None:
    first, second = crew.crew(name, 2, policy="sync", hyperparameters={"lr": 1.0})
    step = crew.begin(first.step, filled(1.0))
    until_waiting(second, "w0")
    with pytest.raises(stepwell.PolicyRefused, match="would wait for ever"):
        second.change(policy={"name": "sync", "workers_min": 5})
    assert second.refresh().policy["workers_min"] == 1
    described = second.change(policy={"name": "async", "accumulate": 1})
    assert described.policy["name"] == "async"
    step.result(WAIT_SECONDS)
    assert answer_of(first).outcome == stepwell.Outcome.FOLDED
    np.testing.assert_array_equal(second.step(filled(3.0))["b"], -2.0)  # with what was folded before the change
    second.change(policy={"name": "async", "accumulate": 2})
    first.push(filled(1.0))
    assert answer_of(first).outcome == stepwell.Outcome.FOLDED
    assert second.refresh().version == 1


def test_what_makes_no_policy_is_refused(crew: Crew, name: str) -> None:
    for policy, error, words in (
        ("magic", stepwell.UnknownPolicy, "magic"),
        ({"name": "sync", "quorum": 5, "workers_max": 2}, stepwell.InvalidSpec, "quorum"),
        ({"name": "bounded", "lead_max": -1}, stepwell.InvalidValue, "lead_max"),
        ({"name": "async", "quorum": 2}, stepwell.UnknownArgument, "quorum"),
        ({"quorum": 2}, stepwell.InvalidValue, "name"),
        ({"name": "async", "delay_compensation": 0.1}, stepwell.InvalidSpec, "give staleness_max"),
        (
            {"name": "async", "delay_compensation": 0.1, "staleness_max": 4, "accumulate": 2},
            stepwell.InvalidSpec,
            "one of",
        ),
    ):
        with pytest.raises(error, match=words):
            crew.join(name, "w", policy=policy)
    run = crew.join(name, "w", policy={"name": "async", "workers_max": 1})
    with pytest.raises(stepwell.LimitExceeded, match="expected at most 1"):
        crew.join(name, "other").push(filled(1.0))
    run.close()
    crew.join(name, "other").push(filled(1.0))


def test_whoever_leaves_is_not_waited_for(crew: Crew, name: str) -> None:
    first, second = crew.crew(name, 2, policy="sync", hyperparameters={"lr": 1.0})
    step = crew.begin(first.step, filled(1.0))
    until_waiting(first, "w0")
    second.close()
    step.result(WAIT_SECONDS)
    assert first.version == 1


def test_a_newcomer_is_told_where_the_run_is(crew: Crew, name: str) -> None:
    first = crew.join(name, "first", policy="sync", hyperparameters={"lr": 1.0})
    first.step(filled(1.0))
    second = crew.join(name, "second")
    np.testing.assert_array_equal(second.parameters()["b"], -1.0)
    assert second.version == 1
    steps = [crew.begin(run.step, filled(1.0)) for run in (first, second)]
    [step.result(WAIT_SECONDS) for step in steps]
    assert (first.version, second.version) == (2, 2)


def test_samples_are_shared_by_place(crew: Crew, name: str) -> None:
    runs = crew.crew(name, 3, policy="async")
    shares = [run.assignment(100) for run in runs]
    assert [index for share in shares for index in share] == list(range(100))
    runs[0].close()
    assert [len(run.assignment(100)) for run in runs[1:]] == [50, 50]


def test_a_barrier_opens_when_the_last_has_come(crew: Crew, name: str) -> None:
    runs = crew.crew(name, 3, policy="async")
    for _ in range(3):
        waiting = [crew.begin(run.barrier, "epoch") for run in runs[:2]]
        pause = threading.Event()
        pause.wait(0.2)
        assert not any(each.done() for each in waiting)
        runs[2].barrier("epoch", timeout=WAIT_SECONDS)
        [each.result(WAIT_SECONDS) for each in waiting]
    last = crew.begin(runs[0].barrier, "end")
    runs[1].close()
    runs[2].close()
    last.result(WAIT_SECONDS)


def test_a_nonfinite_update_fails_alone(crew: Crew, name: str) -> None:
    runs = crew.crew(name, 2, policy="sync", hyperparameters={"lr": 1.0})
    good = crew.begin(runs[0].step, filled(2.0))
    until_waiting(runs[0], "w0")
    with pytest.raises(stepwell.NonfiniteGradient):
        runs[1].step(filled(np.nan))
    runs[1].step(filled(4.0))
    np.testing.assert_array_equal(good.result(WAIT_SECONDS)["b"], -3.0)


def test_finite_gradients_whose_sum_is_not_are_refused(crew: Crew, name: str) -> None:
    first, second = (
        crew.join(name, worker, policy="sync", parameters=zeros("float32"), hyperparameters={"lr": 1.0})
        for worker in ("a", "b")
    )
    large = filled(3e38, "float32")
    step = crew.begin(first.step, large)
    until_waiting(second, "a")
    with pytest.raises(stepwell.NonfiniteGradient, match="beyond what float32 holds"):
        second.step(large)
    step.result(WAIT_SECONDS)
    assert answer_of(first).outcome == stepwell.Outcome.FOLDED  # it was folded, and is part of the next version
    steps = [crew.begin(run.step, filled(0.0, "float32")) for run in (first, second)]
    for each in steps:
        np.testing.assert_allclose(each.result(WAIT_SECONDS)["b"], -1e38, rtol=1e-6)
    policy = {"name": "async", "accumulate": 2}
    run = crew.join(f"{name}-2", "a", policy=policy, parameters=zeros("float32"))
    with pytest.raises(stepwell.NonfiniteGradient, match="beyond what float32 holds"):
        run.push(large, samples=4)
    run.push(filled(1.0, "float32"))
    run.push(filled(3.0, "float32"))
    assert run.version == 1


def test_a_missing_gradient_counts_as_zeros(crew: Crew, name: str) -> None:
    runs = crew.crew(name, 2, policy="sync", hyperparameters={"lr": 1.0})
    steps = [
        crew.begin(runs[0].step, filled(2.0) | {"b": None}),
        crew.begin(runs[1].step, filled(4.0) | {"w": None}),
    ]
    for step in steps:
        result = step.result(WAIT_SECONDS)
        np.testing.assert_array_equal(result["w"], -1.0)
        np.testing.assert_array_equal(result["b"], -2.0)


def test_shared_memory_and_stream_meet_in_a_round(server: Server, name: str) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        runs = []
        for transport in ("shared_memory", "stream"):
            client = stack.enter_context(stepwell.connect(server.address, transport=transport, worker=transport))
            runs.append(client.create_run(name, zeros(), optimizer="sgd", hyperparameters={"lr": 1.0}, policy="sync"))
        for _ in range(3):
            steps = [threads.submit(run.step, filled(value)) for run, value in zip(runs, (1.0, 3.0), strict=True)]
            results = [step.result(WAIT_SECONDS) for step in steps]
            same_bits(*results)
        np.testing.assert_array_equal(results[0]["b"], -6.0)
        assert [run.transport for run in runs] == ["shared_memory", "stream"]


async def test_the_awaiting_client_has_the_same(server: Server, name: str) -> None:
    async with (
        stepwell.aio.connect(server.address, worker="a") as one,
        stepwell.aio.connect(server.address, worker="b") as two,
    ):
        spec: dict[str, Any] = {"optimizer": "sgd", "hyperparameters": {"lr": 1.0}, "policy": "sync"}
        runs = [await client.create_run(name, zeros(), **spec) for client in (one, two)]
        results = await asyncio.gather(*(run.step(filled(value)) for run, value in zip(runs, (1.0, 3.0), strict=True)))
        for result in results:
            np.testing.assert_array_equal(result["b"], -2.0)
        await asyncio.gather(*(run.barrier() for run in runs))
        assert [len(await run.assignment(9)) for run in runs] == [4, 5]
        for run in runs:
            await run.close()


def test_a_round_that_does_not_fit_into_memory_is_folded_as_it_comes(start: Callable[..., Server], name: str) -> None:
    """Eight updates of 8 MB a round, with memory for the state and two of them; the last in order comes first."""
    elements, count = 2_000_000, 8
    shape = {"w": np.zeros(elements, np.float32)}
    server = start("--max-memory", str(5 * 4 * elements))
    with Crew(server.address) as crew:
        runs = crew.crew(name, count, policy="sync", parameters=shape, hyperparameters={"lr": 1.0})
        for _ in range(2):
            gradients = [{"w": np.full(elements, number, np.float32)} for number in range(count)]
            steps = [crew.begin(runs[number].push, gradients[number]) for number in reversed(range(count))]
            assert {step.result(WAIT_SECONDS) for step in steps} == {runs[0].version}
        parameters = runs[0].pull()
        assert parameters is not None
        np.testing.assert_array_equal(parameters["w"], -2 * np.mean(range(count), dtype=np.float32))


def test_weighted_rounds_have_the_same_bits_in_any_order_of_arrival(crew: Crew, name: str) -> None:
    random = np.random.default_rng(7)
    gradients = [{key: random.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()} for _ in range(4)]
    found: list[Arrays] = []
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        one = f"{name}-{len(found)}"
        runs = crew.crew(one, 4, policy="sync", parameters=zeros("float32"), hyperparameters={"lr": 1.0})
        steps = []
        for place, number in enumerate(order):
            steps.append(crew.begin(runs[number].step, gradients[number], samples=3 + number))
            if place < 3:
                until_waiting(runs[0], *(f"w{each}" for each in order[: place + 1]))
        found.append(steps[0].result(WAIT_SECONDS))
    for key in SHAPES:
        mean = sum((3 + number) * gradients[number][key].astype(np.float64) for number in range(4)) / 18
        np.testing.assert_allclose(found[0][key], -mean, rtol=1e-6, atol=1e-7)
    same_bits(found[0], found[1])
    same_bits(found[0], found[2])


def test_delays_are_compensated_as_the_paper_says(crew: Crew, name: str) -> None:
    """g + λ g² (w - w'), w' the parameters at which a worker took its gradient, against the same loop in NumPy."""
    policy = {"name": "async", "delay_compensation": 0.5, "staleness_max": 6}
    runs = crew.crew(name, 3, policy=policy, hyperparameters={"lr": 0.1})
    random = np.random.default_rng(3)
    weights = [zeros()]
    bases = [0, 0, 0]
    for number in range(12):
        worker = (0, 1, 0, 2, 0, 1)[number % 6]
        grads = {key: random.normal(size=shape) for key, shape in SHAPES.items()}
        found = runs[worker].step(grads)
        before, at = weights[-1], weights[bases[worker]]
        weights.append(
            {key: before[key] - 0.1 * (grads[key] + 0.5 * grads[key] ** 2 * (before[key] - at[key])) for key in SHAPES}
        )
        bases[worker] = len(weights) - 1
        for key in SHAPES:
            np.testing.assert_allclose(found[key], weights[-1][key], rtol=1e-12, atol=1e-14)
    runs[0].change(policy="async")
    grads = filled(1.0)
    np.testing.assert_allclose(runs[1].step(grads)["b"], weights[-1]["b"] - 0.1, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("policy", ["async", "sync"])
def test_each_worker_s_norm_is_told(crew: Crew, name: str, policy: str) -> None:
    runs = crew.crew(name, 2, policy=policy, report_norms=True)
    steps = [crew.begin(run.step, filled(2.0 + place)) for place, run in enumerate(runs)]
    for step in steps:
        step.result(WAIT_SECONDS)
    elements = sum(array.size for array in zeros().values())
    found = {worker.name: worker.tally.gradient_norm_last for worker in runs[0].refresh().workers}
    assert found == pytest.approx({"w0": 2.0 * elements**0.5, "w1": 3.0 * elements**0.5}, rel=1e-12)
