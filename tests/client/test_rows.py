"""Rows of tables: what is checked, how it is cut, where it lies in shared memory, and what goes over the wire."""

import array
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepwell
from stepwell._layout import Layout
from stepwell._receiving import BufferPool
from stepwell._rows import PULLED_IDS_MAX, ReceivedRows, RowGradients
from stepwell._shared import ROWS_BYTES_MIN, rows_vector_bytes
from stepwell.errors import Internal, InvalidRows, InvalidValue, UnknownTable
from stepwell.v1 import data_pb2, errors_pb2, run_pb2
from stepwell.wire import RANGE_BYTES
from tests.client.fake_server import Cut, FakeServer

F32, F64 = run_pb2.D_TYPE_FLOAT32, run_pb2.D_TYPE_FLOAT64
LR = 0.5
TABLES = [{"name": "user", "width": 3}, {"name": "item", "width": 2, "dtype": "float64"}]
INT64 = np.iinfo(np.int64)


def lay_out(*tables):
    """tables: (name, width, dtype)."""
    return Layout([], [], [run_pb2.LayoutTable(name=name, width=width, dtype=dtype) for name, width, dtype in tables])


LAYOUT = lay_out(("user", 3, F32), ("item", 2, F64), ("wide", 60_000, F64), ("thin", 1, F32))


def row_gradients(ids, grads, table="user"):
    return RowGradients(LAYOUT, {table: (ids, grads)}, "test")


def sent(rows):
    """Ids and gradients of every table, put together from the pieces by the contract alone."""
    ids: dict[int, bytes] = {}
    data: dict[int, bytes] = {}
    for message in rows.messages():
        for piece in message:
            packed = piece.message()
            assert not packed.data
            ids[packed.table] = ids.get(packed.table, b"") + packed.ids
            data[packed.table] = data.get(packed.table, b"") + piece.data.tobytes()
    return ids, data


# 1. What ids and gradients may be.


@pytest.mark.parametrize(
    "ids",
    [
        [5, -1, 5],
        (5, -1, 5),
        np.array([5, -1, 5]),
        np.array([5, -1, 5], np.int8),
        np.array([5, -1, 5], ">i8"),
        np.array([5, 9, -1, 9, 5])[::2],
        np.array([5, -1, 5], np.int64).astype(object).tolist(),
        array.array("q", [5, -1, 5]),
    ],
)
def test_ids_that_are_int64(ids):
    assert sent(row_gradients(ids, np.zeros((3, 3), np.float32)))[0] == {0: struct.pack("<3q", 5, -1, 5)}


def test_the_ends_of_int64():
    ids = np.array([0, 2**63 - 1], np.uint64)
    assert sent(row_gradients(ids, np.zeros((2, 3), np.float32)))[0] == {0: struct.pack("<2q", 0, 2**63 - 1)}
    ends = [INT64.min, INT64.max]
    assert sent(row_gradients(ends, np.zeros((2, 3), np.float32)))[0] == {0: struct.pack("<2q", *ends)}


@pytest.mark.parametrize("ids", [[], (), np.zeros(0, np.int32), np.zeros(0, np.uint64)])
@pytest.mark.parametrize("grads", [[], np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float16)])
def test_no_ids(ids, grads):
    rows = row_gradients(ids, grads)
    assert rows.counts == {0: 0}
    assert list(rows.messages()) == [[]]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([1.0, 2.0, 3.0], "dtype float64"),
        (np.zeros(0, np.float32), "dtype float32"),
        ([True, False, True], "dtype bool"),
        (["a", "b", "c"], "dtype <U1"),
        ([1, 2, 2**64], "dtype object"),
        ([1, 2, None], "dtype object"),
        (np.array([1, 2, 3], "m8[s]"), "dtype timedelta64"),
        (np.array([1, 2**63, 3], np.uint64), rf"got id {2**63} .*view\(np.int64\)"),
        ([[1, 2], [3]], "no array"),
        ([[1, 2, 3]], r"shape \(1, 3\), expected \(n,\)"),
        (3, r"shape \(\), expected \(n,\)"),
        (None, "dtype object"),
    ],
)
def test_ids_that_are_none(ids, text):
    with pytest.raises(InvalidRows, match=text):
        row_gradients(ids, np.zeros((3, 3), np.float32))


@pytest.mark.parametrize(
    ("table", "number", "grads"),
    [
        ("user", 0, np.arange(6, dtype=np.float32).reshape(2, 3)),
        ("user", 0, np.arange(6, dtype=">f4").reshape(2, 3)),
        ("user", 0, np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))),
        ("user", 0, np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]),
        ("user", 0, np.arange(6, dtype=np.float16).reshape(2, 3)),
        ("item", 1, [[0.5, 1.5], [2.5, 3.5]]),
        ("item", 1, np.arange(4, dtype=np.float32).reshape(2, 2)),
        ("item", 1, np.arange(4, dtype=np.float16).reshape(2, 2)),
    ],
)
def test_gradients_that_are_taken(table, number, grads):
    expected = np.ascontiguousarray(grads, "<f4" if table == "user" else "<f8").tobytes()
    assert sent(row_gradients([7, 8], grads, table))[1] == {number: expected}


def test_bfloat16_gradients():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    grads = np.array([[0.5, -1, 2]], ml_dtypes.bfloat16)
    assert sent(row_gradients([7], grads))[1] == {0: np.array([0.5, -1, 2], "<f4").tobytes()}


@pytest.mark.parametrize(
    ("grads", "text"),
    [
        (np.zeros((2, 4), np.float32), r"shape \(2, 4\), expected \(2, 3\): 2 ids, and rows of 3"),
        (np.zeros((3, 3), np.float32), r"shape \(3, 3\), expected \(2, 3\)"),
        (np.zeros((6,), np.float32), r"shape \(6,\), expected"),
        (np.zeros((2, 3)), r"dtype float64, expected float32; .*astype\(np.float32\)"),
        ([[0.5, 1, 2], [1, 2, 3]], "dtype float64"),
        (np.zeros((2, 3), np.int16), "dtype int16"),
        (np.zeros((2, 3), np.complex64), "dtype complex64"),
        ([[0.5], [1, 2]], "no array"),
        (None, r"shape \(\)"),
    ],
)
def test_gradients_that_are_refused(grads, text):
    with pytest.raises(InvalidRows, match=text):
        row_gradients([7, 8], grads)


def test_rows_that_are_no_pairs_or_of_no_table():
    for pair in (np.zeros(3), [np.zeros(3)], (1, 2, 3), None):
        with pytest.raises(InvalidRows, match=r"expected \(ids, gradients\)"):
            RowGradients(LAYOUT, {"user": pair}, "test")
    with pytest.raises(UnknownTable, match=r"'users'.*'user', 'item'"):
        row_gradients([], [], "users")
    with pytest.raises(UnknownTable):
        RowGradients(LAYOUT, {3: ([], [])}, "test")  # type: ignore[dict-item]  # what a caller may give


# 2. How updates are cut.

COUNTS = st.tuples(st.integers(0, 90_000), st.integers(0, 90_000), st.integers(0, 7), st.integers(0, 300_000))


@given(COUNTS, st.integers(0, 2**32 - 1))
def test_pieces_hold_every_row_once_in_order(counts, seed):
    rng = np.random.default_rng(seed)
    rows = {}
    for (name, table), count in zip(LAYOUT.tables.items(), counts, strict=True):
        grads = rng.integers(0, 2**32, (count, table.width)).astype(table.dtype)
        rows[name] = rng.integers(INT64.min, INT64.max, count), grads
    update = RowGradients(LAYOUT, rows, "test")
    ids, data = sent(update)
    for (ids_of, grads), table in zip(rows.values(), LAYOUT.tables.values(), strict=True):
        assert ids.get(table.index, b"") == ids_of.astype("<i8").tobytes()
        assert data.get(table.index, b"") == grads.tobytes()
    assert update.counts == dict(enumerate(counts))
    messages = list(update.messages())
    for message in messages:
        assert sum(piece.size_bytes for piece in message) <= RANGE_BYTES
        assert all(len(piece.ids) == len(piece.data) > 0 for piece in message)
    for message, following in pairwise(messages):
        row_bytes = following[0].size_bytes // len(following[0].ids)
        room = RANGE_BYTES - sum(piece.size_bytes for piece in message)
        assert room < row_bytes + 64 * len(message), "a message is filled before the next one is begun"
    assert update.data_bytes == sum(piece.size_bytes for message in messages for piece in message)


def test_gradients_are_not_copied():
    grads = np.zeros((1000, 3), np.float32)
    ((piece,),) = row_gradients(np.arange(1000), grads).messages()
    assert np.shares_memory(piece.data, grads)


# 3. Where rows lie in shared memory.


@given(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2), st.integers(0, 50)))
def test_rows_in_shared_memory(counts):
    rng = np.random.default_rng(list(counts))
    rows = {
        name: (
            rng.integers(INT64.min, INT64.max, count),
            rng.standard_normal((count, table.width)).astype(table.dtype),
        )
        for (name, table), count in zip(LAYOUT.tables.items(), counts, strict=True)
    }
    update = RowGradients(LAYOUT, rows, "test")
    memory = np.full(update.shared_bytes, 0xEE, np.uint8)
    update.fill(memory)
    spans = []
    for message, (name, (ids, grads)) in zip(update.shared(), rows.items(), strict=True):
        table, shared = LAYOUT.tables[name], message.shared
        assert (message.table, shared.count, message.ids, message.data) == (table.index, len(ids), b"", b"")
        assert shared.ids_offset_bytes % 64 == shared.data_offset_bytes % 64 == 0
        for begin, content in ((shared.ids_offset_bytes, ids.tobytes()), (shared.data_offset_bytes, grads.tobytes())):
            assert memory[begin : begin + len(content)].tobytes() == content
            spans.append((begin, begin + len(content)))
    for (_, end), (begin, _) in pairwise(sorted(spans)):
        assert end <= begin, "nothing lies upon another"

    # A pull of the same ids: the server reads ids and writes values.
    pull = ReceivedRows(LAYOUT, {name: ids for name, (ids, _) in rows.items()}, "test", BufferPool())
    assert pull.shared_bytes == update.shared_bytes
    memory = np.zeros(pull.shared_bytes, np.uint8)
    pull.put_ids(memory)
    for message, (ids, grads) in zip(pull.asked(shared=True), rows.values(), strict=True):
        begin = message.shared.ids_offset_bytes
        assert memory[begin : begin + ids.nbytes].tobytes() == ids.tobytes()
        begin = message.shared.data_offset_bytes
        memory[begin : begin + grads.nbytes] = np.frombuffer(grads.tobytes(), np.uint8)
    pull.take(memory)
    memory[:] = 0
    for name, values in pull.arrays().items():
        np.testing.assert_array_equal(values, rows[name][1])


@pytest.mark.parametrize(
    ("needed", "expected"),
    [(0, 4 << 20), (1, 4 << 20), (4 << 20, 4 << 20), ((4 << 20) + 1, 8 << 20), (9_000_000, 16 << 20)],
)
def test_the_vector_for_rows_grows_by_powers_of_two(needed, expected):
    assert rows_vector_bytes(needed) == expected
    assert ROWS_BYTES_MIN == 4 << 20


# 4. What comes.


def values_of(ids, width, dtype):
    return (np.asarray(ids)[..., np.newaxis] * 10 + np.arange(width)).astype(dtype)


@pytest.mark.parametrize("cut", [1, 2, 3, 100])
@pytest.mark.parametrize("out", [False, True])
def test_pieces_of_any_cut_and_order(cut, out):
    ids = {"item": np.arange(12).reshape(3, 4), "user": [5]}
    wanted = {"item": values_of(ids["item"], 2, "<f8"), "user": values_of(ids["user"], 3, "<f4")}
    into = {name: np.full_like(value, 9) for name, value in wanted.items()} if out else None
    received = ReceivedRows(LAYOUT, ids, "test", BufferPool(), into)
    assert [(message.table, message.ids) for message in received.asked(shared=False)] == [
        (1, np.arange(12, dtype="<i8").tobytes()),
        (0, struct.pack("<q", 5)),
    ]
    for _ in range(2):  # a second try starts over
        received.begin()
        item = wanted["item"].reshape(12, 2)
        pieces = [(1, first, item[first : first + cut].tobytes()) for first in range(0, 12, cut)]
        for table, first, data in [*reversed(pieces), (0, 0, wanted["user"].tobytes())]:
            received.put(run_pb2.Rows(table=table, first=first), data)
    arrays = received.arrays()
    assert list(arrays) == ["item", "user"]
    for name, value in wanted.items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].flags.writeable
        assert into is None or arrays[name] is into[name]


@pytest.mark.parametrize(("table", "first", "count"), [(1, 3, 1), (1, 0, 4), (1, 2**40, 1), (0, 0, 1), (9, 0, 1)])
def test_rows_that_were_not_asked_for(table, first, count):
    received = ReceivedRows(LAYOUT, {"item": [1, 2, 3]}, "test", BufferPool())
    received.begin()
    with pytest.raises(Internal):
        received.put(run_pb2.Rows(table=table, first=first), bytes(16 * count))


def test_rows_that_do_not_come():
    received = ReceivedRows(LAYOUT, {"item": [1, 2, 3]}, "test", BufferPool())
    with pytest.raises(Internal):
        received.arrays()
    received.begin()
    received.put(run_pb2.Rows(table=1, first=1), bytes(32))
    with pytest.raises(Internal, match="got 32 bytes of rows, expected 48"):
        received.arrays()


@pytest.mark.parametrize(
    "out",
    [
        {},
        {"item": np.empty((3, 2)), "user": np.empty((1, 3), np.float32)},
        {"item": np.empty((3, 3))},
        {"item": np.empty((3, 2), np.float32)},
        {"item": np.asfortranarray(np.empty((3, 2)))},
        {"item": np.frombuffer(bytes(48)).reshape(3, 2)},
        {"item": [[0.0] * 2] * 3},
    ],
)
def test_out_that_does_not_fit(out):
    with pytest.raises(InvalidValue, match="out="):
        ReceivedRows(LAYOUT, {"item": [1, 2, 3]}, "test", BufferPool(), out)


# 5. Over the wire.


class Model:
    """Rows as plain SGD makes them, one at a time."""

    def __init__(self):
        self.rows = {}

    def push(self, table, ids, grads):
        for number, gradient in zip(ids, grads, strict=True):
            before = self.rows.get((table, int(number)), np.zeros_like(gradient))
            self.rows[table, int(number)] = before - (LR * gradient).astype(gradient.dtype)

    def pull(self, table, ids, width, dtype):
        zeros = np.zeros(width, dtype)
        values = [self.rows.get((table, int(number)), zeros) for number in np.ravel(ids)]
        return np.array(values, dtype).reshape(*np.shape(ids), width)


@pytest.fixture
def run(connect):
    parameters = {"w": np.zeros(4, np.float32)}
    return connect().create_run("m", parameters, optimizer="sgd", hyperparameters={"lr": LR}, tables=TABLES)


@pytest.fixture
def model():
    return Model()


def headers(server: FakeServer):
    return [request.stage.header for request in server.requests if request.stage.HasField("header")]


def drawn(seed, count=5):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 7, count)
    return ids, rng.standard_normal((count, 3)).astype(np.float32), rng.standard_normal((count, 2))


def test_push_and_pull(run, server, model):
    np.testing.assert_array_equal(run.pull_rows("user", [3, 4]), np.zeros((2, 3), np.float32))
    for seed in range(3):
        ids, users, _ = drawn(seed)
        assert run.push_rows("user", ids, users, samples=5, hyperparameters={"lr": LR}) == seed + 1
        model.push("user", ids, users)
        every = np.arange(-1, 8)
        np.testing.assert_array_equal(run.pull_rows("user", every), model.pull("user", every, 3, np.float32))
        assert run.version == seed + 1
    assert server.runs["m"].samples == 15
    assert server.runs["m"].steps == [0]
    for header in headers(server):
        assert header.rows_only
        assert list(header.without_gradient) == []
        assert [(each.table, each.count) for each in header.rows] == [(0, 5)]
    assert [len(request.stage.rows) for request in server.requests if request.HasField("stage")] == [1, 1, 1]
    assert all(request.selection.rows_only for request in server.requests if request.HasField("selection"))


def test_several_tables_at_once(run, server, model):
    ids, users, items = drawn(0)
    assert run.push_rows({"item": (ids, items), "user": (ids[:2], users[:2])}) == 1
    model.push("item", ids, items)
    model.push("user", ids[:2], users[:2])
    assert len(server.requests) == 1
    pulled = run.pull_rows({"user": ids.reshape(1, 5), "item": [8, 0, 8]})
    assert list(pulled) == ["user", "item"]
    np.testing.assert_array_equal(pulled["user"], model.pull("user", ids.reshape(1, 5), 3, np.float32))
    np.testing.assert_array_equal(pulled["item"], model.pull("item", [8, 0, 8], 2, np.float64))


def test_rows_go_with_dense_gradients(run, server, model):
    ids, users, items = drawn(1)
    grads = {"w": np.ones(4, np.float32)}
    np.testing.assert_array_equal(run.step(grads, rows={"user": (ids, users)})["w"], np.full(4, -LR))
    assert run.push(grads, rows={"user": (ids, users), "item": (ids, items)}) == 2
    assert run.push(grads, rows={}) == 3
    assert run.push({"w": None}, rows={"item": (ids, items)}) == 4
    assert len(server.requests) == 4
    model.push("user", np.tile(ids, 2), np.tile(users, (2, 1)))
    model.push("item", np.tile(ids, 2), np.tile(items, (2, 1)))
    pulled = run.pull_rows({"user": ids, "item": ids})
    np.testing.assert_array_equal(pulled["user"], model.pull("user", ids, 3, np.float32))
    np.testing.assert_array_equal(pulled["item"], model.pull("item", ids, 2, np.float64))
    assert [header.rows_only for header in headers(server)] == [False] * 4
    assert server.runs["m"].steps == [3]


def test_large_updates_and_pulls(connect, server, model):
    parameters = {"w": np.zeros(700_000, np.float32)}
    run = connect().create_run("m", parameters, optimizer="sgd", hyperparameters={"lr": LR}, tables=TABLES)
    rng = np.random.default_rng(3)
    ids = rng.permutation(100_000)
    users, items = rng.standard_normal((100_000, 3)).astype(np.float32), rng.standard_normal((100_000, 2))
    grads = {"w": np.ones(700_000, np.float32)}
    stepped = run.step(grads, rows={"user": (ids, users), "item": (ids, items)})
    np.testing.assert_array_equal(stepped["w"], np.full(700_000, -LR, np.float32))
    assert len(server.requests) >= 7
    assert all(request.ByteSize() <= RANGE_BYTES + 4096 for request in server.requests)
    assert [request.last for request in server.requests] == [False] * (len(server.requests) - 1) + [True]
    pulled = run.pull_rows({"item": ids, "user": ids})
    np.testing.assert_array_equal(pulled["item"], -LR * items)
    np.testing.assert_array_equal(pulled["user"], (-LR * users).astype(np.float32))


def test_no_rows_at_all(run, server):
    assert run.push_rows("user", [], []) == 1
    assert run.pull_rows("user", []).shape == (0, 3)
    assert run.pull_rows("item", np.zeros((4, 0), int)).shape == (4, 0, 2)
    assert [(each.table, each.count) for each in headers(server)[0].rows] == [(0, 0)]
    for call in (lambda: run.push_rows({}), lambda: run.pull_rows({})):
        with pytest.raises(InvalidRows, match="no table"):
            call()


def test_one_id_and_out(run):
    ids, users, _ = drawn(5, 1)
    run.push_rows("user", ids, users)
    value = run.pull_rows("user", int(ids[0]))
    np.testing.assert_array_equal(value, (-LR * users[0]).astype(np.float32))
    out = np.empty((1, 3), np.float32)
    assert run.pull_rows("user", ids, out=out) is out
    np.testing.assert_array_equal(out[0], value)
    into = {"user": np.empty((1, 3), np.float32), "item": np.empty((2, 2))}
    found = run.pull_rows({"user": ids, "item": [1, 2]}, out=into)
    assert all(found[name] is into[name] for name in into)


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run.push_rows("user", [1.5], np.zeros((1, 3), np.float32)),
        lambda run: run.push_rows("user", [1], np.zeros((1, 2), np.float32)),
        lambda run: run.push_rows("user", [1]),
        lambda run: run.push_rows({"user": ([1], np.zeros((1, 3), np.float32))}, [1]),
        lambda run: run.push_rows(["user"]),
        lambda run: run.step({"w": np.zeros(4, np.float32)}, rows={"user": ([1], np.zeros(3, np.float32))}),
        lambda run: run.push({"w": np.zeros(4, np.float32)}, rows={"user": 3}),
        lambda run: run.pull_rows("user"),
        lambda run: run.pull_rows({"user": [1]}, [1]),
        lambda run: run.pull_rows("user", [True]),
    ],
)
def test_wrong_rows_are_refused_before_anything_is_sent(run, server, call):
    with pytest.raises(InvalidRows):
        call(run)
    assert not server.requests
    ids, users, _ = drawn(6)
    assert run.push_rows("user", ids, users) == 1
    assert headers(server)[0].identity.sequence == 1


def test_unknown_tables(run, server):
    for call in (lambda: run.push_rows("users", [], []), lambda: run.pull_rows({"user": [], "users": []})):
        with pytest.raises(UnknownTable, match="'users'"):
            call()
    assert not server.requests


def test_more_ids_than_one_message_has_room_for(run, server):
    with pytest.raises(stepwell.LimitExceeded, match="393,216"):
        run.pull_rows({"user": np.zeros(PULLED_IDS_MAX, int), "item": [1]})
    assert not server.requests
    assert run.pull_rows("user", np.zeros(PULLED_IDS_MAX, int)).shape == (PULLED_IDS_MAX, 3)
    assert server.requests[-1].ByteSize() < 4 << 20


@pytest.mark.parametrize("lost", [1, 3])
def test_a_retry_counts_once(run, server, model, lost):
    ids, users, _ = drawn(7)
    server.answers_lost = lost
    assert run.push_rows("user", ids, users) == 1
    model.push("user", ids, users)
    assert server.runs["m"].duplicates == lost
    first, *others = headers(server)
    assert all(other == first for other in others), "a retry repeats the header to the letter"
    server.answers_lost = lost
    np.testing.assert_array_equal(run.pull_rows("user", ids), model.pull("user", ids, 3, np.float32))
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.COMMITTED, 1)


def test_hooks_see_rows(run, server):
    ids, users, items = drawn(8)
    seen: list[data_pb2.WorkRequest] = []
    run._worker.before_answer = run._worker.after_answer = seen.extend
    run.push_rows({"user": (ids, users), "item": (ids, items)})
    assert len(seen) == 2
    for request in seen:
        assert [(each.table, each.data) for each in request.stage.rows] == [(0, users.tobytes()), (1, items.tobytes())]
    assert seen[0] == server.requests[0]


def test_whoever_is_not_live_any_more_joins_again_and_sends_again(run, server, model):
    ids, users, _ = drawn(9)
    run.push_rows("user", ids, users)
    joins = len(server.joins)
    left = [errors_pb2.ERROR_REASON_UNKNOWN_WORKER]

    def refuse(request):
        if not left:
            return None
        error = errors_pb2.Error(reason=left.pop(), message="by the test")
        return [data_pb2.WorkResponse(exchange=request.exchange, error=error)]

    server.intercept = refuse
    assert run.push_rows("user", ids, users) == 2
    assert len(server.joins) == joins + 1
    model.push("user", np.tile(ids, 2), np.tile(users, (2, 1)))
    np.testing.assert_array_equal(run.pull_rows("user", ids), model.pull("user", ids, 3, np.float32))


def test_a_rewind_is_raised_once(run, server):
    ids, users, _ = drawn(10)
    for _ in range(3):
        run.push_rows("user", ids, users)
    server.runs["m"].rewind(1)
    with pytest.raises(stepwell.RunRewound) as raised:
        run.push_rows("user", ids, users)
    assert (raised.value.acknowledged_version, raised.value.version) == (3, 1)
    assert run.push_rows("user", ids, users) == 2
    server.runs["m"].rewind(1)
    with pytest.raises(stepwell.RunRewound):
        run.pull_rows("user", ids)
    assert run.pull_rows("user", ids).shape == (5, 3)
    assert run.version == 1


def test_a_rewind_can_be_gone_on_from(connect, server):
    run = connect(on_rewind="continue").create_run("m", {"w": np.zeros(4)}, optimizer="sgd", tables=TABLES)
    ids, users, _ = drawn(11)
    for _ in range(3):
        run.push_rows("user", ids, users)
    server.runs["m"].rewind(1)
    assert run.push_rows("user", ids, users) == 1
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.REWOUND, 1)
    assert run.push_rows("user", ids, users) == 2
    server.runs["m"].rewind(1)
    assert run.pull_rows("user", ids).shape == (5, 3)
    assert run.version == 1


def test_updates_say_at_which_version_their_gradients_were_taken(run, server):
    ids, users, _ = drawn(12)
    grads, rows = {"w": np.ones(4, np.float32)}, {"user": (ids, users)}

    def base(header):
        return header.base_version if header.HasField("base_version") else None

    run.push_rows(rows)  # never pulled: what it was told of last
    run.pull_rows("user", ids)  # at 1
    run.push_rows(rows)
    run.push(grads)
    run.pull()  # at 3
    run.push(grads)
    run.push(grads, rows=rows)  # the older of the two
    run.pull_rows("user", ids)  # at 5
    run.push(grads, rows=rows)
    run.push_rows(rows)
    assert [base(header) for header in headers(server)] == [None, 1, None, 3, 1, 3, 5]


def test_a_reader_pulls_rows_without_joining(connect, run, server, model):
    ids, users, _ = drawn(13)
    run.push_rows("user", ids, users)
    model.push("user", ids, users)
    reader = connect().get_run("m")
    np.testing.assert_array_equal(reader.pull_rows("user", ids), model.pull("user", ids, 3, np.float32))
    assert len(server.joins) == 1


def test_a_cut_in_the_middle(run, server, model):
    ids, users, _ = drawn(14, 120_000)
    left = [3, 2]

    def cut(request):
        if left and request.HasField("stage"):
            left[0] -= 1
            if not left[0]:
                left.pop(0)
                raise Cut

    server.intercept = cut
    assert run.push_rows("user", ids, users) == 1
    model.push("user", ids, users)
    np.testing.assert_array_equal(run.pull_rows("user", range(8)), model.pull("user", range(8), 3, np.float32))


def test_progress_counts_rows(connect, server):
    reports = []
    client = connect(progress=lambda done, total: reports.append((done, total)))
    tables = [{"name": "user", "width": 64}]
    run = client.create_run("m", {"w": np.zeros(4)}, optimizer="sgd", tables=tables)
    count = 80_000
    run.push_rows("user", np.arange(count), np.ones((count, 64), np.float32))
    assert reports[-1] == (count * 264, count * 264)
    assert reports == sorted(reports)
    reports.clear()
    run.pull_rows("user", np.arange(count))
    assert reports[-1] == (count * 256, count * 256)


# 6. Specs and descriptions.


def test_the_spec_on_the_wire(connect, server):
    run = connect().create_run(
        "m",
        {"w": np.zeros(4)},
        optimizer="sgd",
        tables=[
            {
                "name": "user",
                "width": np.int64(8),
                "dtype": np.float64,
                "initializer": {"name": "normal", "std": 0.01},
                "seed": -5,
                "optimizer": "adam",
                "flavor": "keras",
                "hyperparameters": {"betas": [0.5, 0.25]},
                "schedules": {"lr": {"name": "step", "gamma": 0.5}},
                "sparse_mode": "exact",
                "rows_max": 10**12,
                "admission": {"touches": 3},
                "eviction": {"by": "age", "age": 100},
            },
            {"name": "item", "width": 3, "dtype": None, "initializer": "constant", "eviction": None},
        ],
    )
    user, item = server.creations[0].spec.tables
    assert (user.name, user.width, user.dtype, user.seed) == ("user", 8, F64, -5)
    assert (user.optimizer, user.flavor, user.sparse_mode, user.rows_max) == ("adam", "keras", "exact", 10**12)
    assert (user.initializer["name"].text, user.initializer["std"].number) == ("normal", 0.01)
    assert (user.hyperparameters["beta1"].number, user.hyperparameters["beta2"].number) == (0.5, 0.25)
    assert user.schedules["lr"].name == "step"
    assert user.admission["touches"].number == 3
    assert (user.eviction["by"].text, user.eviction["age"].number) == ("age", 100)
    expected = run_pb2.TableSpec(name="item", width=3)
    expected.initializer["name"].text = "constant"
    assert item == expected
    described = run.refresh().tables
    assert list(described) == ["user", "item"]
    assert isinstance(described["user"], stepwell.TableDescription)
    assert [table.dtype for table in described.values()] == [np.dtype("<f8"), np.dtype("<f4")]
    assert (described["user"].width, described["user"].sparse_mode, described["item"].sparse_mode) == (
        8,
        "exact",
        "lazy",
    )
    assert (described["item"].rows, described["item"].rows_max, described["item"].slots) == (0, 2**31, ())


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("user", stepwell.InvalidSpec),
        ({}, stepwell.InvalidSpec),
        ({"width": 3}, stepwell.InvalidSpec),
        ({"name": "user"}, stepwell.InvalidSpec),
        ({"name": "user", "width": 3, "lr": 0.1}, stepwell.InvalidSpec),
        ({"name": "user", "width": 3, 7: 0.1}, stepwell.InvalidSpec),
        ({"name": 5, "width": 3}, stepwell.InvalidValue),
        ({"name": "\ud800", "width": 3}, stepwell.InvalidName),
        ({"name": "user", "width": 0}, stepwell.InvalidValue),
        ({"name": "user", "width": True}, stepwell.InvalidValue),
        ({"name": "user", "width": 3.0}, stepwell.InvalidValue),
        ({"name": "user", "width": 2**32}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "dtype": "float31"}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "dtype": np.int32}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "initializer": 0.5}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "initializer": {"name": "constant", "value": {1}}}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "seed": 2**63}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "seed": "7"}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "optimizer": 7}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "flavor": ["torch"]}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "hyperparameters": [("lr", 0.1)]}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "hyperparameters": {"lr": {1}}}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "schedules": {"lr": "cosine"}}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "sparse_mode": True}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "rows_max": 0}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "admission": 3}, stepwell.InvalidValue),
        ({"name": "user", "width": 3, "eviction": "age"}, stepwell.InvalidValue),
    ],
)
def test_a_table_that_cannot_be_sent(connect, server, table, error):
    with pytest.raises(error):
        connect().create_run("m", {"w": np.zeros(4)}, optimizer="sgd", tables=[table])
    assert not server.calls


# 7. Differences.


def test_difference():
    start = {"w": np.array([1.0, 2.0], np.float32), "b": np.float64(3.0), "frozen": np.zeros(2)}
    end = {"b": np.array(1.0), "w": [0.5, 2.5]}
    found = stepwell.difference(start, end)
    assert list(found) == ["b", "w"]
    assert (found["b"].shape, float(found["b"])) == ((), 2.0)
    np.testing.assert_array_equal(found["w"], [0.5, -0.5])
    with pytest.raises(stepwell.InvalidGradient, match="'c'"):
        stepwell.difference(start, {"c": 1.0})
    with pytest.raises(stepwell.InvalidGradient, match=r"shape \(1,\).*\(2,\)"):
        stepwell.difference(start, {"w": np.zeros(1, np.float32)})


def test_differences_make_local_steps(connect, server):
    """sgd with lr 1 takes the difference for a gradient: the run ends where the worker does."""
    run = connect().create_run("m", {"w": np.ones(4, np.float32)}, optimizer="sgd", hyperparameters={"lr": 1.0})
    start = run.pull()
    end = {name: value * np.float32(0.5) for name, value in start.items()}
    np.testing.assert_array_equal(run.step(stepwell.difference(start, end))["w"], end["w"])
