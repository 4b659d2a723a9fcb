"""The runs of a server: created, found, stored, brought back, deleted."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import structlog

from stepwell_server.core.errors import (
    DomainError,
    LimitExceeded,
    RunDiffers,
    ServerStopping,
    StorageDisabled,
    UnknownRun,
)
from stepwell_server.core.layout import Layout, check_name
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.run import GroupArrays, Run, RunLimits
from stepwell_server.core.settings import Settings, settings_from_data
from stepwell_server.core.spec import RunSpec
from stepwell_server.core.tables import Brought, Reader, StoredArray, Table, make_tables, table_sizes
from stepwell_server.core.tables.stored import load_accumulated, load_tables
from stepwell_server.core.tables.table import cpu_of
from stepwell_server.core.update import GroupTransfer
from stepwell_server.service.hosted import LEASE_SECONDS, HostedRun
from stepwell_server.service.limits import Limits
from stepwell_server.service.machine import Machine
from stepwell_server.service.sharing import Sharing
from stepwell_server.storage.directory import CheckpointInfo, DataDirectory
from stepwell_server.storage.snapshot import SnapshotInfo

log = structlog.get_logger()

UID_BYTES = 16
_DIFFERENCES_SHOWN = 10


class Claim:
    """The right to create a run, held while its values arrive."""

    def __init__(
        self,
        name: str,
        spec: RunSpec,
        layout: Layout,
        settings: Sequence[Settings | None],
        table_settings: Sequence[Settings],
    ) -> None:
        self.name = name
        self.spec = spec
        self.layout = layout
        self.settings = settings
        self.table_settings = table_settings
        self.vectors: list[dict[str, Vector]] = []
        self.table_vectors: list[list[Vector]] = []
        self.transfers: list[GroupTransfer] = []

    def take(self, vectors: list[dict[str, Vector]]) -> None:
        self.vectors = vectors
        self.transfers = [
            GroupTransfer(group, taken[""], f"run '{self.name}', values of group {number}")
            for number, (group, taken) in enumerate(zip(self.layout.groups, vectors, strict=True))
        ]


@dataclass
class Stored:
    """A state that was read: the run's data, its groups' arrays, its tables, and rows that waited for a commit."""

    data: dict[str, Any] = field(default_factory=dict)
    arrays: list[GroupArrays] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    accumulated: tuple[Brought, ...] = ()

    @property
    def vectors(self) -> list[Vector]:
        found = [vector for group in self.arrays for vector in group.vectors.values()]
        found += [vector for table in self.tables for vector in table.vectors]
        return found + [vector for each in self.accumulated for vector in each.rows.vectors]


class Runs:
    """storage: None on a server without a data directory. sharing: with workers of this machine."""

    def __init__(self, machine: Machine, limits: Limits, storage: DataDirectory | None, sharing: Sharing) -> None:
        self.machine = machine
        self.sharing = sharing
        self.limits = limits
        self._storage = storage
        self._runs: dict[str, HostedRun] = {}
        self._creating: dict[str, asyncio.Event] = {}
        self._stopping = False
        self._fell_back: set[str] = set()
        self._saving: set[asyncio.Task[bool]] = set()
        self._saved: dict[str, tuple[bytes, int, int, int, str]] = {}
        self._save_locks: dict[str, asyncio.Lock] = {}
        machine.state_bytes = lambda: (
            sum(hosted.run.state_bytes for hosted in self._runs.values()) + sharing.workers_bytes()
        )

    # Finding.

    def get(self, name: str) -> HostedRun:
        """The run of this name; raises UnknownRun."""
        hosted = self._runs.get(name)
        if hosted is None:
            known = ", ".join(sorted(self._runs)[:10]) or "(none)"
            raise UnknownRun(f"run '{name[:200]}' is not known, expected one of {known}; create it", got=name[:200])
        return hosted

    def names(self) -> list[str]:
        return sorted(self._runs)

    # Creating.

    @asynccontextmanager
    async def claim(
        self, name: str, spec: RunSpec, give_word: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[Claim | HostedRun]:
        """The run if it exists with this spec, else the right to create it; waits while another caller creates it.

        Leaving without `complete` gives the claim and its memory back, and the next one who waits is asked.
        Raises what is wrong with the name or spec, RunDiffers, LimitExceeded, MemoryExhausted or ServerStopping.
        """
        check_name("run", name)
        layout = await self.machine.run(spec.layout)
        settings = await self.machine.run(spec.settings, layout)
        table_settings = await self.machine.run(spec.table_settings)
        for table in spec.parsed_tables:
            cpu_of(self.machine.memory.device, table.name)
        while True:
            if name in self._runs:
                await self._check_same(self._runs[name], spec)
                yield self._runs[name]
                return
            if name not in self._creating:
                break
            await self._wait(self._creating[name], give_word)
        self.check_open()
        if len(self._runs) + len(self._creating) >= self.limits.runs_count:
            raise LimitExceeded(
                f"the server has {len(self._runs)} runs, expected at most {self.limits.runs_count}; delete some",
                limit=self.limits.runs_count,
            )
        done = self._creating[name] = asyncio.Event()
        claim = Claim(name, spec, layout, settings, table_settings)
        try:
            claim.take(self._allocate(Run.state_sizes(layout, settings), f"run '{name}'"))
            sizes = table_sizes(spec.parsed_tables, table_settings)
            for table, wanted in zip(spec.parsed_tables, sizes, strict=True):
                purpose = f"run '{name}', table '{table.name}'"
                claim.table_vectors.append(self.machine.memory.allocate(wanted, purpose))
            yield claim
        finally:
            unused = [vector for group in claim.vectors for vector in group.values()]
            unused += [vector for vectors in claim.table_vectors for vector in vectors]
            if unused:
                self.machine.memory.free(unused)
            del self._creating[name]
            done.set()

    async def complete(self, claim: Claim) -> HostedRun:
        """Make a claimed run from the values that have arrived; raises IncompleteUpdate."""
        for transfer in claim.transfers:
            transfer.check_complete()
        if self._storage is not None:
            # A run of this name that ended before its first snapshot may have left pieces behind.
            await self.machine.run(self._storage.delete_run, claim.name)
        run = Run(claim.name, os.urandom(UID_BYTES), claim.spec, claim.layout, self.machine.memory, self._run_limits())
        await self.machine.run(run.compile, claim.settings)
        tables = await self.machine.run(
            make_tables,
            claim.spec.parsed_tables,
            claim.table_settings,
            self.machine.memory.device,
            claim.table_vectors,
            run.moment,
            secrets.randbits(64),
        )
        await self.machine.run(run.begin, claim.settings, claim.vectors, tables)
        claim.vectors, claim.table_vectors = [], []
        hosted = self._runs[claim.name] = HostedRun(run, self.machine)
        log.info("run created", run=claim.name, parameters=len(claim.layout.parameters), state_bytes=run.state_bytes)
        if self._storage is not None:
            # From now on a restart knows the run.
            task = asyncio.create_task(self._save_quietly(claim.name))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)
        return hosted

    def check_open(self) -> None:
        """Raise ServerStopping if the server is shutting down."""
        if self._stopping:
            self.refuse()

    def refuse(self) -> NoReturn:
        raise ServerStopping("the server is stopping, expected to be back soon; try again")

    # Changing whole states.

    async def replace_state(
        self,
        name: str,
        version: int,
        samples: float,
        arrays: Sequence[GroupArrays],
        settings: Sequence[Settings | None] | None = None,
        tables: Sequence[Table] | None = None,
        expected_version: int | None = None,
    ) -> HostedRun:
        """Take a run to another state, in a new generation that a restart remembers.

        tables: None for the present ones.
        """
        hosted = self.get(name)

        def store(generation: int, data: dict[str, Any], extras: Sequence[StoredArray]) -> None:
            if self._storage is not None:
                self._storage.enter_generation(name, generation)
                self._storage.save_snapshot(name, data, hosted.run.layout, arrays, time.time(), extras)

        async with self._saving_of(name):
            await hosted.replace_state(store, version, samples, arrays, settings, tables, expected_version)
        return hosted

    async def delete(self, name: str) -> None:
        """Delete a run and what is stored of it."""
        hosted = self.get(name)
        async with self._saving_of(name):
            await hosted.delete()
            self.sharing.forget(hosted)
            del self._runs[name]
            self._saved.pop(name, None)
            if self._storage is not None:
                await self.machine.run(self._storage.delete_run, name)
        log.info("run deleted", run=name)

    # Storing.

    async def save(self, name: str) -> SnapshotInfo | None:
        """Write a snapshot while training goes on; None if nothing has changed since the last one."""
        storage = self._require_storage()
        async with self._saving_of(name):
            hosted = self.get(name)
            hold, data, arrays, extras = await hosted.hold_state()
            try:
                run = hosted.run
                mark = (
                    run.uid,
                    data["generation"],
                    data["version"],
                    data["skipped_count"],
                    str(data["workers"]) + run.etag,
                )
                if self._saved.get(name) == mark:
                    return None
                info = await self.machine.run(
                    storage.save_snapshot, name, data, run.layout, arrays, time.time(), extras
                )
                self._saved[name] = mark
                log.info("snapshot written", run=name, version=data["version"], size_bytes=info.size_bytes)
                return info
            finally:
                hold.release()

    async def save_all(self) -> bool:
        """Write a snapshot of every run; returns whether all succeeded. A failure is logged and training goes on."""
        results = [await self._save_quietly(name) for name in self.names()]
        return all(results)

    async def save_checkpoint(self, name: str, checkpoint: str) -> CheckpointInfo:
        storage = self._require_storage()
        hosted = self.get(name)
        hold, data, arrays, extras = await hosted.hold_state()
        try:
            chosen = check_name("checkpoint", checkpoint or f"version-{data['version']}")
            return await self.machine.run(
                storage.save_checkpoint, name, chosen, data, hosted.run.layout, arrays, time.time(), extras
            )
        finally:
            hold.release()

    async def list_checkpoints(self, name: str) -> list[CheckpointInfo]:
        storage = self._require_storage()
        self.get(name)
        return await self.machine.run(storage.list_checkpoints, name)

    async def restore_checkpoint(self, name: str, checkpoint: str) -> HostedRun:
        storage = self._require_storage()
        check_name("checkpoint", checkpoint)
        memory = self.machine.memory
        self.get(name)
        stored = await self._load(name, storage.load_checkpoint, checkpoint)
        # What waited for a commit belongs to updates that nobody knows of any more.
        memory.free([vector for each in stored.accumulated for vector in each.rows.vectors])
        data, arrays, tables = stored.data, stored.arrays, stored.tables
        try:
            _, settings = Run.from_data(data, memory, self._run_limits())
            return await self.replace_state(
                name, int(data["version"]), float(data["samples"]), arrays, settings, tables
            )
        except DomainError:
            memory.free([vector for group in arrays for vector in group.vectors.values()])
            memory.free([vector for table in tables for vector in table.vectors])
            raise

    async def restore_all(self) -> None:
        """Bring every stored run back at start. After an unclean stop each enters a new generation."""
        if self._storage is None:
            return
        storage = self._storage
        clean = await self.machine.run(storage.take_clean_mark)
        for name in await self.machine.run(storage.run_names):
            stored = await self._load(name, storage.load_newest)
            data = stored.data
            run, settings = Run.from_data(data, self.machine.memory, self._run_limits())
            await self.machine.run(run.compile, settings)
            run.take_arrays(settings, stored.arrays, stored.tables, stored.accumulated)
            now = asyncio.get_running_loop().time()
            decisions = run.coordinator.restore(data["coordinator"], run.version, now, LEASE_SECONDS)
            # A run whose newest snapshot was damaged has gone back, however clean the stop was.
            if not clean or name in self._fell_back:
                generation = max(run.generation, await self.machine.run(storage.generation, name)) + 1
                await self.machine.run(storage.enter_generation, name, generation)
                run.rewind(generation)
                decisions = []
            hosted = self._runs[name] = HostedRun(run, self.machine)
            hosted.commits.carry_out(decisions)
            log.info("run restored", run=name, version=run.version, generation=run.generation, clean=clean)

    async def stop(self) -> None:
        """Refuse new runs, and write what a clean restart needs."""
        self._stopping = True
        if self._saving:
            await asyncio.wait(self._saving)
        if self._storage is not None and await self.save_all():
            await self.machine.run(self._storage.mark_clean)

    def note_damage(self, run: str, path: Path, error: Exception) -> None:
        """Told by the storage when it passes over a damaged snapshot of a run."""
        log.error("snapshot damaged, using the one before", run=run, path=str(path), error=str(error))
        self._fell_back.add(run)

    # Pieces.

    def _allocate(self, sizes: Sequence[dict[str, Size]], purpose: str) -> list[dict[str, Vector]]:
        vectors = iter(self.machine.memory.allocate([size for group in sizes for size in group.values()], purpose))
        return [{slot: next(vectors) for slot in group} for group in sizes]

    async def _load(self, name: str, load: Callable[..., Any], *arguments: Any) -> Stored:
        """Read a stored state on a thread. Memory belongs to the loop; what a failed reading took is given back."""
        loop = asyncio.get_running_loop()
        device = self.machine.memory.device
        taken: list[Vector] = []
        stored = Stored()

        async def allocate_here(sizes: list[Size]) -> list[Vector]:
            vectors = self.machine.memory.allocate(sizes, f"run '{name}'")
            taken.extend(vectors)
            return vectors

        def allocate(sizes: list[Size]) -> list[Vector]:
            return asyncio.run_coroutine_threadsafe(allocate_here(sizes), loop).result()

        def load_extras(data: Mapping[str, Any], reader: Reader) -> None:
            specs = RunSpec.from_data(data["spec"]).parsed_tables
            settings = [settings_from_data(table["settings"]) for table in data["tables"]]
            key = secrets.randbits(64)
            stored.tables = load_tables(specs, settings, data["tables"], reader, allocate, device, key)
            rows = data["accumulated"]["rows"]
            stored.accumulated = load_accumulated(name, rows, stored.tables, reader, allocate)

        try:
            stored.data, stored.arrays, _ = await self.machine.run(load, name, *arguments, allocate, load_extras)
        except BaseException:
            self.machine.memory.free(taken)
            raise
        used = {id(vector) for vector in stored.vectors}
        self.machine.memory.free([vector for vector in taken if id(vector) not in used])
        return stored

    async def _check_same(self, hosted: HostedRun, spec: RunSpec) -> None:
        differences = await self.machine.run(hosted.run.spec.differences, spec)
        if differences:
            shown = "; ".join(differences[:_DIFFERENCES_SHOWN])
            raise RunDiffers(
                f"run '{hosted.run.name}' exists with another spec: {shown}; use the same spec, or another name",
                differences=shown,
            )

    async def _wait(self, event: asyncio.Event, give_word: Callable[[], Awaitable[None]]) -> None:
        while not event.is_set():
            await give_word()
            try:
                async with asyncio.timeout(self.limits.word_seconds):
                    await event.wait()
            except TimeoutError:
                continue

    async def _save_quietly(self, name: str) -> bool:
        try:
            await self.save(name)
        except UnknownRun:
            return True
        except Exception:
            log.exception("snapshot failed", run=name)
            return False
        return True

    def _saving_of(self, name: str) -> asyncio.Lock:
        return self._save_locks.setdefault(name, asyncio.Lock())

    def _require_storage(self) -> DataDirectory:
        if self._storage is None:
            raise StorageDisabled(
                "the server has no data directory, expected one for what is stored; start it with --data-dir"
            )
        return self._storage

    def _run_limits(self) -> RunLimits:
        return RunLimits(self.limits.outstanding_updates_count, self.limits.workers_count)
