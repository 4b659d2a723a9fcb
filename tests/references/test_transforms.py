"""Every transform against torch's clipping and loss scaling, optax's transformations and Keras's clipping."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.references.comparison import STEPS, Float, every_dtype, every_seed, expect_close, remembered
from tests.references.implementation import step_transformed, step_unscaled
from tests.references.jaxed import import_jax
from tests.textbook.loops import Hyper, Params
from tests.textbook.transforms import (
    SHAPES,
    TRANSFORM_CASES,
    TransformCase,
    TransformRun,
    draw_transform,
    run_transform,
    sparsity_lr,
    unscale,
)

os.environ["KERAS_BACKEND"] = "jax"
jax = import_jax()
keras = pytest.importorskip("keras")
optax = pytest.importorskip("optax")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.references

Reference = Callable[[TransformRun], list[Params]]


def torch_clips_values(run: TransformRun) -> list[Params]:
    return by_torch(run, lambda tensors: torch.nn.utils.clip_grad_value_(tensors, **run.arguments))


def torch_clips_globally(run: TransformRun) -> list[Params]:
    bound, order = run.arguments["max_norm"], run.arguments["norm_type"]
    return by_torch(run, lambda tensors: torch.nn.utils.clip_grad_norm_(tensors, bound, norm_type=order))


def torch_normalizes(run: TransformRun) -> list[Params]:
    """What is longer than eps is made one long, what is shorter is divided by eps: a clip, but for the factor."""
    bound, order = run.arguments["max_norm"], run.arguments["norm_type"]

    def clip(tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            flat = tensor.grad.reshape(-1)
            tensor.grad = bound * torch.nn.functional.normalize(flat, p=order, dim=0, eps=bound).reshape(tensor.shape)

    return by_torch(run, clip)


def optax_with(build: Callable[..., Any], **names: str) -> Reference:
    """Run one of optax's transformations, its arguments under their names there."""

    def reference(run: TransformRun) -> list[Params]:
        arguments = {names.get(key, key): value for key, value in run.arguments.items()}
        transformation = build(**arguments)
        state, update = transformation.init(run.params[0]), jax.jit(transformation.update)
        transformed = []
        for grads, params in zip(run.grads, run.params, strict=True):
            updates, state = update(grads, state, params)
            transformed.append({name: np.asarray(value) for name, value in updates.items()})
        return transformed

    return reference


def keras_with(name: str, argument: str) -> Reference:
    """Keras clips inside of its optimizers: at zero and with a rate of one, SGD's step is the clipped gradient."""

    def reference(run: TransformRun) -> list[Params]:
        before = keras.config.floatx()
        dtype = run.grads[0]["vector"].dtype.name
        keras.config.set_floatx(dtype)
        try:
            variables = [keras.Variable(np.zeros(shape), dtype=dtype) for shape in SHAPES.values()]
            sgd = keras.optimizers.SGD(learning_rate=1.0, **{argument: run.arguments[name]})
            sgd.build(variables)
            step, zeros = jax.jit(sgd.stateless_apply), [variable.value for variable in variables]
            state = [variable.value for variable in sgd.variables]
            transformed = []
            for row in run.grads:
                values, _ = step(state, list(row.values()), zeros)
                transformed.append({name: -np.asarray(value) for name, value in zip(row, values, strict=True)})
        finally:
            keras.config.set_floatx(before)
        return transformed

    return reference


REFERENCES: dict[tuple[str, str], Reference] = {
    ("clip_by_value", "torch"): torch_clips_values,
    ("clip_by_value", "optax"): optax_with(optax.clip, clip_value="max_delta"),
    ("clip_by_value", "keras"): keras_with("clip_value", "clipvalue"),
    **{(f"clip_by_norm-norm_{order}", "torch"): torch_normalizes for order in ("1", "2", "inf", "3.5", "50")},
    ("clip_by_norm-norm_2", "keras"): keras_with("max_norm", "clipnorm"),
    **{
        (f"clip_by_global_norm-torch-norm_{order}", "torch"): torch_clips_globally
        for order in ("1", "2", "inf", "3.5", "50")
    },
    ("clip_by_global_norm-optax-norm_2", "optax"): optax_with(
        lambda max_norm, **_: optax.clip_by_global_norm(max_norm)
    ),
    ("clip_by_global_norm-optax-norm_2", "keras"): keras_with("max_norm", "global_clipnorm"),
    ("clip_by_block_rms", "optax"): optax_with(optax.clip_by_block_rms),
    ("adaptive_grad_clip", "optax"): optax_with(optax.adaptive_grad_clip),
    ("adaptive_grad_clip-defaults", "optax"): optax_with(optax.adaptive_grad_clip),
    ("normalize_by_update_norm", "optax"): optax_with(optax.normalize_by_update_norm),
    ("normalize_by_update_norm-defaults", "optax"): optax_with(optax.normalize_by_update_norm),
    ("centralize", "optax"): optax_with(optax.centralize),
    ("add_decayed_weights", "optax"): optax_with(optax.add_decayed_weights),
    ("grad_ema-debias", "optax"): optax_with(optax.ema),
    ("grad_ema-biased", "optax"): optax_with(optax.ema),
}
BY_ID = {case.id: case for case in TRANSFORM_CASES}


every_reference = pytest.mark.parametrize(
    ("row", "framework"),
    [pytest.param(*key, id="-".join(key), marks=pytest.mark.xdist_group(key[0].split("-")[0])) for key in REFERENCES],
)


@every_seed
@every_dtype
@every_reference
def test_implementation_follows_framework(row: str, framework: str, dtype: Float, seed: int) -> None:
    run = draw_transform(BY_ID[row], seed, dtype, STEPS)
    expected = follow_framework(row, framework, dtype, seed)
    words = f"{row} as in {framework}, seed {seed}, {run.arguments}"
    expect_close(step_transformed(BY_ID[row], run), expected, tolerance(dtype), words)


@every_seed
@every_dtype
@every_reference
def test_textbook_follows_framework(row: str, framework: str, dtype: Float, seed: int) -> None:
    run = draw_transform(BY_ID[row], seed, dtype, STEPS)
    expected = follow_framework(row, framework, dtype, seed)
    words = f"{row} as in {framework}, seed {seed}, {run.arguments}"
    expect_close(run_transform(BY_ID[row], run), expected, tolerance(dtype), words)


def tolerance(dtype: Float) -> tuple[float, float]:
    return (1e-11, 1e-13) if dtype == np.float64 else (2e-5, 1e-6)


@remembered
def follow_framework(row: str, framework: str, dtype: Float, seed: int) -> list[Params]:
    run = draw_transform(BY_ID[row], seed, dtype, STEPS)
    followed = REFERENCES[row, framework](run)
    return [{name: value.astype(run.grads[0][name].dtype) for name, value in after.items()} for after in followed]


@every_dtype
def test_global_norm_at_its_bound(dtype: Float) -> None:
    """Exactly as long as allowed: torch shrinks by its 1e-6, optax does not touch it."""
    row = {"vector": np.asarray([3.0, 4.0], dtype)}
    for flavor, expected in (("torch", 5 / (5 + 1e-6)), ("optax", 1.0)):
        case = TransformCase("clip_by_global_norm", lambda rng: {})
        run = TransformRun({"max_norm": 5.0, "eps": 1e-6 if flavor == "torch" else 0.0}, [row], [row], [0.0])
        (clipped,) = run_transform(case, run)
        np.testing.assert_allclose(clipped["vector"], expected * row["vector"], rtol=1e-7)


@every_seed
@every_dtype
def test_implementation_unscales_like_torch(dtype: Float, seed: int) -> None:
    """Gradients that overflow now and then: the scale, what is skipped, and what the optimizer sees."""
    arguments, grads = draw_overflows(dtype, seed)
    expected, scales = follow_scaler(arguments, grads)
    seen, scales_here = step_unscaled(grads, **arguments)
    assert scales_here == scales
    expect_same_gradients(seen, expected, dtype)


@every_seed
@every_dtype
def test_textbook_unscales_like_torch(dtype: Float, seed: int) -> None:
    arguments, grads = draw_overflows(dtype, seed)
    expected, scales = follow_scaler(arguments, grads)
    actual = unscale(grads, **arguments)
    assert actual.scales == scales
    expect_same_gradients(actual.grads, expected, dtype)
    assert None in actual.grads
    assert max(actual.scales) > actual.scales[0] or min(actual.scales) < actual.scales[0]


def draw_overflows(dtype: Float, seed: int) -> tuple[dict[str, Any], list[Params]]:
    rng = np.random.default_rng(seed)
    arguments: Hyper = {
        "init_scale": float(rng.choice([2.0**10, 2.0**16])),
        "growth_factor": float(rng.choice([2.0, 4.0])),
        "backoff_factor": float(rng.choice([0.25, 0.5])),
        "growth_interval": int(rng.integers(2, 8)),
    }
    grads = [{name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()} for _ in range(STEPS)]
    for row in grads:
        if rng.random() < 0.15:
            row["vector"][rng.integers(11)] = rng.choice([math.inf, -math.inf, math.nan])
    return arguments, grads


def follow_scaler(arguments: dict[str, Any], grads: Sequence[Params]) -> tuple[list[Params | None], list[float]]:
    """torch's loss scaling: the gradients that its optimizer sees, None where it skips; the scale before and after."""
    scaler = torch.amp.GradScaler("cpu", **arguments)
    scaler.scale(torch.ones(()))
    seen: list[Params | None] = []
    scales = [scaler.get_scale()]
    for row in grads:
        tensors = {name: torch.zeros_like(torch.tensor(g)) for name, g in row.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(row[name])
        scaler.step(torch.optim.SGD(tensors.values(), lr=1.0))
        scaler.update()
        scales.append(scaler.get_scale())
        moved = {name: -tensor.detach().numpy() for name, tensor in tensors.items()}
        seen.append(moved if any(np.any(value) for value in moved.values()) else None)
    return seen, scales


def expect_same_gradients(actual: Sequence[Params | None], expected: Sequence[Params | None], dtype: Float) -> None:
    assert [row is None for row in actual] == [row is None for row in expected]
    expect_close([row for row in actual if row], [row for row in expected if row], tolerance(dtype), "unscale")


def test_sparsity_by_hand() -> None:
    """No framework has it. Half of the first row is there, none of the second, all of the third."""
    g = np.array([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])

    def factors(**arguments: Any) -> list[float]:
        (after,) = sparsity_lr([{"g": g}], [{"g": g}], **arguments)
        return [float(after["g"][0, 0] / 2), float(after["g"][2, 0])]

    assert factors() == [2.0, 2.0]
    assert factors(floor=0.8) == [1.25, 1.25]
    assert factors(kind="linear", k=3.0) == [2.5, 2.5]
    assert factors(scope="row") == [2.0, 1.0]
    assert factors(scope="row", kind="linear", k=3.0) == [2.5, 1.0]
    assert factors(source="client", densities=[0.25]) == [4.0, 4.0]
    assert factors(source="client", kind="linear", k=2.0, densities=[0.25]) == [2.5, 2.5]


def by_torch(run: TransformRun, change: Callable[[Sequence[Any]], object]) -> list[Params]:
    """Change gradients in place. The powers of large norms leave float32's range there: they are taken in float64."""
    double = run.arguments.get("norm_type") == 50.0
    transformed = []
    for row in run.grads:
        tensors = {}
        for name, g in row.items():
            tensors[name] = torch.zeros_like(torch.tensor(g), dtype=torch.float64 if double else None)
            tensors[name].grad = torch.tensor(g).to(tensors[name].dtype)
        change(list(tensors.values()))
        transformed.append({name: tensor.grad.numpy() for name, tensor in tensors.items()})
    return transformed
