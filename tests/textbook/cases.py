"""What to try every optimizer with: random hyperparameters, gradients and learning rates; and how close is close.

`CASES` is the table: for each optimizer and flavor one row that draws everything at random, then rows that fix one flag
each, so that every branch is run whatever the dice say. A run is

    rng = np.random.default_rng(seed)
    hyper = case.sample(rng)
    params = {name: ... for name, shape in SHAPES.items()}
    grads = [...]   # from gradients(rng, shape, dtype, steps), turned around: one dict per step
    lrs = learning_rates(rng, case.learning_rate, steps)
    run_textbook(case, hyper, params, grads, lrs)

which `draw_run` does in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike

from tests.textbook.optimizers import TEXTBOOK, Array

Hyper = dict[str, object]
Sample = Callable[[Generator], Hyper]
Params = dict[str, Array]
Grads = dict[str, Array | None]

SHAPES: dict[str, tuple[int, ...]] = {"matrix": (5, 7), "cube": (2, 3, 4), "vector": (11,), "scalar": ()}
PROFILES = ("unit", "small", "decaying", "sparse", "alternating")


@dataclass(frozen=True)
class Case:
    """One row: an optimizer in one flavor, and how to draw its hyperparameters by their names on the wire.

    variant       what the row fixes, for its id; empty for the row that draws everything
    learning_rate the size of the learning rates to draw (`learning_rates`)
    rtol, atol    what float32 is allowed; float64 is the same for all
    in_framework  whether the framework that the flavor is named after has all of these arguments
    """

    name: str
    flavor: str
    sample: Sample
    variant: str = ""
    learning_rate: float = 1e-2
    rtol: float = 2e-5
    atol: float = 1e-6
    in_framework: bool = True

    @property
    def id(self) -> str:
        return "-".join(filter(None, (self.name, self.flavor, self.variant)))

    def tolerance(self, dtype: DTypeLike) -> tuple[float, float]:
        """(rtol, atol) to demand of every element after every step: |x - y| <= atol + rtol * |y|."""
        return (1e-11, 1e-13) if np.dtype(dtype) == np.float64 else (self.rtol, self.atol)


@dataclass(frozen=True)
class Run:
    """Everything that one trajectory depends on."""

    hyper: Hyper
    params: Params
    grads: list[Grads]
    lrs: list[float]


def draw_run(case: Case, seed: int, dtype: DTypeLike, steps: int) -> Run:
    """The run that belongs to a seed; float32 gets the float64 numbers, rounded."""
    rng = np.random.default_rng(seed)
    hyper = case.sample(rng)
    params = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    columns = {name: gradients(rng, shape, dtype, steps) for name, shape in SHAPES.items()}
    grads: list[Grads] = [{name: column[step] for name, column in columns.items()} for step in range(steps)]
    # The notes' misprint has no learning rate; its loop multiplies by 1.
    lrs = [1.0] * steps if case.name == "adadelta_ratio" else learning_rates(rng, case.learning_rate, steps)
    return Run(hyper, params, grads, lrs)


def gradients(
    rng: Generator, shape: tuple[int, ...], dtype: DTypeLike, steps: int, profile: str | None = None
) -> list[Array]:
    """One tensor's gradients, of a profile drawn at random unless given.

    unit         Gaussian, scale 1
    small        Gaussian, scale 1e-3
    decaying     from scale 1 down to 1e-3
    sparse       four elements in five are zero, and so is the whole of every fourth gradient
    alternating  the sign flips with every step
    """
    profile = profile or str(rng.choice(PROFILES))
    noise = rng.normal(size=(steps, *shape))
    time = np.arange(steps).reshape(steps, *(1 for _ in shape))
    if profile == "unit":
        values = noise
    elif profile == "small":
        values = 1e-3 * noise
    elif profile == "decaying":
        values = noise * 1e-3 ** (time / max(1, steps - 1))
    elif profile == "sparse":
        values = noise * (rng.random(noise.shape) < 0.2) * (time % 4 != 0)
    elif profile == "alternating":
        values = np.abs(noise) * (-1.0) ** time
    else:
        raise ValueError(f"gradient profile {profile!r} is unknown; the profiles are {', '.join(PROFILES)}")
    return [np.asarray(value, dtype=dtype) for value in values]


def learning_rates(rng: Generator, size: float, steps: int) -> list[float]:
    """Learning rates that vary: a slow wave between size / 10 and size, times random jumps every ten steps or so."""
    phase = rng.uniform(0, 2 * math.pi)
    jump, rates = 1.0, []
    for step in range(steps):
        if rng.random() < 0.1:
            jump = _between(rng, 0.2, 1)
        rates.append(size * jump * (0.55 + 0.45 * math.sin(step / 7 + phase)))
    return rates


def run_textbook(
    case: Case,
    hyper: Mapping[str, object],
    params: Mapping[str, Array],
    grads: Sequence[Mapping[str, Array | None]],
    lrs: Sequence[float],
) -> list[Params]:
    """The parameters after every step, by the textbook.

    A gradient of None leaves its parameter alone for that step. In the torch flavor, where each parameter counts its
    own steps, that is to leave the step out; the other flavors count for all at once and are not defined here.
    """
    loop: Callable[..., list[Array]] = TEXTBOOK[case.name, case.flavor]
    trajectories = {}
    for name, param in params.items():
        present = [step for step, row in enumerate(grads) if row[name] is not None]
        if len(present) < len(grads) and case.flavor != "torch":
            raise ValueError(f"{case.id}: {name!r} misses a gradient; only the torch flavor defines what follows")
        values = loop(param, [grads[step][name] for step in present], [lrs[step] for step in present], **hyper)
        assert all(value.dtype == param.dtype and value.shape == param.shape for value in values), case.id
        after = dict(zip(present, values, strict=True))
        trajectory, current = [], param
        for step in range(len(grads)):
            current = after.get(step, current)
            trajectory.append(current)
        trajectories[name] = trajectory
    return [{name: trajectory[step] for name, trajectory in trajectories.items()} for step in range(len(grads))]


# How hyperparameters are drawn. Every draw is a Python float or bool, as the wire carries them.


def _between(rng: Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _magnitude(rng: Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _flag(rng: Generator) -> bool:
    return bool(rng.random() < 0.5)


def _sometimes(rng: Generator, value: float) -> float:
    return value if _flag(rng) else 0.0


def _nothing(rng: Generator) -> Hyper:
    return {}


def _decay(rng: Generator) -> Hyper:
    return {"weight_decay": _sometimes(rng, _magnitude(rng, 1e-4, 1e-1))}


def _torch_decay(rng: Generator) -> Hyper:
    return {**_decay(rng), "maximize": _flag(rng)}


def _sgd(rng: Generator) -> Hyper:
    momentum = _sometimes(rng, _between(rng, 0.3, 0.95))
    return {"momentum": momentum, "nesterov": momentum > 0 and _flag(rng)}


def _sgd_torch(rng: Generator) -> Hyper:
    """torch takes nesterov only with momentum and without dampening."""
    momentum = _sometimes(rng, _between(rng, 0.3, 0.95))
    nesterov = momentum > 0 and _flag(rng)
    dampening = 0.0 if nesterov else _sometimes(rng, _between(rng, 0, 0.9))
    return {"momentum": momentum, "nesterov": nesterov, "dampening": dampening, **_torch_decay(rng)}


def _nag(rng: Generator) -> Hyper:
    return {"momentum": _between(rng, 0.3, 0.95)}


def _adagrad(rng: Generator) -> Hyper:
    return {"initial_accumulator_value": _sometimes(rng, _between(rng, 0.01, 1))}


def _adagrad_torch(rng: Generator) -> Hyper:
    return {
        **_adagrad(rng),
        "eps": _magnitude(rng, 1e-10, 1e-3),
        "lr_decay": _sometimes(rng, _magnitude(rng, 1e-3, 1e-1)),
        **_torch_decay(rng),
    }


def _adagrad_inside(rng: Generator) -> Hyper:
    return {**_adagrad(rng), "eps_root": _magnitude(rng, 1e-8, 1e-3)}


def _rmsprop(rng: Generator) -> Hyper:
    return {
        "alpha": _between(rng, 0.8, 0.99),
        "momentum": _sometimes(rng, _between(rng, 0.3, 0.95)),
        "centered": False,  # has rows of its own, for its tolerance
    }


def _rmsprop_torch(rng: Generator) -> Hyper:
    return {**_rmsprop(rng), "eps": _magnitude(rng, 1e-8, 1e-3), **_torch_decay(rng)}


def _rmsprop_inside(rng: Generator) -> Hyper:
    return {**_rmsprop(rng), "eps_root": _magnitude(rng, 1e-8, 1e-3)}


def _rmsprop_optax(rng: Generator) -> Hyper:
    hyper = _rmsprop_inside(rng)
    return {
        **hyper,
        "nesterov": hyper["momentum"] != 0.0 and _flag(rng),
        "initial_scale": _sometimes(rng, _between(rng, 0.1, 1)),
        "bias_correction": _flag(rng),
    }


def _adadelta(rng: Generator) -> Hyper:
    return {"rho": _between(rng, 0.8, 0.99), "eps": _magnitude(rng, 1e-7, 1e-3)}


def _adam(rng: Generator) -> Hyper:
    return {
        "beta1": _between(rng, 0.5, 0.95),
        "beta2": _between(rng, 0.9, 0.9999),
        "eps": _magnitude(rng, 1e-8, 1e-3),
    }


def _adam_torch(rng: Generator) -> Hyper:
    return {**_adam(rng), "amsgrad": _flag(rng), **_torch_decay(rng)}


def _adam_optax(rng: Generator) -> Hyper:
    return {**_adam(rng), "eps_root": _sometimes(rng, _magnitude(rng, 1e-8, 1e-3)), "nesterov": _flag(rng)}


def _adam_keras(rng: Generator) -> Hyper:
    return {**_adam(rng), "amsgrad": _flag(rng), **_decay(rng)}


def _amsgrad(rng: Generator) -> Hyper:
    return {**_adam(rng), "eps_root": _sometimes(rng, _magnitude(rng, 1e-8, 1e-3))}


def _adam_inside(rng: Generator) -> Hyper:
    drawn = _adam(rng)
    return {"beta1": drawn["beta1"], "beta2": drawn["beta2"], "eps_root": _magnitude(rng, 1e-8, 1e-3)}


def _nadam_torch(rng: Generator) -> Hyper:
    return {
        **_adam(rng),
        "momentum_decay": _magnitude(rng, 1e-3, 1e-1),
        "decoupled_weight_decay": _flag(rng),
        **_torch_decay(rng),
    }


def _also(*samples: Sample) -> Sample:
    """Draw from several, the later ones winning."""

    def sample(rng: Generator) -> Hyper:
        drawn: Hyper = {}
        for each in samples:
            drawn.update(each(rng))
        return drawn

    return sample


def _fixed(case: Case, variant: str, *, outside: bool = False, cancels: bool = False, **hyper: object) -> Case:
    """A row that draws like another and then fixes some hyperparameters.

    outside  they are none of the framework's own
    cancels  the difference of two near means loses what they share; the wider tolerance is section 7's of the catalogue
    """

    def sample(rng: Generator) -> Hyper:
        return {**case.sample(rng), **hyper}

    row = replace(case, variant=variant, sample=sample, in_framework=case.in_framework and not outside)
    return replace(row, rtol=2e-3, atol=2e-5) if cancels else row


def _cases() -> tuple[Case, ...]:
    sgd = Case("sgd", "torch", _sgd_torch)
    sgd_optax = Case("sgd", "optax", _sgd)
    sgd_keras = Case("sgd", "keras", _also(_sgd, _decay))
    nag = Case("nag", "lecture", _nag)
    adagrad = Case("adagrad", "torch", _adagrad_torch)
    adagrad_optax = Case("adagrad", "optax", _adagrad_inside)
    adagrad_keras = Case("adagrad", "keras", _also(_adagrad_inside, _decay))
    adagrad_lecture = Case("adagrad", "lecture", _adagrad_inside)
    rmsprop = Case("rmsprop", "torch", _rmsprop_torch)
    rmsprop_optax = Case("rmsprop", "optax", _rmsprop_optax)
    rmsprop_keras = Case("rmsprop", "keras", _also(_rmsprop_inside, _decay))
    rmsprop_lecture = Case("rmsprop", "lecture", _rmsprop_inside)
    adadelta = Case("adadelta", "torch", _also(_adadelta, _torch_decay), learning_rate=1.0)
    adadelta_optax = Case("adadelta", "optax", _also(_adadelta, _decay), learning_rate=1.0)
    adadelta_keras = Case("adadelta", "keras", _also(_adadelta, _decay), learning_rate=1.0)
    adadelta_lecture = Case("adadelta", "lecture", _adadelta, learning_rate=1.0)
    adadelta_ratio = Case("adadelta_ratio", "lecture", _adadelta)
    adam = Case("adam", "torch", _adam_torch)
    adam_optax = Case("adam", "optax", _adam_optax)
    adam_keras = Case("adam", "keras", _adam_keras)
    adam_lecture = Case("adam", "lecture", _adam)
    adam_schedule = Case("adam", "lecture_schedule", _adam_inside)
    adamax = Case("adamax", "torch", _also(_adam, _torch_decay))
    adamax_optax = Case("adamax", "optax", _adam)
    adamax_keras = Case("adamax", "keras", _also(_adam, _decay))
    adamw = Case("adamw", "torch", _adam_torch)
    adamw_optax = Case("adamw", "optax", _also(_adam_optax, _decay))
    adamw_keras = Case("adamw", "keras", _adam_keras)
    nadam = Case("nadam", "torch", _nadam_torch)
    nadam_keras = Case("nadam", "keras", _also(_adam, _decay))

    def defaults(case: Case) -> Case:
        return replace(case, variant="defaults", sample=_nothing)

    return (
        sgd,
        _fixed(sgd, "plain", momentum=0.0, nesterov=False, dampening=0.0),
        _fixed(sgd, "momentum", momentum=0.9, nesterov=False, dampening=0.0),
        _fixed(sgd, "dampening", momentum=0.9, nesterov=False, dampening=0.5),
        _fixed(sgd, "nesterov", momentum=0.9, nesterov=True, dampening=0.0),
        _fixed(sgd, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(sgd),
        sgd_optax,
        _fixed(sgd_optax, "momentum", momentum=0.9, nesterov=False),
        _fixed(sgd_optax, "nesterov", momentum=0.9, nesterov=True),
        _fixed(sgd_optax, "weight_decay", outside=True, weight_decay=0.05),
        defaults(sgd_optax),
        sgd_keras,
        _fixed(sgd_keras, "momentum", momentum=0.9, nesterov=False),
        _fixed(sgd_keras, "nesterov", momentum=0.9, nesterov=True),
        _fixed(sgd_keras, "lr_outside", outside=True, momentum=0.9, nesterov=False, lr_in_momentum=False),
        _fixed(sgd_keras, "lr_outside-nesterov", outside=True, momentum=0.9, nesterov=True, lr_in_momentum=False),
        _fixed(sgd_keras, "weight_decay", weight_decay=0.05),
        _fixed(sgd_keras, "maximize", outside=True, maximize=True, weight_decay=0.05),
        defaults(sgd_keras),
        nag,
        adagrad,
        _fixed(adagrad, "lr_decay", lr_decay=0.05),
        _fixed(adagrad, "accumulator", initial_accumulator_value=0.3),
        _fixed(adagrad, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        _fixed(adagrad, "momentum", outside=True, momentum=0.9),
        _fixed(adagrad, "momentum-lr_decay", outside=True, momentum=0.9, lr_decay=0.05),
        _fixed(adagrad, "eps_root", outside=True, eps_root=1e-3),
        defaults(adagrad),
        adagrad_optax,
        _fixed(adagrad_optax, "weight_decay", outside=True, weight_decay=0.05),
        defaults(adagrad_optax),
        adagrad_keras,
        _fixed(adagrad_keras, "weight_decay", weight_decay=0.05),
        _fixed(adagrad_keras, "momentum", outside=True, momentum=0.9),
        defaults(adagrad_keras),
        adagrad_lecture,
        _fixed(adagrad_lecture, "momentum", momentum=0.9),
        defaults(adagrad_lecture),
        rmsprop,
        _fixed(rmsprop, "momentum", momentum=0.9),
        _fixed(rmsprop, "centered", centered=True, cancels=True),
        _fixed(rmsprop, "centered-momentum", centered=True, momentum=0.9, cancels=True),
        _fixed(rmsprop, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(rmsprop),
        rmsprop_optax,
        _fixed(rmsprop_optax, "momentum", momentum=0.9, nesterov=False),
        _fixed(rmsprop_optax, "nesterov", momentum=0.9, nesterov=True),
        _fixed(rmsprop_optax, "bias_correction", bias_correction=True),
        _fixed(rmsprop_optax, "initial_scale", initial_scale=0.5, bias_correction=False),
        _fixed(rmsprop_optax, "lr_outside", outside=True, momentum=0.9, nesterov=False, lr_in_momentum=False),
        _fixed(rmsprop_optax, "lr_outside-nesterov", outside=True, momentum=0.9, nesterov=True, lr_in_momentum=False),
        _fixed(rmsprop_optax, "centered", centered=True, bias_correction=False, cancels=True),
        # Corrected and centered, the first variance is 0: eps_root alone keeps the gradient from a division by it.
        _fixed(
            rmsprop_optax, "centered-bias_correction", centered=True, bias_correction=True, eps_root=0.1, cancels=True
        ),
        defaults(rmsprop_optax),
        rmsprop_keras,
        _fixed(rmsprop_keras, "momentum", momentum=0.9),
        _fixed(rmsprop_keras, "centered", centered=True, cancels=True),
        _fixed(rmsprop_keras, "lr_outside", outside=True, momentum=0.9, lr_in_momentum=False),
        _fixed(rmsprop_keras, "weight_decay", weight_decay=0.05),
        defaults(rmsprop_keras),
        rmsprop_lecture,
        _fixed(rmsprop_lecture, "momentum", momentum=0.9),
        _fixed(rmsprop_lecture, "centered", centered=True, cancels=True),
        defaults(rmsprop_lecture),
        adadelta,
        _fixed(adadelta, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(adadelta),
        adadelta_optax,
        _fixed(adadelta_optax, "weight_decay", weight_decay=0.05),
        defaults(adadelta_optax),
        adadelta_keras,
        _fixed(adadelta_keras, "weight_decay", weight_decay=0.05),
        defaults(adadelta_keras),
        adadelta_lecture,
        adadelta_ratio,
        adam,
        _fixed(adam, "amsgrad", amsgrad=True),
        _fixed(adam, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        _fixed(adam, "eps_root", outside=True, eps_root=1e-3),
        _fixed(adam, "eps_hat", outside=True, eps_hat=True),
        _fixed(adam, "nesterov", outside=True, nesterov=True),
        _fixed(adam, "uncorrected", outside=True, bias_correction=False),
        _fixed(adam, "uncorrected-nesterov", outside=True, bias_correction=False, nesterov=True),
        _fixed(adam, "amsgrad-eps_hat", outside=True, amsgrad=True, eps_hat=True),
        defaults(adam),
        adam_optax,
        _fixed(adam_optax, "eps_root", eps_root=1e-3),
        _fixed(adam_optax, "nesterov", nesterov=True),
        _fixed(adam_optax, "weight_decay", outside=True, weight_decay=0.05),
        _fixed(adam_optax, "maximize", outside=True, maximize=True),
        defaults(adam_optax),
        adam_keras,
        _fixed(adam_keras, "amsgrad", amsgrad=True),
        _fixed(adam_keras, "weight_decay", weight_decay=0.05),
        _fixed(adam_keras, "eps_hat_off", outside=True, eps_hat=False),
        _fixed(adam_keras, "maximize", outside=True, maximize=True, weight_decay=0.05),
        defaults(adam_keras),
        adam_lecture,
        defaults(adam_lecture),
        adam_schedule,
        _fixed(adam_schedule, "corrected", bias_correction=True),
        defaults(adam_schedule),
        Case("amsgrad", "optax", _amsgrad),
        adamax,
        _fixed(adamax, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        defaults(adamax),
        adamax_optax,
        defaults(adamax_optax),
        adamax_keras,
        _fixed(adamax_keras, "weight_decay", weight_decay=0.05),
        defaults(adamax_keras),
        Case("adamax", "lecture", _adam),
        adamw,
        _fixed(adamw, "amsgrad", amsgrad=True),
        _fixed(adamw, "weight_decay-maximize", maximize=True, weight_decay=0.05),
        _fixed(adamw, "nesterov", outside=True, nesterov=True),
        defaults(adamw),
        adamw_optax,
        _fixed(adamw_optax, "weight_decay", weight_decay=0.05),
        _fixed(adamw_optax, "nesterov", nesterov=True, weight_decay=0.05),
        defaults(adamw_optax),
        adamw_keras,
        _fixed(adamw_keras, "amsgrad", amsgrad=True),
        _fixed(adamw_keras, "weight_decay", weight_decay=0.05),
        defaults(adamw_keras),
        nadam,
        _fixed(nadam, "coupled", decoupled_weight_decay=False, weight_decay=0.05),
        _fixed(nadam, "decoupled", decoupled_weight_decay=True, weight_decay=0.05),
        _fixed(nadam, "maximize", maximize=True, weight_decay=0.05),
        defaults(nadam),
        Case("nadam", "optax", _adam),
        nadam_keras,
        _fixed(nadam_keras, "weight_decay", weight_decay=0.05),
        defaults(nadam_keras),
    )


CASES = _cases()
