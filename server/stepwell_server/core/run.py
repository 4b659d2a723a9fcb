"""A run: one hosted training state, and the only code that moves it from one version to the next.

An update goes: `recall` (was it made before?), `check` (is it whole?), then to the coordinator, whose policy says when
it becomes part of a commit, alone or combined with others. A commit goes: `prepare`, copies for readers, `Commit.ready`
(all else that can fail) and `Commit.apply` (the kernels), both on any thread, `finish` (the new version). One at a
time; the service holds the run's lock. Readers take a `Hold` between commits and may keep it while later commits go on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import unknown
from stepwell_server.core.combining import Accumulated, combine, fold
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.errors import (
    EtagMismatch,
    InputRequired,
    InvalidValue,
    LimitExceeded,
    NonfiniteGradient,
    UnknownArgument,
    UnknownGroup,
    UnknownPoint,
    VersionMismatch,
)
from stepwell_server.core.gradients import NORMS, measure, transform_gradients, transform_program
from stepwell_server.core.group import GroupCommit, GroupState, Held, Launch, reduce_together
from stepwell_server.core.layout import Layout
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.core.policies import parse_policy
from stepwell_server.core.settings import ACCUMULATOR, Moment, Settings, expand_aliases, settings_from_data
from stepwell_server.core.spec import RunSpec, Schedules, fit_policy
from stepwell_server.core.transforms import LossScale, Transforming, sparsity_lr, unscale
from stepwell_server.core.update import Key, Staging, UpdateHeader
from stepwell_server.core.workers import Answer, Identity, Outcome, Workers

_METRICS_MAX = 100
_METRIC_NAME_MAX = 128


@dataclass(frozen=True)
class RunLimits:
    """Limits of each run. outstanding_updates_max: how many of a worker's answers are kept."""

    outstanding_updates_max: int = 16
    workers_max: int = 10_000


@dataclass
class Commit:
    """What an update will do: `copies_needed`, `ready`, `apply`. Nothing of the run is written before `apply`.

    header: of the update, or of several combined ones. samples: the run's sum after it. given: the numbers that came
    with the update.
    """

    header: UpdateHeader
    groups: list[GroupCommit]
    transforms: tuple[Transforming, ...]
    samples: float
    given: Mapping[str, float]
    report_norms: bool
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
        if self.report_norms:
            self.norms.append(measure(device, [(group, group.inputs["grad"]) for group in self.groups]))
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
        if self.report_norms:
            self.norms.append(measure(memory.device, [(group, group.parameters) for group in self.groups]))

    def ready_and_apply(self, memory: Memory) -> None:
        self.ready(memory)
        self.apply(memory)


@dataclass
class Hold:
    """A version that a reader keeps. Release it once; from then on commits may overwrite it."""

    run: "Run"
    version: int
    groups: list[dict[str, Held]]
    _released: bool = field(default=False)

    def release(self) -> None:
        if not self._released:
            self._released = True
            self.run.release(self)


@dataclass
class GroupArrays:
    """The arrays of one group's state, detached from a run."""

    vectors: dict[str, Vector]
    steps: NDArray[np.int64]
    scalars: dict[str, NDArray[np.float64]]


class Run:
    """uid: 16 random bytes. generation: how often the run went back. version: the number of commits."""

    def __init__(self, name: str, uid: bytes, spec: RunSpec, layout: Layout, memory: Memory, limits: RunLimits) -> None:
        self.name = name
        self.uid = uid
        self.spec = spec
        self.layout = layout
        self.memory = memory
        self.version = 0
        self.samples = 0.0
        self.changes = 0
        self.skipped_count = 0
        self.metrics: dict[str, float] = {}
        self.loss_scale = LossScale.start(spec.parsed_transforms[0]) if self._steers else None
        self.workers = Workers(name, uid, 0, limits.outstanding_updates_max, limits.workers_max)
        self.coordinator = Coordinator(self.workers, parse_policy(spec.policy))
        self.accumulated = Accumulated()
        self.groups: list[GroupState] = []

    @property
    def _steers(self) -> bool:
        """Whether the run steers a factor for the loss."""
        transforms = self.spec.parsed_transforms
        return bool(transforms) and transforms[0].definition is unscale

    @property
    def duplicates_count(self) -> int:
        """How many tries to send an update came after it was staged or answered."""
        return sum(tally.duplicates for tally in self.coordinator.tallies.values())

    @property
    def generation(self) -> int:
        return self.workers.generation

    @property
    def etag(self) -> str:
        return f"{self.generation}-{self.changes}"

    @property
    def moment(self) -> Moment:
        return Moment(self.version, self.samples, self.spec.samples_per_epoch)

    @property
    def state_bytes(self) -> int:
        return sum(group.state_bytes() for group in self.groups)

    @staticmethod
    def state_sizes(layout: Layout, settings: Sequence[Settings | None]) -> list[dict[str, Size]]:
        """The vectors that a run's state needs, by group and slot."""
        return [GroupState.sizes(group, chosen) for group, chosen in zip(layout.groups, settings, strict=True)]

    def compile(self, settings: Sequence[Settings | None]) -> None:
        """Compile the kernels, so that no step waits for it; safe on any thread."""
        for group, chosen in zip(self.layout.groups, settings, strict=True):
            if chosen is None:
                continue
            programs = [chosen.program, chosen.program_with(()), *chosen.points.values()]
            programs += [transform_program(each) for each in self.spec.parsed_transforms if not each.definition.arrays]
            programs += [NORMS] if self.spec.report_norms else []
            for program in programs:
                self.memory.device.compile(program, group.state.dtype)

    def begin(self, settings: Sequence[Settings | None], vectors: Sequence[Mapping[str, Vector]]) -> None:
        """Take the state's vectors, the parameters in place, and set the slots."""
        self.groups = [
            GroupState(group, chosen, taken)
            for group, chosen, taken in zip(self.layout.groups, settings, vectors, strict=True)
        ]
        for group in self.groups:
            group.initialise_slots(self.memory.device, self.moment)

    # Updates.

    def staging_sizes(self, header: UpdateHeader) -> dict[Key, Size]:
        """The vectors that `stage` needs."""
        return Staging.sizes(self.layout, [group.settings for group in self.groups], header)

    def stage(self, header: UpdateHeader, vectors: Mapping[Key, Vector]) -> Staging:
        """Begin an update in vectors of `staging_sizes`; raises what is wrong with its header."""
        self.settings_with(header)
        settings = [group.settings for group in self.groups]
        for transforming in self.spec.parsed_transforms:
            needed = transforming.definition is sparsity_lr and transforming.values["source"] == "client"
            if needed and "sparsity_factor" not in header.given:
                raise InputRequired(
                    f"run '{self.name}': the update has no sparsity_factor, expected one, since transform "
                    "'sparsity_lr' has source 'client'; send it with every update",
                    missing="sparsity_factor",
                )
        return Staging(
            self.name,
            header,
            self.layout,
            settings,
            vectors,
            self.spec.nonfinite != "allow",
            self.spec.parsed_gradient_encoding,
        )

    def recall(self, identity: Identity) -> Answer | None:
        """The answer of an update that was made before, None for the worker's next; raises as `Workers.recall`."""
        return self.coordinator.recall(identity, self.version)

    def check(self, staging: Staging) -> bool:
        """Check a staged update whole; whether it is to be skipped, for a NaN or an infinity. Raises what is wrong."""
        staging.check_complete()
        if staging.header.inputs and self.coordinator.policy.accumulates:
            raise InvalidValue(
                f"run '{self.name}': the update has inputs {list(staging.header.inputs)}, expected none, since the "
                "policy accumulates gradients and nothing else; leave them out, or accumulate 1"
            )
        if staging.nonfinite is not None:
            if self.loss_scale is not None:
                self.loss_scale = self.loss_scale.after(self.spec.parsed_transforms[0], finite=False)
            elif self.spec.nonfinite == "reject":
                name = staging.nonfinite_parameter()
                raise NonfiniteGradient(
                    f"run '{self.name}': the gradient for '{name}' holds a NaN or an infinity, expected finite values; "
                    "find "
                    'its cause, or create the run with nonfinite="skip"',
                    parameter=name,
                )
            self.skipped_count += 1
            return True
        return False

    def prepare(self, staging: Staging, damping: float = 1.0) -> Commit:
        """Plan the commit of a checked update; `Commit.ready` does the rest of what can fail.

        damping: what the learning rate is multiplied by. Raises what is wrong; then nothing has changed.
        """
        samples = self.samples + staging.header.samples
        if not math.isfinite(samples):
            raise InvalidValue(
                f"run '{self.name}': {self.samples} samples and {staging.header.samples} more are beyond float64, "
                "expected a finite sum; send smaller numbers"
            )
        settings = self.settings_with(staging.header)
        given = dict(staging.header.given)
        if self.loss_scale is not None:
            given.setdefault("loss_scale", self.loss_scale.scale)
        groups = [
            self.groups[number].prepare(
                self.memory.device,
                chosen,
                staging.present_in(number),
                self.moment,
                staging.inputs_of(number),
                given,
                damping,
            )
            for number, chosen in enumerate(settings)
            if chosen is not None
        ]
        return Commit(staging.header, groups, self.spec.parsed_transforms, samples, given, self.spec.report_norms)

    @property
    def combines(self) -> bool:
        """Whether the policy makes commits of several updates; then staged ones are written to."""
        return self.coordinator.policy.combines

    def combine(self, stagings: Sequence[Staging]) -> None:
        """Make the first update the average of all, and of what was accumulated; safe on any thread."""
        whole = combine(self.memory.device, stagings, self._scales(stagings), self._accumulator(), self.accumulated)
        first = stagings[0]
        first.become(whole.header(first.header, unscaled=self._steers))

    def fold(self, stagings: Sequence[Staging]) -> Accumulated:
        """Add updates to the accumulator, which nobody else reads meanwhile; safe on any thread.

        What is returned is what the run has accumulated from then on.
        """
        accumulator = self._accumulator(empty=True)
        return fold(self.memory.device, stagings, self._scales(stagings), accumulator, self.accumulated)

    def held_accumulators(self) -> list[GroupState]:
        """The groups whose accumulator is held by a reader, and must be moved before a fold."""
        return [group for group in self.groups if ACCUMULATOR in group.vectors and group.vectors[ACCUMULATOR].holders]

    def move_accumulators(self, groups: Sequence[GroupState], vectors: Sequence[Vector]) -> None:
        """Go over to other vectors with the same content."""
        for group, vector in zip(groups, vectors, strict=True):
            self.memory.device.copy(group.vectors[ACCUMULATOR].vector, vector)
            group.vectors[ACCUMULATOR] = Held(vector)

    def _accumulator(self, *, empty: bool = False) -> dict[int, Vector]:
        """The accumulator's vectors by group, if it holds something. empty: even if not."""
        if not self.accumulated.weight and not empty:
            return {}
        return {
            number: group.vectors[ACCUMULATOR].vector
            for number, group in enumerate(self.groups)
            if ACCUMULATOR in group.vectors
        }

    def _scales(self, stagings: Sequence[Staging]) -> list[float]:
        if self.loss_scale is None:
            return [1.0] * len(stagings)
        return [staging.header.given.get("loss_scale", self.loss_scale.scale) for staging in stagings]

    def finish(self, commit: Commit) -> Answer:
        """Make an applied commit the present version; returns its answer, which is to be stored."""
        for group in commit.groups:
            self.memory.free(group.group.finish(group))
        self.version += 1
        self.accumulated = Accumulated()
        self.changes += bool(commit.header.hyperparameters)
        self.samples = commit.samples
        if self.loss_scale is not None:
            self.loss_scale = self.loss_scale.after(self.spec.parsed_transforms[0], finite=True)
        return self.make_answer(Outcome.COMMITTED, tuple(commit.norms))

    # Readers.

    @property
    def points(self) -> list[str]:
        """The points that some group has."""
        return sorted({"parameters"}.union(*(group.settings.points for group in self.groups if group.settings)))

    def check_point(self, of: str) -> None:
        """Raise UnknownPoint for one that no group has."""
        if of not in self.points:
            raise unknown(UnknownPoint, f"run '{self.name}': point", of, self.points)

    def point_launches(self, of: str) -> list[tuple[Launch, dict[str, Vector]] | None]:
        """For each group how to compute a point from the present state; None where the parameters serve."""
        self.check_point(of)
        return [group.point_launch(self.memory.device, of, self.moment) for group in self.groups]

    def hold(self, whole: bool = False) -> Hold:
        """Keep the present version's parameters, or its whole state, as it is until released."""
        groups = [{name: held for name, held in group.vectors.items() if whole or not name} for group in self.groups]
        for group in groups:
            for held in group.values():
                held.holders += 1
        return Hold(self, self.version, groups)

    def release(self, hold: Hold) -> None:
        """End a hold; vectors that a commit has superseded are freed with their last holder."""
        current = {id(held) for group in self.groups for held in group.vectors.values()}
        unneeded = []
        for group in hold.groups:
            for held in group.values():
                held.holders -= 1
                if held.holders == 0 and id(held) not in current:
                    unneeded.append(held.vector)
        self.memory.free(unneeded)

    # Sharing.

    @property
    def shareable(self) -> bool:
        """Whether other processes could read the parameters, and their gradients be read, where they lie."""
        return self.memory.device.shared is not None

    def shared_sizes(self) -> list[Size]:
        """What each group's parameters are once they are shared."""
        return [
            Size(group.state.elements, group.state.dtype, f"{self.uid.hex()}/{number}")
            for number, group in enumerate(self.layout.groups)
        ]

    def worker_sizes(self, inputs: Sequence[str], owner: str) -> dict[Key, Size]:
        """What a worker needs to bring its updates in shared memory; raises UnknownArgument for an unknown input."""
        sizes: dict[Key, Size] = {}
        known: set[str] = set()
        for number, group in enumerate(self.groups):
            if group.settings is None:
                continue
            taken = group.settings.definition.inputs
            known |= taken.keys()
            size = Size(group.layout.elements, group.layout.dtype, owner)
            sizes[number, 0] = size
            sizes |= {(number, place): size for place, name in enumerate(inputs, 1) if name in taken}
        for name in inputs:
            if name not in known:
                raise unknown(UnknownArgument, f"run '{self.name}': input", name, known)
        return sizes

    def share(self, vectors: Sequence[Vector]) -> None:
        """Go over to vectors of `shared_sizes`, which hold the present parameters. Commits stay in such from now on."""
        before = [group.vectors[""] for group in self.groups]
        for group, vector, size in zip(self.groups, vectors, self.shared_sizes(), strict=True):
            group.vectors[""], group.owner = Held(vector), size.owner
        self.memory.free([held.vector for held in before if not held.holders])
        self.memory.drop_kept()  # nobody will take vectors of this size so soon

    @property
    def shared(self) -> bool:
        """Whether the parameters are where other processes can map them."""
        shared = self.memory.device.shared
        return shared is not None and all(shared.owner(group.vectors[""].vector) for group in self.groups)

    @property
    def single_pass(self) -> bool:
        """Whether a commit is one pass over the elements and nothing else."""
        return (
            not self.spec.parsed_transforms
            and not self.spec.report_norms
            and all(
                chosen is None or (chosen.array_program is None and len(chosen.program.stages) == 1)
                for chosen in (group.settings for group in self.groups)
            )
        )

    @property
    def keeps_gradients(self) -> bool:
        """Whether commits read gradients only, so that they may lie in a worker's memory."""
        arrays = any(group.settings and group.settings.array_program for group in self.groups)
        return not self.spec.parsed_transforms and not arrays and not self.combines

    # Changes.

    def change(
        self,
        group: str,
        hyperparameters: Mapping[str, object],
        schedules: Schedules,
        removed: Sequence[str],
        keep_clock: bool,
        etag: str,
        policy: Mapping[str, Any] | None = None,
    ) -> list[Settings | None]:
        """The settings of every group after a change; `set_settings` makes them the present ones.

        group "": every group that has what changes. policy: the one that they must fit. Raises EtagMismatch,
        UnknownGroup, UnknownArgument, ChangeRefused and what is wrong with the values.
        """
        if etag and etag != self.etag:
            raise EtagMismatch(
                f"run '{self.name}' has etag {self.etag}, expected {etag}: it was changed; read it again and repeat",
                got=self.etag,
                expected=etag,
            )
        settings = [state.settings for state in self.groups]
        if policy is not None:
            settings = [fit_policy(chosen, parse_policy(policy)) for chosen in settings]
        return self._select(settings, group, hyperparameters, schedules, removed, keep_clock)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Take metrics: schedules that wait for one follow. Raises InvalidValue, UnknownArgument, LimitExceeded."""
        if not metrics or not all(math.isfinite(value) for value in metrics.values()):
            raise InvalidValue(
                f"run '{self.name}': the metrics are {dict(metrics)!r:.200}, expected at least one, all finite; report "
                "such"
            )
        known = self.metrics | dict(metrics)
        if len(known) > _METRICS_MAX or max(map(len, known)) > _METRIC_NAME_MAX:
            raise LimitExceeded(
                f"run '{self.name}': {len(known)} metrics, expected at most {_METRICS_MAX} with names of at most "
                f"{_METRIC_NAME_MAX} characters; report fewer"
            )
        settings = [group.settings and group.settings.reported(metrics, self.moment) for group in self.groups]
        self.metrics = known
        self.set_settings(settings)

    def slots_needed(self, settings: Sequence[Settings | None]) -> list[Size]:
        """Accumulators that these settings have and the present ones have not."""
        return [self.groups[number].accumulator_size for number in self._lacking(settings)]

    def add_slots(self, settings: Sequence[Settings | None], vectors: Sequence[Vector]) -> None:
        """Take vectors of `slots_needed`; the settings follow."""
        for number, vector in zip(self._lacking(settings), vectors, strict=True):
            self.memory.device.fill(vector, 0.0)
            self.groups[number].add(ACCUMULATOR, vector, settings[number])

    def _lacking(self, settings: Sequence[Settings | None]) -> list[int]:
        return [
            number
            for number, (chosen, group) in enumerate(zip(settings, self.groups, strict=True))
            if chosen is not None and chosen.accumulates and ACCUMULATOR not in group.vectors
        ]

    def set_settings(self, settings: Sequence[Settings | None]) -> None:
        """Make changed settings the present ones, from the next commit on."""
        for group, chosen in zip(self.groups, settings, strict=True):
            group.settings = chosen
        self.changes += 1

    # Whole states.

    def check_version(self, expected: int | None) -> None:
        if expected is not None and expected != self.version:
            raise VersionMismatch(
                f"run '{self.name}' is at version {self.version}, expected {expected}; read its state again",
                got=self.version,
                expected=expected,
            )

    def replace_state(
        self,
        generation: int,
        version: int,
        samples: float,
        arrays: Sequence[GroupArrays],
        settings: Sequence[Settings | None] | None,
    ) -> None:
        """Go over to another state and a new generation; every worker must join again."""
        before = self.groups
        chosen = [group.settings for group in before] if settings is None else settings
        self.groups = [
            GroupState(layout, group_settings, group.vectors, group.steps, group.scalars)
            for layout, group_settings, group in zip(self.layout.groups, chosen, arrays, strict=True)
        ]
        self.version = version
        self.samples = samples
        self.rewind(generation)
        self.memory.free([held.vector for group in before for held in group.vectors.values() if held.holders == 0])

    def rewind(self, generation: int) -> None:
        """The run went back to its present version: every worker must join again, and what was accumulated is gone."""
        self.coordinator.rewind(generation, self.version)
        self.accumulated = Accumulated()

    def to_data(self) -> dict[str, Any]:
        """Everything but the arrays, as plain data, for a snapshot."""
        return {
            "name": self.name,
            "uid": self.uid.hex(),
            "generation": self.generation,
            "version": self.version,
            "samples": self.samples,
            "changes": self.changes,
            "skipped_count": self.skipped_count,
            "loss_scale": self.loss_scale and [self.loss_scale.scale, self.loss_scale.good_count],
            "metrics": self.metrics,
            "spec": self.spec.data,
            "settings": [group.settings and group.settings.to_data() for group in self.groups],
            "workers": self.workers.to_data(),
            "coordinator": self.coordinator.to_data(),
            "accumulated": self.accumulated.to_data(),
        }

    def to_data_after(
        self, generation: int, version: int, samples: float, settings: Sequence[Settings | None] | None
    ) -> dict[str, Any]:
        """What `to_data` will give once `replace_state` has been called with the same arguments."""
        data = self.to_data() | {"generation": generation, "version": version, "samples": samples}
        data["workers"] = data["workers"] | {"joined": {}}
        data["coordinator"] = self.coordinator.to_data_after_rewind()
        data["accumulated"] = Accumulated().to_data()
        if settings is not None:
            data["settings"] = [chosen and chosen.to_data() for chosen in settings]
        return data

    @staticmethod
    def from_data(data: Mapping[str, Any], memory: Memory, limits: RunLimits) -> tuple["Run", list[Settings | None]]:
        """A run without its arrays yet, and its settings; `take_arrays` completes it."""
        spec = RunSpec.from_data(data["spec"])
        run = Run(data["name"], bytes.fromhex(data["uid"]), spec, spec.layout(), memory, limits)
        run.workers.generation = int(data["generation"])
        run.workers.restore(data["workers"])
        run.version = int(data["version"])
        run.samples = float(data["samples"])
        run.changes = int(data["changes"])
        run.skipped_count = int(data["skipped_count"])
        run.accumulated = Accumulated.from_data(data["accumulated"])
        run.metrics = {str(name): float(value) for name, value in data["metrics"].items()}
        if data["loss_scale"] is not None:
            run.loss_scale = LossScale(float(data["loss_scale"][0]), int(data["loss_scale"][1]))
        return run, [None if chosen is None else settings_from_data(chosen) for chosen in data["settings"]]

    def take_arrays(self, settings: Sequence[Settings | None], arrays: Sequence[GroupArrays]) -> None:
        """Complete a run made by `from_data`."""
        self.groups = [
            GroupState(layout, chosen, group.vectors, group.steps, group.scalars)
            for layout, chosen, group in zip(self.layout.groups, settings, arrays, strict=True)
        ]

    def free(self) -> None:
        """Give the state's memory back, when the run is deleted and nobody holds it."""
        self.memory.free([held.vector for group in self.groups for held in group.vectors.values() if not held.holders])
        self.memory.drop_kept()
        self.groups = []

    def make_answer(self, outcome: Outcome, norms: tuple[tuple[float, ...], ...] = ()) -> Answer:
        """An answer at the present version."""
        return Answer(outcome, self.version, self.loss_scale.scale if self.loss_scale else None, norms)

    def settings_with(self, header: UpdateHeader) -> list[Settings | None]:
        """The settings with the hyperparameters that an update carries."""
        settings = [group.settings for group in self.groups]
        # What is meant for all groups first, so that a group's own value wins.
        for group, values in sorted(header.hyperparameters.items()):
            settings = self._select(settings, group, values, {}, (), False)
        return settings

    def _select(
        self,
        settings: Sequence[Settings | None],
        group: str,
        hyperparameters: Mapping[str, object],
        schedules: Schedules,
        removed: Sequence[str],
        keep_clock: bool,
    ) -> list[Settings | None]:
        """Apply a change to one group, or for "" to every group that has the hyperparameters that it names."""
        known = sorted({layout.name for layout in self.layout.groups if not layout.frozen})
        if group and group not in known:
            raise UnknownGroup(
                f"run '{self.name}' has no group '{group[:200]}' to optimize, expected one of {', '.join(known)}; "
                "choose one of them",
                got=group[:200],
            )
        hyperparameters = expand_aliases(hyperparameters)
        result: list[Settings | None] = []
        named = {*hyperparameters, *schedules, *removed}
        found: set[str] = set()
        for layout, before in zip(self.layout.groups, settings, strict=True):
            if before is None or (group and layout.name != group):
                result.append(before)
                continue
            chosen = {name for name in named if group or name in before.arguments}
            found |= chosen
            if not chosen:
                result.append(before)
                continue
            after = before.changed(
                self.moment,
                {name: value for name, value in hyperparameters.items() if name in chosen},
                {name: spec for name, spec in schedules.items() if name in chosen},
                [name for name in removed if name in chosen],
                keep_clock,
            )
            result.append(after)
        for name in sorted(named - found):
            raise UnknownArgument(
                f"run '{self.name}': no group's optimizer has an argument '{name[:200]}', expected one that some "
                "group has; see list_optimizers",
                got=name[:200],
            )
        return result
