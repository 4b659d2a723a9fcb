"""A commit: what one update, or several combined ones, will do to a run's state, planned whole before it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepwell_server.core.compiler.program import Program
from stepwell_server.core.delays import compensate
from stepwell_server.core.gradients import measure, transform_gradients
from stepwell_server.core.group import GroupCommit, reduce_together
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.core.tables import TablesCommit
from stepwell_server.core.transforms import Transforming, unscale
from stepwell_server.core.update import UpdateHeader


@dataclass
class Commit:
    """What an update will do: `copies_needed`, `ready`, `apply`. Nothing of the run is written before `apply`.

    header: of the update, or of several combined ones. samples: the run's sum after it. given: the numbers that came
    with the update. tables: what it does to tables, planned beside by whoever has memory for it. bases: by group, the
    parameters at which the gradients were taken, where these are to be corrected for what has changed since.
    """

    header: UpdateHeader
    groups: list[GroupCommit]
    transforms: tuple[Transforming, ...]
    samples: float
    given: Mapping[str, float]
    report_norms: bool
    tables: TablesCommit | None = None
    bases: Sequence[Vector] | None = None
    delay_compensation: float = 0.0
    norms: list[tuple[float, ...]] = field(default_factory=list)

    def copies_needed(self) -> list[tuple[GroupCommit, str]]:
        """The vectors that readers hold and that the commit would write."""
        return [(group, name) for group in self.groups for name in group.held()]

    def scratch_needed(self) -> list[Size]:
        """What array code takes beside the vectors while it works; reserved, so that it cannot fail for want of it."""
        return [size for group in self.groups for size in group.scratch()]

    def ready(self, memory: Memory) -> None:
        """Transforms, reductions, coefficients: everything that can fail; safe on any thread. Raises InvalidValue."""
        device = memory.device
        for group in self.groups:
            for name in group.settings.transform_slots:
                if name in group.copies:
                    device.copy(group.group.vectors[name].vector, group.copies[name])
        steering = [each for each in self.transforms if each.definition is unscale]
        for transforming in steering:
            transform_gradients(device, self.groups, transforming, self.given)
        if self.bases is not None:
            for group, base in zip(self.groups, self.bases, strict=True):
                compensate(device, group, base, self.delay_compensation)
        if self.report_norms:
            self.norms.append(measure(device, [(group.layout, group.inputs["grad"], None) for group in self.groups]))
        for transforming in self.transforms[len(steering) :]:
            transform_gradients(device, self.groups, transforming, self.given)
        # Groups of one optimizer that works on all its tensors share their sums, whatever their dtypes.
        shared: dict[tuple[str, Program], list[GroupCommit]] = {}
        for group in self.groups:
            scope = group.launch.program.scope
            if scope == "group":
                shared.setdefault((group.group.layout.name, group.launch.program), []).append(group)
            elif scope:
                reduce_together([(group.launch, group.arrays)], scope)
        for together in shared.values():
            reduce_together([(group.launch, group.arrays) for group in together], "group")
        for group in self.groups:
            group.launch.finish()

    def apply(self, memory: Memory) -> None:
        """Run the kernels; safe on any thread, cannot fail."""
        for group in self.groups:
            group.apply(memory.device)
        if self.tables is not None:
            self.tables.apply()
        if self.report_norms:
            self.norms.append(measure(memory.device, [(group.layout, group.parameters, None) for group in self.groups]))

    def ready_and_apply(self, memory: Memory) -> None:
        self.ready(memory)
        self.apply(memory)
