"""A run as the server hosts it: the core's run with a lock, waiting, and threads.

Everything here runs on the event loop; kernels and copies of some size run on worker threads. A commit, once begun,
goes to its end whatever becomes of its caller.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from stepwell.payload import Buffer
from stepwell.wire import RANGE_BYTES
from stepwell_server.core.devices.device import Device
from stepwell_server.core.encoding import Encoded
from stepwell_server.core.errors import InvalidValue, UnknownRun
from stepwell_server.core.group import Launch
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.core.run import Commit, GroupArrays, Hold, Run
from stepwell_server.core.settings import Settings
from stepwell_server.core.spec import Schedules
from stepwell_server.core.update import Key, Staging, UpdateHeader
from stepwell_server.core.workers import Answer, Membership
from stepwell_server.service.turns import Turns

R = TypeVar("R")

# A range of an update: group, begin, data, which input it is, its type where that is not the group's, its encoding.
Arrived = tuple[int, int, Buffer, int, np.dtype[Any] | None, Encoded | None]

# Copies of up to one message are made on the loop: handing each to a thread and back cost a fifth of a whole step.
INLINE_BYTES_MAX = RANGE_BYTES
# A commit touches several arrays per gradient, and stays on the loop only where that is quicker than a hand-over.
_COMMIT_INLINE_BYTES_MAX = 256 << 10


class Machine:
    """What all runs of a server share: the memory, those who wait for it, turns, and the worker threads."""

    def __init__(self, memory: Memory, threads: ThreadPoolExecutor, turns: Turns) -> None:
        self.memory = memory
        self.turns = turns
        self._threads = threads
        self._turns: list[asyncio.Future[None]] = []
        # Set when memory is free; None while nobody waits for it.
        self._freed: asyncio.Event | None = None
        memory.on_free = self._wake
        # What the states of all runs take, beside which everything else must fit.
        self.state_bytes: Callable[[], int] = lambda: 0

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """Do blocking work on a thread. A cancelled caller gets away only when the work is done.

        A thread cannot be stopped, and what it works on must not be freed under it.
        """
        done = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            while not done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([done])
            raise

    async def run_sized(self, size_bytes: int, work: Callable[..., R], *arguments: Any) -> R:
        """Do work on a thread, or here if it is small."""
        return work(*arguments) if size_bytes <= INLINE_BYTES_MAX else await self.run(work, *arguments)

    async def allocate(self, sizes: Sequence[Size], purpose: str) -> list[Vector]:
        """Vectors for a staged update, first come first served; waits without a thread while there is no memory.

        Raises MemoryExhausted if they could not be had even with nothing else in the way but the states of the runs.
        """
        if not self._turns and (vectors := self.memory.try_allocate(sizes)) is not None:
            return vectors
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            while True:
                self.memory.check_fits(sizes, purpose, self.state_bytes())
                if self._turns[0] is turn and (vectors := self.memory.try_allocate(sizes)) is not None:
                    return vectors
                await self.changed()
        finally:
            self._turns.remove(turn)
            self._wake()

    async def changed(self) -> None:
        """Wait until memory was freed or a reader let go."""
        self._freed = self._freed or asyncio.Event()
        await self._freed.wait()

    def _wake(self) -> None:
        if self._freed is not None:
            self._freed.set()
            self._freed = None


class HostedRun:
    """One run and its lock. `gone` once it is deleted."""

    def __init__(self, run: Run, machine: Machine) -> None:
        self.run = run
        self.gone = False
        self._machine = machine
        self._lock = asyncio.Lock()

    def exclusive(self) -> "Exclusive":
        """The run between commits; raises UnknownRun if it was deleted meanwhile."""
        return Exclusive(self, self._lock)

    def check_present(self) -> None:
        if self.gone:
            raise UnknownRun(f"run '{self.run.name}' was deleted, expected it to be there; create it again")

    async def join(self, worker: str) -> Membership:
        async with self.exclusive() as run:
            return run.workers.join(worker, run.version)

    async def stage(self, header: UpdateHeader) -> Staging:
        """Begin an update; waits for memory. `discard` or `commit` ends it."""
        sizes = self.run.staging_sizes(header)
        purpose = f"run '{self.run.name}': an update"
        vectors = await self._machine.allocate(list(sizes.values()), purpose)
        try:
            self.check_present()
            staging = self.run.stage(header, dict(zip(sizes, vectors, strict=True)))
            if header.hyperparameters:
                await self._machine.run(self.run.compile, self.run.settings_with(header))
        except BaseException:
            self._machine.memory.free(vectors)
            raise
        return staging

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
            await self._machine.run_sized(
                sum(vector.nbytes for vector in shared.values()), staging.take, self._machine.memory.device, shared
            )
        except BaseException:
            self.discard(staging)
            raise
        return staging

    async def _borrow(self, header: UpdateHeader, vectors: Mapping[Key, Vector]) -> Staging:
        self.check_present()
        staging = self.run.stage(header, vectors)
        staging.borrowed = True
        if header.hyperparameters:
            await self._machine.run(self.run.compile, self.run.settings_with(header))
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

    async def hold_shared(self, if_newer_than: int | None = None) -> Hold | None:
        """As `hold`, with all parameters in memory that can be mapped."""
        while True:
            async with self.exclusive() as run:
                if if_newer_than is not None and run.version <= if_newer_than:
                    return None
                if run.shared:
                    return run.hold()
            await self.share()  # the run has gone over to another state

    async def place(self, staging: Staging, ranges: Sequence[Arrived]) -> None:
        """Copy admitted ranges to their places, or decode them there."""
        await self._machine.run_sized(placed_bytes(ranges), self._place, staging, ranges)

    def discard(self, staging: Staging) -> None:
        """End an update, committed or not."""
        if not staging.borrowed:
            self._machine.memory.free(staging.vectors)

    async def commit(self, staging: Staging) -> Answer:
        """Commit a staged update once and end it. Its caller may go away; the commit goes on."""
        quick = self._is_quick(staging)
        if quick and not self._lock.locked():
            # Nothing of it waits once something is written, so the caller cannot go away in between.
            return await self._commit(staging, quick)
        committing = asyncio.create_task(self._commit(staging, quick))
        # If nobody waits any more, nobody else would look at how it ended.
        committing.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(committing)

    async def hold(self, if_newer_than: int | None = None) -> Hold | None:
        """Hold the present version's parameters; None if the run is not beyond `if_newer_than`."""
        async with self.exclusive() as run:
            if if_newer_than is not None and run.version <= if_newer_than:
                return None
            return run.hold()

    async def hold_point(self, of: str, if_newer_than: int | None = None) -> tuple[Hold | None, list[Vector | None]]:
        """As `hold`, and for each group a vector with the point's values, None where the parameters serve.

        The vectors are the caller's to free.
        """
        if of == "parameters":
            plain = await self.hold(if_newer_than)
            return plain, [None] * len(self.run.groups)
        async with self.exclusive() as run:
            run.check_point(of)
            if if_newer_than is not None and run.version <= if_newer_than:
                return None, []
            launches = run.point_launches(of)
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

    async def hold_state(self) -> tuple[Hold, dict[str, Any], list[GroupArrays]]:
        """Hold the whole state; also the run as plain data and its arrays, all of one version."""
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
            return hold, run.to_data(), arrays

    async def change(
        self,
        group: str,
        hyperparameters: Mapping[str, object],
        schedules: Schedules,
        removed: Sequence[str],
        keep_clock: bool,
        etag: str,
    ) -> None:
        """Change hyperparameters and schedules from the next commit on."""
        async with self.exclusive() as run:
            settings = run.change(group, hyperparameters, schedules, removed, keep_clock, etag)
            await self._machine.run(run.compile, settings)
            run.set_settings(settings)

    async def report(self, metrics: Mapping[str, float]) -> None:
        """Take metrics; schedules that wait for them follow from the next commit on."""
        async with self.exclusive() as run:
            run.report(metrics)

    async def replace_state(
        self,
        store: Callable[[int, dict[str, Any]], None],
        version: int,
        samples: float,
        arrays: Sequence[GroupArrays],
        settings: Sequence[Settings | None] | None = None,
        expected_version: int | None = None,
    ) -> None:
        """Go over to another state in a new generation; `store` makes both durable first, so that it fails whole."""
        async with self.exclusive() as run:
            run.check_version(expected_version)
            generation = run.generation + 1
            if settings is not None:
                await self._machine.run(run.compile, settings)
            data = run.to_data_after(generation, version, samples, settings)
            await self._machine.run(store, generation, data)
            run.replace_state(generation, version, samples, arrays, settings)

    async def delete(self) -> None:
        async with self.exclusive() as run:
            self.gone = True
            run.free()

    def _place(self, staging: Staging, ranges: Sequence[Arrived]) -> None:
        for group, begin, data, number, dtype, encoded in ranges:
            staging.place(self._machine.memory.device, group, begin, data, number, dtype, encoded)

    async def _commit(self, staging: Staging, quick: bool) -> Answer:
        try:
            async with self.exclusive() as run:
                stored = run.recall(staging.header.identity)
                if stored is not None:
                    run.duplicates_count += 1
                    return stored
                planned = run.prepare(staging)
                if isinstance(planned, Answer):
                    return planned
                scratch = await self._make_copies(planned)
                try:
                    await self._make(planned, quick)
                finally:
                    self._machine.memory.free(scratch)
                return run.finish(planned)
        finally:
            self.discard(staging)

    def _is_quick(self, staging: Staging) -> bool:
        """Whether a commit is made sooner on the loop than it is handed to a thread."""
        return self.run.single_pass and sum([vector.nbytes for vector in staging.vectors]) <= _COMMIT_INLINE_BYTES_MAX

    async def _make(self, commit: Commit, quick: bool) -> None:
        """Everything that can fail, then the kernels. quick: here, not on a thread."""
        memory = self._machine.memory
        try:
            # Of a single pass only the coefficients are left to be computed.
            if quick or self.run.single_pass:
                commit.ready(memory)
            else:
                await self._machine.run(commit.ready, memory)
        except BaseException:
            memory.free([copy for group in commit.groups for copy in group.copies.values()])
            raise
        if quick:
            commit.apply(memory)
        else:
            await self._machine.run(commit.apply, memory)

    async def _make_copies(self, commit: Commit) -> list[Vector]:
        """Have memory for what readers hold, or wait until they let go; also scratch, the caller's to free."""
        while True:
            needed, scratch = commit.copies_needed(), commit.scratch_needed()
            if not needed and not scratch:
                return []
            sizes = [group.group.size(name) for group, name in needed]
            memory = self._machine.memory
            memory.check_fits([*sizes, *scratch], "a commit", self._machine.state_bytes())
            vectors = memory.try_allocate([*sizes, *scratch])
            if vectors is not None:
                for (group, name), vector in zip(needed, vectors, strict=False):
                    group.copies[name] = vector
                return vectors[len(needed) :]
            await self._machine.changed()


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


def placed_bytes(ranges: Sequence[Arrived]) -> int:
    """About how much is written when these are placed."""
    return sum([4 * encoded.elements if encoded else len(data) for _, _, data, _, _, encoded in ranges])


def _copy_all(device: Device, sources: Sequence[Vector], targets: Sequence[Vector]) -> None:
    for source, target in zip(sources, targets, strict=True):
        device.copy(source, target)


def _compute(launches: Sequence[tuple[Launch, dict[str, Vector]] | None], vectors: Sequence[Vector | None]) -> None:
    for found, vector in zip(launches, vectors, strict=True):
        if found is not None:
            launch, arrays = found
            launch.run(arrays, vector)
