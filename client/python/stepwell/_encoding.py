"""Encodings on the worker's side: gradients made smaller, what that drops sent later, encoded parameters made whole.

Error feedback: what an update did not carry of a gradient is owed, added to the next one, and sent as far as that one
carries it. It is settled only when the server has committed the update: one that leaves no trace there leaves none
here.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stepwell._layout import Layout
from stepwell._packing import Encoded, Gradients, Piece
from stepwell.errors import Internal
from stepwell.payload import Buffer
from stepwell.v1 import run_pb2, values_pb2
from stepwell.wire import RANGE_BYTES, decode_dtype, decode_part

Floats = npt.NDArray[Any]
Arguments = Mapping[str, Any]

PIECE_BYTES: Final = 2 * RANGE_BYTES
"""How much of the gradients is encoded at a time: what takes at most half of it fills a message."""

_INT8_MAX: Final = np.float32(127)
# The largest scale whose 127-fold is finite.
_SCALE_MAX: Final = np.nextafter(np.float32(np.finfo(np.float32).max) / _INT8_MAX, np.float32(0))
_HALF_MAX: Final = np.float16(65504)
_GAP_GOES_ON: Final = 255


class Codes(NamedTuple):
    """What an encoding makes of some elements. decoded: gives what the other end will make of it, in float32."""

    data: Floats
    decoded: Callable[[], Floats]
    finite: bool
    scales: bytes = b""
    indices: bytes = b""


class Encoder:
    """One worker's encoder of gradients.

    owed: by group, what was not sent yet of each element; empty without error feedback, and before the first update.
    """

    def __init__(self, spec: values_pb2.Encoding) -> None:
        self.name = spec.name
        self._arguments = decode_part(spec)
        self.feedback = bool(self._arguments["error_feedback"])
        self.owed: dict[int, Floats] = {}
        self._next: dict[int, Floats] = {}

    def prepare(self, layout: Layout) -> None:
        """Have the memory that error feedback takes: two numbers for each element."""
        for vectors in (self.owed, self._next) if self.feedback and not self.owed else ():
            for number, group in enumerate(layout.groups):
                if not group.frozen:
                    wide = np.float64 if group.dtype.name == "float64" else np.float32
                    vectors[number] = np.zeros(group.packed_bytes // group.dtype.itemsize, wide)

    def settle(self, covered: dict[int, list[tuple[int, int]]]) -> None:
        """The update was committed: what it left out is owed from now on, and what it did not touch still is."""
        for group, vector in self._next.items():
            end = 0
            for begin, after in [*sorted(covered.get(group, [])), (len(vector), len(vector))]:
                vector[end:begin] = self.owed[group][end:begin]
                end = after
        self.owed, self._next = self._next, self.owed

    def reset(self) -> None:
        """Owe nothing: in a forked child, which is another worker."""
        self.owed, self._next = {}, {}

    def encode(self, piece: Piece, layout: Layout) -> tuple[Piece, int]:
        """An encoded piece, and how many elements were encoded: none of those that would not become smaller."""
        group = layout.groups[piece.group]
        dtype = decode_dtype(piece.dtype) if piece.dtype else group.dtype
        begin = piece.packed_offset_bytes // group.dtype.itemsize
        count = piece.size_bytes // dtype.itemsize
        cast = self._cast(dtype)
        if cast is None and self.name in _CASTS:
            return piece, 0
        elements = np.empty(count, np.float64 if dtype.name == "float64" else np.float32)
        at = 0
        for part in piece.parts:
            values = part.reshape(-1).view(np.uint8).view(dtype)
            elements[at : at + len(values)] = values
            at += len(values)
        if self.feedback:
            np.add(elements, self.owed[piece.group][begin : begin + count], out=elements)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            codes = _ENCODERS[self.name](elements, self._arguments)
            if self.feedback:
                left = self._next[piece.group][begin : begin + count]
                np.subtract(elements, codes.decoded(), out=left)
                if not codes.finite:
                    left[~np.isfinite(left)] = 0  # whoever allows these gets them as they are, and once
        if cast is not None:
            return piece._replace(parts=[codes.data], dtype=cast), count
        encoded = Encoded(self.name, count, codes.scales, codes.indices)
        return Piece(piece.group, piece.packed_offset_bytes, [codes.data], encoded=encoded), count

    def _cast(self, dtype: np.dtype[Any]) -> run_pb2.DType | None:
        """The type that elements are cast to, where the encoding is one and narrower than what they have."""
        found = _CASTS.get(self.name)
        return found[0] if found and found[1] < dtype.itemsize else None


class EncodedUpdate:
    """One update's messages. With error feedback they are kept for retries: the same bytes go out again.

    Of an encoder's updates only the last one can be settled.
    """

    def __init__(self, encoder: Encoder, layout: Layout) -> None:
        self._encoder, self._layout = encoder, layout
        self._made: list[list[Piece]] = []
        self._rest: Iterator[list[Piece]] | None = None
        self._covered: dict[int, list[tuple[int, int]]] = {}

    def add(self, pieces: list[Piece]) -> list[Piece]:
        """Encode the pieces of one message; inputs beside the gradients stay as they are."""
        self._encoder.prepare(self._layout)
        message = []
        for piece in pieces:
            encoded, count = (piece, 0) if piece.input else self._encoder.encode(piece, self._layout)
            message.append(encoded)
            if count:
                begin = piece.packed_offset_bytes // self._layout.groups[piece.group].dtype.itemsize
                self._covered.setdefault(piece.group, []).append((begin, begin + count))
        if self._encoder.feedback:
            self._made.append(message)
        return message

    def messages(self, gradients: Gradients) -> Iterator[list[Piece]]:
        """All messages: those that were made, and, unless they were added one by one, the rest of the gradients."""
        if not self._encoder.feedback:
            yield from map(self.add, gradients.messages(PIECE_BYTES))
            return
        if self._rest is None:
            self._rest = iter(()) if self._made else gradients.messages(PIECE_BYTES)
        yield from list(self._made)
        for pieces in self._rest:
            yield self.add(pieces)

    def settle(self) -> None:
        """The update was committed."""
        if self._encoder.feedback:
            self._encoder.settle(self._covered)


class Decoder:
    """Makes plain elements of the ranges in which a server sends parameters."""

    def __init__(self, spec: values_pb2.Encoding) -> None:
        self._arguments = decode_part(spec)

    def decode(self, piece: run_pb2.Range, data: Buffer, dtype: np.dtype[Any]) -> Floats:
        """A range as elements of its group's type."""
        if piece.dtype == run_pb2.D_TYPE_BFLOAT16:
            elements = _widened(np.frombuffer(data, "<u2"))
        elif piece.dtype:
            elements = np.frombuffer(data, decode_dtype(piece.dtype))
        elif piece.encoding == "int8" and "block" in self._arguments:
            codes, scales = np.frombuffer(data, np.int8), np.frombuffer(piece.scales, "<f4")
            block = int(self._arguments["block"])
            if len(codes) != piece.elements or len(scales) != math.ceil(len(codes) / block):
                raise Internal(f"got {len(codes)} codes and {len(scales)} scales, which do not fit; report this")
            with np.errstate(invalid="ignore", over="ignore"):
                elements = _multiply(codes, scales, block)
        else:
            raise Internal(f"got a range in encoding {piece.encoding!r:.50}, expected the run's; upgrade stepwell")
        with np.errstate(invalid="ignore", over="ignore"):
            return elements.astype(dtype, copy=False)


def _encode_float32(elements: Floats, arguments: Arguments) -> Codes:
    narrow = elements.astype("<f4")
    return Codes(narrow.view(np.uint8), lambda: narrow, _finite(narrow.view("<u4"), 0x7F800000))


def _encode_bfloat16(elements: Floats, arguments: Arguments) -> Codes:
    bits = elements.astype("<f4", copy=False).view("<u4")
    rounded = bits >> 16
    rounded &= 1  # what lies half way goes to the even one
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    halves = rounded.astype("<u2")
    if np.isnan(elements.max()):  # rounding may carry a NaN into the sign
        halves[np.isnan(elements)] = 0x7FC0
    return Codes(halves.view(np.uint8), lambda: _widened(halves), _finite(halves, 0x7F80))


def _encode_float16(elements: Floats, arguments: Arguments) -> Codes:
    scale = np.float32(arguments["scale"])
    halves = (elements * scale).astype("<f2")
    beyond = np.isinf(halves) & np.isfinite(elements)
    halves[beyond] = np.copysign(_HALF_MAX, halves[beyond])
    finite = _finite(halves.view("<u2"), 0x7C00)
    return Codes(halves.view(np.uint8), lambda: halves.astype(np.float32) / scale, finite, scale.tobytes())


def _encode_int8(elements: Floats, arguments: Arguments) -> Codes:
    block = int(arguments["block"])
    rows = _rows(elements, block)
    # The largest size, and a NaN where there is one.
    scales = (np.maximum(rows.max(axis=1), -rows.min(axis=1)) / _INT8_MAX).astype("<f4")
    finite = bool(np.isfinite(scales).all())
    np.minimum(scales, _SCALE_MAX, out=scales, where=np.isfinite(scales))
    quotients = rows / np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]
    np.rint(quotients, out=quotients)
    np.clip(quotients, -_INT8_MAX, _INT8_MAX, out=quotients)  # tiny scales are rounded coarsely
    codes = quotients.reshape(-1)[: len(elements)].astype(np.int8)
    return Codes(codes.view(np.uint8), lambda: _multiply(codes, scales, block), finite, scales.tobytes())


def _encode_sign(elements: Floats, arguments: Arguments) -> Codes:
    block = int(arguments["block"])
    rows = _rows(np.abs(elements), block)
    counts = np.full(len(rows), block)
    counts[-1] = len(elements) - block * (len(rows) - 1)
    scales = (rows.sum(axis=1) / counts).astype("<f4")
    negative = elements < 0
    signs = 1 - 2 * negative.view(np.int8)
    return Codes(
        np.packbits(negative, bitorder="little"),
        lambda: _multiply(signs, scales, block),
        bool(np.isfinite(scales).all()),
        scales.tobytes(),
    )


def _encode_top_k(elements: Floats, arguments: Arguments) -> Codes:
    count = min(len(elements), math.ceil(len(elements) * float(arguments["density"])))
    sizes = np.abs(elements)  # a NaN counts as the largest
    places = np.sort(np.argpartition(sizes, len(sizes) - count)[len(sizes) - count :])
    values = elements[places].astype("<f4")

    def decoded() -> Floats:
        whole = np.zeros(len(elements), np.float32)
        whole[places] = values
        return whole

    return Codes(values.view(np.uint8), decoded, bool(np.isfinite(values).all()), indices=_gaps(places))


_ENCODERS: Final[Mapping[str, Callable[[Floats, Arguments], Codes]]] = {
    "float32": _encode_float32,
    "bfloat16": _encode_bfloat16,
    "float16": _encode_float16,
    "int8": _encode_int8,
    "sign": _encode_sign,
    "top_k": _encode_top_k,
}

# Encodings that are types: their code, and the size of an element.
_CASTS: Final[Mapping[str, tuple[run_pb2.DType, int]]] = {
    "float32": (run_pb2.D_TYPE_FLOAT32, 4),
    "bfloat16": (run_pb2.D_TYPE_BFLOAT16, 2),
}


def _gaps(places: npt.NDArray[np.intp]) -> bytes:
    """How many elements lie before each place, since the one before, in bytes; 255 says that the count goes on."""
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // _GAP_GOES_ON + 1)
    coded = np.full(ends[-1], _GAP_GOES_ON, np.uint8)
    coded[ends - 1] = gaps % _GAP_GOES_ON
    return coded.tobytes()


def _rows(elements: Floats, block: int) -> Floats:
    """Blocks as rows, the last one filled up with zeros."""
    missing = -len(elements) % block
    return (np.concatenate([elements, np.zeros(missing, elements.dtype)]) if missing else elements).reshape(-1, block)


def _multiply(codes: Floats, scales: Floats, block: int) -> Floats:
    """Each code times the scale of its block."""
    return np.multiply(_rows(codes, block), scales[:, np.newaxis], dtype=np.float32).reshape(-1)[: len(codes)]


def _widened(halves: Floats) -> Floats:
    """bfloat16, given by its bits, as float32."""
    wide = np.empty(len(halves), np.float32)
    np.left_shift(halves, 16, out=wide.view(np.uint32), dtype=np.uint32, casting="unsafe")
    return wide


def _finite(bits: Floats, exponent: int) -> bool:
    return bool(((bits & bits.dtype.type(exponent)) != exponent).all())
