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
