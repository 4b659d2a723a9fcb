"""All tables of a run: what one commit of the run does to them, what readers get, and what a snapshot holds."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.device import Device
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.settings import Moment, Settings
from stepwell_server.core.tables.commit import TableCommit
from stepwell_server.core.tables.hold import TableHold
from stepwell_server.core.tables.spec import TableSpec
from stepwell_server.core.tables.staged import StagedRows, find_table
from stepwell_server.core.tables.table import Table

_NO_IDS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Brought:
    """Rows that a commit brings, and what their gradients are multiplied by."""

    rows: StagedRows
    factor: float = 1.0


# What planning asks for, and gets: vectors of these sizes, or None where there is no memory.
_Plan = Generator[list[Size], list[Vector] | None, None]


class TablesCommit:
    """What a commit of the run does to its tables; nothing of them is written before `apply`.

    `begin`, then `take` for as long as there are `sizes`; then `apply` and `finish`, or `discard` at any point before.
    applied: whether it is.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        brought: Sequence[Brought],
        moment: Moment,
        settings: Sequence[Settings],
        given: Mapping[str, float],
        damping: float,
        checks_finite: bool,
    ) -> None:
        self.sizes: list[Size] = []
        self.may_evict = False
        self._tables, self._brought, self._moment, self._settings = tables, brought, moment, settings
        self._given, self._damping, self._checks_finite = given, damping, checks_finite
        self._commits: list[TableCommit] = []
        self._of: list[Table] = []
        self._scratch: list[Vector] = []
        self._unneeded: list[Vector] = []
        self.applied = False
        self._plan = self._planning()

    @property
    def size_bytes(self) -> int:
        """About how much is read and written."""
        return sum(brought.rows.size_bytes for brought in self._brought)

    def begin(self) -> None:
        """Plan until memory is needed or everything that can fail has been done; safe on any thread.

        Raises as `Table.prepare`; then `discard` is due.
        """
        self.sizes = next(self._plan, [])

    def begin_and_apply(self) -> bool:
        """Both at once, where no memory is needed between; whether it was so. Raises as `begin`."""
        self.begin()
        if not self.sizes:
            self.apply()
        return self.applied

    def take(self, vectors: list[Vector] | None) -> None:
        """Go on with vectors of `sizes`, or without, if `may_evict`; safe on any thread. Raises as `begin`."""
        try:
            self.sizes = self._plan.send(vectors)
        except StopIteration:
            self.sizes = []

    def apply(self) -> None:
        """Write the rows, once; safe on any thread, cannot fail."""
        if self.applied:
            return
        self.applied = True
        for commit in self._commits:
            commit.apply()

    def finish(self) -> list[Vector]:
        """Make it the present state; vectors that nobody needs any more."""
        for table, commit in zip(self._of, self._commits, strict=True):
            self._unneeded += table.finish(commit)
        return [*self._unneeded, *self._scratch]

    def discard(self) -> list[Vector]:
        """Give it up; vectors that nobody needs any more."""
        assert not self.applied
        self._plan.close()
        for table, commit in zip(self._of, self._commits, strict=True):
            self._unneeded += table.discard(commit)
        self._commits, self._of = [], []
        return [*self._unneeded, *self._scratch]

    def _planning(self) -> _Plan:
        for number, table in enumerate(self._tables):
            pieces = [
                (brought.rows.tables[number], brought.factor)
                for brought in self._brought
                if number in brought.rows.tables
            ]
            if not pieces and not table.counts_without_rows:
                continue
            if len(pieces) == 1 and pieces[0][1] == 1.0:
                ids, grads = pieces[0][0].ids, pieces[0][0].grads
            elif pieces:
                count = sum(len(piece.ids) for piece, _ in pieces)
                vectors = yield [Size(count, np.dtype(np.int64)), Size(count * table.width, table.dtype)]
                assert vectors is not None, "nothing can be evicted for it"
                self._scratch += vectors
                ids, grads = vectors[0], vectors[1].reshape(count, table.width)
                at = 0
                for piece, factor in pieces:
                    end = at + len(piece.ids)
                    ids[at:end] = piece.ids
                    np.multiply(piece.grads, table.dtype.type(factor), out=grads[at:end])
                    at = end
            else:
                ids, grads = _NO_IDS, np.zeros((0, table.width), table.dtype)
            yield from self._plan_table(number, table, ids, grads)

    def _plan_table(self, number: int, table: Table, ids: NDArray[np.int64], grads: NDArray[Any]) -> _Plan:
        """Grow if there is memory; if not, evict."""
        grow = True
        while True:
            commit = table.prepare(
                ids,
                grads,
                self._moment,
                self._settings[number],
                self._given,
                grow,
                self._damping,
                self._checks_finite,
            )
            self._commits.append(commit)
            self._of.append(table)
            while commit.sizes:
                self.may_evict = grow and table.evicts_for_room
                vectors = yield commit.sizes
                self.may_evict = False
                if vectors is None:
                    break
                commit.take(vectors)
            else:
                return
            grow = False
            self._unneeded += table.discard(self._commits.pop())
            self._of.pop()


class Tables:
    """A run's tables, in the order of its spec."""

    def __init__(self, run: str, tables: Sequence[Table] = ()) -> None:
        self._run = run
        self.all = list(tables)

    def __bool__(self) -> bool:
        return bool(self.all)

    def find(self, number: int) -> Table:
        """The table of a number; raises UnknownTable."""
        return find_table(self._run, self.all, number)

    def staging_sizes(self, counts: Mapping[int, int]) -> list[Size]:
        """The vectors that `stage` needs. Raises UnknownTable, LimitExceeded."""
        return StagedRows.sizes(self._run, self.all, counts)

    def stage(self, counts: Mapping[int, int], vectors: Sequence[Vector], finite: bool) -> StagedRows:
        """Begin to take rows of an update. finite: whether they are tested."""
        return StagedRows(self._run, self.all, counts, vectors, finite)

    def prepare(
        self,
        brought: Sequence[Brought],
        moment: Moment,
        settings: Sequence[Settings],
        given: Mapping[str, float],
        damping: float,
        checks_finite: bool,
    ) -> TablesCommit | None:
        """What a commit of the run does here; None for nothing."""
        if not any(each.rows.tables for each in brought) and not any(table.counts_without_rows for table in self.all):
            return None
        return TablesCommit(self.all, brought, moment, settings, given, damping, checks_finite)

    @property
    def settings(self) -> list[Settings]:
        return [table.settings for table in self.all]

    def check_settings(self, settings: Sequence[Settings]) -> None:
        """Raise as `Table.set_settings`."""
        for table, chosen in zip(self.all, settings, strict=True):
            if chosen is not table.settings:
                table.check_settings(chosen)

    def set_settings(self, settings: Sequence[Settings]) -> None:
        """Take settings that were checked, from the next commit on."""
        for table, chosen in zip(self.all, settings, strict=True):
            if chosen is not table.settings:
                table.set_settings(chosen)

    @property
    def state_bytes(self) -> int:
        return sum(table.state_bytes for table in self.all)

    def hold(self) -> list[TableHold]:
        """Keep all as they are until `release`."""
        return [table.hold() for table in self.all]

    @staticmethod
    def release(holds: Sequence[TableHold]) -> list[Vector]:
        """End holds; vectors that nobody needs any more."""
        return [vector for hold in holds for vector in hold.release()]

    def drop(self) -> list[Vector]:
        """End the tables; vectors that nobody holds."""
        tables, self.all = self.all, []
        return [vector for table in tables for vector in table.drop()]


def table_sizes(specs: Sequence[TableSpec], settings: Sequence[Settings]) -> list[list[Size]]:
    """The vectors that each empty table takes."""
    return [Table.sizes(spec, chosen) for spec, chosen in zip(specs, settings, strict=True)]


def make_tables(
    specs: Sequence[TableSpec],
    settings: Sequence[Settings],
    device: Device,
    vectors: Sequence[Sequence[Vector]],
    moment: Moment,
    hash_key: int,
) -> list[Table]:
    """Empty tables, in vectors of `table_sizes`. hash_key: 64 secret random bits.

    Raises TablesUnavailable; compiling takes seconds the first time.
    """
    return [
        Table(spec, chosen, device, taken, moment, hash_key)
        for spec, chosen, taken in zip(specs, settings, vectors, strict=True)
    ]
