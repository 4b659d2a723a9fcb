"""Between the workers and the policy of a run: leases, the updates that wait, and the answers to those that were
committed together.

Pure, like both: the time is an argument. What it is told and what it decides come in this order:

    stage ──▶ decisions ──▶ begin(commit) ──▶ the kernels ──▶ end(commit) ──▶ answers, more decisions

Between a decision and its commit's beginning anything may happen; so `begin` looks once more at who is still there.
From `begin` to `end` the caller lets nobody join or leave: whoever joins again is told whether its last update was
committed, and sends it anew if not.
"""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from stepwell_server.core.errors import MalformedRequest
from stepwell_server.core.policies.policy import Commit, Contribution, Decision, Policy
from stepwell_server.core.workers import Answer, Identity, Membership, Workers


class Coordinator:
    """One run's. workers: epochs, sequences, answers. policy: what becomes of updates."""

    def __init__(self, workers: Workers, policy: Policy) -> None:
        self.workers = workers
        self.policy = policy
        # When each live worker's lease runs out.
        self._leases: dict[str, float] = {}
        self._pending: dict[int, Identity] = {}
        self._keys = itertools.count(1)

    # Workers.

    def join(self, name: str, version: int, now: float, lease_seconds: float) -> tuple[Membership, list[Decision]]:
        """Make `name` a live worker in a new epoch; one of that name before is fenced. Raises as `Workers.join`."""
        membership = self.workers.join(name, version)
        decisions = self._gone(name)
        self._leases[name] = now + lease_seconds
        return membership, decisions + self.policy.joined(name)

    def renew(self, name: str, epoch: int, now: float, lease_seconds: float) -> None:
        """A sign of life. Raises UnknownWorker where the lease has run out, WorkerFenced for an older epoch."""
        self.workers.check_epoch(name, epoch)
        self._leases[name] = max(self._leases[name], now + lease_seconds)

    def leave(self, name: str, epoch: int) -> list[Decision]:
        """A worker goes, and says so. Raises as `renew`."""
        self.workers.check_epoch(name, epoch)
        self.workers.fence(name)
        return self._gone(name)

    def expire(self, now: float) -> list[Decision]:
        """Fence everybody whose lease has run out."""
        decisions = []
        for name in [name for name, deadline in self._leases.items() if deadline <= now]:
            self.workers.fence(name)
            decisions += self._gone(name)
        return decisions

    def next_expiry(self) -> float | None:
        """When the next lease runs out."""
        return min(self._leases.values(), default=None)

    # Updates.

    def pending(self, identity: Identity) -> int | None:
        """The key of this very update, if it is staged and has no answer yet: a retry waits for that one."""
        return next((key for key, each in self._pending.items() if each == identity), None)

    def stage(
        self, identity: Identity, version: int, base_version: int, samples: float
    ) -> tuple[Contribution, list[Decision]]:
        """Hand a whole update to the policy. Its worker has none that waits. Raises as `Workers.recall`."""
        if self.workers.recall(identity, version) is not None:
            raise MalformedRequest("the update has an answer, expected one that has none; give the stored answer")
        if any(each.worker == identity.worker for each in self._pending.values()):
            raise MalformedRequest(
                f"worker '{identity.worker}' has an update that waits, expected none; wait for its answer"
            )
        contribution = Contribution(next(self._keys), identity.worker, min(base_version, version), samples)
        self._pending[contribution.key] = identity
        return contribution, self.policy.staged(contribution)

    def withdraw(self, contribution: Contribution) -> None:
        """A decision against an update was carried out, or its commit failed: it may be sent again."""
        self._pending.pop(contribution.key, None)

    def begin(self, commit: Commit) -> Commit:
        """What of a commit is still to be made: without those whose workers have gone since it was decided."""
        return replace(commit, contributions=tuple(each for each in commit.contributions if each.key in self._pending))

    def end(self, commit: Commit, answer: Answer | None, version: int) -> list[Decision]:
        """A commit has ended, as `begin` gave it: with this answer for all, or, for None, without effect."""
        for contribution in commit.contributions:
            identity = self._pending.pop(contribution.key)
            if answer is not None:
                self.workers.record(identity, answer)
        return self.policy.ended(commit, version)

    def drop(self, contribution: Contribution, answer: Answer) -> None:
        """Answer an update that came too late."""
        identity = self._pending.pop(contribution.key, None)
        if identity is not None:
            self.workers.record(identity, answer)

    def rewind(self, generation: int, version: int) -> None:
        """The run went back: nobody is live, nothing waits."""
        self.workers.rewind(generation)
        self._leases.clear()
        self._pending.clear()
        self.policy = type(self.policy)(self.policy.values, version)

    def waiting(self) -> Iterable[Identity]:
        """The updates that are staged and have no answer."""
        return self._pending.values()

    def _gone(self, name: str) -> list[Decision]:
        """A worker is not live any more; what it had staged has no effect."""
        if self._leases.pop(name, None) is None:
            return []
        self._pending = {key: each for key, each in self._pending.items() if each.worker != name}
        return self.policy.left(name)
