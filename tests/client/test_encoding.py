"""What the worker's side says it sends is what the server's decoders make of it; and what it keeps back."""

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell._encoding import _ENCODERS, Decoder, EncodedUpdate, Encoder
from stepwell._layout import Layout
from stepwell._packing import Gradients, Part, pack
from stepwell._receiving import BufferPool, Received
from stepwell.errors import Internal
from stepwell.v1 import run_pb2, values_pb2
from stepwell.wire import decode_dtype, encode_dtype, encode_part
from stepwell_server.core.encoding import GRADIENT_ENCODINGS, PARAMETER_ENCODINGS, Encoded, parse_encoding
from stepwell_server.service.limits import Limits

FEW = settings(max_examples=80, deadline=None)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
CASTS = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16}
FLOAT32_MAX = float(np.finfo(np.float32).max)

# Arguments that make small arrays interesting.
SPECS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {},
    "float16": {"scale": 8.0},
    "int8": {"block": 8},
    "top_k": {"density": 0.3},
    "sign": {"block": 8},
}
SPECIAL = [0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, 1e-41, 65504.0, 1e38, FLOAT32_MAX, -FLOAT32_MAX]
NONFINITE = [math.inf, -math.inf, math.nan]


def parse(spec, entries, direction):
    encoding = parse_encoding(spec, entries, direction)
    assert encoding is not None
    return encoding


def full_spec(name, **arguments):
    """With every argument, as a server sends it."""
    return dict(parse({"name": name, **arguments}, GRADIENT_ENCODINGS, "gradients").spec)


def encoder_of(name, **arguments):
    return Encoder(encode_part(values_pb2.Encoding, full_spec(name, **SPECS[name] | arguments)))


def decoded_by_server(spec, elements, data, scales=b"", indices=b""):
    """What the server's core makes of a range, and whether it takes it for finite."""
    if spec["name"] in CASTS:
        out = np.frombuffer(data, CASTS[spec["name"]]).astype(np.float32)
        return out, bool(np.isfinite(out).all())
    encoding = parse(spec, GRADIENT_ENCODINGS, "gradients")
    encoded = Encoded(spec["name"], elements, data, scales, indices)
    encoding.check(encoded, "here")
    out = np.empty(elements, np.float32)
    return out, encoding.decode(encoded, out, "here")


def same_numbers(got, expected):
    """NaN for NaN, and else the same bits."""
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(expected)[numbers])


def arrays_of(dtype):
    """Ordinary numbers, with a few of the others."""

    @st.composite
    def drawn(draw):
        size = draw(st.integers(1, 40) | st.sampled_from([255, 256, 257, 700]))
        seed = draw(st.integers(0, 2**32 - 1))
        exponent = draw(st.sampled_from([-130, -40, 0, 40, 120]))
        values = np.random.default_rng(seed).standard_normal(size) * 2.0**exponent
        special = st.sampled_from(SPECIAL) | st.floats(width=32) | st.sampled_from(NONFINITE)
        for place, value in draw(st.dictionaries(st.integers(0, size - 1), special, max_size=4)).items():
            values[place] = value
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    return drawn()


def encode(name, elements, **arguments):
    """The codes of some elements, and the spec that they were made with."""
    spec = full_spec(name, **SPECS[name] | arguments)
    kept = elements.copy()
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        codes = _ENCODERS[name](elements, spec)
        said = codes.decoded()
    assert elements.tobytes() == kept.tobytes(), "it wrote to what may be the caller's"
    return codes, said, spec


@FEW
@given(st.data())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPECS)
def test_the_server_makes_of_it_what_the_worker_says(name, dtype, data):
    elements = data.draw(arrays_of(dtype))
    block = {"block": data.draw(st.sampled_from([8, 64, 1024]))} if "block" in SPECS[name] else {}
    codes, said, spec = encode(name, elements, **block)
    got, finite = decoded_by_server(spec, len(elements), codes.data.tobytes(), codes.scales, codes.indices)
    same_numbers(got, said)
    assert finite == codes.finite()
    if not np.isfinite(elements).all() and name != "top_k":
        assert not finite
    if name == "top_k" and not np.isfinite(elements).all():
        assert not finite, "what is not finite counts as the largest"


@FEW
@given(arrays_of(np.float32), st.floats(2.0**-20, 1.0))
def test_top_k_sends_the_largest_as_they_are(elements, density):
    _, said, _ = encode("top_k", elements, density=density)
    count = math.ceil(len(elements) * density)
    codes, _, _ = encode("top_k", elements, density=density)
    values = np.frombuffer(codes.data.tobytes(), "<f4")
    assert len(values) == count
    # Those sent lie in order, and none that was left is larger than one of them.
    sizes = np.where(np.isnan(elements), np.inf, np.abs(elements))
    assert sorted(np.where(np.isnan(values), np.inf, np.abs(values))) == sorted(sizes)[-count:]
    sent = said != 0
    np.testing.assert_array_equal(said[sent], elements[sent])


@pytest.mark.parametrize("places", [[0], [255], [256], [254], [0, 256], [510], [511], [1, 2, 700], [600, 855, 1111]])
def test_top_k_says_places_that_lie_far_apart(places):
    elements = np.zeros(1200, np.float32)
    elements[places] = 1 + np.arange(len(places))
    codes, said, spec = encode("top_k", elements, density=len(places) / 1200)
    np.testing.assert_array_equal(said, elements)
    got, _ = decoded_by_server(spec, 1200, codes.data.tobytes(), codes.scales, codes.indices)
    np.testing.assert_array_equal(got, elements)


@pytest.mark.parametrize("scale", [2.0**-32, 0.1, 1.0, 1024.0, 2.0**32])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float16_saturates_what_is_finite_and_nothing_else(scale, dtype):
    largest = float(np.float32(65504) / np.float32(scale))
    values = np.array([1e-30, 0.0, -0.0, largest, 2 * largest, -FLOAT32_MAX, FLOAT32_MAX, np.inf, -np.inf, np.nan])
    _, said, _ = encode("float16", values.astype(dtype), scale=scale)
    expected = np.clip(values, -largest, largest)
    expected[-3:] = values[-3:]
    np.testing.assert_allclose(said, expected, rtol=2**-10, atol=2.0**-25 / scale)
    assert np.isinf(said[-3:-1]).all()
    assert np.isfinite(said[:-3]).all()


@FEW
@given(arrays_of(np.float32))
def test_bfloat16_is_the_nearest(elements):
    _, said, _ = encode("bfloat16", elements)
    nearest = elements.astype(BFLOAT16).astype(np.float32)
    np.testing.assert_array_equal(np.isfinite(said), np.isfinite(nearest))
    finite = np.isfinite(nearest)
    exact, got, best = (each[finite].astype(np.float64) for each in (elements, said, nearest))
    np.testing.assert_array_equal(np.abs(got - exact), np.abs(best - exact))
    np.testing.assert_array_equal(said[~finite], nearest[~finite])


@FEW
@given(arrays_of(np.float32))
def test_int8_is_off_by_half_a_code_at_most(elements):
    codes, said, _ = encode("int8", elements)
    scales = np.repeat(np.frombuffer(codes.scales, "<f4"), 8)[: len(elements)].astype(np.float64)
    finite = np.isfinite(scales)
    error = np.abs(said[finite].astype(np.float64) - elements[finite])
    assert (error <= 0.5 * (1 + 1e-5) * scales[finite] + 127 * 2.0**-150).all()
    for begin in range(0, len(elements), 8):
        block = elements[begin : begin + 8]
        assert finite[begin] == np.isfinite(block).all()


@FEW
@given(arrays_of(np.float32))
def test_sign_keeps_signs_and_the_mean_size(elements):
    codes, _, _ = encode("sign", elements)
    negative = [codes.data[place // 8] >> (place % 8) & 1 for place in range(len(elements))]
    np.testing.assert_array_equal(np.array(negative, bool), elements < 0)
    for number, scale in enumerate(np.frombuffer(codes.scales, "<f4")):
        with np.errstate(over="ignore"):
            mean = np.float32(np.abs(elements[8 * number : 8 * number + 8].astype(np.float64)).mean())
        np.testing.assert_allclose(scale, mean, rtol=1e-6, atol=2.0**-149)


def test_sign_takes_the_mean_of_the_largest_numbers():
    _, said, _ = encode("sign", np.array([FLOAT32_MAX, -FLOAT32_MAX] * 10, np.float32))
    np.testing.assert_array_equal(said, np.array([FLOAT32_MAX, -FLOAT32_MAX] * 10, np.float32))


# Updates. One group for each type that gradients have, two messages and more of float32.

SHAPES = {"small": (3,), "none": (0, 2), "large": (700, 1000), "scalar": (), "last": (5, 7)}


def lay_out(dtypes, shapes, frozen=()):
    groups, members = [], []
    for number, dtype in enumerate(dtypes):
        at = 0
        for name, shape in shapes.items():
            members.append(
                run_pb2.LayoutParameter(name=f"{number}.{name}", shape=shape, group=number, packed_offset_bytes=at)
            )
            at += math.prod(shape) * dtype.itemsize
        groups.append(
            run_pb2.LayoutGroup(name=f"g{number}", dtype=encode_dtype(dtype), packed_bytes=at, frozen=number in frozen)
        )
    return Layout(groups, members)


def gradients_for(layout, rng, none=0.0):
    return {
        each.name: None if rng.random() < none else rng.standard_normal(each.shape).astype(each.dtype)
        for each in layout.parameters
        if not each.frozen
    }


def wire_of(messages):
    """The ranges as they travel, message by message."""
    return [[piece.range(data=True).SerializeToString() for piece in message] for message in messages]


def arrived(layout, spec, wire):
    """By group, what the server decodes, and where something arrived."""
    whole = [np.zeros(group.packed_bytes // group.dtype.itemsize, np.float32) for group in layout.groups]
    there = [np.zeros(len(elements), bool) for elements in whole]
    for data in itertools.chain.from_iterable(wire):
        piece = run_pb2.Range.FromString(data)
        group = layout.groups[piece.group]
        begin = piece.packed_offset_bytes // group.dtype.itemsize
        if piece.encoding:
            assert piece.encoding == spec["name"]
            decoded, _ = decoded_by_server(spec, piece.elements, piece.data, piece.scales, piece.indices)
        else:
            dtype = decode_dtype(piece.dtype) if piece.dtype else group.dtype
            decoded = np.frombuffer(piece.data, dtype).astype(np.float32)
        end = begin + len(decoded)
        assert not there[piece.group][begin:end].any(), "sent twice"
        whole[piece.group][begin:end] = decoded
        there[piece.group][begin:end] = True
    return whole, there


def flat(layout, grads, wide):
    """By group, a row of gradients, and where there are any."""
    rows = []
    for group, members in zip(layout.groups, layout.by_group, strict=True):
        dtype = np.dtype(np.float64) if wide and group.dtype == np.float64 else np.dtype(np.float32)
        arrays = [grads.get(each.name) for each in members]
        values = [
            np.zeros(each.shape, dtype) if array is None else array.astype(dtype)
            for each, array in zip(members, arrays, strict=True)
        ]
        there = [np.full(each.shape, array is not None) for each, array in zip(members, arrays, strict=True)]
        rows.append(
            (np.concatenate([each.ravel() for each in values]), np.concatenate([each.ravel() for each in there]))
        )
    return rows


@pytest.mark.parametrize("dtypes", [DTYPES[:1], [DTYPES[1], DTYPES[3], DTYPES[2]]], ids=["float32", "mixed"])
@pytest.mark.parametrize("name", SPECS)
def test_what_is_sent_and_what_is_owed_make_up_the_gradients(name, dtypes):
    """The loop of error feedback, written out: owed = (gradient + owed) - sent, where an update is committed."""
    rng = np.random.default_rng(5)
    layout = lay_out(dtypes, SHAPES)
    encoder = encoder_of(name, error_feedback=True)
    spec = full_spec(name, **SPECS[name], error_feedback=True)
    owed = [np.zeros_like(row) for row, _ in flat(layout, {}, wide=True)]
    sums = [np.zeros(len(row)) for row in owed]
    sent_sums = [np.zeros(len(row)) for row in owed]
    for number in range(7):
        grads = gradients_for(layout, rng, none=0.3 if number % 2 else 0.0)
        update = EncodedUpdate(encoder, layout)
        sent, there = arrived(layout, spec, wire_of(update.messages(Gradients(layout, grads, "test"))))
        if number == 3:
            continue  # refused, or skipped: as if it had never been
        update.settle()
        for group, (row, given_here) in enumerate(flat(layout, grads, wide=True)):
            np.testing.assert_array_equal(there[group], given_here)
            if name in CASTS and CASTS[name].itemsize >= dtypes[group].itemsize:
                np.testing.assert_array_equal(sent[group], row)  # as it was: nothing is added, nothing owed
            else:
                owed[group] = np.where(given_here, row + owed[group] - sent[group], owed[group])
            sums[group] += row
            sent_sums[group] += sent[group]
    for group, expected in enumerate(owed):
        np.testing.assert_array_equal(encoder.owed[group], expected)
        size = max(1.0, np.abs(sums[group]).max(initial=0))
        np.testing.assert_allclose(sent_sums[group] + expected, sums[group], atol=1e-5 * size)


@pytest.mark.parametrize("name", SPECS)
def test_without_feedback_nothing_is_kept(name):
    layout = lay_out(DTYPES[:2], {"a": (30,)})
    encoder = encoder_of(name, error_feedback=False)
    grads = gradients_for(layout, np.random.default_rng(0))
    first, second = (EncodedUpdate(encoder, layout) for _ in range(2))
    one = wire_of(first.messages(Gradients(layout, grads, "test")))
    first.settle()
    assert wire_of(second.messages(Gradients(layout, grads, "test"))) == one
    assert encoder.owed == {}


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_retry_gives_the_same_bytes(name, feedback):
    layout = lay_out([DTYPES[1]], SHAPES)
    rng = np.random.default_rng(1)
    encoder = encoder_of(name, error_feedback=feedback)
    for _ in range(2):
        gradients = Gradients(layout, gradients_for(layout, rng), "test")
        update = EncodedUpdate(encoder, layout)
        tries = [wire_of(itertools.islice(update.messages(gradients), count)) for count in (0, 1, 2, 1, None, None)]
        assert len(tries[-1]) > 2
        assert tries[-1] == tries[-2]
        for count, some in zip((0, 1, 2, 1), tries, strict=False):
            assert some == tries[-1][:count]
        update.settle()
    spec = full_spec(name, **SPECS[name])
    _, there = arrived(layout, spec, tries[-1])
    assert there[0].all()


@pytest.mark.parametrize("name", SPECS)
def test_an_update_that_was_not_committed_leaves_what_is_owed(name):
    layout = lay_out(DTYPES[:2], {"a": (300,), "b": (7,)})
    encoder = encoder_of(name, error_feedback=True)
    rng = np.random.default_rng(2)
    update = EncodedUpdate(encoder, layout)
    list(update.messages(Gradients(layout, gradients_for(layout, rng), "test")))
    update.settle()
    before = {group: row.copy() for group, row in encoder.owed.items()}
    assert any(row.any() for row in before.values())
    for fill in (1.0, np.nan, np.inf):
        grads = {each: np.full_like(array, fill) for each, array in gradients_for(layout, rng).items()}
        given_up = EncodedUpdate(encoder, layout)
        list(given_up.messages(Gradients(layout, grads, "test")))
    for group, row in before.items():
        np.testing.assert_array_equal(encoder.owed[group], row)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_not_finite_is_never_owed(name):
    """A run with nonfinite="allow" commits it; it must not come back with every later update."""
    layout = lay_out(DTYPES[:2], {"a": (40,)})
    encoder = encoder_of(name, error_feedback=True)
    grads = gradients_for(layout, np.random.default_rng(3))
    for array in grads.values():
        array[[3, 20, 21]] = [np.nan, np.inf, -np.inf]
    update = EncodedUpdate(encoder, layout)
    list(update.messages(Gradients(layout, grads, "test")))
    update.settle()
    for row in encoder.owed.values():
        assert np.isfinite(row).all()
        np.testing.assert_array_equal(row[[3, 20, 21]], 0)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_added_one_by_one(name, feedback):
    layout = lay_out([DTYPES[1], DTYPES[0]], SHAPES, frozen={1})
    grads = gradients_for(layout, np.random.default_rng(4)) | {"0.scalar": None}
    gradients = Gradients(layout, grads, "test")
    encoder = encoder_of(name, error_feedback=feedback)
    spec = full_spec(name, **SPECS[name])
    for _ in range(3):
        before = {group: row.copy() for group, row in encoder.owed.items()}
        update = EncodedUpdate(encoder, layout)
        made = []
        for each in reversed(layout.by_group[0]):
            if (gradient := grads[each.name]) is not None:
                made += [
                    update.add(pieces) for pieces in pack([Part(0, each.offset_bytes, gradient)], update.piece_bytes)
                ]
        one_by_one = wire_of(made)
        sent, there = arrived(layout, spec, one_by_one)
        ((row, given_here), _) = flat(layout, grads, wide=True)
        np.testing.assert_array_equal(there[0], given_here)
        if feedback:
            # The connection broke: all of it goes out again as it was.
            assert wire_of(update.messages(gradients)) == one_by_one
            update.settle()
            owed = before[0] if before else np.zeros_like(row)
            np.testing.assert_array_equal(encoder.owed[0], np.where(given_here, row + owed - sent[0], owed))
            assert encoder.owed.keys() == {0}, "frozen groups take no gradients"
        else:
            again, _ = arrived(layout, spec, wire_of(EncodedUpdate(encoder, layout).messages(gradients)))
            if name in ("float32", "bfloat16", "float16"):  # the others' blocks begin elsewhere
                np.testing.assert_array_equal(again[0], sent[0])


def test_further_inputs_stay_as_they_are():
    layout = lay_out(DTYPES[:1], {"a": (40,)})
    rng = np.random.default_rng(3)
    grads, hessian = gradients_for(layout, rng), gradients_for(layout, rng)
    gradients = Gradients(layout, grads, "test", {"hessian": hessian})
    pieces = list(itertools.chain(*EncodedUpdate(encoder_of("int8"), layout).messages(gradients)))
    assert [(piece.input, piece.encoded is not None) for piece in pieces] == [(0, True), (1, False)]
    assert b"".join(pieces[1].parts) == hessian["0.a"].tobytes()


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_of_another_type_than_their_parameters(name, feedback):
    """float32 and 16 bits for float64, 16 bits for float32; what is as small as the encoding stays as it is."""
    layout = lay_out(DTYPES[:2], {"a": (50,)})
    spec = full_spec(name, **SPECS[name])
    for dtype in (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32)):
        encoder = encoder_of(name, error_feedback=feedback)
        for seed in range(2):
            grads = {
                each: array.astype(dtype)
                for each, array in gradients_for(layout, np.random.default_rng(seed)).items()
                if dtype.itemsize < 4 or each.startswith("1")
            }
            grads = {each.name: grads.get(each.name) for each in layout.parameters}
            owed = {group: row.copy() for group, row in encoder.owed.items()}
            update = EncodedUpdate(encoder, layout)
            sent, there = arrived(layout, spec, wire_of(update.messages(Gradients(layout, grads, "test"))))
            update.settle()
            for group, (row, given_here) in enumerate(flat(layout, grads, wide=False)):
                np.testing.assert_array_equal(there[group], given_here)
                if name in CASTS and CASTS[name].itemsize >= dtype.itemsize:
                    np.testing.assert_array_equal(sent[group], row)
                elif feedback and given_here.any():
                    total = row + owed[group].astype(np.float32) if owed else row
                    np.testing.assert_allclose(encoder.owed[group], total - sent[group], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [*((name, {}) for name in SPECS), ("top_k", {"density": 1.0}), ("int8", {"block": 8}), ("sign", {"block": 8})],
)
def test_messages_are_no_larger_than_servers_take(name, arguments, dtype):
    layout = lay_out([dtype], {"a": (3_000_000,)})
    encoder = encoder_of(name, **arguments)
    gradients = Gradients(layout, {"0.a": np.ones(3_000_000, dtype)}, "test")
    for message in EncodedUpdate(encoder, layout).messages(gradients):
        assert sum(len(piece.range(data=True).SerializeToString()) for piece in message) < Limits.message_bytes - 4096


# Parameters that come encoded.


def received(layout, decoder, ranges, out=None):
    taken = Received(layout, layout.parameters, BufferPool(), out, decoder)
    taken.begin()
    for piece, data in ranges:
        taken.put(piece, data)
    return taken.arrays()


PARAMETER_SHAPES = {"a": (3,), "none": (0,), "b": (7, 5), "scalar": (), "c": (40,)}


def decoder_of(name):
    spec = parse({"name": name}, PARAMETER_ENCODINGS, "parameters").spec
    return Decoder(encode_part(values_pb2.Encoding, spec))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PARAMETER_ENCODINGS)
def test_parameters_come_out_of_their_codes(name, dtype, own):
    layout = lay_out([dtype], PARAMETER_SHAPES)
    rng = np.random.default_rng(6)
    count = layout.groups[0].packed_bytes // dtype.itemsize
    values = (rng.standard_normal(count) * 2.0 ** rng.integers(-20, 14, count)).astype(np.float64)
    encoding = parse({"name": name}, PARAMETER_ENCODINGS, "parameters")
    cuts = [0, 5, 6, 50, count]
    ranges, expected = [], []
    for begin, end in itertools.pairwise(cuts):
        piece = run_pb2.Range(group=0, packed_offset_bytes=begin * dtype.itemsize)
        some = values[begin:end]
        if name == "int8":
            codes, scales = encoding.encode(some)
            piece.encoding, piece.elements, piece.scales = name, end - begin, scales.tobytes()
            blocks = np.repeat(scales, 64)[: end - begin]
            expected += [np.float32(code) * scale for code, scale in zip(codes, blocks, strict=True)]
            data = codes.tobytes()
        else:
            narrow = some.astype(np.float32).astype(CASTS.get(name, np.float16))
            piece.dtype = encode_dtype(narrow.dtype)
            expected += list(narrow.astype(np.float32))
            data = narrow.tobytes()
        ranges.append((piece, data))
    out = {each.name: np.full(each.shape, 9).astype(dtype) for each in layout.parameters} if own else None
    got = received(layout, decoder_of(name), ranges, out)
    if out is not None:
        assert all(got[each] is array for each, array in out.items())
    row = np.concatenate([got[each.name].ravel() for each in layout.parameters])
    assert row.dtype == dtype
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(row, np.array(expected, np.float32).astype(dtype))


@pytest.mark.parametrize(
    "change",
    [
        {"scales": b""},
        {"scales": bytes(8)},
        {"elements": 0},
        {"elements": 2**63},
        {"encoding": "int4"},
        {"encoding": "sign"},
        {"group": 9},
        {"packed_offset_bytes": 4},
        {"packed_offset_bytes": 2**63},
    ],
    ids=str,
)
def test_ranges_that_do_not_fit_are_the_servers_fault(change):
    layout = lay_out(DTYPES[:1], {"a": (10,)})
    piece = run_pb2.Range(encoding="int8", elements=10, scales=bytes(4))
    received(layout, decoder_of("int8"), [(piece, bytes(10))])
    for field, value in change.items():
        setattr(piece, field, value)
    with pytest.raises(Internal):
        received(layout, decoder_of("int8"), [(piece, bytes(10))])
