"""A table's commits: the same bits as a dense kernel, whole or without effect, and readers that keep what they have."""

from typing import Any

import numpy as np
import pytest

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.errors import (
    ChangeRefused,
    InvalidRows,
    InvalidSpec,
    InvalidValue,
    MemoryExhausted,
    RowsNotSupported,
    TableFull,
    TablesUnavailable,
    UnknownArgument,
)
from stepwell_server.core.settings import make_settings
from stepwell_server.core.tables import Table, TableSpec
from tests.core.local import LocalRun
from tests.core.tables.local import KEY, START, LocalTable, arrays_of, load, state_of

DENSE = [
    ("sgd", "torch", {"momentum": 0.9, "dampening": 0.1}),
    ("adagrad", "torch", {"lr_decay": 0.01}),
    ("adam", "torch", {"amsgrad": True, "weight_decay": 0.01}),
    ("adamw", "keras", {}),
    ("sparse_adam", "torch", {}),
    ("nadam", "torch", {}),
    ("rmsprop", "optax", {"lr": 0.01, "centered": True}),
    ("madgrad", "optax", {"lr": 0.01}),
    ("ftrl", "keras", {"l1": 0.001}),
]


@pytest.mark.parametrize(("optimizer", "flavor", "given"), DENSE, ids=[f"{name}-{flavor}" for name, flavor, _ in DENSE])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 67])
def test_rows_touched_at_every_step_have_the_dense_kernels_bits(optimizer, flavor, given, dtype, width, device):
    count, random = 40, np.random.default_rng(11)
    spec: dict[str, Any] = {
        "optimizer": optimizer,
        "flavor": flavor,
        "hyperparameters": given,
        "dtype": dtype,
        "width": width,
    }
    modes = ["lazy", *(["exact"] if optimizer in ("sgd", "adagrad", "rmsprop", "madgrad") else [])]
    tables = [LocalTable(device, **spec, sparse_mode=mode) for mode in modes]
    ids = random.integers(-(1 << 62), 1 << 62, count)
    start = tables[0].pull(ids)
    run = LocalRun({"w": start}, optimizer, flavor=flavor, hyperparameters=given, device=device)
    for _ in range(12):
        grads = random.normal(size=(count, width)).astype(dtype)
        expected = run.step({"w": grads})["w"]
        order = random.permutation(count)
        for table in tables:
            table.push(ids[order], grads[order])
            np.testing.assert_array_equal(table.pull(ids), expected)
    state = state_of(tables[0])
    order = np.argsort(ids)
    group = run.run.groups[0]
    for name in tables[0].settings.slots:
        dense = group.layout.state.view(group.vectors[name].vector, 0)
        np.testing.assert_array_equal(state[f"slot.{name}"], dense[order])


def test_duplicates_are_summed_in_their_order(device):
    table = LocalTable(device, optimizer="sgd", hyperparameters={"lr": 1.0}, width=3)
    ids, random = np.random.default_rng(2).integers(0, 30, 200), np.random.default_rng(3)
    grads = random.normal(size=(200, 3)).astype(np.float32)
    before = table.pull(range(30))
    sums: dict[int, np.ndarray] = {}
    for number, grad in zip(ids.tolist(), grads, strict=True):
        sums[number] = sums[number] + grad if number in sums else grad.copy()
    table.push(ids, grads)
    expected = [before[number] - sums[number] if number in sums else before[number] for number in range(30)]
    np.testing.assert_array_equal(table.pull(range(30)), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_make_no_difference(threads, kernel_directory, device):
    other = CpuDevice(threads, kernel_directory)
    tables = [LocalTable(each, optimizer="adam", width=64) for each in (device, other)]
    for step in range(4):
        random = np.random.default_rng(step)
        ids, grads = random.integers(0, 5000, 6000), random.normal(size=(6000, 64)).astype(np.float32)
        for table in tables:
            table.push(ids, grads)
    first, second = (state_of(table) for table in tables)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    other.close()


def test_gradients_may_be_read_only(device):
    """They may lie in a message, or in a worker's memory."""
    table = LocalTable(device, optimizer="sgd", hyperparameters={"lr": 1.0}, width=2)
    ids, grads = np.array([1, 1, 2]), np.ones((3, 2), np.float32)
    for array in (ids, grads):
        array.flags.writeable = False
    before = table.pull([1, 2])
    table.push(ids, grads)
    np.testing.assert_allclose(table.pull([1, 2]), before - [[2], [1]], rtol=1e-6)
    assert (grads == 1).all()


# Refusals.


@pytest.mark.parametrize(
    ("ids", "grads"),
    [
        (np.zeros(2, np.int32), np.zeros((2, 4), np.float32)),
        (np.zeros(2, np.float64), np.zeros((2, 4), np.float32)),
        (np.zeros((2, 1), np.int64), np.zeros((2, 4), np.float32)),
        (np.zeros(2, np.int64), np.zeros((2, 5), np.float32)),
        (np.zeros(2, np.int64), np.zeros((3, 4), np.float32)),
        (np.zeros(2, np.int64), np.zeros((2, 4), np.float64)),
        (np.zeros(2, np.int64), np.zeros((4, 2), np.float32).T),
    ],
)
def test_ids_and_gradients_of_another_form_are_refused(ids, grads, device):
    table = LocalTable(device)
    with pytest.raises(InvalidRows, match="expected"):
        table.table.prepare(ids, grads, START)
    with pytest.raises(InvalidRows, match="expected"):
        table.table.pull(ids, grads)


def state_and_memory(table):
    return state_of(table), table.table.statistics, table.memory.used_bytes


def expect_same(before, after):
    for name, array in before[0].items():
        np.testing.assert_array_equal(array, after[0][name])
    assert before[1].rows == after[1].rows
    assert before[1].created == after[1].created


def test_more_rows_than_allowed_are_refused_and_nothing_changes(device):
    table = LocalTable(device, rows_max=5)
    table.push(range(4), 1.0)
    before = state_and_memory(table)
    with pytest.raises(TableFull, match=r"2 new rows .* 4 .* at most 5"):
        table.push([0, 10, 11], 1.0)
    expect_same(before, state_and_memory(table))
    table.push([0, 10, 10], 1.0)
    assert table.table.statistics.rows == 5


def test_memory_that_runs_out_changes_nothing(device):
    table = LocalTable(device, memory_bytes=2_000_000, width=64)
    table.push(range(100), 1.0)
    before = state_and_memory(table)
    with pytest.raises(MemoryExhausted):
        table.push(range(50_000), 1.0)
    expect_same(before, state_and_memory(table))
    table.push(range(50, 150), 1.0)
    assert table.table.statistics.rows == 150


def test_memory_can_be_refused_at_every_turn(device):
    """Whatever it is that does not fit, the table is as before, and the commit can be made when it does."""
    for refused in range(12):
        table = LocalTable(
            device, optimizer="rmsprop", sparse_mode="exact", hyperparameters={"momentum": 0.5}, width=16
        )
        table.push(range(100), 1.0)
        expected = LocalTable(
            device, optimizer="rmsprop", sparse_mode="exact", hyperparameters={"momentum": 0.5}, width=16
        )
        expected.push(range(100), 1.0)
        before = state_and_memory(table)
        hold = table.table.hold()
        ids = np.concatenate([np.arange(20_000), np.arange(90, 5_000)])
        grads = np.ones((len(ids), 16), np.float32)
        commit = table.table.prepare(ids, grads, table.moment)
        turns = 0
        while commit.sizes and turns < refused:
            commit.take(table.memory.allocate(commit.sizes, "test"))
            turns += 1
        if not commit.sizes:
            break
        table.memory.free(table.table.discard(commit))
        expect_same(before, state_and_memory(table))
        table.release(hold)
        table.push(ids, grads)
        expected.push(ids, grads)
        first, second = state_of(table), state_of(expected)
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])
    assert refused > 3


def test_coefficients_that_cannot_be_held_change_nothing(device):
    table = LocalTable(
        device, optimizer="sgd", schedules={"lr": {"name": "table", "values": [0.1, 1e39, 0.1]}}, hyperparameters={}
    )
    table.push([1], 1.0)
    before = state_and_memory(table)
    table.commits = 1
    with pytest.raises(InvalidValue, match="cannot hold"):
        table.push([1, 2], 1.0)
    expect_same(before, state_and_memory(table))


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"optimizer": "lamb", "hyperparameters": {"lr": 0.1}}, RowsNotSupported, "whole tensors"),
        ({"optimizer": "muon"}, RowsNotSupported, "whole tensors"),
        ({"optimizer": "sophia", "hyperparameters": {"lr": 1.0}}, RowsNotSupported, "hessian"),
        ({"optimizer": "nag", "hyperparameters": {"lr": 0.1, "serve": "theta"}}, RowsNotSupported, "serves"),
        ({"optimizer": "adam", "sparse_mode": "exact"}, RowsNotSupported, '"lazy", or a dense parameter'),
        ({"optimizer": "sparse_adam", "sparse_mode": "exact"}, RowsNotSupported, "closed form"),
        (
            {"optimizer": "sgd", "sparse_mode": "exact", "hyperparameters": {"weight_decay": 0.1}},
            RowsNotSupported,
            "weight_decay",
        ),
        (
            {
                "optimizer": "ftrl",
                "sparse_mode": "exact",
                "schedules": {"l2_shrinkage": {"name": "table", "values": [0.0]}},
            },
            RowsNotSupported,
            "l2_shrinkage",
        ),
        (
            {
                "optimizer": "madgrad",
                "sparse_mode": "exact",
                "hyperparameters": {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
            },
            RowsNotSupported,
            "decay",
        ),
        ({"width": 0}, InvalidValue, "width"),
        ({"width": 65_537}, InvalidValue, "width"),
        ({"width": 2.0}, InvalidValue, "width"),
        ({"width": True}, InvalidValue, "width"),
        ({"dtype": "float16"}, InvalidValue, "dtype"),
        ({"rows_max": 0}, InvalidValue, "rows_max"),
        ({"seed": 1 << 63}, InvalidValue, "seed"),
        ({"sparse_mode": "dense"}, InvalidValue, "lazy, exact"),
        ({"initializer": {"name": "normals"}}, InvalidSpec, "did you mean 'normal'"),
        ({"initializer": {"name": "normal", "sigma": 1.0}}, UnknownArgument, "sigma"),
        ({"initializer": {"name": "normal", "std": -1.0}}, InvalidValue, "std"),
        ({"initializer": {"name": "uniform", "minimum": 1.0, "maximum": 0.0}}, InvalidValue, "minimum"),
        ({"initializer": {"name": "constant", "value": float("nan")}}, InvalidValue, "value"),
        ({"initializer": "normal"}, InvalidValue, "initializer"),
        ({"admission": {}}, InvalidValue, "touches"),
        ({"admission": {"touches": 256}}, InvalidValue, "touches"),
        ({"admission": {"touches": 2, "bytes_max": 0}}, InvalidValue, "bytes_max"),
        ({"eviction": {"by": "random"}}, InvalidSpec, "least_recent"),
        ({"eviction": {"by": "age"}}, InvalidValue, "age"),
        ({"eviction": {"by": "age", "age": 0}}, InvalidValue, "age"),
        ({"eviction": {"by": "least_recent", "age": 3}}, UnknownArgument, "age"),
        ({"capacity": 3}, InvalidSpec, "capacity"),
        ({"optimizer": 3}, InvalidValue, "optimizer"),
        ({"hyperparameters": 3}, InvalidValue, "hyperparameters"),
    ],
)
def test_a_spec_that_makes_no_sense_says_what_to_do(spec, error, words):
    with pytest.raises(error, match=words):
        TableSpec.from_data({"name": "user", "width": 4, **spec}).settings(START)


def test_a_spec_comes_back_from_plain_data():
    spec = TableSpec.from_data(
        {"name": "user", "width": 4, "initializer": {"name": "normal"}, "admission": {"touches": 2}, "seed": -5}
    )
    assert spec.initializer == {"name": "normal", "mean": 0.0, "std": 0.05}
    assert TableSpec.from_data(spec.to_data()) == spec
    with pytest.raises(InvalidSpec, match="width"):
        TableSpec.from_data({"name": "user"})


def test_another_device_has_no_tables():
    spec = TableSpec.from_data({"name": "user", "width": 4})
    settings = spec.settings(START)
    with pytest.raises(TablesUnavailable, match="--device cpu"):
        Table(spec, settings, object(), [], START, KEY)  # type: ignore[arg-type]


# Changes.


def test_a_change_takes_effect_with_its_commit(device):
    table = LocalTable(device, optimizer="sgd", hyperparameters={"lr": 1.0}, width=1)
    before = table.pull([1])
    changed = table.settings.changed(table.moment, {"lr": 10.0}, {})
    table.push([1], 1.0)
    table.push([1], 1.0, settings=changed)
    table.push([1], 1.0)
    np.testing.assert_allclose(table.pull([1]), before - 21, rtol=1e-6)


def test_a_changed_learning_rate_counts_from_its_commit_for_rows_that_wait(device):
    given = {"lr": 1.0, "momentum": 0.5}
    table = LocalTable(device, optimizer="sgd", hyperparameters=given, sparse_mode="exact", width=1, dtype="float64")
    before = table.pull([1])
    table.push([1], 1.0)  # moves by 1, holds 1
    table.push([2], 1.0)  # 0.5
    table.push([2], 1.0, settings=table.settings.changed(table.moment, {"lr": 10.0}, {}))  # 0.25 * 10
    np.testing.assert_allclose(table.pull([1]), before - 1 - 0.5 - 2.5, rtol=1e-12)
    with pytest.raises(ChangeRefused):
        table.table.set_settings(
            make_settings(
                "sgd", "keras", {"lr": 1.0, "momentum": 0.5, "lr_in_momentum": False, "weight_decay": 0.1}, {}, START
            )
        )
    table.push([1], 0.0)


# Readers.


def test_what_is_held_never_changes(device):
    """Chunks of 64 bytes' worth of rows: every commit touches some that are held."""
    table = LocalTable(
        device,
        optimizer="sgd",
        hyperparameters={"lr": 0.1, "momentum": 0.9},
        sparse_mode="exact",
        width=3000,
        rows_max=60,
        eviction={"by": "least_recent"},
        admission={"touches": 2, "bytes_max": 4096},
    )
    random = np.random.default_rng(4)
    holds = []
    for step in range(60):
        ids = random.integers(0, 100, 12)
        table.push(ids, random.normal(size=(12, 3000)))
        if step % 4 == 0:
            hold = table.table.hold()
            assert hold.counts is not None
            holds.append((hold, arrays_of(hold), hold.counts.copy(), hold.to_data()))
        if len(holds) == 5:
            hold, expected, counts, data = holds.pop(int(random.integers(0, 5)))
            for name, array in arrays_of(hold).items():
                np.testing.assert_array_equal(array, expected[name])
            np.testing.assert_array_equal(hold.counts, counts)
            assert hold.to_data() == data
            table.release(hold)
    assert len(table.table.rows) > 2
    for hold, *_ in holds:
        table.release(hold)
    table.memory.drop_kept()
    assert table.memory.used_bytes == sum(vector.nbytes + 64 for vector in table.table.vectors)


def test_everything_is_in_the_budget_and_comes_back(device):
    table = LocalTable(device, optimizer="adam", width=32, eviction={"by": "age", "age": 3}, admission={"touches": 1})
    for step in range(5):
        table.push(range(step * 1000, step * 1000 + 3000), 1.0)
    table.memory.drop_kept()
    assert table.memory.used_bytes == sum(vector.nbytes + 64 for vector in table.table.vectors)
    assert table.table.statistics.state_bytes > 3000 * 3 * 32 * 4
    hold = table.table.hold()
    expected = arrays_of(hold)
    table.push(range(10), 1.0)
    table.memory.free(table.table.drop())
    for name, array in arrays_of(hold).items():
        np.testing.assert_array_equal(array, expected[name])
    table.release(hold)
    table.memory.drop_kept()
    assert table.memory.used_bytes == 0


@pytest.mark.parametrize("mode", ["lazy", "exact"])
def test_a_stored_state_goes_on_as_if_nothing_had_been(mode, device):
    spec: dict[str, Any] = {
        "optimizer": "nadam" if mode == "lazy" else "rmsprop",
        "hyperparameters": {} if mode == "lazy" else {"momentum": 0.7},
        "sparse_mode": mode,
        "width": 5,
        "dtype": "float64",
        "eviction": {"by": "least_recent"},
        "rows_max": 120,
        "admission": {"touches": 2},
    }
    table = LocalTable(device, **spec)
    random = np.random.default_rng(6)
    history = [(random.integers(0, 200, 20), random.normal(size=(20, 5))) for _ in range(80)]
    for ids, grads in history[:40]:
        table.push(ids, grads)
    hold = table.table.hold()
    for ids, grads in history[40:45]:
        table.push(ids, grads)
    loaded = load(table, hold, device)
    loaded.commits = 40
    table.release(hold)
    assert hold.rows == loaded.table.statistics.rows
    for ids, grads in history[40:45]:
        loaded.push(ids, grads)
    for ids, grads in history[45:]:
        table.push(ids, grads)
        loaded.push(ids, grads)
    first, second = state_of(table), state_of(loaded)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, rtol=1e-12, atol=1e-15, err_msg=name)
    assert table.table.statistics.created == loaded.table.statistics.created
    assert table.table.statistics.evicted == loaded.table.statistics.evicted
    np.testing.assert_allclose(loaded.pull(range(300)), table.pull(range(300)), rtol=1e-12, atol=1e-15)


def test_rows_of_a_wide_table_do_not_meet(device):
    """One row fills a chunk."""
    table = LocalTable(device, optimizer="sgd", hyperparameters={"lr": 1.0}, width=65_536, dtype="float64")
    before = table.pull([1, 2, 3])
    table.push([1, 3], np.array([[1.0], [2.0]]))
    np.testing.assert_allclose(table.pull([1, 2, 3]), before - [[1], [0], [2]], rtol=1e-12)
