"""The textbook's wrappers against optax's lookahead and schedule-free, torch's AveragedModel and Keras's use_ema."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.references.comparison import Float, every_dtype, every_seed
from tests.textbook.drawing import SHAPES, between, gradients, learning_rates, magnitude
from tests.textbook.loops import Array, Params
from tests.textbook.transforms import Rule, Wrapped, adamw_rule, ema, lookahead, schedule_free, sgd_rule, swa

os.environ["KERAS_BACKEND"] = "jax"
jax = pytest.importorskip("jax")
keras = pytest.importorskip("keras")
optax = pytest.importorskip("optax")
torch = pytest.importorskip("torch")
jax.config.update("jax_enable_x64", True)
pytestmark = pytest.mark.references

STEPS = 100
RULES: dict[str, Callable[[], Rule]] = {
    "sgd": sgd_rule,
    "momentum": partial(sgd_rule, momentum=0.9),
    "decayed": partial(sgd_rule, weight_decay=0.05),
    "adamw": adamw_rule,
    "adamw-no_momentum": partial(adamw_rule, beta1=0.0, weight_decay=0.05),
}

every_rule = pytest.mark.parametrize("rule", RULES)


def optax_rule(rule: str, lrs: Sequence[float]) -> Any:
    rates = jax.numpy.asarray([*lrs, lrs[-1]])
    match rule:
        case "sgd":
            return optax.sgd(lambda count: rates[count])
        case "momentum":
            return optax.sgd(lambda count: rates[count], momentum=0.9)
        case "decayed":
            return optax.chain(optax.add_decayed_weights(0.05), optax.sgd(lambda count: rates[count]))
        case "adamw":
            return optax.adamw(lambda count: rates[count])
    return optax.adamw(lambda count: rates[count], b1=0.0, weight_decay=0.05)


@every_seed
@every_dtype
@every_rule
def test_lookahead_follows_optax(rule: str, dtype: Float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    params, grads, lrs = draw(rng, dtype)
    arguments: dict[str, Any] = {"sync_period": int(rng.integers(1, 9)), "slow_step_size": between(rng, 0.1, 1)}
    transformation = optax.lookahead(optax_rule(rule, lrs), **arguments)

    @jax.jit
    def step(row: Any, state: Any, both: Any) -> Any:
        updates, state = transformation.update(row, state, both)
        return state, optax.apply_updates(both, updates)

    both, expected = optax.LookaheadParams.init_synced(params), []
    state = transformation.init(both)
    for row in grads:
        state, both = step(row, state, both)
        expected.append((both.fast, both.slow))
    expect_wrapped(partial(lookahead, **arguments), rule, params, grads, lrs, expected)


@every_seed
@every_dtype
@every_rule
def test_schedule_free_follows_optax(rule: str, dtype: Float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    params, grads, lrs = draw(rng, dtype)
    arguments: dict[str, Any] = {"beta1": between(rng, 0.5, 0.98), "weight_lr_power": between(rng, 0, 3)}
    # The wrapper counts from one where the rule counts from zero: ours gives both the same learning rate.
    rates = jax.numpy.asarray([0.0, *lrs])
    transformation = optax.contrib.schedule_free(
        optax_rule(rule, lrs),
        lambda count: rates[count],
        b1=arguments["beta1"],
        weight_lr_power=arguments["weight_lr_power"],
    )

    @jax.jit
    def step(row: Any, state: Any, current: Any) -> Any:
        updates, state = transformation.update(row, state, current)
        current = optax.apply_updates(current, updates)
        return state, current, optax.contrib.schedule_free_eval_params(state, current)

    state, current, expected = transformation.init(params), params, []
    for row in grads:
        state, current, average = step(row, state, current)
        expected.append((current, average))
    expect_wrapped(partial(schedule_free, **arguments), rule, params, grads, lrs, expected)


@every_seed
@every_dtype
@pytest.mark.parametrize("several", [False, True], ids=["each", "together"])
def test_ema_follows_torch(several: bool, dtype: Float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    decay = between(rng, 0.5, 0.999)
    swa_utils = torch.optim.swa_utils
    average = (
        {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(decay)}
        if several
        else {"avg_fn": swa_utils.get_ema_avg_fn(decay)}
    )
    expect_averages(partial(ema, decay=decay), average, rng, dtype)


@every_seed
@every_dtype
@pytest.mark.parametrize("several", [False, True], ids=["each", "together"])
def test_swa_follows_torch(several: bool, dtype: Float, seed: int) -> None:
    swa_utils = torch.optim.swa_utils
    average = {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()} if several else {"avg_fn": swa_utils.get_swa_avg_fn()}
    expect_averages(swa, average, np.random.default_rng(seed), dtype)


@every_seed
@every_dtype
def test_ema_follows_keras(dtype: Float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    params, grads, lrs = draw(rng, dtype)
    decay = between(rng, 0.5, 0.999)
    before = keras.config.floatx()
    keras.config.set_floatx(np.dtype(dtype).name)
    try:
        variables = [keras.Variable(value, dtype=np.dtype(dtype).name) for value in params.values()]
        optimizer = keras.optimizers.SGD(learning_rate=lrs[0], use_ema=True, ema_momentum=decay)
        optimizer.build(variables)
        step = jax.jit(optimizer.stateless_apply)
        state, values = [v.value for v in optimizer.variables], [v.value for v in variables]
        names = [variable.path for variable in optimizer.variables]
        places = [names.index(average.path) for average in optimizer._model_variables_moving_average]
        trajectory, averages = [], []
        for row in grads:
            values, state = step(state, list(row.values()), values)
            trajectory.append([np.asarray(value) for value in values])
            averages.append([np.asarray(state[place]) for place in places])
    finally:
        keras.config.set_floatx(before)
    for index, name in enumerate(params):
        ours = ema([row[index] for row in trajectory], decay=decay)
        expect_close(ours, [row[index] for row in averages], name)


def draw(rng: np.random.Generator, dtype: Float) -> tuple[Params, list[Params], list[float]]:
    params = {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}
    columns = {name: gradients(rng, shape, STEPS) for name, shape in SHAPES.items()}
    grads = [{name: np.asarray(column[step], dtype) for name, column in columns.items()} for step in range(STEPS)]
    return params, grads, learning_rates(rng, magnitude(rng, 1e-3, 1e-1), STEPS)


def expect_wrapped(
    wrapper: Callable[..., Wrapped],
    rule: str,
    params: Params,
    grads: Sequence[Params],
    lrs: Sequence[float],
    expected: Sequence[tuple[Any, Any]],
) -> None:
    """Both points of every tensor are what the framework has after every step."""
    for name, param in params.items():
        ours = wrapper(RULES[rule](), param, [row[name] for row in grads], lrs)
        expect_close(ours.parameters, [np.asarray(parameters[name]) for parameters, _ in expected], name)
        expect_close(ours.point, [np.asarray(point[name]) for _, point in expected], name)


def expect_averages(
    average: Callable[[Sequence[Array]], list[Array]],
    arguments: dict[str, Any],
    rng: np.random.Generator,
    dtype: Float,
) -> None:
    """torch's average of a module whose parameters take a random walk."""
    params, walk, _ = draw(rng, dtype)
    before = torch.get_default_dtype()
    # The count of what is averaged is a whole number: torch makes its inverse in the default dtype.
    torch.set_default_dtype(torch.float64 if dtype == np.float64 else torch.float32)
    try:
        module = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()})
        averaged = torch.optim.swa_utils.AveragedModel(module, **arguments)
        trajectory, expected = [], []
        for move in walk:
            with torch.no_grad():
                for name, param in module.items():
                    param += torch.tensor(move[name])
            averaged.update_parameters(module)
            trajectory.append(copies(module))
            expected.append(copies(averaged.module))
    finally:
        torch.set_default_dtype(before)
    for name in params:
        expect_close(average([row[name] for row in trajectory]), [row[name] for row in expected], name)


def copies(module: Any) -> Params:
    return {name: param.detach().numpy().copy() for name, param in module.items()}


def expect_close(actual: Sequence[Array], expected: Sequence[Array], name: str) -> None:
    assert len(actual) == len(expected)
    for step, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        rtol, atol = (1e-11, 1e-13) if wanted.dtype == np.float64 else (2e-5, 1e-6)
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol, err_msg=f"step {step}, {name!r}")
