"""Exactly once, against a model that keeps everything for ever."""

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

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
from stepwell_server.core.workers import Answer, Identity, Outcome, Workers

UID = b"u" * 16
ANSWERS_MAX = 4


def make(generation=0, workers_max=100):
    return Workers("r", UID, generation, ANSWERS_MAX, workers_max)


def identity(worker="a", epoch=1, sequence=1, fingerprint=b"f" * 16, generation=0, uid=UID):
    return Identity("r", uid, generation, worker, epoch, sequence, fingerprint, 0)


def committed(version):
    return Answer(Outcome.COMMITTED, version)


@dataclass
class Model:
    """All joins and all updates of all time; what should happen follows from them by looking it up."""

    generation: int = 0
    # Of each worker, the generation of every join, in order; the epoch is its place, counted from 1.
    joins: dict[str, list[int]] = field(default_factory=dict)
    # (worker, epoch) -> its updates in order.
    made: dict[tuple[str, int], list[tuple[bytes, Answer]]] = field(default_factory=dict)

    def join(self, worker):
        joins = self.joins.setdefault(worker, [])
        # Of this generation the last epoch in which something was made, and how much.
        last = (0, 0)
        for epoch, generation in enumerate(joins, 1):
            count = len(self.made.get((worker, epoch), []))
            if generation == self.generation and count:
                last = epoch, count
        joins.append(self.generation)
        return len(joins), *last

    def expect(self, update):
        """An error's class, a stored answer, or None for a new update."""
        if update.uid != UID:
            return RunReplaced
        if update.generation != self.generation:
            return RunRewound
        if len(update.fingerprint) != 16 or update.sequence < 1:
            return InvalidValue
        joins = self.joins.get(update.worker, [])
        if not joins or joins[-1] != self.generation:
            return UnknownWorker
        if update.epoch != len(joins):
            return WorkerFenced
        made = self.made.get((update.worker, update.epoch), [])
        if update.sequence > len(made) + 1:
            return SequenceGap
        if update.sequence == len(made) + 1:
            return None
        if update.sequence <= len(made) - ANSWERS_MAX:
            return SequenceTooOld
        fingerprint, answer = made[update.sequence - 1]
        return answer if fingerprint == update.fingerprint else SequenceReused


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_agree_with_the_model(seed):
    dice = random.Random(seed)
    workers, model, version = make(), Model(), 0
    seen: set[object] = set()
    for _ in range(400):
        name = dice.choice("abc")
        action = dice.random()
        if action < 0.04:
            membership = workers.join(name, version)
            assert (membership.uid, membership.generation, membership.version) == (UID, model.generation, version)
            assert (membership.epoch, membership.last_epoch, membership.last_sequence) == model.join(name)
        elif action < 0.05:
            model.generation += dice.choice([1, 1, 5])
            workers.rewind(model.generation)
        elif action < 0.10:
            data = json.loads(json.dumps(workers.to_data()))
            workers = make(model.generation)
            workers.restore(data)
            assert json.loads(json.dumps(workers.to_data())) == data
        else:
            epoch = max(1, len(model.joins.get(name, [])) - dice.choice([0] * 12 + [1, -1]))
            made = model.made.get((name, epoch), [])
            sequence = max(0, len(made) + 1 - dice.choice([0] * 10 + [-1, -7, 1, 1, 1, 2, 3, 4, 5, 6]))
            known = [fingerprint for fingerprint, _ in made[max(sequence - 1, 0) : sequence]]
            fresh = dice.randbytes(16)
            update = identity(
                name,
                epoch,
                sequence,
                dice.choice([*known * 3, fresh] if dice.random() < 0.95 else [fresh[:15], b"", fresh + b"x"]),
                model.generation - dice.choice([0] * 30 + [1, -1]),
                dice.choice([UID] * 30 + [b"v" * 16, b""]),
            )
            expected = model.expect(update)
            seen.add(type(expected) if isinstance(expected, Answer) else expected)
            if isinstance(expected, type):
                before = workers.to_data()
                with pytest.raises(expected):
                    workers.recall(update, version)
                assert workers.to_data() == before
                continue
            assert workers.recall(update, version) == expected
            assert workers.recall(update, version) == expected  # asking changes nothing
            if expected is None:
                outcome = dice.choice(list(Outcome))
                version += outcome is Outcome.COMMITTED
                answer = Answer(outcome, version)
                workers.record(update, answer)
                model.made.setdefault((name, epoch), []).append((update.fingerprint, answer))
                assert workers.recall(update, version) == answer
    assert {None, Answer} <= seen


def test_the_histories_reach_every_refusal():
    """Otherwise the test above would prove less than it seems to: one history, by hand, of each class."""
    workers = make(generation=3)
    workers.join("a", 0)
    workers.join("a", 0)
    for sequence in range(1, ANSWERS_MAX + 3):
        workers.record(identity(epoch=2, sequence=sequence), committed(sequence))
    next_one = identity(epoch=2, sequence=ANSWERS_MAX + 3, generation=3)
    assert workers.recall(next_one, 6) is None
    assert workers.recall(replace(next_one, sequence=3), 6) == committed(3)
    refusals: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"uid": b"x"}, RunReplaced, "'a' joined.* it was deleted and made anew"),
        ({"generation": 2}, RunRewound, "went back to version 6: .* version 0 in generation 2, expected generation 3"),
        ({"generation": 4}, RunRewound, "generation 4"),
        ({"fingerprint": b"short"}, InvalidValue, "fingerprint of 5 bytes, expected 1 or more and 16 random bytes"),
        ({"sequence": 0}, InvalidValue, "sequence 0"),
        ({"worker": "z"}, UnknownWorker, "no live worker 'z'.* join again"),
        ({"epoch": 1}, WorkerFenced, "epoch 1, expected 2: a newer join"),
        ({"epoch": 3}, WorkerFenced, "epoch 3, expected 2"),
        ({"sequence": 8}, SequenceGap, "sent sequence 8, expected 7; send updates in order"),
        ({"sequence": 2}, SequenceTooOld, "sent sequence 2, expected 3 or newer"),
        ({"sequence": 6, "fingerprint": b"g" * 16}, SequenceReused, "another update as sequence 6.*expected 7"),
    ]
    for change, error, message in refusals:
        with pytest.raises(error, match=message):
            workers.recall(replace(next_one, **change), 6)


def test_a_rewind_names_the_version_that_the_worker_was_told_of():
    workers = make()
    workers.join("a", 0)
    workers.rewind(1)
    with pytest.raises(RunRewound) as caught:
        workers.recall(replace(identity(), acknowledged_version=17), 12)
    assert caught.value.details == {"acknowledged_version": "17", "version": "12", "generation": "1"}


def test_an_answer_that_fell_out_may_be_the_only_one():
    workers = Workers("r", UID, 0, answers_max=1, workers_max=1)
    workers.join("a", 0)
    for sequence in (1, 2):
        workers.record(identity(sequence=sequence), committed(sequence))
    assert workers.recall(identity(sequence=2), 2) == committed(2)
    with pytest.raises(SequenceTooOld, match="expected 2 or newer"):
        workers.recall(identity(sequence=1), 2)


def test_the_number_of_names_is_limited_and_names_are_not_forgotten():
    workers = make(workers_max=2)
    workers.join("a", 0)
    workers.join("b", 0)
    with pytest.raises(LimitExceeded, match="has had 2 workers, expected at most 2; reuse worker names"):
        workers.join("c", 0)
    assert workers.join("a", 0).epoch == 2
    workers.rewind(1)
    assert workers.join("b", 0).epoch == 2
    with pytest.raises(LimitExceeded):
        workers.join("c", 0)


def test_a_join_says_which_update_under_the_name_was_answered_last():
    """However many joins lie between: a join whose answer was lost must not hide it."""
    workers = make()
    first = workers.join("a", 5)
    assert (first.last_epoch, first.last_sequence) == (0, 0)
    workers.record(identity(sequence=1), committed(6))
    for _ in range(3):
        again = workers.join("a", 6)
        assert (again.last_epoch, again.last_sequence) == (1, 1)
    workers.fence("a")
    assert "a" not in workers.joined
    again = workers.join("a", 6)
    assert (again.epoch, again.last_epoch, again.last_sequence) == (5, 1, 1)
