"""Workers, a network and a server under a simulated clock, with the run's own coordinator and policy between.

An update goes: the worker computes and prepares it; the link, which all share, and the event loop take it in; the
policy decides; a commit takes the kernels' time; the event loop and the link take the parameters back. What is
simulated is time only: no gradients, and nothing fails.

What is left out: how the messages of several workers mix (those of an update that takes longer than a turn do, so more
is staged at a time than here), threads that switch, caches that are warm or not, losses and retries, snapshots,
readers, and a lack of memory.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from stepwell_server.capacity.clock import Clock, Cores, Queue, Then
from stepwell_server.capacity.inputs import Costs, Machine, Sizes, Workload
from stepwell_server.core.barriers import Release
from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.errors import InvalidValue
from stepwell_server.core.policies import Commit, Decision, Drop, Refuse, parse_policy
from stepwell_server.core.workers import FINGERPRINT_BYTES, Answer, Identity, Outcome, Workers

_RUN, _UID = "capacity", bytes(16)
_FINGERPRINT = bytes(FINGERPRINT_BYTES)
_LEASE_SECONDS = 1e12
# Of the updates, what is not counted: they fill the queues.
_WARMUP_SHARE = 0.2
# So that it lasts a round at least, and what is counted some rounds: all of a round are answered at once.
UPDATES_PER_WORKER_MIN = 5
# As many as it takes.
_UPDATES_ENOUGH, _UPDATES_PER_WORKER = 2000, 10
# A smaller spread makes no difference; its square soon has no digits left.
_SPREAD_MIN = 1e-6


@dataclass
class Prediction:
    """What came of it, after a while that is not counted.

    updates_per_second: answered, of all workers. versions_per_second: of the run. refused: updates that were dropped or
    refused, as a share of all. use: of each part, busy time as a share of all time. computing: the same of a worker.
    staleness: how many updates of each. exchange_seconds: from an update's beginning to its parameters, of each.
    staged_max, versions_max: the most staged updates, and versions beside the present one, that were kept at a time.
    """

    updates_per_second: float
    versions_per_second: float
    refused: float
    use: dict[str, float]
    computing: float
    staleness: Counter[int]
    exchange_seconds: list[float]
    staged_max: int
    versions_max: int

    @property
    def staleness_max(self) -> int:
        return max(self.staleness, default=0)

    @property
    def staleness_mean(self) -> float:
        return sum(value * count for value, count in self.staleness.items()) / max(1, self.staleness.total())

    def staleness_percentile(self, percent: float) -> int:
        """The smallest staleness that so many percent of the updates do not exceed."""
        left = percent / 100 * self.staleness.total()
        for value in sorted(self.staleness):
            left -= self.staleness[value]
            if left <= 0:
                return value
        return 0

    def exchange_percentile(self, percent: float) -> float:
        """The same of the seconds of an exchange."""
        ordered = sorted(self.exchange_seconds)
        return ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))]


def predict(workload: Workload, machine: Machine, costs: Costs, *, updates: int = 0, seed: int = 0) -> Prediction:
    """Simulate until so many updates have been answered; 0: as many as it takes.

    Raises what `parse_policy` raises, and InvalidValue for too few updates to count, for a policy under which these
    workers wait for ever, and where nothing takes any time.
    """
    fewest = UPDATES_PER_WORKER_MIN * workload.workers
    updates = updates or max(_UPDATES_ENOUGH, _UPDATES_PER_WORKER * workload.workers)
    if updates < fewest:
        raise InvalidValue(
            f"{updates} updates of {workload.workers} workers, expected {fewest} or more, {UPDATES_PER_WORKER_MIN} of "
            "each: the first are not counted, and a round answers all at once; give more, or 0 for as many as it takes"
        )
    return _Simulation(workload, machine, costs, seed).run(updates)


@dataclass
class _Worker:
    number: int
    name: str
    epoch: int
    version: int = 0
    sequence: int = 0
    began: float = 0.0


@dataclass
class _Counted:
    """Everything that counts up, at one moment."""

    at: float
    busy: dict[str, float] = field(default_factory=dict)
    computed: float = 0.0
    answered: int = 0
    versions: int = 0
    refused: int = 0


class _Simulation:
    def __init__(self, workload: Workload, machine: Machine, costs: Costs, seed: int) -> None:
        self._workload, self._machine, self._costs = workload, machine, costs
        self._sizes = Sizes.of(workload, machine)
        self._random = random.Random(seed)
        self._clock = Clock()
        self._cores = Cores(self._clock, machine.cores)
        self._loop = Queue(self._clock)
        self._links = {"link in": Queue(self._clock), "link out": Queue(self._clock)}
        # The coordinator decides on one at a time, so nothing ever waits here.
        self._commits = Queue(self._clock)
        self._touched_bytes = 0.0
        self._version = self._answered = self._refused = 0
        # How many compute now; and when those who have ended did so, less when each began.
        self._computing, self._computed = 0, 0.0
        self._staged: dict[int, _Worker] = {}
        # What is being taken in has memory, too; what is folded and waits for the round's end has none any more.
        self._arriving = self._folded = 0
        self._held: Counter[int] = Counter()
        self._staleness: Counter[int] = Counter()
        self._exchange_seconds: list[float] = []
        self._staged_max = self._versions_max = 0
        workers = Workers(_RUN, _UID, 0, answers_max=1, workers_max=workload.workers)
        # As the service does for optimizers that need the gradient alone.
        self._coordinator = Coordinator(workers, parse_policy(workload.policy), folds_early=True)
        for number in range(workload.workers):
            name = f"worker-{number:07}"
            membership, decisions = self._coordinator.join(name, 0, 0.0, _LEASE_SECONDS)
            assert not decisions
            self._compute(_Worker(number, name, membership.epoch))

    def run(self, updates: int) -> Prediction:
        begin = self._until(int(_WARMUP_SHARE * updates))
        self._staleness.clear()
        self._exchange_seconds.clear()
        self._staged_max = self._versions_max = 0
        end = self._until(updates)
        seconds = end.at - begin.at
        if not seconds:
            raise InvalidValue(
                f"{self._workload.workers} workers took no time for {updates} updates, expected some: nothing costs "
                "any; give compute_seconds or costs"
            )
        answered = end.answered - begin.answered
        shares = {name: (end.busy[name] - begin.busy[name]) / seconds for name in end.busy}
        return Prediction(
            answered / seconds,
            (end.versions - begin.versions) / seconds,
            (end.refused - begin.refused) / answered,
            shares,
            (end.computed - begin.computed) / (seconds * self._workload.workers),
            self._staleness,
            self._exchange_seconds,
            self._staged_max,
            self._versions_max,
        )

    def _until(self, answered: int) -> _Counted:
        while self._answered < answered:
            if not self._clock.advance():
                raise InvalidValue(
                    f"under policy {dict(self._workload.policy)} {self._workload.workers} workers wait for ever, "
                    "expected as many as its workers_min; give more workers, or another policy"
                )
        busy = {name: link.busy_seconds for name, link in self._links.items()}
        busy["event loop"] = self._loop.busy_seconds
        busy["commits"] = self._commits.busy_seconds
        busy["cores"] = self._cores.busy_seconds / self._machine.cores
        busy["memory"] = self._touched_bytes / self._machine.memory_bytes_per_second
        computed = self._computed + self._computing * self._clock.now
        return _Counted(self._clock.now, busy, computed, self._answered, self._version, self._refused)

    # The workers.

    def _compute(self, worker: _Worker) -> None:
        self._computing += 1
        self._computed -= self._clock.now
        self._clock.after(self._compute_seconds(worker), lambda: self._prepare(worker))

    def _compute_seconds(self, worker: _Worker) -> float:
        mean = self._workload.compute_seconds
        if worker.number < self._workload.slow_workers:
            mean *= self._workload.slow_factor
        if self._workload.spread < _SPREAD_MIN or not mean:
            return mean * self._workload.local_steps
        # A sum of gammas of one scale is a gamma of the summed shape.
        shape = 1.0 / self._workload.spread**2
        return self._random.gammavariate(shape * self._workload.local_steps, mean / shape)

    def _prepare(self, worker: _Worker) -> None:
        self._computing -= 1
        self._computed += self._clock.now
        worker.began = self._clock.now
        self._worker_works(lambda: self._send(worker))

    def _worker_works(self, then: Then) -> None:
        """Half of what a worker does for an exchange, before it and after."""
        moved = self._machine.shards * (self._sizes.gradients + self._sizes.parameters)
        seconds = (self._costs.worker_seconds + self._costs.worker_seconds_per_byte * moved) / 2
        if self._machine.local:
            self._cores.work(seconds, self._costs.worker_cores, then)
        else:
            self._clock.after(seconds, then)

    # The server.

    def _send(self, worker: _Worker) -> None:
        loop_seconds = self._costs.exchange_seconds / 2 + self._costs.receive_seconds_per_byte * self._sizes.gradients

        def work(free: Then) -> None:
            self._arriving += 1
            self._note_staged()
            self._cores.work(loop_seconds, self._costs.loop_cores, free)

        self._transfer("link in", self._sizes.gradients, work, lambda: self._stage(worker))

    def _answer(self, worker: _Worker) -> None:
        loop_seconds = self._costs.exchange_seconds / 2 + self._costs.send_seconds_per_byte * self._sizes.parameters
        # The present version is kept from now on until all of it is sent.
        held = worker.version = self._version
        self._held[held] += 1

        def work(free: Then) -> None:
            self._cores.work(loop_seconds, self._costs.loop_cores, free)

        def end() -> None:
            self._held[held] -= 1
            if not self._held[held]:
                del self._held[held]
            self._worker_works(lambda: self._take(worker))

        self._transfer("link out", self._sizes.parameters, work, end)

    def _take(self, worker: _Worker) -> None:
        self._exchange_seconds.append(self._clock.now - worker.began)
        self._compute(worker)

    def _transfer(self, way: str, size_bytes: float, work: Callable[[Then], object], end: Then) -> None:
        """Over the link, through the event loop, and over the worker's own link; all three go on at the same time.

        work: what the event loop does, and is told what to do when it has done it.
        """
        left = 3

        def done() -> None:
            nonlocal left
            left -= 1
            if not left:
                end()

        def both(free: Then) -> Then:
            def ended() -> None:
                free()
                done()

            return ended

        def carry(free: Then) -> None:
            if way == "link in":  # nothing is handled before it begins to come
                self._loop.take(lambda free: work(both(free)))
            self._clock.after(size_bytes / self._machine.link_bytes_per_second, both(free))
            own = size_bytes * self._machine.shards / self._machine.worker_link_bytes_per_second
            self._clock.after(own, done)

        if way == "link out":
            # Of updates only as many come in as there are turns; answers need none.
            self._loop.take(lambda free: work(both(free)), first=True)
        self._links[way].take(carry)

    def _stage(self, worker: _Worker) -> None:
        self._arriving -= 1
        identity = Identity(_RUN, _UID, 0, worker.name, worker.epoch, worker.sequence + 1, _FINGERPRINT, worker.version)
        contribution, decisions = self._coordinator.stage(identity, self._version, worker.version, 0.0)
        self._staged[contribution.key] = worker
        self._note_staged()
        self._decide(decisions)

    def _note_staged(self) -> None:
        self._staged_max = max(self._staged_max, self._arriving + len(self._staged) - self._folded)

    def _decide(self, decisions: Iterable[Decision | Release]) -> None:
        for decision in decisions:
            match decision:
                case Commit():
                    self._begin(decision)
                case Drop(contribution):
                    self._coordinator.drop(contribution, Answer(Outcome.DROPPED_LATE, self._version))
                    self._refused += 1
                    self._end_of(contribution.key)
                case Refuse(contribution):
                    self._coordinator.withdraw(contribution)
                    self._refused += 1
                    self._end_of(contribution.key, counts=False)

    def _begin(self, decision: Commit) -> None:
        commit = self._coordinator.begin(decision)
        for each in commit.contributions[commit.folded :]:
            self._staleness[self._coordinator.policy.staleness(each)] += 1
        fresh = len(commit.contributions) - commit.folded
        begins = commit.applies and not commit.folded and not self._coordinator.policy.accumulated
        folds = fresh - 1 if begins else fresh
        arrays = self._costs.fold_arrays * folds
        if commit.applies:
            # What somebody reads is left to it: the parameters go to another array.
            arrays += self._costs.kernel_arrays + (self._version in self._held)
        self._touched_bytes += arrays * self._sizes.state
        kernels = arrays * self._sizes.state / self._machine.memory_bytes_per_second
        beside = self._costs.commit_seconds + self._costs.fold_seconds * folds

        def make(free: Then) -> None:
            def end() -> None:
                free()
                self._end(commit)

            self._cores.work(beside, 1.0, lambda: self._cores.work(kernels, self._machine.cores, end))

        self._commits.take(make)

    def _end(self, commit: Commit) -> None:
        self._version += commit.applies
        outcome = Outcome.COMMITTED if commit.applies else Outcome.FOLDED
        decisions = self._coordinator.end(commit, Answer(outcome, self._version), self._version)
        self._versions_max = max(self._versions_max, len(self._held.keys() - {self._version}))
        if commit.answers:
            self._folded -= commit.folded
            for each in commit.contributions:
                self._end_of(each.key)
        else:
            self._folded += len(commit.contributions)
        self._decide(decisions)

    def _end_of(self, key: int, counts: bool = True) -> None:
        """An update is over. counts: whether it has used up its sequence."""
        worker = self._staged.pop(key)
        worker.sequence += counts
        self._answered += 1
        self._answer(worker)
