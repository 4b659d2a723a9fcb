"""Random histories of workers, a bad network, and the real state machines between; everything follows from a seed.

The workers here are models of what an SDK does; policies, leases, epochs, sequences, answers and barriers are the
server's own code. After every event the checker looks at what has happened so far.
"""

import heapq
import itertools
import random
from dataclasses import dataclass, field, fields
from typing import Any

from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.errors import DomainError, IdentityError, RunRewound, UnknownWorker, WorkerFenced
from stepwell_server.core.workers import Answer, Identity, Membership, Outcome
from tests.simulator.server import LEASE_SECONDS, RUN, UID, Server

_RETRY_SECONDS = 4.0


@dataclass
class Faults:
    """How bad it is, each as a probability: of a message to be lost or doubled, per thought of a worker to crash,
    freeze or leave, per commit to fail and per update to be skipped, or refused, in one; of the rest per second. And
    how long things take on average: a message, a commit, and a worker's thoughts."""

    lost: float = 0.05
    doubled: float = 0.05
    crash: float = 0.01
    freeze: float = 0.01
    leave: float = 0.003
    commit_fails: float = 0.01
    skips: float = 0.01
    jump: float = 0.003
    restarts: float = 0.003
    killed: float = 0.003
    policy_changes: float = 0.0
    delay_seconds: float = 1.0
    work_seconds: float = 0.1
    pause_seconds: float = 1.0


CALM = Faults(**{each.name: 0.0 for each in fields(Faults) if not each.name.endswith("_seconds")})
BAD = Faults(0.2, 0.2, 0.05, 0.05, 0.01, 0.05, 0.05, 0.05, 0.01, 0.01)


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
    generation: int = 0
    version: int = 0
    sequence: int = 0
    sending: tuple[Identity, Gradient] | None = None
    in_doubt: tuple[tuple[int, int], Gradient] | None = None
    # The barrier's call that it waits for, the calls so far, and the answers since the last one.
    calling: int | None = None
    calls: int = 0
    answers_count: int = 0
    down: bool = False
    dead: bool = False
    life: int = 0
    # What it was told of each gradient, and in which generation.
    told: dict[int, tuple[int, Outcome]] = field(default_factory=dict)


class Simulation:
    """A run, its workers, and everything that happens to them.

    policies: that a change may choose. barrier_every: after how many answers a worker waits for the others.
    """

    def __init__(
        self,
        seed: int,
        policy: dict[str, Any],
        workers: int,
        faults: Faults,
        coordinator: type[Coordinator] = Coordinator,
        policies: list[dict[str, Any]] | None = None,
        folds_early: bool = False,
        staged_max: int | None = None,
        barrier_every: int | None = None,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.faults = faults
        self.policies = policies or []
        self.barrier_every = barrier_every
        self.now = 0.0
        self.events_count = 0
        self.workers = [WorkerModel(f"w{number:04}") for number in range(workers)]
        # Names in another order than the workers came in.
        self.random.shuffle(self.workers)
        self._gradients = itertools.count(1)
        self._order = itertools.count()
        self._events: list[tuple[float, int, object, tuple[object, ...]]] = []
        self.server = Server(self, policy, coordinator, folds_early, staged_max)
        for worker in self.workers:
            self.after(self.random.random(), self._think, worker, worker.life)
        self.after(1.0, self._tick)

    def __repr__(self) -> str:
        return f"seed {self.seed}, event {self.events_count}"

    def run(self, events: int) -> None:
        """So many events."""
        for _ in range(events):
            self.now, _, action, arguments = heapq.heappop(self._events)
            self.events_count += 1
            action(*arguments)  # type: ignore[operator]
            self.server.checker.look()

    def calm_down(self) -> int:
        """From now on everything works, but some workers are dead for good; returns how many live."""
        self.faults = CALM
        for worker in self.workers:
            if self.random.random() < 0.2:
                worker.down = worker.dead = True
            elif worker.down:
                self._restart(worker)
        return sum(not worker.dead for worker in self.workers)

    def check_told(self) -> None:
        """What workers were told is so."""
        for worker in self.workers:
            self.server.checker.acknowledged(worker.name, worker.told)

    # The network.

    def after(self, seconds: float, action: object, *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action, arguments))

    def delay(self) -> float:
        return self.random.expovariate(1.0) * self.faults.delay_seconds + 0.001

    def send(self, action: object, *arguments: object) -> None:
        if self.random.random() < self.faults.lost:
            return
        self.after(self.delay(), action, *arguments)
        if self.random.random() < self.faults.doubled:
            self.after(self.delay() * 3, action, *arguments)

    # The workers.

    def _think(self, worker: WorkerModel, life: int) -> None:
        """What a worker does next, and again a while later; most of the time it waits for an answer."""
        if worker.down or life != worker.life:
            return
        if self.random.random() < self.faults.crash:
            self._stop(worker)
            return
        pause = self.random.expovariate(1.0) * self.faults.pause_seconds
        if self.random.random() < self.faults.freeze:
            pause += LEASE_SECONDS * self.random.random() * 3
        membership = worker.membership
        if membership is None:
            self.send(self.server.on_join, worker, life)
            pause = _RETRY_SECONDS * (1 + self.random.random())
        else:
            self.send(self.server.on_heartbeat, worker, membership.generation, membership.epoch)
            if worker.calling is not None:
                self.send(self.server.on_barrier, worker, membership.generation, membership.epoch, worker.calling)
            elif worker.sending is not None:
                self.send(self.server.on_update, worker, life, *worker.sending)
            elif self.random.random() < self.faults.leave:
                self.send(self.server.on_leave, worker, membership.epoch)
                self._stop(worker)
            elif self.barrier_every and worker.answers_count >= self.barrier_every:
                worker.calls += 1
                worker.calling = worker.calls
                pause = 0.0
            else:
                self._begin_update(worker, membership)
        self.after(min(pause, LEASE_SECONDS / 3) if pause < LEASE_SECONDS else pause, self._think, worker, life)

    def _begin_update(self, worker: WorkerModel, membership: Membership) -> None:
        gradient = Gradient(next(self._gradients), worker.version)
        if worker.in_doubt is not None:
            gradient, worker.in_doubt = worker.in_doubt[1], None
        worker.sequence += 1
        identity = Identity(
            RUN,
            UID,
            membership.generation,
            worker.name,
            membership.epoch,
            worker.sequence,
            self.random.randbytes(16),
            worker.version,
        )
        worker.sending = identity, gradient
        self.send(self.server.on_update, worker, worker.life, identity, gradient)

    def _stop(self, worker: WorkerModel) -> None:
        worker.down = True
        self.after(self.random.expovariate(1 / (2 * LEASE_SECONDS)), self._restart, worker)

    def _restart(self, worker: WorkerModel) -> None:
        """Another process under the same name: it knows nothing of what the last one computed."""
        if not worker.down or worker.dead:
            return
        worker.down = False
        worker.life += 1
        worker.membership = worker.sending = worker.in_doubt = worker.calling = None
        self.after(0.0, self._think, worker, worker.life)

    def on_joined(self, worker: WorkerModel, life: int, membership: Membership) -> None:
        if worker.down or life != worker.life:
            return
        present = worker.membership
        if present is not None and (membership.generation, membership.epoch) <= (present.generation, present.epoch):
            return
        doubt = worker.in_doubt
        if worker.sending is not None:  # fenced by its own doubled join
            doubt = (worker.sending[0].epoch, worker.sending[0].sequence), worker.sending[1]
        if membership.generation != worker.generation:
            doubt = None  # an update of an old generation is never sent again
        if doubt is not None and (membership.last_epoch, membership.last_sequence) >= doubt[0]:
            doubt = None  # it was answered
        worker.membership, worker.version, worker.sequence = membership, membership.version, 0
        worker.generation = membership.generation
        worker.sending, worker.in_doubt = None, doubt
        worker.calling, worker.calls = None, 0

    def on_answer(self, worker: WorkerModel, life: int, identity: Identity, answer: Answer) -> None:
        if worker.down or life != worker.life or worker.sending is None or worker.sending[0] != identity:
            return
        worker.version = max(worker.version, answer.committed_version)
        worker.told[worker.sending[1].number] = identity.generation, answer.outcome
        worker.sending = None
        worker.answers_count += 1

    def on_refused(self, worker: WorkerModel, life: int, identity: Identity, error: DomainError, version: int) -> None:
        if worker.down or life != worker.life or worker.sending is None or worker.sending[0] != identity:
            return
        if isinstance(error, UnknownWorker | WorkerFenced):
            worker.in_doubt = (identity.epoch, identity.sequence), worker.sending[1]
            worker.membership = worker.sending = None
            return
        if isinstance(error, IdentityError):
            # The run went back, or a copy of an update that was refused has come late and was taken: begin another
            # epoch, as the SDK does.
            worker.membership = worker.sending = None
            if isinstance(error, RunRewound):
                worker.in_doubt = None
            return
        worker.version = max(worker.version, version)
        worker.sequence -= 1  # a refused update does not use up its sequence
        worker.sending = None

    def on_released(self, worker: WorkerModel, generation: int, epoch: int, call: int) -> None:
        if worker.membership is None or worker.calling != call:
            return
        if (worker.membership.generation, worker.membership.epoch) == (generation, epoch):
            worker.calling = None
            worker.answers_count = 0

    def on_barrier_refused(self, worker: WorkerModel, generation: int, epoch: int) -> None:
        if worker.membership is not None and (worker.membership.generation, worker.membership.epoch) == (
            generation,
            epoch,
        ):
            worker.membership = worker.calling = None

    def _tick(self) -> None:
        self.server.tick()
        self.after(1.0, self._tick)
