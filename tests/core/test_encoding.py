"""Decoders against loops written from the comments on `message Range` in run.proto; and what they must refuse."""

import itertools
import math
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell_server.core.encoding import ELEMENTS_MAX, GRADIENT_ENCODINGS, PARAMETER_ENCODINGS, Encoded, parse_encoding
from stepwell_server.core.errors import (
    EncodingNotAllowed,
    IncompleteUpdate,
    InvalidEncoding,
    InvalidRange,
    InvalidValue,
    NonfiniteGradient,
    UnknownArgument,
    UnknownEncoding,
)
from stepwell_server.core.workers import Outcome
from tests.core.local import LocalRun

FEW = settings(max_examples=60, deadline=None)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32_MAX = float(np.finfo(np.float32).max)

# Small ones with padding after each, an empty one, one without dimensions, and one that ends on a boundary.
SHAPES = {"a": (3,), "empty": (0, 2), "b": (7,), "scalar": (), "c": (5, 4), "aligned": (16,), "next": (6,)}
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
ELEMENTS = sum(math.prod(shape) for shape in SHAPES.values())

RUN_SPECS = {
    "float16": {"name": "float16", "scale": 8.0},
    "int8": {"name": "int8", "block": 8},
    "sign": {"name": "sign", "block": 8},
    "top_k": {"name": "top_k"},
}


def parse(spec, entries, direction):
    encoding = parse_encoding(spec, entries, direction)
    assert encoding is not None
    return encoding


def wire(*numbers):
    return b"".join(struct.pack("<f", number) for number in numbers)


# References: one element after another.


def decoded_float16(encoded, scale):
    halves = [half for (half,) in struct.iter_unpack("<e", encoded.data)]
    return [np.float32(half) / np.float32(scale) for half in halves]


def scale_of(encoded, element, block):
    (scale,) = struct.unpack_from("<f", encoded.scales, 4 * (element // block))
    return np.float32(scale)


def decoded_int8(encoded, block):
    codes = [code for (code,) in struct.iter_unpack("<b", encoded.data)]
    return [np.float32(code) * scale_of(encoded, place, block) for place, code in enumerate(codes)]


def decoded_sign(encoded, block):
    elements = []
    for place in range(encoded.elements):
        negative = encoded.data[place // 8] >> (place % 8) & 1
        scale = scale_of(encoded, place, block)
        elements.append(-scale if negative else scale)
    return elements


def decoded_top_k(encoded, _):
    elements = [np.float32(0)] * encoded.elements
    values = struct.iter_unpack("<f", encoded.data)
    place = -1
    between = 0
    for byte in encoded.indices:
        between += byte
        if byte < 255:
            place += between + 1
            (value,) = next(values)
            elements[place] = np.float32(value)
            between = 0
    assert next(values, None) is None
    return elements


REFERENCES = {"float16": decoded_float16, "int8": decoded_int8, "sign": decoded_sign, "top_k": decoded_top_k}


def reference(encoded, argument):
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(REFERENCES[encoded.name](encoded, argument), np.float32)


def same_numbers(got, expected):
    """NaN for NaN, and else the same bits."""
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(expected)[numbers])


def gaps(places):
    """Indices of top_k, as run.proto says."""
    coded = bytearray()
    before = -1
    for place in places:
        between = place - before - 1
        while between >= 255:
            coded.append(255)
            between -= 255
        coded.append(between)
        before = place
    return bytes(coded)


SCALES = st.floats(0, 2.0**100, width=32) | st.sampled_from(
    [0.0, -0.0, 2.0**-149, 2.0**-126, FLOAT32_MAX / 127.5, FLOAT32_MAX, math.inf, math.nan]
)


@st.composite
def encoded_ranges(draw, name, elements, block):
    """Any bytes that fit."""
    match name:
        case "float16":
            return Encoded(name, elements, draw(st.binary(min_size=2 * elements, max_size=2 * elements)), wire(block))
        case "top_k":
            places = sorted(draw(st.sets(st.integers(0, elements - 1))))
            values = draw(st.lists(st.floats(width=32), min_size=len(places), max_size=len(places)))
            return Encoded(name, elements, wire(*values), indices=gaps(places))
        case _:
            size = elements if name == "int8" else math.ceil(elements / 8)
            blocks = math.ceil(elements / block)
            scales = draw(st.lists(SCALES, min_size=blocks, max_size=blocks))
            return Encoded(name, elements, draw(st.binary(min_size=size, max_size=size)), wire(*scales))


@FEW
@given(st.data())
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_decoder_gives_what_the_contract_says(name, wide, data):
    elements = data.draw(st.integers(1, 40) | st.sampled_from([255, 256, 257, 600]), "elements")
    block = data.draw(st.sampled_from([8, 16, 64]), "block")
    encoded = data.draw(encoded_ranges(name, elements, block), "encoded")
    argument = {"float16": {"scale": block}, "top_k": {}}.get(name, {"block": block})
    encoding = parse({"name": name, **argument}, GRADIENT_ENCODINGS, "gradients")
    out = np.full(elements, 7, np.float64 if wide else np.float32)
    encoding.check(encoded, "here")
    finite = encoding.decode(encoded, out, "here")
    expected = reference(encoded, block)
    same_numbers(out, expected)
    assert finite == np.isfinite(expected).all()


@pytest.mark.parametrize("code", [127, -127, -128, 3])
def test_a_large_scale_is_finite_as_long_as_its_elements_are(code):
    encoding = parse({"name": "int8", "block": 8}, GRADIENT_ENCODINGS, "gradients")
    for scale in (FLOAT32_MAX / 127.5, FLOAT32_MAX / 126, FLOAT32_MAX / 2):
        out = np.empty(9, np.float32)
        encoded = Encoded("int8", 9, struct.pack("<9b", *[1] * 8, code), wire(1.0, scale))
        finite = encoding.decode(encoded, out, "here")
        same_numbers(out, reference(encoded, 8))
        assert finite == (abs(code * float(np.float32(scale))) <= FLOAT32_MAX)


# Staging: ranges within a parameter, over padding, in groups of every type.


@pytest.fixture(scope="module")
def runs(device):
    """A run for each encoding, of all shapes in all types."""
    arrays = {f"{dtype.name}.{name}": np.zeros(shape, dtype) for dtype in DTYPES for name, shape in SHAPES.items()}
    specs = RUN_SPECS | {"bfloat16": {"name": "bfloat16"}, "float32": {"name": "float32"}, "none": None}
    return {
        name: LocalRun(arrays, "sgd", device=device, hyperparameters={"lr": 1.0}, gradient_encoding=spec)
        for name, spec in specs.items()
    }


def group_of(local, dtype):
    return next(number for number, group in enumerate(local.run.layout.groups) if group.dtype == dtype)


def send(staging, device, group, begin, encoded):
    """begin: in elements of the group."""
    begin *= staging.layout.groups[group].dtype.itemsize
    staging.admit(group, begin, len(encoded.data), encoded=encoded)
    staging.place(device, group, begin, encoded.data, encoded=encoded)


def packed(staging, group):
    """What is staged of a group, without padding."""
    layout = staging.layout.groups[group].state
    vector = staging.transfers[group, 0].vector
    return np.concatenate([layout.view(vector, place).ravel() for place in range(len(layout.indices))])


@FEW
@given(st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_ranges_are_decoded_to_their_places(device, runs, name, dtype, data):
    local = runs[name]
    group = group_of(local, dtype)
    staging = local.stage({})
    cuts = sorted({0, ELEMENTS, *data.draw(st.sets(st.integers(1, ELEMENTS - 1), max_size=6), "cuts")})
    expected = np.empty(ELEMENTS, np.float32)
    spans = list(itertools.pairwise(cuts))
    for begin, end in data.draw(st.permutations(spans), "order"):
        encoded = data.draw(encoded_ranges(name, end - begin, 8))
        send(staging, device, group, begin, encoded._replace(data=memoryview(encoded.data)))
        expected[begin:end] = reference(encoded, 8)
    same_numbers(packed(staging, group), expected)
    staging.transfers[group, 0].check_complete()
    assert (staging.nonfinite is None) == np.isfinite(expected).all()
    if staging.nonfinite is not None:
        bad = np.flatnonzero(~np.isfinite(expected))
        assert staging.nonfinite_owner() in {name_at(dtype, place) for place in bad}
    local.memory.free(staging.vectors)


def name_at(dtype, element):
    for name, shape in SHAPES.items():
        if element < math.prod(shape):
            return f"{dtype.name}.{name}"
        element -= math.prod(shape)
    raise AssertionError(element)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("narrow", [BFLOAT16, np.dtype("<f4")], ids=str)
def test_encodings_that_are_types_are_widened_exactly(device, runs, dtype, narrow):
    local = runs[narrow.name]
    group = group_of(local, dtype)
    staging = local.stage({})
    bits = np.random.default_rng(1).integers(0, 256, ELEMENTS * narrow.itemsize, np.uint8).tobytes()
    if narrow == BFLOAT16:
        wide = [struct.unpack("<f", b"\0\0" + bits[at : at + 2])[0] for at in range(0, len(bits), 2)]
    else:
        wide = [number for (number,) in struct.iter_unpack("<f", bits)]
    staging.admit(group, 0, len(bits), dtype=narrow)
    staging.place(device, group, 0, bits, dtype=narrow)
    same_numbers(packed(staging, group), np.array(wide, np.float32))
    local.memory.free(staging.vectors)


# What is refused, and what is then left.

FITTING = {
    "float16": Encoded("float16", 10, bytes(20), wire(8.0)),
    "int8": Encoded("int8", 10, bytes(10), wire(1, 2)),
    "sign": Encoded("sign", 10, bytes(2), wire(1, 2)),
    "top_k": Encoded("top_k", 10, wire(1, 2), indices=bytes([0, 8])),
}
SIZES_WRONG = {
    f"{name}, {what}": (name, change, InvalidEncoding, message)
    for name, good in FITTING.items()
    for what, change, message in [
        ("no elements", {"elements": 0}, "of 0 elements, expected 1 to"),
        ("too many elements", {"elements": ELEMENTS_MAX + 1}, "expected 1 to"),
        ("2**64 - 1 elements", {"elements": 2**64 - 1}, "expected 1 to"),
        ("a scale too many", {"scales": good.scales + wire(1)}, "send one scale a block"),
        ("half a scale", {"scales": good.scales + b"\0\0"}, "send one scale a block"),
        *(
            [
                ("a byte too many", {"data": bytes(len(good.data) + 1)}, "bytes of data and"),
                ("a byte too few", {"data": bytes(len(good.data) - 1)}, "bytes of data and"),
                ("no data", {"data": b""}, "0 bytes of data and"),
                ("no scales", {"scales": b""}, "and 0 of scales"),
                ("indices", {"indices": b"\0"}, "came with 1 of indices"),
            ]
            if name != "top_k"
            else []
        ),
    ]
}
CONTENTS_WRONG = {
    "float16, another scale": (
        "float16",
        {"scales": wire(4.0)},
        InvalidEncoding,
        "scale is 4.0, expected the run's, 8",
    ),
    "float16, scale 0": ("float16", {"scales": wire(0.0)}, InvalidEncoding, "scale is 0.0"),
    "float16, scale NaN": ("float16", {"scales": wire(np.nan)}, InvalidEncoding, "scale is nan"),
    "int8, negative scale": ("int8", {"scales": wire(1, -2)}, InvalidEncoding, r"scale is -2.0, expected 0 or more"),
    "int8, scale -inf": ("int8", {"scales": wire(-np.inf, 1)}, InvalidEncoding, "scale is -inf"),
    "sign, negative scale": ("sign", {"scales": wire(-1e-45, 1)}, InvalidEncoding, "scale is -1"),
    "top_k, no indices": ("top_k", {"indices": b""}, InvalidEncoding, "came with 0 of indices"),
    "top_k, no data": ("top_k", {"data": b""}, InvalidEncoding, "came with 2 of indices"),
    "top_k, a part of a value": ("top_k", {"data": bytes(7)}, InvalidEncoding, "7 bytes of values"),
    "top_k, an index too few": ("top_k", {"indices": b"\0"}, InvalidEncoding, "1 indices for 2 values"),
    "top_k, an index too many": ("top_k", {"indices": bytes(3)}, InvalidEncoding, "3 indices for 2 values"),
    "top_k, out of range": ("top_k", {"indices": bytes([0, 9])}, InvalidEncoding, "index of 10, expected less than"),
    "top_k, far out of range": ("top_k", {"indices": b"\xff" * 4000 + b"\0\0"}, InvalidEncoding, "index of 1020001"),
    "top_k, more to come": ("top_k", {"indices": b"\0\0\xff"}, InvalidEncoding, "2 indices for 2 values"),
    "top_k, nothing but more to come": ("top_k", {"indices": b"\xff\xff"}, InvalidEncoding, "0 indices for 2 values"),
    "beyond the group": ("top_k", {"elements": ELEMENTS + 1}, InvalidRange, "within"),
    "an unknown encoding": ("int8", {"name": "int7"}, EncodingNotAllowed, r"encoding 'int7', the run's is 'int8'"),
    "another encoding": ("int8", {"name": "sign"}, EncodingNotAllowed, r"encoding 'sign', the run's is 'int8'"),
    "a long name": ("int8", {"name": "x" * 10_000}, EncodingNotAllowed, r"x{40}.{0,20}, the run's"),
    "one for parameters": ("float16", {"name": "bfloat16"}, EncodingNotAllowed, "the run's is 'float16'"),
}
WRONG = SIZES_WRONG | CONTENTS_WRONG


@pytest.mark.parametrize(("name", "change", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused(device, runs, name, change, error, message):
    local = runs[name]
    group = group_of(local, DTYPES[0])
    good = FITTING[name]
    send(staging := local.stage({}), device, group, 0, good)
    local.memory.free(staging.vectors)
    staging = local.stage({})
    with pytest.raises(error, match=message) as raised:
        send(staging, device, group, 0, good._replace(**change))
    assert len(str(raised.value)) < 400
    local.memory.free(staging.vectors)


@pytest.mark.parametrize("name", ["none", "bfloat16", "float32"])
@pytest.mark.parametrize("encoded", FITTING.values(), ids=FITTING)
def test_a_run_that_has_no_such_encoding_takes_none(runs, name, encoded):
    local = runs[name]
    staging = local.stage({})
    with pytest.raises(EncodingNotAllowed, match=f"the run's is '?{name}'?; send plain elements"):
        staging.admit(0, 0, len(encoded.data), encoded=encoded)
    for cast in ("bfloat16", "float32"):  # these are types, and never the name of an encoded range
        with pytest.raises(EncodingNotAllowed):
            staging.admit(0, 0, 4, encoded=Encoded(cast, 1, bytes(4)))
    assert all(not transfer.coverage.intervals for transfer in staging.transfers.values())
    local.memory.free(staging.vectors)


def test_a_range_that_is_refused_when_it_is_counted_leaves_room_for_a_better_one(device, runs):
    local = runs["int8"]
    group = group_of(local, DTYPES[0])
    staging = local.stage({})
    for wrong in (FITTING["int8"]._replace(scales=b""), FITTING["sign"]):
        with pytest.raises((InvalidEncoding, EncodingNotAllowed)):
            send(staging, device, group, 0, wrong)
    send(staging, device, group, 0, FITTING["int8"])
    with pytest.raises(InvalidRange, match="overlap bytes that have arrived"):
        send(staging, device, group, 9, FITTING["int8"])
    with pytest.raises(IncompleteUpdate):
        staging.check_complete()
    local.memory.free(staging.vectors)


def test_plain_ranges_go_beside_encoded_ones(device, runs):
    local = runs["int8"]
    group = group_of(local, DTYPES[1])
    staging = local.stage({})
    send(staging, device, group, 0, Encoded("int8", 10, bytes(range(10)), wire(0.5, 2.0)))
    rest = np.random.default_rng(2).standard_normal(ELEMENTS - 10)
    staging.admit(group, 80, rest.nbytes)
    staging.place(device, group, 80, rest.tobytes())
    expected = [number * (0.5 if number < 8 else 2.0) for number in range(10)]
    np.testing.assert_array_equal(packed(staging, group), np.concatenate([expected, rest]))
    local.memory.free(staging.vectors)


def test_nothing_of_top_k_is_nothing_but_zeros(device, runs):
    local = runs["top_k"]
    group = group_of(local, DTYPES[0])
    staging = local.stage({})
    send(staging, device, group, 0, Encoded("top_k", ELEMENTS, b""))
    np.testing.assert_array_equal(packed(staging, group), np.zeros(ELEMENTS))
    local.memory.free(staging.vectors)


def test_further_inputs_are_never_encoded(device):
    local = LocalRun(
        {"w": np.zeros(10, np.float32)},
        "sophia",
        device=device,
        hyperparameters={"lr": 0.1},
        gradient_encoding=RUN_SPECS["int8"],
    )
    staging = local.stage({}, inputs={"hessian": {}})
    with pytest.raises(EncodingNotAllowed, match=r"input 1: .*'int8', the run's is none"):
        staging.admit(0, 0, 10, 1, encoded=FITTING["int8"])
    staging.admit(0, 0, 10, 0, encoded=FITTING["int8"])


# A number that is not finite, and what the run does about it.


NONFINITE = {
    "float16, NaN": Encoded("float16", 10, struct.pack("<10e", *[0] * 9, np.nan), wire(8.0)),
    "float16, inf": Encoded("float16", 10, struct.pack("<10e", *[0] * 9, -np.inf), wire(8.0)),
    "int8, NaN": Encoded("int8", 10, bytes(10), wire(1, np.nan)),
    "int8, inf": Encoded("int8", 10, bytes([1] * 10), wire(1, np.inf)),
    "int8, -128 too large": Encoded("int8", 10, bytes([1] * 9 + [128]), wire(1, FLOAT32_MAX / 127.5)),
    "sign, NaN": Encoded("sign", 10, bytes(2), wire(1, np.nan)),
    "sign, inf": Encoded("sign", 10, b"\xff\xff", wire(1, np.inf)),
    "top_k, NaN": Encoded("top_k", 10, wire(1, np.nan), indices=gaps([0, 9])),
    "top_k, inf": Encoded("top_k", 10, wire(1, -np.inf), indices=gaps([3, 8])),
}


@pytest.mark.parametrize("nonfinite", ["reject", "skip", "allow"])
@pytest.mark.parametrize("encoded", NONFINITE.values(), ids=NONFINITE)
def test_what_is_not_finite_goes_as_the_run_says(device, encoded, nonfinite):
    local = LocalRun(
        {"first": np.zeros(8, np.float32), "second": np.zeros(2, np.float32)},
        "sgd",
        device=device,
        hyperparameters={"lr": 1.0},
        nonfinite=nonfinite,
        gradient_encoding=RUN_SPECS[encoded.name],
    )
    staging = local.stage({})
    send(staging, device, 0, 0, encoded)
    expected = reference(encoded, 8)
    assert not np.isfinite(expected[8:]).all()
    if nonfinite == "reject":
        with pytest.raises(NonfiniteGradient, match="'second'"):
            local.commit(staging)
    else:
        answer = local.commit(staging)
        assert answer.outcome == (Outcome.COMMITTED if nonfinite == "allow" else Outcome.SKIPPED_NONFINITE)
    applied = nonfinite == "allow"
    got = np.concatenate(list(local.parameters().values()))
    np.testing.assert_array_equal(got, -expected if applied else np.zeros(10))
    assert local.run.version == applied


# Specs.


@pytest.mark.parametrize(
    ("entries", "spec", "error", "message"),
    [
        (GRADIENT_ENCODINGS, {"name": "int7"}, UnknownEncoding, r"gradients 'int7' is not known.*int8"),
        (GRADIENT_ENCODINGS, {}, UnknownEncoding, "''"),
        (GRADIENT_ENCODINGS, {"name": "int8", "blocks": 8.0}, UnknownArgument, "'blocks'.*block"),
        (GRADIENT_ENCODINGS, {"name": "int8", "block": 7.0}, InvalidValue, "block"),
        (GRADIENT_ENCODINGS, {"name": "int8", "block": 8.5}, InvalidValue, "block"),
        (GRADIENT_ENCODINGS, {"name": "int8", "block": float(2**20 + 1)}, InvalidValue, "block"),
        (GRADIENT_ENCODINGS, {"name": "int8", "block": "8"}, InvalidValue, "block"),
        (GRADIENT_ENCODINGS, {"name": "int8", "block": None}, InvalidValue, "block"),
        (GRADIENT_ENCODINGS, {"name": "int8", "error_feedback": 1.0}, InvalidValue, "error_feedback"),
        (GRADIENT_ENCODINGS, {"name": "top_k", "density": 0.0}, InvalidValue, "density"),
        (GRADIENT_ENCODINGS, {"name": "top_k", "density": 1.5}, InvalidValue, "density"),
        (GRADIENT_ENCODINGS, {"name": "top_k", "density": math.nan}, InvalidValue, "density"),
        (GRADIENT_ENCODINGS, {"name": "float16", "scale": 0.0}, InvalidValue, "scale"),
        (GRADIENT_ENCODINGS, {"name": "float16", "scale": -1.0}, InvalidValue, "scale"),
        (GRADIENT_ENCODINGS, {"name": "float16", "scale": math.inf}, InvalidValue, "scale"),
        (PARAMETER_ENCODINGS, {"name": "sign"}, UnknownEncoding, r"encoding of parameters 'sign' is not known"),
        (PARAMETER_ENCODINGS, {"name": "top_k"}, UnknownEncoding, "'top_k' is not known"),
        (PARAMETER_ENCODINGS, {"name": "int8", "error_feedback": True}, UnknownArgument, "'error_feedback'"),
        (PARAMETER_ENCODINGS, {"name": "float16", "scale": 2.0}, UnknownArgument, "'scale'"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(entries, spec, error, message):
    direction = "gradients" if entries is GRADIENT_ENCODINGS else "parameters"
    with pytest.raises(error, match=message):
        parse(spec, entries, direction)


@pytest.mark.parametrize("entries", [GRADIENT_ENCODINGS, PARAMETER_ENCODINGS])
def test_an_encoding_knows_all_of_its_arguments(entries):
    assert parse_encoding(None, entries, "here") is None
    for name, entry in entries.items():
        full = parse({"name": name}, entries, "here").spec
        assert full == {"name": name, **{argument.name: argument.default for argument in entry.arguments}}
        assert parse(full, entries, "here").spec == full


# Parameters on their way out.


def encode_parameters(values, block):
    encoding = parse({"name": "int8", "block": block}, PARAMETER_ENCODINGS, "parameters")
    codes, scales = encoding.encode(values)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert len(codes) == len(values)
    assert len(scales) == math.ceil(len(values) / block)
    assert not (scales < 0).any()
    return scales, reference(Encoded("int8", len(values), codes.tobytes(), scales.astype("<f4").tobytes()), block)


def bound(scales, elements, block):
    """Half of what a code stands for; and, since the least numbers stand far apart, as much of a scale's rounding."""
    return np.repeat(scales.astype(np.float64), block)[:elements] * 0.5 * (1 + 1e-5) + 127 * 2.0**-150


@FEW
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    st.sampled_from([np.float32, np.float64]),
)
def test_int8_is_off_by_half_a_code_at_most(numbers, dtype):
    values = np.array(numbers, dtype)
    scales, got = encode_parameters(values, 8)
    assert np.isfinite(got).all()
    assert (np.abs(got.astype(np.float64) - values) <= bound(scales, len(values), 8)).all()
    for begin in range(0, len(values), 8):
        largest = np.abs(values[begin : begin + 8].astype(np.float64)).max()
        assert scales[begin // 8] <= largest / 127 * (1 + 1e-6) + 2.0**-150


@pytest.mark.parametrize(
    "largest", [0.0, -0.0, 2.0**-149, 2.0**-140, 2.0**-126, 1e-30, 1.0, 65504.0, 1e38, FLOAT32_MAX, -FLOAT32_MAX]
)
def test_int8_of_the_least_and_largest_numbers(largest):
    values = np.linspace(-1, 1, 64).astype(np.float32) * np.float32(largest)
    scales, got = encode_parameters(values, 16)
    assert np.isfinite(got).all()
    assert (np.abs(got.astype(np.float64) - values) <= bound(scales, 64, 16)).all()
    if largest == 0:
        np.testing.assert_array_equal(got, np.zeros(64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_int8_keeps_what_is_not_finite_to_its_block(bad):
    values = np.linspace(1, 2, 24)
    values[11] = bad
    _, got = encode_parameters(values, 8)
    assert not np.isfinite(got[8:16]).any()
    np.testing.assert_allclose(got[:8], values[:8], atol=2 / 254)
    np.testing.assert_allclose(got[16:], values[16:], atol=2 / 254)
