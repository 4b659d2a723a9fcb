"""Between the domain's data and the contract's messages, both ways."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stepwell.v1 import control_pb2, data_pb2, run_pb2, values_pb2
from stepwell.wire import (
    decode_dtype,
    decode_nonfinite,
    decode_part,
    decode_schedule,
    decode_value,
    encode_dtype,
    encode_nonfinite,
    encode_part,
    encode_schedule,
    encode_value,
)
from stepwell_server.core.arguments import Argument, Kind, Required, Value
from stepwell_server.core.compiler.definition import GIVEN_NUMBERS, Definition
from stepwell_server.core.coordinator import Place
from stepwell_server.core.encoding import Encoding
from stepwell_server.core.encoding import Entry as EncodingEntry
from stepwell_server.core.errors import EncodingNotAllowed, InvalidValue, LimitExceeded, MalformedRequest
from stepwell_server.core.layout import Layout, ParameterSpec
from stepwell_server.core.policies import Policy
from stepwell_server.core.run import Run
from stepwell_server.core.schedules import ScheduleEntry
from stepwell_server.core.settings import Moment, Settings
from stepwell_server.core.spec import GroupSpec, RunSpec
from stepwell_server.core.tables import Table, TableSpec
from stepwell_server.core.tally import Tally
from stepwell_server.core.update import UpdateHeader
from stepwell_server.core.workers import Answer, Identity, Outcome

# 4,000 names of 200 bytes stay well under a message.
_LAYOUT_PIECE_PARAMETERS = 4000
_LAYOUT_PIECE_BYTES = 1 << 20

_KINDS = {
    Kind.NUMBER: values_pb2.ARGUMENT_KIND_NUMBER,
    Kind.INTEGER: values_pb2.ARGUMENT_KIND_INTEGER,
    Kind.FLAG: values_pb2.ARGUMENT_KIND_FLAG,
    Kind.TEXT: values_pb2.ARGUMENT_KIND_TEXT,
    Kind.NUMBERS: values_pb2.ARGUMENT_KIND_NUMBERS,
}
_OUTCOMES = {
    Outcome.COMMITTED: data_pb2.OUTCOME_COMMITTED,
    Outcome.SKIPPED_NONFINITE: data_pb2.OUTCOME_SKIPPED_NONFINITE,
    Outcome.DROPPED_LATE: data_pb2.OUTCOME_DROPPED_LATE,
    Outcome.FOLDED: data_pb2.OUTCOME_FOLDED,
}


def decode_spec(message: run_pb2.Spec, parameters_max: int) -> RunSpec:
    if len(message.parameters) > parameters_max:
        raise LimitExceeded(
            f"the spec has {len(message.parameters)} parameters, expected at most {parameters_max}; use fewer",
            limit=parameters_max,
        )
    return RunSpec(
        parameters=tuple(
            ParameterSpec(parameter.name, tuple(parameter.shape), decode_dtype(parameter.dtype))
            for parameter in message.parameters
        ),
        optimizer=message.optimizer,
        flavor=message.flavor,
        hyperparameters=decode_values(message.hyperparameters),
        schedules=decode_schedules(message.schedules),
        groups=tuple(
            GroupSpec(
                name=group.name,
                parameters=tuple(group.parameters),
                optimizer=group.optimizer,
                flavor=group.flavor,
                hyperparameters=decode_values(group.hyperparameters),
                schedules=decode_schedules(group.schedules),
                frozen=group.frozen,
                definition=group.definition,
            )
            for group in message.groups
        ),
        nonfinite=decode_nonfinite(message.nonfinite),
        samples_per_epoch=message.samples_per_epoch if message.HasField("samples_per_epoch") else None,
        definition=message.definition,
        transforms=tuple(decode_part(part) for part in message.transforms),
        wrappers=tuple(decode_part(part) for part in message.wrappers),
        report_norms=message.report_norms,
        gradient_encoding=decode_part(message.gradient_encoding) if message.HasField("gradient_encoding") else None,
        parameter_encoding=decode_part(message.parameter_encoding) if message.HasField("parameter_encoding") else None,
        policy=decode_part(message.policy) if message.HasField("policy") else None,
        tables=tuple(_decode_table(table) for table in message.tables),
    )


def _decode_table(message: run_pb2.TableSpec) -> dict[str, Any]:
    """A table's spec in plain data; what is absent takes the default of `TableSpec`."""
    data: dict[str, Any] = {"name": message.name, "width": message.width, "seed": message.seed}
    for name in ("optimizer", "flavor", "sparse_mode", "rows_max"):
        if value := getattr(message, name):
            data[name] = value
    for name in ("initializer", "hyperparameters", "admission", "eviction"):
        if values := getattr(message, name):
            data[name] = decode_values(values)
    if message.schedules:
        data["schedules"] = decode_schedules(message.schedules)
    if message.dtype:
        data["dtype"] = decode_dtype(message.dtype).name
    return data


def decode_values(message: Mapping[str, values_pb2.Value]) -> dict[str, Any]:
    return {name: decode_value(value) for name, value in message.items()}


def decode_schedules(message: Mapping[str, values_pb2.Schedule]) -> dict[str, dict[str, Any]]:
    return {name: decode_schedule(schedule) for name, schedule in message.items()}


def decode_header(message: data_pb2.UpdateHeader) -> UpdateHeader:
    return UpdateHeader(
        identity=decode_identity(message.identity),
        without_gradient=tuple(message.without_gradient),
        samples=message.samples,
        hyperparameters={group.group: dict(group.values) for group in message.hyperparameters},
        inputs=tuple(message.inputs),
        given={name: getattr(message, name) for name in GIVEN_NUMBERS if message.HasField(name)},
        base_version=message.base_version if message.HasField("base_version") else None,
        rows=_decode_counts(message.rows) if message.rows else {},
        rows_only=message.rows_only,
    )


def _decode_counts(message: Iterable[data_pb2.RowsCount]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for each in message:
        if each.table in counts:
            raise MalformedRequest(f"the update announces rows of table {each.table} twice, expected once; add them up")
        counts[each.table] = each.count
    return counts


def decode_identity(message: data_pb2.UpdateIdentity) -> Identity:
    if not message.run:
        raise MalformedRequest("an update has no identity, expected one in its first stage message; send it")
    return Identity(
        run=message.run,
        uid=message.run_uid,
        generation=message.generation,
        worker=message.worker,
        epoch=message.epoch,
        sequence=message.sequence,
        fingerprint=message.fingerprint,
        acknowledged_version=message.acknowledged_version,
    )


def check_plain(part: run_pb2.Range) -> None:
    """Raise EncodingNotAllowed for a range of values or of a state that is not plain elements of the group's type."""
    if part.encoding or part.dtype:
        raise EncodingNotAllowed(
            "a range of values came encoded or in another type, expected plain elements of its group's; send these"
        )


def encode_answer(answer: Answer) -> data_pb2.Answer:
    message = data_pb2.Answer(
        outcome=_OUTCOMES[answer.outcome], committed_version=answer.committed_version, loss_scale=answer.loss_scale
    )
    if answer.norms:
        for norms, (l1, l2, maximum) in zip(
            (message.gradient_norms, message.parameter_norms), answer.norms, strict=True
        ):
            norms.l1, norms.l2, norms.maximum = l1, l2, maximum
    return message


def encode_run(run: Run) -> run_pb2.Run:
    message = run_pb2.Run(
        name=run.name,
        uid=run.uid,
        generation=run.generation,
        version=run.version,
        etag=run.etag,
        samples=run.samples,
        spec=_encode_spec(run.spec),
        parameters_count=len(run.layout.parameters),
        state_bytes=run.state_bytes,
        skipped_count=run.skipped_count,
        duplicates_count=run.duplicates_count,
        loss_scale=run.loss_scale.scale if run.loss_scale else None,
        points=run.points,
        metrics=run.metrics,
    )
    for group in run.groups:
        state = message.groups.add(name=group.layout.name, dtype=encode_dtype(group.layout.dtype))
        if group.settings is None:
            continue
        settings = group.settings
        state.optimizer, state.flavor = settings.definition.name, settings.flavor
        for name, value in _present(settings, run.moment).items():
            if name in settings.arguments:
                state.hyperparameters[name].CopyFrom(encode_value(value))
        for name, scheduled in settings.schedules.items():
            state.schedules[name].CopyFrom(encode_schedule(scheduled.schedule.spec))
        state.slots.extend(settings.slots)
        state.scalars.extend(settings.scalars)
    coordinator = run.coordinator
    waiting = {identity.worker for identity in coordinator.waiting()}
    for name, worker in sorted(run.workers.joined.items()):
        message.workers.add(
            name=name,
            epoch=worker.epoch,
            last_sequence=worker.last_sequence,
            index=coordinator.place(name).index,
            lease_seconds=coordinator.lease_seconds(name),
            waits=name in waiting,
            tally=_encode_tally(coordinator.tally(name)),
        )
    for table in run.tables.all:
        _encode_table(message.tables.add(), table, run.moment)
    message.policy.CopyFrom(encode_part(values_pb2.Policy, coordinator.policy.spec))
    message.tally.CopyFrom(_encode_tally(Tally.total(coordinator.tallies.values())))
    message.accumulated_count = coordinator.policy.accumulated
    return message


def _encode_table(message: run_pb2.TableState, table: Table, moment: Moment) -> None:
    statistics, settings = table.statistics, table.settings
    message.name, message.step = table.spec.name, table.step
    message.rows, message.created, message.refused = statistics.rows, statistics.created, statistics.refused
    message.evicted, message.state_bytes = statistics.evicted, statistics.state_bytes
    message.optimizer, message.flavor = settings.definition.name, settings.flavor
    message.slots.extend(settings.slots)
    for name, value in _present(settings, moment).items():
        if name in settings.arguments:
            message.hyperparameters[name].CopyFrom(encode_value(value))
    for name, scheduled in settings.schedules.items():
        message.schedules[name].CopyFrom(encode_schedule(scheduled.schedule.spec))


def _encode_tally(tally: Tally) -> run_pb2.Tally:
    return run_pb2.Tally(**tally.to_data())


def encode_place(place: Place) -> control_pb2.Place:
    return control_pb2.Place(index=place.index, count=place.count, membership_number=place.membership_number)


def encode_layout(layout: Layout, tables: Iterable[TableSpec]) -> Iterator[run_pb2.Layout]:
    """The layout in pieces, the last one marked; at least one."""
    piece = run_pb2.Layout()
    for table in tables:
        piece.tables.add(name=table.name, width=table.width, dtype=encode_dtype(table.element_type))
    for group in layout.groups:
        piece.groups.add(
            name=group.name,
            dtype=encode_dtype(group.dtype),
            vector_bytes=group.vector_bytes,
            packed_bytes=group.packed_bytes,
            frozen=group.frozen,
        )
    names_bytes = 0
    for placed in layout.parameters:
        names_bytes += len(placed.spec.name.encode())
        if len(piece.parameters) >= _LAYOUT_PIECE_PARAMETERS or names_bytes > _LAYOUT_PIECE_BYTES:
            yield piece
            piece, names_bytes = run_pb2.Layout(), 0
        piece.parameters.add(
            name=placed.spec.name,
            shape=placed.spec.shape,
            group=placed.group,
            vector_offset_bytes=placed.vector_offset,
            packed_offset_bytes=placed.packed_offset,
        )
    piece.last = True
    yield piece


def encode_optimizer(definition: Definition) -> control_pb2.Optimizer:
    message = control_pb2.Optimizer(
        name=definition.name,
        summary=definition.summary,
        reference=definition.reference,
        matches=definition.matches,
    )
    for flavor in definition.flavors:
        arguments = definition.arguments_of(flavor)
        needed = {name: 1.0 for name, argument in arguments.items() if isinstance(argument.default, Required)}
        settings = Settings(definition, flavor, definition.resolve(flavor, needed), {})
        message.flavors.add(
            name=flavor,
            arguments=[_encode_argument(argument) for argument in arguments.values()],
            slots=settings.slots,
            scalars=settings.scalars,
            step_per_parameter=settings.step_per_parameter,
        )
    message.inputs.extend(definition.inputs)
    message.required.extend(name for name, need in definition.inputs.items() if need == "required")
    message.required.extend(definition.numbers)
    message.points.extend(definition.points)
    return message


def encode_part_entry(definition: Definition) -> control_pb2.PartDescription:
    """A transform or a wrapper."""
    return control_pb2.PartDescription(
        name=definition.name,
        summary=definition.summary,
        reference=definition.reference,
        matches=definition.matches,
        arguments=[_encode_argument(argument) for argument in definition.arguments.values()],
        points=list(definition.points),
    )


def encode_encoding_entry(entry: EncodingEntry) -> control_pb2.PartDescription:
    return control_pb2.PartDescription(
        name=entry.name,
        summary=entry.summary,
        reference=entry.reference,
        arguments=[_encode_argument(argument) for argument in entry.arguments],
    )


def encode_policy_entry(policy: type[Policy]) -> control_pb2.PartDescription:
    return control_pb2.PartDescription(
        name=policy.name,
        summary=(policy.__doc__ or "").partition("\n")[0],
        arguments=[_encode_argument(argument) for argument in policy.arguments.values()],
    )


def encode_schedule_entry(entry: ScheduleEntry) -> control_pb2.ScheduleDescription:
    fewest, most = {None: (0, 0), 1: (1, 1), "many": (1, 63)}[entry.children]
    return control_pb2.ScheduleDescription(
        name=entry.name,
        summary=entry.summary,
        reference=entry.reference,
        matches=entry.matches,
        arguments=[_encode_argument(argument) for argument in entry.arguments],
        absolute=entry.absolute,
        children_min=fewest,
        children_max=most,
    )


def _present(settings: Settings, moment: Moment) -> Mapping[str, Value]:
    """The values at a moment; the hyperparameters' own where a schedule has left their range, which refuses commits."""
    try:
        return settings.at(moment)
    except InvalidValue:
        return settings.own


def _encode_argument(argument: Argument) -> values_pb2.Argument:
    message = values_pb2.Argument(
        name=argument.name,
        kind=_KINDS[argument.kind],
        optional=argument.optional,
        minimum_open=argument.range.minimum_open,
        maximum_open=argument.range.maximum_open,
        choices=argument.choices,
        infinite=argument.infinite,
    )
    if not isinstance(argument.default, Required):
        message.default.CopyFrom(encode_value(argument.default))
    if math.isfinite(argument.range.minimum):
        message.minimum = argument.range.minimum
    if math.isfinite(argument.range.maximum):
        message.maximum = argument.range.maximum
    return message


def _encode_spec(spec: RunSpec) -> run_pb2.Spec:
    message = run_pb2.Spec(
        optimizer=spec.optimizer,
        flavor=spec.flavor,
        nonfinite=encode_nonfinite(spec.nonfinite),
        samples_per_epoch=spec.samples_per_epoch,
        definition=spec.definition,
        transforms=[encode_part(values_pb2.Transform, part) for part in spec.transforms],
        wrappers=[encode_part(values_pb2.Wrapper, part) for part in spec.wrappers],
        report_norms=spec.report_norms,
        gradient_encoding=_encode_encoding(spec.parsed_gradient_encoding),
        parameter_encoding=_encode_encoding(spec.parsed_parameter_encoding),
        policy=encode_part(values_pb2.Policy, spec.policy) if spec.policy is not None else None,
    )
    _fill(message, spec)
    for table in spec.parsed_tables:
        _encode_table_spec(message.tables.add(), table)
    for group in spec.groups:
        added = message.groups.add(
            name=group.name,
            parameters=group.parameters,
            optimizer=group.optimizer,
            flavor=group.flavor,
            frozen=group.frozen,
            definition=group.definition,
        )
        _fill(added, group)
    return message


def _encode_table_spec(message: run_pb2.TableSpec, table: TableSpec) -> None:
    message.name, message.width, message.dtype = table.name, table.width, encode_dtype(table.element_type)
    message.seed, message.optimizer, message.flavor = table.seed, table.optimizer, table.flavor
    message.sparse_mode, message.rows_max = table.sparse_mode, table.rows_max
    for name in ("initializer", "admission", "eviction"):
        for key, value in (getattr(table, name) or {}).items():
            getattr(message, name)[key].CopyFrom(encode_value(value))
    _fill(message, table)


def _encode_encoding(encoding: Encoding | None) -> values_pb2.Encoding | None:
    return None if encoding is None else encode_part(values_pb2.Encoding, encoding.spec)


def _fill(message: Any, spec: RunSpec | GroupSpec | TableSpec) -> None:
    for name, value in spec.hyperparameters.items():
        message.hyperparameters[name].CopyFrom(encode_value(value))
    for name, schedule in spec.schedules.items():
        message.schedules[name].CopyFrom(encode_schedule(schedule))
