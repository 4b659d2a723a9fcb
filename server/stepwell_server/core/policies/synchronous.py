"""sync: one round a commit; the gradients of all live workers become one."""

from collections.abc import Mapping
from itertools import islice
from typing import ClassVar

from stepwell_server.core.arguments import Argument, Kind, Range, Value
from stepwell_server.core.policies.decisions import Commit, Contribution, Decision, Drop
from stepwell_server.core.policies.policy import COUNT_MAX, WORKERS_MAX, Policy, check_order, register, table
from stepwell_server.core.workers import Outcome


@register
class Synchronous(Policy):
    """A round ends when every live worker has contributed, or `quorum` updates are there.

    Folded in the order of the workers' names, so that the same contributions give the same bits in whatever order they
    came; `deterministic` false folds them as they came. What was taken at an older version than the round's is late:
    it is dropped, or with `late` "fold" counts as the worker's contribution to the present round. Rounds that are
    accumulated make no version, so what comes late for one of them counts in the next.

    local_steps: after how many steps of its own a worker sends; what it sends then is the difference of parameters.
    """

    name = "sync"
    arguments: ClassVar[Mapping[str, Argument]] = table(
        Argument("quorum", Kind.INTEGER, None, optional=True, range=Range(1, WORKERS_MAX)),
        Argument("late", Kind.TEXT, "drop", choices=("drop", "fold")),
        Argument("deterministic", Kind.FLAG, True),
        Argument("local_steps", Kind.INTEGER, 1.0, range=Range(1, COUNT_MAX)),
    )
    has_rounds = True
    # The workers' names in order, made anew when somebody joins or leaves.
    _names: list[str] | None = None
    # How many of the first of them are folded, and how many have contributed, as far as anybody looked: with a thousand
    # workers an update that comes must not look at each of them.
    _folded = 0
    _contributed = 0

    @classmethod
    def check(cls, values: Mapping[str, Value]) -> None:
        super().check(values)
        check_order(cls.name, values, "quorum", "workers_max")

    @property
    def local_steps(self) -> int:
        return self._integer("local_steps")

    @property
    def round_size(self) -> int:
        live = len(self.workers)
        return max(1, min(live, self._optional_integer("quorum") or live))

    def position(self, worker: str) -> int:
        """Where the order is fixed, how many before it in order have not contributed to the open round.

        One that has contributed is for the next round, and waits for this one.
        """
        if not self.values["deterministic"]:
            return 0
        missing = (not self._has_contributed(name) for name in self.workers if name < worker)
        return sum(missing) + (worker in self.early)

    def is_next(self, worker: str) -> bool:
        if not self.values["deterministic"]:
            return True
        names = self._in_order_of_names()
        while self._contributed < len(names) and self._has_contributed(names[self._contributed]):
            self._contributed += 1
        all_have = self._contributed == len(names)
        return worker not in self.early and (all_have or worker <= names[self._contributed])

    def ended(self, commit: Commit, version: int, outcomes: Mapping[int, Outcome]) -> list[Decision]:
        if commit.answers:
            self._folded = 0
        self._contributed = self._folded
        return super().ended(commit, version, outcomes)

    def _decide(self) -> list[Decision]:
        decisions = super()._decide()
        if decisions:
            self._contributed = self._folded  # those that it takes do not wait any more
        return decisions

    def _together(self) -> list[Contribution]:
        return self._in_order() if self._is_time() else []

    def _is_time(self) -> bool:
        # Most events find it far from time: no look at each worker then.
        quorum, live = self._optional_integer("quorum"), len(self.workers)
        if len(self.early) + len(self._waiting) < min(live, quorum or live):
            return False
        return self._whole([*self.early, *(each.worker for each in self._of_this_round())])

    def _stands(self, commit: Commit) -> bool:
        return self._whole([each.worker for each in commit.contributions])

    def _whole(self, contributors: list[str]) -> bool:
        """Whether a round with one contribution of each of these is whole; some of them may not be live any more."""
        quorum = self._optional_integer("quorum")
        if quorum is not None and len(contributors) >= quorum:
            return True
        return bool(contributors) and sum(name in self.workers for name in contributors) >= len(self.workers)

    def _of_this_round(self) -> list[Contribution]:
        """A worker that has come back, and has something in the round from before, contributes to the next."""
        return [each for each in self._waiting.values() if each.worker not in self.early]

    def _in_order(self) -> list[Contribution]:
        found = self._of_this_round()
        return sorted(found, key=lambda each: each.worker) if self.values["deterministic"] else found

    def _first(self) -> list[Contribution]:
        """Those that nobody missing comes before."""
        if not self.values["deterministic"]:
            return self._of_this_round()
        names = self._in_order_of_names()
        while self._folded < len(names) and names[self._folded] in self.early:
            self._folded += 1
        first = []
        for name in islice(names, self._folded, None):
            if name in self.early:
                continue
            if name not in self._waiting:
                break
            first.append(self._waiting[name])
        return first

    def _in_order_of_names(self) -> list[str]:
        if self._names is None:
            self._names = sorted(self.workers)
            self._folded = self._contributed = 0
        return self._names

    def _has_contributed(self, worker: str) -> bool:
        return worker in self._waiting or worker in self.early

    def _refusal(self, contribution: Contribution) -> Drop | None:
        late = self.values["late"] == "drop" and self.staleness(contribution) > 0
        return Drop(contribution) if late else None

    def _enter(self, worker: str) -> None:
        super()._enter(worker)
        self._names = None

    def _exit(self, worker: str) -> None:
        super()._exit(worker)
        self._names = None
