"""The server of a simulated run: it drives the real state machines as the service does, and instead of adding gradients
up it notes their numbers."""

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepwell_server.core.barriers import Release
from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.errors import DomainError, LimitExceeded, PolicyRefused
from stepwell_server.core.policies import Commit, Decision, Drop, Policy, Refuse, parse_policy
from stepwell_server.core.workers import Answer, Identity, Outcome
from tests.simulator.checker import Checker, WatchedWorkers

if TYPE_CHECKING:
    from tests.simulator.simulation import Gradient, Simulation, WorkerModel

RUN = "simulated"
UID = bytes(16)
LEASE_SECONDS = 10.0
SNAPSHOT_TICKS = 15


@dataclass
class Staged:
    """outcome: what has become of one that was folded early."""

    worker: "WorkerModel"
    life: int
    identity: Identity
    gradient: "Gradient"
    outcome: Outcome = Outcome.COMMITTED


class Server:
    """coordinator: of another kind where a test plants a bug. staged_max: for how many updates there is memory."""

    def __init__(
        self,
        simulation: "Simulation",
        spec: dict[str, Any],
        coordinator: type[Coordinator],
        folds_early: bool,
        staged_max: int | None,
    ) -> None:
        self.simulation = simulation
        self.random = simulation.random
        self.version = 0
        # Durable, and never the same twice.
        self.generation = 0
        # The update log: the numbers in each version, those in the accumulator, and the version of each number.
        self.log: list[tuple[int, ...]] = []
        self.accumulator: list[int] = []
        self.where: dict[int, int] = {}
        self.staged: dict[int, Staged] = {}
        self.checker = Checker(self, LEASE_SECONDS)
        self._kind, self._folds_early, self._staged_max = coordinator, folds_early, staged_max
        self._clock_offset = 0.0
        self._queue: list[tuple[Policy, dict[str, int]]] = []
        self._busy: tuple[Commit, Policy] | None = None
        # Updates that wait for memory, first come first served, by worker.
        self._admitting: dict[str, tuple[WorkerModel, int, Identity, Gradient]] = {}
        self._calls: dict[str, tuple[WorkerModel, int, int]] = {}
        self._ticks = 0
        # Of commits: which process began it; what one has begun ends with it.
        self._process = 0
        self.coordinator = self._make(parse_policy(spec))
        self._snapshots = [self._save()]

    @property
    def idle(self) -> bool:
        """Nothing is decided on that is not carried out."""
        return self._busy is None and not self._queue

    @property
    def clock(self) -> float:
        return self.simulation.now + self._clock_offset

    def outcome_of(self, identity: Identity) -> Outcome:
        """What has become of an update that is folded and has no answer."""
        return next(each.outcome for each in reversed(self.staged.values()) if each.identity == identity)

    # What workers send.

    def on_join(self, worker: "WorkerModel", life: int) -> None:
        if self._busy is not None:  # the run's lock
            self.simulation.after(0.05, self.on_join, worker, life)
            return
        if self.coordinator.policy.workers_max is not None:
            self._expire()  # so that the dead take no place
        try:
            membership, decisions = self.coordinator.join(worker.name, self.version, self.clock, LEASE_SECONDS)
        except LimitExceeded:
            return
        self.checker.heard[worker.name] = self.simulation.now
        self.checker.moved()
        self.checker.joined(worker.name, membership)
        self._decide(decisions)
        self.simulation.send(self.simulation.on_joined, worker, life, membership)

    def on_leave(self, worker: "WorkerModel", epoch: int) -> None:
        if self._busy is not None:
            self.simulation.after(0.05, self.on_leave, worker, epoch)
            return
        try:
            decisions = self.coordinator.leave(worker.name, epoch)
        except DomainError:
            return
        self.checker.moved()
        self._decide(decisions)

    def on_heartbeat(self, worker: "WorkerModel", generation: int, epoch: int) -> None:
        if generation != self.generation:
            return
        try:
            self.coordinator.renew(worker.name, epoch, self.clock)
        except DomainError:
            return
        self.checker.heard[worker.name] = self.simulation.now

    def on_barrier(self, worker: "WorkerModel", generation: int, epoch: int, call: int) -> None:
        if generation != self.generation:
            self.simulation.send(self.simulation.on_barrier_refused, worker, generation, epoch)
            return
        before = self._calls.get(worker.name)
        self._calls[worker.name] = worker, epoch, call
        try:
            releases = self.coordinator.barrier("every", worker.name, epoch, call)
        except DomainError:
            if before is not None:
                self._calls[worker.name] = before
            self.simulation.send(self.simulation.on_barrier_refused, worker, generation, epoch)
            return
        self.checker.arrived("every", worker.name, call, releases)
        for release in releases:
            self._answer_release(release)

    def on_update(self, worker: "WorkerModel", life: int, identity: Identity, gradient: "Gradient") -> None:
        self.checker.numbers[identity] = gradient.number
        coordinator = self.coordinator
        try:
            stored = coordinator.recall(identity, self.version)
            if stored is not None:
                self.simulation.send(self.simulation.on_answer, worker, life, identity, stored)
                return
            if coordinator.pending(identity) is not None:
                return  # this try waits, too; one answer goes to all
            if not self._has_memory(worker.name):
                self._admitting[worker.name] = worker, life, identity, gradient
                return
            contribution, decisions = coordinator.stage(identity, self.version, gradient.base_version, 1.0)
        except DomainError as error:
            self.simulation.send(self.simulation.on_refused, worker, life, identity, error, self.version)
            return
        self._admitting.pop(worker.name, None)
        self.staged[contribution.key] = Staged(worker, life, identity, gradient)
        self.checker.staged_count[worker.name] += 1
        self._decide(decisions)

    def _has_memory(self, worker: str) -> bool:
        if self._staged_max is None or self.coordinator.position(worker) == 0:
            return True
        early = sum(each.key in self.coordinator._pending for each in self.coordinator.policy.early.values())
        return len(self.coordinator._pending) - early < self._staged_max

    def _admit(self) -> None:
        """Memory may be free again, or somebody's turn may have come."""
        # Where workers are many, a look at the first in order will do: no round goes on without that one.
        names = list(self._admitting)
        if len(names) > 30:
            first = min((name for name in names if name not in self.coordinator.policy.early), default=names[0])
            names = [first, names[0]]
        for name in dict.fromkeys(names):
            if name not in self.coordinator.live or self._has_memory(name):
                self.simulation.after(0.0, self.on_update, *self._admitting.pop(name))

    # What it does.

    def _work(self) -> float:
        return self.random.expovariate(1.0) * self.simulation.faults.work_seconds

    def _decide(self, decisions: list[Decision | Release]) -> None:
        for decision in decisions:
            if isinstance(decision, Commit):
                self._queue.append((self.coordinator.policy, dict(self.checker.roster)))
                self.checker.decided(decision)
                # Now and then something else has the run's lock, for long.
                wait = self._work() * self.random.choice([1] * 19 + [50])
                self.simulation.after(wait, self._begin, decision, self._process)
            elif isinstance(decision, Release):
                self.checker.released(decision)
                self._answer_release(decision)
            elif isinstance(decision, Drop):
                answer = Answer(Outcome.DROPPED_LATE, self.version)
                self.coordinator.drop(decision.contribution, answer)
                self._answer(decision.contribution.key, answer)
            else:
                assert isinstance(decision, Refuse)
                self.coordinator.withdraw(decision.contribution)
                self._refuse(decision.contribution.key, "stale")

    def _begin(self, decision: Commit, process: int) -> None:
        if process != self._process:
            return
        assert self._busy is None
        policy, epochs = self._queue.pop(0)
        commit = self.coordinator.begin(decision)
        self._busy = commit, policy
        self.checker.begun(commit, policy, epochs)
        self.simulation.after(self._work(), self._end, process)

    def _end(self, process: int) -> None:
        if process != self._process:
            return
        assert self._busy is not None
        commit, _ = self._busy
        fresh = commit.contributions[commit.folded :]
        answers: dict[int, Answer] = {}
        contents: tuple[int, ...] | None = None
        if not ((fresh or commit.applies) and self.random.random() < self.simulation.faults.commit_fails):
            outcomes = {each.key: self.staged[each.key].outcome for each in commit.contributions[: commit.folded]}
            for each in fresh:
                chance = self.random.random()
                if chance < self.simulation.faults.skips:
                    outcomes[each.key] = Outcome.SKIPPED_NONFINITE
                elif chance < 1 - self.simulation.faults.skips:  # else it is refused, and the others go on
                    outcomes[each.key] = Outcome.COMMITTED
            contents = self._apply(commit, outcomes)
            for key, outcome in outcomes.items():
                if outcome is Outcome.COMMITTED and contents is None:
                    outcome = Outcome.FOLDED
                answers[key] = Answer(outcome, self.version)
        self.checker.ended(commit, answers, contents is not None)
        decisions = self.coordinator.end(commit, answers, self.version)
        if contents is not None:
            self.checker.versioned(contents)
        self._busy = None
        for index, each in enumerate(commit.contributions):
            if each.key not in answers:
                if index >= commit.folded:
                    self._refuse(each.key, "failed")
            elif commit.answers:
                self._answer(each.key, answers[each.key])
        self._decide(decisions)
        self._admit()

    def _apply(self, commit: Commit, outcomes: dict[int, Outcome]) -> tuple[int, ...] | None:
        """Fold what is to be folded; the contents of the version, if one is made."""
        for each in commit.contributions[commit.folded :]:
            staged = self.staged[each.key]
            staged.outcome = outcomes.get(each.key, staged.outcome)
            if outcomes.get(each.key) is Outcome.COMMITTED:
                if staged.gradient.number in self.where:
                    self.checker.fail(
                        f"gradient {staged.gradient.number} is in version {self.where[staged.gradient.number]} already"
                    )
                self.where[staged.gradient.number] = self.version + 1
                self.accumulator.append(staged.gradient.number)
        if not commit.applies or Outcome.COMMITTED not in outcomes.values():
            return None
        contents, self.accumulator = tuple(self.accumulator), []
        self.version += 1
        self.log.append(contents)
        return contents

    def _answer(self, key: int, answer: Answer) -> None:
        staged = self.staged[key]
        self.simulation.send(self.simulation.on_answer, staged.worker, staged.life, staged.identity, answer)

    def _refuse(self, key: int, why: str) -> None:
        staged, error = self.staged[key], DomainError(why)
        self.simulation.send(
            self.simulation.on_refused, staged.worker, staged.life, staged.identity, error, self.version
        )

    def _answer_release(self, release: Release) -> None:
        for name in release.workers:
            worker, epoch, call = self._calls[name]
            self.simulation.send(self.simulation.on_released, worker, self.generation, epoch, call)

    def _expire(self) -> None:
        before = self.coordinator.membership_number
        decisions = self.coordinator.expire(self.clock)
        if self.coordinator.membership_number != before:
            self.checker.moved()
            self._decide(decisions)

    # What happens to it.

    def tick(self) -> None:
        """Once a second."""
        self._admit()
        self._ticks += 1
        faults = self.simulation.faults
        if self.random.random() < faults.jump:
            jump = self.random.choice([-1, 1]) * self.random.choice([0.1, 3, 1000]) * LEASE_SECONDS
            self._clock_offset += jump
            if jump < 0:
                self.checker.set_back = self.simulation.now
        if self.random.random() < faults.killed:
            self._restart(self.random.choice(self._snapshots[-3:]), clean=False)
            return
        if self._busy is not None:
            return
        if self.random.random() < faults.restarts:
            self._restart(self._save(), clean=True)
        if self._ticks % SNAPSHOT_TICKS == 0:
            self._snapshots = [*self._snapshots[-2:], self._save()]
        if self.random.random() < faults.policy_changes:
            self.change_policy(self.random.choice(self.simulation.policies))
        self._expire()
        self.checker.leases()

    def change_policy(self, spec: dict[str, Any]) -> None:
        before = self.coordinator.policy
        data = self.coordinator.to_data()
        try:
            decisions = self.coordinator.change_policy(spec)
        except PolicyRefused:
            if self.coordinator.policy is not before or self.coordinator.to_data() != data:
                self.checker.fail("a change that was refused has changed something")
            return
        self.checker.changed(before)
        self._decide(decisions)

    def _make(self, policy: Policy) -> Coordinator:
        workers = WatchedWorkers(RUN, UID, self.generation, 16, 10 * len(self.simulation.workers))
        workers.checker = self.checker
        return self._kind(workers, policy, self._folds_early)

    def _save(self) -> dict[str, Any]:
        """A snapshot: the state machines as text, and the state."""
        early = {each.key for each in self.coordinator.policy.early.values()}
        return {
            "text": json.dumps([self.coordinator.workers.to_data(), self.coordinator.to_data()], sort_keys=True),
            "generation": self.generation,
            "state": (self.version, list(self.log), list(self.accumulator), dict(self.where)),
            "declared": dict(self.checker.declared),
            "last": dict(self.checker.last),
            "staged_count": self.checker.staged_count.copy(),
            "lost": [each.worker for key, each in self.coordinator._pending.items() if key not in early],
        }

    def _restart(self, snapshot: dict[str, Any], clean: bool) -> None:
        """Another process, from a snapshot: of the present, or an older one and then in a new generation."""
        self._process += 1
        self._queue, self._busy, self._calls = [], None, {}
        self._admitting = {}
        self._clock_offset = self.random.random() * 1000
        self.checker.set_back = self.simulation.now
        generation, self.generation = self.generation, snapshot["generation"]
        self.version, self.log, self.accumulator, self.where = copy.deepcopy(snapshot["state"])
        self.checker.declared = dict(snapshot["declared"])
        self.checker.last = dict(snapshot["last"])
        self.checker.staged_count = snapshot["staged_count"].copy()
        self.checker.staged_count.subtract(snapshot["lost"])
        workers, data = json.loads(snapshot["text"])
        self.coordinator = self._make(parse_policy(None))
        self.coordinator.workers.restore(workers)
        decisions = self.coordinator.restore(data, self.version, self.clock, LEASE_SECONDS)
        if clean:
            self.checker.heard |= dict.fromkeys(self.coordinator.live, self.simulation.now)
            self.checker.restarted()
            self._decide(decisions)
            return
        self.generation = generation + 1
        for number in self.accumulator:
            del self.where[number]
        self.accumulator = []
        # Those that were folded and not answered have come to nothing.
        self.coordinator.rewind(self.generation, self.version)
        self.checker.rewound()
