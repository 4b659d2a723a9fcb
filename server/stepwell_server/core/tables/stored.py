"""Tables as named arrays, for whoever stores them:

tables/<table>/<array>      the arrays of `TableHold`; "counts" where ids are counted before they get a row
accumulated/<n>/<table>/    "ids" and "grads" of the n-th of the updates that wait for a commit
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.device import Device
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.settings import Moment, Settings
from stepwell_server.core.tables.hold import Loading, TableHold
from stepwell_server.core.tables.spec import TableSpec
from stepwell_server.core.tables.staged import StagedRows
from stepwell_server.core.tables.table import Table
from stepwell_server.core.tables.tables import Brought

# How many bytes of rows are read at once.
_READ_BYTES = 8 << 20

Allocate = Callable[[list[Size]], list[Vector]]


@dataclass(frozen=True)
class StoredArray:
    """An array that comes part by part, in its first dimension. parts: may be called on any thread, and again."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[NDArray[Any]]]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Reader(Protocol):
    """Gives stored arrays back, by rows of their first dimension."""

    def read(self, name: str, begin: int, end: int) -> NDArray[Any]: ...


def held_arrays(hold: TableHold) -> list[StoredArray]:
    """The arrays of a held table."""
    where = f"tables/{hold.name}"
    arrays = [
        StoredArray(f"{where}/{name}", dtype, (hold.rows, *shape), partial(_column, hold, name))
        for name, (dtype, shape) in hold.array_types.items()
    ]
    if hold.counts is not None:
        arrays.append(_plain(f"{where}/counts", hold.counts))
    return arrays


def held_data(hold: TableHold) -> dict[str, Any]:
    """What else `load_tables` needs, as plain data."""
    return hold.to_data() | {"rows": hold.rows, "counts": 0 if hold.counts is None else len(hold.counts)}


def load_tables(
    specs: Sequence[TableSpec],
    settings: Sequence[Settings],
    data: Sequence[Mapping[str, Any]],
    reader: Reader,
    allocate: Allocate,
    device: Device,
    hash_key: int,
) -> list[Table]:
    """Tables as they were stored. data: of `held_data`. Raises what `allocate` raises, and TablesUnavailable."""
    tables = []
    for spec, chosen, stored in zip(specs, settings, data, strict=True):
        vectors = allocate(Table.sizes(spec, chosen))
        table = Table(spec, chosen, device, vectors, Moment(0, 0.0, None), hash_key)
        loading = Loading(table, stored)
        step = max(1, _READ_BYTES // table.layout.row_bytes)
        rows = int(stored["rows"])
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            part = {name: reader.read(f"tables/{spec.name}/{name}", begin, end) for name in table.array_types}
            for size in loading.take(part, allocate(loading.sizes(end - begin))):
                loading.add_block(*allocate([size]))
        if stored["counts"]:
            loading.load_counts(reader.read(f"tables/{spec.name}/counts", 0, int(stored["counts"])))
        tables.append(table)
    return tables


def accumulated_arrays(rows: Sequence[Brought], tables: Sequence[Table]) -> list[StoredArray]:
    """Copies of rows that wait for a commit, which may come while they are stored."""
    return [
        _plain(f"accumulated/{place}/{tables[number].spec.name}/{name}", array.copy())
        for place, brought in enumerate(rows)
        for number, staged in brought.rows.tables.items()
        for name, array in (("ids", staged.ids), ("grads", staged.grads))
    ]


def accumulated_data(rows: Sequence[Brought]) -> list[Any]:
    """What else `load_accumulated` needs, as plain data: factors, and how many rows of which table."""
    return [
        [brought.factor, [[number, len(staged.ids)] for number, staged in brought.rows.tables.items()]]
        for brought in rows
    ]


def load_accumulated(
    run: str, data: Sequence[Any], tables: Sequence[Table], reader: Reader, allocate: Allocate
) -> tuple[Brought, ...]:
    """Rows that waited for a commit when they were stored."""
    loaded = []
    for place, (factor, listed) in enumerate(data):
        counts = {int(number): int(count) for number, count in listed}
        rows = StagedRows(run, tables, counts, allocate(StagedRows.sizes(run, tables, counts)), finite=False)
        for number, staged in rows.tables.items():
            where = f"accumulated/{place}/{tables[number].spec.name}"
            staged.ids[:] = reader.read(f"{where}/ids", 0, len(staged.ids))
            staged.grads[:] = reader.read(f"{where}/grads", 0, len(staged.ids))
            staged.placed = len(staged.ids)
        loaded.append(Brought(rows, float(factor)))
    return tuple(loaded)


def _plain(name: str, array: NDArray[Any]) -> StoredArray:
    return StoredArray(name, array.dtype, array.shape, lambda: iter([array]))


def _column(hold: TableHold, name: str) -> Iterator[NDArray[Any]]:
    for part in hold.parts([name]):
        yield part[name]
