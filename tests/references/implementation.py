"""What the reference tests test: the one place that knows how to run it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.schedules import Schedule, preview
from tests.core.local import LocalRun
from tests.textbook.cases import Grads, Hyper, Params
from tests.textbook.optimizers import Array

DEVICE = CpuDevice(2)


def step_through(
    name: str, flavor: str, hyper: Hyper, params: Params, grads: Sequence[Grads], lrs: Sequence[float]
) -> list[Params]:
    """The parameters after every step; a gradient of None is one that was not pushed.

    The learning rates come from a `table` schedule, where the optimizer has one.
    """
    schedules = {} if name == "adadelta_ratio" else {"lr": {"name": "table", "values": list(lrs)}}
    run = LocalRun(params, name, flavor=flavor, hyperparameters=hyper, schedules=schedules, device=DEVICE)
    return [run.step(gradients) for gradients in grads]


def evaluate_schedule(spec: dict[str, object], initial: float, steps: int) -> Array:
    """The schedule's value at t = 0 .. steps - 1, as float64; `initial` is the hyperparameter's own value."""
    return np.asarray(preview(Schedule.parse(spec), initial, steps))
