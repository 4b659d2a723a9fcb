"""What the server tells about itself, its runs and its catalogue, as plain frozen data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from stepwell.v1 import control_pb2, data_pb2, run_pb2, values_pb2
from stepwell.wire import Value, decode_dtype, decode_nonfinite, decode_part, decode_schedule, decode_value


class Outcome(StrEnum):
    """What became of an update."""

    COMMITTED = "committed"
    SKIPPED_NONFINITE = "skipped_nonfinite"
    DROPPED_LATE = "dropped_late"
    FOLDED = "folded"
    REWOUND = "rewound"
    """The run went back to an older state and the update was dropped; only with on_rewind="continue"."""


@dataclass(frozen=True)
class Answer:
    """The answer to one update. A retry gets the same.

    outcome: what became of it.
    """

    outcome: Outcome
    committed_version: int
    """The version that holds the update; for one that was not applied, the version that it found."""
    loss_scale: float | None = None
    """What to multiply the next loss by, where the run has the transform `unscale`."""
    gradient_norms: "Norms | None" = None
    """Of the combined gradient, unscaled, before other transforms; where the run was created with report_norms."""
    parameter_norms: "Norms | None" = None
    """Of the parameters after the commit; likewise."""


@dataclass(frozen=True)
class Norms:
    """The norms of all trained parameters, or of their gradients, as one vector.

    l1: the sum of absolute values. l2: the Euclidean norm. maximum: the largest absolute value.
    """

    l1: float
    l2: float
    maximum: float


@dataclass(frozen=True)
class ServerDescription:
    """Who the server is, what its limits are, and how long the question took.

    version: its release. contract: what it speaks, MAJOR.MINOR. message_bytes_max: the largest message that it takes.
    range_bytes: how much data it puts into one. memory_bytes_max: what all runs, staged updates and copies for readers
    may take together. outstanding_updates_max: how many of a worker's latest answers it keeps for retries.
    word_seconds: how often it gives word on a call that waits. round_trip_seconds: how long this call took.
    """

    version: str
    contract: str
    message_bytes_max: int
    range_bytes: int
    memory_bytes_max: int
    outstanding_updates_max: int
    word_seconds: float
    round_trip_seconds: float


@dataclass(frozen=True)
class GroupDescription:
    """The present values of one group.

    name: that of the spec, or "default". dtype: of its parameters. optimizer, flavor: by name; empty if it is frozen.
    hyperparameters: as the next commit will use them, scheduled ones included. schedules: those in force, by
    hyperparameter. slots, scalars: the names of what the optimizer keeps for each parameter, arrays and float64.
    """

    name: str
    dtype: np.dtype[Any]
    optimizer: str
    flavor: str
    hyperparameters: Mapping[str, Value]
    schedules: Mapping[str, Mapping[str, Any]]
    slots: tuple[str, ...]
    scalars: tuple[str, ...]


@dataclass(frozen=True)
class TableDescription:
    """The present values of one table of rows.

    name, width, dtype, sparse_mode, rows_max: as its spec says. optimizer, flavor: by name. hyperparameters: as its
    next commit will use them. schedules: those in force, by hyperparameter. slots: the names of what is kept for each
    row. state_bytes: the memory that it takes. rows: how many there are, at most rows_max. created, evicted: how many
    rows came and went. refused: how often an id was brought that admission did not let in yet. step: how many commits
    it has had.
    """

    name: str
    width: int
    dtype: np.dtype[Any]
    sparse_mode: str
    rows_max: int
    rows: int
    created: int
    refused: int
    evicted: int
    state_bytes: int
    step: int
    optimizer: str
    flavor: str
    hyperparameters: Mapping[str, Value]
    schedules: Mapping[str, Mapping[str, Any]]
    slots: tuple[str, ...]


@dataclass(frozen=True)
class Tally:
    """What has become of updates, counted.

    commits, folded, skipped, dropped: answers of each outcome. refused: errors in place of an answer. withdrawn: gone
    with their worker. duplicates: sent again. staleness_last, staleness_max: in versions, of those that had an effect;
    staleness_counts: how many of them had 0, 1, 2 to 3, 4 to 7, ... versions. gradient_norm_last: the Euclidean norm of
    the worker's last gradients, where the run has report_norms; 0 for the run.
    """

    commits: int
    folded: int
    skipped: int
    dropped: int
    refused: int
    withdrawn: int
    duplicates: int
    staleness_last: int
    staleness_max: int
    staleness_counts: tuple[int, ...]
    gradient_norm_last: float


@dataclass(frozen=True)
class Place:
    """Where a worker stands among the live ones, in the order in which they joined.

    index: from 0 on. count: how many live workers there are. membership_number: grows whenever somebody joins or
    leaves.
    """

    index: int
    count: int
    membership_number: int


@dataclass(frozen=True)
class WorkerDescription:
    """A live worker.

    name: that under which it joined. epoch: the number of its latest join. last_sequence: the last that it committed in
    it. index: its place among the live ones. lease_seconds: how long it may give no sign of life. waits: whether an
    update of it waits for others. tally: over all its joins.
    """

    name: str
    epoch: int
    last_sequence: int
    index: int
    lease_seconds: float
    waits: bool
    tally: Tally


@dataclass(frozen=True)
class RunDescription:
    """A run as it was when the server was asked.

    name: the run's. uid: 16 random bytes that tell it from others of the same name. generation: how many times it went
    back to an older state. version: the number of commits. etag: changes with every `change`. samples: the sum of the
    committed updates' samples.
    optimizer, flavor, nonfinite, samples_per_epoch, transforms, wrappers: as in its spec. groups: with their present
    values. policy: the one in force, with all its arguments. workers: the live ones, by name. tally: of all workers'
    updates.
    parameters_count: how many parameters it has, by name. state_bytes: the memory of parameters and slots.
    skipped_count: how many updates were skipped because they were not finite. duplicates_count: how many were answered
    from memory. accumulated_count: how many are folded into the next version already. loss_scale: what to multiply the
    loss by, with the transform `unscale`. points: what can be pulled. metrics: the latest reported ones, by name.
    """

    name: str
    uid: bytes
    generation: int
    version: int
    etag: str
    samples: float
    optimizer: str
    flavor: str
    nonfinite: str
    samples_per_epoch: float | None
    groups: tuple[GroupDescription, ...]
    workers: tuple[WorkerDescription, ...]
    parameters_count: int
    state_bytes: int
    skipped_count: int
    duplicates_count: int
    loss_scale: float | None
    points: tuple[str, ...]
    metrics: Mapping[str, float]
    transforms: tuple[Mapping[str, Any], ...]
    wrappers: tuple[Mapping[str, Any], ...]
    encodings: Mapping[str, Mapping[str, Any]]
    """What gradients and parameters are encoded with where they travel."""
    policy: Mapping[str, Any]
    tally: Tally
    accumulated_count: int
    tables: Mapping[str, TableDescription]
    """By name, in the order of the spec."""


@dataclass(frozen=True)
class Checkpoint:
    """A stored state of a run.

    name: the checkpoint's. version: the run's when it was made. created_seconds: since 1970-01-01 UTC. size_bytes: on
    the server's disk.
    """

    name: str
    version: int
    created_seconds: float
    size_bytes: int


@dataclass(frozen=True)
class Argument:
    """One argument of an optimizer, schedule or other part: enough to draw a field of a form.

    name: as it is given. kind: "number", "integer", "flag", "text" or "numbers". default: the value when it is left
    out. required: whether it has no default. optional: whether None is taken. minimum, maximum: bounds of numbers, None
    where there is none; minimum_open, maximum_open: whether the bound itself is excluded. choices: the texts taken;
    empty means any. infinite: whether infinity is taken.
    """

    name: str
    kind: str
    default: Value
    required: bool
    optional: bool
    minimum: float | None
    maximum: float | None
    minimum_open: bool
    maximum_open: bool
    choices: tuple[str, ...]
    infinite: bool


@dataclass(frozen=True)
class FlavorDescription:
    """An optimizer as one framework has it.

    name: the flavor's. arguments: in order, with this flavor's defaults. slots, scalars: the names of what it keeps for
    each parameter with these, arrays and float64. step_per_parameter: whether each parameter counts its own steps; if
    not, every parameter needs a gradient in every update.
    """

    name: str
    arguments: tuple[Argument, ...]
    slots: tuple[str, ...]
    scalars: tuple[str, ...]
    step_per_parameter: bool


@dataclass(frozen=True)
class OptimizerDescription:
    """One optimizer.

    name: as it is given. summary: what it does, in a sentence. reference: the paper or text that defines it. matches:
    the implementation that it equals, such as torch.optim.Adam. flavors: the first is the default.
    """

    name: str
    summary: str
    reference: str
    matches: str
    flavors: tuple[FlavorDescription, ...]
    inputs: tuple[str, ...]
    """What an update may carry for it beside gradients, as `inputs`."""
    required: tuple[str, ...]
    """Without which of them, and of numbers such as the loss, an update is refused."""
    points: tuple[str, ...]
    """What can be pulled beside the parameters."""


@dataclass(frozen=True)
class PartDescription:
    """A gradient transform, a wrapper, an encoding or a policy.

    name, summary, reference, matches: as of an optimizer. arguments: in order. points: what it makes available to pull.
    """

    name: str
    summary: str
    reference: str
    matches: str
    arguments: tuple[Argument, ...]
    points: tuple[str, ...]


@dataclass(frozen=True)
class ScheduleDescription:
    """One schedule.

    name, summary, reference, matches: as of an optimizer. arguments: in order. absolute: whether it sets values rather
    than start from the hyperparameter's own. children_min, children_max: how many schedules it is made of.
    """

    name: str
    summary: str
    reference: str
    matches: str
    arguments: tuple[Argument, ...]
    absolute: bool
    children_min: int
    children_max: int


TABLE_ROWS_MAX: Final = 1 << 31
"""How many rows a table may have where its spec does not say."""

OUTCOMES: Final[Mapping[data_pb2.Outcome, Outcome]] = {
    data_pb2.OUTCOME_COMMITTED: Outcome.COMMITTED,
    data_pb2.OUTCOME_SKIPPED_NONFINITE: Outcome.SKIPPED_NONFINITE,
    data_pb2.OUTCOME_DROPPED_LATE: Outcome.DROPPED_LATE,
    data_pb2.OUTCOME_FOLDED: Outcome.FOLDED,
}

KINDS: Final[Mapping[values_pb2.ArgumentKind, str]] = {
    values_pb2.ARGUMENT_KIND_NUMBER: "number",
    values_pb2.ARGUMENT_KIND_INTEGER: "integer",
    values_pb2.ARGUMENT_KIND_FLAG: "flag",
    values_pb2.ARGUMENT_KIND_TEXT: "text",
    values_pb2.ARGUMENT_KIND_NUMBERS: "numbers",
}


def describe_server(server: control_pb2.GetServerResponse, round_trip_seconds: float) -> ServerDescription:
    return ServerDescription(
        version=server.version,
        contract=server.contract,
        message_bytes_max=server.message_bytes_max,
        range_bytes=server.range_bytes,
        memory_bytes_max=server.memory_bytes_max,
        outstanding_updates_max=server.outstanding_updates_max,
        word_seconds=server.word_seconds,
        round_trip_seconds=round_trip_seconds,
    )


def describe_run(run: run_pb2.Run) -> RunDescription:
    return RunDescription(
        name=run.name,
        uid=run.uid,
        generation=run.generation,
        version=run.version,
        etag=run.etag,
        samples=run.samples,
        optimizer=run.spec.optimizer,
        flavor=run.spec.flavor,
        nonfinite=decode_nonfinite(run.spec.nonfinite),
        samples_per_epoch=run.spec.samples_per_epoch if run.spec.HasField("samples_per_epoch") else None,
        groups=tuple(_group(group) for group in run.groups),
        workers=tuple(
            WorkerDescription(
                worker.name,
                worker.epoch,
                worker.last_sequence,
                worker.index,
                worker.lease_seconds,
                worker.waits,
                describe_tally(worker.tally),
            )
            for worker in run.workers
        ),
        policy=decode_part(run.policy),
        tally=describe_tally(run.tally),
        accumulated_count=run.accumulated_count,
        parameters_count=run.parameters_count,
        state_bytes=run.state_bytes,
        skipped_count=run.skipped_count,
        duplicates_count=run.duplicates_count,
        loss_scale=run.loss_scale if run.HasField("loss_scale") else None,
        points=tuple(run.points),
        metrics=dict(run.metrics),
        transforms=tuple(decode_part(part) for part in run.spec.transforms),
        wrappers=tuple(decode_part(part) for part in run.spec.wrappers),
        encodings={
            f"{direction}s": decode_part(getattr(run.spec, field))
            for direction in ("gradient", "parameter")
            if run.spec.HasField(field := f"{direction}_encoding")
        },
        tables={state.name: _table(spec, state) for spec, state in zip(run.spec.tables, run.tables, strict=True)},
    )


def describe_tally(tally: run_pb2.Tally) -> Tally:
    return Tally(
        tally.commits,
        tally.folded,
        tally.skipped,
        tally.dropped,
        tally.refused,
        tally.withdrawn,
        tally.duplicates,
        tally.staleness_last,
        tally.staleness_max,
        tuple(tally.staleness_counts),
        tally.gradient_norm_last,
    )


def describe_place(place: control_pb2.Place) -> Place:
    return Place(place.index, place.count, place.membership_number)


def describe_answer(outcome: Outcome, answer: data_pb2.Answer) -> Answer:
    return Answer(
        outcome=outcome,
        committed_version=answer.committed_version,
        loss_scale=answer.loss_scale if answer.HasField("loss_scale") else None,
        gradient_norms=_norms(answer.gradient_norms) if answer.HasField("gradient_norms") else None,
        parameter_norms=_norms(answer.parameter_norms) if answer.HasField("parameter_norms") else None,
    )


def describe_part(part: control_pb2.PartDescription) -> PartDescription:
    return PartDescription(
        name=part.name,
        summary=part.summary,
        reference=part.reference,
        matches=part.matches,
        arguments=_arguments(part.arguments),
        points=tuple(part.points),
    )


def describe_checkpoint(checkpoint: control_pb2.Checkpoint) -> Checkpoint:
    return Checkpoint(checkpoint.name, checkpoint.version, checkpoint.created_seconds, checkpoint.size_bytes)


def describe_optimizer(optimizer: control_pb2.Optimizer) -> OptimizerDescription:
    return OptimizerDescription(
        name=optimizer.name,
        summary=optimizer.summary,
        reference=optimizer.reference,
        matches=optimizer.matches,
        flavors=tuple(
            FlavorDescription(
                name=flavor.name,
                arguments=_arguments(flavor.arguments),
                slots=tuple(flavor.slots),
                scalars=tuple(flavor.scalars),
                step_per_parameter=flavor.step_per_parameter,
            )
            for flavor in optimizer.flavors
        ),
        inputs=tuple(optimizer.inputs),
        required=tuple(optimizer.required),
        points=tuple(optimizer.points),
    )


def describe_schedule(schedule: control_pb2.ScheduleDescription) -> ScheduleDescription:
    return ScheduleDescription(
        name=schedule.name,
        summary=schedule.summary,
        reference=schedule.reference,
        matches=schedule.matches,
        arguments=_arguments(schedule.arguments),
        absolute=schedule.absolute,
        children_min=schedule.children_min,
        children_max=schedule.children_max,
    )


def _norms(norms: data_pb2.Norms) -> Norms:
    return Norms(norms.l1, norms.l2, norms.maximum)


def _group(group: run_pb2.GroupState) -> GroupDescription:
    return GroupDescription(
        name=group.name,
        dtype=decode_dtype(group.dtype),
        optimizer=group.optimizer,
        flavor=group.flavor,
        hyperparameters={name: decode_value(group.hyperparameters[name]) for name in sorted(group.hyperparameters)},
        schedules={name: decode_schedule(group.schedules[name]) for name in sorted(group.schedules)},
        slots=tuple(group.slots),
        scalars=tuple(group.scalars),
    )


def _table(spec: run_pb2.TableSpec, table: run_pb2.TableState) -> TableDescription:
    return TableDescription(
        name=table.name,
        width=spec.width,
        dtype=decode_dtype(spec.dtype or run_pb2.D_TYPE_FLOAT32),
        sparse_mode=spec.sparse_mode or "lazy",
        rows_max=spec.rows_max or TABLE_ROWS_MAX,
        rows=table.rows,
        created=table.created,
        refused=table.refused,
        evicted=table.evicted,
        state_bytes=table.state_bytes,
        step=table.step,
        optimizer=table.optimizer,
        flavor=table.flavor,
        hyperparameters={name: decode_value(table.hyperparameters[name]) for name in sorted(table.hyperparameters)},
        schedules={name: decode_schedule(table.schedules[name]) for name in sorted(table.schedules)},
        slots=tuple(table.slots),
    )


def _arguments(arguments: Iterable[values_pb2.Argument]) -> tuple[Argument, ...]:
    return tuple(
        Argument(
            name=argument.name,
            kind=KINDS.get(argument.kind, "unknown"),
            default=decode_value(argument.default) if argument.HasField("default") else None,
            required=not argument.HasField("default"),
            optional=argument.optional,
            minimum=argument.minimum if argument.HasField("minimum") else None,
            maximum=argument.maximum if argument.HasField("maximum") else None,
            minimum_open=argument.minimum_open,
            maximum_open=argument.maximum_open,
            choices=tuple(argument.choices),
            infinite=argument.infinite,
        )
        for argument in arguments
    )
