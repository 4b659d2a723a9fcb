"""The codec that client and server share: plain Python data to contract messages and back.

A value is a number, a flag, a text, a list of numbers, or None. A schedule is a dictionary:

    {"name": "cosine", "t_max": 1000, "eta_min": 1e-5, "clock": "updates"}
    {"name": "sequential", "milestones": [100], "schedules": [{"name": "warmup", ...}, {"name": "cosine", ...}]}

where `name`, `clock` and `schedules` are reserved and every other key is an argument. What the contract cannot hold
raises WireError; what a name or a number means (NaN, ranges) is checked by the server alone, in one place.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, Final, TypeVar

import numpy as np

from stepwell.v1 import run_pb2, values_pb2

CONTRACT: Final = "1.0"
"""The version of the contract that this package was made for, MAJOR.MINOR."""

CONTRACT_METADATA: Final = "stepwell-contract"
"""The metadata that carries CONTRACT with every call."""

ERROR_DOMAIN: Final = "stepwell"
"""The domain of the google.rpc.ErrorInfo in a failed call."""

RANGE_BYTES: Final = 1 << 20
"""The most data that one message carries, in bytes; 256 KiB and 4 MiB both cost a third more."""

SCHEDULE_DEPTH_MAX: Final = 16
"""How deep schedules may be nested. Protobuf itself refuses 100 levels, with an error that does not say why."""

Value = float | bool | str | tuple[float, ...] | None

DTYPE_NAMES: Final[Mapping[run_pb2.DType, str]] = {
    run_pb2.D_TYPE_FLOAT32: "float32",
    run_pb2.D_TYPE_FLOAT64: "float64",
    run_pb2.D_TYPE_FLOAT16: "float16",
    run_pb2.D_TYPE_BFLOAT16: "bfloat16",
}

NONFINITE_NAMES: Final[Mapping[run_pb2.Nonfinite, str]] = {
    run_pb2.NONFINITE_REJECT: "reject",
    run_pb2.NONFINITE_SKIP: "skip",
    run_pb2.NONFINITE_ALLOW: "allow",
}

CLOCK_NAMES: Final[Mapping[values_pb2.Clock, str]] = {
    values_pb2.CLOCK_UPDATES: "updates",
    values_pb2.CLOCK_SAMPLES: "samples",
    values_pb2.CLOCK_EPOCHS: "epochs",
}

RESERVED_KEYS: Final = frozenset({"name", "clock", "schedules"})

E = TypeVar("E", bound=int)
P = TypeVar("P", values_pb2.Transform, values_pb2.Wrapper, values_pb2.Encoding, values_pb2.Policy)


class WireError(ValueError):
    """Data that the contract cannot hold, or a message that lacks what it must have."""


def encode_value(value: object) -> values_pb2.Value:
    """Encode a number, flag, text, list of numbers or None; NumPy's scalars and 1-d arrays are taken as such."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None:
        return values_pb2.Value(none={})
    if isinstance(value, bool):
        return values_pb2.Value(flag=value)
    if isinstance(value, str):
        return values_pb2.Value(text=value)
    if isinstance(value, Real):
        return values_pb2.Value(number=_number(value))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return values_pb2.Value(numbers=values_pb2.NumberList(numbers=[_number(item) for item in value]))
    raise WireError(
        f"got a value of type {type(value).__name__}, expected a number, a flag, a text, a list of numbers or None; "
        "convert it to one of these"
    )


def decode_value(message: values_pb2.Value) -> Value:
    """The value of a message; WireError where no kind is set."""
    match message.WhichOneof("kind"):
        case "number":
            return message.number
        case "flag":
            return message.flag
        case "text":
            return message.text
        case "numbers":
            return tuple(message.numbers.numbers)
        case "none":
            return None
        case _:
            raise WireError("got a value with no kind set, expected exactly one of its fields; set it")


def encode_schedule(spec: Mapping[str, object], *, depth: int = 1) -> values_pb2.Schedule:
    """Encode a schedule given as plain data. Raises WireError where a part has the wrong type."""
    if depth > SCHEDULE_DEPTH_MAX:
        raise WireError(f"got schedules nested deeper than {SCHEDULE_DEPTH_MAX} levels; expected fewer, flatten them")
    if not _has_name(spec):
        raise WireError(f"got the schedule {spec!r:.200}, expected a dictionary with a 'name', such as 'cosine'")
    children = spec.get("schedules", ())
    if not isinstance(children, Sequence) or isinstance(children, str):
        raise WireError(f"schedule '{spec['name']}': got 'schedules' {children!r:.200}, expected a list of schedules")
    message = values_pb2.Schedule(
        name=str(spec["name"]), schedules=[encode_schedule(child, depth=depth + 1) for child in children]
    )
    if spec.get("clock") is not None:
        message.clock = named(CLOCK_NAMES, spec["clock"], "clock")
    for name, value in spec.items():
        if name not in RESERVED_KEYS:
            message.arguments[name].CopyFrom(encode_value(value))
    return message


def decode_schedule(message: values_pb2.Schedule, *, depth: int = 1) -> dict[str, Any]:
    """The schedule as plain data: "name", its arguments, and "clock" and "schedules" where they are set.

    Raises WireError for an argument named like a reserved key, a value without a kind, and too deep nesting.
    """
    if depth > SCHEDULE_DEPTH_MAX:
        raise WireError(f"got schedules nested deeper than {SCHEDULE_DEPTH_MAX} levels; expected fewer, flatten them")
    spec: dict[str, Any] = {"name": message.name}
    for name in sorted(message.arguments):  # a map has no order of its own
        if name in RESERVED_KEYS:
            raise WireError(f"schedule '{message.name}': got an argument named '{name}', which is reserved; rename it")
        spec[name] = decode_value(message.arguments[name])
    if message.clock:
        spec["clock"] = name_of(CLOCK_NAMES, message.clock, "clock")
    if message.schedules:
        spec["schedules"] = [decode_schedule(child, depth=depth + 1) for child in message.schedules]
    return spec


def encode_part(kind: type[P], spec: Mapping[str, object]) -> P:
    """Encode a transform, wrapper, encoding or policy given as {"name": ..., arguments}; WireError where it is none."""
    if not _has_name(spec):
        raise WireError(f"got {spec!r:.200}, expected a dictionary with a 'name', such as 'ema'")
    message = kind(name=str(spec["name"]))
    for name, value in spec.items():
        if name != "name":
            message.arguments[name].CopyFrom(encode_value(value))
    return message


def decode_part(
    message: values_pb2.Transform | values_pb2.Wrapper | values_pb2.Encoding | values_pb2.Policy,
) -> dict[str, Any]:
    """A transform, wrapper, encoding or policy as plain data; WireError for a value without a kind."""
    if "name" in message.arguments:
        raise WireError(f"'{message.name}': got an argument named 'name', which is reserved; rename it")
    return {"name": message.name} | {name: decode_value(message.arguments[name]) for name in sorted(message.arguments)}


def encode_dtype(dtype: np.dtype[Any]) -> run_pb2.DType:
    """The contract's type for a float in any byte order; WireError for others."""
    for code, name in DTYPE_NAMES.items():
        if dtype.name == name:
            return code
    raise WireError(f"got dtype {dtype}, expected one of {', '.join(DTYPE_NAMES.values())}; convert the array")


def decode_dtype(code: run_pb2.DType) -> np.dtype[Any]:
    """The little-endian NumPy dtype; WireError for codes that this version does not know.

    bfloat16 is the type of the package ml_dtypes, which whoever has such parameters has already.
    """
    if code not in DTYPE_NAMES:
        raise WireError(f"got dtype code {code}, expected one of {sorted(DTYPE_NAMES)}; upgrade stepwell")
    return _dtype(DTYPE_NAMES[code])


def encode_nonfinite(name: object) -> run_pb2.Nonfinite:
    """The code of "reject", "skip" or "allow"; WireError for others."""
    return named(NONFINITE_NAMES, name, "nonfinite")


def decode_nonfinite(code: run_pb2.Nonfinite) -> str:
    """The name of a code; unset means "reject"."""
    return name_of(NONFINITE_NAMES, code or run_pb2.NONFINITE_REJECT, "nonfinite")


def named(names: Mapping[E, str], name: object, what: str) -> E:
    """The enum code that `names` gives this name."""
    for code, known in names.items():
        if known == name:
            return code
    raise WireError(f"got {what} {name!r:.100}, expected one of {', '.join(names.values())}; choose one of them")


def name_of(names: Mapping[E, str], code: E, what: str) -> str:
    """The name that `names` gives this enum code."""
    if code not in names:
        raise WireError(f"got {what} code {code}, expected one of {sorted(names)}; upgrade stepwell")
    return names[code]


@lru_cache
def _dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        # The type that arrays have here is one object, which `is` finds.
        return np.dtype(name) if sys.byteorder == "little" else np.dtype(name).newbyteorder("<")
    try:
        import ml_dtypes  # noqa: PLC0415  # only callers with such parameters need it
    except ImportError:
        raise WireError(
            "the run has bfloat16 parameters, expected the package ml_dtypes, which gives NumPy this type; install it"
        ) from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def _has_name(spec: object) -> bool:
    return isinstance(spec, Mapping) and isinstance(spec.get("name"), str)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise WireError(f"got {value!r:.100} in a list of numbers, expected a number; convert it")
    try:
        return float(value)
    except OverflowError as error:
        raise WireError("got an integer beyond the range of float64, expected a smaller number") from error
