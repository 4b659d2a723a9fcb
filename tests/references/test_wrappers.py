"""Every wrapper against optax's lookahead and schedule-free, torch's AveragedModel and Keras's use_ema."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from tests.references.comparison import STEPS, Float, every_dtype, every_seed, expect_close, remembered
from tests.references.implementation import step_wrapped
from tests.references.jaxed import import_jax
from tests.textbook.drawing import SHAPES, between, gradients, learning_rates, magnitude
from tests.textbook.loops import Params
from tests.textbook.transforms import Rule, adamw_rule, ema, lookahead, schedule_free, sgd_rule, swa

os.environ["KERAS_BACKEND"] = "jax"
jax = import_jax()
keras = pytest.importorskip("keras")
optax = pytest.importorskip("optax")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.references

# What is wrapped: as the implementation spells it, and the textbook's rule.
RULES: dict[str, tuple[dict[str, Any], Callable[[], Rule]]] = {
    "sgd": ({"optimizer": "sgd"}, sgd_rule),
    "momentum": ({"optimizer": "sgd", "hyperparameters": {"momentum": 0.9}}, partial(sgd_rule, momentum=0.9)),
    "decayed": ({"optimizer": "sgd", "hyperparameters": {"weight_decay": 0.05}}, partial(sgd_rule, weight_decay=0.05)),
    "adamw": ({"optimizer": "adamw", "flavor": "optax"}, adamw_rule),
    "adamw-no_momentum": (
        {"optimizer": "adamw", "flavor": "optax", "hyperparameters": {"beta1": 0.0, "weight_decay": 0.05}},
        partial(adamw_rule, beta1=0.0, weight_decay=0.05),
    ),
}


@dataclass(frozen=True)
class WrappedRun:
    """Everything that one trajectory depends on, and where the framework goes: both points after every step."""

    name: str
    arguments: dict[str, Any]
    point: str
    rule: str
    params: Params
    grads: list[Params]
    lrs: list[float]
    expected: list[Params]


def optax_looks_ahead(rng: Generator, dtype: Float, rule: str) -> WrappedRun:
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
        expected.append(joined(both.fast, both.slow, "lookahead"))
    return WrappedRun("lookahead", arguments, "lookahead", rule, params, grads, lrs, expected)


def optax_goes_schedule_free(rng: Generator, dtype: Float, rule: str) -> WrappedRun:
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
        expected.append(joined(current, average, "evaluation"))
    return WrappedRun("schedule_free", arguments, "evaluation", rule, params, grads, lrs, expected)


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


def torch_averages(rng: Generator, dtype: Float, name: str, several: bool) -> WrappedRun:
    """torch's average of a module whose parameters take a random walk, by tensors or all `several` at once."""
    params, walk, _ = draw(rng, dtype)
    arguments = {"decay": between(rng, 0.5, 0.999)} if name == "ema" else {}
    make = getattr(torch.optim.swa_utils, f"get_{name}_{'multi_' if several else ''}avg_fn")
    average = {"multi_avg_fn" if several else "avg_fn": make(*arguments.values())}
    before = torch.get_default_dtype()
    # The count of what is averaged is a whole number: torch makes its inverse in the default dtype.
    torch.set_default_dtype(torch.float64 if dtype == np.float64 else torch.float32)
    try:
        module = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()})
        averaged = torch.optim.swa_utils.AveragedModel(module, **average)
        expected = []
        for move in walk:
            with torch.no_grad():
                for key, param in module.items():
                    param -= torch.tensor(move[key])
            averaged.update_parameters(module)
            expected.append(joined(copies(module), copies(averaged.module), "average"))
    finally:
        torch.set_default_dtype(before)
    # With a rate of one, SGD walks like that.
    return WrappedRun(name, arguments, "average", "sgd", params, walk, [1.0] * STEPS, expected)


def keras_averages(rng: Generator, dtype: Float) -> WrappedRun:
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
        expected = []
        for row in grads:
            values, state = step(state, list(row.values()), values)
            averages = [state[place] for place in places]
            expected.append(
                joined(dict(zip(params, values, strict=True)), dict(zip(params, averages, strict=True)), "average")
            )
    finally:
        keras.config.set_floatx(before)
    return WrappedRun("ema", {"decay": decay}, "average", "sgd", params, grads, lrs[:1] * STEPS, expected)


def draw(rng: Generator, dtype: Float) -> tuple[Params, list[Params], list[float]]:
    params = {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}
    columns = {name: gradients(rng, shape, STEPS) for name, shape in SHAPES.items()}
    grads = [{name: np.asarray(column[step], dtype) for name, column in columns.items()} for step in range(STEPS)]
    return params, grads, learning_rates(rng, magnitude(rng, 1e-3, 1e-1), STEPS)


def joined(parameters: Any, other: Any, point: str) -> Params:
    """Both points under one roof: "matrix" and, at the other, "matrix, lookahead"."""
    return {name: np.asarray(value) for name, value in parameters.items()} | {
        f"{name}, {point}": np.asarray(value) for name, value in other.items()
    }


def copies(module: Any) -> Params:
    return {name: param.detach().numpy().copy() for name, param in module.items()}


# By what is wrapped, or how torch goes over tensors; and by framework.
REFERENCES: dict[tuple[str, str], Callable[[Generator, Float], WrappedRun]] = {
    **{(f"lookahead-{rule}", "optax"): partial(optax_looks_ahead, rule=rule) for rule in RULES},
    **{(f"schedule_free-{rule}", "optax"): partial(optax_goes_schedule_free, rule=rule) for rule in RULES},
    **{
        (f"{name}-{'together' if several else 'each'}", "torch"): partial(torch_averages, name=name, several=several)
        for name in ("ema", "swa")
        for several in (False, True)
    },
    ("ema", "keras"): keras_averages,
}

every_reference = pytest.mark.parametrize(
    ("row", "framework"),
    [pytest.param(*key, id="-".join(key), marks=pytest.mark.xdist_group(f"wrapper-{key[0]}")) for key in REFERENCES],
)


@every_seed
@every_dtype
@every_reference
def test_implementation_follows_framework(row: str, framework: str, dtype: Float, seed: int) -> None:
    run = follow_framework(row, framework, dtype, seed)
    expect_close(follow_implementation(run), run.expected, tolerance(dtype), f"{row}, seed {seed}, {run.arguments}")


@every_seed
@every_dtype
@every_reference
def test_textbook_follows_framework(row: str, framework: str, dtype: Float, seed: int) -> None:
    run = follow_framework(row, framework, dtype, seed)
    expect_close(follow_textbook(run), run.expected, tolerance(dtype), f"{row}, seed {seed}, {run.arguments}")


@remembered
def follow_framework(row: str, framework: str, dtype: Float, seed: int) -> WrappedRun:
    return REFERENCES[row, framework](np.random.default_rng(seed), dtype)


def tolerance(dtype: Float) -> tuple[float, float]:
    return (1e-11, 1e-13) if dtype == np.float64 else (2e-5, 1e-6)


def follow_implementation(run: WrappedRun) -> list[Params]:
    wrapper = {"name": run.name, **run.arguments}
    return step_wrapped(RULES[run.rule][0], wrapper, run.point, run.params, run.grads, run.lrs)


def follow_textbook(run: WrappedRun) -> list[Params]:
    after: list[Params] = [{} for _ in run.grads]
    for name, param in run.params.items():
        grads, rule = [row[name] for row in run.grads], RULES[run.rule][1]()
        if run.name in ("lookahead", "schedule_free"):
            wrap = lookahead if run.name == "lookahead" else schedule_free
            wrapped = wrap(rule, param, grads, run.lrs, **run.arguments)
            trajectory, point = wrapped.parameters, wrapped.point
        else:
            trajectory = []
            for grad, lr in zip(grads, run.lrs, strict=True):
                trajectory.append(rule(trajectory[-1] if trajectory else param, grad, lr))
            point = ema(trajectory, **run.arguments) if run.name == "ema" else swa(trajectory)
        for row, there, beside in zip(after, trajectory, point, strict=True):
            row |= {name: there, f"{name}, {run.point}": beside}
    return after
