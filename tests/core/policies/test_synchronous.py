import itertools
import random

import pytest

from stepwell_server.core.policies import Commit, Contribution, Drop, parse_policy
from stepwell_server.core.workers import Outcome

WORKERS = ["c", "a", "b"]


def make(version=0, workers=WORKERS, early=False, **spec):
    policy = parse_policy({"name": "sync"} | spec, version, workers)
    policy.folds_early = early
    return policy


def update(worker, base_version=0, key=None):
    return Contribution(ord(worker) if key is None else key, worker, base_version)


def stage(policy, *workers):
    return [decision for worker in workers for decision in policy.staged(update(worker, policy.version))]


def names(commit):
    return "".join(each.worker for each in commit.contributions)


def end(policy, commit, version, outcome=Outcome.COMMITTED):
    return policy.ended(commit, version, {each.key: outcome for each in commit.contributions})


@pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
@pytest.mark.parametrize("early", [False, True])
def test_a_round_is_folded_in_the_order_of_names_however_they_came(order, early):
    policy = make(early=early)
    folded = ""
    for worker in order:
        decisions = stage(policy, worker)
        while decisions:
            (commit,) = decisions
            folded += names(commit)[commit.folded :]
            assert commit.answers == (len(policy.waiting) == 0 and set(folded) == set("abc"))
            decisions = end(
                policy, commit, int(commit.applies), Outcome.COMMITTED if commit.applies else Outcome.FOLDED
            )
    assert folded == "abc"
    assert policy.version == 1


def test_without_determinism_in_the_order_in_which_they_came():
    (commit,) = stage(make(deterministic=False), *"bca")
    assert names(commit) == "bca"


@pytest.mark.parametrize(("quorum", "after"), [(None, 3), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_a_round_ends_with_the_quorum_or_all_that_live(quorum, after):
    policy = make(quorum=quorum)
    for count, worker in enumerate("bca", 1):
        decisions = stage(policy, worker)
        assert bool(decisions) == (count == after)
        if decisions:
            return


def test_a_round_goes_on_without_the_dead():
    policy = make()
    stage(policy, "a", "b")
    (commit,) = policy.left("c")
    assert names(commit) == "ab"


def test_a_quorum_that_is_lost_before_the_commit_begins_is_waited_for_again():
    policy = make(quorum=2, workers="abcd")
    stage(policy, "a", "b")
    policy.left("b")
    assert policy.outstanding.contributions == ()
    assert policy.ended(policy.outstanding, 0, {}) == []
    (commit,) = stage(policy, "d")
    assert names(commit) == "ad"


def test_a_newcomer_belongs_to_the_next_round_once_one_is_decided_on():
    policy = make()
    (commit,) = stage(policy, *"abc")
    assert policy.joined("d") == []
    assert policy.outstanding is commit


def test_what_is_late_is_dropped_also_where_it_came_during_the_commit():
    policy = make(quorum=2)
    (commit,) = stage(policy, "a", "b")
    assert stage(policy, "c") == []
    assert end(policy, commit, 1) == [Drop(update("c"))]
    assert policy.staged(update("c")) == [Drop(update("c"))]


def test_what_is_late_is_folded_into_the_next_round_once():
    policy = make(quorum=2, late="fold")
    (commit,) = stage(policy, "a", "b")
    assert stage(policy, "c") == []
    assert end(policy, commit, 1) == []
    (commit,) = stage(policy, "a")
    assert names(commit) == "ac"
    assert end(policy, commit, 2) == []
    assert policy.waiting == []


def test_between_accumulated_rounds_nothing_is_late():
    policy = make(quorum=2, accumulate=2)
    (first,) = stage(policy, "a", "b")
    assert not first.applies
    stage(policy, "c")
    assert end(policy, first, 0, Outcome.FOLDED) == []
    (second,) = stage(policy, "b")
    assert (names(second), second.applies) == ("bc", True)


# Folding early.


def fold_early(policy, worker):
    """The commit that folds a worker's update before its round is whole."""
    (commit,) = stage(policy, worker)
    assert (commit.applies, commit.answers) == (False, False)
    return end(policy, commit, policy.version, Outcome.FOLDED)


def test_only_what_nobody_missing_comes_before_is_folded_early():
    policy = make(early=True)
    assert stage(policy, "b") == []
    assert [policy.position(worker) for worker in "abc"] == [0, 1, 1]
    (commit,) = stage(policy, "a")
    assert names(commit) == "ab"
    assert end(policy, commit, 0, Outcome.FOLDED) == []
    assert policy.position("c") == 0
    (commit,) = stage(policy, "c")
    assert commit == Commit((update("a"), update("b"), update("c")), folded=2)
    assert end(policy, commit, 1) == []
    assert policy.early == {}


def test_the_order_is_that_of_those_who_live():
    policy = make(workers="abcd", early=True)
    assert stage(policy, "b") == []
    (folding,) = policy.left("a")
    assert names(folding) == "b"
    end(policy, folding, 0, Outcome.FOLDED)
    policy.joined("bb")
    assert policy.staged(update("c")) == []
    (folding,) = policy.staged(update("bb", key=1))
    assert [each.worker for each in folding.contributions] == ["bb", "c"]


def test_without_an_order_everybody_is_the_next():
    policy = make(early=True, deterministic=False)
    assert [policy.position(worker) for worker in "abc"] == [0, 0, 0]
    fold_early(policy, "c")
    fold_early(policy, "a")
    (commit,) = stage(policy, "b")
    assert (names(commit), commit.folded) == ("cab", 2)


def test_what_is_folded_early_counts_though_its_worker_goes():
    policy = make(early=True)
    fold_early(policy, "a")
    policy.left("a")
    (commit,) = stage(policy, "b", "c")[-1:]
    assert (names(policy.outstanding), policy.outstanding.answers) == ("b", False)
    (commit,) = policy.ended(policy.outstanding, 0, {ord("b"): Outcome.FOLDED})
    assert (names(commit), commit.folded) == ("abc", 2)


def test_a_worker_that_comes_back_is_not_in_one_round_twice():
    policy = make(early=True)
    fold_early(policy, "a")
    policy.joined("a")
    assert policy.staged(update("a", key=7)) == []
    assert policy.position("a") == 1
    stage(policy, "b")
    end(policy, policy.outstanding, 0, Outcome.FOLDED)
    (commit,) = stage(policy, "c")
    assert [each.key for each in commit.contributions] == [ord("a"), ord("b"), ord("c")]
    # It was taken before the round that it was in.
    assert end(policy, commit, 1) == [Drop(update("a", key=7))]


def test_if_its_commit_fails_what_is_folded_is_answered_so():
    policy = make(early=True)
    fold_early(policy, "a")
    fold_early(policy, "b")
    (commit,) = stage(policy, "c")
    (settling,) = policy.ended(commit, 0, {})
    assert settling == Commit((update("a"), update("b")), applies=False, folded=2)
    assert end(policy, settling, 0, Outcome.FOLDED) == []
    assert (policy.early, policy.accumulated) == ({}, 0)
    # The accumulator has them; the next version has them, too.
    (again,) = stage(policy, "c", "b", "a")[-1:]
    assert again.applies


def test_so_it_is_after_a_restart_that_came_between():
    before = make(early=True)
    fold_early(before, "a")
    fold_early(before, "b")
    (commit,) = stage(before, "c")
    before.ended(commit, 0, {})
    policy = make(early=True)
    (settling,) = policy.restore(before.to_data())
    assert settling == before.outstanding


def test_a_round_that_is_put_back_keeps_what_is_folded():
    policy = make(early=True, workers_min=3)
    fold_early(policy, "a")
    stage(policy, "b")
    end(policy, policy.outstanding, 0, Outcome.FOLDED)
    stage(policy, "c")
    policy.left("b")
    assert policy.outstanding == Commit(())
    assert policy.ended(policy.outstanding, 0, {}) == []
    assert set(policy.early) == {"a", "b"}
    (folding,) = policy.joined("d")
    assert names(folding) == "c"
    end(policy, folding, 0, Outcome.FOLDED)
    (commit,) = stage(policy, "d")
    assert (names(commit), commit.folded) == ("abcd", 3)


def test_a_round_of_which_all_is_folded_ends_when_the_last_one_leaves():
    policy = make(early=True)
    fold_early(policy, "a")
    fold_early(policy, "b")
    (commit,) = policy.left("c")
    assert (names(commit), commit.folded, commit.applies) == ("ab", 2, True)


def test_what_was_skipped_early_has_had_its_turn():
    policy = make(early=True)
    (commit,) = stage(policy, "a")
    assert end(policy, commit, 0, Outcome.SKIPPED_NONFINITE) == []
    stage(policy, "b")
    end(policy, policy.outstanding, 0, Outcome.FOLDED)
    (commit,) = stage(policy, "c")
    assert (names(commit), commit.folded) == ("abc", 2)


@pytest.mark.parametrize("name", ["async", "bounded"])
def test_a_policy_without_rounds_answers_what_was_folded_early(name):
    before = make(early=True)
    fold_early(before, "a")
    policy = make(name=name)
    (settling,) = policy.take_over(before)
    assert settling == Commit((update("a"),), applies=False, folded=1)
    assert end(policy, settling, 0, Outcome.FOLDED) == []
    (commit,) = policy.staged(update("b"))
    assert (names(commit), commit.folded, commit.applies) == ("b", 0, True)


def test_so_does_one_that_takes_over_during_the_folding():
    before = make(early=True)
    (folding,) = stage(before, "a")
    policy = parse_policy({"name": "async"}, workers=WORKERS)
    assert policy.take_over(before) == []
    (settling,) = end(policy, folding, 0, Outcome.FOLDED)
    assert settling == Commit((update("a"),), applies=False, folded=1)


def test_what_was_folded_early_outlives_a_restart():
    before = make(early=True)
    fold_early(before, "a")
    policy = make(early=True)
    assert policy.restore(before.to_data()) == []
    assert policy.early == {"a": update("a")}
    (folding,) = stage(policy, "b")
    assert names(folding) == "b"


@pytest.mark.parametrize("seed", range(40))
def test_whose_turn_is_next_agrees_with_the_positions_after_every_event(seed):
    choices = random.Random(seed)
    everybody = "abcdefg"
    policy = make(
        workers=choices.sample(everybody, 3),
        early=choices.random() < 0.7,
        accumulate=choices.choice([1, 1, 3]),
        quorum=choices.choice([None, 3]),
        workers_min=choices.choice([1, 2]),
    )
    keys = itertools.count(1)
    seen = set()
    for _ in range(200):
        commit, live, waiting = policy.outstanding, list(policy.workers), {each.worker for each in policy.waiting}
        event = choices.choices(["stage", "end", "join", "leave"], [6, 4, 1, 1])[0]
        if event == "stage" and (free := sorted(set(live) - waiting)):
            policy.staged(update(choices.choice(free), policy.version, next(keys)))
        elif event == "end" and commit is not None:
            fails = choices.random() < 0.1
            made = Outcome.COMMITTED if commit.applies else Outcome.FOLDED
            applied = commit.applies and commit.contributions and not fails
            outcomes = {each.key: made for each in commit.contributions[commit.folded if fails else 0 :] if not fails}
            policy.ended(commit, policy.version + bool(applied), outcomes)
        elif event == "join":
            policy.joined(choices.choice(everybody))
        elif event == "leave" and len(live) > 1:
            policy.left(choices.choice(live))
        for worker in everybody:
            assert policy.is_next(worker) == (policy.position(worker) == 0), (event, worker)
            seen.add(policy.is_next(worker))
    assert seen == {True, False}
