"""Messages with ranges, without protobuf's copies of their data.

Protobuf copies a bytes field when it is set, serialised, parsed, and each time it is read. Here it handles everything
but the data: that is joined into the serialised message once, and read where it lies in the received one. The bytes on
the wire are ordinary messages of the contract.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from stepwell.v1 import data_pb2, run_pb2

M = TypeVar("M", bound=Message)
Buffer = Any  # what has C-contiguous memory and `nbytes`: a memoryview of bytes, a NumPy array

TAKEN_APART_BYTES_MIN: Final = 128 << 10
"""Below this size protobuf alone is faster."""

_RANGES_MAX: Final = 64
"""Messages of more ranges are small ranges, which protobuf alone handles faster."""

_DATA: Final = run_pb2.Range.DESCRIPTOR.fields_by_name["data"].number
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class Outgoing(Generic[M]):
    """A message to be sent, without ranges, and its ranges: each without data, and the data in parts."""

    message: M
    ranges: Sequence[tuple[run_pb2.Range, Sequence[Buffer]]] = ()

    @property
    def data_bytes(self) -> int:
        return sum(part.nbytes for _, parts in self.ranges for part in parts)


@dataclass(slots=True)
class Incoming(Generic[M]):
    """A received message, and the data of each of its ranges in order. Data in `message` itself is not to be read."""

    message: M
    data: list[Buffer] = field(default_factory=list)


class Payload(Generic[M]):
    """The codec of one kind of message. path: the names of the fields that lead from it to its ranges."""

    def __init__(self, kind: type[M], *path: str) -> None:
        self._kind = kind
        self._path = path
        numbers = []
        descriptor: Any = kind.DESCRIPTOR
        for name in path:
            numbers.append(descriptor.fields_by_name[name].number)
            descriptor = descriptor.fields_by_name[name].message_type
        self._numbers = (*numbers, _DATA)
        *self._outer_tags, self._range_tag = (_varint(number << 3 | _BYTES) for number in numbers)

    def encode(self, outgoing: Outgoing[M]) -> bytes:
        """The serialised message. Submessages on the way to the ranges come once more: parsers merge the two."""
        parts: list[Buffer] = []
        total = 0
        for piece, data in outgoing.ranges:
            head = piece.SerializeToString()
            size = sum([part.nbytes for part in data])
            head += _DATA_TAG + _varint(size)
            head = self._range_tag + _varint(len(head) + size) + head
            parts += (head, *data)
            total += len(head) + size
        if parts:
            for tag in reversed(self._outer_tags):
                before = tag + _varint(total)
                parts.insert(0, before)
                total += len(before)
        return b"".join((outgoing.message.SerializeToString(), *parts))

    def decode(self, serialized: bytes) -> Incoming[M]:
        """Take a message apart. Raises protobuf's DecodeError."""
        if len(serialized) >= TAKEN_APART_BYTES_MIN:
            data: list[Buffer] = []
            try:
                rest = _strip(memoryview(serialized), self._numbers, data)
            except _NotTaken:
                pass
            else:
                return Incoming(self._kind.FromString(rest), data)
        message = self._kind.FromString(serialized)
        ranges: Any = message
        for name in self._path:
            ranges = getattr(ranges, name)
        return Incoming(message, [piece.data for piece in ranges])


class _NotTaken(Exception):
    """The message is better left to protobuf, which also says what is wrong with it."""


def _strip(message: memoryview, path: Sequence[int], data: list[Buffer]) -> bytes:
    """The message without the bytes at the end of the path, which are appended to `data`, one for each range."""
    kept: list[Buffer] = []
    found: Buffer = b""
    at, end = 0, len(message)
    while at < end:
        begin = at
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _read_varint(message, at)
            inner, at = at, at + size
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise _NotTaken
        if at > end:
            raise _NotTaken
        if kind != _BYTES or tag >> 3 != path[0]:
            kept.append(message[begin:at])
        elif len(path) == 1:
            found = message[inner:at]
        else:
            rest = _strip(message[inner:at], path[1:], data)
            kept += (_varint(tag), _varint(len(rest)), rest)
    if len(path) == 1:
        data.append(found)
        if len(data) > _RANGES_MAX:
            raise _NotTaken
    return b"".join(kept)


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


PUSH_REQUEST: Final = Payload(data_pb2.PushRequest, "stage", "ranges")
STEP_REQUEST: Final = Payload(data_pb2.StepRequest, "stage", "ranges")
WORK_REQUEST: Final = Payload(data_pb2.WorkRequest, "stage", "ranges")
PULL_RESPONSE: Final = Payload(data_pb2.PullResponse, "ranges")
STEP_RESPONSE: Final = Payload(data_pb2.StepResponse, "ranges")
WORK_RESPONSE: Final = Payload(data_pb2.WorkResponse, "ranges")
