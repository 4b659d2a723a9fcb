"""Policies, leases, barriers and exactly-once under random histories. A failure names the seed that repeats it."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest

from stepwell_server.core.barriers import Barriers
from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.policies import Asynchronous, Bounded, Policy, Synchronous
from stepwell_server.core.workers import Workers
from tests.simulator.checker import Violation
from tests.simulator.simulation import BAD, CALM, Faults, Simulation

POLICIES: list[dict[str, Any]] = [
    {"name": "async"},
    {"name": "async", "staleness_max": 2, "workers_min": 2},
    {"name": "async", "accumulate": 3, "damping": "inverse", "workers_max": 4},
    {"name": "bounded", "lead_max": 1},
    {"name": "bounded", "lead_max": 3, "accumulate": 2, "workers_min": 2},
    {"name": "sync"},
    {"name": "sync", "deterministic": False, "workers_max": 5},
    {"name": "sync", "accumulate": 3},
    {"name": "sync", "quorum": 2, "late": "fold"},
    {"name": "sync", "quorum": 2, "accumulate": 2},
    {"name": "sync", "workers_min": 3},
]
SEEDS = 6
EVENTS = 1200


def simulate(seed, spec, events, changes=False):
    """A history with some number of workers, under some faults; then everything works, and it must go on.

    changes: whether the policy is changed again and again.
    """
    choose = random.Random(seed)
    workers = choose.choice([1, 2, 3, 4, 7, 20])
    faults = choose.choice([CALM, Faults(), BAD])
    folds_early = choose.random() < 0.5
    simulation = Simulation(
        seed,
        spec,
        workers,
        Faults(**{**vars(faults), "policy_changes": 0.05 if changes else 0.0}),
        policies=POLICIES if changes else [],
        folds_early=folds_early,
        # A quorum must fit into memory, or it waits for those that come first in order.
        staged_max=choose.choice([1, 3]) if folds_early and "quorum" not in spec and not changes else None,
        # Whoever waits at a barrier contributes nothing: that others wait for its contribution is a user's mistake.
        barrier_every=choose.choice([None, 3]) if spec["name"] == "async" and not changes else None,
    )
    simulation.run(events)
    simulation.check_told()
    living = simulation.calm_down()
    # The leases of the dead must run out first.
    simulation.run(300 * workers)
    before = simulation.server.version
    simulation.run(300 * workers)
    simulation.check_told()
    server = simulation.server
    if server.version <= before and living >= server.checker.number("workers_min", server.coordinator.policy):
        raise Violation(f"nothing was committed in {300 * workers} events although nothing fails (seed {seed}, {spec})")
    return simulation


@pytest.mark.parametrize("spec", POLICIES, ids=lambda spec: " ".join(map(str, spec.values())))
def test_random_histories_keep_every_promise(spec):
    for seed in range(SEEDS):
        simulate(seed, spec, EVENTS)


def test_so_do_histories_in_which_the_policy_changes():
    for seed in range(3 * SEEDS):
        simulate(seed, POLICIES[seed % len(POLICIES)], EVENTS, changes=True)


MANY = Faults(crash=0.0005, freeze=0.0005, jump=0, killed=0, work_seconds=0.001, pause_seconds=2)
# Of a thousand workers one in each round is late by a lease, then.
MANY_IN_ORDER = Faults(**{**vars(CALM), "doubled": 0.05, "work_seconds": 0.001})


@pytest.mark.parametrize(
    ("spec", "workers", "faults", "staged_max"),
    [
        ({"name": "async", "accumulate": 10, "damping": "inverse_root"}, 2000, MANY, None),
        ({"name": "bounded", "lead_max": 2}, 1000, MANY, None),
        ({"name": "sync", "quorum": 700, "late": "fold"}, 1000, MANY, None),
        ({"name": "sync"}, 1000, MANY_IN_ORDER, 100),
    ],
    ids=["async", "bounded", "quorum", "in order"],
)
def test_so_do_thousands_of_workers(spec, workers, faults, staged_max):
    simulation = Simulation(0, spec, workers, faults, folds_early=staged_max is not None, staged_max=staged_max)
    simulation.run(60_000 if staged_max else 20_000)
    simulation.check_told()
    assert simulation.server.version > 0


@pytest.mark.long
@pytest.mark.parametrize("changes", [False, True], ids=["", "changing"])
@pytest.mark.parametrize("spec", POLICIES, ids=lambda spec: " ".join(map(str, spec.values())))
def test_a_million_events_keep_every_promise(spec, changes):
    events = 0
    for seed in itertools.count(1000):
        events += simulate(seed, spec, 20_000, changes).events_count
        if events > 500_000 // len(POLICIES):
            return


def test_the_histories_reach_what_they_are_about(monkeypatch):
    """Otherwise the tests above would prove less than they seem to."""
    seen: Counter[str] = Counter()

    def watch(owner, name, see):
        original = getattr(owner, name)

        def watched(self, *arguments):
            result = original(self, *arguments)
            seen.update(see(self, result, *arguments))
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(Coordinator, "end", lambda self, _, commit, answers, version: _kinds(commit, answers))
    watch(Coordinator, "begin", lambda self, commit, decision: ["came to nothing"] if not commit.contributions else [])
    watch(Coordinator, "recall", lambda self, answer, *_: ["repeated"] if answer else [])
    watch(Coordinator, "drop", lambda self, *_: ["late"])
    watch(Coordinator, "restore", lambda self, *_: ["accumulated over a restart"] if self.policy.accumulated else [])
    watch(Coordinator, "change_policy", lambda self, *_: ["changed"])
    watch(Workers, "settle", lambda self, *_: ["gone and counts"])
    watch(Barriers, "arrive", lambda self, releases, *_: ["released"] if releases else [])
    watch(Barriers, "gone", lambda self, releases, *_: ["released by the dead"] if releases else [])
    for seed, spec in itertools.product(range(3), POLICIES):
        simulate(seed, spec, EVENTS)
        simulate(seed, spec, EVENTS, changes=True)
    for what in (
        "applied",
        "folded",
        "failed",
        "folded early",
        "settled",
        "partly folded before",
        "skipped",
        "came to nothing",
        "repeated",
        "late",
        "accumulated over a restart",
        "changed",
        "gone and counts",
        "released",
        "released by the dead",
    ):
        assert seen[what] > 2, (what, seen)


def _kinds(commit, answers):
    if not answers:
        return ["failed"] if commit.contributions else []
    kinds = ["skipped"] if any(answer.outcome.value == "skipped_nonfinite" for answer in answers.values()) else []
    if not commit.answers:
        return [*kinds, "folded early"]
    if commit.folded == len(commit.contributions) and not commit.applies:
        return [*kinds, "settled"]
    return [*kinds, "applied" if commit.applies else "folded", *(["partly folded before"] if commit.folded else [])]


# Bugs that somebody might make: where, and what is there instead.


def begin_without_fence(self, commit):
    """Commits what was decided on, whoever has gone since."""
    self._begun = commit if commit is not self.policy.outstanding else self.policy.outstanding
    self.policy._outstanding = self._begun
    return self._begun


def record_nothing(self, contribution, answer):
    """Forgets what it has committed, so that a retry counts twice."""
    self._take(contribution.key)
    self.tally(contribution.worker).count(answer.outcome, self.policy.staleness(contribution))


def expire_nobody(self, now):
    """Waits for the dead for ever."""
    return []


def expire_by_a_clock_set_back(self, now):
    """A clock that was set back makes leases endless."""
    if self._begun is not None:
        return []
    return self._gone([name for name, lease in self._leases.items() if lease.deadline <= now])


def count_failed_folds(original):
    def ended(self, commit, version, outcomes):
        decisions = original(self, commit, version, outcomes)
        if commit.answers and commit.contributions and not outcomes and not commit.applies:
            self.accumulated += 1
        return decisions

    return ended


def forget_the_count(original):
    """A restart begins to count anew, with something in the accumulator."""
    return lambda self, data: original(self, data | {"accumulated": 0})


def keep_the_count(original):
    """A rewind goes on counting what it has dropped."""

    def rewind(self, generation, version):
        accumulated = self.policy.accumulated
        original(self, generation, version)
        self.policy.accumulated = accumulated

    return rewind


def quorum_less_one(original):
    return lambda self, name: original(self, name) and original(self, name) - (name == "quorum")


def whole_only_with_one_more(original):
    return lambda self, contributors: original(self, contributors[1:])


def commit_late_ones_twice(original):
    """What comes late for a round is folded into the next, and stays."""

    def decide(self):
        late = [each for each in self._waiting.values() if self.staleness(each)]
        decisions = original(self)
        if decisions and self.values.get("late") == "fold":
            self._waiting |= {each.worker: each for each in late}
        return decisions

    return decide


def wait_for_the_dead(self, workers, live):
    """A barrier counts those whose leases have run out."""
    return []


def open_for_one_less(original):
    return lambda self, barrier, live: original(self, barrier, list(live)[1:] or live)


def forget_who_waits(original):
    """A change of the policy begins with nothing."""

    def take_over(self, before):
        before._waiting = {}
        return original(self, before)

    return take_over


def let_the_furthest_go(original):
    """A lead of one too many."""

    def together(self):
        self.values["lead_max"] += 1
        chosen = original(self)
        self.values["lead_max"] -= 1
        return chosen

    return together


def tell_nobody(self, identity):
    """Who was fenced after it was folded is not told, and sends again."""
    self._last.pop(identity.worker, None)


def refuse_one_too_late(original):
    """A bound on staleness that is off by one."""

    def refusal(self, contribution):
        found = original(self, contribution)
        return None if found and found.staleness == found.staleness_max + 1 else found

    return refusal


def no_limit_to_joins(self):
    return


def keep_late_ones(self, contribution):
    """Nothing is late."""
    return


def fold_in_any_order(self):
    return list(self._waiting.values())


def commit_before_its_time(original):
    """workers_min does not matter."""

    def decide(self):
        fewest, self.values["workers_min"] = self.values["workers_min"], 1.0
        decisions = original(self)
        self.values["workers_min"] = fewest
        return decisions

    return decide


PLANTED: list[tuple[type, str, Any]] = [
    (Coordinator, "begin", begin_without_fence),
    (Coordinator, "_record", record_nothing),
    (Coordinator, "expire", expire_nobody),
    (Coordinator, "expire", expire_by_a_clock_set_back),
    (Policy, "ended", count_failed_folds),
    (Policy, "restore", forget_the_count),
    (Coordinator, "rewind", keep_the_count),
    (Policy, "_optional_integer", quorum_less_one),
    (Synchronous, "_whole", whole_only_with_one_more),
    (Policy, "_decide", commit_late_ones_twice),
    (Barriers, "gone", wait_for_the_dead),
    (Barriers, "_open", open_for_one_less),
    (Policy, "take_over", forget_who_waits),
    (Bounded, "_together", let_the_furthest_go),
    (Workers, "settle", tell_nobody),
    (Asynchronous, "_refusal", refuse_one_too_late),
    (Policy, "workers_max", property(no_limit_to_joins)),
    (Synchronous, "_refusal", keep_late_ones),
    (Synchronous, "_first", fold_in_any_order),
    (Policy, "_decide", commit_before_its_time),
]


@pytest.mark.parametrize(
    ("owner", "name", "planted"), PLANTED, ids=[getattr(each[2], "fget", each[2]).__name__ for each in PLANTED]
)
def test_a_planted_bug_is_found(owner, name, planted, monkeypatch):
    """Within the budget above."""
    wraps = not isinstance(planted, property) and planted.__code__.co_varnames[:1] == ("original",)
    monkeypatch.setattr(owner, name, planted(getattr(owner, name)) if wraps else planted)

    def search():
        for seed, spec in itertools.product(range(SEEDS), POLICIES):
            simulate(seed, spec, EVENTS)
            simulate(seed, spec, EVENTS, changes=True)

    with pytest.raises(Violation):
        search()
