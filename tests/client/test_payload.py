"""The codec of messages with ranges, against protobuf's own."""

import random
import struct

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from stepwell.payload import PULL_RESPONSE, TAKEN_APART_BYTES_MIN, WORK_REQUEST, WORK_RESPONSE, Outgoing, Payload
from stepwell.v1 import data_pb2, run_pb2

SIZES = st.sampled_from([0, 1, 127, 128, 1000, TAKEN_APART_BYTES_MIN, TAKEN_APART_BYTES_MIN * 3])
RANGES = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 3), st.lists(SIZES, max_size=3)),
    max_size=6,
)


def content(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def pieces(drawn):
    return [
        (run_pb2.Range(group=group, packed_offset_bytes=offset, input=number), [content(size) for size in sizes])
        for group, offset, number, sizes in drawn
    ]


def whole(piece, parts):
    message = run_pb2.Range()
    message.CopyFrom(piece)
    message.data = b"".join(part.tobytes() for part in parts)
    return message


def request(**more):
    return data_pb2.WorkRequest(exchange=300, stage=data_pb2.Stage(header=data_pb2.UpdateHeader(samples=2.5)), **more)


@given(RANGES, st.booleans())
def test_protobuf_reads_what_is_encoded(drawn, last):
    ranges = pieces(drawn)
    expected = request(last=last, commit=data_pb2.Commit())
    expected.stage.ranges.extend(whole(*each) for each in ranges)
    outgoing = Outgoing(request(last=last, commit=data_pb2.Commit()), ranges)
    assert data_pb2.WorkRequest.FromString(WORK_REQUEST.encode(outgoing)) == expected
    assert outgoing.data_bytes == sum(len(each.data) for each in expected.stage.ranges)

    response = data_pb2.WorkResponse(exchange=7, done=last, ranges=[whole(*each) for each in ranges])
    encoded = WORK_RESPONSE.encode(Outgoing(data_pb2.WorkResponse(exchange=7, done=last), ranges))
    assert data_pb2.WorkResponse.FromString(encoded) == response


@given(RANGES, st.integers(0, 2**64 - 1))
def test_what_protobuf_writes_is_decoded(drawn, seed):
    message = request(last=True)
    message.stage.ranges.extend(whole(*each) for each in pieces(drawn))
    expected = [each.data for each in message.stage.ranges]
    # Fields in another order, a submessage in two parts, and fields that this version does not know.
    unknown = [b"\xa0\x06\x05", b"\xaa\x06\x03abc", b"\xb1\x06" + bytes(8), b"\xbd\x06" + bytes(4)]
    parts = [message.SerializeToString(), *unknown]
    random.Random(seed).shuffle(parts)
    incoming = WORK_REQUEST.decode(b"".join(parts))
    assert [bytes(each) for each in incoming.data] == expected
    for each in incoming.message.stage.ranges:
        each.ClearField("data")
    for each in message.stage.ranges:
        each.ClearField("data")
    incoming.message.DiscardUnknownFields()
    assert incoming.message == message


def test_the_data_is_not_copied():
    message = data_pb2.PullResponse(ranges=[run_pb2.Range(data=bytes(TAKEN_APART_BYTES_MIN))])
    serialized = message.SerializeToString()
    (data,) = PULL_RESPONSE.decode(serialized).data
    assert data.obj is serialized


def test_the_last_of_a_repeated_field_counts():
    first, last = bytes(TAKEN_APART_BYTES_MIN), b"last"
    inner = run_pb2.Range(data=first).SerializeToString() + run_pb2.Range(data=last).SerializeToString()
    serialized = b"\x12" + varint(len(inner)) + inner
    assert data_pb2.PullResponse.FromString(serialized).ranges[0].data == last
    assert [bytes(each) for each in PULL_RESPONSE.decode(serialized).data] == [last]


@pytest.mark.parametrize("count", [64, 65, 3000])
def test_many_ranges(count):
    datas = [struct.pack("<Q", number) * 40 for number in range(count)]
    message = data_pb2.PullResponse(ranges=[run_pb2.Range(data=data) for data in datas])
    incoming = PULL_RESPONSE.decode(message.SerializeToString())
    assert [bytes(each) for each in incoming.data] == datas


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_damage_is_what_it_is_to_protobuf(seed, count):
    chance = random.Random(seed)
    message = request(last=True)
    message.stage.ranges.extend(run_pb2.Range(group=1, data=chance.randbytes(9000)) for _ in range(2))
    damaged = bytearray(message.SerializeToString())
    for _ in range(count):
        damaged[chance.randrange(60)] = chance.randrange(256)
    end = chance.choice([len(damaged), chance.randrange(len(damaged))])
    agree(WORK_REQUEST, data_pb2.WorkRequest, bytes(damaged[:end]))


def agree(codec: Payload[data_pb2.WorkRequest], kind, serialized: bytes) -> None:
    try:
        expected = kind.FromString(serialized)
    except DecodeError:
        with pytest.raises(DecodeError):
            codec.decode(serialized)
        return
    incoming = codec.decode(serialized)
    assert [bytes(each) for each in incoming.data] == [each.data for each in expected.stage.ranges]
    assert len(incoming.message.stage.ranges) == len(expected.stage.ranges)


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number % 128 + 128])
        number //= 128
    return encoded + bytes([number])
