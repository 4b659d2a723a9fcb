"""States to store: runs with arrays of random bits, made without kernels."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.layout import Layout, ParameterSpec
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.core.run import GroupArrays, Run, RunLimits
from stepwell_server.core.spec import GroupSpec, RunSpec
from stepwell_server.core.workers import Answer, Identity, Outcome

MIXED = {
    "scalar": ((), "float32"),
    "empty": ((0, 3), "float32"),
    "layers/0.weight": ((3, 5), "float32"),
    "layers/0.bias": ((16,), "float32"),
    "größe/α.重み": ((2, 3, 4), "float64"),
    'quoted "\\name"': ((1,), "float64"),
    "frozen/embedding": ((7, 3), "float32"),
    "frozen/wide": ((5,), "float64"),
}
FROZEN = GroupSpec("fixed", ("frozen/*",), frozen=True)


class NoKernels(CpuDevice):
    """Storage runs none, so none are compiled."""

    def __init__(self) -> None:
        pass


@dataclass
class State:
    """What the service would hand to storage."""

    run: Run
    arrays: list[GroupArrays]

    @property
    def layout(self) -> Layout:
        return self.run.layout

    @property
    def data(self) -> dict[str, Any]:
        return self.run.to_data()

    @property
    def stored(self) -> tuple[Mapping[str, Any], Layout, list[GroupArrays], float]:
        """The arguments of `write_snapshot` after the directory."""
        return self.data, self.layout, self.arrays, 1000.0 + self.run.version


def make_state(
    parameters: Mapping[str, tuple[tuple[int, ...], str]] = MIXED,
    optimizer: str = "nadam",
    *,
    name: str = "mnist",
    version: int = 7,
    groups: tuple[GroupSpec, ...] | None = None,
    **spec: Any,
) -> State:
    """A run at `version`, which is also the seed of its values, padding included."""
    specs = tuple(ParameterSpec(key, shape, np.dtype(dtype)) for key, (shape, dtype) in parameters.items())
    if groups is None:
        groups = (FROZEN,) if parameters is MIXED else ()
    run_spec = RunSpec(specs, optimizer, groups=groups, **spec)
    layout = run_spec.layout()
    settings = run_spec.settings(layout)
    run = Run(name, b"u" * 16, run_spec, layout, Memory(NoKernels(), 1 << 30), RunLimits())
    random = np.random.default_rng(version)
    arrays = []
    for sizes, group, chosen in zip(Run.state_sizes(layout, settings), layout.groups, settings, strict=True):
        count = len(group.indices)
        arrays.append(
            GroupArrays(
                {slot: random.standard_normal(elements).astype(dtype) for slot, (elements, dtype, _) in sizes.items()},
                random.integers(0, 1 << 40, count),
                {scalar: random.standard_normal(count) for scalar in (chosen.program.scalars if chosen else ())},
            )
        )
    run.take_arrays(settings, arrays)
    run.version, run.samples = version, version * 32.0
    membership = run.workers.join("wörker", 0)
    identity = Identity(name, run.uid, 0, "wörker", membership.epoch, 1, b"f" * 16, 0)
    run.workers.record(identity, Answer(Outcome.COMMITTED, version))
    return State(run, arrays)


def allocate(sizes: list[Size]) -> list[Vector]:
    """Vectors with other contents than zeros, as a server's memory has."""
    return [np.full(size.elements, 99, size.dtype) for size in sizes]


def parameter(layout: Layout, group: int, vector: Vector, index: int) -> NDArray[Any]:
    """The values of one parameter in its group's vector."""
    placed = layout.parameters[index]
    begin = placed.vector_offset // layout.groups[group].dtype.itemsize
    return vector[begin : begin + placed.spec.elements].reshape(placed.spec.shape)


def assert_same(state: State, data: Mapping[str, Any], arrays: list[GroupArrays]) -> None:
    """The same bits, but for padding."""
    assert data == json.loads(json.dumps(state.data))
    assert len(arrays) == len(state.arrays)
    for number, (group, before, after) in enumerate(zip(state.layout.groups, state.arrays, arrays, strict=True)):
        assert list(after.vectors) == list(before.vectors)
        for slot, vector in before.vectors.items():
            for index in group.indices:
                found = parameter(state.layout, number, after.vectors[slot], index)
                expected = parameter(state.layout, number, vector, index)
                assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes()), (slot, index)
        assert after.steps.dtype == np.int64
        assert after.steps.tolist() == before.steps.tolist()
        assert {name: values.tolist() for name, values in after.scalars.items()} == {
            name: values.tolist() for name, values in before.scalars.items()
        }
