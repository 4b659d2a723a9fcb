"""Encodings on the worker's side: gradients made smaller, what that drops sent later, encoded parameters made whole.

Error feedback: what an update did not carry of a gradient is owed, added to the next one, and sent as far as that one
carries it. It is settled only when the server has committed the update: one that leaves no trace there leaves none
here.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
Spans = Iterator[tuple[npt.NDArray[np.uint8], int, int]]

PIECE_BYTES: Final = 2 * RANGE_BYTES
"""How much of the gradients is encoded at a time: what takes at most half of it fills a message."""

_DENSITY_MAX: Final = 0.5
"""Above it top_k, which sends 5 bytes for an element, may make more of 16-bit gradients than a message takes."""

_CACHED_ELEMENTS: Final = 1 << 19
"""How many are worked on at a time where more than one pass is made: what stays in a core's own cache."""

_INT8_MAX: Final = np.float32(127)
# The largest scale whose 127-fold is finite.
_SCALE_MAX: Final = np.nextafter(np.float32(np.finfo(np.float32).max) / _INT8_MAX, np.float32(0))
_HALF_MAX: Final = np.float16(65504)
_GAP_GOES_ON: Final = 255


class Codes(NamedTuple):
    """What an encoding makes of some elements. decoded: gives what the other end will make of it, in float32."""

    data: Floats
    decoded: Callable[[], Floats]
    finite: Callable[[], bool]
    scales: bytes = b""
    indices: bytes = b""


class Encoder:
    """One worker's encoder of gradients.

    piece_bytes: how much of them it encodes at a time.
    owed: by group, what was not sent yet of each element; empty without error feedback, and before the first update.
    """

    def __init__(self, spec: values_pb2.Encoding) -> None:
        self.name = spec.name
        self._arguments = decode_part(spec)
        self.feedback = bool(self._arguments["error_feedback"])
        self.piece_bytes = PIECE_BYTES if self._arguments.get("density", 0.0) <= _DENSITY_MAX else RANGE_BYTES
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

    def encode(self, piece: Piece, layout: Layout) -> tuple[Piece, int]:
        """An encoded piece, and how many elements were encoded: none of those that would not become smaller."""
        group = layout.groups[piece.group]
        dtype = decode_dtype(piece.dtype) if piece.dtype else group.dtype
        begin = piece.packed_offset_bytes // group.dtype.itemsize
        count = piece.size_bytes // dtype.itemsize
        cast = self._cast(dtype)
        if cast is None and self.name in _CASTS:
            return piece, 0
        if self.name == "bfloat16" and dtype == np.float32 and not self.feedback:
            parts = [part.reshape(-1).view(np.uint8).view(dtype) for part in piece.parts]
            assert cast is not None
            return piece._replace(parts=[_rounded(parts, count).view(np.uint8)], dtype=cast), count
        wide = np.dtype(np.float64 if dtype.name == "float64" else np.float32)
        elements = _joined(piece.parts, dtype, wide, count)
        if self.feedback:
            elements = elements if elements.base is None else elements.copy()  # never the caller's own
            np.add(elements, self.owed[piece.group][begin : begin + count], out=elements)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            codes = _ENCODERS[self.name](elements, self._arguments)
            if self.feedback:
                left = self._next[piece.group][begin : begin + count]
                np.subtract(elements, codes.decoded(), out=left)
                if not codes.finite():
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
        self.piece_bytes = encoder.piece_bytes
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
            yield from map(self.add, gradients.messages(self.piece_bytes))
            return
        if self._rest is None:
            self._rest = iter(()) if self._made else gradients.messages(self.piece_bytes)
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

    def count(self, piece: run_pb2.Range, data: Buffer) -> int:
        """How many elements a range has."""
        if not piece.dtype:
            return piece.elements
        item_bytes = 2 if piece.dtype == run_pb2.D_TYPE_BFLOAT16 else decode_dtype(piece.dtype).itemsize
        return len(data) // item_bytes

    def write(self, piece: run_pb2.Range, data: Buffer, dtype: np.dtype[Any], spans: Spans) -> None:
        """Write a range, as elements of its group's type, to where its bytes belong."""
        if piece.dtype == run_pb2.D_TYPE_BFLOAT16 and dtype == np.float32:
            halves = np.frombuffer(data, "<u2")
            for target, begin, end in spans:
                _widen(halves[begin // 4 : end // 4], target.view(np.uint32))
            return
        with np.errstate(invalid="ignore", over="ignore"):
            whole = self._decode(piece, data).astype(dtype, copy=False).view(np.uint8)
        for target, begin, end in spans:
            target[:] = whole[begin:end]

    def _decode(self, piece: run_pb2.Range, data: Buffer) -> Floats:
        if piece.dtype == run_pb2.D_TYPE_BFLOAT16:
            return _widened(np.frombuffer(data, "<u2"))
        if piece.dtype:
            return np.frombuffer(data, decode_dtype(piece.dtype))
        if piece.encoding != "int8" or "block" not in self._arguments:
            raise Internal(f"got a range in encoding {piece.encoding!r:.50}, expected the run's; upgrade stepwell")
        codes, scales = np.frombuffer(data, np.int8), np.frombuffer(piece.scales, "<f4")
        block = int(self._arguments["block"])
        if len(codes) != piece.elements or len(scales) != math.ceil(len(codes) / block):
            raise Internal(f"got {len(codes)} codes and {len(scales)} scales, which do not fit; report this")
        return _multiply(codes, scales, block)


def _encode_float32(elements: Floats, arguments: Arguments) -> Codes:
    narrow = elements.astype("<f4")
    return Codes(narrow.view(np.uint8), lambda: narrow, lambda: _finite(narrow.view("<u4"), 0x7F800000))


def _encode_bfloat16(elements: Floats, arguments: Arguments) -> Codes:
    halves = _rounded([elements.astype("<f4", copy=False)], len(elements))
    return Codes(halves.view(np.uint8), lambda: _widened(halves), lambda: _finite(halves, 0x7F80))


def _rounded(parts: Sequence[Floats], count: int) -> Floats:
    """float32 as the bits of bfloat16, rounded to nearest, half way away from zero."""
    halves = np.empty(count, "<u2")
    scratch = np.empty(_CACHED_ELEMENTS, "<u4")
    at = 0
    for part in parts:
        for begin in range(0, len(part), _CACHED_ELEMENTS):
            elements = part[begin : begin + _CACHED_ELEMENTS]
            target, words = halves[at : at + len(elements)], scratch[: len(elements)]
            np.add(elements.view("<u4"), np.uint32(0x8000), out=words)
            np.right_shift(words, 16, out=target, casting="unsafe")
            if np.isnan(elements.max()):  # rounding may carry a NaN into the sign
                target[np.isnan(elements)] = 0x7FC0
            at += len(elements)
    return halves


def _encode_float16(elements: Floats, arguments: Arguments) -> Codes:
    scale = np.float32(arguments["scale"])
    halves = (elements * scale).astype("<f2")
    beyond = np.isinf(halves) & np.isfinite(elements)
    halves[beyond] = np.copysign(_HALF_MAX, halves[beyond])
    return Codes(
        halves.view(np.uint8),
        lambda: halves.astype(np.float32) / scale,
        lambda: _finite(halves.view("<u2"), 0x7C00),
        scale.tobytes(),
    )


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
    return Codes(codes.view(np.uint8), lambda: _multiply(codes, scales, block), lambda: finite, scales.tobytes())


def _encode_sign(elements: Floats, arguments: Arguments) -> Codes:
    block = int(arguments["block"])
    rows = _rows(np.abs(elements), block)
    counts = np.full(len(rows), block)
    counts[-1] = len(elements) - block * (len(rows) - 1)
    sums = rows.sum(axis=1)
    if np.isinf(sums).any():  # of large numbers; their mean may be none too large
        sums = rows.sum(axis=1, dtype=np.float64)
    scales = (sums / counts).astype("<f4")
    negative = elements < 0
    signs = 1 - 2 * negative.view(np.int8)
    return Codes(
        np.packbits(negative, bitorder="little"),
        lambda: _multiply(signs, scales, block),
        lambda: bool(np.isfinite(scales).all()),
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

    return Codes(values.view(np.uint8), decoded, lambda: bool(np.isfinite(values).all()), indices=_gaps(places))


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


def _joined(parts: Sequence[Buffer], dtype: np.dtype[Any], wide: np.dtype[Any], count: int) -> Floats:
    """The parts' elements in a row; in their own memory where that is so already."""
    if len(parts) == 1 and dtype == wide:
        own: Floats = parts[0].reshape(-1).view(dtype)
        return own
    elements = np.empty(count, wide)
    at = 0
    for part in parts:
        values = part.reshape(-1).view(np.uint8).view(dtype)
        elements[at : at + len(values)] = values
        at += len(values)
    return elements


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
    _widen(halves, wide.view(np.uint32))
    return wide


def _widen(halves: Floats, words: Floats) -> None:
    """The bits of float32 from those of bfloat16."""
    for begin in range(0, len(halves), _CACHED_ELEMENTS):
        target = words[begin : begin + _CACHED_ELEMENTS]
        target[:] = halves[begin : begin + _CACHED_ELEMENTS]
        np.left_shift(target, 16, out=target)


def _finite(bits: Floats, exponent: int) -> bool:
    return bool(((bits & bits.dtype.type(exponent)) != exponent).all())
