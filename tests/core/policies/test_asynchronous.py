import math

import pytest

from stepwell_server.core.policies import Commit, Contribution, Refuse, parse_policy
from stepwell_server.core.workers import Outcome


def make(version=0, workers=("a",), **spec):
    return parse_policy({"name": "async"} | spec, version, workers)


@pytest.mark.parametrize(("base", "staleness"), [(10, 0), (9, 1), (8, 2), (11, 0)])
def test_what_is_staler_than_the_bound_is_refused(base, staleness):
    policy = make(10, staleness_max=1)
    update = Contribution(1, "a", base)
    (decision,) = policy.staged(update)
    assert decision == (Commit((update,)) if staleness <= 1 else Refuse(update, staleness, 1))
    assert policy.waiting == []


def test_one_that_grows_too_stale_while_it_waits_is_refused_then():
    policy = make(workers=["a", "b"], staleness_max=0)
    (commit,) = policy.staged(Contribution(1, "a", 0))
    late = Contribution(2, "b", 0)
    assert policy.staged(late) == []
    assert policy.ended(commit, 1, {1: Outcome.COMMITTED}) == [Refuse(late, 1, 0)]


@pytest.mark.parametrize(("damping", "expected"), [("none", 1), ("inverse", 1 / 4), ("inverse_root", 1 / 2)])
def test_damping_is_a_function_of_staleness(damping, expected):
    policy = make(7, damping=damping)
    (commit,) = policy.staged(Contribution(1, "a", 4))
    assert isinstance(commit, Commit)
    assert math.isclose(commit.damping, expected, rel_tol=1e-15)
