"""The update alone: the fused Adam kernel against what memory allows, and against PyTorch's."""

from collections.abc import Iterator

import numba
import numpy as np

from stepwell_server.benchmarks.contest import Baseline, Contestant, compete
from stepwell_server.benchmarks.options import Options, has_torch, missing, random_vector
from stepwell_server.benchmarks.report import Table
from stepwell_server.core.compiler.program import specialise
from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.memory import Vector
from stepwell_server.core.optimizers import adam
from stepwell_server.core.pieces import whole

_BASELINES = (Baseline("floor", "floor"), Baseline("torch-fused", "torch fused"))
_FLOAT32 = np.dtype(np.float32)


def benchmark(options: Options) -> Table:
    """Every kernel on the same arrays, side by side."""
    device = CpuDevice(options.threads)
    param, grad, exp_avg, exp_avg_sq, param_out = (device.allocate(options.size, _FLOAT32) for _ in range(5))
    np.copyto(param, random_vector(options.size))
    np.copyto(grad, param)
    arrays = (param, grad, exp_avg, exp_avg_sq)
    try:
        contestants = [
            _floor(device, *arrays),
            *_stepwell(device, *arrays, param_out),
            *(_torch(options, *arrays) if has_torch() else ()),
        ]
        return compete(
            f"The Adam kernel: {options.size:,} float32 parameters in place, {options.threads} threads",
            contestants,
            _BASELINES,
            rounds=options.rounds,
            warmup_rounds=2,
            notes=missing(),
        )
    finally:
        device.close()


def _floor(device: CpuDevice, param: Vector, grad: Vector, exp_avg: Vector, exp_avg_sq: Vector) -> Contestant:
    array, index = numba.float32[::1], numba.uint64
    signature = numba.void(index, index, array, array, array, array, numba.float32)
    # The options of our own kernels; unsigned indices, so that the loop vectorises.
    touch = numba.njit([signature], nogil=True, error_model="numpy", fastmath={"contract", "nsz"})(_touch)
    nothing = np.float32(0.0)
    return Contestant(
        "floor",
        "the floor: a loop that reads 4 arrays and writes 3",
        lambda: device.spread(
            whole(len(param)),
            lambda part: touch(part.begins[0], part.ends[-1], param, grad, exp_avg, exp_avg_sq, nothing),
        ),
    )


# Numba takes the types from the signature above.
def _touch(begin, end, param, grad, exp_avg, exp_avg_sq, nothing):  # type: ignore[no-untyped-def]
    """Read all four, write three, and leave them as they were for whoever is next: `nothing` is 0 at run time."""
    for i in range(begin, end):
        change = nothing * grad[i]
        param[i] += change
        exp_avg[i] += change
        exp_avg_sq[i] += change


def _stepwell(
    device: CpuDevice, param: Vector, grad: Vector, exp_avg: Vector, exp_avg_sq: Vector, param_out: Vector
) -> Iterator[Contestant]:
    values = adam.resolve("torch", {})
    program = specialise(adam, values)
    kernel = device.compile(program, _FLOAT32)
    slots = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    steps = {"now": 0}

    def launch(target: Vector) -> None:
        steps["now"] += 1
        table = np.array([program.host(steps["now"], values, ())[0]], np.float32)
        kernel.update(whole(len(param)), table, {"param": param, "grad": grad, **slots}, target)

    yield Contestant("stepwell", "Stepwell: the compiled kernel in place", lambda: launch(param))
    yield Contestant(
        "stepwell-out",
        "Stepwell: out of place, for a version that readers hold; a fifth array",
        lambda: launch(param_out),
    )


def _torch(options: Options, param: Vector, grad: Vector, exp_avg: Vector, exp_avg_sq: Vector) -> Iterator[Contestant]:
    # These import PyTorch, which may be missing.
    import torch

    from stepwell_server.benchmarks.torch_adam import TorchAdam

    torch.set_num_threads(options.threads)
    arrays = (param, grad, exp_avg, exp_avg_sq)
    yield Contestant("torch-fused", "PyTorch, fused=True", TorchAdam(*arrays, fused=True).step)
    yield Contestant("torch-foreach", "PyTorch, foreach=True", TorchAdam(*arrays, foreach=True).step)
    yield Contestant("torch-single", "PyTorch, its loop over single tensors", TorchAdam(*arrays).step)
