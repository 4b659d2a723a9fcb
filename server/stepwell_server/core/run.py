"""A run: one hosted training state, and the only code that moves it from one version to the next.

An update goes: `recall` (was it made before?), `check` (is it whole?), then to the coordinator, whose policy says when
it becomes part of a commit, alone or combined with others. A commit goes: `prepare`, copies for readers, `Commit.ready`
(all else that can fail) and `Commit.apply` (the kernels), both on any thread, `finish` (the new version). One at a
time; the service holds the run's lock. Readers take a `Hold` between commits and may keep it while later commits go on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import unknown
from stepwell_server.core.changes import change
from stepwell_server.core.combining import Accumulated, check_fits, combine, fold
from stepwell_server.core.commit import Commit
from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.delays import COMPENSATION, Bases
from stepwell_server.core.errors import (
    EtagMismatch,
    InputRequired,
    InvalidValue,
    LimitExceeded,
    NonfiniteGradient,
    UnknownArgument,
    UnknownPoint,
    VersionMismatch,
)
from stepwell_server.core.gradients import NORMS, measure, transform_program
from stepwell_server.core.group import GroupState, Held, Launch
from stepwell_server.core.layout import Layout
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.core.policies import parse_policy
from stepwell_server.core.settings import ACCUMULATOR, Moment, RunSettings, Settings, settings_from_data
from stepwell_server.core.spec import RunSpec, Schedules, check_policy, fit_policy
from stepwell_server.core.tables import Brought, Table, TableHold, Tables, TablesCommit
from stepwell_server.core.transforms import LossScale, sparsity_lr, unscale
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
class Hold:
    """A version that a reader keeps. Release it once; from then on commits may overwrite it."""

    run: "Run"
    version: int
    groups: list[dict[str, Held]]
    tables: list[TableHold] = field(default_factory=list)
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
        self.tables = Tables(name)
        self.bases = Bases()

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
        waiting = sum(vector.nbytes for each in self.accumulated.rows for vector in each.rows.vectors)
        groups = sum(group.state_bytes() for group in self.groups)
        return groups + self.tables.state_bytes + waiting + self.bases.size_bytes

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
            programs += [COMPENSATION] if self.coordinator.policy.needs_base else []
            for program in programs:
                self.memory.device.compile(program, group.state.dtype)

    def begin(
        self,
        settings: Sequence[Settings | None],
        vectors: Sequence[Mapping[str, Vector]],
        tables: Sequence[Table] = (),
    ) -> None:
        """Take the state's vectors, the parameters in place, and set the slots; and tables without rows."""
        self.tables = Tables(self.name, tables)
        self.groups = [
            GroupState(group, chosen, taken)
            for group, chosen, taken in zip(self.layout.groups, settings, vectors, strict=True)
        ]
        for group in self.groups:
            group.initialise_slots(self.memory.device, self.moment)
        self.coordinator.policy.folds_early = self.folds_early
        self.keep_base()

    # Updates.

    def staging_sizes(self, header: UpdateHeader) -> dict[Key, Size]:
        """The vectors that `stage` needs."""
        return Staging.sizes(self.layout, [group.settings for group in self.groups], header)

    def row_sizes(self, header: UpdateHeader) -> list[Size]:
        """The vectors that `stage` needs for rows. Raises UnknownTable, LimitExceeded."""
        return self.tables.staging_sizes(header.rows) if header.rows else []

    def stage(self, header: UpdateHeader, vectors: Mapping[Key, Vector], for_rows: Sequence[Vector] = ()) -> Staging:
        """Begin an update in vectors of `staging_sizes` and `row_sizes`; raises what is wrong with its header."""
        if header.hyperparameters:
            self.settings_with(header)
        settings = [group.settings for group in self.groups]
        for transforming in self.spec.parsed_transforms if not header.rows_only else ():
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
            self.checks_finite,
            self.spec.parsed_gradient_encoding,
            self.tables.stage(header.rows, for_rows, self.checks_finite) if header.rows else None,
        )

    @property
    def checks_finite(self) -> bool:
        """Whether gradients are tested for NaN and infinity."""
        return self.spec.nonfinite != "allow"

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
        if staging.header.rows_only and self.coordinator.policy.accumulates and self.groups:
            raise InvalidValue(
                f"run '{self.name}': the update has rows only, expected gradients, too, since the policy accumulates "
                "both; send them in one update, or accumulate 1"
            )
        if not staging.is_finite:
            if self.loss_scale is not None:
                self.loss_scale = self.loss_scale.after(self.spec.parsed_transforms[0], finite=False)
            elif self.spec.nonfinite == "reject":
                name = staging.nonfinite_owner()
                raise NonfiniteGradient(
                    f"run '{self.name}': the gradient for '{name}' holds a NaN or an infinity, expected finite values; "
                    "find "
                    'its cause, or create the run with nonfinite="skip"',
                    parameter=name,
                )
            self.skipped_count += 1
            return True
        return False

    def prepare(self, staging: Staging, damping: float = 1.0, base_version: int | None = None) -> Commit:
        """Plan the commit of a checked update; `Commit.ready` does the rest of what can fail.

        damping: what the learning rate is multiplied by. base_version: at which the gradients were taken; None for the
        present one. Raises what is wrong; then nothing has changed.
        """
        samples = self.samples + staging.header.samples
        if not math.isfinite(samples):
            raise InvalidValue(
                f"run '{self.name}': {self.samples} samples and {staging.header.samples} more are beyond float64, "
                "expected a finite sum; send smaller numbers"
            )
        header = staging.header
        settings = self.settings_with(header)
        given = dict(header.given)
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
            for number, chosen in enumerate(settings.groups)
            if chosen is not None and not header.rows_only
        ]
        tables: TablesCommit | None = None
        if self.tables:
            # Rows have no transforms; what the loss was multiplied by is taken out here.
            scale = given["loss_scale"] if self.loss_scale is not None else 1.0
            brought = [Brought(each.rows, each.factor / scale) for each in staging.brought]
            moment, finite = self.moment, self.checks_finite
            tables = self.tables.prepare(brought, moment, settings.tables, given, damping, finite)
        transforms = () if header.rows_only else self.spec.parsed_transforms
        commit = Commit(header, groups, transforms, samples, given, self.spec.report_norms, tables)
        if base_version is not None and self.coordinator.policy.needs_base:
            found = self.bases.find(base_version)
            if found is not None:
                commit.bases = [base for base, group in zip(found, self.groups, strict=True) if group.settings]
            commit.delay_compensation = float(self.coordinator.policy.values["delay_compensation"])  # type: ignore[arg-type]  # a number
        return commit

    def keep_base(self) -> None:
        """Keep the present version for gradients that will be taken at it, if the policy wants that."""
        policy = self.coordinator.policy
        if not policy.needs_base:
            self.bases.clear()
        elif self.bases.newest != self.version:
            self.bases.keep(self.hold(), policy.bases_count)

    def measure(self, staging: Staging) -> float:
        """The Euclidean norm of an update's gradients, unscaled; safe on any thread."""
        (scale,) = self._scales([staging])
        vectors = [
            (transfer.layout.state, transfer.vector, staging.present_in(group))
            for (group, number), transfer in staging.transfers.items()
            if not number
        ]
        return measure(self.memory.device, vectors)[1] / scale

    @property
    def combines(self) -> bool:
        """Whether the policy makes commits of several updates; then staged ones are written to."""
        return self.coordinator.policy.combines

    def combine(self, stagings: Sequence[Staging]) -> None:
        """Make the first update the average of all, and of what was accumulated; safe on any thread."""
        whole = combine(self.memory.device, stagings, self._scales(stagings), self._accumulator(), self.accumulated)
        first = stagings[0]
        first.become(whole.header(first.header, unscaled=self._steers), list(whole.rows))

    @property
    def folds_early(self) -> bool:
        """Whether updates that wait for others need not wait in memory; not those with inputs beside the gradients."""
        return all(
            group.settings is None or (group.settings.accumulates and not group.settings.definition.inputs)
            for group in self.groups
        )

    def fold(self, staging: Staging) -> Accumulated:
        """Make an update the sum of what is accumulated and of itself; safe on any thread. Raises NonfiniteGradient."""
        check_fits(self.name, self.accumulated, staging.header)
        (scale,) = self._scales([staging])
        folded = fold(self.memory.device, staging, scale, self._accumulator(), self.accumulated)
        if staging.borrowed:  # what a worker can write to cannot become the accumulator
            for (group, _), transfer in staging.transfers.items():
                self.memory.device.copy(transfer.vector, self.groups[group].vectors[ACCUMULATOR].vector)
        return folded

    def accumulate(self, staging: Staging, folded: Accumulated) -> None:
        """Go over to the accumulator that `fold` has made of an update, which gives its memory for it."""
        unneeded = []
        for (group, _), transfer in () if staging.borrowed else staging.transfers.items():
            before = self.groups[group].vectors[ACCUMULATOR]
            self.groups[group].vectors[ACCUMULATOR] = Held(transfer.vector)
            unneeded += [] if before.holders else [before.vector]
        staging.give_up()
        self.accumulated = folded
        self.memory.free(unneeded)

    def stage_nothing(self, header: UpdateHeader) -> Staging:
        """An update whose vectors are somewhere else."""
        return Staging(self.name, header, self.layout, [None] * len(self.groups), {}, self.checks_finite)

    def stage_accumulated(self, vectors: Mapping[Key, Vector], worker: str) -> Staging:
        """What is accumulated as an update of its own, where nothing else makes the commit. Safe on any thread.

        vectors: of `accumulated_sizes`, or the accumulator's own. worker: one of whom it comes.
        """
        for (group, _), vector in vectors.items():
            self.memory.device.copy(self.groups[group].vectors[ACCUMULATOR].vector, vector)
        settings = [group.settings for group in self.groups]
        identity = Identity(self.name, self.uid, self.generation, worker, 0, 0, b"", self.version)
        like = UpdateHeader(identity, rows_only=self.accumulated.rows_only)
        header = self.accumulated.header(like, unscaled=self._steers)
        staging = Staging(self.name, header, self.layout, settings, vectors, self.checks_finite)
        factor = 1.0 / self.accumulated.weight
        for transfer in staging.transfers.values():
            layout = transfer.layout.state
            whole = layout.pieces([(0, layout.packed_bytes)])
            self.memory.device.fold(transfer.vector, transfer.vector, *whole, factor, 0.0)
        staging.become(header, [Brought(each.rows, each.factor * factor) for each in self.accumulated.rows])
        return staging

    def restore_accumulator(self) -> None:
        """Undo what `stage_accumulated` did to the accumulator's own vectors, to within a rounding."""
        for vector in self._accumulator().values():
            whole = np.zeros(1, np.int64), np.array([len(vector)], np.int64)
            self.memory.device.fold(vector, vector, *whole, self.accumulated.weight, 0.0)

    @property
    def accumulated_sizes(self) -> dict[Key, Size]:
        """The vectors that `stage_accumulated` needs."""
        if self.accumulated.rows_only:
            return {}
        numbered = enumerate(self.groups)
        return {(number, 0): group.accumulator_size for number, group in numbered if ACCUMULATOR in group.vectors}

    def held_accumulators(self) -> list[GroupState]:
        """The groups whose accumulator is held by a reader, and must be moved before it is written to."""
        return [group for group in self.groups if ACCUMULATOR in group.vectors and group.vectors[ACCUMULATOR].holders]

    def move_accumulators(self, groups: Sequence[GroupState], vectors: Sequence[Vector]) -> None:
        """Go over to other vectors with the same content."""
        for group, vector in zip(groups, vectors, strict=True):
            self.memory.device.copy(group.vectors[ACCUMULATOR].vector, vector)
            group.vectors[ACCUMULATOR] = Held(vector)

    def _accumulator(self) -> dict[int, Vector]:
        """The accumulator's vectors by group, if it holds something."""
        if not self.accumulated.weight:
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
        if commit.tables is not None:
            self.memory.free(commit.tables.finish())
        self.version += 1
        self._forget_accumulated()
        self.changes += bool(commit.header.hyperparameters)
        self.samples = commit.samples
        if self.loss_scale is not None:
            self.loss_scale = self.loss_scale.after(self.spec.parsed_transforms[0], finite=True)
        self.keep_base()
        return self.make_answer(Outcome.COMMITTED, tuple(commit.norms))

    def _forget_accumulated(self) -> None:
        if self.accumulated.rows:
            self.memory.free([vector for each in self.accumulated.rows for vector in each.rows.vectors])
        self.accumulated = Accumulated()

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
        return Hold(self, self.version, groups, self.tables.hold() if whole else [])

    def release(self, hold: Hold) -> None:
        """End a hold; vectors that a commit has superseded are freed with their last holder."""
        current = {id(held) for group in self.groups for held in group.vectors.values()}
        unneeded = []
        for group in hold.groups:
            for held in group.values():
                held.holders -= 1
                if held.holders == 0 and id(held) not in current:
                    unneeded.append(held.vector)
        self.memory.free([*unneeded, *Tables.release(hold.tables)])

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
            and not self.coordinator.policy.needs_base
            and all(
                chosen is None or (chosen.array_program is None and len(chosen.program.stages) == 1)
                for chosen in (group.settings for group in self.groups)
            )
        )

    @property
    def keeps_gradients(self) -> bool:
        """Whether commits read gradients only, so that they may lie in a worker's memory."""
        arrays = any(group.settings and group.settings.array_program for group in self.groups)
        written = self.combines or self.coordinator.policy.needs_base
        return not self.spec.parsed_transforms and not arrays and not written

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
    ) -> RunSettings:
        """The settings of every group and table after a change; `set_settings` makes them the present ones.

        group "": every group and table that has what changes. policy: the one that they must fit. Raises EtagMismatch,
        UnknownGroup, UnknownArgument, ChangeRefused, RowsNotSupported and what is wrong with the values.
        """
        if etag and etag != self.etag:
            raise EtagMismatch(
                f"run '{self.name}' has etag {self.etag}, expected {etag}: it was changed; read it again and repeat",
                got=self.etag,
                expected=etag,
            )
        before = self.settings
        if policy is not None:
            wanted = parse_policy(policy)
            before = RunSettings([fit_policy(chosen, wanted) for chosen in before.groups], before.tables)
            for chosen in before.tables:
                check_policy(chosen, wanted)
        after = self._changed(before, group, hyperparameters, schedules, removed, keep_clock)
        self.tables.check_settings(after.tables)
        return after

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
        before, moment = self.settings, self.moment
        after = RunSettings(
            [chosen and chosen.reported(metrics, moment) for chosen in before.groups],
            [chosen.reported(metrics, moment) for chosen in before.tables],
        )
        self.metrics = known
        self.set_settings(after)

    def slots_needed(self, settings: RunSettings) -> list[Size]:
        """Accumulators that these settings have and the present ones have not."""
        return [self.groups[number].accumulator_size for number in self._lacking(settings)]

    def add_slots(self, settings: RunSettings, vectors: Sequence[Vector]) -> None:
        """Take vectors of `slots_needed`; the settings follow."""
        for number, vector in zip(self._lacking(settings), vectors, strict=True):
            self.memory.device.fill(vector, 0.0)
            self.groups[number].add(ACCUMULATOR, vector, settings.groups[number])

    def _lacking(self, settings: RunSettings) -> list[int]:
        return [
            number
            for number, (chosen, group) in enumerate(zip(settings.groups, self.groups, strict=True))
            if chosen is not None and chosen.accumulates and ACCUMULATOR not in group.vectors
        ]

    @property
    def settings(self) -> RunSettings:
        """The present ones."""
        return RunSettings([group.settings for group in self.groups], self.tables.settings)

    def set_settings(self, settings: RunSettings) -> None:
        """Make changed settings the present ones, from the next commit on."""
        for group, chosen in zip(self.groups, settings.groups, strict=True):
            group.settings = chosen
        self.tables.set_settings(settings.tables)
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
        tables: Sequence[Table] | None = None,
    ) -> None:
        """Go over to another state and a new generation; every worker must join again. tables: None for the present."""
        self.bases.clear()
        before = self.groups
        chosen = [group.settings for group in before] if settings is None else settings
        self.groups = [
            GroupState(layout, group_settings, group.vectors, group.steps, group.scalars)
            for layout, group_settings, group in zip(self.layout.groups, chosen, arrays, strict=True)
        ]
        self.version = version
        self.samples = samples
        self.rewind(generation)
        unneeded = [held.vector for group in before for held in group.vectors.values() if held.holders == 0]
        if tables is not None:
            unneeded += self.tables.drop()
            self.tables = Tables(self.name, tables)
        self.memory.free(unneeded)

    def rewind(self, generation: int) -> None:
        """The run went back to its present version: every worker must join again, and what was accumulated is gone."""
        self.coordinator.rewind(generation, self.version)
        self._forget_accumulated()
        self.bases.clear()
        self.keep_base()

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
            "tables": [],
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

    def take_arrays(
        self,
        settings: Sequence[Settings | None],
        arrays: Sequence[GroupArrays],
        tables: Sequence[Table] = (),
        accumulated: tuple[Brought, ...] = (),
    ) -> None:
        """Complete a run made by `from_data`. accumulated: rows that wait for a commit."""
        self.tables = Tables(self.name, tables)
        self.accumulated = replace(self.accumulated, rows=accumulated)
        self.groups = [
            GroupState(layout, chosen, group.vectors, group.steps, group.scalars)
            for layout, chosen, group in zip(self.layout.groups, settings, arrays, strict=True)
        ]
        self.coordinator.policy.folds_early = self.folds_early

    def free(self) -> None:
        """Give the state's memory back, when the run is deleted and nobody holds it."""
        self._forget_accumulated()
        self.bases.clear()
        vectors = [held.vector for group in self.groups for held in group.vectors.values() if not held.holders]
        self.memory.free([*vectors, *self.tables.drop()])
        self.memory.drop_kept()
        self.groups = []

    def make_answer(self, outcome: Outcome, norms: tuple[tuple[float, ...], ...] = ()) -> Answer:
        """An answer at the present version."""
        return Answer(outcome, self.version, self.loss_scale.scale if self.loss_scale else None, norms)

    def settings_with(self, header: UpdateHeader) -> RunSettings:
        """The settings with the hyperparameters that an update carries."""
        settings = self.settings
        # What is meant for all groups first, so that a group's own value wins.
        for group, values in sorted(header.hyperparameters.items()):
            settings = self._changed(settings, group, values, {}, (), False)
        return settings

    def _changed(
        self,
        before: RunSettings,
        group: str,
        hyperparameters: Mapping[str, object],
        schedules: Schedules,
        removed: Sequence[str],
        keep_clock: bool,
    ) -> RunSettings:
        names = [layout.name for layout in self.layout.groups] + [table.spec.name for table in self.tables.all]
        named = list(zip(names, [*before.groups, *before.tables], strict=True))
        after = change(self.name, named, self.moment, group, hyperparameters, schedules, removed, keep_clock)
        groups = len(before.groups)
        return RunSettings(after[:groups], [chosen for chosen in after[groups:] if chosen is not None])
