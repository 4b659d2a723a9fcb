"""Rows of tables: what an update brings and what a pull asks for. Checked, cut into pieces, and put together again."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stepwell._layout import Layout, Table, listed
from stepwell._packing import WIDENED, contiguous
from stepwell._receiving import BufferPool, Bytes, check_array_out, flat_bytes
from stepwell.errors import Internal, InvalidRows, InvalidValue, LimitExceeded
from stepwell.payload import Buffer
from stepwell.v1 import run_pb2
from stepwell.wire import RANGE_BYTES

Ids = npt.NDArray[np.int64]
Array = np.ndarray[Any, Any]

ID: Final = np.dtype("<i8")
ID_MAX: Final = (1 << 63) - 1

PULLED_IDS_MAX: Final = (3 << 20) // ID.itemsize
"""How many ids one message has room for, with what else is in it."""

ROWS_OVERHEAD_BYTES: Final = 32
"""What a piece takes in a message beside ids and data, at most."""

_ALIGNMENT_BYTES: Final = 64


class Placed(NamedTuple):
    """The ids of one table, flat, and where they and their rows lie in a worker's shared memory."""

    table: Table
    ids: Ids
    ids_offset: int
    data_offset: int

    @property
    def data_bytes(self) -> int:
        return len(self.ids) * self.table.row_bytes

    def message(self) -> run_pb2.Rows:
        """What stands for them in a message that names the memory."""
        shared = run_pb2.SharedRows(
            count=len(self.ids), ids_offset_bytes=self.ids_offset, data_offset_bytes=self.data_offset
        )
        return run_pb2.Rows(table=self.table.index, shared=shared)

    def put_ids(self, memory: Bytes) -> None:
        memory[self.ids_offset : self.ids_offset + self.ids.nbytes] = flat_bytes(self.ids)

    def rows(self, memory: Bytes) -> Bytes:
        """Where the rows lie."""
        return memory[self.data_offset : self.data_offset + self.data_bytes]


class RowsPiece(NamedTuple):
    """Some rows of an update before they are a message: ids, flat, and data (n, width)."""

    table: int
    ids: Ids
    data: Array

    @property
    def size_bytes(self) -> int:
        return self.ids.nbytes + self.data.nbytes

    def message(self) -> run_pb2.Rows:
        """The message without its data."""
        return run_pb2.Rows(table=self.table, ids=self.ids.tobytes())


class RowGradients:
    """The checked row gradients of one update.

    counts: how many ids each table has, by its index. data_bytes: of ids and gradients. shared_bytes: how large a
    vector in shared memory they take.
    """

    def __init__(self, layout: Layout, rows: Mapping[str, Any], what: str) -> None:
        """rows: (ids, gradients) by the table's name. Raises UnknownTable and InvalidRows."""
        tables = []
        self._gradients: list[Array] = []
        for name, pair in rows.items():
            table = layout.table(name)
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InvalidRows(
                    f"{what}: rows of table '{name}' are {type(pair).__name__} {pair!r:.100}, expected (ids, "
                    "gradients); give both"
                )
            ids = check_ids(table, pair[0], what)
            if ids.ndim != 1:
                raise InvalidRows(
                    f"{what}: ids of table '{name}' have shape {ids.shape}, expected (n,); flatten them, with "
                    f".reshape(-1), and their gradients with .reshape(-1, {table.width})"
                )
            tables.append((table, ids))
            self._gradients.append(check_row_gradients(table, len(ids), pair[1], what))
        self._placed, self.shared_bytes = place(tables)
        self.counts = {each.table.index: len(each.ids) for each in self._placed}
        self.data_bytes = sum(each.ids.nbytes + each.data_bytes for each in self._placed)

    def messages(self) -> Iterator[list[RowsPiece]]:
        """Pieces, grouped into messages of at most RANGE_BYTES; at least one message, perhaps empty."""
        message: list[RowsPiece] = []
        room = RANGE_BYTES
        for (table, ids, _, _), gradients in zip(self._placed, self._gradients, strict=True):
            row_bytes = ID.itemsize + table.row_bytes
            taken = 0
            while taken < len(ids):
                count = min(max(room, 0) // row_bytes, len(ids) - taken)
                if not count and message:
                    yield message
                    message, room = [], RANGE_BYTES
                    continue
                count = max(count, 1)
                end = taken + count
                message.append(RowsPiece(table.index, ids[taken:end], gradients[taken:end]))
                room -= count * row_bytes + ROWS_OVERHEAD_BYTES
                taken = end
        yield message

    def shared(self) -> list[run_pb2.Rows]:
        """What stands for them in a message that names the memory which `fill` has filled."""
        return [each.message() for each in self._placed]

    def fill(self, memory: Bytes) -> None:
        """Copy ids and gradients to their places in shared memory."""
        for each, gradients in zip(self._placed, self._gradients, strict=True):
            each.put_ids(memory)
            each.rows(memory)[:] = flat_bytes(gradients)


class ReceivedRows:
    """The values of the rows that a pull asks for, and where their pieces go.

    size_bytes: of all values. shared_bytes: how large a vector in shared memory ids and values take.
    """

    def __init__(
        self, layout: Layout, ids: Mapping[str, Any], what: str, pool: BufferPool, out: Mapping[str, Any] | None = None
    ) -> None:
        """ids: of any shape, by the table's name. out: for each table an array of the ids' shape and the width to fill.

        Raises UnknownTable, InvalidRows; InvalidValue for an `out` that does not fit.
        """
        self._what, self._pool = what, pool
        checked = {
            name: (layout.table(name), check_ids(layout.table(name), given, what)) for name, given in ids.items()
        }
        self._shapes = {name: (*found.shape, table.width) for name, (table, found) in checked.items()}
        self._placed, self.shared_bytes = place([(table, found.reshape(-1)) for table, found in checked.values()])
        self.size_bytes = sum(each.data_bytes for each in self._placed)
        self.filled_bytes = 0
        self._arrays: dict[str, Array] = {}
        self._targets: dict[int, tuple[Placed, Bytes]] = {}
        if out is not None:
            if set(out) != set(ids):
                raise InvalidValue(
                    f"{what}: got out= for {listed(map(str, out))}, expected an array for each of {listed(ids)}; give "
                    "exactly these"
                )
            for table, _ in checked.values():
                check_array_out(table.name, out[table.name], self._shapes[table.name], table.dtype)
            self._arrays = {name: out[name] for name in ids}

    @property
    def ids_count(self) -> int:
        return sum(len(each.ids) for each in self._placed)

    def check_inline(self) -> None:
        """Raise LimitExceeded where the ids do not fit the one message of a selection."""
        if self.ids_count > PULLED_IDS_MAX:
            raise LimitExceeded(
                f"{self._what}: got {self.ids_count:,} ids, expected at most {PULLED_IDS_MAX:,} over the stream: what "
                "is pulled at once has one version, so its ids are one message; pull fewer at a time, or join and "
                "share memory with a server on this machine",
                {"limit": str(PULLED_IDS_MAX)},
            )

    def asked(self, *, shared: bool) -> list[run_pb2.Rows]:
        """What the selection says. shared: whether the ids lie in shared memory. Raises LimitExceeded."""
        if shared:
            return [each.message() for each in self._placed]
        self.check_inline()
        return [run_pb2.Rows(table=each.table.index, ids=each.ids.tobytes()) for each in self._placed]

    def put_ids(self, memory: Bytes) -> None:
        """Copy the ids to their places in shared memory."""
        for each in self._placed:
            each.put_ids(memory)

    def begin(self) -> None:
        """Values are about to come; what came in an earlier try counts no more."""
        self.filled_bytes = 0
        if self._targets:
            return
        for each in self._placed:
            table, name = each.table, each.table.name
            if name not in self._arrays:
                buffer = self._pool.take(each.data_bytes)
                self._arrays[name] = np.ndarray(self._shapes[name], table.dtype, buffer)
            self._targets[table.index] = each, flat_bytes(self._arrays[name])

    def put(self, piece: run_pb2.Rows, data: Buffer) -> None:
        """Take a piece."""
        if piece.table not in self._targets:
            raise Internal(f"got rows of table {piece.table} that were not announced, expected none; report this")
        (table, *_), target = self._targets[piece.table]
        content = np.frombuffer(data, np.uint8)
        begin = piece.first * table.row_bytes
        end = begin + content.nbytes
        if end > target.nbytes:
            raise Internal(f"got rows to byte {end} of table '{table.name}', expected {target.nbytes}; report this")
        target[begin:end] = content
        self.filled_bytes += content.nbytes

    def take(self, memory: Bytes) -> None:
        """Take values that lie in shared memory."""
        self.begin()
        for placed, target in self._targets.values():
            target[:] = placed.rows(memory)
        self.filled_bytes = self.size_bytes

    def arrays(self) -> dict[str, Array]:
        """The values by table, once all have come."""
        if self.filled_bytes != self.size_bytes or (self._placed and not self._targets):
            raise Internal(f"got {self.filled_bytes} bytes of rows, expected {self.size_bytes}; report this")
        return {each.table.name: self._arrays[each.table.name] for each in self._placed}


def place(tables: list[tuple[Table, Ids]]) -> tuple[list[Placed], int]:
    """Where ids and rows go in shared memory, one table after another, and how many bytes that takes in all."""
    placed = []
    end = 0
    for table, ids in tables:
        data_offset = end + _aligned(ids.nbytes)
        placed.append(Placed(table, ids, end, data_offset))
        end = data_offset + _aligned(placed[-1].data_bytes)
    return placed, end


def check_ids(table: Table, ids: Any, what: str) -> Ids:
    """Ids as they are sent, int64 in C order, in their own shape; raises InvalidRows for what is none."""
    try:
        array = ids if type(ids) is np.ndarray else np.asarray(ids)
    except (TypeError, ValueError) as error:
        raise InvalidRows(f"{what}: ids of table '{table.name}' are no array ({error}), expected integers") from None
    if not array.size and not hasattr(ids, "dtype"):
        array = array.astype(ID)  # an empty list has no type of its own
    if array.dtype.kind not in "iu":
        raise InvalidRows(
            f"{what}: ids of table '{table.name}' have dtype {array.dtype}, expected integers that int64 holds; map "
            "them to such, so that no two become one",
            {"table": table.name, "got": str(array.dtype)},
        )
    if array.dtype.kind == "u" and array.dtype.itemsize == ID.itemsize and array.size and array.max() > ID_MAX:
        raise InvalidRows(
            f"{what}: got id {array.max()} for table '{table.name}', expected at most {ID_MAX}; take the same bits for "
            "int64, with .view(np.int64)",
            {"table": table.name, "got": str(array.max())},
        )
    return contiguous(array, ID)


def check_row_gradients(table: Table, count: int, gradients: Any, what: str) -> Array:
    """Gradients of so many rows as they are sent: (count, width), the table's dtype, C order. Raises InvalidRows."""
    try:
        array = gradients if type(gradients) is np.ndarray else np.asarray(gradients)
    except (TypeError, ValueError) as error:
        raise InvalidRows(f"{what}: row gradients of table '{table.name}' are no array ({error})") from None
    if not count and array.shape == (0,):
        return np.empty((0, table.width), table.dtype)
    if array.shape != (count, table.width):
        raise InvalidRows(
            f"{what}: row gradients of table '{table.name}' have shape {array.shape}, expected "
            f"{(count, table.width)}: {count} ids, and rows of {table.width}; give a row for each id",
            {"table": table.name, "got": str(array.shape), "expected": str((count, table.width))},
        )
    narrower = array.dtype.name in WIDENED[table.dtype.name] and array.dtype.itemsize < table.dtype.itemsize
    if array.dtype.newbyteorder("<") != table.dtype and not narrower:
        raise InvalidRows(
            f"{what}: row gradients of table '{table.name}' have dtype {array.dtype}, expected {table.dtype.name}; "
            f"convert them yourself, with .astype(np.{table.dtype.name}), so that no precision is lost unseen",
            {"table": table.name, "got": str(array.dtype), "expected": table.dtype.name},
        )
    return contiguous(array, table.dtype)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
