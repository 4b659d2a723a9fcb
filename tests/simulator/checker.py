"""What must hold in every history. It keeps books of its own, and compares the server's with them after every event."""

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from stepwell_server.core.barriers import Release
from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.policies import Asynchronous, Bounded, Commit, Contribution, Policy, Synchronous
from stepwell_server.core.workers import Answer, Identity, Membership, Outcome, Workers

if TYPE_CHECKING:
    from tests.simulator.server import Server

EFFECTIVE = (Outcome.COMMITTED, Outcome.FOLDED)


class Violation(AssertionError):
    """The history broke a promise. The message has the seed that repeats it."""


class WatchedWorkers(Workers):
    """The server's own, and whoever looks over its shoulder."""

    checker: "Checker"

    def record(self, identity: Identity, answer: Answer) -> None:
        super().record(identity, answer)
        self.checker.declared_as(identity, answer)

    def settle(self, identity: Identity) -> None:
        super().settle(identity)
        self.checker.settled(identity)


class Checker:
    """Of one simulated run. Gradients are numbers; the state is which of them are in which version."""

    def __init__(self, server: "Server", lease_seconds: float) -> None:
        self.server = server
        self.lease_seconds = lease_seconds
        # What each update was sent as, and what it was declared as; None for one whose worker went.
        self.numbers: dict[Identity, int] = {}
        self.declared: dict[int, Answer | None] = {}
        # Of each name, the last update of this generation that has its end.
        self.last: dict[str, tuple[int, int]] = {}
        self.staged_count: Counter[str] = Counter()
        self.accumulated = 0
        self.dampings: list[float] = []
        # Live workers, in the order of their joins, with their epochs; steps as the bounded policy means them.
        self.roster: dict[str, int] = {}
        self.steps: dict[str, int] = {}
        self.heard: dict[str, float] = {}
        self.set_back = 0.0
        self._rosters: dict[tuple[int, int], tuple[tuple[str, int], ...]] = {}
        self._arrived: dict[str, tuple[str, int]] = {}
        self._passed: dict[str, int] = {}
        self._looks = 0

    # Told by the server.

    def moved(self) -> None:
        """Somebody may have joined or left."""
        epochs = {name: worker.epoch for name, worker in self.coordinator.workers.joined.items()}
        gone = [name for name, epoch in self.roster.items() if epochs.get(name) != epoch]
        for name in gone:
            self.steps.pop(name, None)
            self._arrived.pop(name, None)
            self._passed.pop(name, None)
            if name not in epochs:
                del self.roster[name]
        for name, epoch in epochs.items():
            if self.roster.get(name) != epoch:
                self.roster[name] = epoch
                self.steps[name] = min(self.steps.values(), default=0)
        if list(self.roster) != list(self.coordinator.live):
            self.fail(f"live are {list(self.coordinator.live)}, expected {list(self.roster)}")
        number = self.server.generation, self.coordinator.membership_number
        roster = tuple(self.roster.items())
        if self._rosters.setdefault(number, roster) != roster:
            self.fail(f"membership number {number} stands for two memberships")
        limit = self.policy.values["workers_max"]
        if isinstance(limit, float) and len(roster) > limit:
            self.fail(f"{len(roster)} workers are live, allowed are {limit:.0f}")

    def joined(self, name: str, membership: Membership) -> None:
        """A worker is told where it is."""
        if (membership.last_epoch, membership.last_sequence) != self.last.get(name, (0, 0)):
            self.fail(f"worker {name} is told {membership}, its last update was {self.last.get(name)}")

    def decided(self, commit: Commit) -> None:
        """Only what nobody could have expected later: the order of what is folded before its time."""
        policy = self.policy
        if commit.answers or not isinstance(policy, Synchronous) or not policy.values["deterministic"]:
            return
        placed = set(policy.early)
        for each in commit.contributions:
            before = [name for name in self.roster if name < each.worker and name not in placed]
            if before:
                self.fail(f"worker {each.worker} is folded before {before[0]}")
            placed.add(each.worker)

    def begun(self, commit: Commit, before: Policy, epochs: dict[str, int]) -> None:
        """A commit on its way into the state. before, epochs: the policy and the live ones when it was decided on."""
        fresh = commit.contributions[commit.folded :]
        for each in fresh:
            identity = self.server.staged[each.key].identity
            if self.roster.get(each.worker) != identity.epoch:
                self.fail(f"an update of worker {each.worker}, which is fenced, is committed")
        names = [each.worker for each in commit.contributions]
        if len(set(names)) < len(names):
            self.fail(f"a commit has two updates of a worker: {names}")
        if not commit.contributions:
            return
        for each in commit.contributions[: commit.folded]:
            staged = self.server.staged[each.key]
            folded = self.server.where.get(staged.gradient.number) == self.server.version + 1
            if not folded and staged.outcome is not Outcome.SKIPPED_NONFINITE:
                self.fail(f"an update of worker {each.worker} is called folded, and is not")
        if self.is_settling(commit):
            return
        if before is self.policy and len(self.roster) < self.number("workers_min", before):
            self.fail(f"a commit is made by {len(self.roster)} workers")
        if commit.answers:
            applies = self.accumulated + 1 >= self.number("accumulate", before)
            if commit.applies != applies:
                self.fail(f"a commit applies {commit.applies} after {self.accumulated} were folded")
        if isinstance(before, Asynchronous):
            self._check_async(commit, before)
        if isinstance(before, Bounded) and before is self.policy:
            lead = max(self.steps[each.worker] for each in fresh) - min(self.steps.values())
            if lead >= self.number("lead_max", before):
                self.fail(f"a worker that is {lead} steps ahead goes on")
        if isinstance(before, Synchronous) and before is self.policy and commit.answers:
            self._check_round(commit, before, epochs)

    def ended(self, commit: Commit, answers: dict[int, Answer], made: bool) -> None:
        """Before the coordinator knows it. made: whether there is a new version."""
        if not commit.answers:
            return
        if not self.is_settling(commit) and any(answer.outcome in EFFECTIVE for answer in answers.values()):
            self.dampings = [] if made else [*self.dampings, commit.damping]
            self.accumulated = 0 if made else self.accumulated + 1
        for each in commit.contributions[commit.folded :]:
            if each.key in answers:
                self.steps[each.worker] += 1

    def versioned(self, contents: tuple[int, ...]) -> None:
        """A version was made and its answers given."""
        version = self.server.version
        for number in contents:
            answer = self.declared.get(number, Answer(Outcome.SKIPPED_NONFINITE, 0))
            if answer is not None and (answer.outcome, answer.committed_version) not in (
                (Outcome.COMMITTED, version),
                (Outcome.FOLDED, version - 1),
            ):
                self.fail(f"version {version} has gradient {number}, which was declared {answer}")

    def declared_as(self, identity: Identity, answer: Answer) -> None:
        """A worker's update has its answer; the state has changed already."""
        number = self.numbers[identity]
        place = {Outcome.COMMITTED: answer.committed_version, Outcome.FOLDED: answer.committed_version + 1}
        if self.server.where.get(number) != place.get(answer.outcome):
            self.fail(f"gradient {number} is declared {answer}, and is in version {self.server.where.get(number)}")
        if answer.outcome is not Outcome.COMMITTED and answer.committed_version != self.server.version:
            self.fail(f"an answer at version {self.server.version} says {answer}")
        self.declared[number] = answer
        self.last[identity.worker] = identity.epoch, identity.sequence

    def settled(self, identity: Identity) -> None:
        """A worker goes, and is told at its next join that its update counts."""
        number = self.numbers[identity]
        self.last[identity.worker] = identity.epoch, identity.sequence
        if self.server.outcome_of(identity) is not Outcome.SKIPPED_NONFINITE:
            if self.server.where.get(number) != self.server.version + 1:
                self.fail(f"gradient {number} is said to count, and is not folded")
            self.declared[number] = None

    def arrived(self, barrier: str, worker: str, call: int, releases: list[Release]) -> None:
        """A call came through, and this is what followed."""
        if call <= self._passed.get(worker, 0):
            if releases != [Release(barrier, (worker,))]:
                self.fail(f"worker {worker} repeats call {call}, which was released, and gets {releases}")
            return
        self._arrived[worker] = barrier, call
        for release in releases:
            self.released(release)

    def released(self, release: Release) -> None:
        """Several calls are answered."""
        missing = [name for name in self.roster if self._arrived.get(name, ("", 0))[0] != release.barrier]
        if missing or set(release.workers) != set(self.roster):
            self.fail(f"{release} although live are {list(self.roster)}, of which {missing} have not arrived")
        for name in release.workers:
            self._passed[name] = self._arrived.pop(name)[1]

    def changed(self, before: Policy) -> None:
        """The policy is another one."""
        if isinstance(self.policy, Bounded) and not isinstance(before, Bounded):
            self.steps = dict.fromkeys(self.roster, 0)

    def restarted(self) -> None:
        """As if nothing had happened, but for calls of barriers, which workers repeat."""
        self._arrived.clear()
        self.moved()

    def rewound(self) -> None:
        """Nobody is live; what was only accumulated is gone."""
        self.accumulated, self.dampings, self.last = 0, [], {}
        self.declared = {number: each for number, each in self.declared.items() if number in self.server.where}
        self.moved()

    def leases(self) -> None:
        """After those that ran out: nobody is live that was not heard of for long."""
        now = self.server.simulation.now
        for name in self.roster:
            # An expiry waits for the tick, and the tick for a commit.
            if now - max(self.heard[name], self.set_back) > self.lease_seconds + 5:
                self.fail(f"worker {name} is live, and was heard of {now - self.heard[name]:.1f} s ago")

    # Looked at after every event.

    def look(self) -> None:
        """What must hold at any time; where workers are many, what takes long only now and then."""
        self._looks += 1
        if self._looks % (1 + len(self.roster) // 16):
            return
        policy, coordinator = self.policy, self.coordinator
        if set(policy.workers) != set(self.roster):
            self.fail(f"the policy knows {sorted(policy.workers)}, live are {sorted(self.roster)}")
        pending = {identity: coordinator._key_of[identity.worker] for identity in coordinator.waiting()}
        known = {each.key for each in (*policy.waiting, *policy.early.values())}
        known |= {each.key for each in (policy.outstanding.contributions if policy.outstanding else ())}
        for identity, key in pending.items():
            if self.roster.get(identity.worker) != identity.epoch:
                self.fail(f"an update of worker {identity.worker} waits, which is fenced")
            if key not in known:
                self.fail(f"an update of worker {identity.worker} waits, and the policy has forgotten it")
        if policy.accumulated != self.accumulated:
            self.fail(f"{policy.accumulated} are said to be accumulated, and {self.accumulated} are")
        self._check_tallies()
        for barrier in {barrier for barrier, _ in self._arrived.values()}:
            if all(self._arrived.get(name, ("", 0))[0] == barrier for name in self.roster):
                self.fail(f"all have arrived at barrier {barrier}, and wait")
        if self.server.idle:
            self._check_progress(policy)

    def acknowledged(self, worker: str, told: dict[int, tuple[int, Outcome]]) -> None:
        """What a worker was told in this generation is so."""
        for number, (generation, outcome) in told.items():
            if generation == self.server.generation and (number in self.server.where) != (outcome in EFFECTIVE):
                self.fail(f"worker {worker} was told that gradient {number} was {outcome}, and it is not so")

    # Details.

    @property
    def coordinator(self) -> Coordinator:
        return self.server.coordinator

    @property
    def policy(self) -> Policy:
        return self.server.coordinator.policy

    def fail(self, what: str) -> None:
        raise Violation(f"{what} (policy {self.policy.spec}, {self.server.simulation})")

    def number(self, name: str, policy: Policy) -> int:
        return int(policy.values[name])  # type: ignore[arg-type]

    def is_settling(self, commit: Commit) -> bool:
        return self.policy._settling and commit is self.policy.outstanding

    def _check_async(self, commit: Commit, policy: Asynchronous) -> None:
        (each,) = commit.contributions
        staleness = max(0, self.server.version - each.base_version)
        bound = policy.values["staleness_max"]
        if isinstance(bound, float) and policy is self.policy and staleness > bound:
            self.fail(f"an update {staleness} versions stale is committed")
        power = {"none": 0.0, "inverse": 1.0, "inverse_root": 0.5}[str(policy.values["damping"])]
        parts = [(1 + staleness) ** -power]
        if commit.applies:
            parts += self.dampings
        if abs(commit.damping - sum(parts) / len(parts)) > 1e-12:
            self.fail(f"the damping is {commit.damping}, expected the mean of {parts}")

    def _check_round(self, commit: Commit, policy: Synchronous, epochs: dict[str, int]) -> None:
        fresh = commit.contributions[commit.folded :]
        names = [each.worker for each in fresh]
        if policy.values["deterministic"] and names != sorted(names):
            self.fail(f"a round is folded in the order {names}")
        old = [each for each in fresh if each.base_version < self.server.version]
        if policy.values["late"] == "drop" and old:
            self.fail(f"a round at version {self.server.version} has gradients of {old}")
        there = {each.worker for each in commit.contributions}
        missing = [name for name, epoch in self.roster.items() if epochs.get(name) == epoch and name not in there]
        quorum = policy.values["quorum"]
        if missing and not (isinstance(quorum, float) and len(there) >= quorum):
            self.fail(f"a round goes without {missing}, with {sorted(there)} of quorum {quorum}")

    def _check_tallies(self) -> None:
        pending = Counter(identity.worker for identity in self.coordinator.waiting())
        # Folded, and its worker gone: counted when it is answered, which nobody hears.
        keys = self.coordinator._pending
        pending.update(each.worker for each in self.policy.early.values() if each.key not in keys)
        for name, tally in self.coordinator.tallies.items():
            ends = tally.commits + tally.folded + tally.skipped + tally.dropped + tally.refused + tally.withdrawn
            if ends + pending[name] != self.staged_count[name]:
                self.fail(f"of {self.staged_count[name]} updates of worker {name}, {pending[name]} wait, {tally}")
            if sum(tally.staleness_counts) != tally.commits + tally.folded:
                self.fail(f"the staleness of worker {name} does not add up: {tally}")

    def _check_progress(self, policy: Policy) -> None:
        """Nothing is decided on: then nothing is to be decided."""
        waiting: list[Contribution] = policy.waiting
        if len(self.roster) < self.number("workers_min", policy):
            return
        if isinstance(policy, Asynchronous) and waiting:
            self.fail(f"{waiting} wait for nothing")
        if isinstance(policy, Bounded):
            slowest = min(self.steps.values(), default=0)
            for each in waiting:
                if self.steps[each.worker] - slowest < self.number("lead_max", policy):
                    self.fail(f"worker {each.worker} waits at step {self.steps[each.worker]}, the slowest at {slowest}")
        if isinstance(policy, Synchronous):
            there = {each.worker for each in itertools.chain(waiting, policy.early.values())}
            quorum = policy.values["quorum"]
            enough = isinstance(quorum, float) and len(there) >= quorum
            if there and (enough or all(name in there for name in self.roster)):
                self.fail(f"a round of {sorted(there)} is whole, and waits")
        if not policy.has_rounds and policy.early:
            self.fail(f"{policy.early} have no answer")
