"""Every elementwise optimizer's fused kernel on a GPU: the bytes that it moves per second over what the device copies,
and its time against PyTorch's fused version where there is one. `make bench-gpu`; needs CuPy.

Times are the device's own, between events on its stream: of a row's turns the median, each of several launches.
"""

import argparse
import ast
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.benchmarks.options import Options, has_torch
from stepwell_server.benchmarks.report import Table, describe_machine, print_footer, print_table
from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.definition import Definition
from stepwell_server.core.compiler.program import Program, specialise
from stepwell_server.core.devices.cuda import CudaDevice
from stepwell_server.core.devices.device import DeviceUnavailable
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.pieces import whole

_FLOAT32 = np.dtype(np.float32)
_LAUNCHES = 5
_LR = 1e-3
# PyTorch's optimizers that have a fused version for CUDA.
_TORCH_NAMES = {"sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam", "adamw": "AdamW"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000_000, help="float32 parameters")
    parser.add_argument("--rounds", type=int, default=21, help="timed turns of every row")
    parser.add_argument("--device", type=int, default=0, help="which GPU")
    parser.add_argument("--only", nargs="*", default=None, help="names of optimizers")
    options = parser.parse_args()
    try:
        device = CudaDevice(options.device)
    except DeviceUnavailable as error:
        sys.exit(f"bench-gpu: {error}")
    print_table(benchmark(device, options.size, options.rounds, options.only))
    print_footer({"device": device.name, **describe_machine(Options(options.size, options.rounds, options.rounds))})
    device.close()


def benchmark(device: CudaDevice, size: int, rounds: int, only: list[str] | None = None) -> Table:
    """A row per optimizer in its default flavor, after one for the copy that all are measured by."""
    copied = _copy_bandwidth(device, size, rounds)
    numbers = np.random.default_rng(0).random(size, np.float32) + np.float32(0.5)
    rows = [{"optimizer": "a copy of one array", "GB/s": copied, "of the copy's": 1.0, "ms": 8 * size / copied / 1e6}]
    for name, definition in sorted(OPTIMIZERS.items()):
        if definition.arrays or (only and name not in only):
            continue
        program, values = _program(definition)
        if len(program.stages) == 1:
            rows.append(_row(device, name, program, values, numbers, rounds, copied))
    return Table(
        f"Fused kernels on {device.name}: {size:,} float32 parameters in place; {rounds} rounds of {_LAUNCHES}",
        rows,
        notes=(
            "GB/s: what the kernel must read and write, each array once, over its time. torch fused: its time over "
            "ours; above 1 we are faster." + ("" if has_torch() else " PyTorch is not installed."),
        ),
    )


def _row(
    device: CudaDevice,
    name: str,
    program: Program,
    values: dict[str, Any],
    numbers: NDArray[np.float32],
    rounds: int,
    copied: float,
) -> dict[str, Any]:
    kernel, size = device.compile(program, _FLOAT32), len(numbers)
    arrays = {each: device.allocate(size, _FLOAT32) for each in program.arrays}
    for vector in arrays.values():
        # Second moments are not negative, and nothing is subnormal.
        device.write(vector, 0, numbers)
    table = np.array([program.host(7, values, [0.5 for _ in program.scalars])[0]], np.float32)
    pieces = whole(size)
    milliseconds = _time(device, lambda: kernel.update(pieces, table, arrays), rounds)
    moved = _moved_bytes(program, size)
    row = {
        "optimizer": name,
        "GB/s": moved / milliseconds / 1e6,
        "of the copy's": moved / milliseconds / 1e6 / copied,
        "ms": milliseconds,
    }
    if name in _TORCH_NAMES and has_torch():
        arrays.clear()
        device.xp.get_default_memory_pool().free_all_blocks()
        theirs = _torch(device, name, size, rounds)
        row |= {"torch fused, ms": theirs, "torch fused": None if theirs is None else theirs / milliseconds}
    return row


def _program(definition: Definition) -> tuple[Program, dict[str, Any]]:
    flavor = definition.flavor(None)
    defaults = definition.defaults(flavor)
    values = definition.resolve(flavor, {name: _LR for name, value in defaults.items() if value is REQUIRED})
    required = [name for name, need in definition.inputs.items() if need == "required"]
    return specialise(definition, values, inputs=required), values


def _moved_bytes(program: Program, size: int) -> int:
    used = {part.id for value in program.last.expressions for part in ast.walk(value) if isinstance(part, ast.Name)}
    return (len(used.intersection(program.arrays)) + len(program.last.outputs)) * size * _FLOAT32.itemsize


def _copy_bandwidth(device: CudaDevice, size: int, rounds: int) -> float:
    """Gigabytes per second, read and written, of the device's own copy."""
    source, target = device.allocate(size, _FLOAT32), device.allocate(size, _FLOAT32)
    milliseconds = _time(device, lambda: device.copy(source, target), rounds)
    return 2 * source.nbytes / milliseconds / 1e6


def _time(device: CudaDevice, work: Callable[[], None], rounds: int) -> float:
    """Milliseconds of one launch, on the device."""
    for _ in range(3):
        work()
    return statistics.median(_samples(device, work, rounds))


def _samples(device: CudaDevice, work: Callable[[], None], rounds: int) -> Iterator[float]:
    cuda = device.xp.cuda
    for _ in range(rounds):
        begin, end = cuda.Event(), cuda.Event()
        with device.committing():
            begin.record()
        for _ in range(_LAUNCHES):
            work()
        with device.committing():
            end.record()
        end.synchronize()
        yield cuda.get_elapsed_time(begin, end) / _LAUNCHES


def _torch(device: CudaDevice, name: str, size: int, rounds: int) -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    where = torch.device("cuda", device.number)
    param = torch.nn.Parameter(torch.rand(size, device=where) + 0.5)
    param.grad = torch.rand(size, device=where) + 0.5
    optimizer = getattr(torch.optim, _TORCH_NAMES[name])([param], lr=_LR, fused=True)
    samples: list[float] = []
    for turn in range(rounds + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(_LAUNCHES):
            optimizer.step()
        end.record()
        end.synchronize()
        if turn >= 3:
            samples.append(begin.elapsed_time(end) / _LAUNCHES)
    return statistics.median(samples)


if __name__ == "__main__":
    main()
