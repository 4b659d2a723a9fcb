"""A run in this process, without server or wire: the core driven directly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.devices.device import Device
from stepwell_server.core.layout import ParameterSpec
from stepwell_server.core.memory import Memory, Vector
from stepwell_server.core.run import Run, RunLimits
from stepwell_server.core.spec import GroupSpec, RunSpec
from stepwell_server.core.update import Staging, UpdateHeader
from stepwell_server.core.workers import Answer, Identity, Outcome

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
        device: Device | None = None,
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
        inputs: Mapping[str, Arrays] | None = None,
        **given: float,
    ) -> Staging:
        """given: numbers that come with the update, such as `loss`; inputs: further arrays, by input and parameter."""
        layout = self.run.layout
        names = [placed.spec.name for placed in layout.parameters]
        absent = tuple(index for index, name in enumerate(names) if name in gradients and gradients[name] is None)
        header = UpdateHeader(
            self.identity(sequence or self.sequence + 1),
            absent,
            samples,
            hyperparameters or {},
            tuple(inputs or {}),
            given,
        )
        sizes = self.run.staging_sizes(header)
        staging = self.run.stage(
            header, dict(zip(sizes, self.memory.allocate(list(sizes.values()), "test"), strict=True))
        )
        for number, arrays in enumerate([gradients, *(inputs or {}).values()]):
            for name, array in arrays.items():
                placed = layout.parameters[layout.indices[name]]
                data = b"" if array is None else np.ascontiguousarray(array).tobytes()
                if array is not None and data:
                    staging.admit(placed.group, placed.packed_offset, len(data), number, array.dtype)
                    staging.place(self.memory.device, placed.group, placed.packed_offset, data, number, array.dtype)
        return staging

    def commit(self, staging: Staging) -> Answer:
        identity = staging.header.identity
        try:
            if self.run.check(staging):
                answer = self.run.make_answer(Outcome.SKIPPED_NONFINITE)
                self.run.workers.record(identity, answer)
                return answer
            planned = self.run.prepare(staging)
            for group, name in planned.copies_needed():
                (group.copies[name],) = self.memory.allocate([group.group.size(name)], "test")
            planned.ready_and_apply(self.memory)
            answer = self.run.finish(planned)
            self.run.workers.record(identity, answer)
            return answer
        finally:
            self.memory.free(staging.vectors)

    def step(self, gradients: Mapping[str, NDArray[Any] | None], **more: Any) -> dict[str, NDArray[Any]]:
        self.commit(self.stage(gradients, **more))
        self.sequence += 1
        return self.point("parameters")

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
                found[spec.name] = self._read(group.vectors[slot].vector, begin, count).reshape(spec.shape)
        return found

    def point(self, of: str) -> dict[str, NDArray[Any]]:
        """The values of a point, by parameter name."""
        found = self.parameters()
        for number, computed in enumerate(self.run.point_launches(of)):
            if computed is None:
                continue
            launch, arrays = computed
            layout = self.run.groups[number].layout
            out = self.memory.device.allocate(layout.state.elements, layout.state.dtype)
            launch.run(arrays, out)
            whole = self._read(out, 0, len(out))
            for place, index in enumerate(layout.indices):
                found[self.run.layout.parameters[index].spec.name] = layout.state.view(whole, place).copy()
        return found

    def _read(self, vector: Vector, begin: int, count: int) -> NDArray[Any]:
        """A copy of some elements."""
        size = vector.dtype.itemsize
        content = self.memory.device.read(vector, begin * size, (begin + count) * size)
        return np.frombuffer(content, vector.dtype).copy()


def place(run: Run, number: int, index: int, vector: Vector, value: NDArray[Any]) -> None:
    """Write a parameter's values to its place in a group's vector."""
    begin, count = _elements(run, number, index)
    assert value.size == count
    run.memory.device.write(vector, begin, value.ravel())


def _elements(run: Run, number: int, index: int) -> tuple[int, int]:
    layout = run.layout.groups[number].state
    place = layout.indices.index(index)
    return int(layout.begins[place]), int(layout.sizes[place])
