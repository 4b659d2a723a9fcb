"""bounded: stale-synchronous; nobody runs far ahead of the slowest."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from stepwell_server.core.arguments import Argument, Kind, Range, Value
from stepwell_server.core.policies.decisions import Commit, Contribution, Decision
from stepwell_server.core.policies.policy import Policy, register, table
from stepwell_server.core.workers import Outcome

LEAD_MAX = 1e9


@register
class Bounded(Policy):
    """No worker's steps are more than `lead_max` ahead of the slowest live one's; it waits, nobody is dropped.

    Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter server". A worker's steps
    are its updates that were answered since it joined, whether committed, folded, or skipped for what is not finite,
    counted from where the slowest then was; so a newcomer holds up nobody.
    """

    name = "bounded"
    arguments: ClassVar[Mapping[str, Argument]] = table(
        Argument("lead_max", Kind.INTEGER, 3.0, range=Range(1, LEAD_MAX)),
    )

    def __init__(self, values: Mapping[str, Value], version: int = 0, workers: Iterable[str] = ()) -> None:
        self.steps: dict[str, int] = {}
        super().__init__(values, version, workers)

    def lead(self, worker: str) -> int:
        """How far a worker is ahead of the slowest live one."""
        return self.steps[worker] - min(self.steps.values())

    def position(self, worker: str) -> int:
        """Others must first catch up with one that is ahead; the slowest is never among those who wait for it."""
        return int(self.lead(worker) >= self._integer("lead_max"))

    def ended(self, commit: Commit, version: int, outcomes: Mapping[int, Outcome]) -> list[Decision]:
        # What was folded early, before a change to this policy, may be of a worker that has gone.
        for each in commit.contributions[commit.folded :]:
            if commit.answers and each.key in outcomes and each.worker in self.steps:
                self.steps[each.worker] += 1
        return super().ended(commit, version, outcomes)

    def take_over(self, before: Policy) -> list[Decision]:
        """Steps are counted from the change, unless they were counted before. Who is too far ahead then waits."""
        if isinstance(before, Bounded):
            self.steps = dict(before.steps)
        return super().take_over(before)

    def to_data(self) -> dict[str, Any]:
        return super().to_data() | {"steps": dict(self.steps)}

    def restore(self, data: Mapping[str, Any]) -> list[Decision]:
        self.steps |= {worker: int(steps) for worker, steps in data["steps"].items() if worker in self.workers}
        return super().restore(data)

    def _together(self) -> list[Contribution]:
        """Of those who may, first come, first served."""
        if not self._waiting:
            return []
        furthest = min(self.steps.values()) + self._integer("lead_max")
        return [each for each in self._waiting.values() if self.steps[each.worker] < furthest][:1]

    def _enter(self, worker: str) -> None:
        super()._enter(worker)
        self.steps.pop(worker, None)
        self.steps[worker] = min(self.steps.values(), default=0)

    def _exit(self, worker: str) -> None:
        super()._exit(worker)
        self.steps.pop(worker, None)
