import json

import pytest

from stepwell_server.core.barriers import Release
from stepwell_server.core.coordinator import Coordinator, Place
from stepwell_server.core.errors import (
    InvalidValue,
    LimitExceeded,
    MalformedRequest,
    PolicyRefused,
    UnknownPolicy,
    UnknownWorker,
    WorkerFenced,
)
from stepwell_server.core.policies import Commit, Drop, parse_policy
from stepwell_server.core.workers import Answer, Identity, Outcome, Workers

UID = b"u" * 16
LEASE = 10.0


class Run:
    """A run with its workers, of which each sends one update after another."""

    def __init__(self, spec, workers="", folds_early=False):
        self.coordinator = Coordinator(Workers("r", UID, 0, 4, 100), parse_policy(spec), folds_early)
        self.version = 0
        self.sequences = {}
        self.epochs = {}
        for worker in workers:
            self.join(worker)

    def join(self, worker, now=0.0):
        membership, decisions = self.coordinator.join(worker, self.version, now, LEASE)
        self.epochs[worker], self.sequences[worker] = membership.epoch, 0
        return membership, decisions

    def identity(self, worker, sequence=None):
        sequence = self.sequences[worker] + 1 if sequence is None else sequence
        generation = self.coordinator.workers.generation
        return Identity("r", UID, generation, worker, self.epochs[worker], sequence, b"f" * 16, 0)

    def stage(self, worker, base_version=None):
        base = self.version if base_version is None else base_version
        return self.coordinator.stage(self.identity(worker), self.version, base, 1.0)[1]

    def make(self, decision, fails=False):
        """Carry a commit out; what it was, and what follows."""
        commit = self.coordinator.begin(decision)
        if fails or not commit.contributions:
            return commit, self.coordinator.end(commit, None, self.version)
        self.version += commit.applies
        if commit.answers:
            for each in commit.contributions:
                self.sequences[each.worker] += 1
        answer = Answer(Outcome.COMMITTED if commit.applies else Outcome.FOLDED, self.version)
        return commit, self.coordinator.end(commit, answer, self.version)


def names(commit):
    return "".join(each.worker for each in commit.contributions)


# Leases.


def test_a_lease_that_is_not_renewed_runs_out():
    run = Run({"name": "async"}, "ab")
    assert run.coordinator.next_expiry() == 10
    run.coordinator.renew("a", 1, 6.0)
    assert run.coordinator.expire(9.9) == []
    assert list(run.coordinator.live) == ["a", "b"]
    run.coordinator.expire(10.0)
    assert list(run.coordinator.live) == ["a"]
    assert run.coordinator.next_expiry() == 16
    with pytest.raises(UnknownWorker, match="no live worker 'b'"):
        run.coordinator.renew("b", 1, 11.0)
    with pytest.raises(UnknownWorker):
        run.stage("b")
    membership, _ = run.join("b", 12.0)
    assert membership.epoch == 2
    with pytest.raises(WorkerFenced, match="epoch 1, expected 2"):
        run.coordinator.renew("b", 1, 12.0)


def test_several_leases_that_run_out_together_do_so_at_once():
    """Otherwise a round could be made of those that are about to be fenced, and a barrier open for them."""
    run = Run({"name": "sync"}, "abc")
    run.stage("a")
    run.stage("b")
    assert run.coordinator.barrier("x", "a", 1, 1) == run.coordinator.barrier("x", "b", 1, 1) == []
    assert run.coordinator.expire(20.0) == []


def test_a_clock_that_was_set_back_makes_no_lease_longer():
    run = Run({"name": "async"})
    run.join("a", now=1000.0)
    run.coordinator.expire(0.0)
    assert run.coordinator.next_expiry() == LEASE
    run.coordinator.renew("a", 1, 5.0)
    assert run.coordinator.next_expiry() == 15
    run.coordinator.expire(15.0)
    assert not run.coordinator.live


def test_an_older_time_does_not_shorten_a_lease():
    run = Run({"name": "async"})
    run.join("a", now=5.0)
    run.coordinator.renew("a", 1, 4.0)
    assert run.coordinator.next_expiry() == 15


def test_nobody_is_fenced_during_a_commit():
    run = Run({"name": "async"}, "a")
    (decision,) = run.stage("a")
    commit = run.coordinator.begin(decision)
    assert run.coordinator.expire(1e9) == []
    run.coordinator.end(commit, Answer(Outcome.COMMITTED, 1), 1)
    assert run.coordinator.workers.recall(run.identity("a"), 1) == Answer(Outcome.COMMITTED, 1)
    run.coordinator.expire(1e9)
    assert not run.coordinator.live


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_lease_has_a_length(seconds):
    run = Run({"name": "async"})
    with pytest.raises(InvalidValue, match="expected a positive finite number"):
        run.coordinator.join("a", 0, 0.0, seconds)
    assert not run.coordinator.live


# Membership.


def test_no_more_than_workers_max_join_but_any_may_come_back():
    run = Run({"name": "async", "workers_max": 2}, "ab")
    before = run.coordinator.to_data(), run.coordinator.workers.to_data()
    with pytest.raises(LimitExceeded, match=r"2 live workers, expected at most 2, .*join when one has left"):
        run.join("c")
    assert (run.coordinator.to_data(), run.coordinator.workers.to_data()) == before
    assert run.join("b")[0].epoch == 2
    run.coordinator.leave("a", 1)
    run.join("c")


def test_places_follow_the_order_of_joins():
    run = Run({"name": "async"}, "cab")
    place = run.coordinator.place
    number = place("c").membership_number
    assert [place(worker) for worker in "cab"] == [Place(index, 3, number) for index in range(3)]
    run.join("a")  # it keeps its place, but it is another process
    assert place("a") == Place(1, 3, number + 1)
    run.coordinator.leave("c", 1)
    assert [place(worker) for worker in "ab"] == [Place(0, 2, number + 2), Place(1, 2, number + 2)]
    run.join("c")
    assert place("c") == Place(2, 3, number + 3)


# Updates.


def test_an_update_waits_once_and_is_answered_to_its_retry():
    run = Run({"name": "sync"}, "ab")
    identity = run.identity("a")
    assert run.coordinator.pending(identity) is None
    assert run.stage("a") == []
    assert run.coordinator.pending(identity) == 1
    assert run.coordinator.is_pending(1)
    with pytest.raises(MalformedRequest, match="has an update that waits"):
        run.stage("a")
    (decision,) = run.stage("b")
    commit, _ = run.make(decision)
    assert names(commit) == "ab"
    assert run.coordinator.pending(identity) is None
    assert run.coordinator.recall(identity, 1) == Answer(Outcome.COMMITTED, 1)
    with pytest.raises(MalformedRequest, match="has an answer"):
        run.coordinator.stage(identity, 1, 0, 1.0)
    assert run.coordinator.tally("a").duplicates == 2


def test_what_a_fenced_worker_had_staged_has_no_effect():
    run = Run({"name": "sync"}, "ab")
    run.stage("a")
    (decision,) = run.stage("b")
    run.coordinator.leave("a", 1)
    commit, _ = run.make(decision)
    assert names(commit) == "b"
    assert run.coordinator.tally("a").withdrawn == 1
    assert run.join("a")[0].last_sequence == 0


def test_what_it_had_staged_goes_with_a_join_under_its_name_too():
    run = Run({"name": "async"}, "ab")
    (decision,) = run.stage("a")
    old = run.identity("a")
    run.join("a")
    assert run.coordinator.pending(old) is None
    assert run.coordinator.tally("a").withdrawn == 1
    commit, _ = run.make(decision)
    assert commit.contributions == ()
    (decision,) = run.stage("a")
    assert names(run.make(decision)[0]) == "a"


def test_only_the_present_epoch_leaves():
    run = Run({"name": "async"}, "a")
    run.join("a")
    with pytest.raises(WorkerFenced):
        run.coordinator.leave("a", 1)
    assert list(run.coordinator.live) == ["a"]


def test_a_commit_of_which_nobody_is_left_ends_without_effect():
    run = Run({"name": "async"}, "ab")
    (decision,) = run.stage("a")
    run.stage("b")
    assert run.coordinator.leave("a", 1) == []
    commit, (next_one,) = run.make(decision)
    assert commit.contributions == ()
    assert names(run.make(next_one)[0]) == "b"


def test_a_failed_commit_may_be_sent_again():
    run = Run({"name": "async", "accumulate": 2}, "a")
    (decision,) = run.stage("a")
    run.make(decision, fails=True)
    assert run.coordinator.policy.accumulated == 0
    (decision,) = run.stage("a")
    assert not run.make(decision)[0].applies
    assert run.coordinator.workers.recall(run.identity("a", 1), 0) == Answer(Outcome.FOLDED, 0)
    (decision,) = run.stage("a")
    assert run.make(decision)[0].applies
    assert run.coordinator.tally("a").refused == 1


def test_each_of_a_round_may_have_an_answer_of_its_own():
    run = Run({"name": "sync"}, "abc")
    run.stage("a")
    run.stage("b")
    (decision,) = run.stage("c")
    commit = run.coordinator.begin(decision)
    one, two, _ = (each.key for each in commit.contributions)
    answers = {one: Answer(Outcome.COMMITTED, 1, norms=((1.0,),)), two: Answer(Outcome.SKIPPED_NONFINITE, 1)}
    run.coordinator.end(commit, answers, 1)
    recall = run.coordinator.workers.recall
    assert [recall(run.identity(worker), 1) for worker in "abc"] == [*answers.values(), None]
    tallies = [run.coordinator.tally(worker) for worker in "abc"]
    assert [(each.commits, each.skipped, each.refused) for each in tallies] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_a_late_update_has_an_answer_and_no_effect():
    run = Run({"name": "sync", "quorum": 1}, "ab")
    (decision,) = run.stage("a")
    run.make(decision)
    (drop,) = run.stage("b", base_version=0)
    assert isinstance(drop, Drop)
    answer = Answer(Outcome.DROPPED_LATE, 1)
    run.coordinator.drop(drop.contribution, answer)
    assert run.coordinator.workers.recall(run.identity("b"), 1) == answer
    run.coordinator.drop(drop.contribution, answer)  # its worker has gone, say
    assert run.coordinator.tally("b").dropped == 1


def test_an_update_of_the_future_is_as_old_as_the_run():
    run = Run({"name": "async", "damping": "inverse"}, "a")
    (commit,) = run.stage("a", base_version=99)
    assert (commit.contributions[0].base_version, commit.damping) == (0, 1.0)


# Folding early.


def test_a_worker_that_goes_after_it_was_folded_is_told_that_it_counts():
    run = Run({"name": "sync"}, "ab", folds_early=True)
    (folding,) = run.stage("a")
    run.make(folding)
    identity = run.identity("a")
    assert run.coordinator.pending(identity) is not None  # no answer yet
    run.coordinator.leave("a", 1)
    membership, _ = run.join("a")
    assert (membership.last_epoch, membership.last_sequence) == (1, 1)
    (decision,) = run.stage("b")
    commit, _ = run.make(decision)
    assert (names(commit), commit.folded) == ("ab", 1)
    assert run.coordinator.tally("a").commits == 1
    # The answer is not put down to the new epoch.
    assert run.coordinator.workers.recall(run.identity("a", 1), 1) is None


def test_if_its_round_fails_what_is_folded_is_answered_by_a_further_decision():
    run = Run({"name": "sync"}, "ab", folds_early=True)
    (folding,) = run.stage("a")
    run.make(folding)
    (decision,) = run.stage("b")
    _, (settling,) = run.make(decision, fails=True)
    commit, decisions = run.make(settling)
    assert (names(commit), commit.folded, commit.applies, decisions) == ("a", 1, False, [])
    assert run.coordinator.workers.recall(run.identity("a", 1), 0) == Answer(Outcome.FOLDED, 0)
    assert run.coordinator.workers.recall(run.identity("b", 1), 0) is None


def test_the_next_in_order_comes_first():
    run = Run({"name": "sync"}, "cab", folds_early=True)
    assert [run.coordinator.position(worker) for worker in "abc"] == [0, 1, 2]
    (folding,) = run.stage("a")
    run.make(folding)
    assert [run.coordinator.position(worker) for worker in "bc"] == [0, 1]


# The run.


def test_a_change_of_the_policy_hands_on_who_waits():
    run = Run({"name": "sync"}, "ab")
    run.stage("a")
    (decision,) = run.coordinator.change_policy({"name": "async"})
    assert names(run.make(decision)[0]) == "a"
    assert run.coordinator.policy.spec["name"] == "async"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"name": "none"}, UnknownPolicy),
        ({"name": "async", "accumulate": -1}, InvalidValue),
        ({"name": "async", "workers_min": 3}, PolicyRefused),
        ({"name": "async", "workers_max": 1}, PolicyRefused),
    ],
)
def test_a_change_that_is_refused_changes_nothing(spec, error):
    run = Run({"name": "sync"}, "ab")
    run.stage("a")
    before = run.coordinator.policy, run.coordinator.to_data()
    with pytest.raises(error):
        run.coordinator.change_policy(spec)
    assert (run.coordinator.policy, run.coordinator.to_data()) == before
    (decision,) = run.stage("b")
    assert names(run.make(decision)[0]) == "ab"


def test_a_rewind_drops_what_was_accumulated_and_what_was_decided():
    run = Run({"name": "async", "accumulate": 2}, "ab", folds_early=True)
    (decision,) = run.stage("a")
    _, _ = run.make(decision)
    (stale,) = run.stage("a")
    run.stage("b")
    run.coordinator.barrier("x", "a", 1, 1)
    number = run.coordinator.membership_number
    after = run.coordinator.to_data_after_rewind()
    run.coordinator.rewind(1, 0)
    assert json.loads(json.dumps(run.coordinator.to_data()))["policy"] == after["policy"]
    assert run.coordinator.membership_number > number
    assert (run.coordinator.workers.generation, run.coordinator.barriers.waiting()) == (1, {})
    assert (run.coordinator.policy.accumulated, list(run.coordinator.live), list(run.coordinator.waiting())) == (
        0,
        [],
        [],
    )
    assert [run.coordinator.tally(worker).withdrawn for worker in "ab"] == [1, 1]
    # What the caller had not forgotten has no effect, also if something is decided meanwhile.
    run.join("a")
    commit = run.coordinator.begin(stale)
    assert commit.contributions == ()
    (fresh,) = run.stage("a")
    assert run.coordinator.end(commit, None, 0) == []
    assert names(run.make(fresh)[0]) == "a"
    assert run.coordinator.policy.folds_early


def test_a_clean_restart_goes_on_where_it_was():
    run = Run({"name": "sync", "accumulate": 2}, "bac", folds_early=True)
    run.coordinator.change_policy({"name": "sync", "accumulate": 3})
    run.stage("c")
    run.stage("b")
    (folding,) = run.stage("a")
    commit, _ = run.make(folding)
    assert names(commit) == "abc"
    (folding,) = run.stage("a")
    run.make(folding)
    for worker in "bac":
        run.coordinator.barrier("x", worker, 1, 1)
    run.stage("c")
    data = json.loads(json.dumps([run.coordinator.workers.to_data(), run.coordinator.to_data()], sort_keys=True))

    again = Run({"name": "async"}, folds_early=True)
    again.epochs, again.sequences = run.epochs, run.sequences
    again.coordinator.workers.restore(data[0])
    assert again.coordinator.restore(data[1], 0, 50.0, LEASE) == []
    assert again.coordinator.policy.spec["accumulate"] == 3
    assert again.coordinator.policy.folds_early
    assert again.coordinator.next_expiry() == 60
    assert [again.coordinator.place(worker) for worker in "bac"] == [
        Place(index, 3, again.coordinator.membership_number) for index in range(3)
    ]
    assert again.coordinator.membership_number > run.coordinator.membership_number
    assert again.coordinator.tallies["a"] == run.coordinator.tallies["a"]
    assert again.coordinator.barrier("x", "a", 1, 1) == [Release("x", ("a",))]
    # What is in the accumulator waits for its answer; what only waited is sent again.
    assert again.coordinator.pending(again.identity("a")) is not None
    assert again.coordinator.pending(again.identity("c")) is None
    again.stage("c")
    (decision,) = again.stage("b")
    assert len({each.key for each in decision.contributions}) == 3
    commit, _ = again.make(decision)
    assert (names(commit), commit.folded, commit.applies) == ("abc", 1, False)
    assert again.coordinator.policy.accumulated == 2


def test_a_barrier_opens_when_the_last_one_that_is_missing_goes():
    run = Run({"name": "async"}, "abc")
    assert run.coordinator.barrier("x", "a", 1, 1) == []
    run.coordinator.renew("a", 1, 5.0)
    run.coordinator.renew("b", 1, 5.0)
    assert run.coordinator.barrier("x", "b", 1, 1) == []
    assert run.coordinator.expire(12.0) == [Release("x", ("a", "b"))]
    with pytest.raises(UnknownWorker):
        run.coordinator.barrier("x", "c", 1, 1)


def test_a_worker_that_joins_again_has_not_arrived():
    run = Run({"name": "async"}, "ab")
    run.coordinator.barrier("x", "a", 1, 1)
    run.join("a")
    assert run.coordinator.barrier("x", "b", 1, 1) == []
    with pytest.raises(WorkerFenced):
        run.coordinator.barrier("x", "a", 1, 1)
    assert run.coordinator.barrier("x", "a", 2, 1) == [Release("x", ("b", "a"))]


def test_decisions_are_plain_data():
    run = Run({"name": "async"}, "a")
    (decision,) = run.stage("a")
    assert decision == Commit(decision.contributions)
