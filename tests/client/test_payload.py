"""The codec of messages with ranges and rows, against protobuf's own."""

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
ROWS = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 40, 1000]), st.booleans(), st.lists(SIZES, max_size=2)),
    max_size=4,
)


def content(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def pieces(drawn):
    return [
        (run_pb2.Range(group=group, packed_offset_bytes=offset, input=number), [content(size) for size in sizes])
        for group, offset, number, sizes in drawn
    ]


def tables(drawn):
    return [
        (
            run_pb2.Rows(
                table=table,
                ids=content(8 * count).tobytes(),
                first=count,
                shared=run_pb2.SharedRows(count=count, data_offset_bytes=64) if shared else None,
            ),
            [content(size) for size in sizes],
        )
        for table, count, shared, sizes in drawn
    ]


def whole(piece, parts):
    message = type(piece)()
    message.CopyFrom(piece)
    message.data = b"".join(part.tobytes() for part in parts)
    return message


def request(**more):
    return data_pb2.WorkRequest(exchange=300, stage=data_pb2.Stage(header=data_pb2.UpdateHeader(samples=2.5)), **more)


@given(RANGES, ROWS, st.booleans())
def test_protobuf_reads_what_is_encoded(drawn, drawn_rows, last):
    ranges, rows = pieces(drawn), tables(drawn_rows)
    expected = request(last=last, commit=data_pb2.Commit())
    expected.stage.ranges.extend(whole(*each) for each in ranges)
    expected.stage.rows.extend(whole(*each) for each in rows)
    outgoing = Outgoing(request(last=last, commit=data_pb2.Commit()), ranges, rows)
    assert data_pb2.WorkRequest.FromString(WORK_REQUEST.encode(outgoing)) == expected
    assert outgoing.data_bytes == sum(len(each.data) for each in (*expected.stage.ranges, *expected.stage.rows))

    response = data_pb2.WorkResponse(exchange=7, done=last, ranges=expected.stage.ranges, rows=expected.stage.rows)
    encoded = WORK_RESPONSE.encode(Outgoing(data_pb2.WorkResponse(exchange=7, done=last), ranges, rows))
    assert data_pb2.WorkResponse.FromString(encoded) == response


@given(RANGES, ROWS, st.integers(0, 2**64 - 1))
def test_what_protobuf_writes_is_decoded(drawn, drawn_rows, seed):
    message = request(last=True)
    message.stage.ranges.extend(whole(*each) for each in pieces(drawn))
    message.stage.rows.extend(whole(*each) for each in tables(drawn_rows))
    message.selection.rows.add(ids=content(800).tobytes())
    expected = [each.data for each in message.stage.ranges]
    expected_rows = [each.data for each in message.stage.rows]
    # Fields in another order, a submessage in two parts, and fields that this version does not know.
    unknown = [b"\xa0\x06\x05", b"\xaa\x06\x03abc", b"\xb1\x06" + bytes(8), b"\xbd\x06" + bytes(4)]
    parts = [message.SerializeToString(), *unknown]
    random.Random(seed).shuffle(parts)
    incoming = WORK_REQUEST.decode(b"".join(parts))
    assert [bytes(each) for each in incoming.data] == expected
    assert [bytes(each) for each in incoming.rows] == expected_rows
    for stage in (incoming.message.stage, message.stage):
        for each in (*stage.ranges, *stage.rows):
            each.ClearField("data")
    incoming.message.DiscardUnknownFields()
    assert incoming.message == message


def test_the_data_is_not_copied():
    content = bytes(TAKEN_APART_BYTES_MIN)
    message = data_pb2.PullResponse(ranges=[run_pb2.Range(data=content)], rows=[run_pb2.Rows(data=content)])
    serialized = message.SerializeToString()
    incoming = PULL_RESPONSE.decode(serialized)
    assert incoming.data[0].obj is serialized
    assert incoming.rows[0].obj is serialized


def test_the_last_of_a_repeated_field_counts():
    first, last = bytes(TAKEN_APART_BYTES_MIN), b"last"
    inner = run_pb2.Range(data=first).SerializeToString() + run_pb2.Range(data=last).SerializeToString()
    serialized = b"\x12" + varint(len(inner)) + inner
    assert data_pb2.PullResponse.FromString(serialized).ranges[0].data == last
    assert [bytes(each) for each in PULL_RESPONSE.decode(serialized).data] == [last]


@pytest.mark.parametrize("rows", [0, 30])
@pytest.mark.parametrize("count", [64, 65, 3000])
def test_many_pieces(count, rows):
    datas = [struct.pack("<Q", number) * 400 for number in range(count)]
    ranges = [run_pb2.Range(data=data) for data in datas[rows:]]
    message = data_pb2.PullResponse(ranges=ranges, rows=[run_pb2.Rows(data=data) for data in datas[:rows]])
    incoming = PULL_RESPONSE.decode(message.SerializeToString())
    assert [bytes(each) for each in incoming.rows + incoming.data] == datas


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_damage_is_what_it_is_to_protobuf(seed, count):
    chance = random.Random(seed)
    message = request(last=True)
    message.stage.ranges.extend(run_pb2.Range(group=1, data=chance.randbytes(9000)) for _ in range(2))
    ids = chance.randbytes(16)
    message.stage.rows.add(table=1, ids=ids, data=chance.randbytes(TAKEN_APART_BYTES_MIN))
    damaged = bytearray(message.SerializeToString())
    begin = chance.choice([0, damaged.index(ids) - 20])
    for _ in range(count):
        damaged[begin + chance.randrange(60)] = chance.randrange(256)
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
    assert [bytes(each) for each in incoming.rows] == [each.data for each in expected.stage.rows]
    assert len(incoming.message.stage.ranges) == len(expected.stage.ranges)


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number % 128 + 128])
        number //= 128
    return encoded + bytes([number])
