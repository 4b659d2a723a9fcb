"""Messages with ranges and rows, without protobuf's copies of their data.

Protobuf copies a bytes field when it is set, serialised, parsed, and each time it is read. Here it handles everything
but the data: that is joined into the serialised message once, and read where it lies in the received one. The bytes on
the wire are ordinary messages of the contract.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from stepwell.v1 import data_pb2, run_pb2

M = TypeVar("M", bound=Message)
Buffer = Any  # what has C-contiguous memory and `nbytes`: a memoryview of bytes, a NumPy array

TAKEN_APART_BYTES_MIN: Final = 64 << 10
"""Below this size protobuf alone is faster."""

_PIECES_MAX: Final = 64
"""Messages of more ranges and rows are small ones, which protobuf alone handles faster."""

_DATA: Final = run_pb2.Range.DESCRIPTOR.fields_by_name["data"].number
assert run_pb2.Rows.DESCRIPTOR.fields_by_name["data"].number == _DATA, "one field number serves both"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class Outgoing(Generic[M]):
    """A message to be sent, and its ranges and rows: each without data, and the data in parts."""

    message: M
    ranges: Sequence[tuple[run_pb2.Range, Sequence[Buffer]]] = ()
    rows: Sequence[tuple[run_pb2.Rows, Sequence[Buffer]]] = ()

    @property
    def data_bytes(self) -> int:
        return sum(part.nbytes for pieces in (self.ranges, self.rows) for _, parts in pieces for part in parts)


@dataclass(slots=True)
class Incoming(Generic[M]):
    """A received message, and the data of each of its ranges, and of its rows, in order.

    Data in `message` itself is not to be read.
    """

    message: M
    data: list[Buffer] = field(default_factory=list)
    rows: list[Buffer] = field(default_factory=list)

    def forget(self, name: str) -> M:
        """Drop the data, and the message's field of this name that it came in; returns the rest of the message.

        For who keeps the rest for long: a field that is only cleared stays in protobuf's memory.
        """
        self.data, self.rows = [], []
        self.message.ClearField(name)
        rest = type(self.message)()
        rest.CopyFrom(self.message)
        self.message = rest
        return rest


class Payload(Generic[M]):
    """The codec of one kind of message. path: the names of the fields that lead to where its ranges and rows are."""

    def __init__(self, kind: type[M], *path: str) -> None:
        self._kind = kind
        self._path = path
        descriptor: Any = kind.DESCRIPTOR
        numbers = []
        for name in path:
            numbers.append(descriptor.fields_by_name[name].number)
            descriptor = descriptor.fields_by_name[name].message_type
        self._numbers = tuple(numbers)
        self._ranges, self._rows = (descriptor.fields_by_name[name].number for name in ("ranges", "rows"))
        self._outer_tags = [_varint(number << 3 | _BYTES) for number in numbers]
        self._range_tag, self._rows_tag = (_varint(number << 3 | _BYTES) for number in (self._ranges, self._rows))

    def encode(self, outgoing: Outgoing[M]) -> bytes:
        """The serialised message. Submessages on the way to the ranges come once more: parsers merge the two."""
        parts: list[Buffer] = []
        total = _join(self._range_tag, outgoing.ranges, parts)
        if outgoing.rows:
            total += _join(self._rows_tag, outgoing.rows, parts)
        if parts:
            for tag in reversed(self._outer_tags):
                before = tag + _varint(total)
                parts.insert(0, before)
                total += len(before)
        return b"".join((outgoing.message.SerializeToString(), *parts))

    def decode(self, serialized: bytes) -> Incoming[M]:
        """Take a message apart. Raises protobuf's DecodeError."""
        if len(serialized) >= TAKEN_APART_BYTES_MIN:
            datas: dict[int, list[Buffer]] = {self._ranges: [], self._rows: []}
            try:
                rest = _strip(memoryview(serialized), self._numbers, datas)
            except _NotTaken:
                pass
            else:
                return Incoming(self._kind.FromString(rest), datas[self._ranges], datas[self._rows])
        message = self._kind.FromString(serialized)
        owner: Any = message
        for name in self._path:
            owner = getattr(owner, name)
        rows = owner.rows  # most messages have none
        return Incoming(message, [piece.data for piece in owner.ranges], [piece.data for piece in rows] if rows else [])


def _join(tag: bytes, pieces: Sequence[tuple[Message, Sequence[Buffer]]], parts: list[Buffer]) -> int:
    """Append ranges or rows, serialised with their data, to the parts of a message; how many bytes they are."""
    total = 0
    for piece, data in pieces:
        head = piece.SerializeToString()
        size = sum([part.nbytes for part in data])
        head += _DATA_TAG + _varint(size)
        head = tag + _varint(len(head) + size) + head
        parts += (head, *data)
        total += len(head) + size
    return total


class _NotTaken(Exception):
    """The message is better left to protobuf, which also says what is wrong with it."""


def _strip(message: memoryview, path: Sequence[int], datas: Mapping[int, list[Buffer]]) -> bytes:
    """The message without the data of what it has at the end of the path, which goes to `datas` by the field."""
    kept: list[Buffer] = []
    for number, begin, inner, end in _fields(message):
        if path and number == path[0]:
            rest = _strip(message[inner:end], path[1:], datas)
        elif not path and number in datas:
            rest, data = _without_data(message[inner:end])
            datas[number].append(data)
            if sum(map(len, datas.values())) > _PIECES_MAX:
                raise _NotTaken
        else:
            kept.append(message[begin:end])
            continue
        kept += (_varint(number << 3 | _BYTES), _varint(len(rest)), rest)
    return b"".join(kept)


def _without_data(piece: memoryview) -> tuple[bytes, Buffer]:
    """A range, or rows, without data, and the data: as in all of protobuf, the last of several is what counts."""
    kept: list[Buffer] = []
    data: Buffer = b""
    for number, begin, inner, end in _fields(piece):
        if number == _DATA:
            data = piece[inner:end]
        else:
            kept.append(piece[begin:end])
    return b"".join(kept), data


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Each field's number, 0 where it is no bytes, and where it begins, where its content does, and where both end."""
    at, end = 0, len(message)
    while at < end:
        begin = at
        tag, at = _read_varint(message, at)
        kind, number, inner = tag & 7, 0, at
        if kind == _BYTES:
            size, inner = _read_varint(message, at)
            number, at = tag >> 3, inner + size
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise _NotTaken
        if at > end:
            raise _NotTaken
        yield number, begin, inner, at


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    try:
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, at
            shift += 7
            if shift > 63:
                raise _NotTaken
    except IndexError:
        raise _NotTaken from None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_DATA_TAG: Final = _varint(_DATA << 3 | _BYTES)


PUSH_REQUEST: Final = Payload(data_pb2.PushRequest, "stage")
STEP_REQUEST: Final = Payload(data_pb2.StepRequest, "stage")
WORK_REQUEST: Final = Payload(data_pb2.WorkRequest, "stage")
PULL_RESPONSE: Final = Payload(data_pb2.PullResponse)
STEP_RESPONSE: Final = Payload(data_pb2.StepResponse)
WORK_RESPONSE: Final = Payload(data_pb2.WorkResponse)
