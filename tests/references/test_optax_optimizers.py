"""Every optimizer of the optax flavor against optax, element by element, after every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.references.comparison import (
    STEPS,
    Float,
    draw,
    every_dtype,
    every_run,
    expect_close,
    expect_same_run,
    follow_implementation,
    follow_textbook,
    remembered,
)
from tests.references.implementation import step_with_hessians
from tests.references.jaxed import import_jax
from tests.textbook.cases import CASES, Case, Hyper, Params
from tests.textbook.drawing import SHAPES, betas_and_eps, decay, magnitude

jax = import_jax()
optax = pytest.importorskip("optax")
pytestmark = pytest.mark.references

Build = Callable[..., Any]

# Schedule-free optimizers have a module of their own, since another point is compared, too.
ELSEWHERE = ("schedule_free_sgd", "schedule_free_adamw")
OPTAX_CASES = [case for case in CASES if case.flavor == "optax" and case.in_framework and case.name not in ELSEWHERE]
# optax's names for the wire's, where all of its optimizers agree.
NAMES = {"beta1": "b1", "beta2": "b2", "beta3": "b3"}


@every_dtype
@every_run(OPTAX_CASES)
def test_implementation_follows_optax(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_optax(case, seed, dtype)
    expect_same_run(follow_implementation(case, run), expected, case, run, tolerance(case, dtype), f"seed {seed}")


@every_dtype
@every_run(OPTAX_CASES)
def test_textbook_follows_optax(case: Case, dtype: Float, seed: int) -> None:
    run = draw(case, seed, dtype)
    expected = follow_optax(case, seed, dtype)
    expect_same_run(follow_textbook(case, run), expected, case, run, tolerance(case, dtype), f"seed {seed}")


@every_dtype
@pytest.mark.parametrize("seed", range(3))
def test_sophia_follows_optax(dtype: Float, seed: int) -> None:
    run = draw_sophia(seed, dtype)
    words = f"sophia seed {seed}, hyperparameters {run.hyper}"
    expect_close(sophia_by_implementation(run), sophia_by_optax(run), SOPHIA.tolerance(dtype), words)


def tolerance(case: Case, dtype: Float) -> tuple[float, float]:
    """The row's, or what optax makes of it: it has the root, or a power, of the step's number in float32 always."""
    return (1e-5, 1e-8) if dtype == np.float64 and case.name in ("madgrad", "adafactor") else case.tolerance(dtype)


def renamed(**names: str) -> Callable[[Build], Build]:
    """Give an optimizer its arguments by names that are its own, or not at all."""

    def decorate(build: Build) -> Build:
        return lambda lr, **hyper: build(lr, **{names.get(name, name): value for name, value in hyper.items()})

    return decorate


def adafactor(lr: Any, *, weight_decay: float | None = None, **hyper: Any) -> Any:
    """Its momentum is float32 unless no dtype is given."""
    return optax.adafactor(lr, weight_decay_rate=weight_decay, dtype_momentum=None, **hyper)


def dog(lr: Any, *, reps_rel: float = 1e-6, **hyper: Any) -> Any:
    return optax.contrib.dog(lr, init_step=("heuristic", reps_rel), **hyper)


def ldog(lr: Any, **hyper: Any) -> Any:
    """optax has no name for it: DoG, for each tensor by itself."""
    return optax.partition({name: dog(lr, **hyper) for name in SHAPES}, {name: name for name in SHAPES})


def estimated(build: Build) -> Build:
    """What estimates its learning rate takes two betas as one."""

    def pair(lr: Any, *, b1: Any = 0.9, b2: Any = 0.999, b3: Any = None, **hyper: Any) -> Any:
        more = {} if b3 is None else {"beta3": b3}
        return renamed(d0="estim_lr0", d_coef="estim_lr_coef")(build)(lr, betas=(b1, b2), **more, **hyper)

    return pair


OPTIMIZERS: dict[str, Build] = {
    "acprop": optax.contrib.acprop,
    "adabelief": optax.adabelief,
    "adadelta": optax.adadelta,
    "adafactor": adafactor,
    "adagrad": renamed(eps_root="eps")(optax.adagrad),
    "adam": optax.adam,
    "adamax": optax.adamax,
    "adamaxw": optax.adamaxw,
    "adamw": optax.adamw,
    "adan": optax.adan,
    "ademamix": optax.contrib.ademamix,
    "adopt": optax.contrib.adopt,
    "amsgrad": optax.amsgrad,
    "cocob": optax.contrib.cocob,
    "dadapt_adamw": estimated(optax.contrib.dadapt_adamw),
    "dog": dog,
    "dowg": optax.contrib.dowg,
    "fromage": optax.fromage,
    "lamb": optax.lamb,
    "lars": optax.lars,
    "ldog": ldog,
    "lion": optax.lion,
    "madgrad": optax.contrib.madgrad,
    "momo": optax.contrib.momo,
    "momo_adam": optax.contrib.momo_adam,
    "muon": renamed(momentum="beta", ns_coefficients="ns_coeffs")(optax.contrib.muon),
    "nadam": optax.nadam,
    "novograd": optax.novograd,
    "optimistic_adam": optax.optimistic_adam_v2,
    "optimistic_gradient_descent": optax.optimistic_gradient_descent,
    "polyak_sgd": lambda lr, **hyper: optax.polyak_sgd(scaling=lr, **hyper),
    "prodigy": estimated(optax.contrib.prodigy),
    "radam": optax.radam,
    "rmsprop": renamed(alpha="decay", eps_root="eps")(optax.rmsprop),
    "sgd": optax.sgd,
    "sign_sgd": optax.sign_sgd,
    "signum": renamed(momentum="beta")(optax.signum),
    "simplified_ademamix": optax.contrib.simplified_ademamix,
    "sm3": optax.sm3,
    "yogi": optax.yogi,
}


@remembered
def follow_optax(case: Case, seed: int, dtype: Float) -> list[Params]:
    """The same run by optax, as one compiled loop over the steps."""
    run = draw(case, seed, dtype)
    numbers = {name: value for name, value in run.hyper.items() if isinstance(value, float)}
    # What is decided once: flags, counts, texts, lists, none.
    fixed = {name: value for name, value in run.hyper.items() if name not in numbers}
    flags = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in fixed.items())
    lrs = run.lrs[0] if case.constant_lr else np.asarray(run.lrs, dtype)
    grads = {name: np.stack([row[name] for row in run.grads]) for name in run.params}  # type: ignore[misc]
    losses = None if run.losses is None else np.asarray(run.losses, dtype)
    after = compiled_loop(case.name, flags)(run.params, numbers, lrs, grads, losses)
    return [{name: np.asarray(values[index]) for name, values in after.items()} for index in range(len(run.lrs))]


@remembered
def compiled_loop(name: str, flags: tuple[tuple[str, object], ...]) -> Callable[..., Any]:
    """Compiled once for all runs that differ in numbers only."""

    def loop(params: Any, numbers: Any, lrs: Any, grads: Any, losses: Any) -> Any:
        hyper = {NAMES.get(name, name): value for name, value in (*numbers.items(), *flags)}
        lr = lrs if jax.numpy.ndim(lrs) == 0 else lambda count: lrs[count]
        optimizer = optax.with_extra_args_support(OPTIMIZERS[name](lr, **hyper))

        def step(carry: Any, given: Any) -> Any:
            params, state = carry
            grads, losses = given
            updates, state = optimizer.update(grads, state, params, **({} if losses is None else {"value": losses}))
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), (grads, losses))[1]

    return jax.jit(loop)  # type: ignore[no-any-return]


# It takes a Hessian's diagonal now and then, which the table's rows have not: no textbook's loop, but a row of its own.
SOPHIA = Case(
    "sophia",
    "optax",
    lambda rng: {
        **betas_and_eps(rng),
        "gamma": magnitude(rng, 1e-3, 1e-1),
        # Not none: the first step, before any Hessian, is the gradient over eps.
        "clip_threshold": magnitude(rng, 0.1, 2),
        **decay(rng),
    },
)


@dataclass(frozen=True)
class SophiaRun:
    """hessians: one every `interval` steps, from the first on, and none at the others."""

    hyper: Hyper
    params: Params
    grads: list[Params]
    lr: float
    interval: int
    hessians: list[Params | None]


def draw_sophia(seed: int, dtype: Float) -> SophiaRun:
    run = draw(SOPHIA, seed, dtype)
    rng = np.random.default_rng([seed, 1])
    interval = int(rng.integers(1, 11))
    hessians: list[Params | None] = []
    for step in range(STEPS):
        # A quadratic form's estimate may be negative; curvature mostly is not.
        drawn = {name: np.asarray(rng.normal(1, 0.5, size=p.shape), dtype) for name, p in run.params.items()}
        hessians.append(None if step % interval else drawn)
    grads = [{name: grad for name, grad in row.items() if grad is not None} for row in run.grads]
    return SophiaRun(run.hyper, run.params, grads, run.lrs[0], interval, hessians)


def sophia_by_implementation(run: SophiaRun) -> list[Params]:
    return step_with_hessians("sophia", run.hyper, run.params, run.grads, run.hessians, run.lr)


def sophia_by_optax(run: SophiaRun) -> list[Params]:
    """optax's, which is given the Hessian's diagonal instead of estimating it."""
    given = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), lambda grads, state, params=None, *, hessian: (hessian, state)
    )
    hyper = {NAMES.get(name, name): value for name, value in run.hyper.items()}
    optimizer = optax.contrib.sophia(run.lr, **hyper, update_interval=run.interval, hessian_diagonal_fn=given)

    @jax.jit
    def step(params: Any, state: Any, grads: Any, hessian: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, hessian=hessian)
        return optax.apply_updates(params, updates), state

    params, state, after = run.params, optimizer.init(run.params), []
    for grads, hessian in zip(run.grads, run.hessians, strict=True):
        params, state = step(params, state, grads, hessian or grads)
        after.append({name: np.asarray(value) for name, value in params.items()})
    return after
