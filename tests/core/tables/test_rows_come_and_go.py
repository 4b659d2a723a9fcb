"""Admission and eviction against models that count in dicts."""

import numpy as np
import pytest

from stepwell_server.core.errors import TableFull
from stepwell_server.core.tables import eviction
from tests.core.tables.local import LocalTable, load, state_of


class Model:
    """Which rows there are: by id, the commit that touched them last."""

    def __init__(self, rows_max=1 << 60, by=None, age=None, touches=1):
        self.rows_max, self.by, self.age, self.touches = rows_max, by, age, touches
        self.rows, self.counts = {}, {}
        self.step = self.created = self.evicted = self.refused = 0

    def push(self, ids):
        self.step += 1
        batch = list(dict.fromkeys(ids))
        new = []
        for number in batch:
            if number in self.rows:
                continue
            if self.counts.get(number, 0) + 1 >= self.touches:
                new.append(number)
            else:
                self.counts[number] = self.counts.get(number, 0) + 1
                self.refused += 1
        idle = sorted((touched, number) for number, touched in self.rows.items() if number not in set(batch))
        if self.by == "age":
            gone = [number for touched, number in idle if self.step - touched > self.age]
        elif self.by == "least_recent":
            gone = [number for _, number in idle[: max(0, len(self.rows) + len(new) - self.rows_max)]]
        else:
            gone = []
        for number in gone:
            del self.rows[number]
        self.evicted += len(gone)
        self.created += len(new)
        for number in batch:
            if number in self.rows or number in new:
                self.rows[number] = self.step


def follow(table, model, batches):
    for ids in batches:
        table.push(ids, 1.0)
        model.push([int(number) for number in ids])
        found = table.table.statistics
        assert (found.rows, found.created, found.evicted, found.refused) == (
            len(model.rows),
            model.created,
            model.evicted,
            model.refused,
        ), f"after commit {model.step}"
    state = state_of(table)
    assert dict(zip(state["ids"].tolist(), state["touched"].tolist(), strict=True)) == model.rows


def zipf_batches(seed, count=150, size=30, most=400):
    random = np.random.default_rng(seed)
    return [np.minimum(random.zipf(1.3, size), most) * 7919 - 1000 for _ in range(count)]


@pytest.fixture
def short_queue(monkeypatch):
    """A queue that does not hold all rows, as in tables with millions of them."""
    monkeypatch.setattr(eviction, "_QUEUE_MIN", 32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("touches", [1, 3])
def test_least_recent_rows_go_where_there_is_no_room(seed, touches, device, short_queue):
    table = LocalTable(device, rows_max=90, eviction={"by": "least_recent"}, admission={"touches": touches})
    follow(table, Model(90, "least_recent", touches=touches), zipf_batches(seed))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("age", [1, 5, 40])
def test_rows_go_when_they_are_old(seed, age, device, short_queue):
    follow(LocalTable(device, eviction={"by": "age", "age": age}), Model(by="age", age=age), zipf_batches(seed))


def test_many_rows_of_one_commit_go_in_the_order_of_their_ids(device, short_queue):
    table, model = LocalTable(device, rows_max=2000, eviction={"by": "least_recent"}), Model(2000, "least_recent")
    random = np.random.default_rng(5)
    ids = random.permutation(np.arange(-1000, 1000))
    follow(table, model, [ids, *(np.arange(5000 + 10 * step, 5010 + 10 * step) for step in range(30))])


def test_a_batch_larger_than_the_table_is_refused(device):
    table = LocalTable(device, rows_max=10, eviction={"by": "least_recent"})
    table.push(range(8), 1.0)
    before = state_of(table)
    with pytest.raises(TableFull, match="at most 10"):
        table.push(range(4, 20), 1.0)
    np.testing.assert_array_equal(state_of(table)["touched"], before["touched"])
    table.push(range(4, 14), 1.0)
    assert state_of(table)["ids"].tolist() == list(range(4, 14))


def test_age_evicts_and_a_full_table_still_refuses(device):
    table = LocalTable(device, rows_max=10, eviction={"by": "age", "age": 2})
    table.push(range(10), 1.0)
    with pytest.raises(TableFull):
        table.push([20], 1.0)
    for _ in range(2):
        table.push([0], 1.0)
    table.push([20], 1.0)
    assert state_of(table)["ids"].tolist() == [0, 20]
    assert table.table.statistics.evicted == 9


def test_rows_are_evicted_where_memory_allows_no_more(device):
    table = LocalTable(device, width=64, eviction={"by": "least_recent"}, rows_max=1 << 30)
    assert not table.table.evicts_for_room
    table.push([1], 1.0)
    capacity = table.table.rows.capacity
    assert table.table.evicts_for_room
    table.push(range(capacity), 1.0)
    table.finish(table.prepare(range(capacity, capacity + 5), 1.0, grow=False))
    ids = state_of(table)["ids"]
    assert len(ids) == capacity
    assert ids.tolist() == list(range(5, capacity + 5))
    with pytest.raises(TableFull):
        table.prepare(range(capacity + 1), 1.0, grow=False)


def test_a_row_that_went_begins_anew(device):
    table = LocalTable(device, rows_max=2, eviction={"by": "least_recent"})
    first = table.pull([1, 2, 3])
    table.push([1, 2], 1.0)
    table.push([3], 1.0)
    np.testing.assert_array_equal(table.pull([1]), first[:1])
    table.push([1], 0.0)
    np.testing.assert_array_equal(table.pull([1]), first[:1])
    assert (table.pull([3]) != first[2]).all()


def test_gradients_before_admission_are_dropped(device):
    table = LocalTable(device, optimizer="sgd", hyperparameters={"lr": 1.0}, admission={"touches": 3}, width=1)
    first = table.pull([1, 2])
    for _ in range(2):
        table.push([1, 1, 2], 1.0)
        np.testing.assert_array_equal(table.pull([1, 2]), first)
    table.push([1], 1.0)
    np.testing.assert_allclose(table.pull([1, 2]), first - [[1], [0]], rtol=1e-6)
    assert table.table.statistics.refused == 4
    hold = table.table.hold()
    loaded = load(table, hold, device)
    table.release(hold)
    loaded.push([2, 3], 1.0)
    np.testing.assert_allclose(loaded.pull([2]), first[1:] - 1, rtol=1e-6)
    assert loaded.table.statistics.rows == 2


def test_admission_takes_no_more_memory_than_it_may_and_forgets_the_rare(device):
    table = LocalTable(device, admission={"touches": 2, "bytes_max": 4096}, width=1)
    assert table.table.admission is not None
    assert table.table.admission.own_size.elements == 4096
    random = np.random.default_rng(8)
    admitted = 0
    for _ in range(40):
        # 200 ids that come once, among 1,024 cells in each line: without forgetting all would soon be let in.
        once = random.integers(1 << 20, 1 << 60, 200)
        before = table.table.statistics.created
        table.push([*once, 1, 2], 1.0)
        admitted += table.table.statistics.created - before
    assert {1, 2} <= set(state_of(table)["ids"].tolist())
    assert admitted < 0.2 * 40 * 200


@pytest.mark.parametrize("seed", range(3))
def test_index_rows_and_free_places_agree_through_a_long_life(seed, device, short_queue):
    random = np.random.default_rng(seed)
    table = LocalTable(device, width=2, optimizer="sgd", eviction={"by": "age", "age": 6}, rows_max=5000)
    values = {}
    for _ in range(120):
        ids = random.integers(0, 3000, int(random.integers(0, 200)))
        before = dict(zip(range(3000), table.pull(range(3000)), strict=True))
        grads = random.normal(size=(len(ids), 2)).astype(np.float32)
        table.push(ids, grads)
        values = {number: before[number] for number in set(ids.tolist())}
        for number in values:
            for grad in grads[ids == number][:1] if (ids == number).sum() == 1 else []:
                values[number] = values[number] - np.float32(1e-3) * grad
        single = [number for number in values if (ids == number).sum() == 1]
        np.testing.assert_allclose(
            table.pull(single), [values[number] for number in single] or np.zeros((0, 2)), rtol=1e-5, atol=1e-8
        )
        assert table.table.live == len(state_of(table)["ids"]) == table.table.index.entries
        rows = table.table.rows
        assert rows.used == table.table.live + rows.free_count
