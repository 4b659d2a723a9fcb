"""Who may update a run, and what each update's answer was: the part of a run that makes updates happen exactly once.

Pure bookkeeping. A worker's join has an epoch, which fences the join before it. Sequences count from 1 in an epoch and
commit in order; the latest answers are kept, so that a retry gets the answer of the first try.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from stepwell_server.core.errors import (
    InvalidValue,
    LimitExceeded,
    RunReplaced,
    RunRewound,
    SequenceGap,
    SequenceReused,
    SequenceTooOld,
    UnknownWorker,
    WorkerFenced,
)

FINGERPRINT_BYTES = 16


class Outcome(Enum):
    COMMITTED = "committed"
    SKIPPED_NONFINITE = "skipped_nonfinite"
    DROPPED_LATE = "dropped_late"
    FOLDED = "folded"


@dataclass(frozen=True)
class Answer:
    """What became of an update.

    committed_version: the version that holds it; for one that was skipped, dropped or folded, the version that it
    found (what was folded is in the next). loss_scale: what to multiply the next loss by, where the run steers it.
    norms: of the gradients and of the parameters, each by p = 1, 2 and infinity, where the run reports them.
    """

    outcome: Outcome
    committed_version: int
    loss_scale: float | None = None
    norms: tuple[tuple[float, ...], ...] = ()

    def to_data(self) -> list[Any]:
        """Plain data, for a snapshot."""
        return [self.outcome.value, self.committed_version, self.loss_scale, [list(each) for each in self.norms]]

    @staticmethod
    def from_data(data: Sequence[Any]) -> "Answer":
        outcome, version, loss_scale, norms = data
        return Answer(
            Outcome(outcome),
            int(version),
            None if loss_scale is None else float(loss_scale),
            tuple(tuple(float(number) for number in each) for each in norms),
        )


@dataclass(frozen=True)
class Identity:
    """Who sends an update, and which one it is."""

    run: str
    uid: bytes
    generation: int
    worker: str
    epoch: int
    sequence: int
    fingerprint: bytes
    acknowledged_version: int


@dataclass(frozen=True)
class Membership:
    """A worker's place in a run. last_epoch, last_sequence: of the last update with an answer under its name."""

    uid: bytes
    generation: int
    epoch: int
    version: int
    last_epoch: int
    last_sequence: int


@dataclass
class Worker:
    """A worker's latest join. answers: by sequence, oldest first."""

    epoch: int
    last_sequence: int = 0
    answers: "OrderedDict[int, tuple[bytes, Answer]]" = field(default_factory=OrderedDict)


class Workers:
    """The workers of one run."""

    def __init__(self, run: str, uid: bytes, generation: int, answers_max: int, workers_max: int) -> None:
        self.run = run
        self.uid = uid
        self.generation = generation
        self.joined: dict[str, Worker] = {}
        self._answers_max = answers_max
        self._workers_max = workers_max
        # Epochs never repeat under a name, not even over generations.
        self._epochs: dict[str, int] = {}
        # Of each name the epoch and sequence of its last update with an answer: whoever joins again may be in doubt.
        self._last: dict[str, tuple[int, int]] = {}

    def join(self, name: str, version: int) -> Membership:
        """Give `name` a new epoch; an earlier join under it is fenced. Raises LimitExceeded."""
        before = self.joined.get(name)
        if before is None and len(self._epochs) >= self._workers_max and name not in self._epochs:
            raise LimitExceeded(
                f"run '{self.run}' has had {len(self._epochs)} workers, expected at most {self._workers_max}; reuse "
                "worker names or raise the limit",
                limit=self._workers_max,
            )
        epoch = self._epochs.get(name, 0) + 1
        self._epochs[name] = epoch
        self.joined[name] = Worker(epoch)
        return Membership(self.uid, self.generation, epoch, version, *self._last.get(name, (0, 0)))

    def recall(self, identity: Identity, version: int) -> Answer | None:
        """The stored answer if the update was made before, None if it is the worker's next.

        Raises RunReplaced, RunRewound, UnknownWorker, WorkerFenced, SequenceReused, SequenceTooOld or SequenceGap.
        """
        worker = self._admit(identity, version)
        sequence = identity.sequence
        if sequence == worker.last_sequence + 1:
            return None
        if sequence > worker.last_sequence:
            raise SequenceGap(
                f"run '{self.run}': worker '{identity.worker}' sent sequence {sequence}, expected "
                f"{worker.last_sequence + 1}; send updates in order",
                got=sequence,
                expected=worker.last_sequence + 1,
            )
        if sequence not in worker.answers:
            oldest = next(iter(worker.answers), worker.last_sequence + 1)
            raise SequenceTooOld(
                f"run '{self.run}': worker '{identity.worker}' sent sequence {sequence}, expected {oldest} or newer: "
                "older answers are not kept; the update was committed or refused long ago, do not send it again",
                got=sequence,
                expected=oldest,
            )
        fingerprint, answer = worker.answers[sequence]
        if fingerprint != identity.fingerprint:
            raise SequenceReused(
                f"run '{self.run}': worker '{identity.worker}' sent another update as sequence {sequence}, which is "
                f"committed; expected {worker.last_sequence + 1}; count each update once",
                got=sequence,
                expected=worker.last_sequence + 1,
            )
        return answer

    def record(self, identity: Identity, answer: Answer) -> None:
        """Remember the answer to the worker's next update, which `recall` has admitted."""
        worker = self.joined[identity.worker]
        assert identity.sequence == worker.last_sequence + 1
        worker.last_sequence = identity.sequence
        worker.answers[identity.sequence] = (identity.fingerprint, answer)
        self._last[identity.worker] = (identity.epoch, identity.sequence)
        while len(worker.answers) > self._answers_max:
            worker.answers.popitem(last=False)

    def settle(self, identity: Identity) -> None:
        """An update counts, but its worker goes before it has the answer; the name's next join is told so."""
        self._last[identity.worker] = (identity.epoch, identity.sequence)

    def fence(self, name: str) -> None:
        """Let `name` send no more until it joins again."""
        self.joined.pop(name, None)

    def check_epoch(self, name: str, epoch: int) -> None:
        """Raise UnknownWorker or WorkerFenced unless this is the worker's present epoch."""
        worker = self.joined.get(name)
        if worker is None:
            raise self.unknown(name)
        if epoch != worker.epoch:
            raise self._fenced(name, epoch, worker.epoch)

    def rewind(self, generation: int) -> None:
        """Enter a new generation: every worker must join again."""
        assert generation > self.generation
        self.generation = generation
        self.joined.clear()
        self._last.clear()

    def to_data(self) -> dict[str, Any]:
        """The bookkeeping as plain data, for a snapshot."""
        return {
            "epochs": dict(self._epochs),
            "last": {name: list(last) for name, last in self._last.items()},
            "joined": {
                name: {
                    "epoch": worker.epoch,
                    "last_sequence": worker.last_sequence,
                    "answers": [
                        [sequence, fingerprint.hex(), *answer.to_data()]
                        for sequence, (fingerprint, answer) in worker.answers.items()
                    ],
                }
                for name, worker in self.joined.items()
            },
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `to_data` gave."""
        self._epochs = {name: int(epoch) for name, epoch in data["epochs"].items()}
        self._last = {name: (int(epoch), int(sequence)) for name, (epoch, sequence) in data.get("last", {}).items()}
        self.joined = {
            name: Worker(
                int(worker["epoch"]),
                int(worker["last_sequence"]),
                OrderedDict(
                    (int(sequence), (bytes.fromhex(fingerprint), Answer.from_data(rest)))
                    for sequence, fingerprint, *rest in worker["answers"]
                ),
            )
            for name, worker in data["joined"].items()
        }

    def _admit(self, identity: Identity, version: int) -> Worker:
        if identity.uid != self.uid:
            raise RunReplaced(
                f"run '{self.run}' has another uid than worker '{identity.worker[:200]}' joined, expected the same: "
                "it was deleted and made anew; get it again and join",
            )
        if identity.generation != self.generation:
            raise RunRewound(
                f"run '{self.run}' went back to version {version}: this worker was told of version "
                f"{identity.acknowledged_version} in generation {identity.generation}, expected generation "
                f"{self.generation}; join again and go on from the present parameters",
                acknowledged_version=identity.acknowledged_version,
                version=version,
                generation=self.generation,
            )
        if len(identity.fingerprint) != FINGERPRINT_BYTES or identity.sequence < 1:
            raise InvalidValue(
                f"run '{self.run}': an update has sequence {identity.sequence} and a fingerprint of "
                f"{len(identity.fingerprint)} bytes, expected 1 or more and {FINGERPRINT_BYTES} random bytes; send both"
            )
        self.check_epoch(identity.worker, identity.epoch)
        return self.joined[identity.worker]

    def unknown(self, name: str) -> UnknownWorker:
        """What a worker is told that is not live."""
        return UnknownWorker(
            f"run '{self.run}' has no live worker '{name[:200]}', expected one that has joined, has not left, and "
            "whose lease has not run out; join again",
            got=name[:200],
        )

    def _fenced(self, name: str, epoch: int, expected: int) -> WorkerFenced:
        return WorkerFenced(
            f"run '{self.run}': worker '{name}' has epoch {epoch}, expected {expected}: "
            "a newer join under the same name has taken over; use another worker name, or stop the other one",
            got=epoch,
            expected=expected,
        )
