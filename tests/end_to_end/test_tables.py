"""Embedding tables through the real server: rows that are created, trained and pulled, over either transport."""

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import stepwell
from stepwell import _carrier, aio
from stepwell._shared import ROWS_BYTES_MIN, SHARED_BYTES_MIN
from tests.end_to_end.proxy import Proxy
from tests.end_to_end.pushing import Pushed, Repeater, new_seed
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits

Connect = Callable[..., stepwell.Client]
Rows = Mapping[str, tuple[Any, np.ndarray[Any, Any]]]

WIDTH = 8
LR = 0.5
START: Arrays = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.zeros(3)}
TABLES: list[dict[str, Any]] = [
    {"name": "user", "width": WIDTH, "optimizer": "adagrad", "hyperparameters": {"lr": 0.1}, "seed": 3},
    {
        "name": "item",
        "width": 3,
        "dtype": "float64",
        "optimizer": "sgd",
        "hyperparameters": {"lr": 0.25, "momentum": 0.5},
        "initializer": {"name": "normal", "std": 0.5},
    },
]


def create(client: stepwell.Client, name: str, tables: Any = TABLES, start: Arrays = START, **more: Any) -> Any:
    return client.create_run(name, start, optimizer="sgd", hyperparameters={"lr": LR}, tables=tables, **more)


@pytest.fixture(params=["stream", "shared_memory"])
def transport(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def run(server: Server, connect: Connect, name: str, transport: str) -> Any:
    return create(connect(server, transport=transport), name)


def drawn(seed: int, count: int, of: int = 40) -> dict[str, tuple[Any, np.ndarray[Any, Any]]]:
    """Rows for both tables: ids from a few, so that they come again, and far apart."""
    rng = np.random.default_rng(seed)
    spread = np.int64(2**62 // of)
    return {
        "user": (rng.integers(-of, of, count) * spread, rng.standard_normal((count, WIDTH)).astype(np.float32)),
        "item": (rng.integers(0, of, count // 2 + 1), rng.standard_normal((count // 2 + 1, 3))),
    }


class Loop:
    """The catalogue's equations for one row after another, in float64, from what the rows began with.

    adagrad (1a): sum += g**2; p -= lr * g / (sqrt(sum) + eps). sgd with momentum: b = g the first time, then
    b = momentum * b + g; p -= lr * b. Gradients of an id that comes twice are summed first.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], tuple[Any, Any]] = {}

    def begin(self, table: str, ids: Any, values: np.ndarray[Any, Any]) -> None:
        for number, value in zip(np.ravel(ids), values.reshape(-1, values.shape[-1]), strict=True):
            self.rows.setdefault((table, int(number)), (value.astype(np.float64), None))

    def push(self, rows: Rows) -> None:
        for table, (ids, grads) in rows.items():
            summed: dict[int, Any] = {}
            for number, gradient in zip(ids, grads.astype(np.float64), strict=True):
                summed[int(number)] = summed.get(int(number), 0) + gradient
            for number, gradient in summed.items():
                value, slot = self.rows[table, number]
                if table == "user":
                    slot = (0 if slot is None else slot) + gradient**2
                    value = value - 0.1 * gradient / (np.sqrt(slot) + 1e-10)
                else:
                    slot = gradient if slot is None else 0.5 * slot + gradient
                    value = value - 0.25 * slot
                self.rows[table, number] = value, slot

    def check(self, table: str, ids: Any, values: np.ndarray[Any, Any]) -> None:
        expected = np.array([self.rows[table, int(number)][0] for number in np.ravel(ids)]).reshape(values.shape)
        tolerance = 2e-5 if values.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


# 1. What rows are.


def test_rows_train_as_the_catalogue_says(run: Any) -> None:
    loop = Loop()
    for seed in range(12):
        rows = drawn(seed, 30)
        pulled = run.pull_rows({table: ids for table, (ids, _) in rows.items()})
        for table, (ids, _) in rows.items():
            loop.begin(table, ids, pulled[table])
            loop.check(table, ids, pulled[table])
        assert run.push_rows(rows) == seed + 1
        loop.push(rows)
        for table, (ids, _) in rows.items():
            shaped = ids.reshape(-1, 1)
            values = run.pull_rows(table, shaped)
            assert values.shape == (len(ids), 1, WIDTH if table == "user" else 3)
            loop.check(table, shaped, values)
    described = run.refresh().tables
    assert [(each.name, each.optimizer, each.step) for each in described.values()] == [
        ("user", "adagrad", 12),
        ("item", "sgd", 12),
    ]
    for table, described_table in described.items():
        rows_count = len({number for name, number in loop.rows if name == table})
        assert described_table.rows == described_table.created == rows_count
    assert (described["user"].slots, described["item"].slots) == (("sum",), ("momentum_buffer",))
    assert (described["user"].width, described["item"].dtype) == (WIDTH, np.float64)
    assert described["user"].hyperparameters["lr"] == 0.1
    same_bits(run.pull(), START)


def test_a_row_begins_the_same_whoever_asks_and_whoever_makes_it(
    server: Server, connect: Connect, run: Any, name: str
) -> None:
    ids = np.array([0, -1, 2**63 - 1, -(2**63), 12345])
    before = run.pull_rows("user", ids)
    assert run.refresh().tables["user"].rows == 0
    assert len(np.unique(before)) == before.size
    assert np.abs(before).max() <= 0.05
    other = connect(server).get_run(name)
    assert other.push_rows("user", ids[::-1], np.zeros((5, WIDTH), np.float32)) == 1
    assert run.pull_rows("user", ids).tobytes() == before.tobytes()
    assert run.refresh().tables["user"].rows == 5
    twin = create(connect(server), f"{name}-twin")
    assert twin.pull_rows("user", ids).tobytes() == before.tobytes()


def test_rows_and_dense_gradients_are_one_commit(run: Any) -> None:
    rows = drawn(1, 20)
    loop = Loop()
    for table, (ids, _) in rows.items():
        loop.begin(table, ids, run.pull_rows(table, ids))
    grads = {"w": np.ones((3, 4), np.float32), "b": np.ones(3)}
    stepped = run.step(grads, rows=rows)
    assert run.version == 1
    same_bits(stepped, {"w": START["w"] - np.float32(LR), "b": START["b"] - LR})
    assert run.push(grads | {"w": None}, rows={"user": rows["user"]}) == 2
    loop.push(rows)
    loop.push({"user": rows["user"]})
    same_bits(run.pull(), {"w": START["w"] - np.float32(LR), "b": START["b"] - 2 * LR})
    for table, (ids, _) in rows.items():
        loop.check(table, ids, run.pull_rows(table, ids))
    assert run.get_state().steps == {"w": 1, "b": 2}


def test_no_rows_at_all(run: Any) -> None:
    assert run.push_rows("user", [], []) == 1
    assert run.pull_rows("user", []).shape == (0, WIDTH)
    pulled = run.pull_rows({"user": np.zeros((2, 0), np.int64), "item": [5]})
    assert (pulled["user"].shape, pulled["item"].shape) == ((2, 0, WIDTH), (1, 3))
    assert run.refresh().tables["user"].rows == 0


def test_hyperparameters_for_one_table(run: Any) -> None:
    before = run.pull_rows("item", [1])
    grads = np.ones((1, 3))
    run.push_rows("item", [1], grads, samples=7, hyperparameters={"item": {"lr": 2.0}})
    np.testing.assert_allclose(run.pull_rows("item", [1]), before - 2.0)
    described = run.refresh()
    assert [table.hyperparameters["lr"] for table in described.tables.values()] == [0.1, 2.0]
    assert described.groups[0].hyperparameters["lr"] == LR
    assert described.samples == 7


def test_a_run_that_trains_tables_alone(server: Server, connect: Connect, name: str) -> None:
    run = create(connect(server), name, groups=[{"name": "fixed", "parameters": ["*"], "frozen": True}])
    before, grads = run.pull_rows("user", [1, 2]), np.ones((2, WIDTH), np.float32)
    assert run.push_rows("user", [1, 2], grads) == 1
    same_bits(run.step({}, rows={"user": ([1, 2], grads)}), START)
    after = before - np.float32(0.1 + 0.1 / np.sqrt(2))
    np.testing.assert_allclose(run.pull_rows("user", [1, 2]), after, rtol=1e-5)


async def test_awaiting(server: Server, name: str) -> None:
    async with aio.connect(server.address) as client:
        run: Any = await create(client, name)  # type: ignore[arg-type]  # the awaiting client
        rows = drawn(2, 50)
        loop = Loop()
        pulled = await run.pull_rows({table: ids for table, (ids, _) in rows.items()})
        for table, (ids, _) in rows.items():
            loop.begin(table, ids, pulled[table])
        assert await run.push_rows(rows) == 1
        await run.step({"w": np.ones((3, 4), np.float32), "b": None}, rows=rows)
        loop.push(rows)
        loop.push(rows)
        many = rows["user"][0], *(np.arange(9) for _ in range(3))
        values = await asyncio.gather(*(run.pull_rows("user", ids) for ids in many))
        loop.check("user", many[0], values[0])
        assert len({value.tobytes() for value in values[1:]}) == 1
        large = np.arange(40_000)
        grads = np.ones((40_000, WIDTH), np.float32)
        before = await run.pull_rows("user", large + 10**6)
        await run.push_rows("user", large + 10**6, grads)
        after = await run.pull_rows("user", large + 10**6)
        np.testing.assert_allclose(after, before - 0.1, atol=1e-6)
        assert run.transport == "shared_memory"


# 2. Transports.


def test_both_transports_give_the_same_bits(server: Server, connect: Connect, name: str) -> None:
    runs = [create(connect(server, transport=each), f"{name}-{each}") for each in ("stream", "shared_memory", "auto")]
    grads = {"w": np.ones((3, 4), np.float32), "b": np.ones(3)}
    # Inline, shared, and more than the first vector for rows has room for.
    for seed, count in enumerate([100, 20_000, 250_000, 50, 200_000]):
        rows = drawn(seed, count, of=1000)
        ids = {table: ids for table, (ids, _) in rows.items()}
        answers = []
        for run in runs:
            if seed % 2:
                answers.append(run.step(grads, rows=rows))
            else:
                run.push_rows(rows)
                answers.append({})
            answers[-1] |= run.pull_rows(ids)
        same_bits(answers[1], answers[0])
        same_bits(answers[2], answers[0])
        if not seed:
            assert [run.transport for run in runs] == ["stream", "shared_memory", "stream"]
    assert [run.transport for run in runs] == ["stream", "shared_memory", "shared_memory"]
    assert [run._worker.shared.rows.nbytes for run in runs[1:]] == [16 << 20] * 2


def test_many_ids_at_once(server: Server, connect: Connect, name: str) -> None:
    sharing = create(connect(server), name)
    count = 500_000
    ids = np.arange(count)
    grads = np.ones((count, 3))
    before = sharing.pull_rows("item", ids)
    assert sharing.push_rows("item", ids, grads) == 1
    np.testing.assert_allclose(sharing.pull_rows("item", ids[::-1]), before[::-1] - 0.25)
    streaming = connect(server, transport="stream").get_run(name)
    with pytest.raises(stepwell.LimitExceeded, match="393,216"):
        streaming.pull_rows("item", ids)
    assert streaming.push_rows("item", ids, grads) == 2
    np.testing.assert_allclose(streaming.pull_rows("item", ids[:300_000]), before[:300_000] - 0.25 - 0.375)


def test_a_session_that_is_lost(server: Server, connect: Connect, name: str) -> None:
    run = create(connect(server, transport="auto"), name)
    count = 2 * SHARED_BYTES_MIN // (4 * WIDTH)
    ids, grads = np.arange(count), np.ones((count, WIDTH), np.float32)
    before = run.pull_rows("user", ids)
    assert run.transport == "shared_memory"
    memory = run._worker.shared

    def lose() -> None:
        """What the server knows no more, as after its restart."""
        run._worker.shared.token = bytes(16)

    lose()
    assert run.push_rows("user", ids, grads) == 1
    assert run.transport == "stream"
    np.testing.assert_allclose(run.pull_rows("user", ids), before - 0.1, atol=1e-6)
    assert run.transport == "shared_memory"
    assert run._worker.shared is not memory
    lose()
    np.testing.assert_allclose(run.pull_rows("user", ids), before - 0.1, atol=1e-6)
    assert run.push_rows("user", ids, grads) == 2
    assert run.transport == "shared_memory"
    assert run.refresh().version == 2


def test_answers_that_do_not_come(server: Server, connect: Connect, name: str) -> None:
    """A pull's values may still be written where they were to come, so its next try takes other memory."""
    with Proxy(server.address) as proxy:
        run = create(connect(proxy.address, silence_seconds=3.0), name)
        ids, grads = np.arange(30_000), np.ones((30_000, 3))
        before = run.pull_rows("item", ids)
        memory = run._worker.shared
        proxy.mute(answers_only=True)
        assert run.push_rows("item", ids, grads) == 1
        assert run._worker.shared is memory
        proxy.mute(answers_only=True)
        np.testing.assert_allclose(run.pull_rows("item", ids), before - 0.25)
        assert run._worker.shared is not memory
        assert run.transport == "shared_memory"
        assert run.refresh().duplicates_count == 1
        memory = run._worker.shared
        proxy.mute(answers_only=True)
        with pytest.raises(stepwell.TimedOut):
            run.pull_rows("item", ids, timeout=0.5)
        assert run._worker.shared is None
        assert memory is not None
        np.testing.assert_allclose(run.pull_rows("item", ids), before - 0.25)


def test_rows_that_do_not_fit_what_the_server_shares(
    server: Server, connect: Connect, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses more than 1 GiB; what is asked for here is larger than it need be, so that the test need not be."""
    monkeypatch.setattr(
        _carrier, "rows_vector_bytes", lambda size: ROWS_BYTES_MIN if size <= ROWS_BYTES_MIN else 2 << 30
    )
    run = create(connect(server, transport="shared_memory"), name)
    ids, grads = np.arange(200_000), np.ones((200_000, 3))
    before = run.pull_rows("item", ids)
    for shared in (True, False):
        run.push_rows("item", ids[:20_000] if shared else ids, grads[:20_000] if shared else grads)
        assert (run.transport, run._worker.shared.rows.nbytes) == ("shared_memory", ROWS_BYTES_MIN)
    after = run.pull_rows("item", ids)
    np.testing.assert_allclose(after[:20_000], before[:20_000] - 0.25 - 0.375)
    np.testing.assert_allclose(after[20_000:], before[20_000:] - 0.25)


def test_views_of_gradients_outlive_a_larger_vector_for_rows(server: Server, connect: Connect, name: str) -> None:
    start = {"w": np.zeros(200_000, np.float32)}
    run = create(connect(server, transport="shared_memory"), name, start=start)
    grads = run.gradients()
    grads["w"].fill(1.0)
    count = 200_000
    run.step(grads, rows={"user": (np.arange(count), np.ones((count, WIDTH), np.float32))})
    np.testing.assert_array_equal(run.pull()["w"], -LR)
    grads["w"].fill(-1.0)
    np.testing.assert_array_equal(run.step(grads)["w"], 0.0)


# 3. One version, once.

COUNTING = [
    {
        "name": each,
        "width": 2,
        "optimizer": "sgd",
        "hyperparameters": {"lr": 1.0},
        "initializer": {"name": "constant", "value": 0.0},
    }
    for each in ("one", "two")
]


@pytest.mark.parametrize("count", [64, 30_000])
def test_a_pull_sees_one_version(server: Server, connect: Connect, name: str, transport: str, count: int) -> None:
    """After version v every element is v, of both tables and of the parameters."""
    writer = create(connect(server), name, COUNTING, {"w": np.zeros(3, np.float32)})
    reader = create(connect(server, transport=transport), name, COUNTING, {"w": np.zeros(3, np.float32)})
    ids = np.arange(count)
    ones = np.full((count, 2), -1, np.float32)
    done = threading.Event()

    def write() -> None:
        try:
            for _ in range(20):
                writer.step({"w": np.full(3, -1 / LR, np.float32)}, rows={"one": (ids, ones), "two": (ids[::-1], ones)})
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while not done.is_set():
            for values in reader.pull_rows({"two": ids, "one": ids}).values():
                assert (values == reader.version).all()
    finally:
        thread.join()
    assert (reader.pull_rows("one", ids) == 20).all()
    np.testing.assert_array_equal(reader.pull()["w"], 20)


def test_through_a_bad_network_every_update_counts_once(
    server: Server, connect: Connect, name: str, transport: str
) -> None:
    seed = int(os.environ.get("STEPWELL_TEST_SEED") or new_seed())
    print(f"seed {seed}; repeat with STEPWELL_TEST_SEED={seed}")  # noqa: T201
    updates = 50
    create(connect(server), name, COUNTING, {"w": np.zeros(3, np.float32)}).close()
    pushed = Pushed()
    chance = random.Random(seed)
    with Proxy(server.address, seed, bytes_mean=400_000 if transport == "stream" else 8_000) as proxy:
        client = connect(proxy.address, transport=transport, silence_seconds=10.0)
        run: Any = client.get_run(name)
        repeater = Repeater(server.address, chance, pushed)
        run._worker.before_answer, run._worker.after_answer = repeater.before_answer, repeater.after_answer
        wanted = np.zeros(20_000, np.int64)
        dense = 0
        for update in range(1, updates + 1):
            count = chance.choice([1, 100, 20_000])
            ids = np.arange(count)
            rows = {"one": (ids, np.full((count, 2), -1, np.float32)), "two": ([7, 7], np.full((2, 2), -1, np.float32))}
            wanted[:count] += 1
            match chance.randrange(3):
                case 0:
                    pushed.versions.append(run.push_rows(rows))
                case 1:
                    dense += 1
                    pushed.versions.append(run.push({"w": np.full(3, -1 / LR, np.float32)}, rows=rows))
                case _:
                    dense += 1
                    stepped = run.step({"w": np.full(3, -1 / LR, np.float32)}, rows=rows)
                    np.testing.assert_array_equal(stepped["w"], dense)
                    pushed.versions.append(run.version)
            assert pushed.versions[-1] == update
            if chance.random() < 0.3:
                np.testing.assert_array_equal(run.pull_rows("one", np.arange(20_000))[:, 0], wanted)
        repeater.close()
        assert proxy.cuts_count
    assert pushed.failures == []
    for sequence, version in pushed.repeated:
        assert pushed.versions[sequence - 1] == version
    assert pushed.repeated
    described = connect(server).get_run(name).refresh()
    assert described.version == updates
    assert described.duplicates_count >= pushed.later_count
    reader: Any = connect(server).get_run(name)
    np.testing.assert_array_equal(reader.pull_rows("one", np.arange(20_000))[:, 1], wanted)
    np.testing.assert_array_equal(reader.pull_rows("two", [7]), [[2 * updates] * 2])


def test_going_back(server: Server, start: Callable[..., Server], connect: Connect, name: str, tmp_path: Any) -> None:
    own = start(data_dir=tmp_path)
    run = create(connect(own), name, COUNTING)
    ids, ones = [1, 2, 3], np.full((3, 2), -1, np.float32)
    run.push_rows("one", ids, ones)
    run.save_checkpoint("kept")
    run.push_rows("one", [3, 4], ones[:2])
    other = connect(own).get_run(name)
    other.push_rows("two", ids, ones)
    run.restore_checkpoint("kept")
    with pytest.raises(stepwell.RunRewound):
        other.push_rows("two", ids, ones)
    pulled = other.pull_rows({"one": [1, 2, 3, 4], "two": ids})
    np.testing.assert_array_equal(pulled["one"][:, 0], [1, 1, 1, 0])
    np.testing.assert_array_equal(pulled["two"], 0)
    assert other.push_rows("two", ids, ones) == 2


# 4. What is refused.


@pytest.fixture
def unchanged(run: Any) -> Iterator[Any]:
    """The run, which must be afterwards what it was."""
    ids = {"user": np.arange(5), "item": np.arange(5)}
    run.push_rows({"user": (ids["user"], np.ones((5, WIDTH), np.float32)), "item": (ids["item"], np.ones((5, 3)))})
    before, parameters = run.pull_rows(ids), run.pull()
    yield run
    assert run.refresh().version == 1
    assert [table.rows for table in run.refresh().tables.values()] == [5, 5]
    same_bits(run.pull_rows(ids), before)
    same_bits(run.pull(), parameters)
    assert run.push_rows("user", [7], np.zeros((1, WIDTH), np.float32)) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("count", [10, 100_000])
def test_rows_that_are_not_finite(unchanged: Any, bad: float, count: int) -> None:
    grads = np.ones((count, 3))
    grads[count - 1, 1] = bad
    dense, users = {"w": np.ones((3, 4), np.float32), "b": np.ones(3)}, np.ones((1, WIDTH), np.float32)
    for call in (
        lambda: unchanged.push_rows("item", np.arange(count), grads),
        lambda: unchanged.step(dense, rows={"user": ([1], users), "item": ([9] * count, grads)}),
    ):
        with pytest.raises(stepwell.NonfiniteGradient, match="item"):
            call()


def test_dense_gradients_that_are_not_finite_take_rows_with_them(unchanged: Any) -> None:
    dense = {"w": np.full((3, 4), np.nan, np.float32), "b": np.ones(3)}
    with pytest.raises(stepwell.NonfiniteGradient):
        unchanged.push(dense, rows={"user": ([1, 9], np.ones((2, WIDTH), np.float32))})


def test_unknown_tables(unchanged: Any) -> None:
    with pytest.raises(stepwell.UnknownTable, match="'users', expected one of 'user', 'item'"):
        unchanged.push_rows("users", [1], np.ones((1, WIDTH), np.float32))
    with pytest.raises(stepwell.UnknownTable):
        unchanged.pull_rows({"user": [1], "users": [1]})


def test_a_full_table(client: stepwell.Client, name: str) -> None:
    run = create(client, name, [{"name": "small", "width": 2, "rows_max": 3}])
    ones = np.ones((4, 2), np.float32)
    run.push_rows("small", [1, 2, 1], ones[:3])
    before = run.pull_rows("small", [1, 2, 3, 4])
    with pytest.raises(stepwell.TableFull):
        run.push_rows("small", [1, 2, 3, 4], ones)
    assert run.pull_rows("small", [1, 2, 3, 4]).tobytes() == before.tobytes()
    assert run.push_rows("small", [3, 1], ones[:2]) == 2
    described = run.refresh().tables["small"]
    assert (described.rows, described.rows_max) == (3, 3)


def test_admission_and_eviction(client: stepwell.Client, name: str) -> None:
    tables = [
        {"name": "admits", "width": 2, "admission": {"touches": 2}},
        {"name": "evicts", "width": 2, "rows_max": 2, "eviction": {"by": "least_recent"}},
    ]
    run = create(client, name, tables)
    one = np.ones((1, 2), np.float32)
    before = run.pull_rows("admits", [5])
    run.push_rows("admits", [5], one)
    assert run.pull_rows("admits", [5]).tobytes() == before.tobytes()
    run.push_rows("admits", [5], one)
    assert (run.pull_rows("admits", [5]) != before).all()
    for number in (1, 2, 1, 3):
        run.push_rows("evicts", [number], one)
    described = run.refresh().tables
    assert (described["admits"].rows, described["admits"].refused) == (1, 1)
    assert (described["evicts"].rows, described["evicts"].created, described["evicts"].evicted) == (2, 3, 1)


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({"name": "a/b", "width": 3}, stepwell.InvalidName),
        ({"name": "t", "width": 1 << 20}, stepwell.InvalidValue),
        ({"name": "t", "width": 3, "dtype": "float16"}, stepwell.InvalidValue),
        ({"name": "t", "width": 3, "optimizer": "adagrat"}, stepwell.UnknownOptimizer),
        ({"name": "t", "width": 3, "flavor": "none"}, stepwell.UnknownFlavor),
        ({"name": "t", "width": 3, "hyperparameters": {"speed": 1.0}}, stepwell.UnknownArgument),
        ({"name": "t", "width": 3, "optimizer": "lamb", "hyperparameters": {"lr": 0.1}}, stepwell.RowsNotSupported),
        ({"name": "t", "width": 3, "sparse_mode": "dense"}, stepwell.InvalidValue),
        ({"name": "t", "width": 3, "initializer": "zeros"}, stepwell.InvalidSpec),
        ({"name": "t", "width": 3, "eviction": {"by": "luck"}}, stepwell.InvalidSpec),
    ],
)
def test_tables_that_the_server_refuses(client: stepwell.Client, name: str, table: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        create(client, name, [table])
    with pytest.raises(stepwell.UnknownRun):
        client.get_run(name)


def test_a_run_with_other_tables_differs(server: Server, connect: Connect, run: Any, name: str) -> None:
    for tables in ([], TABLES[:1], [TABLES[0] | {"seed": 4}, TABLES[1]], [TABLES[0], TABLES[1] | {"width": 4}]):
        with pytest.raises(stepwell.RunDiffers):
            create(connect(server), name, tables)
    run.push_rows("item", [1], np.ones((1, 3)))
    # Names are compared, not order; and whoever finds the run means the tables of its names.
    other = create(connect(server), name, TABLES[::-1])
    assert not other.created
    same_bits(other.pull_rows({"item": [1], "user": [1]}), run.pull_rows({"user": [1], "item": [1]}))
