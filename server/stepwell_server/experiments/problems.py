"""Problems to compare optimizers on: small enough to compute by hand, each with one difficulty.

Every contestant sees the same data and the same noise: both are drawn from the seed before the first step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from stepwell_server.core.arguments import unknown
from stepwell_server.core.errors import InvalidSpec

Point: TypeAlias = npt.NDArray[np.float64]

STEPS_MAX: Final = 100_000

DENSITY: Final = 0.05
"""sparse_dense: the share of samples that a sparse feature occurs in."""
BATCH_SIZE: Final = 8
LABEL_NOISE: Final = 0.5
"""sparse_dense: the standard deviation of the labels' noise, so that gradients never end."""

CURVATURES: Final = (1.0, 50.0)
"""ravine: along and across."""

NOISE: Final = 1.0
"""noisy: the standard deviation of each component of the gradient's noise."""

BURST, PERIOD = 10, 200
"""zeros: so many steps with a gradient, at the beginning of so many."""


@dataclass(frozen=True)
class Problem:
    """Something to minimise over points of shape (features,), float64.

    groups: what the components are, for pictures: a name, and which components bear it.
    loss: what is to be minimised, above its lowest value if it has one.
    step_loss: what step t (from 0) sees of it: a mini-batch, a noisy reading. gradient: the gradient of that.
    minimum: where the loss is lowest; None where it falls without end.
    view: (left, right, bottom, top) of the picture of two components; None where a path on a plane says little.
    window: over how many steps a picture takes the mean of a rate. random: whether the steps see noise, which a
    picture of the loss evens out over as many.
    """

    name: str
    summary: str
    groups: Mapping[str, tuple[int, ...]]
    start: Point
    minimum: Point | None
    loss: Callable[[Point], float]
    step_loss: Callable[[Point, int], float]
    gradient: Callable[[Point, int], Point]
    view: tuple[float, float, float, float] | None = None
    window: int = 1
    random: bool = False


def make_problem(name: str, steps: int, seed: int = 0) -> Problem:
    """The problem of this name with its data for so many steps; raises InvalidSpec with the nearest name."""
    if name not in PROBLEMS:
        raise unknown(InvalidSpec, "problem", name, PROBLEMS)
    if not 1 <= steps <= STEPS_MAX:
        raise InvalidSpec(f"steps is {steps}, expected 1 to {STEPS_MAX:,}; choose a number between")
    return PROBLEMS[name](steps, np.random.default_rng(seed))


def _sparse_dense(steps: int, rng: np.random.Generator) -> Problem:
    """Least squares in mini-batches. Labels are noisy; the loss that is drawn is without the noise."""
    each = 4
    density = np.repeat([1.0, DENSITY], each)
    truth = np.array([1.0, -1.0] * each)
    features = rng.normal(size=(steps, BATCH_SIZE, 2 * each))
    features *= rng.random(features.shape) < density
    labels = features @ truth + LABEL_NOISE * rng.normal(size=(steps, BATCH_SIZE))

    def error(point: Point, t: int) -> Point:
        return np.asarray(features[t] @ point - labels[t])

    return Problem(
        "sparse_dense",
        f"a regression with four features that always occur and four that occur in {DENSITY:.0%} of the samples",
        {"dense features": tuple(range(each)), "sparse features": tuple(range(each, 2 * each))},
        start=np.zeros(2 * each),
        minimum=truth,
        loss=lambda point: float(density @ (point - truth) ** 2) / 2,
        step_loss=lambda point, t: float(np.mean(error(point, t) ** 2)) / 2,
        gradient=lambda point, t: features[t].T @ error(point, t) / BATCH_SIZE,
        window=100,
        random=True,
    )


def _ravine(steps: int, rng: np.random.Generator) -> Problem:
    curvatures = np.array(CURVATURES)
    return _fixed(
        "ravine",
        f"a quadratic that is {CURVATURES[1] / CURVATURES[0]:g} times as steep across as along",
        {"along the ravine": (0,), "across the ravine": (1,)},
        start=np.array([-4.0, 1.0]),
        minimum=np.zeros(2),
        loss=lambda point: float(curvatures @ point**2) / 2,
        gradient=lambda point: curvatures * point,
        view=(-5.0, 1.6, -1.4, 1.4),
        window=10,
    )


def _rosenbrock(steps: int, rng: np.random.Generator) -> Problem:
    return _fixed(
        "rosenbrock",
        "a curved valley that is easy to find and hard to follow",
        {"x": (0,), "y": (1,)},
        start=np.array([-1.5, 1.5]),
        minimum=np.ones(2),
        loss=lambda point: float((1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2),
        gradient=lambda point: np.array(
            [
                -2 * (1 - point[0]) - 400 * point[0] * (point[1] - point[0] ** 2),
                200 * (point[1] - point[0] ** 2),
            ]
        ),
        view=(-2.0, 2.0, -0.8, 2.6),
        window=25,
    )


def _noisy(steps: int, rng: np.random.Generator) -> Problem:
    noise = NOISE * rng.normal(size=(steps, 2))
    return Problem(
        "noisy",
        "a round quadratic whose gradient is read with noise",
        {"x": (0,), "y": (1,)},
        start=np.array([4.0, 2.0]),
        minimum=np.zeros(2),
        loss=lambda point: float(point @ point) / 2,
        step_loss=lambda point, t: float(point @ point / 2 + noise[t] @ point),
        gradient=lambda point, t: point + noise[t],
        view=(-2.0, 5.0, -2.5, 3.5),
        window=25,
        random=True,
    )


def _alternating(steps: int, rng: np.random.Generator) -> Problem:
    signs = np.stack([np.ones(steps), (-1.0) ** np.arange(steps)], axis=1)
    return _given(
        "alternating",
        "two gradients of size 1, one of the same sign at every step, one that changes it",
        {"steady gradient": (0,), "alternating gradient": (1,)},
        signs,
        mean=np.array([1.0, 0.0]),
    )


def _zeros(steps: int, rng: np.random.Generator) -> Problem:
    present = np.stack([np.ones(steps), np.arange(steps) % PERIOD < BURST], axis=1)
    return _given(
        "zeros",
        f"two gradients of size 1, one at every step, one for {BURST} steps in {PERIOD}",
        {"steady gradient": (0,), "gradient in bursts": (1,)},
        present,
        mean=np.array([1.0, BURST / PERIOD]),
    )


def _fixed(
    name: str,
    summary: str,
    groups: Mapping[str, tuple[int, ...]],
    *,
    start: Point,
    minimum: Point,
    loss: Callable[[Point], float],
    gradient: Callable[[Point], Point],
    view: tuple[float, float, float, float],
    window: int,
) -> Problem:
    """A problem that is the same at every step."""
    return Problem(
        name,
        summary,
        groups,
        start,
        minimum,
        loss,
        step_loss=lambda point, t: loss(point),
        gradient=lambda point, t: gradient(point),
        view=view,
        window=window,
    )


def _given(name: str, summary: str, groups: Mapping[str, tuple[int, ...]], gradients: Point, mean: Point) -> Problem:
    """Gradients, (steps, features), that do not ask where the point is: those of a linear loss."""
    return Problem(
        name,
        summary,
        groups,
        start=np.zeros(gradients.shape[1]),
        minimum=None,
        loss=lambda point: float(mean @ point),
        step_loss=lambda point, t: float(gradients[t] @ point),
        gradient=lambda point, t: gradients[t],
    )


PROBLEMS: Mapping[str, Callable[[int, np.random.Generator], Problem]] = {
    "sparse_dense": _sparse_dense,
    "ravine": _ravine,
    "rosenbrock": _rosenbrock,
    "noisy": _noisy,
    "alternating": _alternating,
    "zeros": _zeros,
}
"""By name: what makes a problem with its data for so many steps, from a generator of random numbers."""
