"""Rows of tables under policies that combine updates, and what a restart keeps of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import stepwell
from tests.end_to_end.server import Server
from tests.end_to_end.states import same_bits
from tests.end_to_end.test_policies import WAIT_SECONDS, answer_of, until_waiting

WIDTH = 3
DENSE = {"w": np.zeros(4)}
SGD = {"name": "user", "width": WIDTH, "dtype": "float64", "optimizer": "sgd", "hyperparameters": {"lr": 1.0}}
SGD["initializer"] = {"name": "constant"}
ADAM = {**SGD, "name": "item", "optimizer": "adam", "flavor": "torch", "hyperparameters": {"lr": 0.1}}
TABLES = [SGD, ADAM]


class Crew:
    """Workers of one run, each with a client and a thread of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = ExitStack()
        self._threads = self._stack.enter_context(ThreadPoolExecutor(8))

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def join(self, name: str, worker: str, **spec: Any) -> stepwell.Run:
        client = self._stack.enter_context(stepwell.connect(self._address, worker=worker, transport="stream"))
        return client.create_run(
            name, DENSE, **{"optimizer": "sgd", "hyperparameters": {"lr": 1.0}, "tables": TABLES, **spec}
        )

    def begin(self, work: Callable[..., Any], *arguments: Any, **more: Any) -> "Future[Any]":
        return self._threads.submit(work, *arguments, **more)


@pytest.fixture
def crew(server: Server) -> Iterator[Crew]:
    with Crew(server.address) as crew:
        yield crew


def rows(value: float, *ids: int) -> tuple[list[int], NDArray[np.float64]]:
    return list(ids), np.full((len(ids), WIDTH), value)


def dense(value: float) -> dict[str, NDArray[np.float64]]:
    return {"w": np.full(4, value)}


def first_of(run: stepwell.Run, table: str, *ids: int) -> list[float]:
    values: list[float] = run.pull_rows(table, list(ids))[:, 0].tolist()
    return values


def test_a_round_averages_rows_by_weight_whatever_comes_first(crew: Crew, name: str) -> None:
    """An id that only some bring counts as zeros with the others, as a dense gradient would."""
    brought = {"a": rows(8.0, 1, 2), "b": rows(4.0, 2, 3, 3)}
    samples = {"a": 1.0, "b": 3.0}
    for order in ("ab", "ba"):
        one = f"{name}-{order}"
        runs = {worker: crew.join(one, worker, policy="sync") for worker in "ab"}
        pushes = []
        for worker in order:
            pushes.append(
                crew.begin(runs[worker].step, dense(4.0), rows={"user": brought[worker]}, samples=samples[worker])
            )
            if len(pushes) == 1:
                until_waiting(runs["a"], worker)
        for push in pushes:
            np.testing.assert_array_equal(push.result(WAIT_SECONDS)["w"], -4.0)
        # 8 of weight 1/4; both; twice 4 of weight 3/4.
        assert first_of(runs["a"], "user", 1, 2, 3, 4) == [-2.0, -5.0, -6.0, 0.0]


def test_rounds_of_rows_alone(crew: Crew, name: str) -> None:
    runs = [crew.join(name, worker, policy="sync") for worker in "ab"]
    pushes = [crew.begin(run.push_rows, "user", *rows(2.0 + 2 * place, 7)) for place, run in enumerate(runs)]
    assert [push.result(WAIT_SECONDS) for push in pushes] == [1, 1]
    assert first_of(runs[0], "user", 7) == [-3.0]
    mixed = crew.begin(runs[0].push_rows, "user", *rows(1.0, 7))
    until_waiting(runs[1], "a")
    with pytest.raises(stepwell.InvalidValue, match="same of all"):
        runs[1].step(dense(1.0))
    runs[0].refresh()
    mixed.result(WAIT_SECONDS)


@pytest.mark.parametrize("policy", [{"name": "async", "accumulate": 2}, {"name": "bounded", "accumulate": 2}])
def test_accumulated_rows_wait_and_count_once(crew: Crew, name: str, policy: dict[str, Any]) -> None:
    run = crew.join(name, "a", policy=policy)
    run.step(dense(2.0), rows={"user": rows(2.0, 1, 5)}, samples=1)
    assert answer_of(run).outcome == stepwell.Outcome.FOLDED
    assert first_of(run, "user", 1, 5) == [0.0, 0.0]
    run.step(dense(4.0), rows={"user": rows(6.0, 1)}, samples=3)
    assert run.version == 1
    assert first_of(run, "user", 1, 5) == [-5.0, -0.5]
    with pytest.raises(stepwell.InvalidValue, match="rows only"):
        run.push_rows("user", *rows(1.0, 1))


def train(run: stepwell.Run, steps: range) -> None:
    for number in steps:
        random = np.random.default_rng(number)
        ids = random.integers(0, 40, 16)
        grads = {table: (ids, random.normal(size=(16, WIDTH))) for table in ("user", "item")}
        run.step({"w": random.normal(size=4)}, rows=grads)


@pytest.mark.parametrize("policy", [None, {"name": "async", "accumulate": 3}])
def test_a_clean_restart_in_training_changes_no_bit(
    start: Callable[..., Server], server: Server, name: str, tmp_path: Path, policy: Any
) -> None:
    with Crew(server.address) as crew:
        whole = crew.join(name, "a", policy=policy)
        train(whole, range(20))
        expected = whole.pull_rows({"user": range(40), "item": range(40)})
    for steps in (range(10), range(10, 20)):
        own = start("--data-dir", str(tmp_path))
        with Crew(own.address) as crew:
            run = crew.join(name, "a", policy=policy)
            train(run, steps)
            found = run.pull_rows({"user": range(40), "item": range(40)})
            described = run.refresh().tables["item"]
        own.stop()
    same_bits(found, expected)
    assert described.rows == len({each for number in range(20) for each in ids_of(number)})


def ids_of(number: int) -> list[int]:
    ids: list[int] = np.random.default_rng(number).integers(0, 40, 16).tolist()
    return ids


def test_going_back_forgets_what_was_accumulated(start: Callable[..., Server], name: str, tmp_path: Path) -> None:
    policy = {"name": "async", "accumulate": 2}
    own = start("--data-dir", str(tmp_path))
    with Crew(own.address) as crew:
        run = crew.join(name, "a", policy=policy)
        run.step(dense(1.0), rows={"user": rows(1.0, 1)})
        run.step(dense(1.0), rows={"user": rows(1.0, 1)})
        run.save_checkpoint("one")
        run.step(dense(1.0), rows={"user": rows(100.0, 1)})
        run.restore_checkpoint("one")
        run.step(dense(1.0), rows={"user": rows(2.0, 1)})
        run.step(dense(1.0), rows={"user": rows(4.0, 1)})
        assert first_of(run, "user", 1) == [-4.0]
