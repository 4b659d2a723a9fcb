"""Every wrapper around compiled and array optimizers, against the textbook; points; half precision."""

import math

import ml_dtypes
import numpy as np
import pytest

from stepwell_server.core.errors import InvalidSpec, InvalidValue, UnknownPoint, UnknownWrapper
from stepwell_server.core.wrappers import WRAPPERS
from tests.core.local import LocalRun
from tests.textbook import transforms as textbook

STEPS = 40
RULES = {
    "sgd": (
        {"optimizer": "sgd", "hyperparameters": {"momentum": 0.9, "weight_decay": 0.01}},
        lambda: textbook.sgd_rule(momentum=0.9, weight_decay=0.01),
    ),
    "adamw": (
        {"optimizer": "adamw", "flavor": "optax", "hyperparameters": {"weight_decay": 0.1}},
        lambda: textbook.adamw_rule(weight_decay=0.1),
    ),
}


def draw(dtype="float64"):
    random = np.random.default_rng(5)
    grads = [random.normal(size=(3, 5)).astype(dtype) for _ in range(STEPS)]
    return random.normal(size=(3, 5)).astype(dtype), grads, np.geomspace(0.1, 0.01, STEPS).tolist()


def wrapped_run(device, param, spec, wrappers, lrs):
    return LocalRun(
        {"w": param}, **spec, schedules={"lr": {"name": "table", "values": lrs}}, wrappers=wrappers, device=device
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wrapper", ["lookahead", "schedule_free"])
def test_a_wrapper_that_moves_parameters_equals_the_textbook(device, wrapper, rule):
    param, grads, lrs = draw()
    spec, make_rule = RULES[rule]
    arguments = {"lookahead": {"sync_period": 5, "slow_step_size": 0.3}, "schedule_free": {"beta1": 0.8}}[wrapper]
    point = {"lookahead": "lookahead", "schedule_free": "evaluation"}[wrapper]
    expected = getattr(textbook, wrapper)(make_rule(), param, grads, lrs, **arguments)
    run = wrapped_run(device, param, spec, ({"name": wrapper, **arguments},), lrs)
    for step, grad in enumerate(grads):
        got = run.step({"w": grad})["w"]
        np.testing.assert_allclose(got, expected.parameters[step], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(run.point(point)["w"], expected.point[step], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["ema", "swa"])
@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "lamb"])
def test_an_average_is_of_the_parameters_and_leaves_them_alone(device, name, optimizer):
    param, grads, lrs = draw()
    plain = wrapped_run(device, param, {"optimizer": optimizer}, (), lrs)
    arguments = {"decay": 0.9} if name == "ema" else {}
    run = wrapped_run(device, param, {"optimizer": optimizer}, ({"name": name, **arguments},), lrs)
    np.testing.assert_array_equal(run.point("average")["w"], param)
    trajectory = []
    for grad in grads:
        trajectory.append(plain.step({"w": grad})["w"])
        np.testing.assert_array_equal(run.step({"w": grad})["w"], trajectory[-1])
        expected = getattr(textbook, name)(trajectory, **arguments)[-1]
        np.testing.assert_allclose(run.point("average")["w"], expected, rtol=1e-11, atol=1e-13)


def test_schedule_free_goes_around_array_code(device):
    """With weights that are all equal, the evaluation point is the mean of all z."""
    param, grads, _ = draw()
    spec = {"optimizer": "adafactor", "hyperparameters": {"lr": 0.01, "weight_decay": 0.0, "eps2": 1.0}}
    run = wrapped_run(device, param, spec, ({"name": "schedule_free", "weight_lr_power": 0.0},), [0.01] * STEPS)
    visited = []
    for grad in grads:
        run.step({"w": grad})
        visited.append(run.arrays("schedule_free_z")["w"])
    np.testing.assert_allclose(run.point("evaluation")["w"], np.mean(visited, axis=0), rtol=1e-10)
    assert not np.array_equal(visited[-1], param)


def test_wrappers_compose(device):
    """An average around lookahead sees the parameters that lookahead gives back."""
    param, grads, lrs = draw()
    wrappers = ({"name": "lookahead", "sync_period": 2}, {"name": "swa", "start": 3})
    run = wrapped_run(device, param, {"optimizer": "sgd"}, wrappers, lrs)
    trajectory = [run.step({"w": grad})["w"] for grad in grads]
    np.testing.assert_allclose(run.point("average")["w"], np.mean(trajectory[3:], axis=0), rtol=1e-12)
    assert run.run.points == ["average", "lookahead", "parameters"]


def test_an_average_may_replace_the_parameters_now_and_then(device):
    run = LocalRun(
        {"w": np.zeros(1)},
        hyperparameters={"lr": 1.0},
        wrappers=({"name": "ema", "decay": 0.5, "overwrite_every": 3},),
        device=device,
    )
    got = [run.step({"w": np.array([-1.0])})["w"][0] for _ in range(4)]
    # Averages: 1, 1.5, 2.25; then the third parameter is 2.25.
    assert got == [1.0, 2.0, 2.25, 3.25]


def test_points_of_optimizers(device):
    run = LocalRun({"w": np.array([1.0])}, "nag", hyperparameters={"lr": 0.1, "momentum": 0.9}, device=device)
    for _ in range(3):
        run.step({"w": np.array([1.0])})
    # theta = phi + momentum * u, u the velocity.
    velocity = run.arrays("momentum_buffer")["w"]
    np.testing.assert_allclose(run.point("evaluation")["w"], run.parameters()["w"] + 0.9 * velocity, rtol=1e-14)
    np.testing.assert_array_equal(run.point("lookahead")["w"], run.parameters()["w"])
    theta = LocalRun(
        {"w": np.array([1.0])}, "nag", hyperparameters={"lr": 0.1, "momentum": 0.9, "serve": "theta"}, device=device
    )
    for _ in range(3):
        theta.step({"w": np.array([1.0])})
    np.testing.assert_array_equal(theta.point("parameters")["w"], run.point("evaluation")["w"])


def test_a_point_that_is_not_there(device):
    run = LocalRun({"w": np.ones(2)}, device=device)
    with pytest.raises(UnknownPoint, match="'average' is not known, expected one of parameters"):
        run.point("average")


REFUSED = {
    "unknown": ("sgd", [{"name": "emma"}], UnknownWrapper, "did you mean 'ema'"),
    "twice": ("sgd", [{"name": "ema"}, {"name": "ema"}], InvalidSpec, "given twice"),
    "period 0": ("sgd", [{"name": "lookahead", "sync_period": 0}], InvalidValue, "'sync_period'"),
    "no learning rate": ("adadelta_ratio", [{"name": "schedule_free"}], InvalidSpec, "learning rate"),
}


@pytest.mark.parametrize(("optimizer", "wrappers", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_wrappers_is_said(device, optimizer, wrappers, error, message):
    with pytest.raises(error, match=message):
        LocalRun({"w": np.ones(2)}, optimizer, wrappers=tuple(wrappers), device=device)


def test_every_wrapper_is_tried():
    assert WRAPPERS.keys() == {"ema", "lookahead", "schedule_free", "swa"}


# Half precision.


@pytest.mark.parametrize("half", ["float16", ml_dtypes.bfloat16])
def test_half_precision_parameters_are_trained_in_float32(device, half):
    """The state goes exactly where float32 parameters would; only what is sent is rounded."""
    random = np.random.default_rng(9)
    start = {"w": random.normal(size=(3, 5)).astype(half), "b": random.normal(size=()).astype(half)}
    full = {name: value.astype("float32") for name, value in start.items()}
    run, expected = (LocalRun(each, "adam", device=device) for each in (start, full))
    for _ in range(50):
        grads = {name: random.normal(size=value.shape).astype(half) for name, value in start.items()}
        got = run.step(grads)
        wide = expected.step({name: value.astype("float32") for name, value in grads.items()})
        for name, value in got.items():
            assert value.dtype == np.float32  # the master copy
            assert value.tobytes() == wide[name].tobytes()
    for slot in ("exp_avg", "exp_avg_sq"):
        for name, value in run.arrays(slot).items():
            assert value.tobytes() == expected.arrays(slot)[name].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("other", ["float16", "float32", ml_dtypes.bfloat16])
def test_gradients_of_another_float_are_widened(device, dtype, other):
    run = LocalRun({"w": np.zeros(40, dtype)}, hyperparameters={"lr": 1.0}, device=device)
    grad = np.linspace(-3, 3, 40).astype(other)
    got = run.step({"w": grad})["w"]
    np.testing.assert_array_equal(got, -grad.astype(got.dtype))


@pytest.mark.parametrize("half", ["float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_half_is_found(device, half, bad):
    from stepwell_server.core.errors import NonfiniteGradient

    run = LocalRun({"v": np.zeros(7, half), "w": np.zeros(9, half)}, device=device)
    grad = np.ones(9, half)
    grad[4] = bad
    with pytest.raises(NonfiniteGradient, match="'w'"):
        run.step({"v": np.ones(7, half), "w": grad})
