"""Hyperparameters and schedules over a run's life: which value each commit uses."""

import json

import numpy as np
import pytest

from stepwell_server.core.errors import ChangeRefused, InvalidSpec, InvalidValue, UnknownArgument, UnknownSchedule
from stepwell_server.core.settings import Moment, make_settings, settings_from_data
from tests.core.local import LocalRun

START = Moment(0, 0.0, None)


def at(updates, samples=0.0, samples_per_epoch=None):
    return Moment(updates, samples, samples_per_epoch)


def table(*values, **more):
    return {"name": "table", "values": list(values), **more}


HALVED = {"name": "exponential", "gamma": 0.5}


class Rates:
    """A run of plain SGD on one number with gradient 1: what a step takes off is the learning rate of its commit."""

    def __init__(self, device, lr=1.0, schedule=None, **spec):
        schedules = {} if schedule is None else {"lr": schedule}
        self.local = LocalRun(
            {"w": np.zeros(())}, device=device, hyperparameters={"lr": lr}, schedules=schedules, **spec
        )

    def step(self, gradient=1.0, **more):
        before = self.local.parameters()["w"]
        return float(before - self.local.step({"w": np.array(gradient)}, **more)["w"])

    def steps(self, count, **more):
        return [self.step(**more) for _ in range(count)]

    def change(self, hyperparameters=None, schedules=None, removed=(), keep_clock=False):
        run = self.local.run
        run.set_settings(run.change("", hyperparameters or {}, schedules or {}, list(removed), keep_clock, ""))


# The clock.


def test_updates_count_commits_from_zero(device):
    assert Rates(device, schedule=table(1, 2, 4)).steps(5) == [1, 2, 4, 4, 4]
    assert Rates(device, schedule=HALVED, lr=8.0).steps(4) == [8, 4, 2, 1]


def test_samples_are_those_of_the_commits_before(device):
    rates = Rates(device, schedule=table(1, 2, 4, 8, 16, clock="samples"))
    assert [rates.step(samples=count) for count in (2.0, 0.0, 1.5, 0.25, 0.25)] == [1, 4, 4, 8, 8]
    assert rates.step() == 16


def test_epochs_are_samples_over_samples_per_epoch(device):
    rates = Rates(device, schedule=table(1, 2, 4, clock="epochs"), samples_per_epoch=4.0)
    assert rates.steps(6, samples=2.0) == [1, 1, 2, 2, 4, 4]
    fractional = Rates(device, lr=16.0, schedule=HALVED | {"clock": "epochs"}, samples_per_epoch=0.5)
    assert [fractional.step(samples=0.25), fractional.step()] == pytest.approx([16.0, 16.0 * 0.5**0.5])


def test_a_skipped_update_does_not_move_a_clock(device):
    for clock in ("updates", "samples"):
        rates = Rates(device, schedule=table(1, 2, 4, clock=clock), nonfinite="skip")
        assert rates.step(samples=1.0) == 1
        assert rates.step(np.nan, samples=1.0) == 0
        assert rates.step(samples=1.0) == 2


def test_the_step_of_a_bias_correction_is_no_clock(device):
    """A parameter that had no gradient is corrected for its own first step, at the run's present learning rate."""
    local = LocalRun({"a": np.zeros(()), "b": np.zeros(())}, "adam", device=device, schedules={"lr": table(1, 2, 4)})
    one = np.array(1.0)
    local.step({"a": one, "b": None})
    local.step({"a": one, "b": None})
    after = local.step({"a": one, "b": one})
    np.testing.assert_allclose(after["b"], -4.0, rtol=1e-7)
    np.testing.assert_allclose(after["a"], -7.0, rtol=1e-7)


# Changes.


def test_a_change_takes_effect_with_the_next_commit(device):
    rates = Rates(device)
    assert rates.step() == 1
    rates.change({"lr": 3.0})
    assert rates.steps(2) == [3, 3]


def test_a_value_under_a_schedule_changes_the_start_and_the_clock_runs_on(device):
    rates = Rates(device, lr=8.0, schedule=HALVED)
    assert rates.steps(2) == [8, 4]
    rates.change({"lr": 32.0})
    assert rates.steps(2) == [8, 4]


def test_a_value_under_an_absolute_schedule_is_kept_for_later(device):
    rates = Rates(device, schedule=table(1, 2, 4))
    rates.change({"lr": 32.0})
    assert rates.steps(2) == [1, 2]
    rates.change(removed=["lr"])
    assert rates.step() == 32


@pytest.mark.parametrize(
    ("before", "keep_clock", "expected"),
    [
        (None, False, [1, 2, 4]),
        (None, True, [8, 16, 32]),
        (HALVED, False, [1, 2, 4]),
        (HALVED, True, [8, 16, 32]),
        (HALVED | {"clock": "samples"}, False, [1, 2, 4]),
        (HALVED | {"clock": "samples"}, True, [8, 16, 32]),
    ],
)
def test_a_new_schedule_counts_from_zero_unless_it_keeps_the_clock(device, before, keep_clock, expected):
    rates = Rates(device, schedule=before)
    rates.steps(3, samples=10.0)
    rates.change(schedules={"lr": table(1, 2, 4, 8, 16, 32, 64)}, keep_clock=keep_clock)
    assert rates.steps(3) == expected


def test_a_schedule_in_place_of_another_keeps_that_one_s_clock(device):
    rates = Rates(device)
    rates.steps(2, samples=1.0)
    rates.change(schedules={"lr": HALVED})
    rates.steps(3, samples=1.0)
    rates.change(schedules={"lr": table(1, 2, 4, 8, 16)}, keep_clock=True)
    assert rates.step() == 8  # 3 updates since the first schedule was set
    rates.change(schedules={"lr": table(1, 2, 4, 8, 16, 32, 64, clock="samples")}, keep_clock=True)
    assert rates.step(samples=1.0) == 32  # another clock counts from the run's start
    rates.change(schedules={"lr": table(1, 2, 4, 8, 16, clock="samples")})
    assert rates.steps(2, samples=2.0) == [1, 4]


def test_removal_brings_the_value_back(device):
    rates = Rates(device, lr=8.0, schedule=HALVED)
    rates.steps(3)
    rates.change({"lr": 5.0}, removed=["lr"])
    assert rates.steps(2) == [5, 5]
    rates.change(removed=["lr"])  # nothing there any more
    assert rates.step() == 5


def test_a_change_makes_new_settings_and_leaves_the_old_ones():
    before = make_settings("sgd", None, {"lr": 8.0}, {"lr": HALVED}, START)
    after = before.changed(at(3), {"lr": 1.0, "weight_decay": 0.5}, {}, removed=["lr"])
    assert before.at(at(3))["lr"] == 1.0
    assert (before.own["lr"], before.own["weight_decay"], list(before.schedules)) == (8.0, 0.0, ["lr"])
    assert after.at(at(3)) == {**before.own, "lr": 1.0, "weight_decay": 0.5}


REFUSED_CHANGES = [
    ("sgd", {}, {}, {"momentum": 0.9}, {}, ()),
    ("sgd", {"momentum": 0.9}, {}, {"momentum": 0.0}, {}, ()),
    ("sgd", {}, {}, {}, {"momentum": table(0.0)}, ()),
    ("sgd", {}, {"momentum": table(0.5)}, {}, {}, ("momentum",)),
    ("adam", {}, {}, {"amsgrad": True}, {}, ()),
    ("rmsprop", {"centered": True}, {}, {"centered": False}, {}, ()),
]


@pytest.mark.parametrize(("name", "given", "schedules", "change", "new", "removed"), REFUSED_CHANGES)
def test_a_change_that_adds_or_removes_a_slot_is_refused(name, given, schedules, change, new, removed):
    before = make_settings(name, "torch", given, schedules, START)
    with pytest.raises(ChangeRefused, match=f"optimizer '{name}': .* change only what keeps them: lr, "):
        before.changed(at(1), change, new, removed)


@pytest.mark.parametrize(
    ("name", "given", "schedules", "change", "new", "removed"),
    [
        ("sgd", {"momentum": 0.9}, {}, {"momentum": 0.5, "dampening": 0.1}, {}, ()),
        ("sgd", {"momentum": 0.9}, {}, {"nesterov": True, "maximize": True, "weight_decay": 0.1}, {}, ()),
        ("sgd", {"momentum": 0.9}, {}, {"momentum": 0.0}, {"momentum": table(0.5)}, ()),
        ("sgd", {}, {"momentum": table(0.5)}, {"momentum": 0.9}, {}, ("momentum",)),
        ("adam", {"amsgrad": True}, {}, {"amsgrad_corrected": True, "bias_correction": False}, {}, ()),
    ],
)
def test_a_change_that_keeps_the_slots_is_made(name, given, schedules, change, new, removed):
    before = make_settings(name, "torch", given, schedules, START)
    after = before.changed(at(1), change, new, removed)
    assert after.program.slots == before.program.slots
    assert {key: after.own[key] for key in change} == change


@pytest.mark.parametrize(
    ("change", "new", "removed", "error", "message"),
    [
        ({"lr": -1.0}, {}, (), InvalidValue, "'lr' is -1.0"),
        ({"learning_rate": 1.0}, {}, (), UnknownArgument, "'learning_rate' is not known"),
        ({"nesterov": True}, {}, (), InvalidSpec, "nesterov needs momentum"),
        ({}, {"lr": {"name": "stepp"}}, (), UnknownSchedule, "did you mean 'step'"),
        ({}, {"lr": table(-1.0)}, (), InvalidValue, "schedule 'table' of 'sgd' at 0: argument 'lr' is -1.0"),
        ({}, {"nesterov": table(1.0)}, (), InvalidSpec, "'nesterov' is a flag, expected a number for a schedule"),
        ({}, {"momentun": table(1.0)}, (), UnknownArgument, "did you mean 'momentum'"),
        ({}, {"lr": table(1.0, clock="epochs")}, (), InvalidSpec, "no samples_per_epoch"),
        ({}, {}, ("momentun",), UnknownArgument, "did you mean 'momentum'"),
    ],
)
def test_what_is_wrong_with_a_change_is_said(change, new, removed, error, message):
    before = make_settings("sgd", None, {}, {}, START)
    with pytest.raises(error, match=message):
        before.changed(at(1), change, new, removed)


# Values out of range.


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (table(1, -2, 4), r"schedule 'table' of 'sgd' at 1: argument 'lr' is -2.0, expected .* in \[0, inf\)"),
        ({"name": "exponential", "gamma": 1.7e308}, "is not finite"),
    ],
)
def test_a_scheduled_value_out_of_range_refuses_the_commit_and_leaves_the_state_alone(device, schedule, message):
    rates = Rates(device, lr=2.0, schedule=schedule)
    first = rates.step()
    staged = rates.local.stage({"w": np.array(1.0)}, samples=3.0)
    with pytest.raises(InvalidValue, match=message):
        rates.local.commit(staged)
    run = rates.local.run
    assert (run.version, run.samples, run.groups[0].steps.tolist()) == (1, 0.0, [1])
    assert float(rates.local.parameters()["w"]) == -first
    rates.change(removed=["lr"])
    assert rates.step() == 2


def test_a_schedule_that_is_out_of_range_from_the_start_is_refused():
    with pytest.raises(InvalidValue, match=r"'momentum' is -1.0"):
        make_settings("sgd", None, {}, {"momentum": table(-1.0)}, START)
    with pytest.raises(InvalidValue, match=r"'beta1' is 1.0"):
        make_settings("adam", None, {}, {"beta1": table(1.0)}, START)


# Aliases and what is required.


def test_betas_is_an_alias():
    settings = make_settings("adam", None, {"betas": [0.5, 0.25], "lr": 1.0}, {}, START)
    assert (settings.own["beta1"], settings.own["beta2"]) == (0.5, 0.25)
    changed = settings.changed(at(1), {"betas": (0.75,)}, {})
    assert (changed.own["beta1"], changed.own["beta2"]) == (0.75, 0.25)
    assert "betas" not in changed.own


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"betas": [0.9], "beta1": 0.9}, InvalidSpec, "'beta1' is given twice"),
        ({"betas": 0.9}, InvalidSpec, "'betas' is 0.9, expected a list"),
        ({"betas": None}, InvalidSpec, "'betas' is None, expected a list"),
        ({"betas": [0.9, 0.9, 0.9]}, UnknownArgument, "'beta3' is not known"),
        ({"betas": [0.9, 1.0]}, InvalidValue, "'beta2' is 1.0"),
    ],
)
def test_what_is_wrong_with_betas_is_said(given, error, message):
    with pytest.raises(error, match=message):
        make_settings("adam", None, given, {}, START)


def test_an_absolute_schedule_satisfies_a_required_value():
    with pytest.raises(InvalidValue, match=r"'lr' is missing, expected .*; flavor 'optax' has no default"):
        make_settings("adagrad", "optax", {}, {}, START)
    with pytest.raises(InvalidValue, match="'lr' is missing"):
        make_settings("adagrad", "optax", {}, {"lr": HALVED}, START)
    wrapped = {"name": "warmup", "num_warmup_steps": 2, "schedules": [table(4.0)]}
    for schedule, expected in ((table(3.0), 3.0), (wrapped, 2.0)):
        settings = make_settings("adagrad", "optax", {}, {"lr": schedule}, START)
        assert settings.at(at(1))["lr"] == expected
        assert make_settings("adagrad", "optax", {"lr": 7.0}, {"lr": schedule}, START).own["lr"] == 7.0


def test_settings_come_back_from_a_snapshot():
    settings = make_settings(
        "nadam",
        "optax",
        {"betas": [0.5, 0.75], "lr": 0.1},
        {"lr": table(1, 2, 4), "beta2": HALVED | {"clock": "samples"}},
        START,
    )
    settings = settings.changed(at(2, 6.0), {}, {"eps": table(1e-3, 1e-4, 1e-5)})
    again = settings_from_data(json.loads(json.dumps(settings.to_data())))
    assert again == settings
    for moment in (at(0), at(3, 7.0), at(9, 100.0)):
        assert again.at(moment) == settings.at(moment)
    assert settings.at(at(3, 7.0))["eps"] == 1e-4
    variant = make_settings("adamw", "keras", {}, {}, START)
    assert settings_from_data(json.loads(json.dumps(variant.to_data()))) == variant


# What is easy to get wrong.


def test_a_scheduled_momentum_is_momentum_enough_for_nesterov():
    settings = make_settings("sgd", None, {"nesterov": True}, {"momentum": table(0.9)}, START)
    assert settings.program.slots == ("momentum_buffer",)


@pytest.mark.parametrize("schedule", [HALVED, table(0.5)])
def test_a_schedule_over_none_is_refused_or_has_an_effect(schedule):
    hyperparameters = {"momentum_decay": None}
    try:
        settings = make_settings("nadam", "torch", hyperparameters, {"momentum_decay": schedule}, START)
    except InvalidSpec:
        return
    assert "momentum_decay" in settings.program.last.host_source


def test_removing_the_schedule_of_a_required_value_needs_a_value():
    settings = make_settings("adagrad", "optax", {}, {"lr": table(1.0)}, START)
    with pytest.raises(InvalidValue, match="'lr' is missing"):
        settings.changed(at(1), {}, {}, removed=["lr"])


def test_samples_that_add_up_to_infinity_are_refused(device):
    rates = Rates(device, schedule={"name": "constant", "clock": "samples"})
    with pytest.raises(InvalidValue):
        rates.steps(3, samples=1e308)
