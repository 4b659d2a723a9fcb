"""Between the workers and the policy of a run: leases, the updates that wait, and the answers to those that were
committed together.

Pure, like both: the time is an argument. What it is told and what it decides come in this order:

    stage ──▶ decisions ──▶ begin(commit) ──▶ the kernels ──▶ end(commit) ──▶ answers, more decisions

Between a decision and its commit's beginning anything may happen; so `begin` looks once more at who is still there.
From `begin` to `end` the caller lets nobody join or leave, and leaves the policy as it is: whoever joins again is told
whether its last update was committed, and sends it anew if not. Leases that run out meanwhile do so at the next
`expire` after the end. Every commit that was decided on is begun and ended, also one of which nothing is left.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stepwell_server.core.barriers import Barriers, Release
from stepwell_server.core.errors import InvalidValue, LimitExceeded, MalformedRequest
from stepwell_server.core.policies.decisions import Commit, Contribution, Decision
from stepwell_server.core.policies.policy import Policy, parse_policy
from stepwell_server.core.tally import Tally
from stepwell_server.core.workers import Answer, Identity, Membership, Workers

Decisions = Iterable[Decision | Release]


@dataclass(frozen=True)
class Place:
    """Where a worker stands among the live ones, in the order in which they joined.

    membership_number: it grows whenever somebody joins or leaves; while it and the generation stay, so do all places.
    """

    index: int
    count: int
    membership_number: int


@dataclass
class Lease:
    """deadline: when it runs out. seconds: how long it was when it was last renewed."""

    deadline: float
    seconds: float


class Coordinator:
    """One run's. workers: epochs, sequences, answers. policy: what becomes of updates.

    folds_early: whether rounds are folded as soon as their order allows, see `policies/policy.py`.
    """

    def __init__(self, workers: Workers, policy: Policy, folds_early: bool = False) -> None:
        self.workers = workers
        self.policy = policy
        self.policy.folds_early = folds_early
        self.membership_number = 0
        self.tallies: dict[str, Tally] = {}
        self.barriers = Barriers()
        # The live workers, in the order in which they joined; a name that joins again keeps its place.
        self._leases: dict[str, Lease] = {}
        self._pending: dict[int, Identity] = {}
        self._key_of: dict[str, int] = {}
        self._last_key = 0
        self._places: dict[str, int] | None = None
        self._begun: Commit | None = None

    # Workers.

    def join(
        self, name: str, version: int, now: float, lease_seconds: float
    ) -> tuple[Membership, list[Decision | Release]]:
        """Make `name` a live worker in a new epoch; one of that name before is fenced. Call `expire` before.

        Raises LimitExceeded, also where the policy's workers_max are live, and InvalidValue; nothing has changed then.
        """
        assert self._begun is None
        self._check_lease(lease_seconds)
        limit, live = self.policy.workers_max, len(self._leases)
        if limit is not None and live >= limit and name not in self._leases:
            raise LimitExceeded(
                f"run '{self.workers.run}' has {live} live workers, expected at most {limit}, the workers_max of its "
                "policy; join when one has left, or change the policy",
                limit=limit,
            )
        self._withdraw(name)
        membership = self.workers.join(name, version)
        self._leases[name] = Lease(now + lease_seconds, lease_seconds)
        self.barriers.forget(name)
        self._moved()
        return membership, list(self.policy.joined(name))

    def renew(self, name: str, epoch: int, now: float) -> None:
        """A sign of life. Raises UnknownWorker where the lease has run out, WorkerFenced for an older epoch."""
        self.workers.check_epoch(name, epoch)
        lease = self._leases[name]
        lease.deadline = max(lease.deadline, now + lease.seconds)

    def leave(self, name: str, epoch: int) -> list[Decision | Release]:
        """A worker goes, and says so. Raises as `renew`."""
        self.workers.check_epoch(name, epoch)
        return self._gone([name])

    def expire(self, now: float) -> list[Decision | Release]:
        """Fence everybody whose lease has run out; during a commit, nobody.

        A clock that was set back makes no lease longer than it was granted for: the dead cost one lease more at most.
        """
        if self._begun is not None:
            return []
        for lease in self._leases.values():
            lease.deadline = min(lease.deadline, now + lease.seconds)
        return self._gone([name for name, lease in self._leases.items() if lease.deadline <= now])

    def next_expiry(self) -> float | None:
        """When the next lease runs out."""
        return min((lease.deadline for lease in self._leases.values()), default=None)

    def lease_seconds(self, name: str) -> float:
        """How long a live worker's lease is."""
        return self._leases[name].seconds

    @property
    def live(self) -> Collection[str]:
        """The live workers, in the order of their places."""
        return self._leases.keys()

    def place(self, name: str) -> Place:
        """Of a live worker."""
        if self._places is None:
            self._places = {worker: index for index, worker in enumerate(self._leases)}
        return Place(self._places[name], len(self._leases), self.membership_number)

    def barrier(self, barrier: str, name: str, epoch: int, call: int) -> list[Release]:
        """A worker waits for all the others. Raises as `renew` and as `Barriers.arrive`."""
        self.workers.check_epoch(name, epoch)
        return self.barriers.arrive(barrier, name, call, self.live)

    # Updates.

    def recall(self, identity: Identity, version: int) -> Answer | None:
        """As `Workers.recall`, counting those that were answered before."""
        answer = self.workers.recall(identity, version)
        if answer is not None:
            self.tally(identity.worker).duplicates += 1
        return answer

    def pending(self, identity: Identity) -> int | None:
        """The key of this very update, if it is staged and has no answer yet: a retry waits for that one."""
        key = self._key_of.get(identity.worker)
        if key is None or self._pending[key] != identity:
            return None
        self.tally(identity.worker).duplicates += 1
        return key

    def position(self, worker: str) -> int:
        """How many others' updates come before this live worker's; at 0 admit it, even if memory is short."""
        return self.policy.position(worker)

    def is_next(self, worker: str) -> bool:
        """Whether its position is 0; quickly, however many workers there are."""
        return self.policy.is_next(worker)

    def stage(
        self, identity: Identity, version: int, base_version: int, samples: float
    ) -> tuple[Contribution, list[Decision | Release]]:
        """Hand a whole update to the policy. Its worker has none that waits. Raises as `Workers.recall`."""
        if self.workers.recall(identity, version) is not None:
            raise MalformedRequest("the update has an answer, expected one that has none; give the stored answer")
        if identity.worker in self._key_of:
            raise MalformedRequest(
                f"worker '{identity.worker}' has an update that waits, expected none; wait for its answer"
            )
        self._last_key += 1
        contribution = Contribution(self._last_key, identity.worker, min(base_version, version), samples)
        self._pending[contribution.key] = identity
        self._key_of[identity.worker] = contribution.key
        return contribution, list(self.policy.staged(contribution))

    def begin(self, commit: Commit) -> Commit:
        """What of a commit is still to be made: without those whose workers have gone since it was decided.

        Nothing is left of it, either, if those who are still there have fallen short of what the policy asks for; they
        wait again. After a rewind it has come to nothing.
        """
        assert self._begun is None
        self._begun = self.policy.outstanding or Commit((), applies=False)
        return self._begun

    def end(
        self, commit: Commit, answers: Answer | Mapping[int, Answer] | None, version: int
    ) -> list[Decision | Release]:
        """A commit has ended, as `begin` gave it, and the run is at this version.

        answers: one for all, or by key; FOLDED where the commit does not apply, also where it has no answers yet. Those
        without have failed, without effect, and may be sent again. What was folded early is never among those alone:
        if the commit fails as a whole, its answers come out of a further decision.
        """
        assert self._begun is commit
        self._begun = None
        if commit is not self.policy.outstanding:
            return []
        given = dict(answers) if isinstance(answers, Mapping) else {}
        if isinstance(answers, Answer):
            given = {each.key: answers for each in commit.contributions}
        for index, each in enumerate(commit.contributions):
            answer = given.get(each.key)
            if answer is None:
                if index < commit.folded:
                    assert not given, "a commit whose early part goes without an answer is a failed one"
                    continue
                self.withdraw(each)
            elif commit.answers:
                self._record(each, answer)
        outcomes = {key: answer.outcome for key, answer in given.items()}
        return list(self.policy.ended(commit, version, outcomes))

    def drop(self, contribution: Contribution, answer: Answer) -> None:
        """Answer an update that came too late."""
        if contribution.key in self._pending:
            self._record(contribution, answer)

    def withdraw(self, contribution: Contribution) -> None:
        """An update was refused, or its commit failed: it may be sent again."""
        if self._take(contribution.key) is not None:
            self.refused(contribution.worker)

    def refused(self, worker: str) -> None:
        """Count an update whose worker got an error, also one that was never staged."""
        self.tally(worker).refused += 1

    def is_pending(self, key: int) -> bool:
        """Whether a staged update has no answer yet, and a worker."""
        return key in self._pending

    def waiting(self) -> Iterable[Identity]:
        """The updates that are staged and have no answer."""
        return self._pending.values()

    def tally(self, worker: str) -> Tally:
        """What has become of the updates of a worker that has joined."""
        return self.tallies.setdefault(worker, Tally())

    # The run.

    def change_policy(self, spec: Mapping[str, Any]) -> list[Decision | Release]:
        """Go over to another policy, or other arguments; who waits is handed on. No worker notices but by decisions.

        Raises as `parse_policy`, and PolicyRefused if somebody would wait for ever; then nothing has changed.
        """
        assert self._begun is None
        policy = parse_policy(spec, self.policy.version, self.live)
        self.policy.check_change(policy, self.workers.run)
        before, self.policy = self.policy, policy
        return list(policy.take_over(before))

    def rewind(self, generation: int, version: int) -> None:
        """The run went back: nobody is live, nothing waits, and what was accumulated is dropped.

        The caller forgets its accumulator, and what it was told to do; no decision from before has an effect.
        """
        assert self._begun is None
        orphans = [each.worker for each in self.policy.early.values() if each.key not in self._pending]
        for worker in [*self._key_of, *orphans]:
            self.tally(worker).withdrawn += 1
        self.workers.rewind(generation)
        self._leases.clear()
        self._pending.clear()
        self._key_of.clear()
        self.barriers = Barriers()
        self._moved()
        folds_early = self.policy.folds_early
        self.policy = type(self.policy)(self.policy.values, version)
        self.policy.folds_early = folds_early

    def to_data(self) -> dict[str, Any]:
        """What `Workers.to_data` does not say, as plain data, for a snapshot; not during a commit.

        With it belongs the caller's accumulator, where `policy.accumulated` or `policy.early` say that it holds
        something. Whoever waits will send again.
        """
        assert self._begun is None
        early = {each.key for each in self.policy.early.values()}
        return {
            "policy": self.policy.to_data(),
            "live": [[name, lease.seconds] for name, lease in self._leases.items()],
            "membership_number": self.membership_number,
            "barriers": self.barriers.to_data(),
            "tallies": {worker: tally.to_data() for worker, tally in self.tallies.items()},
            "last_key": self._last_key,
            "pending": [
                [key, each.worker, each.epoch, each.sequence, each.fingerprint.hex(), each.acknowledged_version]
                for key, each in self._pending.items()
                if key in early
            ],
        }

    def to_data_after_rewind(self) -> dict[str, Any]:
        """What `to_data` will give after `rewind`."""
        data = self.to_data() | {"live": [], "membership_number": self.membership_number + 1, "barriers": {}}
        return data | {"policy": type(self.policy)(self.policy.values).to_data(), "pending": []}

    def restore(
        self, data: Mapping[str, Any], version: int, now: float, lease_seconds: float
    ) -> list[Decision | Release]:
        """Take over what `to_data` gave, after `Workers.restore`; every live worker gets a new lease.

        lease_seconds: of those for whom no length is known.
        """
        joined, known = self.workers.joined, dict(data["live"])
        live = {name: float(known.get(name, lease_seconds)) for name in [*known, *joined] if name in joined}
        self._leases = {name: Lease(now + seconds, seconds) for name, seconds in live.items()}
        self.membership_number = int(data["membership_number"])
        self._moved()
        self.barriers.restore({name: call for name, call in data["barriers"].items() if name in live})
        self.tallies = {worker: Tally.from_data(tally) for worker, tally in data["tallies"].items()}
        self._last_key = int(data["last_key"])
        self._pending = {int(key): self._identity(*rest) for key, *rest in data["pending"]}
        self._key_of = {identity.worker: key for key, identity in self._pending.items()}
        folds_early = self.policy.folds_early
        self.policy = parse_policy(data["policy"]["spec"], version, live)
        self.policy.folds_early = folds_early
        return list(self.policy.restore(data["policy"]))

    def _identity(self, worker: str, epoch: int, sequence: int, fingerprint: str, acknowledged: int) -> Identity:
        run = self.workers
        return Identity(
            run.run, run.uid, run.generation, worker, epoch, sequence, bytes.fromhex(fingerprint), acknowledged
        )

    def _check_lease(self, seconds: float) -> None:
        if not 0 < seconds < math.inf:
            raise InvalidValue(
                f"run '{self.workers.run}': a lease of {seconds} seconds, expected a positive finite number; give one"
            )

    def _gone(self, names: list[str]) -> list[Decision | Release]:
        """Workers are not live any more; what they had staged has no effect, unless it is folded."""
        assert self._begun is None
        if not names:
            return []
        for name in names:
            self._withdraw(name)
            self.workers.fence(name)
            del self._leases[name]
        self._moved()
        return [*self.policy.left(*names), *self.barriers.gone(names, self.live)]

    def _withdraw(self, name: str) -> None:
        """An update of a worker that goes gets no answer any more."""
        key = self._key_of.get(name)
        if key is None:
            return
        identity = self._take(key)
        assert identity is not None
        early = self.policy.early.get(name)
        if early is not None and early.key == key:
            self.workers.settle(identity)
        else:
            self.tally(name).withdrawn += 1

    def _record(self, contribution: Contribution, answer: Answer) -> None:
        identity = self._take(contribution.key)
        if identity is not None:  # otherwise its worker went after it was folded
            self.workers.record(identity, answer)
        self.tally(contribution.worker).count(answer.outcome, self.policy.staleness(contribution))

    def _take(self, key: int) -> Identity | None:
        identity = self._pending.pop(key, None)
        if identity is not None:
            del self._key_of[identity.worker]
        return identity

    def _moved(self) -> None:
        self.membership_number += 1
        self._places = None
