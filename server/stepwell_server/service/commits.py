"""Carries out what a run's coordinator decides: updates wait here until their policy makes them part of a commit.

Runs on the event loop. To wait for other workers costs a future and the staged gradients, no thread and no task.
Whoever stops waiting takes nothing back: the update stays, and a retry of it waits for the same answer.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import structlog

from stepwell_server.core.barriers import Release
from stepwell_server.core.combining import check_alike, check_fits
from stepwell_server.core.commit import Commit as PlannedCommit
from stepwell_server.core.errors import DomainError, StaleUpdate
from stepwell_server.core.memory import Vector
from stepwell_server.core.policies import Commit, Contribution, Decision, Drop, Refuse
from stepwell_server.core.run import Run
from stepwell_server.core.settings import ACCUMULATOR
from stepwell_server.core.update import Staging, UpdateHeader
from stepwell_server.core.workers import Answer, Identity, Outcome
from stepwell_server.service.machine import INLINE_BYTES_MAX, Machine

log = structlog.get_logger()

# A commit touches several arrays per gradient, and stays on the loop only where that is quicker than a hand-over.
_INLINE_BYTES_MAX = 256 << 10
_INLINE_ROWS_BYTES_MAX = 64 << 10


@dataclass
class Waiting:
    """An update and the answer that its worker waits for; its memory is gone once it is folded.

    skipped: for a NaN or an infinity.
    """

    staging: Staging
    answered: asyncio.Future[Answer]
    skipped: bool


@dataclass
class Ending:
    """What became of a commit: answers by key, and why the others have none."""

    answers: dict[int, Answer] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)


class Commits:
    """Of one run.

    exclusive: gives the run between commits. is_free: whether it can be had at once. discard: frees a staged update.
    """

    def __init__(
        self,
        run: Run,
        machine: Machine,
        exclusive: Callable[[], AbstractAsyncContextManager[Run]],
        is_free: Callable[[], bool],
        discard: Callable[[Staging], None],
    ) -> None:
        self._run = run
        self._machine = machine
        self._exclusive = exclusive
        self._is_free = is_free
        self._discard = discard
        self._waiting: dict[int, Waiting] = {}
        self._decided: deque[Commit] = deque()
        self._at_barriers: dict[str, asyncio.Future[None]] = {}
        self._working: asyncio.Task[None] | None = None
        # Of the open round: what was not finite, and has had its turn.
        self._skipped_early: set[int] = set()

    async def commit(self, staging: Staging) -> Answer:
        """Hand a whole update to the policy, and wait for its answer. Raises why it has none."""
        norm = None
        if self._run.spec.report_norms:
            size = sum([vector.nbytes for vector in staging.vectors])
            norm = await self._machine.run_sized(size, self._run.measure, staging)
        answered = self.attach(staging.header.identity)
        if answered is not None:
            self._discard(staging)
            return await asyncio.shield(answered)
        try:
            stored = self._run.recall(staging.header.identity)
            waiting = self._stage(staging) if stored is None else None
        except BaseException:
            self._discard(staging)
            raise
        if stored is not None:
            self._discard(staging)
            return stored
        assert waiting is not None
        if norm is not None:
            self._run.coordinator.tally(staging.header.identity.worker).gradient_norm_last = norm
        if self._is_quick(staging) and self._working is None and self._is_free() and len(self._decided) == 1:
            try:
                await self._carry_on(quick=True)
            finally:
                self._work()
        else:
            self._work()
        return await asyncio.shield(waiting.answered)

    def attach(self, identity: Identity) -> "asyncio.Future[Answer] | None":
        """What a retry of an update that waits is answered by; None if it does not wait."""
        key = self._run.coordinator.pending(identity)
        if key is None:
            return None
        if key not in self._waiting:  # it was folded before the server was started
            staging = self._run.stage_nothing(UpdateHeader(identity))
            self._waiting[key] = Waiting(staging, asyncio.get_running_loop().create_future(), skipped=False)
        return self._waiting[key].answered

    def carry_out(self, decisions: Iterable[Decision | Release]) -> None:
        """Do what was decided; commits are made one after another, in a task of their own."""
        self._note(decisions)
        self._work()

    def sweep(self) -> None:
        """Answer those whose workers are not live any more, or whose generation is over."""
        coordinator = self._run.coordinator
        for key in [key for key in self._waiting if not coordinator.is_pending(key)]:
            identity = self._waiting[key].staging.header.identity
            try:
                self._run.workers.recall(identity, self._run.version)
            except DomainError as error:
                self._end(key, error)
            else:
                raise AssertionError("an update that nobody waits for has a worker")
        for worker in [worker for worker in self._at_barriers if worker not in coordinator.live]:
            self._release(worker, coordinator.workers.unknown(worker))

    def abandon(self, error: Exception) -> None:
        """The run is gone."""
        self._decided.clear()
        for key in list(self._waiting):
            self._end(key, error)
        for worker in list(self._at_barriers):
            self._release(worker, error)

    async def barrier(self, barrier: str, worker: str, epoch: int, call: int) -> None:
        """Wait for all live workers. Raises as `Coordinator.barrier`, and what becomes of this one meanwhile."""
        releases = self._run.coordinator.barrier(barrier, worker, epoch, call)
        if worker not in self._at_barriers:
            self._at_barriers[worker] = asyncio.get_running_loop().create_future()
        waiting = self._at_barriers[worker]
        self.carry_out(releases)
        await asyncio.shield(waiting)

    @property
    def waiting_workers(self) -> set[str]:
        """Whose update is staged and has no answer."""
        return {waiting.staging.header.identity.worker for waiting in self._waiting.values()}

    def _stage(self, staging: Staging) -> Waiting:
        run, header = self._run, staging.header
        try:
            skipped = run.check(staging)
        except DomainError:
            run.coordinator.refused(header.identity.worker)
            raise
        base = header.identity.acknowledged_version if header.base_version is None else header.base_version
        contribution, decisions = run.coordinator.stage(header.identity, run.version, base, header.samples)
        waiting = Waiting(staging, asyncio.get_running_loop().create_future(), skipped)
        self._waiting[contribution.key] = waiting
        self._note(decisions)
        return waiting

    def _note(self, decisions: Iterable[Decision | Release]) -> None:
        coordinator, run = self._run.coordinator, self._run
        for decision in decisions:
            match decision:
                case Commit():
                    self._decided.append(decision)
                case Drop(contribution):
                    answer = run.make_answer(Outcome.DROPPED_LATE)
                    self._tell(Commit((contribution,)), {contribution.key: answer})
                    coordinator.drop(contribution, answer)
                    self._end(contribution.key, answer)
                case Refuse(contribution, staleness, staleness_max):
                    coordinator.withdraw(contribution)
                    self._end(
                        contribution.key,
                        StaleUpdate(
                            f"run '{run.name}': an update of worker '{contribution.worker}' was taken {staleness} "
                            f"versions ago, expected at most {staleness_max}; pull the present parameters, version "
                            f"{run.version}, and take the gradients there",
                            version=run.version,
                            staleness=staleness,
                            staleness_max=staleness_max,
                        ),
                    )
                case Release(workers=workers):
                    for worker in workers:
                        self._release(worker)

    def _work(self) -> None:
        if self._decided and self._working is None:
            self._working = asyncio.create_task(self._carry_on())
            self._working.add_done_callback(self._rest)

    def _rest(self, done: "asyncio.Task[None]") -> None:
        self._working = None
        error = RuntimeError("the server stops") if done.cancelled() else done.exception()
        if error is None:
            self._work()
        elif not done.cancelled() and not isinstance(error, DomainError):
            log.error("commits have failed", run=self._run.name, exc_info=error)
        if isinstance(error, Exception):
            self.abandon(error)

    async def _carry_on(self, *, quick: bool = False) -> None:
        """Make the commits that are decided on, and those that follow from them. quick: here, and small ones only."""
        while self._decided:
            async with self._exclusive() as run:
                if not self._decided:
                    return  # it was abandoned
                decided = self._decided.popleft()
                commit = run.coordinator.begin(decided)
                ending = Ending()
                try:
                    await self._make(commit, ending, quick)
                except BaseException as error:
                    failure = error if isinstance(error, Exception) else RuntimeError("the commit was given up")
                    if commit.applies:
                        ending.answers.clear()
                    fresh = commit.contributions[commit.folded :]
                    ending.errors = {each.key: failure for each in fresh if each.key not in ending.answers}
                    if not isinstance(error, Exception):
                        raise
                finally:
                    self._tell(commit, ending.answers)
                    decisions = run.coordinator.end(commit, ending.answers or None, run.version)
                    for each in commit.contributions:
                        if each.key in ending.errors:
                            self._end(each.key, ending.errors[each.key])
                        elif commit.answers and each.key in ending.answers:
                            self._end(each.key, ending.answers[each.key])
                    self._note(decisions)
            if quick:
                return  # what else is decided on now may take long

    async def _make(self, commit: Commit, ending: Ending, quick: bool) -> None:
        """Make one commit, or fold it. Raises why it had no effect, but for what has an answer by then."""
        run = self._run
        early, fresh = commit.contributions[: commit.folded], commit.contributions[commit.folded :]
        waiting = self._effective(fresh, ending)
        answer: Answer | None = None
        if not commit.applies:
            await self._fold(waiting, ending)
            answer = run.make_answer(Outcome.FOLDED)
        elif waiting:
            stagings = [each.staging for each in waiting.values()]
            if len(stagings) > 1 or run.accumulated.weight:
                await self._machine.run(run.combine, stagings)
            base_version = fresh[0].base_version if len(commit.contributions) == 1 else None
            answer = await self._carry_through(stagings[0], commit.damping, quick, base_version)
        elif run.accumulated.weight and any(each.key not in self._skipped_early for each in early):
            answer = await self._commit_accumulated(fresh or early, commit.damping)
        skipped = run.make_answer(Outcome.SKIPPED_NONFINITE)
        for each in commit.contributions:
            if each.key in self._skipped_early or (each.key in self._waiting and self._waiting[each.key].skipped):
                ending.answers[each.key] = skipped
            elif each.key not in ending.errors:
                ending.answers[each.key] = answer or skipped
        if commit.answers:
            self._skipped_early.clear()
            return
        for each in fresh:
            if self._waiting[each.key].skipped:
                self._skipped_early.add(each.key)
                staging = self._waiting[each.key].staging
                self._discard(staging)
                staging.give_up()

    def _effective(self, fresh: Sequence[Contribution], ending: Ending) -> dict[int, Waiting]:
        """Those that are not skipped and can be combined; why the others cannot goes to the ending."""
        run = self._run
        effective: dict[int, Waiting] = {}
        for each in fresh:
            waiting = self._waiting[each.key]
            if waiting.skipped:
                continue
            header = waiting.staging.header
            try:
                check_fits(run.name, run.accumulated, header)
                if effective:
                    check_alike(run.name, next(iter(effective.values())).staging.header, header)
            except DomainError as error:
                ending.errors[each.key] = error
                continue
            effective[each.key] = waiting
        return effective

    async def _fold(self, effective: Mapping[int, Waiting], ending: Ending) -> None:
        """Add updates to the accumulator, one after another; each has its answer at once."""
        run = self._run
        for key, waiting in effective.items():
            staging = waiting.staging
            if staging.borrowed:
                await self._move_accumulators()
            size = sum([vector.nbytes for vector in staging.vectors])
            try:
                folded = await self._machine.run_sized(size, run.fold, staging)
            except DomainError as error:
                ending.errors[key] = error
                continue
            run.accumulate(staging, folded)
            ending.answers[key] = run.make_answer(Outcome.FOLDED)

    async def _carry_through(
        self, staging: Staging, damping: float, quick: bool, base_version: int | None = None
    ) -> Answer:
        """Apply an update, or the average of several, and make the next version."""
        run, memory = self._run, self._machine.memory
        planned = run.prepare(staging, damping, base_version)
        await self._plan_tables(planned, quick)
        scratch: list[Vector] = []
        try:
            scratch = await self._make_copies(planned)
            await self._apply(planned, quick)
        except BaseException:
            if planned.tables is not None:
                memory.free(planned.tables.discard())
            raise
        finally:
            memory.free(scratch)
        return run.finish(planned)

    async def _commit_accumulated(self, contributions: Sequence[Contribution], damping: float) -> Answer:
        """Apply what was folded alone: whoever was still awaited has left, or brought nothing that counts."""
        run, memory = self._run, self._machine.memory
        sizes = run.accumulated_sizes
        memory.check_fits(list(sizes.values()), "an average", self._machine.state_bytes())
        while (vectors := memory.try_allocate(list(sizes.values()))) is None:
            if run.single_pass and not run.held_accumulators():
                break  # where it is: nothing but the kernel will read it
            await self._machine.changed()
        taken = (
            vectors if vectors is not None else [run.groups[group].vectors[ACCUMULATOR].vector for group, _ in sizes]
        )
        worker = contributions[0].worker
        try:
            staging = await self._machine.run(run.stage_accumulated, dict(zip(sizes, taken, strict=True)), worker)
            return await self._carry_through(staging, damping, quick=False)
        except BaseException:
            if vectors is None:
                run.restore_accumulator()
            raise
        finally:
            memory.free(vectors or [])

    async def _plan_tables(self, planned: PlannedCommit, quick: bool) -> None:
        """Everything that can fail with rows. Where there is no memory for new ones, others go, or it is refused."""
        tables, memory = planned.tables, self._machine.memory
        if tables is None:
            return
        size = 0 if quick else INLINE_BYTES_MAX + 1
        # Where nothing else can fail any more, one way to a thread and back is enough.
        first = tables.begin if planned.groups else tables.begin_and_apply
        try:
            await self._machine.run_sized(size, first)
            while tables.sizes:
                vectors = memory.try_allocate(tables.sizes)
                if vectors is None and not tables.may_evict:
                    vectors = memory.allocate(tables.sizes, f"run '{self._run.name}': rows of a table")
                await self._machine.run_sized(size, tables.take, vectors)
        except BaseException:
            memory.free(tables.discard())
            raise

    async def _apply(self, planned: PlannedCommit, quick: bool) -> None:
        """Everything that can fail, then the kernels."""
        memory = self._machine.memory
        try:
            # Of a single pass only the coefficients are left to be computed.
            if quick or self._run.single_pass:
                planned.ready(memory)
            else:
                await self._machine.run(planned.ready, memory)
        except BaseException:
            memory.free([copy for group in planned.groups for copy in group.copies.values()])
            raise
        applied = not planned.groups and planned.tables is not None and planned.tables.applied
        if quick or applied:
            planned.apply(memory)
        else:
            await self._machine.run(planned.apply, memory)

    async def _make_copies(self, planned: PlannedCommit) -> list[Vector]:
        """Have memory for what readers hold, or wait until they let go; also scratch, the caller's to free."""
        while True:
            needed, scratch = planned.copies_needed(), planned.scratch_needed()
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

    async def _move_accumulators(self) -> None:
        """Readers hold a version of the accumulator: leave it to them, and go on with another."""
        while held := self._run.held_accumulators():
            sizes = [group.accumulator_size for group in held]
            memory = self._machine.memory
            memory.check_fits(sizes, "an accumulator", self._machine.state_bytes())
            vectors = memory.try_allocate(sizes)
            if vectors is not None:
                await self._machine.run(self._run.move_accumulators, held, vectors)
                return
            await self._machine.changed()

    def _is_quick(self, staging: Staging) -> bool:
        """Whether a commit is made sooner on the loop than it is handed to a thread."""
        run = self._run
        return (
            run.single_pass
            and not run.combines
            and sum([vector.nbytes for vector in staging.vectors]) <= _INLINE_BYTES_MAX
            and (staging.rows is None or staging.rows.size_bytes <= _INLINE_ROWS_BYTES_MAX)
        )

    def _tell(self, commit: Commit, answers: Mapping[int, Answer]) -> None:
        """The update log, where there is one, hears of answers before anybody else."""
        update_log = self._machine.update_log
        if update_log is None:
            return
        fresh = [each.key for each in commit.contributions[commit.folded :] if each.key in answers]
        identities = {key: self._waiting[key].staging.header.identity for key in fresh}
        update_log.answers(self._run, commit, identities, answers)

    def _end(self, key: int, result: Answer | Exception) -> None:
        """Give an update's worker its answer, or why there is none; its memory is free."""
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return
        self._discard(waiting.staging)
        if waiting.answered.done():
            return
        if isinstance(result, Answer):
            waiting.answered.set_result(result)
        else:
            waiting.answered.set_exception(result)
            waiting.answered.exception()  # heard of, also where nobody waits any more

    def _release(self, worker: str, error: Exception | None = None) -> None:
        waiting = self._at_barriers.pop(worker, None)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)
            waiting.exception()
