"""What the runner does is what the server does, and what the equations say."""

from dataclasses import replace

import numpy as np
import pytest

from stepwell_server.core.errors import (
    InvalidSpec,
    InvalidValue,
    UnknownArgument,
    UnknownFlavor,
    UnknownOptimizer,
    UnknownSchedule,
)
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.experiments.problems import CURVATURES, make_problem
from stepwell_server.experiments.runner import CONTESTANTS_MAX, Comparison
from tests.core.local import LocalRun


def only(*args, **options):
    (trace,) = Comparison(*args, **options).run().values()
    return trace


def test_sgd_on_the_ravine_is_a_power():
    trace = only(("sgd",), steps=50, assignments=("lr=0.01",))
    powers = (1 - 0.01 * np.array(CURVATURES)) ** np.arange(51)[:, None]
    np.testing.assert_allclose(trace.points, powers * [-4.0, 1.0], rtol=1e-12)
    np.testing.assert_allclose(trace.losses, trace.points**2 @ CURVATURES / 2, rtol=1e-12)
    np.testing.assert_allclose(trace.effective_rates([0]), 0.01, rtol=1e-9)


SAME = {
    "sgd": {"momentum": 0.9},
    "nag": {},
    "adagrad@lecture": {"momentum": 0.5},
    "adam@keras": {"amsgrad": True},
    "nadam@torch": {},
    "adam_max": {},
    "schedule_free_sgd": {},
}


@pytest.mark.parametrize(("form", "given"), SAME.items())
def test_the_server_s_kernels_make_the_same_steps(form, given, tmp_path):
    optimizer, _, flavor = form.partition("@")
    schedule = {"name": "exponential", "gamma": 0.95}
    assignments = ("lr=0.02", *(f"{name}={str(value).lower()}" for name, value in given.items()))
    told = Comparison((form,), "sparse_dense", 20, None, assignments, ('lr={"name":"exponential","gamma":0.95}',))
    (trace,) = told.run().values()
    problem = told.make_problem()
    run = LocalRun(
        {"w": problem.start},
        optimizer,
        kernel_directory=tmp_path,
        flavor=flavor,
        hyperparameters={"lr": 0.02, **given},
        schedules={"lr": schedule},
    )
    for t in range(20):
        after = run.step({"w": problem.gradient(trace.stored[t], t)})["w"]
        # Float64 all the way; kernels may fuse a multiplication with an addition.
        np.testing.assert_allclose(after, trace.stored[t + 1], rtol=1e-12, atol=1e-14)


def test_a_flavor_is_its_framework_s():
    at_once = only(("adam@keras",), "alternating", 1, assignments=("lr=0.1", "eps=0.5"))
    # Keras adds eps before the bias correction: lr * 1 / ((sqrt(0.001) + eps) / sqrt(0.001)).
    root = np.sqrt(0.001)
    assert at_once.points[1, 0] == pytest.approx(-0.1 * root / (root + 0.5), rel=1e-12)
    by_option = only(("adam",), "alternating", 1, flavor="keras", assignments=("lr=0.1", "eps=0.5"))
    assert np.array_equal(by_option.points, at_once.points)


def test_gradients_are_taken_where_parameters_are_stored():
    problem = make_problem("ravine", 10)
    trace = only(("nag",), steps=10, assignments=("lr=0.01",))
    expected = [problem.gradient(point, 0) for point in trace.stored[:-1]]
    np.testing.assert_array_equal(trace.gradients, expected)


def test_an_optimizer_is_judged_at_its_point_of_evaluation():
    trace = only(("schedule_free_sgd",), steps=30, assignments=("lr=0.01", "beta1=0.9"))
    z = trace.state["z"]
    np.testing.assert_allclose(trace.points[-1], (trace.stored[-1] - 0.1 * z) / 0.9, rtol=1e-12)
    assert trace.losses[-1] == make_problem("ravine", 1).loss(trace.points[-1])
    assert not np.allclose(trace.points[-1], trace.stored[-1])


def test_a_schedule_is_the_effective_rate_of_sgd():
    schedule = 'sgd.lr={"name":"step","step_size":10,"gamma":0.5}'
    trace = only(("sgd",), "noisy", 30, assignments=("lr=0.1",), schedules=(schedule,))
    expected = 0.1 * 0.5 ** (np.arange(30) // 10)
    np.testing.assert_allclose(trace.effective_rates([0, 1]), expected, rtol=1e-9)


def test_rates_are_missing_where_gradients_are():
    trace = only(("sgd",), "zeros", 30, assignments=("lr=0.1",))
    rates = trace.effective_rates([1])
    np.testing.assert_allclose(rates[:10], 0.1)
    assert np.all(np.isnan(rates[10:]))
    assert np.isfinite(trace.effective_rates([1], window=15)[:20]).all()


def test_what_leaves_the_finite_numbers_ends_there():
    trace = only(("sgd",), steps=2000, assignments=("lr=1",))
    assert trace.diverged is not None
    assert np.all(np.isfinite(trace.losses[: trace.diverged]))
    assert np.all(np.isnan(trace.losses[trace.diverged :]))
    # The factor per step is 1 - 50: squares overflow once 49^(2t) * 25 > 1.8e308.
    assert trace.diverged == pytest.approx(np.log(1.79e308 / 25) / (2 * np.log(49)), abs=1.5)


def test_labels_and_settings_for_one_or_for_all():
    told = Comparison(("slow=sgd", "fast=sgd", "rprop"), assignments=("lr=0.1", "slow.lr=0.01", "fast.momentum=0.5"))
    settings = told.settings()
    assert {label: each.own["lr"] for label, each in settings.items()} == {"slow": 0.01, "fast": 0.1, "rprop": 0.1}
    assert settings["fast"].own["momentum"] == 0.5
    assert settings["slow"].own["momentum"] == 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_runs_but_those_for_matrices(name):
    definition = OPTIMIZERS[name]
    given = ("lr=0.01",) if "lr" in definition.arguments_of(definition.flavor(None)) else ()
    told = Comparison((name,), "sparse_dense", 5, assignments=given)
    if definition.arrays and definition.arrays.takes((8,)):
        with pytest.raises(InvalidSpec, match="put it into a group"):
            told.run()
        return
    (trace,) = told.run().values()
    assert trace.diverged is None
    assert np.all(np.isfinite(trace.points))


def test_an_optimizer_that_needs_more_than_a_gradient_is_refused(monkeypatch):
    demanding = replace(OPTIMIZERS["sgd"], inputs={"hessian": "required"})
    monkeypatch.setitem(OPTIMIZERS, "demanding", demanding)
    with pytest.raises(InvalidSpec, match="needs 'hessian' with every update"):
        only(("demanding",))


REFUSED = [
    (("adm",), {}, UnknownOptimizer, "did you mean 'adam'"),
    (("adam@tensorflow",), {}, UnknownFlavor, "tensorflow"),
    (("nag",), {"flavor": "torch"}, UnknownFlavor, "lecture"),
    (("adam", "adam"), {}, InvalidSpec, "same label"),
    ((), {}, InvalidSpec, "0 contestants"),
    (("sgd",) * (CONTESTANTS_MAX + 1), {}, InvalidSpec, "compare fewer"),
    (("a b=sgd",), {}, InvalidSpec, "is not understood"),
    (("adam",), {"assignments": ("adm.lr=1",)}, InvalidSpec, "did you mean 'adam'"),
    (("adam",), {"assignments": ("adam.lrr=1",)}, UnknownArgument, "did you mean 'lr'"),
    (("adam", "sgd"), {"assignments": ("lrr=1",)}, UnknownArgument, "did you mean 'lr'"),
    (("adam",), {"assignments": ("lr",)}, InvalidSpec, "expected name=value"),
    (("adam",), {"assignments": ("lr=-1",)}, InvalidValue, "'lr' is -1"),
    (("adam",), {"assignments": ("lr=fast",)}, InvalidValue, "'lr' is 'fast'"),
    (("adam@optax",), {}, InvalidValue, "'lr' is missing"),
    (("sgd",), {"assignments": ("nesterov=true",)}, InvalidSpec, "nesterov needs momentum"),
    (("sgd",), {"schedules": ("lr=[1]",)}, InvalidSpec, "no mapping"),
    (("sgd",), {"schedules": ('lr={"name":"stp"}',)}, UnknownSchedule, "did you mean 'step'"),
    (("sgd",), {"schedules": ('lr={"name":"step","step_size":0}',)}, InvalidValue, "step_size"),
    (("sgd",), {"schedules": ('nesterov={"name":"step","step_size":9}',)}, InvalidSpec, "schedule a number"),
    (("sgd",), {"schedules": ('lr={"name":"constant","clock":"epochs"}',)}, InvalidSpec, "epochs"),
    (("sgd",), {"schedules": ('lr={"name":"plateau"}',)}, InvalidSpec, "nothing is reported"),
    (("sgd",), {"problem": "hill"}, InvalidSpec, "problem 'hill'"),
    (("sgd",), {"steps": 0}, InvalidSpec, "steps is 0"),
    (("muon",), {}, InvalidSpec, "two dimensions"),
]


@pytest.mark.parametrize(("contestants", "options", "error", "says"), REFUSED)
def test_refusals(contestants, options, error, says):
    with pytest.raises(error, match=says):
        Comparison(contestants, **options).run()
