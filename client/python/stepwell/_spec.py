"""The arguments of create_run, change and step as the contract's messages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from stepwell.errors import InvalidName, InvalidSpec, InvalidValue
from stepwell.v1 import control_pb2, data_pb2, run_pb2, values_pb2
from stepwell.wire import (
    RANGE_BYTES,
    WireError,
    encode_dtype,
    encode_nonfinite,
    encode_part,
    encode_schedule,
    encode_value,
)

Parameters = Mapping[str, Any]
Schedules = Mapping[str, Mapping[str, Any]]

GROUP_KEYS: Final = (
    "name",
    "parameters",
    "optimizer",
    "flavor",
    "hyperparameters",
    "schedules",
    "frozen",
    "definition",
)

TABLE_KEYS: Final = (
    "name",
    "width",
    "dtype",
    "initializer",
    "seed",
    "optimizer",
    "flavor",
    "hyperparameters",
    "schedules",
    "sparse_mode",
    "rows_max",
    "admission",
    "eviction",
)

PARAMETER_OVERHEAD_BYTES: Final = 64
"""What one parameter takes in a spec beside its name and shape, generously."""


def as_arrays(parameters: Parameters) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters as arrays of floats; raises InvalidSpec for other dtypes."""
    arrays = {}
    for name, value in parameters.items():
        array = np.asarray(value)
        try:
            encode_dtype(array.dtype)
        except WireError as error:
            raise InvalidSpec(f"parameter '{name}': {error}", {"parameter": str(name)}) from None
        arrays[name] = array
    return arrays


def encode_spec(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    *,
    optimizer: str,
    flavor: str | None,
    hyperparameters: Mapping[str, Any] | None,
    schedules: Schedules | None,
    groups: Iterable[Mapping[str, Any]],
    nonfinite: str,
    samples_per_epoch: float | None,
    definition: str | None,
    transforms: Iterable[Mapping[str, Any]],
    wrappers: Iterable[Mapping[str, Any]],
    report_norms: bool,
    encodings: Mapping[str, str | Mapping[str, Any]] | None,
    policy: str | Mapping[str, Any] | None,
    tables: Iterable[Mapping[str, Any]],
) -> run_pb2.Spec:
    """The whole spec. What the contract cannot hold raises InvalidName, InvalidValue or InvalidSpec."""
    try:
        return run_pb2.Spec(
            parameters=_parameters(arrays),
            optimizer=optimizer,
            flavor=flavor or "",
            hyperparameters=encode_hyperparameters(hyperparameters),
            schedules=encode_schedules(schedules),
            groups=[_group(group) for group in groups],
            nonfinite=encode_nonfinite(nonfinite),
            samples_per_epoch=samples_per_epoch,
            definition=definition or "",
            transforms=[encode_part(values_pb2.Transform, part) for part in transforms],
            wrappers=[encode_part(values_pb2.Wrapper, part) for part in wrappers],
            report_norms=report_norms,
            policy=encode_policy(policy),
            tables=[_table(table) for table in tables],
            **_encodings(encodings or {}),
        )
    except WireError as error:
        raise InvalidValue(str(error)) from None


def spec_requests(name: str, spec: run_pb2.Spec) -> Iterator[control_pb2.CreateRunRequest]:
    """The spec in pieces that fit a message: 100,000 names do not fit one."""
    request = control_pb2.CreateRunRequest(run=name, spec=spec)
    parameters = list(spec.parameters)
    del request.spec.parameters[:]
    size = 0
    for parameter in parameters:
        if size >= RANGE_BYTES:
            yield request
            request, size = control_pb2.CreateRunRequest(), 0
        request.spec.parameters.append(parameter)
        size += len(parameter.name.encode()) + 10 * len(parameter.shape) + PARAMETER_OVERHEAD_BYTES
    request.spec_complete = True
    yield request


def encode_policy(policy: str | Mapping[str, Any] | None) -> values_pb2.Policy | None:
    """A policy by its name or as a dictionary; raises InvalidValue for what is none."""
    if policy is None:
        return None
    try:
        return encode_part(values_pb2.Policy, {"name": policy} if isinstance(policy, str) else policy)
    except WireError as error:
        raise InvalidValue(f"policy: {error}") from None


def encode_hyperparameters(hyperparameters: Mapping[str, Any] | None) -> dict[str, values_pb2.Value]:
    """Values by name; raises InvalidValue for what is no value."""
    encoded = {}
    for name, value in _without_aliases(hyperparameters or {}).items():
        try:
            encoded[name] = encode_value(value)
        except WireError as error:
            raise InvalidValue(f"hyperparameter '{name}': {error}", {"argument": str(name)}) from None
    return encoded


def encode_schedules(schedules: Schedules | None) -> dict[str, values_pb2.Schedule]:
    """Schedules by hyperparameter; raises InvalidValue for what is no schedule."""
    encoded = {}
    for name, schedule in (schedules or {}).items():
        try:
            encoded[name] = encode_schedule(schedule)
        except WireError as error:
            raise InvalidValue(f"schedule of '{name}': {error}", {"argument": str(name)}) from None
    return encoded


def encode_update_hyperparameters(hyperparameters: Mapping[str, Any] | None) -> list[data_pb2.GroupHyperparameters]:
    """What an update carries: {"lr": 0.1} for every group that has it, {"no_decay": {"lr": 0.1}} for one group."""
    everywhere = {name: value for name, value in (hyperparameters or {}).items() if not isinstance(value, Mapping)}
    by_group = {name: value for name, value in (hyperparameters or {}).items() if isinstance(value, Mapping)}
    encoded = []
    for group, values in (({"": everywhere} if everywhere else {}) | by_group).items():
        numbers = {name: _number(name, value) for name, value in _without_aliases(values).items()}
        encoded.append(data_pb2.GroupHyperparameters(group=group, values=numbers))
    return encoded


def _encodings(encodings: Mapping[str, str | Mapping[str, Any]]) -> dict[str, Any]:
    unknown = encodings.keys() - {"gradients", "parameters"}
    if unknown:
        raise InvalidSpec(f"got encodings for {sorted(unknown)}, expected some of gradients, parameters; leave it out")
    return {
        f"{direction[:-1]}_encoding": encode_part(
            values_pb2.Encoding, {"name": encoding} if isinstance(encoding, str) else encoding
        )
        for direction, encoding in encodings.items()
    }


def _parameters(arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[run_pb2.ParameterSpec]:
    specs = []
    for name, array in arrays.items():
        try:
            specs.append(run_pb2.ParameterSpec(name=name, shape=array.shape, dtype=encode_dtype(array.dtype)))
        except (TypeError, ValueError) as error:
            raise InvalidName(f"got the parameter name {name!r:.100} ({error}), expected text in UTF-8") from None
    return specs


def _group(group: Mapping[str, Any]) -> run_pb2.GroupSpec:
    unknown = set(group) - set(GROUP_KEYS)
    if unknown or not isinstance(group.get("name"), str):
        got = f"the keys {sorted(unknown)}" if unknown else "no 'name'"
        raise InvalidSpec(f"group {dict(group)!r:.200}: got {got}, expected some of {', '.join(GROUP_KEYS)}")
    patterns = group.get("parameters", ())
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise InvalidSpec(f"group '{group['name']}': got 'parameters' {patterns!r:.200}, expected a list of globs")
    return run_pb2.GroupSpec(
        name=group["name"],
        parameters=patterns,
        optimizer=group.get("optimizer") or "",
        flavor=group.get("flavor") or "",
        hyperparameters=encode_hyperparameters(group.get("hyperparameters")),
        schedules=encode_schedules(group.get("schedules")),
        frozen=bool(group.get("frozen", False)),
        definition=group.get("definition") or "",
    )


def _table(table: Mapping[str, Any]) -> run_pb2.TableSpec:
    """A table of the spec. None stands for a default; what a number or a name means is the server's to say."""
    if not isinstance(table, Mapping):
        raise InvalidSpec(f"got the table {table!r:.200}, expected a dictionary with its 'name' and 'width'")
    given = {name: value for name, value in table.items() if value is not None}
    unknown = set(given) - set(TABLE_KEYS)
    missing = [name for name in ("name", "width") if name not in given]
    if unknown or missing:
        got = f"the keys {sorted(map(str, unknown))}" if unknown else f"no '{missing[0]}'"
        raise InvalidSpec(f"table {given!r:.200}: got {got}, expected name, width and some of {', '.join(TABLE_KEYS)}")
    owner = f"table {given['name']!r:.100}"
    for name in ("name", "optimizer", "flavor", "sparse_mode"):
        if not isinstance(given.get(name, ""), str):
            raise _wrong_kind(owner, name, given[name], "a text")
    for name in ("hyperparameters", "schedules", "admission", "eviction"):
        if not isinstance(given.get(name, {}), Mapping):
            raise _wrong_kind(owner, name, given[name], "a dictionary")
    initializer = given.get("initializer", {})
    if isinstance(initializer, str):
        initializer = {"name": initializer}
    if not isinstance(initializer, Mapping):
        raise _wrong_kind(owner, "initializer", initializer, "a name, or a dictionary with one")
    try:
        return run_pb2.TableSpec(
            name=given["name"],
            width=_whole(owner, "width", given["width"], 1, (1 << 32) - 1),
            dtype=_table_dtype(given["dtype"]) if "dtype" in given else run_pb2.D_TYPE_UNSPECIFIED,
            initializer=_values(owner, "initializer", initializer),
            seed=_whole(owner, "seed", given.get("seed", 0), -(1 << 63), (1 << 63) - 1),
            optimizer=given.get("optimizer", ""),
            flavor=given.get("flavor", ""),
            hyperparameters=encode_hyperparameters(given.get("hyperparameters")),
            schedules=encode_schedules(given.get("schedules")),
            sparse_mode=given.get("sparse_mode", ""),
            rows_max=_whole(owner, "rows_max", given["rows_max"], 1, (1 << 64) - 1) if "rows_max" in given else 0,
            admission=_values(owner, "admission", given.get("admission", {})),
            eviction=_values(owner, "eviction", given.get("eviction", {})),
        )
    except UnicodeEncodeError as error:
        raise InvalidName(
            f"{owner}: got a name that is no text in UTF-8 ({error}), expected one; choose another"
        ) from None


def _table_dtype(dtype: Any) -> run_pb2.DType:
    try:
        return encode_dtype(np.dtype(dtype))
    except TypeError:
        raise WireError(f"got dtype {dtype!r:.100}, expected float32 or float64; choose one of them") from None


def _whole(owner: str, name: str, value: Any, least: int, most: int) -> int:
    """A whole number in bounds; raises InvalidValue."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise _wrong_kind(owner, name, value, f"a whole number from {least} to {most}")
    return int(value)


def _values(owner: str, name: str, arguments: Mapping[str, Any]) -> dict[str, values_pb2.Value]:
    """Named arguments; raises InvalidValue for what is no value."""
    encoded = {}
    for key, value in arguments.items():
        try:
            encoded[str(key)] = encode_value(value)
        except WireError as error:
            raise InvalidValue(f"{owner}: {name}: '{key}': {error}", {"argument": str(key)}) from None
    return encoded


def _wrong_kind(owner: str, name: str, value: Any, expected: str) -> InvalidValue:
    return InvalidValue(
        f"{owner}: {name} is {value!r:.200}, expected {expected}; give such a value or leave it out",
        {"argument": name, "got": f"{value!r:.200}", "expected": expected},
    )


def _without_aliases(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """`betas=[b1, b2]`, as PyTorch writes it, is beta1 and beta2."""
    plain = dict(hyperparameters)
    if "betas" not in plain:
        return plain
    betas = plain.pop("betas")
    if not isinstance(betas, Sequence | np.ndarray) or isinstance(betas, str):
        raise InvalidValue(f"got betas {betas!r:.100}, expected a list of numbers; give beta1 and beta2 instead")
    for index, beta in enumerate(betas, start=1):
        if f"beta{index}" in plain:
            raise InvalidValue(f"got both betas and beta{index}, expected one of them; leave one out")
        plain[f"beta{index}"] = beta
    return plain


def _number(name: str, value: Any) -> float:
    try:
        encoded = encode_value(value)
    except WireError as error:
        raise InvalidValue(f"hyperparameter '{name}': {error}", {"argument": str(name)}) from None
    if encoded.WhichOneof("kind") != "number":
        raise InvalidValue(
            f"hyperparameter '{name}': got {value!r:.100}, expected a number: an update carries nothing else; "
            "use run.change for other values",
            {"argument": str(name)},
        )
    return encoded.number
