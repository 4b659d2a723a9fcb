"""Reads a server's own update log under the eyes of the simulator's checker, as if it were a simulated history.

The log says what was decided, not when; so a worker that has joined since the last version may be missing in the next
one, which may have been decided on before.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from stepwell_server.core.policies import Commit, Contribution, Policy, Synchronous, parse_policy
from stepwell_server.core.workers import Answer, Outcome, Worker
from tests.simulator.checker import EFFECTIVE, Checker


@dataclass(frozen=True)
class Logged:
    """An update as a line names it."""

    worker: str
    epoch: int
    sequence: int
    outcome: Outcome
    base_version: int
    samples: float

    @staticmethod
    def of(row: list[Any]) -> "Logged":
        worker, epoch, sequence, outcome, base_version, samples = row
        return Logged(str(worker), int(epoch), int(sequence), Outcome(outcome), int(base_version), float(samples))


@dataclass
class Membership:
    """What of a coordinator the checker looks at."""

    policy: Policy
    membership_number: int = 0
    joined: dict[str, Worker] = field(default_factory=dict)

    @property
    def live(self) -> Iterable[str]:
        return self.joined.keys()

    @property
    def workers(self) -> SimpleNamespace:
        return SimpleNamespace(joined=self.joined)


@dataclass(frozen=True)
class Change:
    """Somebody joined or went. kind: join, leave or expire."""

    kind: str
    worker: str
    epoch: int
    version: int


class LogReplay:
    """Of one run. Raises Violation where a line cannot follow from those before it.

    versions: what each was made of, in order. live: who was live when it was made. changes: of who is live, in order.
    dropped: what came too late.
    """

    def __init__(self, lines: Iterable[str], run: str) -> None:
        self.versions: dict[int, tuple[Logged, ...]] = {}
        self.live: dict[int, frozenset[str]] = {}
        self.changes: list[Change] = []
        self.dropped: list[Logged] = []
        # As the checker knows them of the simulated server.
        self.version = self.generation = 0
        self.simulation = f"update log of run '{run}'"
        self.where: dict[int, int] = {}
        self.staged: dict[int, Any] = {}
        self.coordinator = Membership(parse_policy(None))
        self.checker = Checker(cast(Any, self), 0.0)
        self._keys = itertools.count(1)
        # What is folded and in no version yet; and of that, what waits for the rest of its round.
        self._accumulated: list[Logged] = []
        self._early: list[Contribution] = []
        self._sequences: dict[tuple[int, str, int], int] = {}
        self._epochs: dict[str, int] = {}
        # Who was live, in which epoch, when the last version was made.
        self._before: dict[str, int] = {}
        for line in lines:
            event = json.loads(line)
            if event["run"] == run:
                self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        made = kind == "commit"
        if kind not in ("open", "rewind") and (event["generation"], event["version"]) != (
            self.generation,
            self.version + made,
        ):
            self.checker.fail(f"{event} follows on version {self.version} of generation {self.generation}")
        match kind:
            case "open":
                self._open(event)
            case "rewind":
                self.generation, self.version = event["generation"], event["version"]
                self._accumulated, self._early = [], []
                self._move({})
                self.checker.rewound()
            case "join":
                self._join(event["worker"], event["epoch"])
            case "leave" | "expire":
                self._go(kind, event["worker"], event["epoch"])
            case "policy":
                before = self.coordinator.policy
                self.coordinator.policy = parse_policy(event["policy"], self.version, self.coordinator.live)
                self.checker.changed(before)
            case "drop":
                self.dropped += self._read(event, (Outcome.DROPPED_LATE,))
                if not isinstance(self.coordinator.policy, Synchronous):
                    self.checker.fail(f"{event} although nothing can be late")
            case "early":
                self._fold_early(event)
            case "commit" | "fold" | "skip":
                self._make(event)
            case "delete":
                pass
            case _:
                self.checker.fail(f"nothing follows from {event}")

    def _open(self, event: dict[str, Any]) -> None:
        if event["generation"] != self.generation:
            self._accumulated, self._early = [], []
            self.checker.accumulated = 0
        self.generation, self.version = event["generation"], event["version"]
        self.coordinator.policy = parse_policy(event["policy"], self.version)
        self._move({name: Worker(epoch) for name, epoch in event["live"]})
        self._before = dict(self.checker.roster)

    def _join(self, worker: str, epoch: int) -> None:
        if epoch <= self._epochs.get(worker, 0):
            self.checker.fail(f"worker {worker} joins in epoch {epoch} after {self._epochs[worker]}")
        self._epochs[worker] = epoch
        self.changes.append(Change("join", worker, epoch, self.version))
        self._move(self.coordinator.joined | {worker: Worker(epoch)})

    def _go(self, kind: str, worker: str, epoch: int) -> None:
        if self.checker.roster.get(worker) != epoch:
            self.checker.fail(f"worker {worker} goes in epoch {epoch}, and is live in {self.checker.roster}")
        self.changes.append(Change(kind, worker, epoch, self.version))
        self._move({name: each for name, each in self.coordinator.joined.items() if name != worker})

    def _move(self, joined: dict[str, Worker]) -> None:
        self.coordinator.joined = joined
        self.coordinator.membership_number += 1
        self.checker.moved()

    def _fold_early(self, event: dict[str, Any]) -> None:
        """The first in order of a round are folded before the others are there."""
        rows = self._read(event, (Outcome.FOLDED, Outcome.SKIPPED_NONFINITE))
        contributions = self._stage(rows)
        self.coordinator.policy.early = {each.worker: each for each in self._early}
        commit = Commit(contributions, event["damping"], applies=False, answers=False)
        self.checker.decided(commit)
        self.checker.begun(commit, self.coordinator.policy, self._before)
        self._early += contributions

    def _make(self, event: dict[str, Any]) -> None:
        """One commit, whether it makes a version or not."""
        kind, policy = event["kind"], self.coordinator.policy
        effective = {"commit": Outcome.COMMITTED, "fold": Outcome.FOLDED}.get(kind, Outcome.SKIPPED_NONFINITE)
        rows = self._read(event, (effective, Outcome.SKIPPED_NONFINITE))
        due = self.checker.accumulated + 1 >= self.checker.number("accumulate", policy)
        if kind == "fold" and due and not rows:
            self._early = []  # their round has come to nothing, and they are for the next version
            return
        contributions = (*self._early, *self._stage(rows))
        commit = Commit(
            contributions,
            event["damping"],
            applies=due if kind == "skip" else kind == "commit",
            folded=len(self._early),
        )
        self.checker.begun(commit, policy, self._before)
        self.version = event["version"]
        answers = {each.key: Answer(self.staged[each.key].outcome, self.version) for each in contributions}
        self.checker.ended(commit, answers, kind == "commit")
        self._early, self._before = [], dict(self.checker.roster)
        if kind == "commit":
            self.versions[self.version], self._accumulated = tuple(self._accumulated), []
            self.live[self.version] = frozenset(self.checker.roster)

    def _stage(self, rows: Iterable[Logged]) -> tuple[Contribution, ...]:
        """As the checker knows them: what has an effect is folded, and in the next version."""
        contributions = []
        for row in rows:
            each = Contribution(next(self._keys), row.worker, row.base_version, row.samples)
            self.staged[each.key] = SimpleNamespace(
                identity=row, outcome=row.outcome, gradient=SimpleNamespace(number=each.key)
            )
            contributions.append(each)
            if row.outcome in EFFECTIVE:
                self.where[each.key] = self.version + 1
                self._accumulated.append(row)
        return tuple(contributions)

    def _read(self, event: dict[str, Any], outcomes: tuple[Outcome, ...]) -> list[Logged]:
        """A line's updates: each the next of a live worker's epoch, so that none counts twice."""
        rows = [Logged.of(row) for row in event["contributions"]]
        for row in rows:
            late = row.base_version < self.version
            if row.outcome not in outcomes or (row.outcome is Outcome.DROPPED_LATE and not late):
                self.checker.fail(f"{event} has an update with outcome {row.outcome}")
            if self.checker.roster.get(row.worker) != row.epoch:
                self.checker.fail(f"{row} is answered, live are {self.checker.roster}")
            last = self._sequences.get((self.generation, row.worker, row.epoch), 0)
            if row.sequence != last + 1:
                self.checker.fail(f"{row} follows on sequence {last}")
            self._sequences[self.generation, row.worker, row.epoch] = row.sequence
        return rows
