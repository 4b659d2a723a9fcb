import pytest

from stepwell_server.core.errors import InvalidSpec, InvalidValue, PolicyRefused, UnknownArgument, UnknownPolicy
from stepwell_server.core.policies import POLICIES, Commit, Contribution, Drop, parse_policy
from stepwell_server.core.workers import Outcome


def make(spec, version=0, workers=()):
    return parse_policy(spec, version, workers)


def contribution(key, worker="a", base_version=0):
    return Contribution(key, worker, base_version)


def all_of(commit, outcome=Outcome.COMMITTED):
    return {each.key: outcome for each in commit.contributions}


def keys(decisions):
    """Of one commit that was decided on."""
    (commit,) = decisions
    assert isinstance(commit, Commit)
    return [each.key for each in commit.contributions]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"name": "asynk"}, UnknownPolicy, "did you mean 'async'"),
        ({}, None, ""),
        ({"name": "async", "quorum": 2}, UnknownArgument, "quorum"),
        ({"name": "async", "staleness_max": -1}, InvalidValue, "staleness_max.*-1.*whole number in .0, 1e"),
        ({"name": "async", "staleness_max": 1.5}, InvalidValue, "whole number"),
        ({"name": "async", "damping": "root"}, InvalidValue, "one of none, inverse, inverse_root"),
        ({"name": "async", "delay_compensation": -0.1}, InvalidValue, "delay_compensation"),
        ({"name": "async", "delay_compensation": float("nan")}, InvalidValue, "delay_compensation"),
        ({"name": "async", "accumulate": 0}, InvalidValue, "accumulate"),
        ({"name": "async", "accumulate": 10**9}, InvalidValue, "accumulate"),
        ({"name": "async", "accumulate": None}, InvalidValue, "accumulate"),
        ({"name": "async", "workers_min": 0}, InvalidValue, "workers_min"),
        ({"name": "bounded", "workers_max": 0}, InvalidValue, "workers_max"),
        ({"name": "bounded", "workers_max": 1e300}, InvalidValue, "workers_max"),
        ({"name": "bounded", "lead_max": 0}, InvalidValue, "lead_max"),
        ({"name": "bounded", "workers_min": 3, "workers_max": 2}, InvalidSpec, "workers_min is 3 and workers_max 2"),
        ({"name": "sync", "quorum": 0}, InvalidValue, "quorum"),
        (
            {"name": "sync", "quorum": 5, "workers_max": 4},
            InvalidSpec,
            "quorum is 5 and workers_max 4, expected quorum",
        ),
        ({"name": "sync", "workers_min": 5, "workers_max": 4}, InvalidSpec, "workers_min is 5"),
        ({"name": "sync", "quorum": 4, "workers_max": 4, "workers_min": 4}, None, ""),
        ({"name": "sync", "late": "keep"}, InvalidValue, "one of drop, fold"),
        ({"name": "sync", "local_steps": 0}, InvalidValue, "local_steps"),
        ({"name": "sync", "local_steps": 500}, None, ""),
        ({"name": "sync", "deterministic": 1}, InvalidValue, "deterministic"),
    ],
)
def test_a_spec_is_taken_or_refused(spec, error, message):
    if error is None:
        assert make(spec).spec["name"] == spec.get("name", "async")
        return
    with pytest.raises(error, match=message):
        make(spec)


@pytest.mark.parametrize("name", POLICIES)
def test_a_spec_gives_itself_again(name):
    spec = make({"name": name, "accumulate": 3}).spec
    assert make(spec).spec == spec
    assert spec["accumulate"] == 3


def test_what_callers_ask_of_a_policy():
    assert make({"name": "async", "delay_compensation": 0.04, "staleness_max": 2}).needs_base
    assert not make({"name": "async"}).needs_base
    assert not make({"name": "sync"}).needs_base
    assert make({"name": "sync", "workers_max": 7}).workers_max == 7
    assert make({"name": "sync"}).workers_max is None
    assert [make({"name": name}).combines for name in ("async", "bounded", "sync")] == [False, False, True]
    assert [make({"name": "async", "accumulate": k}).accumulates for k in (1, 2)] == [False, True]
    assert make({"name": "bounded", "accumulate": 2}).combines
    assert [make({"name": "async", "damping": name}).damps for name in ("none", "inverse")] == [False, True]
    assert not make({"name": "bounded"}).damps


# Accumulation.


@pytest.mark.parametrize("name", POLICIES)
def test_of_k_commits_the_last_applies(name):
    policy = make({"name": name, "accumulate": 3}, workers=["a"])
    version, applied = 0, []
    for key in range(1, 8):
        (commit,) = policy.staged(contribution(key, base_version=version))
        assert isinstance(commit, Commit)
        version += commit.applies
        applied.append(commit.applies)
        outcome = Outcome.COMMITTED if commit.applies else Outcome.FOLDED
        assert policy.ended(commit, version, all_of(commit, outcome)) == []
    assert applied == [False, False, True, False, False, True, False]
    assert policy.accumulated == 1


@pytest.mark.parametrize("outcome", [None, Outcome.SKIPPED_NONFINITE])
@pytest.mark.parametrize("name", POLICIES)
def test_what_has_no_effect_is_not_counted(name, outcome):
    policy = make({"name": name, "accumulate": 2}, workers=["a"])

    def commit_one(key, outcome, version):
        (commit,) = policy.staged(contribution(key))
        policy.ended(commit, version, all_of(commit, outcome) if outcome else {})
        return commit.applies

    assert not commit_one(1, outcome, 0)
    assert not commit_one(2, Outcome.FOLDED, 0)
    # The second of the two fails; what was folded waits for another one.
    assert commit_one(3, outcome, 0)
    assert policy.accumulated == 1
    assert commit_one(4, Outcome.COMMITTED, 1)
    assert policy.accumulated == 0


def test_the_damping_of_a_version_is_the_mean_of_its_parts():
    policy = make({"name": "async", "accumulate": 3, "damping": "inverse"}, version=4, workers=["a", "b"])
    dampings = []
    for key, base in [(1, 4), (2, 3), (3, 1)]:
        (commit,) = policy.staged(contribution(key, base_version=base))
        dampings.append(commit.damping)
        policy.ended(commit, 5 if commit.applies else 4, all_of(commit))
    assert dampings == [1.0, 0.5, (1.0 + 0.5 + 0.25) / 3]


def test_an_accumulation_outlives_a_change_of_the_policy():
    before = make({"name": "async", "accumulate": 4}, workers=["a"])
    for key in (1, 2, 3):
        (commit,) = before.staged(contribution(key))
        before.ended(commit, 0, all_of(commit, Outcome.FOLDED))
    for accumulate, applies in [(5, False), (4, True), (2, True), (1, True)]:
        policy = make({"name": "sync", "accumulate": accumulate}, workers=["a"])
        assert policy.take_over(before) == []
        (commit,) = policy.staged(contribution(4))
        assert commit.applies is applies


def test_an_accumulation_outlives_a_restart():
    before = make({"name": "async", "accumulate": 2, "damping": "inverse"}, version=1, workers=["a"])
    (commit,) = before.staged(contribution(1, base_version=0))
    before.ended(commit, 1, all_of(commit, Outcome.FOLDED))
    policy = make(before.spec, version=1, workers=["a"])
    assert policy.restore(before.to_data()) == []
    (commit,) = policy.staged(contribution(2, base_version=1))
    assert (commit.applies, commit.damping) == (True, 0.75)


# Who is there.


@pytest.mark.parametrize("name", POLICIES)
def test_with_too_few_workers_what_is_staged_waits(name):
    policy = make({"name": name, "workers_min": 3}, workers=["a", "b"])
    assert policy.staged(contribution(1, "a")) == []
    assert policy.staged(contribution(2, "b")) == []
    assert [each.key for each in policy.waiting] == [1, 2]
    decisions = policy.joined("c")
    if name == "sync":
        assert decisions == []
        decisions = policy.staged(contribution(3, "c"))
        assert keys(decisions) == [1, 2, 3]
    else:
        assert keys(decisions) == [1]


@pytest.mark.parametrize("name", POLICIES)
def test_too_few_are_left_before_the_commit_begins(name):
    policy = make({"name": name, "workers_min": 2}, workers=["a", "b"])
    policy.staged(contribution(1, "a"))
    policy.staged(contribution(2, "b"))
    policy.left("b")
    assert policy.outstanding.contributions == ()
    assert [each.key for each in policy.waiting] == [1]
    assert policy.ended(policy.outstanding, 0, {}) == []
    policy.joined("c")
    decided = policy.outstanding
    assert keys([decided] if decided else policy.staged(contribution(3, "c"))) == ([1, 3] if name == "sync" else [1])


@pytest.mark.parametrize("name", POLICIES)
def test_one_commit_is_decided_on_at_a_time(name):
    policy = make({"name": name, "quorum": 1} if name == "sync" else {"name": name}, workers=["a", "b", "c"])
    (first,) = policy.staged(contribution(1, "c"))
    assert policy.staged(contribution(2, "b")) == []
    assert policy.staged(contribution(3, "a")) == []
    decisions = policy.ended(first, 0, {})
    # Of a round all that are there take part; others come one by one, as they came.
    assert keys(decisions) == ([3, 2] if name == "sync" else [2])


@pytest.mark.parametrize("name", POLICIES)
def test_a_join_under_a_live_name_takes_its_place_without_a_moment_between(name):
    policy = make({"name": name, "workers_min": 2}, workers=["a", "b"])
    if name == "sync":
        assert policy.staged(contribution(1, "b")) == []
        # Were `a` gone for a moment, `b` would be all of the live ones.
        assert policy.joined("a") == []
        assert [each.key for each in policy.waiting] == [1]
    else:
        policy.staged(contribution(1, "a"))
        policy.joined("a")
        assert policy.outstanding.contributions == ()
    assert list(policy.workers) == ["a", "b"]


# Changes.


def test_a_change_that_would_strand_somebody_is_refused():
    policy = make({"name": "sync"}, workers=["a", "b"])
    higher = make({"name": "async", "workers_min": 3})
    policy.check_change(higher, "r")  # nobody waits
    policy.staged(contribution(1, "a"))
    with pytest.raises(PolicyRefused, match=r"2 live workers, expected 3 or more.* 1 staged updates .*let 1 more join"):
        policy.check_change(higher, "r")
    with pytest.raises(PolicyRefused, match=r"2 live workers, expected at most 1.*let 1 of them leave"):
        policy.check_change(make({"name": "bounded", "workers_max": 1}), "r")
    policy.check_change(make({"name": "bounded", "workers_max": 2, "workers_min": 2}), "r")


def test_one_that_has_just_enough_workers_is_not_made_to_wait_for_more():
    policy = make({"name": "sync", "workers_min": 2}, workers=["a", "b"])
    policy.staged(contribution(1, "a"))
    with pytest.raises(PolicyRefused):
        policy.check_change(make({"name": "sync", "workers_min": 3}), "r")
    policy.check_change(make({"name": "sync", "workers_min": 2}), "r")


def test_too_few_may_be_made_fewer_while_they_wait():
    policy = make({"name": "async", "workers_min": 9}, workers=["a"])
    policy.staged(contribution(1, "a"))
    policy.check_change(make({"name": "async", "workers_min": 5}), "r")


def test_who_waits_is_handed_on():
    before = make({"name": "sync"}, version=3, workers=["a", "b", "c"])
    before.staged(contribution(1, "b", 3))
    before.staged(contribution(2, "a", 3))
    policy = make({"name": "async"}, version=3, workers=before.workers)
    (commit,) = policy.take_over(before)
    assert keys([commit]) == [1]
    assert keys(policy.ended(commit, 4, all_of(commit))) == [2]


def test_what_was_decided_on_before_a_change_goes_its_way():
    before = make({"name": "async"}, workers=["a", "b"])
    (commit,) = before.staged(contribution(1, "a"))
    before.staged(contribution(2, "b"))
    policy = make({"name": "sync"}, workers=before.workers)
    assert policy.take_over(before) == []
    assert policy.outstanding is commit
    # The other one is late for the round that begins with that commit's version.
    (late,) = policy.ended(commit, 1, all_of(commit))
    assert isinstance(late, Drop)
    assert late.contribution.key == 2


def test_one_that_is_put_back_after_a_change_meets_the_new_rules():
    before = make({"name": "async"}, version=5, workers=["a", "b", "c"])
    before.staged(contribution(1, "a", 4))
    policy = make({"name": "sync"}, version=5, workers=before.workers)
    policy.take_over(before)
    policy.left("c")  # with b, a round is not whole
    assert policy.outstanding.contributions == ()
    assert policy.ended(policy.outstanding, 5, {}) == [Drop(contribution(1, "a", 4))]
