"""A run as the server hosts it: the core's run with a lock, waiting, and threads.

Everything here runs on the event loop; kernels and copies of some size run on worker threads. A commit, once begun,
goes to its end whatever becomes of its caller.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.payload import Buffer
from stepwell_server.core.coordinator import Decisions, Place
from stepwell_server.core.devices.device import Device
from stepwell_server.core.encoding import Encoded
from stepwell_server.core.errors import InvalidValue, UnknownRun
from stepwell_server.core.group import Launch
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.run import GroupArrays, Hold, Run
from stepwell_server.core.settings import ACCUMULATOR, Settings
from stepwell_server.core.spec import Schedules, check_policy, fit_policy
from stepwell_server.core.tables import StoredArray, Table
from stepwell_server.core.tables.stored import accumulated_arrays, held_arrays, held_data
from stepwell_server.core.update import Key, Staging, UpdateHeader
from stepwell_server.core.workers import Answer, Membership
from stepwell_server.service.commits import Commits
from stepwell_server.service.machine import Machine

# A range of an update: group, begin, data, which input it is, its type where that is not the group's, its encoding.
Arrived = tuple[int, int, Buffer, int, np.dtype[Any] | None, Encoded | None]

# Rows of an update: the table's number, from which to which place they go, ids, data.
ArrivedRows = tuple[int, int, int, Buffer, Buffer]
# Rows to be pulled: the table's number, ids, and where they are written, shape (n, width).
WantedRows = tuple[int, NDArray[np.int64], NDArray[Any]]

# How long a lease is that is asked for without a length, and the longest one.
LEASE_SECONDS = 60.0
LEASE_SECONDS_MAX = 86_400.0


class HostedRun:
    """One run and its lock. `gone` once it is deleted."""

    def __init__(self, run: Run, machine: Machine) -> None:
        self.run = run
        self.gone = False
        self._machine = machine
        self._lock = asyncio.Lock()
        self.commits = Commits(run, machine, self.exclusive, lambda: not self._lock.locked(), self.discard)
        self._expiry: asyncio.TimerHandle | None = None
        self._expiring: asyncio.Task[None] | None = None
        self._watch_leases()
        joined = run.workers.joined
        live = [[worker, joined[worker].epoch] for worker in run.coordinator.live]
        self._tell("open", uid=run.uid.hex(), policy=run.coordinator.policy.spec, live=live)

    def exclusive(self) -> "Exclusive":
        """The run between commits; raises UnknownRun if it was deleted meanwhile."""
        return Exclusive(self, self._lock)

    def check_present(self) -> None:
        if self.gone:
            raise UnknownRun(f"run '{self.run.name}' was deleted, expected it to be there; create it again")

    async def join(self, worker: str, lease_seconds: float = 0.0) -> tuple[Membership, Place, float]:
        """Make a caller a live worker: its membership, its place, and how long its lease is."""
        seconds = min(lease_seconds or LEASE_SECONDS, LEASE_SECONDS_MAX)
        async with self.exclusive() as run:
            self._expire_leases(run)
            membership, decisions = run.coordinator.join(worker, run.version, _now(), seconds)
            self._tell("join", worker=worker, epoch=membership.epoch, lease_seconds=seconds)
            self._act(decisions)
            self._watch_leases()
            return membership, run.coordinator.place(worker), seconds

    def renew(self, worker: str, epoch: int) -> Place:
        """A sign of life. Raises as `Coordinator.renew`."""
        coordinator = self.run.coordinator
        coordinator.renew(worker, epoch, _now())
        return coordinator.place(worker)

    async def leave(self, worker: str, epoch: int) -> None:
        """A worker goes. Raises as `Coordinator.leave`."""
        async with self.exclusive() as run:
            decisions = run.coordinator.leave(worker, epoch)
            self._tell("leave", worker=worker, epoch=epoch)
            self._act(decisions)

    def _act(self, decisions: Decisions) -> None:
        """Carry out what follows from a change of who is live."""
        self.commits.sweep()
        self.commits.carry_out(decisions)
        self._machine.wake()

    def _expire_leases(self, run: Run) -> None:
        """Fence whose lease has run out."""
        logged = self._machine.update_log is not None
        epochs = {name: worker.epoch for name, worker in run.workers.joined.items()} if logged else {}
        decisions = run.coordinator.expire(_now())
        for name, epoch in epochs.items():
            if name not in run.coordinator.live:
                self._tell("expire", worker=name, epoch=epoch)
        self._act(decisions)

    def _tell(self, kind: str, **more: object) -> None:
        """The update log, where there is one."""
        if self._machine.update_log is not None:
            self._machine.update_log.event(self.run, kind, **more)

    def _watch_leases(self) -> None:
        """Look again when the next lease runs out, or has been renewed."""
        expiry = self.run.coordinator.next_expiry()
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = None
        if expiry is not None and not self.gone:
            self._expiry = asyncio.get_running_loop().call_at(expiry, self._expire)

    def _expire(self) -> None:
        async def expire() -> None:
            async with self.exclusive() as run:
                self._expire_leases(run)
                self._watch_leases()

        self._expiring = asyncio.create_task(expire())
        self._expiring.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def stage(self, header: UpdateHeader) -> Staging:
        """Begin an update; waits for memory. `discard` or `commit` ends it."""
        sizes, row_sizes = self.run.staging_sizes(header), self.run.row_sizes(header)
        wanted = [*sizes.values(), *row_sizes]
        self._check_round(wanted)
        spare = self._spare(header.identity.worker, wanted)
        vectors = await self._machine.allocate(wanted, f"run '{self.run.name}': an update", spare)
        try:
            self.check_present()
            taken = len(sizes)
            staging = self.run.stage(header, dict(zip(sizes, vectors[:taken], strict=True)), vectors[taken:])
            if header.hyperparameters:
                await self._machine.run(self.run.compile, self.run.settings_with(header).groups)
        except BaseException:
            self._machine.memory.free(vectors)
            raise
        return staging

    def _spare(self, worker: str, sizes: Sequence[Size]) -> Callable[[], int]:
        """What must stay free when a worker's update is taken in: room for another, while it must wait for others."""
        coordinator = self.run.coordinator
        size_bytes = sum(size.size_bytes for size in sizes)

        def spare() -> int:
            return size_bytes if worker in coordinator.live and not coordinator.is_next(worker) else 0

        return spare

    def _check_round(self, sizes: Sequence[Size]) -> None:
        """Raise MemoryExhausted for a round that must wait in memory whole, and does not fit."""
        coordinator = self.run.coordinator
        if coordinator.policy.has_rounds and not coordinator.policy.folds_early:
            count = coordinator.policy.round_size
            purpose = f"run '{self.run.name}': a round of {count} updates"
            self._machine.memory.check_fits(list(sizes) * count, purpose, self._machine.state_bytes())

    async def stage_shared(
        self, header: UpdateHeader, inputs: tuple[str, ...], shared: Mapping[Key, Vector]
    ) -> Staging:
        """Begin an update that lies whole in a worker's vectors; they are read in place if commits leave them alone.

        inputs: for which there are vectors, from number 1 on; the header's must be the first of them.
        """
        self.run.worker_sizes(header.inputs, owner="")  # raises for an input that nobody knows
        sizes = self.run.staging_sizes(header)
        if header.inputs != inputs[: len(header.inputs)]:
            raise InvalidValue(
                f"run '{self.run.name}': the update has inputs {header.inputs}, expected the first of {inputs}, for "
                "which memory was shared; share memory with the same inputs"
            )
        borrowed = self.run.keeps_gradients and all(size.dtype == shared[key].dtype for key, size in sizes.items())
        staging = await (self._borrow(header, {key: shared[key] for key in sizes}) if borrowed else self.stage(header))
        try:
            size = sum(shared[key].nbytes for key in sizes)
            await self._machine.run_sized(size, staging.take, self._machine.memory.device, shared)
        except BaseException:
            self.discard(staging)
            raise
        return staging

    async def _borrow(self, header: UpdateHeader, vectors: Mapping[Key, Vector]) -> Staging:
        for_rows = await self._machine.allocate(self.run.row_sizes(header), f"run '{self.run.name}': rows")
        try:
            self.check_present()
            staging = self.run.stage(header, vectors, for_rows)
            if header.hyperparameters:
                await self._machine.run(self.run.compile, self.run.settings_with(header).groups)
        except BaseException:
            self._machine.memory.free(for_rows)
            raise
        staging.borrowed = True
        return staging

    async def share(self) -> None:
        """Have the parameters where other processes can map them."""
        async with self.exclusive() as run:
            if run.shared:
                return
            vectors = self._machine.memory.allocate(run.shared_sizes(), f"run '{run.name}': shared parameters")
            held = [group.vectors[""].vector for group in run.groups]
            try:
                await self._machine.run(_copy_all, self._machine.memory.device, held, vectors)
            except BaseException:
                self._machine.memory.free(vectors)
                raise
            run.share(vectors)

    async def hold_shared(self, if_newer_than: int | None = None, rows: Sequence[WantedRows] = ()) -> Hold | None:
        """As `hold`, with all parameters in memory that can be mapped."""
        while True:
            async with self.exclusive() as run:
                if if_newer_than is not None and run.version <= if_newer_than:
                    return None
                if run.shared:
                    if rows:
                        await self._pull(run, rows)
                    return run.hold()
            await self.share()  # the run has gone over to another state

    async def place(self, staging: Staging, ranges: Sequence[Arrived]) -> None:
        """Copy admitted ranges to their places, or decode them there."""
        await self._machine.run_sized(placed_bytes(ranges), self._place, staging, ranges)

    async def place_rows(self, staging: Staging, rows: Sequence[ArrivedRows]) -> None:
        """Copy rows that were admitted."""
        await self._machine.run_sized(sum(len(data) for *_, data in rows), _place_rows, staging, rows)

    def discard(self, staging: Staging) -> None:
        """End an update, committed or not."""
        vectors = [] if staging.borrowed else staging.vectors
        if staging.rows is not None:
            vectors = [*vectors, *staging.rows.vectors]
        if vectors:
            self._machine.memory.free(vectors)

    async def commit(self, staging: Staging) -> Answer:
        """Hand a staged update to the run's policy, end it, and wait for its answer."""
        return await self.commits.commit(staging)

    async def hold(self, if_newer_than: int | None = None, rows: Sequence[WantedRows] = ()) -> Hold | None:
        """Hold the present version's parameters; None if the run is not beyond `if_newer_than`.

        rows: those to be written, of the same version. Raises UnknownTable, InvalidRows.
        """
        async with self.exclusive() as run:
            if if_newer_than is not None and run.version <= if_newer_than:
                return None
            if rows:
                await self._pull(run, rows)
            return run.hold()

    async def pull_rows(self, rows: Sequence[WantedRows], if_newer_than: int | None = None) -> tuple[int, bool]:
        """Write rows of the present version, which is returned, and whether the run is beyond `if_newer_than`."""
        async with self.exclusive() as run:
            newer = if_newer_than is None or run.version > if_newer_than
            if newer:
                await self._pull(run, rows)
            return run.version, newer

    async def _pull(self, run: Run, rows: Sequence[WantedRows]) -> None:
        tables = [(run.tables.find(number), ids, out) for number, ids, out in rows]
        size = sum(out.nbytes for _, _, out in tables)
        await self._machine.run_sized(size, _pull_rows, tables)

    async def hold_point(
        self, of: str, if_newer_than: int | None = None, rows: Sequence[WantedRows] = ()
    ) -> tuple[Hold | None, list[Vector | None]]:
        """As `hold`, and for each group a vector with the point's values, None where the parameters serve.

        The vectors are the caller's to free.
        """
        if of == "parameters":
            plain = await self.hold(if_newer_than, rows)
            return plain, [None] * len(self.run.groups)
        async with self.exclusive() as run:
            run.check_point(of)
            if if_newer_than is not None and run.version <= if_newer_than:
                return None, []
            launches = run.point_launches(of)
            if rows:
                await self._pull(run, rows)
            if not any(launches):
                return run.hold(), [None for _ in launches]
            sizes = [group.size("") for group, launch in zip(run.groups, launches, strict=True) if launch]
            hold = run.hold(whole=True)
        try:
            vectors = await self._machine.allocate(sizes, f"run '{run.name}': point '{of}'")
        except BaseException:
            hold.release()
            raise
        waiting = iter(vectors)
        computed = [next(waiting) if launch else None for launch in launches]
        try:
            await self._machine.run(_compute, launches, computed)
        except BaseException:
            hold.release()
            self._machine.memory.free(vectors)
            raise
        return hold, computed

    async def hold_state(self) -> tuple[Hold, dict[str, Any], list[GroupArrays], list[StoredArray]]:
        """Hold the whole state; also the run as plain data, its arrays, and those of its tables, all of one version."""
        async with self.exclusive() as run:
            hold = run.hold(whole=True)
            arrays = [
                GroupArrays(
                    {name: held.vector for name, held in vectors.items()},
                    group.steps.copy(),
                    {name: values.copy() for name, values in group.scalars.items()},
                )
                for vectors, group in zip(hold.groups, run.groups, strict=True)
            ]
            data = run.to_data() | {"tables": [held_data(table) for table in hold.tables]}
            extras = [array for table in hold.tables for array in held_arrays(table)]
            extras += accumulated_arrays(run.accumulated.rows, run.tables.all)
            return hold, data, arrays, extras

    async def change(
        self,
        group: str,
        hyperparameters: Mapping[str, object],
        schedules: Schedules,
        removed: Sequence[str],
        keep_clock: bool,
        etag: str,
        policy: Mapping[str, Any] | None = None,
    ) -> None:
        """Change hyperparameters, schedules and policy from the next commit on."""
        async with self.exclusive() as run:
            settings = run.change(group, hyperparameters, schedules, removed, keep_clock, etag, policy)
            await self._machine.run(run.compile, settings.groups)
            slots = self._machine.memory.allocate(run.slots_needed(settings), f"run '{run.name}': an accumulator")
            try:
                decisions = run.coordinator.change_policy(policy) if policy is not None else []
            except BaseException:
                self._machine.memory.free(slots)
                raise
            run.add_slots(settings, slots)
            run.set_settings(settings)
            run.keep_base()
            if policy is not None:
                self._tell("policy", policy=run.coordinator.policy.spec)
            self._act(decisions)

    async def report(self, metrics: Mapping[str, float]) -> None:
        """Take metrics; schedules that wait for them follow from the next commit on."""
        async with self.exclusive() as run:
            run.report(metrics)

    async def replace_state(
        self,
        store: Callable[[int, dict[str, Any], list[StoredArray]], None],
        version: int,
        samples: float,
        arrays: Sequence[GroupArrays],
        settings: Sequence[Settings | None] | None = None,
        tables: Sequence[Table] | None = None,
        expected_version: int | None = None,
    ) -> None:
        """Go over to another state in a new generation; `store` makes both durable first, so that it fails whole.

        tables: None for the present ones.
        """
        async with self.exclusive() as run:
            run.check_version(expected_version)
            generation = run.generation + 1
            if settings is not None:
                settings = [fit_policy(chosen, run.coordinator.policy) for chosen in settings]
                await self._machine.run(run.compile, settings)
                self._add_accumulators(settings, arrays)
            data = run.to_data_after(generation, version, samples, settings)
            kept = run.tables.all if tables is None else list(tables)
            for table in kept:
                check_policy(table.settings, run.coordinator.policy)
            holds = [table.hold() for table in kept]
            try:
                data["tables"] = [held_data(hold) for hold in holds]
                extras = [array for hold in holds for array in held_arrays(hold)]
                await self._machine.run(store, generation, data, extras)
            finally:
                self._machine.memory.free([vector for hold in holds for vector in hold.release()])
            run.replace_state(generation, version, samples, arrays, settings, tables)
            self._tell("rewind")
            self.commits.sweep()

    async def delete(self) -> None:
        async with self.exclusive() as run:
            self.gone = True
            self._tell("delete")
            self._watch_leases()
            try:
                self.check_present()
            except UnknownRun as error:
                self.commits.abandon(error)
            run.free()

    def _add_accumulators(self, settings: Sequence[Settings | None], arrays: Sequence[GroupArrays]) -> None:
        """A state that was stored under another policy has none."""
        lacking = [
            (layout.state, group.vectors)
            for layout, chosen, group in zip(self.run.layout.groups, settings, arrays, strict=True)
            if chosen is not None and chosen.accumulates and ACCUMULATOR not in group.vectors
        ]
        sizes = [Size(layout.elements, layout.dtype) for layout, _ in lacking]
        vectors = self._machine.memory.allocate(sizes, f"run '{self.run.name}': an accumulator")
        for (_, found), vector in zip(lacking, vectors, strict=True):
            vector.fill(0)
            found[ACCUMULATOR] = vector

    def _place(self, staging: Staging, ranges: Sequence[Arrived]) -> None:
        for group, begin, data, number, dtype, encoded in ranges:
            staging.place(self._machine.memory.device, group, begin, data, number, dtype, encoded)


class Exclusive:
    """Holds a run's lock. A class, since every step enters it twice and a generator takes three times as long."""

    def __init__(self, hosted: HostedRun, lock: asyncio.Lock) -> None:
        self._hosted, self._lock = hosted, lock

    async def __aenter__(self) -> Run:
        await self._lock.acquire()
        if self._hosted.gone:
            self._lock.release()
            self._hosted.check_present()
        return self._hosted.run

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def _now() -> float:
    """The clock of leases: seconds, never set back."""
    return asyncio.get_running_loop().time()


def placed_bytes(ranges: Sequence[Arrived]) -> int:
    """About how much is written when these are placed."""
    return sum([4 * encoded.elements if encoded else len(data) for _, _, data, _, _, encoded in ranges])


def _place_rows(staging: Staging, rows: Sequence[ArrivedRows]) -> None:
    assert staging.rows is not None
    for number, begin, end, ids, data in rows:
        staging.rows.place(number, begin, end, ids, data)


def _pull_rows(wanted: Sequence[tuple[Table, NDArray[np.int64], NDArray[Any]]]) -> None:
    for table, ids, out in wanted:
        table.pull(ids, out)


def _copy_all(device: Device, sources: Sequence[Vector], targets: Sequence[Vector]) -> None:
    for source, target in zip(sources, targets, strict=True):
        device.copy(source, target)


def _compute(launches: Sequence[tuple[Launch, dict[str, Vector]] | None], vectors: Sequence[Vector | None]) -> None:
    for found, vector in zip(launches, vectors, strict=True):
        if found is not None:
            launch, arrays = found
            launch.run(arrays, vector)
