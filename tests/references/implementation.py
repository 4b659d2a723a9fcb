"""What the reference tests test: the one place that knows how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.schedules import Schedule, preview
from tests.core.local import LocalRun, place
from tests.kernels import kept_kernels
from tests.textbook.loops import Array, Grads, Hyper, Params
from tests.textbook.transforms import TransformCase, TransformRun

# This optimizer keeps the gradient that it sees, to the bit.
KEEPER: dict[str, Any] = {"optimizer": "optimistic_gradient_descent", "hyperparameters": {"lr": 0.0}}

_used: dict[str, Any] = {"device": "cpu", "kernels": kept_kernels()}


def use(device: str, kernels: Path | None) -> None:
    """Run on this device from now on, and keep compiled kernels there."""
    _used.update(device=device, kernels=kernels)


def step_through(
    name: str,
    flavor: str,
    hyper: Hyper,
    params: Params,
    grads: Sequence[Grads],
    lrs: Sequence[float],
    losses: Sequence[float] | None = None,
) -> list[Params]:
    """The parameters after every step; a gradient of None is one that was not pushed.

    The learning rates come from a `table` schedule, where the optimizer has one; losses go with the gradients.
    """
    schedules = {} if name == "adadelta_ratio" else {"lr": {"name": "table", "values": list(lrs)}}
    run = LocalRun(params, name, flavor=flavor, hyperparameters=hyper, schedules=schedules, device=_device())
    if losses is None:
        return [run.step(gradients) for gradients in grads]
    return [run.step(gradients, loss=loss) for gradients, loss in zip(grads, losses, strict=True)]


def step_with_hessians(
    name: str, hyper: Hyper, params: Params, grads: Sequence[Params], hessians: Sequence[Params | None], lr: float
) -> list[Params]:
    """The parameters after every step; some of them bring the Hessian's diagonal."""
    run = LocalRun(params, name, hyperparameters={"lr": lr, **hyper}, device=_device())
    return [
        run.step(gradients, **({} if hessian is None else {"inputs": {"hessian": hessian}}))
        for gradients, hessian in zip(grads, hessians, strict=True)
    ]


def step_transformed(case: TransformCase, drawn: TransformRun, device: Any = None) -> list[Params]:
    """The gradients that the optimizer sees, after every step."""
    spec = {"name": case.name, **drawn.arguments}
    run = LocalRun(drawn.params[0], **KEEPER, transforms=(spec,), device=device or _device())
    seen = []
    for grads, params, density in zip(drawn.grads, drawn.params, drawn.densities, strict=True):
        for name, value in params.items():
            place(run.run, 0, run.run.layout.indices[name], run.run.groups[0].vectors[""].vector, value)
        run.step(grads, **_sparsity_factor(drawn.arguments, density))
        seen.append(run.arrays("prev_grad"))
    return seen


def step_unscaled(grads: Sequence[Params], **arguments: Any) -> tuple[list[Params | None], list[float]]:
    """The gradients that the optimizer sees, None where the step is skipped; and the loss scale before and after."""
    run = LocalRun(
        {name: np.zeros_like(grad) for name, grad in grads[0].items()},
        **KEEPER,
        transforms=({"name": "unscale", **arguments},),
        device=_device(),
    )
    assert run.run.loss_scale is not None
    seen: list[Params | None] = []
    scales = [run.run.loss_scale.scale]
    for row in grads:
        version = run.run.version
        run.step(row)
        seen.append(None if run.run.version == version else run.arrays("prev_grad"))
        scales.append(run.run.loss_scale.scale)
    return seen, scales


def step_wrapped(
    rule: Mapping[str, Any],
    wrapper: Mapping[str, Any],
    point: str,
    params: Params,
    grads: Sequence[Params],
    lrs: Sequence[float],
) -> list[Params]:
    """After every step the parameters, and under `name`, `point` those of the wrapper's point."""
    schedules = {"lr": {"name": "table", "values": list(lrs)}}
    run = LocalRun(params, **rule, schedules=schedules, wrappers=(wrapper,), device=_device())
    after = []
    for row in grads:
        served = run.step(row)
        after.append(served | {f"{name}, {point}": value for name, value in run.point(point).items()})
    return after


def evaluate_schedule(spec: dict[str, object], initial: float, steps: int) -> Array:
    """The schedule's value at t = 0 .. steps - 1, as float64; `initial` is the hyperparameter's own value."""
    return np.asarray(preview(Schedule.parse(spec), initial, steps))


def _sparsity_factor(arguments: Mapping[str, Any], density: float) -> dict[str, float]:
    """What a client that knows its density sends, if it is asked to."""
    if arguments.get("source") != "client":
        return {}
    inverse = arguments["kind"] == "inverse"
    return {"sparsity_factor": 1 / max(density, arguments["floor"]) if inverse else 1 + arguments["k"] * (1 - density)}


def _device() -> Any:
    return _open(_used["device"], _used["kernels"])


@cache
def _open(device: str, kernels: Path | None) -> Any:
    if device == "cpu":
        return CpuDevice(2, kernels)
    from stepwell_server.core.devices.cuda import CudaDevice

    _, _, number = device.partition(":")
    return CudaDevice(int(number or 0), kernels)
