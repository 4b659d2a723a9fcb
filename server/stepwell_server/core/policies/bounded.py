"""bounded: stale-synchronous; nobody runs far ahead of the slowest."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import ClassVar

from stepwell_server.core.arguments import Argument, Kind, Range, Value
from stepwell_server.core.policies.policy import Commit, Contribution, Decision, Policy, register, table


@register
class Bounded(Policy):
    """No worker's commits are more than `lead_max` ahead of the slowest live one's; it waits, nobody is dropped.

    Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter server". A worker's steps
    are its commits since it joined, counted from where the slowest then was; so a newcomer holds up nobody.
    """

    name = "bounded"
    arguments: ClassVar[Mapping[str, Argument]] = table(
        Argument("lead_max", Kind.INTEGER, 3.0, range=Range(1)),
    )

    def __init__(self, values: Mapping[str, Value], version: int = 0, workers: Iterable[str] = ()) -> None:
        super().__init__(values, version)
        self.steps: dict[str, int] = {}
        self._waiting: deque[Contribution] = deque()
        # Decided on, and not ended yet: the worker's steps then grow, unless it has left meanwhile.
        self._going: dict[int, str] = {}
        for worker in workers:
            self.joined(worker)

    def joined(self, worker: str) -> list[Decision]:
        self.steps[worker] = min(self.steps.values(), default=0)
        return super().joined(worker)

    def left(self, worker: str) -> list[Decision]:
        super().left(worker)
        self.steps.pop(worker, None)
        self._going = {key: name for key, name in self._going.items() if name != worker}
        self._waiting = deque(each for each in self._waiting if each.worker != worker)
        return self._release()

    def staged(self, contribution: Contribution) -> list[Decision]:
        self._waiting.append(contribution)
        return self._release()

    def ended(self, commit: Commit, version: int) -> list[Decision]:
        moved, self.version = version > self.version, version
        for contribution in commit.contributions:
            worker = self._going.pop(contribution.key, None)
            if worker is not None:
                self.steps[worker] += moved
        return self._release()

    @property
    def waiting(self) -> list[Contribution]:
        return list(self._waiting)

    def lead(self, worker: str) -> int:
        """How far a worker is ahead of the slowest live one."""
        return self.steps[worker] - min(self.steps.values())

    def _release(self) -> list[Decision]:
        """Let go whoever may, first come first served."""
        bound = int(self.values["lead_max"])  # type: ignore[arg-type]
        free = [each for each in self._waiting if self.lead(each.worker) < bound]
        for each in free:
            self._waiting.remove(each)
            self._going[each.key] = each.worker
        return [Commit((each,)) for each in free]
