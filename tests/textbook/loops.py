"""What every loop is made of: its types, its steps, and norms that no blocking of a sum can change.

A loop for one tensor takes the parameter, its gradients and learning rates step by step, and returns the parameter
after every step. A joint loop takes all tensors at once by name, for rules that reduce over all of them. `each_tensor`
makes the former into the latter, which is what the table holds:

    loop(params, grads, lrs, **hyper) -> the parameters after every step

and, where the rule reads the loss, `losses=` with one number for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DecayForm = Literal["l2", "before", "added"]
Hyper = dict[str, object]
Params = dict[str, Array]
Grads = dict[str, Array | None]

TensorLoop = Callable[..., list[Array]]
JointLoop = Callable[..., list[Params]]
Key = tuple[str, str]


def steps(grads: Sequence[Array], lrs: Sequence[float]) -> Iterator[tuple[int, Array, float]]:
    """The steps of a run: their number from 1, the gradient, the learning rate as a Python float."""
    for index, (grad, lr) in enumerate(zip(grads, lrs, strict=True)):
        yield index + 1, grad, float(lr)


def joint_steps(grads: Sequence[Grads], lrs: Sequence[float]) -> Iterator[tuple[int, Params, float]]:
    """The same for all tensors at once; every tensor has a gradient."""
    for index, (row, lr) in enumerate(zip(grads, lrs, strict=True)):
        present = {name: grad for name, grad in row.items() if grad is not None}
        if len(present) < len(row):
            raise ValueError(f"step {index + 1} misses {sorted(row.keys() - present.keys())}; this rule needs them all")
        yield index + 1, present, float(lr)


def each_tensor(loop: TensorLoop) -> JointLoop:
    """Run a loop over every tensor by itself.

    A gradient of None leaves its parameter alone for that step: the step is left out, and not counted.
    """

    def joint(params: Params, grads: Sequence[Grads], lrs: Sequence[float], **hyper: object) -> list[Params]:
        after: list[Params] = [{} for _ in grads]
        for name, param in params.items():
            present = [(row[name], lr) for row, lr in zip(grads, lrs, strict=True) if row[name] is not None]
            values = iter(loop(param, [grad for grad, _ in present], [lr for _, lr in present], **hyper))
            current = param
            for row, out in zip(grads, after, strict=True):
                current = current if row[name] is None else next(values)
                out[name] = current
        return after

    return joint


def square_norm(array: Array) -> float:
    """The sum of squares, in float64 whatever the array's dtype."""
    return float(np.sum(np.square(array, dtype=np.float64)))


def norm(array: Array) -> float:
    return math.sqrt(square_norm(array))


def root_mean_square(array: Array) -> float:
    return norm(array) / math.sqrt(array.size)


def dot(left: Array, right: Array) -> float:
    return float(np.sum(np.multiply(left, right, dtype=np.float64)))


def ema(average: Array, value: Array, decay: float) -> Array:
    return np.asarray(decay * average + (1 - decay) * value)
