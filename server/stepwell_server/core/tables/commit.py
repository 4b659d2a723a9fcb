"""One commit of a table, planned step by step and then applied; see `table.py`."""

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import Value
from stepwell_server.core.errors import DomainError, NonfiniteGradient, TableFull
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.settings import Moment, Settings, damped
from stepwell_server.core.tables.coefficients import by_scalars, shared
from stepwell_server.core.tables.eviction import EVICTED_MAX, Batch, Victims
from stepwell_server.core.tables.missed import byte_offsets
from stepwell_server.core.tables.row_loops import COUNT, TOUCHED

if TYPE_CHECKING:
    from stepwell_server.core.tables.table import Table

Integers = NDArray[np.int64]
_NONE = np.zeros(0, np.int64)

# What planning asks for, and gets: vectors of these sizes.
Plan = Generator[list[Size], list[Vector], None]


class TableCommit:
    """sizes: the vectors that `take` wants next, none when the commit is ready to be applied.

    Nothing of the table is written before `apply`, but for scratch memory, and room in the index that nobody sees.
    """

    def __init__(
        self,
        table: "Table",
        ids: Integers,
        grads: NDArray[Any],
        moment: Moment,
        settings: Settings,
        given: Mapping[str, float],
        grow: bool,
        damping: float,
        checks_finite: bool,
    ) -> None:
        self._table = table
        self._ids, self._grads, self._given, self._grow = ids, grads, given, grow
        self._checks_finite = checks_finite
        self.settings, self._rule = settings, table.rule
        if settings is not table.settings:
            self._rule = table.check_settings(settings)
        self._kernel = table.device.compile_rows(self._rule.program, table.dtype)
        self.values: Mapping[str, Value] = damped(settings.at(moment), damping)
        self.step = table.step + 1
        self._unneeded: list[Vector] = []
        self._chunks: list[Vector] = []
        self._copies: dict[int, list[Vector]] = {}
        self._counts_copy: Vector | None = None
        self._reserved = _NONE
        self._missing = self._caught_up = self._refused = _NONE
        self._new_ids = self._new_rows = _NONE
        self._victims = Victims(_NONE, _NONE, 0)
        self._scalars: dict[str, float] = {}
        self._row_scalars: NDArray[np.float64] | None = None
        self._applied = False
        self._plan = self._planning()
        try:
            self.sizes: list[Size] = next(self._plan, [])
        except DomainError:
            table.index.release(self._reserved)
            raise

    def take(self, vectors: list[Vector]) -> None:
        """Go on with vectors of `sizes`. Raises as `Table.prepare`; then `Table.discard` is due."""
        try:
            self.sizes = self._plan.send(vectors)
        except StopIteration:
            self.sizes = []

    def apply(self) -> None:
        """Write the rows; cannot fail."""
        assert not self.sizes, "take comes first"
        self._applied = True
        table, layout = self._table, self._table.layout
        rows, loops = table.rows, table.row_loops
        self._copy_chunks()
        for at in range(0, len(self._chunks), len(layout.chunk_sizes)):
            rows.append(self._chunks[at : at + len(layout.chunk_sizes)])
        self._evict()
        self._create()
        numbers = self._rows
        if len(numbers):
            addresses = table.work.arrays["addresses"].view(np.uint64)[: len(numbers)]
            loops.locate(numbers, rows.records, layout.shift, layout.record_bytes, addresses)
            missed = table.missed
            if missed is not None and len(self._caught_up):
                missed.write(addresses[self._caught_up], self._missed_table)
            offsets = byte_offsets(layout, table.slots, self._rule.program.slots)
            self._kernel.update(addresses, self._gradients, self._places, self._coefficients, offsets, layout.width)
            loops.touch(numbers, rows.marks, layout.shift, self.step)
        if self._row_scalars is not None:
            addresses = table.work.arrays["addresses"].view(np.uint64)[: len(numbers)]
            loops.locate(numbers, rows.scalars, layout.shift, 8 * layout.scalars, addresses)
            table.scalar_loops.pack(addresses, np.uint64(0), self._row_scalars)
        if table.admission is not None and len(self._refused):
            unneeded = table.admission.count(self._refused, self._counts_copy)
            self._unneeded += [] if unneeded is None else [unneeded]
        if table.rule.idle is not None:
            table.history.append(table.history_loops, self._numbers)

    def finish(self) -> list[Vector]:
        """Make it the present state; vectors that nobody needs any more."""
        assert self._applied
        table = self._table
        table.step = self.step
        table.values = self.values
        table.scalars = {**table.scalars, **self._scalars}
        if self.settings is not table.settings:
            table.set_settings(self.settings)
        table.live += len(self._new_rows) - len(self._victims.rows)
        table.created += len(self._new_rows)
        table.evicted += len(self._victims.rows)
        table.refused += len(self._refused)
        if table.eviction is not None:
            table.eviction.finish(self._victims)
        return self._unneeded

    def discard(self) -> list[Vector]:
        """Give it up; vectors that nobody needs any more."""
        assert not self._applied
        self._plan.close()
        self._table.index.release(self._reserved)
        unneeded = [*self._unneeded, *self._chunks, *(vector for copy in self._copies.values() for vector in copy)]
        return [*unneeded, *([] if self._counts_copy is None else [self._counts_copy])]

    # Planning.

    def _planning(self) -> Plan:
        yield from self._sum_duplicates()
        yield from self._find_rows()
        self._plan_coefficients()
        yield from self._make_room()
        yield from self._plan_copies()
        growth = self._table.history.growth if self._rule.idle else None
        if growth is not None:
            (vector,) = yield [growth]
            self._unneeded += self._table.grow_history(vector)

    def _sum_duplicates(self) -> Plan:
        """Which ids are distinct, and where the gradient of each is, duplicates summed."""
        table, count = self._table, len(self._ids)
        work = table.work
        size = work.size(count)
        if size is not None:
            (vector,) = yield [size]
            self._unneeded += work.grow(vector)
        arrays = work.arrays
        ids, firsts, which = arrays["ids"][:count], arrays["firsts"], arrays["which"][:count]
        ids[:] = self._ids
        self._hashed, self._distinct, self._key = work.hash_places(count), arrays["distinct"], table.index.key
        distinct = table.index.loops.distinguish(ids, self._key, self._hashed, self._distinct, firsts, which)
        size = work.sums_size(min(count - distinct, count // 2), table.width, table.dtype)
        if size is not None:
            (vector,) = yield [size]
            self._unneeded += work.grow_sums(vector, table.width)
        self._gradients = arrays["grads"].view(np.uint64)
        start = np.uint64(self._grads.ctypes.data)
        if distinct:
            sums = table.row_loops.add_up(which, firsts, distinct, start, table.work.sums, self._gradients)
            if self._checks_finite and not np.isfinite(table.work.sums[:sums]).all():
                raise NonfiniteGradient(
                    f"table '{table.spec.name}': the gradients of an id that comes several times have a sum beyond "
                    f"what {table.dtype} holds, expected a finite one; scale them down",
                    table=table.spec.name,
                )
        self._distinct_count = distinct

    def _find_rows(self) -> Plan:
        """Which rows there are, which are new, and which go."""
        table, count = self._table, self._distinct_count
        numbers = table.work.arrays["numbers"][:count]
        ids, self._gradients = self._distinct[:count], self._gradients[:count]
        missing = np.flatnonzero(numbers < 0) if table.index.lookup(ids, numbers) else _NONE
        if len(missing) and table.admission is not None and table.admission.touches > 1:
            admitted = table.admission.estimate(ids[missing]) + 1 >= table.admission.touches
            self._refused, missing = ids[missing[~admitted]], missing[admitted]
        if len(self._refused):
            stays = numbers >= 0
            stays[missing] = True
            kept = np.flatnonzero(stays)
            ids, numbers, self._gradients = ids[kept], numbers[kept], self._gradients[kept]
            missing = np.flatnonzero(numbers < 0)
        self._rows, self._missing = numbers, missing
        self._new_ids = ids[missing] if len(missing) else _NONE
        yield from self._choose_victims()
        self._number_new_rows()

    def _choose_victims(self) -> Plan:
        table, new = self._table, len(self._missing)
        limit = table.spec.rows_max if self._grow else min(table.spec.rows_max, table.rows.capacity)
        after, eviction = table.live + new, table.eviction
        if eviction is not None:
            wanted = EVICTED_MAX if eviction.age is not None else max(0, after - limit)
            before = self.step - eviction.age if eviction.age is not None else self.step
            if wanted and table.live and before > 0:
                sizes = eviction.sizes(min(wanted, table.live), self._distinct_count)
                if sizes:
                    self._unneeded += eviction.take((yield sizes))
                batch = Batch(self._hashed, self._distinct, self._key)
                self._victims = eviction.choose(min(wanted, table.live), before, self.step, table.live, batch)
        if after - len(self._victims.rows) > limit:
            raise TableFull(
                f"table '{table.spec.name}': the commit brings {new} new rows to the {table.live} that there are, "
                f"expected at most {limit} in all{', in one batch, too' if eviction else ''}; give the table a larger "
                "rows_max, an eviction or an admission",
                table=table.spec.name,
                rows=table.live,
                new=new,
                rows_max=limit,
            )

    def _number_new_rows(self) -> None:
        """The rows that new ids get: those of victims first, then free ones, then fresh ones."""
        table, new = self._table, len(self._missing)
        self._free_after, self._reused, self._freed = table.rows.free_first, 0, 0
        self._used_after = table.rows.used
        if not new:
            return
        self._new_rows = np.empty(new, np.int64)
        reused = min(new, len(self._victims.rows))
        free = min(new - reused, table.rows.free_count)
        self._new_rows[:reused] = self._victims.rows[:reused]
        self._reused, self._freed = reused, free
        if free:
            listed = self._new_rows[reused : reused + free]
            self._free_after = table.row_loops.list_free(
                listed, table.rows.marks, table.layout.shift, table.rows.free_first
            )
        fresh = new - reused - free
        self._new_rows[reused + free :] = np.arange(table.rows.used, table.rows.used + fresh)
        self._used_after = table.rows.used + fresh
        self._rows[self._missing] = self._new_rows

    def _plan_coefficients(self) -> None:
        """Everything that hyperparameters can make fail."""
        table, rule, count = self._table, self._rule, len(self._rows)
        program = rule.program
        self._places = table.work.arrays["places"].view(np.uint64)[:count]
        if rule.idle is not None:
            self._plan_missed()
            self._numbers = rule.idle.numbers(self.step, self.values)
        if not rule.row_steps:
            self._coefficients, self._scalars = shared(
                program, self.step, self.values, table.scalars, self._given, table.dtype
            )
            self._places.fill(0)
            return
        steps = self._marks(COUNT) + 1
        if program.scalars:
            before = np.empty((count, len(program.scalars)))
            before[:] = [table.declared_scalars[name] for name in program.scalars]
            known = np.ones(count, np.bool_)
            known[self._missing] = False
            if known.any():
                before[known] = table.read_scalars(self._rows[known])
            self._coefficients, places, self._row_scalars = by_scalars(
                program, steps, self.values, before, self._given, table.dtype
            )
        else:
            self._coefficients, places = table.step_coefficients.find(program, steps, self.values, self._given)
        self._places[:] = places.astype(np.uint64)

    def _plan_missed(self) -> None:
        """Which rows have missed steps, and what these make of them."""
        table = self._table
        missed = table.missed
        assert missed is not None, "an exact table stays one"
        lasts = table.stored_lasts(self._marks(TOUCHED))
        self._caught_up = np.flatnonzero(lasts < table.step)
        self._missed_table = missed.coefficients(lasts[self._caught_up])

    def _marks(self, which: int) -> Integers:
        """A mark of each row, 0 for new ones."""
        table = self._table
        values = np.zeros(len(self._rows), np.int64)
        if table.rows.used:
            asked = self._rows
            if len(self._missing):
                asked = asked.copy()
                asked[self._missing] = -1
            table.row_loops.read_marks(asked, table.rows.marks, table.layout.shift, which, values)
        return values

    def _make_room(self) -> Plan:
        """Room in the index for new ids, and chunks for their rows."""
        table = self._table
        if not len(self._new_ids):
            return
        done = 0
        try:
            while (done := table.index.reserve(self._new_ids, done)) < len(self._new_ids):
                self._reserved = self._new_ids
                (block,) = yield [table.index.next_block]
                table.index.add_block(block)
        finally:
            self._reserved = self._new_ids
        chunks = -(-self._used_after // table.layout.chunk_rows) - len(table.rows)
        if chunks > 0:
            self._chunks = yield table.layout.chunk_sizes * chunks

    def _plan_copies(self) -> Plan:
        """Copies of what readers hold and the commit would write."""
        table = self._table
        if not table.rows.holds:
            return
        if len(self._rows) or len(self._victims.rows):
            flags = np.zeros(len(table.rows) + len(self._chunks), np.uint8)
            for numbers in (self._rows, self._victims.rows):
                table.row_loops.mark_chunks(numbers, table.layout.shift, flags)
            held = table.rows.held(flags)
            if held:
                each = table.layout.chunk_sizes
                vectors = yield each * len(held)
                self._copies = {
                    number: vectors[place * len(each) : (place + 1) * len(each)] for place, number in enumerate(held)
                }
        if table.admission is not None and table.admission.held.holders and len(self._refused):
            (self._counts_copy,) = yield [table.admission.own_size]

    # Applying.

    def _copy_chunks(self) -> None:
        chunks = self._table.rows

        def work(first: int, last: int) -> None:
            for number in list(self._copies)[first:last]:
                for source, target in zip(chunks.chunks[number].vectors, self._copies[number], strict=True):
                    np.copyto(target, source)

        if self._copies:
            self._table.device.spread_rows(len(self._copies), 1 << 16, work)
        for number, vectors in self._copies.items():
            chunks.replace(number, vectors)

    def _evict(self) -> None:
        table, rows = self._table, self._table.rows
        rows.free_first, rows.free_count = self._free_after, rows.free_count - self._freed
        if len(self._victims.rows):
            table.index.remove(self._victims.ids)
            left = self._victims.rows[self._reused :]
            rows.free_first = table.row_loops.free(left, rows.marks, table.layout.shift, rows.free_first)
            rows.free_count += len(left)

    def _create(self) -> None:
        table, rows, layout = self._table, self._table.rows, self._table.layout
        rows.used = self._used_after
        if not len(self._new_rows):
            return
        table.index.assign(self._new_ids, self._new_rows)
        table.row_loops.begin_marks(self._new_ids, self._new_rows, rows.marks, layout.shift)
        addresses = np.empty(len(self._new_rows), np.uint64)
        table.row_loops.locate(self._new_rows, rows.records, layout.shift, layout.record_bytes, addresses)

        def work(first: int, last: int) -> None:
            table.begin_records(self._new_ids[first:last], addresses[first:last])

        table.device.spread_rows(len(addresses), 4 * layout.width, work)
