"""A run in this process, without server or wire: the core driven directly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.layout import ParameterSpec
from stepwell_server.core.memory import Memory, Vector
from stepwell_server.core.run import Run, RunLimits
from stepwell_server.core.spec import GroupSpec, RunSpec
from stepwell_server.core.update import Staging, UpdateHeader
from stepwell_server.core.workers import Answer, Identity

Arrays = Mapping[str, NDArray[Any]]


class LocalRun:
    """Takes named arrays, as the SDK does. `threads` cuts kernels; two, as on the smallest server."""

    def __init__(
        self,
        parameters: Arrays,
        optimizer: str = "sgd",
        *,
        threads: int = 2,
        kernel_directory: Path | None = None,
        memory_bytes: int = 1 << 30,
        device: CpuDevice | None = None,
        groups: tuple[GroupSpec, ...] = (),
        **spec: Any,
    ) -> None:
        arrays = {name: np.asarray(value) for name, value in parameters.items()}
        specs = tuple(ParameterSpec(name, value.shape, value.dtype) for name, value in arrays.items())
        self.spec = RunSpec(specs, optimizer, groups=groups, **spec)
        self.memory = Memory(device or CpuDevice(threads, kernel_directory), memory_bytes)
        layout = self.spec.layout()
        settings = self.spec.settings(layout)
        self.run = Run("local", b"u" * 16, self.spec, layout, self.memory, RunLimits())
        self.run.compile(settings)
        vectors = []
        for number, sizes in enumerate(Run.state_sizes(layout, settings)):
            taken = dict(zip(sizes, self.memory.allocate(list(sizes.values()), "test"), strict=True))
            for index in layout.groups[number].indices:
                place(self.run, number, index, taken[""], arrays[specs[index].name])
            vectors.append(taken)
        self.run.begin(settings, vectors)
        self.membership = self.run.workers.join("worker", 0)
        self.sequence = 0

    def identity(self, sequence: int, fingerprint: bytes | None = None) -> Identity:
        return Identity(
            "local",
            self.membership.uid,
            self.membership.generation,
            "worker",
            self.membership.epoch,
            sequence,
            fingerprint or sequence.to_bytes(16, "little"),
            self.run.version,
        )

    def stage(
        self,
        gradients: Mapping[str, NDArray[Any] | None],
        hyperparameters: Mapping[str, Mapping[str, float]] | None = None,
        samples: float = 0.0,
        sequence: int | None = None,
    ) -> Staging:
        layout = self.run.layout
        names = [placed.spec.name for placed in layout.parameters]
        absent = tuple(index for index, name in enumerate(names) if name in gradients and gradients[name] is None)
        header = UpdateHeader(self.identity(sequence or self.sequence + 1), absent, samples, hyperparameters or {})
        sizes = Staging.sizes(layout)
        staging = self.run.stage(
            header, dict(zip(sizes, self.memory.allocate(list(sizes.values()), "test"), strict=True))
        )
        for name, gradient in gradients.items():
            placed = layout.parameters[layout.indices[name]]
            data = b"" if gradient is None else np.ascontiguousarray(gradient).tobytes()
            if data:
                staging.admit(placed.group, placed.packed_offset, len(data))
                staging.place(self.memory.device, placed.group, placed.packed_offset, data)
        return staging

    def commit(self, staging: Staging) -> Answer:
        try:
            planned = self.run.prepare(staging)
            if isinstance(planned, Answer):
                return planned
            for group, name in planned.copies_needed():
                size = (group.group.layout.elements, group.group.layout.dtype)
                (group.copies[name],) = self.memory.allocate([size], "test")
            planned.apply(self.memory)
            return self.run.finish(planned)
        finally:
            self.memory.free([transfer.vector for transfer in staging.transfers.values()])

    def step(self, gradients: Mapping[str, NDArray[Any] | None], **more: Any) -> dict[str, NDArray[Any]]:
        self.commit(self.stage(gradients, **more))
        self.sequence += 1
        return self.parameters()

    def parameters(self) -> dict[str, NDArray[Any]]:
        return self.arrays("")

    def arrays(self, slot: str) -> dict[str, NDArray[Any]]:
        """Copies of every parameter, or of a slot where the group has it, by parameter name."""
        found = {}
        for number, group in enumerate(self.run.groups):
            if slot not in group.vectors:
                continue
            for index in group.layout.indices:
                spec = self.run.layout.parameters[index].spec
                begin, count = _elements(self.run, number, index)
                found[spec.name] = group.vectors[slot].vector[begin : begin + count].reshape(spec.shape).copy()
        return found


def place(run: Run, number: int, index: int, vector: Vector, value: NDArray[Any]) -> None:
    """Write a parameter's values to its place in a group's vector."""
    begin, count = _elements(run, number, index)
    vector[begin : begin + count] = value.ravel()


def _elements(run: Run, number: int, index: int) -> tuple[int, int]:
    placed = run.layout.parameters[index]
    return placed.vector_offset // run.layout.groups[number].dtype.itemsize, placed.spec.elements
