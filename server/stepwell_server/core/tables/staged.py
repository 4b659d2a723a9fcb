"""Rows of one update while they arrive: counted, copied, and tested; the tables are not touched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.errors import IncompleteUpdate, InvalidRows, LimitExceeded, UnknownTable
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.tables.table import IDS_MAX, Table

_INT64 = np.dtype(np.int64)


@dataclass
class StagedTable:
    """ids: int64, shape (n,). grads: shape (n, width). placed: how many have arrived."""

    ids: NDArray[np.int64]
    grads: NDArray[Any]
    placed: int = 0


class StagedRows:
    """What one update brings to the tables of a run, by their numbers. nonfinite: a table with a NaN or infinity."""

    def __init__(
        self, run: str, tables: Sequence[Table], counts: Mapping[int, int], vectors: Sequence[Vector], finite: bool
    ) -> None:
        """vectors: of `sizes`. finite: whether what arrives is tested."""
        self._run, self._all, self._finite = run, tables, finite
        self.nonfinite: str | None = None
        self.vectors = list(vectors)
        self.tables: dict[int, StagedTable] = {}
        left = iter(vectors)
        for number, count in counts.items():
            width = tables[number].width
            ids, grads = next(left), next(left)
            self.tables[number] = StagedTable(ids[:count], grads[: count * width].reshape(count, width))

    @staticmethod
    def sizes(run: str, tables: Sequence[Table], counts: Mapping[int, int]) -> list[Size]:
        """The vectors that so many rows of each table take. Raises UnknownTable, LimitExceeded."""
        sizes = []
        for number, count in counts.items():
            table = find_table(run, tables, number)
            if count > IDS_MAX:
                raise LimitExceeded(
                    f"run '{run}', table '{table.spec.name}': {count} ids at once, expected at most {IDS_MAX}; send "
                    "fewer",
                    limit=IDS_MAX,
                )
            rows = rounded(count)
            sizes += [Size(rows, _INT64), Size(rows * table.width, table.dtype)]
        return sizes

    @property
    def size_bytes(self) -> int:
        return sum(staged.ids.nbytes + staged.grads.nbytes for staged in self.tables.values())

    def find(self, number: int) -> Table:
        """A table that the update announces rows of; raises InvalidRows."""
        if number not in self.tables:
            named = [self._all[known].spec.name for known in self.tables]
            raise InvalidRows(
                f"run '{self._run}': rows of table {number}, expected those of {named} that the header announces; "
                "announce it",
                table=str(number),
            )
        return self._all[number]

    def admit(self, number: int, ids_bytes: int, data_bytes: int) -> tuple[int, int]:
        """Count rows before they are copied; from which to which place they go. Raises InvalidRows."""
        table, count = self.find(number), ids_bytes // 8
        staged = self.tables[number]
        row_bytes = table.width * table.dtype.itemsize
        if ids_bytes % 8 or data_bytes != count * row_bytes:
            raise InvalidRows(
                f"run '{self._run}', table '{table.spec.name}': {ids_bytes} bytes of ids and {data_bytes} of row "
                f"gradients, expected 8 and {row_bytes} for each id; send ids as int64 and rows of {table.width} "
                f"{table.dtype}",
                table=table.spec.name,
            )
        begin, staged.placed = staged.placed, staged.placed + count
        if staged.placed > len(staged.ids):
            raise InvalidRows(
                f"run '{self._run}', table '{table.spec.name}': {staged.placed} rows, expected the {len(staged.ids)} "
                "that the header announces; send as many",
                table=table.spec.name,
            )
        return begin, staged.placed

    def place(self, number: int, begin: int, end: int, ids: Any, data: Any) -> None:
        """Copy admitted rows; safe on any thread. ids, data: buffers."""
        table, staged = self._all[number], self.tables[number]
        if begin == end:
            return
        staged.ids[begin:end] = np.frombuffer(ids, np.int64)
        target = staged.grads[begin:end].reshape(-1).view(np.uint8)
        target[:] = np.frombuffer(data, np.uint8)
        if self._finite and not table.device.is_finite(target, table.dtype):
            self.nonfinite = table.spec.name

    def check_complete(self) -> None:
        """Raise IncompleteUpdate unless all that was announced has arrived."""
        for number, staged in self.tables.items():
            if staged.placed < len(staged.ids):
                raise IncompleteUpdate(
                    f"run '{self._run}', table '{self._all[number].spec.name}': {staged.placed} rows have arrived, "
                    f"expected the {len(staged.ids)} that the header announces; send the rest",
                    missing_rows=len(staged.ids) - staged.placed,
                )


def find_table(run: str, tables: Sequence[Table], number: int) -> Table:
    """The table of a number; raises UnknownTable."""
    if not 0 <= number < len(tables):
        raise UnknownTable(
            f"run '{run}' has no table {number}, expected one of {names_of(tables)}; take numbers from the layout",
            got=number,
        )
    return tables[number]


def names_of(tables: Iterable[Table]) -> str:
    return ", ".join(table.spec.name for table in tables) or "(none)"


def rounded(count: int) -> int:
    """With up to an eighth more: batches differ in size, and vectors of one size are used again."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step
