"""Every transform, through a whole run, against the textbook; and what a run with transforms promises."""

import math
from typing import Any

import numpy as np
import pytest

from stepwell_server.core.errors import InputRequired, InvalidSpec, InvalidValue, UnknownArgument, UnknownTransform
from stepwell_server.core.transforms import TRANSFORMS
from stepwell_server.core.workers import Outcome
from tests.core.local import LocalRun
from tests.references.implementation import KEEPER, step_transformed
from tests.textbook.transforms import TRANSFORM_CASES, draw_transform, run_transform, unscale

STEPS = 20


def seen(run: LocalRun) -> dict[str, np.ndarray]:
    return run.arrays("prev_grad")


def test_every_transform_has_a_row_or_a_test_of_its_own():
    assert {case.name for case in TRANSFORM_CASES} | {"unscale", "add_noise"} == TRANSFORMS.keys()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", TRANSFORM_CASES, ids=lambda case: case.id)
def test_a_transform_equals_the_textbook(device, case, dtype):
    drawn = draw_transform(case, 11, dtype, STEPS)
    rtol, atol = (1e-11, 1e-13) if dtype == "float64" else (2e-5, 1e-6)
    ours, theirs = step_transformed(case, drawn, device), run_transform(case, drawn)
    for step, (got, expected) in enumerate(zip(ours, theirs, strict=True)):
        for name, value in got.items():
            np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=atol, err_msg=f"step {step}, {name}")


def test_transforms_run_in_order(device):
    clip, scale = {"name": "clip_by_value", "clip_value": 1.0}, {"name": "normalize_by_update_norm", "eps": 0.0}
    grad = np.array([3.0, 4.0])
    for transforms, expected in (((clip, scale), [0.5**0.5] * 2), ((scale, clip), [0.6, 0.8])):
        run = LocalRun({"w": np.zeros(2)}, **KEEPER, transforms=transforms, device=device)
        run.step({"w": grad})
        np.testing.assert_allclose(seen(run)["w"], expected, rtol=1e-14)


def test_a_global_norm_spans_groups_and_dtypes(device):
    parameters = {"a": np.zeros(3), "b": np.zeros(4, "float32"), "c": np.zeros((), "float16")}
    run = LocalRun(
        parameters, **KEEPER, transforms=({"name": "clip_by_global_norm", "max_norm": 1.0, "eps": 0.0},), device=device
    )
    run.step({name: np.full_like(value, 2) for name, value in parameters.items()})
    expected = 1 / math.sqrt(8)
    for name, got in seen(run).items():
        np.testing.assert_allclose(got, np.full(parameters[name].shape, expected), rtol=1e-6)


def test_padding_counts_in_no_mean(device):
    """Each vector has padding behind its one element; a root mean square over it would be smaller."""
    run = LocalRun(
        {"a": np.zeros(1), "b": np.zeros(1)},
        **KEEPER,
        transforms=({"name": "clip_by_block_rms", "threshold": 1.0},),
        device=device,
    )
    run.step({"a": np.array([5.0]), "b": np.array([-0.5])})
    assert seen(run)["a"] == [1.0]
    assert seen(run)["b"] == [-0.5]


def test_noise_is_repeated_by_a_restart_and_differs_between_steps_and_parameters(device):
    def run():
        spec = {"name": "add_noise", "eta": 4.0, "gamma": 0.5, "seed": 7}
        return LocalRun({"a": np.zeros(5000), "b": np.zeros(5000)}, **KEEPER, transforms=(spec,), device=device)

    zeros = {"a": np.zeros(5000), "b": np.zeros(5000)}
    one, other = run(), run()
    history = []
    for step in range(1, 5):
        one.step(zeros)
        other.step(zeros)
        noise = seen(one)
        np.testing.assert_array_equal(noise["a"], seen(other)["a"])
        # Variance eta / step^gamma; 5,000 numbers are within 10 % of it but for one time in 10^6.
        for values in noise.values():
            assert abs(values.var() / (4 / step**0.5) - 1) < 0.1
            assert abs(values.mean()) < 0.2
            history.append(values / values.std())
    correlation = np.abs(np.corrcoef(history) - np.eye(len(history)))
    assert correlation.max() < 0.1


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_loss_scale_follows_the_textbook(device, dtype):
    random = np.random.default_rng(3)
    arguments: dict[str, Any] = {
        "init_scale": 1024.0,
        "growth_interval": 3,
        "growth_factor": 2.0,
        "backoff_factor": 0.25,
    }
    run = LocalRun({"w": np.zeros(4, dtype)}, **KEEPER, transforms=({"name": "unscale", **arguments},), device=device)
    grads = [{"w": random.normal(size=4).astype("float32")} for _ in range(60)]
    for step in random.choice(60, 12, replace=False):
        grads[step]["w"][random.integers(4)] = random.choice([np.nan, np.inf, -np.inf])
    textbook = unscale(grads, **arguments)
    for step, grad in enumerate(grads):
        assert run.run.loss_scale is not None
        assert run.run.loss_scale.scale == textbook.scales[step]
        expected = textbook.grads[step]
        answer = run.commit(run.stage(grad))
        run.sequence += 1
        assert answer.loss_scale == textbook.scales[step + 1]
        if expected is None:
            assert answer.outcome is Outcome.SKIPPED_NONFINITE
        else:
            assert answer.outcome is Outcome.COMMITTED
            np.testing.assert_allclose(seen(run)["w"], expected["w"], rtol=1e-6)
    assert run.run.version == sum(row is not None for row in textbook.grads)


def test_an_update_is_unscaled_by_the_factor_that_it_names(device):
    run = LocalRun({"w": np.zeros(1)}, **KEEPER, transforms=({"name": "unscale"},), device=device)
    run.step({"w": np.array([8.0])}, loss_scale=4.0)
    assert seen(run)["w"] == [2.0]


def test_norms_are_of_the_gradient_before_clipping_and_of_the_parameters_after_the_step(device):
    run = LocalRun(
        {"a": np.array([1.0, -1.0]), "b": np.array(2.0, "float32")},
        hyperparameters={"lr": 1.0},
        report_norms=True,
        transforms=({"name": "unscale", "init_scale": 2.0}, {"name": "clip_by_value", "clip_value": 1e-3}),
        device=device,
    )
    answer = run.commit(run.stage({"a": np.array([6.0, -8.0]), "b": np.array(0.0, "float32")}))
    gradient, parameters = answer.norms
    assert gradient == (7.0, 5.0, 4.0)
    after = np.array([1 - 1e-3, -1 + 1e-3, 2])
    np.testing.assert_allclose(parameters, [abs(after).sum(), np.linalg.norm(after), 2.0], rtol=1e-12)


def test_a_refused_commit_leaves_no_trace_of_a_transforms_state(device):
    run = LocalRun({"w": np.ones(2, "float32")}, transforms=({"name": "grad_ema", "decay": 0.5},), device=device)
    run.step({"w": np.ones(2, "float32")})
    before = run.arrays("grad_ema_average")["w"]
    with pytest.raises(InvalidValue):
        run.step({"w": np.ones(2, "float32")}, hyperparameters={"": {"lr": 1e39}})
    np.testing.assert_array_equal(run.arrays("grad_ema_average")["w"], before)
    run.step({"w": np.ones(2, "float32")})
    assert (run.arrays("grad_ema_average")["w"] == 0.75).all()


REFUSED = {
    "unknown": ([{"name": "clip"}], UnknownTransform, "'clip' is not known"),
    "no name": ([{"max_norm": 1.0}], UnknownTransform, "'' is not known"),
    "unknown argument": ([{"name": "clip_by_value", "value": 1.0}], UnknownArgument, "'value'"),
    "missing": ([{"name": "clip_by_value"}], InvalidValue, "'clip_value' is missing"),
    "out of range": ([{"name": "clip_by_norm", "max_norm": 0.0}], InvalidValue, "'max_norm'"),
    "norm below 1": ([{"name": "clip_by_norm", "max_norm": 1.0, "norm_type": 0.5}], InvalidValue, "'norm_type'"),
    "infinite": ([{"name": "clip_by_value", "clip_value": math.inf}], InvalidValue, "'clip_value'"),
    "late unscale": ([{"name": "centralize"}, {"name": "unscale"}], InvalidSpec, "'unscale' follows another"),
    "state twice": ([{"name": "grad_ema"}, {"name": "grad_ema"}], InvalidSpec, "given twice"),
    "choice": ([{"name": "sparsity_lr", "kind": "cubic"}], InvalidValue, "one of inverse, linear"),
}


@pytest.mark.parametrize(("transforms", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_transforms_is_said(device, transforms, error, message):
    with pytest.raises(error, match=message):
        LocalRun({"w": np.ones(2)}, transforms=tuple(transforms), device=device)


def test_a_factor_that_the_client_owes_is_asked_for(device):
    run = LocalRun({"w": np.ones(2)}, transforms=({"name": "sparsity_lr", "source": "client"},), device=device)
    with pytest.raises(InputRequired, match="sparsity_factor"):
        run.step({"w": np.ones(2)})
