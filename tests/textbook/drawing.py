"""What a row of the table is, and how a run is drawn from it: hyperparameters, parameters, gradients, learning rates.

A `Case` is one row. `draw_run` makes everything that one trajectory depends on from a seed. Every draw is a Python
float, bool, int, string or list, as the wire carries them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike

from tests.textbook.loops import Array, Grads, Hyper, Params

Sample = Callable[[Generator], Hyper]
Shapes = Mapping[str, tuple[int, ...]]
Adjust = Callable[[Hyper, list[Array]], list[Array]]
# From (rng, hyperparameters, parameters, learning rates): gradients that depend on where the parameters are.
Objective = Callable[[Generator, Hyper, Params, Sequence[float]], list[Params]]

SHAPES: Shapes = {"matrix": (5, 7), "cube": (2, 3, 4), "vector": (11,), "scalar": ()}
NO_SCALAR: Shapes = {"matrix": (5, 7), "cube": (2, 3, 4), "vector": (11,), "single": (1,)}
# Two dimensions of every kind: rows more than columns or fewer, as many, a single one.
MATRICES: Shapes = {"wide": (5, 7), "tall": (9, 4), "square": (6, 6), "row": (1, 8)}
PROFILES = ("unit", "small", "decaying", "sparse", "alternating")


@dataclass(frozen=True)
class Case:
    """One row: an optimizer in one flavor, and how to draw its hyperparameters by their names on the wire.

    variant       what the row fixes, for its id; empty for the row that draws everything
    learning_rate the size of the learning rates to draw (`learning_rates`)
    rtol, atol    what float32 is allowed
    float64       what float64 is allowed
    in_framework  whether the framework that the flavor is named after has all of these arguments
    shapes        the tensors, for rules that do not take every shape
    constant_lr   the framework takes one learning rate, and no schedule
    takes_loss    every step comes with the loss at its parameters
    adjust        mends one tensor's gradients where the rule is discontinuous in them
    objective     gives the gradients, for rules that make no sense of unrelated ones
    steps         how many at most, for rules in which round-off grows
    start         how large the parameters are to begin with
    """

    name: str
    flavor: str
    sample: Sample
    variant: str = ""
    learning_rate: float = 1e-2
    rtol: float = 2e-5
    atol: float = 1e-6
    float64: tuple[float, float] = (1e-11, 1e-13)
    in_framework: bool = True
    shapes: Shapes = field(default_factory=lambda: SHAPES, hash=False)
    constant_lr: bool = False
    takes_loss: bool = False
    adjust: Adjust | None = None
    objective: Objective | None = None
    steps: int = 1000
    start: float = 1.0

    @property
    def id(self) -> str:
        return "-".join(filter(None, (self.name, self.flavor, self.variant)))

    def tolerance(self, dtype: DTypeLike) -> tuple[float, float]:
        """(rtol, atol) to demand of every element after every step: |x - y| <= atol + rtol * |y|."""
        return self.float64 if np.dtype(dtype) == np.float64 else (self.rtol, self.atol)


@dataclass(frozen=True)
class Run:
    """Everything that one trajectory depends on; `losses` only where the rule takes them."""

    hyper: Hyper
    params: Params
    grads: list[Grads]
    lrs: list[float]
    losses: list[float] | None = None


def draw_run(case: Case, seed: int, dtype: DTypeLike, steps: int) -> Run:
    """The run that belongs to a seed; float32 gets the float64 numbers, rounded."""
    rng = np.random.default_rng(seed)
    steps = min(steps, case.steps)
    hyper = case.sample(rng)
    params = {name: case.start * rng.normal(size=shape) for name, shape in case.shapes.items()}
    columns = {name: gradients(rng, shape, steps) for name, shape in case.shapes.items()}
    if case.adjust is not None:
        columns = {name: case.adjust(hyper, column) for name, column in columns.items()}
    rows: list[Params] = [{name: column[step] for name, column in columns.items()} for step in range(steps)]
    # The notes' misprint has no learning rate; its loop multiplies by 1.
    lrs = [1.0] * steps if case.name == "adadelta_ratio" else learning_rates(rng, case.learning_rate, steps)
    if case.constant_lr:
        lrs = [lrs[0]] * steps
    losses = [magnitude(rng, 0.1, 10) for _ in range(steps)] if case.takes_loss else None
    if case.objective is not None:
        rows = case.objective(rng, hyper, params, lrs)
    grads: list[Grads] = [{name: np.asarray(grad, dtype) for name, grad in row.items()} for row in rows]
    return Run(hyper, {name: np.asarray(param, dtype) for name, param in params.items()}, grads, lrs, losses)


def gradients(rng: Generator, shape: tuple[int, ...], steps: int, profile: str | None = None) -> list[Array]:
    """One tensor's gradients in float64, of a profile drawn at random unless given.

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
    return [np.asarray(value) for value in values]


def learning_rates(rng: Generator, size: float, steps: int) -> list[float]:
    """Learning rates that vary: a slow wave between size / 10 and size, times random jumps every ten steps or so."""
    phase = rng.uniform(0, 2 * math.pi)
    jump, rates = 1.0, []
    for step in range(steps):
        if rng.random() < 0.1:
            jump = between(rng, 0.2, 1)
        rates.append(size * jump * (0.55 + 0.45 * math.sin(step / 7 + phase)))
    return rates


# What rows draw from.


def between(rng: Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def magnitude(rng: Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def flag(rng: Generator) -> bool:
    return bool(rng.random() < 0.5)


def sometimes(rng: Generator, value: float) -> float:
    return value if flag(rng) else 0.0


def decay(rng: Generator) -> Hyper:
    return {"weight_decay": sometimes(rng, magnitude(rng, 1e-4, 1e-1))}


def torch_decay(rng: Generator) -> Hyper:
    return {**decay(rng), "maximize": flag(rng)}


def betas(rng: Generator) -> Hyper:
    return {"beta1": between(rng, 0.5, 0.95), "beta2": between(rng, 0.9, 0.9999)}


def betas_and_eps(rng: Generator) -> Hyper:
    return {**betas(rng), "eps": magnitude(rng, 1e-8, 1e-3)}


def eps_root(rng: Generator) -> Hyper:
    return {"eps_root": sometimes(rng, magnitude(rng, 1e-8, 1e-3))}


def nesterov(rng: Generator) -> Hyper:
    return {"nesterov": flag(rng)}


def also(*samples: Sample) -> Sample:
    """Draw from several, the later ones winning."""

    def sample(rng: Generator) -> Hyper:
        drawn: Hyper = {}
        for each in samples:
            drawn.update(each(rng))
        return drawn

    return sample


def only(**hyper: object) -> Sample:
    """Always the same; without arguments, the defaults."""
    return lambda rng: dict(hyper)


def fixed(case: Case, variant: str, /, *, outside: bool = False, cancels: bool = False, **hyper: object) -> Case:
    """A row that draws like another and then fixes some hyperparameters.

    outside  they are none of the framework's own
    cancels  the difference of two near means loses what they share; the wider tolerance is section 7's of the catalogue
    """

    def sample(rng: Generator) -> Hyper:
        return {**case.sample(rng), **hyper}

    row = replace(case, variant=variant, sample=sample, in_framework=case.in_framework and not outside)
    return replace(row, rtol=2e-3, atol=2e-5) if cancels else row


def defaults(case: Case) -> Case:
    """The row that gives no hyperparameter at all."""
    return replace(case, variant="defaults", sample=only())
