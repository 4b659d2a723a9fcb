import ml_dtypes  # noqa: F401  # gives NumPy the name bfloat16
import numpy as np
import pytest

from stepwell import wire
from stepwell.v1 import run_pb2, values_pb2


@pytest.mark.parametrize(
    ("value", "kind", "decoded"),
    [
        (1, "number", 1.0),
        (-0.0, "number", -0.0),
        (float("inf"), "number", float("inf")),
        (np.float32(0.5), "number", 0.5),
        (np.int64(3), "number", 3.0),
        (np.array(2.0), "number", 2.0),
        (True, "flag", True),
        (np.bool_(False), "flag", False),
        ("", "text", ""),
        ("größe", "text", "größe"),
        ([], "numbers", ()),
        ((1, 2.5), "numbers", (1.0, 2.5)),
        (np.arange(3), "numbers", (0.0, 1.0, 2.0)),
        (None, "none", None),
    ],
)
def test_values(value, kind, decoded):
    message = wire.encode_value(value)
    assert message.WhichOneof("kind") == kind
    got = wire.decode_value(values_pb2.Value.FromString(message.SerializeToString()))
    assert got == decoded
    assert type(got) is type(decoded)


@pytest.mark.parametrize("value", [b"x", {"a": 1}, {1.0}, object(), 1j, 10**400, [True], [[1.0]], ["x"]])
def test_what_is_no_value(value):
    with pytest.raises(wire.WireError):
        wire.encode_value(value)


def test_a_value_without_a_kind():
    with pytest.raises(wire.WireError):
        wire.decode_value(values_pb2.Value())


def test_schedules():
    spec = {
        "name": "sequential",
        "milestones": (10.0, 20.0),
        "clock": "samples",
        "schedules": [{"name": "warmup", "start": None}, {"name": "cosine", "hold": True, "mode": "cos"}],
    }
    message = wire.encode_schedule(spec)
    assert wire.decode_schedule(values_pb2.Schedule.FromString(message.SerializeToString())) == spec
    for clock in ("updates", "epochs", "samples"):
        assert wire.decode_schedule(wire.encode_schedule({"name": "x", "clock": clock}))["clock"] == clock
    assert wire.decode_schedule(wire.encode_schedule({"name": "x", "clock": None})) == {"name": "x"}


@pytest.mark.parametrize(
    "spec",
    [
        "cosine",
        {},
        {"name": 3},
        {"name": "x", "clock": "hours"},
        {"name": "x", "schedules": "y"},
        {"name": "x", "schedules": ["y"]},
        {"name": "x", "schedules": {"name": "y"}},
        {"name": "x", "gamma": {}},
    ],
)
def test_what_is_no_schedule(spec):
    with pytest.raises(wire.WireError):
        wire.encode_schedule(spec)


def test_nesting_is_bounded_both_ways():
    spec: dict[str, object] = {"name": "x"}
    message = values_pb2.Schedule(name="x")
    for _ in range(wire.SCHEDULE_DEPTH_MAX - 1):
        spec, message = {"name": "x", "schedules": [spec]}, values_pb2.Schedule(name="x", schedules=[message])
    assert wire.encode_schedule(spec) == message
    assert wire.decode_schedule(message) == spec
    with pytest.raises(wire.WireError, match="nested"):
        wire.encode_schedule({"name": "x", "schedules": [spec]})
    with pytest.raises(wire.WireError, match="nested"):
        wire.decode_schedule(values_pb2.Schedule(name="x", schedules=[message]))


@pytest.mark.parametrize("name", ["name", "clock", "schedules"])
def test_an_argument_with_a_reserved_name(name):
    message = values_pb2.Schedule(name="x")
    message.arguments[name].number = 1.0
    with pytest.raises(wire.WireError, match="reserved"):
        wire.decode_schedule(message)


def test_dtypes():
    for name in ("float32", "float64", ">f4", "<f8", "float16", "bfloat16"):
        decoded = wire.decode_dtype(wire.encode_dtype(np.dtype(name)))
        assert decoded == np.dtype(name).newbyteorder("<")
    for name in ("longdouble", "int32", "complex64", "object"):
        with pytest.raises(wire.WireError):
            wire.encode_dtype(np.dtype(name))
    with pytest.raises(wire.WireError):
        wire.decode_dtype(run_pb2.D_TYPE_UNSPECIFIED)


def test_every_enum_value_has_its_text():
    assert set(wire.DTYPE_NAMES) == set(run_pb2.DType.values()) - {0}
    assert set(wire.NONFINITE_NAMES) == set(run_pb2.Nonfinite.values()) - {0}
    assert set(wire.CLOCK_NAMES) == set(values_pb2.Clock.values()) - {0}
    for name in ("reject", "skip", "allow"):
        assert wire.decode_nonfinite(wire.encode_nonfinite(name)) == name
    assert wire.decode_nonfinite(run_pb2.NONFINITE_UNSPECIFIED) == "reject"
    with pytest.raises(wire.WireError):
        wire.encode_nonfinite("no")
