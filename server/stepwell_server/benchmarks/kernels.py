"""Every elementwise optimizer's fused kernel against its own floor, and against PyTorch's where there is one."""

import statistics
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numba
import numpy as np

from stepwell_server.benchmarks.contest import Contestant, compete
from stepwell_server.benchmarks.options import Options, has_torch, random_vector
from stepwell_server.benchmarks.report import Table
from stepwell_server.core.compiler.definition import Definition
from stepwell_server.core.compiler.program import Program, specialise
from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.memory import Vector
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.pieces import Pieces, whole

_FLOAT32 = np.dtype(np.float32)
# PyTorch's classes of the same rule; "sgd" has no momentum here, as by default.
_TORCH = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "adam": "Adam",
    "adamw": "AdamW",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "rprop": "Rprop",
    "asgd": "ASGD",
}
_FUSED = {"SGD", "Adagrad", "Adam", "AdamW"}


def benchmark(options: Options) -> Table:
    """A row per optimizer in its default flavor: medians of interleaved turns, as ratios."""
    device = CpuDevice(options.threads)
    try:
        rows = [_row(device, options, name, definition) for name, definition in _elementwise()]
    finally:
        device.close()
    return Table(
        f"Fused kernels: {options.size:,} float32 parameters in place, {options.threads} threads; {options.rounds} "
        "rounds each",
        rows,
        notes=(
            "floor: a loop that reads and writes the same number of arrays. torch: its fused version, else foreach; "
            "below 1 is faster than PyTorch." + ("" if has_torch() else " PyTorch is not installed."),
        ),
    )


def _elementwise() -> Iterator[tuple[str, Definition]]:
    for name, definition in sorted(OPTIMIZERS.items()):
        if definition.arrays is None and not _program(definition).scope:
            yield name, definition


def _program(definition: Definition) -> Program:
    return specialise(definition, _values(definition))


def _values(definition: Definition) -> dict[str, Any]:
    flavor = definition.flavor(None)
    needed = {name: 1e-3 for name in definition.arguments_of(flavor) if name == "lr"}
    return definition.resolve(flavor, needed)


def _row(device: CpuDevice, options: Options, name: str, definition: Definition) -> dict[str, Any]:
    program, values = _program(definition), _values(definition)
    arrays = {each: device.allocate(options.size, _FLOAT32) for each in program.arrays}
    np.copyto(arrays["param"], random_vector(options.size))
    np.copyto(arrays["grad"], random_vector(options.size))
    for each in program.slots:
        # Second moments are not negative, and nothing is subnormal, which would be slow on any code.
        np.abs(arrays["grad"], out=arrays[each])
    kernel = device.compile(program, _FLOAT32)
    steps = {"now": 1}

    def launch() -> None:
        steps["now"] += 1
        scalars = [definition.scalars[each] for each in program.scalars]
        table = np.array([program.host(steps["now"], values, scalars)[0]], np.float32)
        kernel.update(whole(options.size), table, arrays)

    used = [each for each in program.arrays if each in _read(program)]
    written = list(program.last.outputs)
    contestants = [
        Contestant("floor", "floor", _floor(device, [arrays[each] for each in used], len(written))),
        Contestant("stepwell", name, launch),
    ]
    if has_torch() and name in _TORCH:
        contestants.append(Contestant("torch", "torch", _torch(options, _TORCH[name], arrays)))
    table = compete(name, contestants, (), rounds=options.rounds, warmup_rounds=2)
    medians = {row["key"]: statistics.median(row["samples"]) for row in table.rows}
    row = {
        "optimizer": name,
        "reads": len(used),
        "writes": len(written),
        "median ms": medians["stepwell"],
        "x floor": medians["stepwell"] / medians["floor"],
        "x torch": medians["stepwell"] / medians["torch"] if "torch" in medians else None,
    }
    return row | {"key": name, "samples": next(each["samples"] for each in table.rows if each["key"] == "stepwell")}


def _read(program: Program) -> set[str]:
    """The arrays that the kernel loads."""
    import ast

    stage = program.last
    return {part.id for value in stage.expressions for part in ast.walk(value) if isinstance(part, ast.Name)}


def _floor(device: CpuDevice, arrays: list[Vector], writes: int) -> Callable[[], None]:
    """Read all, write the first ones, and leave them as they were: `nothing` is 0 at run time."""
    names = [f"a{number}" for number in range(len(arrays))]
    # The gradient is the second array of every kernel, and is not written.
    targets = [names[0], *names[2:]][:writes]
    reads = " + ".join(f"{name}[i]" for name in names)
    stores = "\n        ".join(f"{name}[i] += change" for name in targets)
    text = (
        f"def touch(begin, end, nothing, {', '.join(names)}):\n    for i in range(begin, end):\n"
        f"        change = nothing * ({reads})\n        {stores}\n"
    )
    module = ModuleType("floor")
    exec(text, module.__dict__)  # noqa: S102  # our own text
    array, index = numba.float32[::1], numba.uint64
    signature = numba.void(index, index, numba.float32, *[array] * len(arrays))
    touch = numba.njit([signature], nogil=True, error_model="numpy", fastmath={"contract", "nsz"})(module.touch)
    nothing = np.float32(0.0)

    def work(part: Pieces) -> None:
        touch(part.begins[0], part.ends[-1], nothing, *arrays)

    return lambda: device.spread(whole(len(arrays[0])), work)


def _torch(options: Options, name: str, arrays: dict[str, Vector]) -> Callable[[], None]:
    import torch

    torch.set_num_threads(options.threads)
    tensor = torch.from_numpy(arrays["param"].copy()).requires_grad_()
    tensor.grad = torch.from_numpy(arrays["grad"].copy())
    how = {"fused": True} if name in _FUSED else {"foreach": True}
    optimizer = getattr(torch.optim, name)([tensor], lr=1e-3, **how)
    return lambda: optimizer.step() and None
