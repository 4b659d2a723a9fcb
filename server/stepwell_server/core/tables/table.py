"""A table: rows by id, created when they are first touched, and the only code that changes them.

A commit goes: `prepare` (is it right, what will it take?), `take` for as long as it names sizes, `apply` (cannot fail),
`finish` (the new state); or `discard` at any point before `apply`, after which nothing has changed. Memory is asked for
by the caller, who owns it; all else is safe on any thread, one at a time:

    commit = table.prepare(ids, grads, moment)
    while commit.sizes:
        commit.take(memory.allocate(commit.sizes, "..."))
    commit.apply()
    memory.free(table.finish(commit))

A commit without ids is one, too: under flavors with one step for all, and for sparse_adam, the clock runs on. What a
row's step is, see `rules.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import Value
from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.devices.device import ALIGNMENT_BYTES, Device
from stepwell_server.core.errors import InvalidRows, LimitExceeded, TablesUnavailable
from stepwell_server.core.group import Held
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.settings import Moment, Settings
from stepwell_server.core.tables.admission import Admission
from stepwell_server.core.tables.chunks import Chunks, RowLayout, row_loops_of
from stepwell_server.core.tables.coefficients import StepCoefficients
from stepwell_server.core.tables.commit import TableCommit
from stepwell_server.core.tables.eviction import Eviction
from stepwell_server.core.tables.history import History, history_loops_of
from stepwell_server.core.tables.hold import TableHold
from stepwell_server.core.tables.index import HashIndex
from stepwell_server.core.tables.initializer import Initializer
from stepwell_server.core.tables.missed import MissedSteps
from stepwell_server.core.tables.row_loops import TOUCHED
from stepwell_server.core.tables.rules import RowRule, check_change, check_rows, row_rule
from stepwell_server.core.tables.spec import TableSpec
from stepwell_server.core.tables.work import Work

_NONE = np.zeros(0, np.int64)
# How many ids one commit may bring.
IDS_MAX = 1 << 22
# A pull goes through its ids in blocks, with scratch memory for one of them.
_PULL_ROWS_MAX = 4096
_PULL_BYTES = 1 << 20


@dataclass(frozen=True)
class TableStatistics:
    """Since the table was created. rows: that there are. refused: touches of ids that admission did not let in yet."""

    rows: int
    created: int
    refused: int
    evicted: int
    state_bytes: int


class Table:
    """spec, settings: checked. step: the number of its commits. values: the hyperparameters of the last one."""

    def __init__(
        self,
        spec: TableSpec,
        settings: Settings,
        device: Device,
        vectors: Sequence[Vector],
        moment: Moment,
        hash_key: int,
    ) -> None:
        """vectors: of `sizes`. hash_key: 64 secret random bits.

        Raises TablesUnavailable on another device than the CPU; compiling takes seconds the first time.
        """
        self.device = cpu_of(device, spec.name)
        self.spec = spec
        self.layout = _layout(spec, settings)
        self.width, self.dtype = spec.width, spec.element_type
        self.rows = Chunks(self.layout)
        self.row_loops = row_loops_of(self.device, self.dtype)
        self.scalar_loops = row_loops_of(self.device, np.dtype(np.float64)) if self.layout.scalars else self.row_loops
        self.history_loops = history_loops_of(self.device)
        self.step_coefficients = StepCoefficients(self.dtype)
        self.initializer = Initializer(spec, self.row_loops)
        self.work = Work.none(self.width, self.dtype)
        self.step = 0
        self.live = self.created = self.refused = self.evicted = 0
        self.rule: RowRule = row_rule(settings, spec.sparse_mode)
        self.settings = settings
        self.set_settings(settings)
        self.values: Mapping[str, Value] = settings.at(moment)
        self.slots = settings.slots
        declared = settings.declared_scalars
        self.declared_scalars = {name: declared[name] for name in self.rule.program.scalars}
        # Scalars of the whole table, where its rows share a step.
        self.scalars = dict(self.declared_scalars)
        sources = settings.initial_slots
        self.initial_slots = [_constant(sources[name], self.values) for name in self.slots]
        self.from_param = np.array([sources[name] == "param" for name in self.slots], np.int64)
        self.history = History.begin(self.rule.idle.pairs if self.rule.idle else 0, 0)
        self.held_history = Held(self.history.closed)
        left = list(vectors)
        self.index = HashIndex(self.device, hash_key, left.pop(0))
        self._pull_records, self._pull_words = left.pop(0), left.pop(0)
        self.admission: Admission | None = None
        if spec.admission is not None:
            counts = left.pop(0)
            counts.fill(0)
            self.admission = Admission(self.device, spec.admission, counts, f"{spec.seed} {spec.name} admission")
        self.eviction = (
            None if spec.eviction is None else Eviction(self.device, spec.eviction, self.rows, spec.rows_max)
        )

    @staticmethod
    def sizes(spec: TableSpec, settings: Settings) -> list[Size]:
        """The vectors that an empty table takes; more with its rows."""
        layout = _layout(spec, settings)
        waits = row_rule(settings, spec.sparse_mode).idle is not None
        rows = _pull_rows(layout, waits)
        sizes = [
            HashIndex.block_size(0),
            Size(rows * layout.record_bytes // layout.dtype.itemsize if waits else 1, layout.dtype),
            Size(3 * rows, np.dtype(np.int64)),
        ]
        return sizes + ([] if spec.admission is None else [Admission.size(spec.admission)])

    def set_settings(self, settings: Settings) -> None:
        """Take changed settings, from the next commit on.

        Raises RowsNotSupported and ChangeRefused, and then nothing has changed.
        """
        self.rule, self.settings = self.check_settings(settings), settings
        self.device.compile_rows(self.rule.program, self.dtype)
        if self.rule.idle is not None:
            self.device.compile_rows(self.rule.idle.program, self.dtype)

    def check_settings(self, settings: Settings) -> RowRule:
        """Raise as `set_settings`; what they do to rows."""
        check_rows(settings, self.spec.sparse_mode, f"table '{self.spec.name}'")
        rule = row_rule(settings, self.spec.sparse_mode)
        check_change(self.rule, rule, f"table '{self.spec.name}'")
        return rule

    # Commits.

    def prepare(
        self,
        ids: NDArray[np.int64],
        grads: NDArray[Any],
        moment: Moment,
        settings: Settings | None = None,
        given: Mapping[str, float] = MappingProxyType({}),
        grow: bool = True,
        damping: float = 1.0,
        checks_finite: bool = False,
    ) -> TableCommit:
        """Plan a commit of row gradients.

        ids: int64, shape (n,), any numbers; those that occur several times have their gradients summed, in their order.
        grads: shape (n, width), the table's dtype, C order, finite; read in `apply`, too. settings: of this commit and
        from then on, if not the present ones. given: numbers that come with the update.
        grow: whether further chunks of rows may be taken; without, rows are evicted, see `evicts_for_room`.
        damping: what the learning rate is multiplied by. checks_finite: whether the sums of gradients must be finite.

        Raises InvalidRows, LimitExceeded, TableFull, RowsNotSupported, InvalidValue, NonfiniteGradient; then nothing
        has changed.
        """
        self.check(ids, grads)
        return TableCommit(self, ids, grads, moment, settings or self.settings, given, grow, damping, checks_finite)

    def check(self, ids: NDArray[Any], grads: NDArray[Any]) -> None:
        """Raise InvalidRows or LimitExceeded for ids or gradients that are not this table's."""
        self._check_ids(ids)
        if len(ids) > IDS_MAX:
            raise LimitExceeded(
                f"table '{self.spec.name}': {len(ids)} ids at once, expected at most {IDS_MAX}; send fewer",
                limit=IDS_MAX,
            )
        self._check_values(ids, grads, "row gradients")

    def finish(self, commit: TableCommit) -> list[Vector]:
        """Make an applied commit the present state; returns vectors that nobody needs any more."""
        return commit.finish()

    def discard(self, commit: TableCommit) -> list[Vector]:
        """Give up a commit that was not applied; returns vectors that nobody needs any more."""
        return commit.discard()

    @property
    def evicts_for_room(self) -> bool:
        """Whether `prepare(grow=False)` makes room where there is no memory for more rows."""
        return self.eviction is not None and self.eviction.age is None and self.rows.capacity > 0

    @property
    def counts_without_rows(self) -> bool:
        """Whether a commit of the run that brings no rows is one of this table, too, with no ids."""
        return not self.settings.step_per_parameter

    # Readers.

    def pull(self, ids: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Write the parameters of rows, in the order of the ids, which may occur several times.

        out: shape (n, width), the table's dtype, C order. A row that does not exist gives what it would begin with, and
        is not stored. Raises InvalidRows.
        """
        self._check_ids(ids)
        self._check_values(ids, out, "rows to fill")
        block = _pull_rows(self.layout, self.rule.idle is not None)
        for begin in range(0, len(ids), block):
            self._pull(ids[begin : begin + block], out[begin : begin + block])

    def hold(self) -> TableHold:
        """Keep the whole state as it is until `release`."""
        return TableHold(self)

    def release(self, hold: TableHold) -> list[Vector]:
        """End a hold; returns vectors that nobody needs any more."""
        return hold.release()

    def drop(self) -> list[Vector]:
        """End the table; returns vectors that nobody holds. It cannot be used any more, but for releasing holds."""
        unneeded = self.rows.drop()
        before, self.held_history = self.held_history, Held(np.zeros(0))
        unneeded += [before.vector] if len(before.vector) and not before.holders else []
        if self.admission is not None:
            counts, self.admission.held = self.admission.held, Held(np.zeros(0, np.uint8))
            unneeded += [] if counts.holders else [counts.vector]
        unneeded += [*self.index.blocks, self._pull_records, self._pull_words, *self.work.vectors]
        return unneeded + (self.eviction.vectors if self.eviction else [])

    @property
    def statistics(self) -> TableStatistics:
        return TableStatistics(self.live, self.created, self.refused, self.evicted, self.state_bytes)

    @property
    def state_bytes(self) -> int:
        """What the table takes from the memory."""
        chunks = len(self.rows) * sum(size.size_bytes for size in self.layout.chunk_sizes)
        return chunks + sum(vector.nbytes + ALIGNMENT_BYTES for vector in self._vectors_beside_rows)

    @property
    def vectors(self) -> list[Vector]:
        """Every vector of the table's."""
        return [vector for chunk in self.rows.chunks for vector in chunk.vectors] + self._vectors_beside_rows

    @property
    def _vectors_beside_rows(self) -> list[Vector]:
        found = [*self.index.blocks, self._pull_records, self._pull_words, *self.work.vectors]
        found += [self.history.closed] if len(self.history.closed) else []
        found += [self.admission.held.vector] if self.admission else []
        return found + (self.eviction.vectors if self.eviction else [])

    @property
    def array_types(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """The type of each array, and the shape of one row of it."""
        whole = np.dtype(np.int64)
        types: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "ids": (whole, ()),
            "rows": (self.dtype, (self.width,)),
        }
        types |= {f"slot.{name}": (self.dtype, (self.width,)) for name in self.slots}
        types |= {"touched": (whole, ()), "count": (whole, ())}
        if self.layout.scalars:
            types["scalars"] = (np.dtype(np.float64), (self.layout.scalars,))
        return types

    @property
    def missed(self) -> MissedSteps | None:
        """How rows are brought up to the present step; None where missed steps change nothing."""
        if self.rule.idle is None:
            return None
        kernel = self.device.compile_rows(self.rule.idle.program, self.dtype)
        return MissedSteps(
            self.rule.idle, kernel, self.history_loops, self.history, self.values, self.layout, self.slots
        )

    def begin_records(self, ids: NDArray[np.int64], addresses: NDArray[np.uint64]) -> None:
        """Write what rows begin with, parameters and slots."""
        self.initializer.write(ids, addresses)
        if self.slots:
            constants = np.array(self.initial_slots, self.dtype)
            self.row_loops.begin_slots(addresses, constants, self.from_param, self.width)

    def read_scalars(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The scalars of rows, shape (rows, scalars)."""
        addresses = np.empty(len(rows), np.uint64)
        self.row_loops.locate(rows, self.rows.scalars, self.layout.shift, 8 * self.layout.scalars, addresses)
        out = np.empty((len(rows), self.layout.scalars))
        self.scalar_loops.gather(addresses, out)
        return out

    def grow_history(self, vector: Vector) -> list[Vector]:
        """Give the history more room; vectors that nobody needs any more."""
        before, self.held_history = self.held_history, Held(vector)
        self.history.grow(vector)
        return [before.vector] if len(before.vector) and not before.holders else []

    def _pull(self, ids: NDArray[np.int64], out: NDArray[Any]) -> None:
        count, layout = len(ids), self.layout
        words = self._pull_words.reshape(3, -1)
        own, numbers, addresses = words[0, :count], words[1, :count], words[2, :count].view(np.uint64)
        own[:] = ids
        missing = np.flatnonzero(numbers < 0) if self.index.lookup(own, numbers) else _NONE
        start, size = out.ctypes.data, self.width * self.dtype.itemsize
        if len(missing) < count:
            numbers[missing] = 0
            self.row_loops.locate(numbers, self.rows.records, layout.shift, layout.record_bytes, addresses)
            numbers[missing] = -1
        late = self._find_late(numbers)
        if len(missing):
            if not len(late):
                self.initializer.write(own[missing], _spaced(start, size, missing))
                addresses[missing] = 0
            else:
                places = np.arange(len(missing))
                addresses[missing] = _spaced(self._pull_records.ctypes.data, layout.record_bytes, places)
                self.begin_records(own[missing], addresses[missing])
        if len(late):
            missed = self.missed
            assert missed is not None
            missed.write_current(addresses[late], self._lasts(numbers[late]), _spaced(start, size, late))
            # What missed nothing is copied, for a companion's arithmetic may round.
            addresses[late] = 0
        self._spread_gather(addresses, out)

    def _find_late(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these rows have missed steps that would have changed them; -1 is a row that does not exist."""
        if self.rule.idle is None or not self.step:
            return _NONE
        return np.flatnonzero(self._lasts(numbers) < self.step)

    def _lasts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        lasts = np.zeros(len(numbers), np.int64)
        if self.rows.used:
            self.row_loops.read_marks(numbers, self.rows.marks, self.layout.shift, TOUCHED, lasts)
        return self.stored_lasts(lasts)

    def stored_lasts(self, lasts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The step after which each row's values stand: its last commit, or the one at which the table was loaded."""
        return np.where(lasts > 0, np.maximum(lasts, self.history.base), 0)

    def _spread_gather(self, addresses: NDArray[np.uint64], out: NDArray[Any]) -> None:
        gather = self.row_loops.gather

        def work(first: int, last: int) -> None:
            gather(addresses[first:last], out[first:last])

        self.device.spread_rows(len(addresses), self.width, work)

    def _check_ids(self, ids: NDArray[Any]) -> None:
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise InvalidRows(
                f"table '{self.spec.name}': the ids are {ids.dtype} of shape {ids.shape}, expected int64 of shape "
                "(n,); convert them",
                table=self.spec.name,
            )

    def _check_values(self, ids: NDArray[Any], values: NDArray[Any], what: str) -> None:
        expected = (len(ids), self.width)
        if values.dtype != self.dtype or values.shape != expected or not values.flags.c_contiguous:
            order = "" if values.flags.c_contiguous else ", not in C order"
            raise InvalidRows(
                f"table '{self.spec.name}': {what} are {values.dtype} of shape {values.shape}{order}, expected "
                f"{self.dtype} of shape {expected} in C order; convert them",
                table=self.spec.name,
            )


def cpu_of(device: Device, table: str) -> CpuDevice:
    """The device, if it has tables; raises TablesUnavailable."""
    if not isinstance(device, CpuDevice):
        raise TablesUnavailable(
            f"table '{table}': the server's device has no tables, expected the CPU; start a server with --device cpu",
            table=table,
        )
    return device


def _layout(spec: TableSpec, settings: Settings) -> RowLayout:
    rule = row_rule(settings, spec.sparse_mode)
    scalars = len(rule.program.scalars) if rule.row_steps else 0
    return RowLayout(spec.width, spec.element_type, len(settings.slots), scalars)


def _pull_rows(layout: RowLayout, waits: bool) -> int:
    """How many rows are pulled at once. waits: whether those that do not exist must be made and brought up to date."""
    return _PULL_ROWS_MAX if not waits else max(1, min(_PULL_ROWS_MAX, _PULL_BYTES // layout.record_bytes))


def _spaced(start: int, size: int, places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The addresses of places in an array, of `size` bytes each."""
    return np.uint64(start) + np.uint64(size) * places.astype(np.uint64)


def _constant(source: str | None, values: Mapping[str, Value]) -> float:
    if source is None or source == "param":
        return 0.0
    value = values[source]
    assert isinstance(value, float)
    return value
