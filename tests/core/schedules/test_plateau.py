"""The schedule that follows a metric, against cases worked out by hand and a loop written from the catalogue."""

import math
import pickle
from random import Random
from typing import Any

import pytest

from stepwell_server.core.schedules import Schedule, preview
from stepwell_server.core.schedules.plateau import PlateauState, report, value


def run(metrics: list[float], initial: float = 1.0, **arguments: Any) -> list[float]:
    """The value after each report."""
    keywords = Schedule.parse({"name": "plateau", **arguments}).keywords
    state, values = PlateauState(), []
    for metric in metrics:
        state = report(keywords, state, metric, initial)
        values.append(value(state, initial))
    return values


def loop(metrics, initial, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps):
    """The row of the catalogue, one statement after the other."""
    lr, num_bad, cooling = initial, 0, 0
    best = math.inf if mode == "min" else -math.inf
    for a in metrics:
        match mode, threshold_mode:
            case "min", "rel":
                better = a < best * (1 - threshold)
            case "min", "abs":
                better = a < best - threshold
            case "max", "rel":
                better = a > best * (1 + threshold)
            case _:
                better = a > best + threshold
        if better:
            best, num_bad = a, 0
        else:
            num_bad += 1
        if cooling > 0:
            cooling -= 1
            num_bad = 0
        if num_bad > patience:
            lowered = max(lr * factor, min_lr)
            if lr - lowered > eps:
                lr = lowered
            cooling, num_bad = cooldown, 0
        yield lr


@pytest.mark.parametrize("seed", range(200))
def test_loop(seed: int) -> None:
    r = Random(seed)
    arguments = {
        "mode": r.choice(["min", "max"]),
        "factor": r.uniform(0, 0.99),
        "patience": r.randint(0, 5),
        "threshold": r.choice([0, r.uniform(0, 0.2)]),
        "threshold_mode": r.choice(["rel", "abs"]),
        "cooldown": r.randint(0, 4),
        "min_lr": r.choice([0, r.uniform(0, 0.5)]),
        "eps": r.choice([0, 1e-8, 0.05]),
    }
    initial = r.uniform(0.1, 1)
    metrics = [
        r.choice([r.gauss(0.5, 1), 0.5, math.nan, math.inf, -math.inf][: r.choice([2, 2, 5])]) for _ in range(300)
    ]
    assert run(metrics, initial, **arguments) == list(loop(metrics, initial, **arguments))


def test_more_than_patience_reports_lower_the_value() -> None:
    assert run([1.0] * 7, patience=2, factor=0.5) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_an_improvement_begins_the_count_again() -> None:
    assert run([1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5], patience=2, factor=0.5) == [1, 1, 1, 1, 1, 1, 0.5]


def test_the_next_reports_count_as_good_while_it_cools_down() -> None:
    assert run([1.0] * 7, patience=0, factor=0.5, cooldown=2) == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_the_threshold_is_a_share_or_a_difference() -> None:
    metrics = [10.0, 9.5, 8.9]
    assert run(metrics, patience=0, factor=0.5, threshold=0.1) == [1, 0.5, 0.5]
    assert run(metrics, patience=0, factor=0.5, threshold=0.4, threshold_mode="abs") == [1, 1, 1]
    assert run(metrics, patience=0, factor=0.5, threshold=0.55, threshold_mode="abs") == [1, 0.5, 0.5]
    assert run([10.0, 10.5, 12.0], patience=0, factor=0.5, threshold=0.1, mode="max") == [1, 0.5, 0.5]


def test_it_stops_at_min_lr_and_where_the_change_is_too_small() -> None:
    assert run([1.0] * 4, patience=0, factor=0.5, min_lr=0.4) == [1, 0.5, 0.4, 0.4]
    assert run([1.0] * 4, patience=0, factor=0.5, eps=0.3) == [1, 0.5, 0.5, 0.5]


def test_a_metric_that_is_nan_is_not_better() -> None:
    assert run([math.nan, 1.0, math.nan, 0.5], patience=1, factor=0.5) == [1, 1, 1, 1]
    assert run([math.nan] * 2, patience=1, factor=0.5) == [1, 0.5]


def test_the_value_is_the_initial_one_until_a_report() -> None:
    schedule = Schedule.parse({"name": "plateau"})
    assert preview(schedule, 0.3, 3).tolist() == [0.3] * 3
    assert value(PlateauState(), 0.3) == 0.3
    # From the first report on, the state has a value of its own.
    assert value(report(schedule.keywords, PlateauState(), 1.0, 0.3), 0.7) == 0.3


def test_states_are_values() -> None:
    keywords = Schedule.parse({"name": "plateau", "patience": 0}).keywords
    state = report(keywords, PlateauState(), 1.0, 0.3)
    assert pickle.loads(pickle.dumps(state)) == state
    assert report(keywords, state, 2.0, 0.3) == report(keywords, state, 2.0, 0.3) != state
    assert state == PlateauState(best=1.0, bad_count=0, cooldown_count=0, value=0.3)
