import pytest

from stepwell_server.core.policies import Contribution, parse_policy
from stepwell_server.core.workers import Outcome


def make(spec, version=0, workers=()):
    return parse_policy(spec, version, workers)


class Driver:
    """Stages updates one after another, and ends each commit at once."""

    def __init__(self, spec, workers):
        self.policy = make({"name": "bounded"} | spec, workers=workers)
        self.version = self.key = 0
        self.made = []

    def stage(self, worker, outcome=Outcome.COMMITTED):
        self.key += 1
        self.carry_out(self.policy.staged(Contribution(self.key, worker, self.version)), outcome)

    def carry_out(self, decisions, outcome=Outcome.COMMITTED):
        while decisions:
            (commit,) = decisions
            self.version += outcome is Outcome.COMMITTED and commit.applies
            self.made += [each.worker for each in commit.contributions]
            outcomes = {each.key: outcome for each in commit.contributions} if outcome else {}
            decisions = self.policy.ended(commit, self.version, outcomes)


def test_nobody_is_further_ahead_than_the_bound():
    run = Driver({"lead_max": 2}, ["a", "b"])
    for _ in range(3):
        run.stage("a")
    assert run.made == ["a", "a"]
    assert run.policy.position("a") == 1
    assert run.policy.position("b") == 0
    run.stage("b")
    assert run.made == ["a", "a", "b", "a"]
    assert run.policy.lead("a") == 2


def test_the_slowest_that_goes_holds_up_nobody():
    run = Driver({"lead_max": 1}, ["a", "b", "c"])
    for worker in "abab":
        run.stage(worker)
    assert run.made == ["a", "b"]
    run.carry_out(run.policy.left("c"))
    assert run.made == ["a", "b", "a", "b"]


def test_a_newcomer_begins_where_the_slowest_is():
    run = Driver({"lead_max": 2}, ["a", "b"])
    for worker in "abab":
        run.stage(worker)
    run.carry_out(run.policy.joined("c"))
    assert run.policy.steps == {"a": 2, "b": 2, "c": 2}


def test_one_that_comes_back_begins_there_too():
    run = Driver({"lead_max": 2}, ["a", "b", "c"])
    for worker in "aabb":
        run.stage(worker)
    run.carry_out(run.policy.joined("a"))
    assert run.policy.steps == {"b": 2, "c": 0, "a": 0}
    run.carry_out(run.policy.joined("c"))
    run.carry_out(run.policy.left("a"))
    run.carry_out(run.policy.joined("c"))
    assert run.policy.steps == {"b": 2, "c": 2}


@pytest.mark.parametrize(("outcome", "steps"), [(Outcome.SKIPPED_NONFINITE, 1), (Outcome.FOLDED, 1), (None, 0)])
def test_what_is_answered_is_a_step_and_what_fails_is_none(outcome, steps):
    run = Driver({"accumulate": 10}, ["a", "b"])
    run.stage("a", outcome)
    assert run.policy.steps == {"a": steps, "b": 0}


def test_steps_outlive_a_restart_and_a_change_of_the_bound():
    run = Driver({"lead_max": 3}, ["a", "b"])
    run.stage("a")
    run.stage("a")
    again = make(run.policy.spec, run.version, ["a", "b"])
    again.restore(run.policy.to_data())
    lower = make({"name": "bounded", "lead_max": 1}, run.version, ["a", "b"])
    lower.take_over(again)
    assert lower.steps == {"a": 2, "b": 0}
    assert lower.staged(Contribution(9, "a", run.version)) == []
