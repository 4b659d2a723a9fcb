"""Policies, leases and exactly-once under random histories. A failure names the seed that repeats it."""

import itertools
import random

import pytest

from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.policies import parse_policy
from tests.simulator.simulation import CALM, Faults, Simulation, Violation

POLICIES = [
    {"name": "async"},
    {"name": "async", "staleness_max": 2},
    {"name": "bounded", "lead_max": 1},
    {"name": "bounded", "lead_max": 3},
    {"name": "sync"},
    {"name": "sync", "deterministic": False},
    {"name": "sync", "quorum": 2},
    {"name": "sync", "quorum": 2, "late": "fold"},
    {"name": "sync", "workers_min": 3},
]
BAD = Faults(lost=0.2, doubled=0.2, crash=0.05, freeze=0.05, jump=0.05, commit_fails=0.05)


def simulate(seed, spec, events, coordinator=Coordinator):
    """A history with some number of workers, under some faults; then everything works, and it must go on."""
    choose = random.Random(seed)
    workers = choose.choice([1, 2, 3, 4, 7, 20])
    faults = choose.choice([CALM, Faults(), BAD])
    simulation = Simulation(seed, parse_policy(spec), workers, faults, coordinator)
    simulation.run(events)
    simulation.check_acknowledged()
    living = simulation.calm_down()
    # The leases of the dead must run out first.
    simulation.run(400 * workers)
    before = simulation.version
    simulation.run(400 * workers)
    simulation.check_acknowledged()
    if simulation.version <= before and living >= spec.get("workers_min", 1):
        raise Violation(f"nothing was committed in {400 * workers} events although nothing fails (seed {seed}, {spec})")
    return simulation


@pytest.mark.parametrize("spec", POLICIES, ids=lambda spec: " ".join(map(str, spec.values())))
def test_random_histories_keep_every_promise(spec):
    for seed in range(40):
        simulate(seed, spec, 1500)


@pytest.mark.long
@pytest.mark.parametrize("spec", POLICIES, ids=lambda spec: " ".join(map(str, spec.values())))
def test_a_million_events_keep_every_promise(spec):
    events = 0
    for seed in itertools.count(1000):
        events += simulate(seed, spec, 20_000).events_count
        if events > 1_000_000 // len(POLICIES):
            return


class WithoutFence(Coordinator):
    """Commits what was decided on, whoever has gone since."""

    def begin(self, commit):
        return commit


class WithoutAnswers(Coordinator):
    """Forgets what it has committed, so that a retry counts twice."""

    def end(self, commit, answer, version):
        for contribution in commit.contributions:
            self._pending.pop(contribution.key, None)
        return self.policy.ended(commit, version)


class WithoutLeases(Coordinator):
    """Waits for the dead for ever."""

    def expire(self, now):
        return []


@pytest.mark.parametrize("planted", [WithoutFence, WithoutAnswers, WithoutLeases], ids=lambda kind: kind.__name__)
def test_a_planted_bug_is_found(planted):
    """Within the same budget as above."""

    def search():
        for spec, seed in itertools.product(POLICIES, range(40)):
            simulate(seed, spec, 1500, planted)

    with pytest.raises(Violation):
        search()
