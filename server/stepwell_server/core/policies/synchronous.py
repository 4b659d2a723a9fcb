"""sync: one round a version; the gradients of all live workers become one commit."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from stepwell_server.core.arguments import Argument, Kind, Range, Value
from stepwell_server.core.policies.policy import Commit, Contribution, Decision, Drop, Policy, register, table


@register
class Synchronous(Policy):
    """A round ends when every live worker has contributed, or `quorum` of them have, and at least `workers_min`.

    Folded in the order of the workers' names, so that the same contributions give the same bits in whatever order they
    came; `deterministic` false folds them as they came. What was taken at an older version than the round's is late:
    it is dropped, or with `late` "fold" counts as the worker's contribution to the present round.
    """

    name = "sync"
    arguments: ClassVar[Mapping[str, Argument]] = table(
        Argument("quorum", Kind.INTEGER, None, optional=True, range=Range(1)),
        Argument("workers_min", Kind.INTEGER, 1.0, range=Range(1)),
        Argument("late", Kind.TEXT, "drop", choices=("drop", "fold")),
        Argument("deterministic", Kind.FLAG, True),
    )

    def __init__(self, values: Mapping[str, Value], version: int = 0, workers: Iterable[str] = ()) -> None:
        super().__init__(values, version, workers)
        self._round: dict[str, Contribution] = {}
        self._committing: Commit | None = None

    def left(self, worker: str) -> list[Decision]:
        super().left(worker)
        self._round.pop(worker, None)
        return self._close()

    def staged(self, contribution: Contribution) -> list[Decision]:
        self._round[contribution.worker] = contribution
        return self._close()

    def ended(self, commit: Commit, version: int) -> list[Decision]:
        self._committing = None
        self.version = version
        return self._close()

    @property
    def waiting(self) -> list[Contribution]:
        return list(self._round.values())

    def _close(self) -> list[Decision]:
        """End the round if it is whole. While one is being committed, what comes belongs to the next."""
        if self._committing is not None:
            return []
        late: list[Decision] = []
        if self.values["late"] == "drop":
            late = [Drop(each) for each in self._round.values() if each.base_version < self.version]
            self._round = {name: each for name, each in self._round.items() if each.base_version >= self.version}
        live = len(self.workers)
        quorum, fewest = self.values["quorum"], int(self.values["workers_min"])  # type: ignore[arg-type]
        needed = min(live, int(quorum)) if isinstance(quorum, float) else live
        if not self._round or live < fewest or len(self._round) < needed:
            return late
        together = list(self._round.values())
        if self.values["deterministic"]:
            together.sort(key=lambda each: each.worker)
        self._round = {}
        self._committing = Commit(tuple(together))
        return [*late, self._committing]
