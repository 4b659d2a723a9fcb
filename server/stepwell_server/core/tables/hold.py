"""A whole table as it was at one version, while commits go on; how it is stored, and how it comes back.

What a state is made of: `to_data`, plain data, and arrays that come in parts, one after another, all parts with the
same names: "ids" (n,), "rows" (n, width), "slot.<name>" (n, width) for each slot, "touched" and "count" (n,), and
"scalars" (n, scalars) where rows have such. In exact mode rows and slots are brought up to the version. One more array
is `counts`, where ids are counted before they get a row.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.tables.chunks import Chunk
from stepwell_server.core.tables.history import History
from stepwell_server.core.tables.row_loops import COUNT, FREE, ID, MARKS, TOUCHED

if TYPE_CHECKING:
    from stepwell_server.core.tables.table import Table

Part = dict[str, NDArray[Any]]

# Chunks are joined to parts of about so many bytes.
_PART_BYTES = 8 << 20
# How many rows of a part are put into a table at once.
_LOAD_ROWS = 4096


class TableHold:
    """step: of the version. rows: how many it has. Release it once, by `Table.release`."""

    def __init__(self, table: "Table") -> None:
        self._table = table
        self._chunks, self._time = table.rows.hold()
        self._used = table.rows.used
        self.rows = table.live
        self.step = table.step
        # Released while the run's lock is held, as everything of the table's is; these two vectors do not move.
        self._history, self._admission = table.held_history, table.admission.held if table.admission else None
        self._history.holders += 1
        if self._admission is not None:
            self._admission.holders += 1
        history = table.history
        self._data = {
            "step": table.step,
            "settings": table.settings.to_data(),
            "created": table.created,
            "refused": table.refused,
            "evicted": table.evicted,
            "scalars": dict(table.scalars),
            "values": dict(table.values),
            "initial_slots": list(table.initial_slots),
            "start": history.start.tolist(),
        }
        # As of now: the table's own goes on.
        missed = table.missed
        self._missed = None if missed is None else missed.frozen()
        self._base = history.base

    def to_data(self) -> dict[str, Any]:
        """Everything but the arrays, as plain data; "settings" is of `Settings.to_data`."""
        return dict(self._data)

    @property
    def name(self) -> str:
        """The table's name."""
        return self._table.spec.name

    @property
    def counts(self) -> NDArray[np.uint8] | None:
        """How often ids without a row came, as `Table.load_counts` takes it; None where nobody counts."""
        return None if self._admission is None else self._admission.vector

    @property
    def array_types(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """The type of each array, and the shape of one row of it."""
        return self._table.array_types

    def parts(self, names: Collection[str] = ()) -> Iterator[Part]:
        """The rows, in parts of a few megabytes; together `rows` of them. Safe on any thread, while commits go on.

        names: which arrays; all for none.
        """
        names = names or self.array_types
        joined = max(1, _PART_BYTES // (self._table.layout.row_bytes * self._table.layout.chunk_rows))
        for first in range(0, len(self._chunks), joined):
            parts = [self._part(number, names) for number in range(first, min(first + joined, len(self._chunks)))]
            parts = [part for part in parts if len(next(iter(part.values())))]
            if parts:
                yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def release(self) -> list[Vector]:
        """End it; vectors that nobody needs any more."""
        table = self._table
        unneeded = table.rows.release(self._chunks, self._time)
        self._history.holders -= 1
        if self._history is not table.held_history and not self._history.holders and len(self._history.vector):
            unneeded.append(self._history.vector)
        if self._admission is not None:
            self._admission.holders -= 1
            assert table.admission is not None
            if self._admission is not table.admission.held and not self._admission.holders:
                unneeded.append(self._admission.vector)
        return unneeded

    def _part(self, number: int, names: Collection[str]) -> Part:
        table, layout, chunk = self._table, self._table.layout, self._chunks[number]
        used = min(layout.chunk_rows, self._used - number * layout.chunk_rows)
        marks = chunk.vectors[1].reshape(-1, MARKS)[: max(0, used)]
        places = np.flatnonzero(marks[:, TOUCHED] != FREE)
        live = marks[places]
        marks_of = {"ids": ID, "touched": TOUCHED, "count": COUNT}
        part: Part = {name: live[:, which].copy() for name, which in marks_of.items() if name in names}
        in_records = ["rows", *(f"slot.{name}" for name in table.slots)]
        wanted = [(order, name) for order, name in enumerate(in_records) if name in names]
        records = self._current(chunk, places, live[:, TOUCHED]) if wanted else chunk.vectors[0]
        size = layout.width * layout.dtype.itemsize
        for order, name in wanted:
            part[name] = np.empty((len(places), layout.width), layout.dtype)
            offset = np.uint64(order * size)
            table.row_loops.unpack(
                np.uint64(records.ctypes.data), places, layout.record_bytes, offset, np.uint64(layout.width), part[name]
            )
        if layout.scalars and "scalars" in names:
            part["scalars"] = chunk.vectors[2].reshape(-1, layout.scalars)[places]
        return part

    def _current(self, chunk: Chunk, places: NDArray[np.int64], touched: NDArray[np.int64]) -> Vector:
        """A chunk's records, brought up to the version; a copy where that changes any."""
        records, layout = chunk.vectors[0], self._table.layout
        lasts = np.maximum(touched, self._base)
        late = np.flatnonzero(lasts < self.step)
        if self._missed is None or not len(late):
            return records
        copy = records.copy()
        addresses = np.uint64(copy.ctypes.data) + np.uint64(layout.record_bytes) * places[late].astype(np.uint64)
        self._missed.write(addresses, self._missed.coefficients(lasts[late]))
        return copy


class Loading:
    """Puts a stored state into an empty table. `sizes` and `take` as of commits, part by part."""

    def __init__(self, table: "Table", data: Mapping[str, Any]) -> None:
        """data: of `TableHold.to_data`, with whose settings the table was made."""
        assert not table.live, "a state is loaded into an empty table"
        assert not table.step
        self._table = table
        table.step = int(data["step"])
        table.created, table.refused, table.evicted = (int(data[name]) for name in ("created", "refused", "evicted"))
        table.scalars = {name: float(data["scalars"][name]) for name in table.scalars}
        table.values = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data["values"].items()
        }
        table.initial_slots = [float(value) for value in data["initial_slots"]]
        start = np.array(data["start"], np.float64).reshape(table.history.pairs, 2)
        table.history = History.begin(table.history.pairs, table.step, start)

    def sizes(self, rows: int) -> list[Size]:
        """The vectors that `take` wants beside so many rows; the index may want more, which it asks for itself."""
        table = self._table
        chunks = -(-(table.rows.used + rows) // table.layout.chunk_rows) - len(table.rows)
        return table.layout.chunk_sizes * max(0, chunks)

    def take(self, part: Mapping[str, NDArray[Any]], vectors: Sequence[Vector]) -> Iterator[Size]:
        """Put a part of `TableHold.parts` into the table. vectors: of `sizes`.

        Yields sizes of further vectors, which it wants by `add_block`, before it goes on. Raises LimitExceeded.
        """
        table, layout = self._table, self._table.layout
        for at in range(0, len(vectors), len(layout.chunk_sizes)):
            table.rows.append(vectors[at : at + len(layout.chunk_sizes)])
        for begin in range(0, len(part["ids"]), _LOAD_ROWS):
            rows = slice(begin, begin + _LOAD_ROWS)
            ids = np.ascontiguousarray(part["ids"][rows])
            done = 0
            while (done := table.index.reserve(ids, done)) < len(ids):
                yield table.index.next_block
            self._put(ids, {name: array[rows] for name, array in part.items()}, layout.shift)

    def add_block(self, vector: Vector) -> None:
        """Take a vector that `take` has asked for."""
        self._table.index.add_block(vector)

    def load_counts(self, counts: NDArray[np.uint8]) -> None:
        """Take `TableHold.counts`."""
        admission = self._table.admission
        assert admission is not None
        admission.held.vector[:] = counts
        admission.recount()

    def _put(self, ids: NDArray[np.int64], part: Mapping[str, NDArray[Any]], shift: int) -> None:
        table, layout = self._table, self._table.layout
        numbers = np.arange(table.rows.used, table.rows.used + len(ids))
        table.rows.used += len(ids)
        table.live += len(ids)
        table.index.assign(ids, numbers)
        marks = table.rows.marks
        table.row_loops.begin_marks(ids, numbers, marks, shift)
        for which, name in ((TOUCHED, "touched"), (COUNT, "count")):
            table.row_loops.write_marks(numbers, marks, shift, which, np.ascontiguousarray(part[name], np.int64))
        addresses = np.empty(len(ids), np.uint64)
        table.row_loops.locate(numbers, table.rows.records, shift, layout.record_bytes, addresses)
        size = layout.width * layout.dtype.itemsize
        for order, name in enumerate(("rows", *(f"slot.{name}" for name in table.slots))):
            values = np.ascontiguousarray(part[name], layout.dtype)
            table.row_loops.pack(addresses, np.uint64(order * size), values)
        if layout.scalars:
            table.row_loops.locate(numbers, table.rows.scalars, shift, 8 * layout.scalars, addresses)
            table.scalar_loops.pack(addresses, np.uint64(0), np.ascontiguousarray(part["scalars"], np.float64))
