"""Random histories of workers, a bad network, and the real state machines between; everything follows from a seed.

The workers here are models of what an SDK does; policies, leases, epochs, sequences and answers are the server's own
code. After every event the checker looks at what has happened so far.
"""

import heapq
import itertools
import random
from dataclasses import dataclass, field

from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.errors import DomainError, IdentityError, UnknownWorker, WorkerFenced
from stepwell_server.core.policies import Asynchronous, Bounded, Commit, Contribution, Drop, Policy, Refuse, Synchronous
from stepwell_server.core.workers import Answer, Identity, Membership, Outcome, Workers

RUN = "simulated"
UID = bytes(16)
LEASE_SECONDS = 10.0
_RETRY_SECONDS = 4.0


class Violation(AssertionError):
    """The history broke a promise. The message has the seed that repeats it."""


@dataclass
class Faults:
    """How bad it is, each as a probability: of a message to be lost or doubled, and per thought of a worker."""

    lost: float = 0.05
    doubled: float = 0.05
    crash: float = 0.01
    freeze: float = 0.01
    jump: float = 0.001
    commit_fails: float = 0.01
    delay_seconds: float = 1.0


CALM = Faults(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Gradient:
    """What a worker has computed; it may be sent under several identities, one after another, and counts once."""

    number: int
    base_version: int


@dataclass
class WorkerModel:
    """A trainer. in_doubt: an update that was sent in an earlier epoch, and its epoch and sequence."""

    name: str
    membership: Membership | None = None
    version: int = 0
    sequence: int = 0
    sending: tuple[Identity, Gradient] | None = None
    in_doubt: tuple[tuple[int, int], Gradient] | None = None
    down: bool = False
    dead: bool = False
    life: int = 0
    acknowledged: set[int] = field(default_factory=set)


class Simulation:
    """A run under one policy, its workers, and everything that happens to them.

    coordinator: of another kind where a test plants a bug.
    """

    def __init__(
        self,
        seed: int,
        policy: Policy,
        workers: int,
        faults: Faults,
        coordinator: type[Coordinator] = Coordinator,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.version = 0
        self.events_count = 0
        self.policy = policy
        self.coordinator = coordinator(Workers(RUN, UID, 0, 16, 10 * workers), policy)
        self.workers = [WorkerModel(f"w{number:04}") for number in range(workers)]
        self.log: list[tuple[int, ...]] = []
        self.committed: dict[int, int] = {}
        self._gradients = itertools.count(1)
        self._order = itertools.count()
        self._events: list[tuple[float, int, object, tuple[object, ...]]] = []
        self._carried: dict[int, Gradient] = {}
        self._by_key: dict[int, tuple[WorkerModel, Identity, int]] = {}
        self._queue: list[Commit] = []
        self._busy: Commit | None = None
        for worker in self.workers:
            self._after(self.random.random(), self._think, worker, worker.life)
        self._after(1.0, self._tick)

    def run(self, events: int) -> None:
        """So many events, or until nothing is left to happen."""
        for _ in range(events):
            if not self._events:
                return
            self.now, _, action, arguments = heapq.heappop(self._events)
            self.events_count += 1
            action(*arguments)  # type: ignore[operator]
            self._check()

    def calm_down(self) -> int:
        """From now on everything works, but some workers are dead for good; returns how many live."""
        self.faults = CALM
        for worker in self.workers:
            if self.random.random() < 0.2:
                worker.down = worker.dead = True
            elif worker.down:
                self._restart(worker)
        return sum(not worker.dead for worker in self.workers)

    # The network.

    def _after(self, seconds: float, action: object, *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action, arguments))

    def _delay(self) -> float:
        return self.random.expovariate(1.0) * self.faults.delay_seconds + 0.001

    def _send(self, action: object, *arguments: object) -> None:
        if self.random.random() < self.faults.lost:
            return
        self._after(self._delay(), action, *arguments)
        if self.random.random() < self.faults.doubled:
            self._after(self._delay() * 3, action, *arguments)

    # The workers.

    def _think(self, worker: WorkerModel, life: int) -> None:
        """What a worker does next, and again a while later; most of the time it waits for an answer."""
        if worker.down or life != worker.life:
            return
        if self.random.random() < self.faults.crash:
            worker.down = True
            self._after(self.random.expovariate(1 / (2 * LEASE_SECONDS)), self._restart, worker)
            return
        pause = self.random.expovariate(1.0)
        if self.random.random() < self.faults.freeze:
            pause += LEASE_SECONDS * self.random.random() * 3
        if worker.membership is None:
            self._send(self._on_join, worker, life)
            pause = _RETRY_SECONDS * (1 + self.random.random())
        elif worker.sending is None:
            self._begin_update(worker)
        else:
            self._send(self._on_update, worker, life, *worker.sending)
        if worker.membership is not None:
            self._send(self._on_heartbeat, worker, worker.membership.epoch)
        self._after(min(pause, LEASE_SECONDS / 3) if pause < LEASE_SECONDS else pause, self._think, worker, life)

    def _begin_update(self, worker: WorkerModel) -> None:
        assert worker.membership is not None
        gradient = Gradient(next(self._gradients), worker.version)
        if worker.in_doubt is not None:
            gradient, worker.in_doubt = worker.in_doubt[1], None
        worker.sequence += 1
        identity = Identity(
            RUN,
            UID,
            worker.membership.generation,
            worker.name,
            worker.membership.epoch,
            worker.sequence,
            self.random.randbytes(16),
            worker.version,
        )
        worker.sending = identity, gradient
        self._send(self._on_update, worker, worker.life, identity, gradient)

    def _restart(self, worker: WorkerModel) -> None:
        """Another process under the same name: it knows nothing of what the last one computed."""
        if not worker.down or worker.dead:
            return
        worker.down = False
        worker.life += 1
        worker.membership = worker.sending = worker.in_doubt = None
        self._after(0.0, self._think, worker, worker.life)

    def _on_joined(self, worker: WorkerModel, life: int, membership: Membership) -> None:
        if worker.down or life != worker.life:
            return
        if worker.membership is not None and membership.epoch <= worker.membership.epoch:
            return
        doubt = worker.in_doubt
        if worker.sending is not None:  # fenced by its own doubled join
            doubt = (worker.sending[0].epoch, worker.sending[0].sequence), worker.sending[1]
        if doubt is not None and (membership.last_epoch, membership.last_sequence) >= doubt[0]:
            doubt = None  # it was committed
        worker.membership, worker.version, worker.sequence = membership, membership.version, 0
        worker.sending, worker.in_doubt = None, doubt

    def _on_answer(self, worker: WorkerModel, life: int, identity: Identity, answer: Answer) -> None:
        if worker.down or life != worker.life or worker.sending is None or worker.sending[0] != identity:
            return
        worker.version = max(worker.version, answer.committed_version)
        if answer.outcome is Outcome.COMMITTED:
            worker.acknowledged.add(worker.sending[1].number)
        worker.sending = None

    def _on_refused(self, worker: WorkerModel, life: int, identity: Identity, error: DomainError, version: int) -> None:
        if worker.down or life != worker.life or worker.sending is None or worker.sending[0] != identity:
            return
        if isinstance(error, UnknownWorker | WorkerFenced):
            worker.in_doubt = (identity.epoch, identity.sequence), worker.sending[1]
            worker.membership = worker.sending = None
            return
        if isinstance(error, IdentityError):
            # A copy of an update that was refused has come late and was taken: begin another epoch, as the SDK does.
            worker.membership = worker.sending = None
            return
        worker.version = max(worker.version, version)
        worker.sequence -= 1  # a refused update does not use up its sequence
        worker.sending = None

    # The server.

    def _on_join(self, worker: WorkerModel, life: int) -> None:
        if self._busy is not None:  # the run's lock
            self._after(0.05, self._on_join, worker, life)
            return
        membership, decisions = self.coordinator.join(worker.name, self.version, self.now, LEASE_SECONDS)
        self._decide(decisions)
        self._send(self._on_joined, worker, life, membership)

    def _on_heartbeat(self, worker: WorkerModel, epoch: int) -> None:
        try:
            self.coordinator.renew(worker.name, epoch, self.now, LEASE_SECONDS)
        except DomainError:
            return

    def _tick(self) -> None:
        if self._busy is None:
            if self.random.random() < self.faults.jump:
                self.now += 3 * LEASE_SECONDS
            self._decide(self.coordinator.expire(self.now))
        self._after(1.0, self._tick)

    def _on_update(self, worker: WorkerModel, life: int, identity: Identity, gradient: Gradient) -> None:
        try:
            stored = self.coordinator.workers.recall(identity, self.version)
            if stored is not None:
                self._send(self._on_answer, worker, life, identity, stored)
                return
            if self.coordinator.pending(identity) is not None:
                return  # this try waits, too; one answer goes to all
            contribution, decisions = self.coordinator.stage(identity, self.version, gradient.base_version, 1.0)
        except DomainError as error:
            self._send(self._on_refused, worker, life, identity, error, self.version)
            return
        self._by_key[contribution.key] = worker, identity, life
        self._carried[contribution.key] = gradient
        self._decide(decisions)

    def _decide(self, decisions: list[Commit | Drop | Refuse]) -> None:
        for decision in decisions:
            if isinstance(decision, Commit):
                self._queue.append(decision)
                self._after(self._delay() / 10, self._begin)
                continue
            worker, identity, life = self._by_key[decision.contribution.key]
            if isinstance(decision, Drop):
                answer = Answer(Outcome.DROPPED_LATE, self.version)
                self.coordinator.drop(decision.contribution, answer)
                self._send(self._on_answer, worker, life, identity, answer)
            else:
                self.coordinator.withdraw(decision.contribution)
                self._send(self._on_refused, worker, life, identity, DomainError("stale"), self.version)

    def _begin(self) -> None:
        if self._busy is not None or not self._queue:
            return
        self._busy = self.coordinator.begin(self._queue.pop(0))
        self._check_commit(self._busy)
        self._after(self._delay() / 10, self._end)

    def _end(self) -> None:
        commit, self._busy = self._busy, None
        assert commit is not None
        contributions = commit.contributions
        answer = None
        if contributions and self.random.random() >= self.faults.commit_fails:
            self.version += 1
            answer = Answer(Outcome.COMMITTED, self.version)
            self.log.append(tuple(self._carried[each.key].number for each in contributions))
            for each in contributions:
                self._note(self._carried[each.key])
        decisions = self.coordinator.end(commit, answer, self.version)
        for each in contributions:
            worker, identity, life = self._by_key[each.key]
            if answer is not None:
                self._send(self._on_answer, worker, life, identity, answer)
            else:
                self._send(self._on_refused, worker, life, identity, DomainError("failed"), self.version)
        self._decide(decisions)
        if self._queue:
            self._after(self._delay() / 10, self._begin)

    # The checker.

    def _fail(self, what: str) -> None:
        raise Violation(f"{what} (policy {self.policy.spec}, seed {self.seed}, event {self.events_count})")

    def _note(self, gradient: Gradient) -> None:
        if gradient.number in self.committed:
            self._fail(
                f"gradient {gradient.number} is in versions {self.committed[gradient.number]} and {self.version}"
            )
        self.committed[gradient.number] = self.version

    def _check_commit(self, commit: Commit) -> None:
        """A commit on its way into the state: who may be in it, and with what."""
        for each in commit.contributions:
            _, identity, _ = self._by_key[each.key]
            present = self.coordinator.workers.joined.get(each.worker)
            if present is None or present.epoch != identity.epoch:
                self._fail(f"an update of worker {each.worker}, which is fenced, is committed")
        self._check_together(commit.contributions)

    def _check_together(self, contributions: tuple[Contribution, ...]) -> None:
        policy = self.policy
        if isinstance(policy, Asynchronous):
            bound = policy.values["staleness_max"]
            # Of those that were decided on before this one, each may have made it a version staler.
            slack = len(self._queue) + len(self.workers)
            for each in contributions:
                if isinstance(bound, float) and self.version - each.base_version > bound + slack:
                    self._fail(f"an update {self.version - each.base_version} versions stale is committed")
        if isinstance(policy, Synchronous):
            names = [each.worker for each in contributions]
            if len(set(names)) < len(names):
                self._fail(f"a round has two updates of a worker: {names}")
            if policy.values["deterministic"] and names != sorted(names):
                self._fail(f"a round is folded in the order {names}")
            old = [each for each in contributions if each.base_version < self.version]
            if policy.values["late"] == "drop" and old:
                self._fail(f"a round at version {self.version} has gradients of {old}")

    def _check(self) -> None:
        """What must hold at any time."""
        policy = self.policy
        if isinstance(policy, Bounded) and policy.steps:
            bound = policy.values["lead_max"]
            assert isinstance(bound, float)
            lead = max(policy.steps.values()) - min(policy.steps.values())
            if lead > bound:
                self._fail(f"a worker is {lead} steps ahead")
        live = set(self.coordinator.workers.joined)
        if live != set(policy.workers):
            self._fail(f"the policy knows {sorted(policy.workers)}, live are {sorted(live)}")
        for identity in self.coordinator.waiting():
            if identity.worker not in live:
                self._fail(f"an update of worker {identity.worker} waits, which is fenced")

    def check_acknowledged(self) -> None:
        """What a worker was told of is in the state."""
        for worker in self.workers:
            lost = worker.acknowledged - self.committed.keys()
            if lost:
                self._fail(f"worker {worker.name} was told of gradients {sorted(lost)[:5]}, which no version holds")
