"""What a policy is: a state machine without I/O and without a clock. Events in, decisions out.

Events: a worker joined, a worker left (by itself, or because its lease ran out), an update was staged, a commit has
ended. Decisions: commit these together, answer that one late, refuse this one. A worker has at most one update staged.
What is neither decided on nor withdrawn waits.

One commit at a time is decided on; the next comes out of its end. So each is decided on at the version that it will
meet, and what a failed one leaves behind (a count that has not advanced, a step not made) is known before the next.

What all policies share is here: who waits, `workers_min`, and `accumulate`. Of k commits in a row that have an effect
the first k - 1 only fold their updates into the run's accumulator, the k-th applies it. A subclass says which of the
waiting belong together, and which of them it will not have.

**Folding early.** Where `folds_early` is set and the order of a round is fixed, the updates that come first in it need
not wait for the others in memory: a commit without answers folds them into the accumulator, and the round's own commit
names them again, as its first `folded`. What is folded cannot be taken out, so it counts from then on, whatever becomes
of its worker, just as with `accumulate`: it is in the next version, and a worker that was fenced meanwhile is told so
when it joins again. If the round's commit fails, those in the accumulator are answered "folded" and only the others
fail. So what was declared is what was folded, and nobody counts twice or waits for a fold that cannot be repeated.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from stepwell_server.core.arguments import REQUIRED, Argument, Kind, Range, Value, check_arguments, unknown
from stepwell_server.core.errors import InvalidSpec, PolicyRefused, UnknownPolicy
from stepwell_server.core.policies.decisions import Commit, Contribution, Decision, Drop, Refuse
from stepwell_server.core.workers import Outcome

# Far above what anybody has; what is beyond is a slip of the pen.
WORKERS_MAX = 1_000_000
COUNT_MAX = 1_000_000

EFFECTIVE = frozenset({Outcome.COMMITTED, Outcome.FOLDED})


def table(*arguments: Argument) -> Mapping[str, Argument]:
    """A policy's arguments by name, with those of every policy."""
    common = (
        Argument("accumulate", Kind.INTEGER, 1.0, range=Range(1, COUNT_MAX)),
        Argument("workers_min", Kind.INTEGER, 1.0, range=Range(1, WORKERS_MAX)),
        Argument("workers_max", Kind.INTEGER, None, optional=True, range=Range(1, WORKERS_MAX)),
    )
    return {argument.name: argument for argument in (*arguments, *common)}


class Policy(ABC):
    """workers: the live ones, in the order in which they joined. version: the run's.

    accumulate: how many commits make a version. workers_min: with fewer live workers nothing is committed, and what is
    staged waits. workers_max: with so many, nobody else may join.
    """

    name: ClassVar[str]
    arguments: ClassVar[Mapping[str, Argument]]
    # Whether several updates are collected for a commit, some of which may be folded early.
    has_rounds: ClassVar[bool] = False

    def __init__(self, values: Mapping[str, Value], version: int = 0, workers: Iterable[str] = ()) -> None:
        self.values = dict(values)
        self.version = version
        self.workers: dict[str, None] = {}
        # Commits folded since the last version, and the sum of their dampings.
        self.accumulated = 0
        self.damping_sum = 0.0
        self.folds_early = False
        # Of the open round, by worker: what is in the accumulator and has no answer.
        self.early: dict[str, Contribution] = {}
        self._waiting: dict[str, Contribution] = {}
        # Decided on, and not ended yet; and whether it is the one that answers what was folded early.
        self._outstanding: Commit | None = None
        self._settling = False
        self._settle_next = False
        for worker in workers:
            self._enter(worker)

    @classmethod
    def check(cls, values: Mapping[str, Value]) -> None:
        """Raise InvalidSpec where arguments that are right by themselves do not fit together."""
        check_order(cls.name, values, "workers_min", "workers_max")

    @property
    def spec(self) -> dict[str, Value]:
        return {"name": self.name, **self.values}

    @property
    def workers_max(self) -> int | None:
        return self._optional_integer("workers_max")

    @property
    def accumulates(self) -> bool:
        """Whether a version is made of several commits."""
        return self._integer("accumulate") > 1

    @property
    def combines(self) -> bool:
        """Whether a version may be made of several updates."""
        return self.has_rounds or self.accumulates or bool(self.accumulated)

    @property
    def damps(self) -> bool:
        """Whether commits may have a damping other than 1."""
        return False

    @property
    def needs_base(self) -> bool:
        """Whether the parameters that a gradient was taken at must be at hand when it is committed."""
        return False

    @property
    def bases_count(self) -> int:
        """How many versions before the present one must be at hand for that."""
        return 0

    @property
    def waiting(self) -> list[Contribution]:
        """The updates that wait: not decided on, and not folded."""
        return list(self._waiting.values())

    @property
    def outstanding(self) -> Commit | None:
        """What is decided on and has not ended, without those who have gone since."""
        return self._outstanding

    # Events.

    def joined(self, worker: str) -> list[Decision]:
        """A worker is live from now on. Under a live name it takes the place of the one before, whose update goes."""
        known = worker in self.workers
        self._enter(worker)
        if known:
            self._withdraw(worker)
        return self._decide()

    def left(self, *workers: str) -> list[Decision]:
        """Workers are not live any more; an update of them that waits is withdrawn and has no effect."""
        for worker in workers:
            self._exit(worker)
        for worker in workers:
            self._withdraw(worker)
        return self._decide()

    def staged(self, contribution: Contribution) -> list[Decision]:
        """An update is whole. Its worker is live and has no other one."""
        refusal = self._refusal(contribution)
        if refusal is not None:
            return [refusal]
        self._waiting[contribution.worker] = contribution
        return self._decide()

    def ended(self, commit: Commit, version: int, outcomes: Mapping[int, Outcome]) -> list[Decision]:
        """A commit has ended and the run is at this version. outcomes: by key; what has none failed, without effect."""
        answered = [each for each in commit.contributions if each.key in outcomes]
        if not commit.answers:
            # One that was skipped has had its turn in this round, too.
            self.early |= {each.worker: each for each in answered}
            self._settle_next = bool(self.early) and not self.has_rounds
        elif answered:
            self.early, self._settle_next = {}, False
            if not self._settling and any(outcomes[each.key] in EFFECTIVE for each in answered):
                self.accumulated = 0 if commit.applies else self.accumulated + 1
                self.damping_sum = 0.0 if commit.applies else self.damping_sum + commit.damping
        elif commit.contributions:
            self._settle_next = bool(self.early)
        self._outstanding, self._settling = None, False
        # One that came to nothing has put its updates back, perhaps from another policy's time.
        aged, self.version = version != self.version or not commit.contributions, version
        return (self._sift() if aged else []) + self._decide()

    def take_over(self, before: "Policy") -> list[Decision]:
        """Go on in place of another policy, with its workers and all that it has undecided.

        What it had decided on goes its way; what was folded stays so, and the count goes on.
        """
        self.accumulated, self.damping_sum = before.accumulated, before.damping_sum
        self.folds_early, self.early = before.folds_early, dict(before.early)
        self._waiting = dict(before._waiting)
        self._outstanding, self._settling = before._outstanding, before._settling
        self._settle_next = before._settle_next or (bool(self.early) and not self.has_rounds)
        return self._sift() + self._decide()

    def check_change(self, to: "Policy", run: str) -> None:
        """Raise PolicyRefused where another policy in this one's place would strand somebody."""
        live, fewest = len(self.workers), to._integer("workers_min")
        if to.workers_max is not None and live > to.workers_max:
            raise PolicyRefused(
                f"run '{run}' has {live} live workers, expected at most {to.workers_max}, the new policy's "
                f"workers_max; let {live - to.workers_max} of them leave first, or set a larger one",
                got=live,
                expected=to.workers_max,
            )
        stranded = len(self._waiting) + (len(self.early) if to.has_rounds else 0)
        # With too few for this policy, too, they wait already.
        if self._integer("workers_min") <= live < fewest and stranded:
            raise PolicyRefused(
                f"run '{run}' has {live} live workers, expected {fewest} or more, the new policy's workers_min: "
                f"{stranded} staged updates would wait for ever; let {fewest - live} more join first, or set a smaller "
                "one",
                got=live,
                expected=fewest,
            )

    # Descriptions.

    def staleness(self, contribution: Contribution) -> int:
        """How many commits lie between the parameters that it was taken at and the present ones."""
        return max(0, self.version - contribution.base_version)

    @property
    def round_size(self) -> int:
        """How many updates a commit waits for."""
        return 1

    def position(self, worker: str) -> int:
        """How many live workers' updates must come before this one's can be folded or committed.

        At 0 its memory is soon free again, whatever else waits: whoever admits such an update first cannot deadlock.
        """
        return 0

    def is_next(self, worker: str) -> bool:
        """Whether its position is 0; quickly, however many workers there are."""
        return self.position(worker) == 0

    def to_data(self) -> dict[str, Any]:
        """What a restart must not forget, as plain data; whoever waits will send again."""
        return {
            "spec": self.spec,
            "accumulated": self.accumulated,
            "damping_sum": self.damping_sum,
            "early": [[each.key, each.worker, each.base_version, each.samples] for each in self.early.values()],
            "settle_next": self._settle_next or self._settling,
        }

    def restore(self, data: Mapping[str, Any]) -> list[Decision]:
        """Take over what `to_data` gave; the spec, version and workers are there already."""
        self.accumulated, self.damping_sum = int(data["accumulated"]), float(data["damping_sum"])
        early = [Contribution(int(key), str(worker), int(base), float(n)) for key, worker, base, n in data["early"]]
        self.early = {each.worker: each for each in early}
        self._settle_next = bool(data["settle_next"])
        return self._decide()

    # What a subclass says.

    @abstractmethod
    def _together(self) -> list[Contribution]:
        """Which of the waiting make the next commit, in order; none if it is not time yet."""

    def _is_time(self) -> bool:
        """Whether a commit may be made of what was folded early alone."""
        return False

    def _first(self) -> list[Contribution]:
        """Which of the waiting may be folded before it is time."""
        return []

    def _refusal(self, contribution: Contribution) -> Drop | Refuse | None:
        """What becomes at once of an update that this policy will not have."""
        return None

    def _damping(self, contributions: Iterable[Contribution]) -> float:
        return 1.0

    def _stands(self, commit: Commit) -> bool:
        """Whether a commit that somebody has left since it was decided on is still to be made."""
        return True

    def _enter(self, worker: str) -> None:
        self.workers[worker] = None

    def _exit(self, worker: str) -> None:
        self.workers.pop(worker, None)

    # The machine.

    def _decide(self) -> list[Decision]:
        if self._outstanding is not None:
            return []
        commit = self._next()
        if commit is None:
            return []
        for each in commit.contributions[commit.folded :]:
            del self._waiting[each.worker]
        self._outstanding = commit
        return [commit]

    def _next(self) -> Commit | None:
        early = tuple(self.early.values())
        if self._settle_next:
            self._settling = True
            return Commit(early, applies=False, folded=len(early))
        if len(self.workers) < self._integer("workers_min"):
            return None
        together = tuple(self._together())
        if together or (early and self._is_time()):
            damping = self._damping(early + together)
            applies = self.accumulated + 1 >= self._integer("accumulate")
            if applies:
                damping = (self.damping_sum + damping) / (self.accumulated + 1)
            return Commit(early + together, damping, applies, folded=len(early))
        first = tuple(self._first()) if self.folds_early else ()
        return Commit(first, applies=False, answers=False) if first else None

    def _withdraw(self, worker: str) -> None:
        """Let go of a worker's update, unless it is folded. If its commit then falls short, the rest waits again."""
        self._waiting.pop(worker, None)
        commit = self._outstanding
        if commit is None or self._settling:
            return
        done, rest = commit.contributions[: commit.folded], commit.contributions[commit.folded :]
        rest = tuple(each for each in rest if each.worker != worker)
        commit = replace(commit, contributions=done + rest)
        enough = len(self.workers) >= self._integer("workers_min")
        if not enough or (commit.answers and not self._stands(commit)):
            self._waiting = {each.worker: each for each in rest} | self._waiting
            commit = replace(commit, contributions=(), folded=0)
        self._outstanding = commit

    def _sift(self) -> list[Decision]:
        """Take out of the waiting what has become too old."""
        refusals = [refusal for each in self._waiting.values() if (refusal := self._refusal(each)) is not None]
        for refusal in refusals:
            del self._waiting[refusal.contribution.worker]
        return list(refusals)

    def _integer(self, name: str) -> int:
        return int(self.values[name])  # type: ignore[arg-type]

    def _optional_integer(self, name: str) -> int | None:
        return None if self.values[name] is None else self._integer(name)


def check_order(policy: str, values: Mapping[str, Value], lower: str, upper: str) -> None:
    """Raise InvalidSpec if both numbers are given and the first is above the second."""
    low, high = values[lower], values[upper]
    if isinstance(low, float) and isinstance(high, float) and low > high:
        raise InvalidSpec(
            f"policy '{policy}': {lower} is {low:.0f} and {upper} {high:.0f}, expected {lower} at most {upper}; "
            "lower the one or raise the other",
            got=f"{low:.0f}",
            expected=f"{high:.0f}",
        )


POLICIES: dict[str, type[Policy]] = {}


def register(policy: type[Policy]) -> type[Policy]:
    """Enter a policy under its name."""
    POLICIES[policy.name] = policy
    return policy


def parse_policy(spec: Mapping[str, Any] | None, version: int = 0, workers: Iterable[str] = ()) -> Policy:
    """A policy from plain data, {"name": ..., arguments}; async for None.

    Raises UnknownPolicy, UnknownArgument, InvalidValue, InvalidSpec.
    """
    spec = spec or {"name": "async"}
    name = str(spec.get("name", ""))
    if name not in POLICIES:
        raise unknown(UnknownPolicy, "policy", name, POLICIES)
    kind = POLICIES[name]
    given = {key: value for key, value in spec.items() if key != "name"}
    defaults = {key: each.default for key, each in kind.arguments.items() if each.default is not REQUIRED}
    values = defaults | check_arguments(kind.arguments, given, f"policy '{name}'")
    kind.check(values)
    return kind(values, version, workers)
