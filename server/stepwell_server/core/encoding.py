"""Encodings: elements made smaller for their way. A run has one for gradients, one for parameters, or none.

Gradients are decoded where they are staged; what an encoding drops of them their worker keeps, and sends with a later
update. Parameters are encoded as they are sent; the run's own stay as they are. What a decoder gives is a binary32
number for each element whatever the run's type, so that both ends agree on it to the bit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import REQUIRED, Argument, Kind, Range, Value, check_arguments, unknown
from stepwell_server.core.errors import EncodingNotAllowed, InvalidEncoding, UnknownEncoding
from stepwell_server.core.layout import BFLOAT16


class Encoded(NamedTuple):
    """A range as it arrived. elements: how many it covers; the rest as the encoding has them."""

    name: str
    elements: int
    data: Any
    scales: bytes = b""
    indices: bytes = b""


@dataclass(frozen=True)
class Entry:
    """One encoding of the catalogue, for one direction."""

    name: str
    summary: str
    arguments: tuple[Argument, ...] = ()
    reference: str = ""


@dataclass(frozen=True)
class Encoding:
    """An encoding with its arguments."""

    name: str
    values: Mapping[str, Value]

    @property
    def spec(self) -> dict[str, Value]:
        return {"name": self.name, **self.values}

    @property
    def block(self) -> int:
        """How many elements share a scale."""
        return int(self._number("block"))

    @property
    def scale(self) -> float:
        """What elements in float16 are multiplied with."""
        return self._number("scale")

    def _number(self, name: str) -> float:
        value = self.values[name]
        assert isinstance(value, float)
        return value

    def check(self, encoded: Encoded, what: str) -> None:
        """Raise InvalidEncoding unless the parts of a range have the sizes that fit its elements."""
        elements = encoded.elements
        if not 1 <= elements <= ELEMENTS_MAX:
            raise InvalidEncoding(
                f"{what}: an encoded range of {elements} elements, expected 1 to {ELEMENTS_MAX}; cut it, and leave out "
                "what is empty"
            )
        blocks = math.ceil(elements / self.block) if self.name in ("int8", "sign") else 0
        sizes = {
            "float16": (2 * elements, 4),
            "int8": (elements, 4 * blocks),
            "sign": (math.ceil(elements / 8), 4 * blocks),
            "top_k": (len(encoded.data), 0),
        }
        data_bytes, scales_bytes = sizes[self.name]
        if len(encoded.data) != data_bytes or len(encoded.scales) != scales_bytes:
            raise InvalidEncoding(
                f"{what}: {elements} elements in {self.name} came as {len(encoded.data)} bytes of data and "
                f"{len(encoded.scales)} of scales, expected {data_bytes} and {scales_bytes}; send one scale a block"
            )
        if bool(encoded.indices) != (self.name == "top_k" and len(encoded.data) > 0):
            raise InvalidEncoding(
                f"{what}: {len(encoded.data)} bytes of data in {self.name} came with {len(encoded.indices)} of "
                "indices, expected one or more for each value of top_k and else none; send these"
            )

    def decode(self, encoded: Encoded, out: NDArray[Any], what: str) -> bool:
        """Write a checked range's elements to `out`, which is contiguous; whether they are finite.

        Raises InvalidEncoding for contents that cannot be.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return _DECODERS[self.name](self, encoded, out, what)

    @property
    def is_cast(self) -> bool:
        """Whether it is nothing but a narrower type."""
        return self.name in _CASTS

    def dtype_for(self, own: np.dtype[Any]) -> np.dtype[Any] | None:
        """The narrower type that parameters of this type are sent in; None where no type says it."""
        cast = _CASTS.get(self.name)
        return cast if cast is not None and cast.itemsize < own.itemsize else None

    def encode(self, values: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Parameters as codes and the scales of their blocks; of int8 alone."""
        block = self.block
        blocks = math.ceil(len(values) / block)
        padded = np.zeros(blocks * block, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            padded[: len(values)] = values
            rows = padded.reshape(blocks, block)
            scales = np.maximum(rows.max(axis=1), -rows.min(axis=1)) / np.float32(INT8_MAX)
            np.minimum(scales, _SCALE_MAX, out=scales, where=np.isfinite(scales))
            rows /= np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]
            np.rint(padded, out=padded)
            np.clip(padded, -INT8_MAX, INT8_MAX, out=padded)  # tiny scales are rounded coarsely
            return padded[: len(values)].astype(np.int8), scales


INT8_MAX = 127
# The largest scale whose 127-fold is finite.
_SCALE_MAX = np.nextafter(np.float32(np.finfo(np.float32).max) / np.float32(INT8_MAX), np.float32(0))

# How much one range may make of few bytes: a range of top_k may be empty, and is decoded beside its place.
ELEMENTS_MAX = 1 << 24

_CASTS = {"float32": np.dtype("<f4"), "bfloat16": BFLOAT16, "float16": np.dtype("<f2")}

_FEEDBACK = "error_feedback"


def _arguments(feedback: bool, **more: tuple[Kind, Value, Range]) -> tuple[Argument, ...]:
    own = [Argument(name, kind, default, range=limits) for name, (kind, default, limits) in more.items()]
    return (*own, Argument(_FEEDBACK, Kind.FLAG, feedback))


_BLOCK = Range(8, 1 << 20)

GRADIENT_ENCODINGS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("float32", "float64 gradients as float32.", _arguments(False)),
        Entry("bfloat16", "The upper half of a float32, rounded to nearest.", _arguments(False)),
        Entry(
            "float16",
            "float16 of the gradient times a scale; finite values beyond its range are sent as its largest.",
            _arguments(False, scale=(Kind.NUMBER, 1024.0, Range(2.0**-32, 2.0**32))),
            "Micikevicius et al. 2018, section 3.2, https://arxiv.org/abs/1710.03740",
        ),
        Entry(
            "int8",
            "A byte for each element, and for each block the scale that makes its largest 127.",
            _arguments(True, block=(Kind.INTEGER, 256.0, _BLOCK)),
            "Dettmers 2016, https://arxiv.org/abs/1511.04561",
        ),
        Entry(
            "top_k",
            "Of each range of elements only the largest, as a fraction of them, with their places.",
            _arguments(True, density=(Kind.NUMBER, 0.01, Range(0.0, 1.0, minimum_open=True))),
            "Aji & Heafield 2017, https://arxiv.org/abs/1704.05021",
        ),
        Entry(
            "sign",
            "A bit for each element, and for each block the mean of their sizes.",
            _arguments(True, block=(Kind.INTEGER, 1024.0, _BLOCK)),
            "Karimireddy et al. 2019, Algorithm 2, https://arxiv.org/abs/1901.09847",
        ),
    )
}

PARAMETER_ENCODINGS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("float32", "float64 parameters as float32."),
        Entry("bfloat16", "The upper half of a float32, rounded to nearest."),
        Entry("float16", "float16; what is beyond its range becomes infinite."),
        Entry(
            "int8",
            "A byte for each element, and for each block the scale that makes its largest 127.",
            (Argument("block", Kind.INTEGER, 64.0, range=_BLOCK),),
        ),
    )
}


def parse_encoding(spec: Mapping[str, Any] | None, entries: Mapping[str, Entry], direction: str) -> Encoding | None:
    """An encoding from plain data, {"name": ..., arguments}, with every argument; None for none.

    Raises UnknownEncoding, UnknownArgument, InvalidValue.
    """
    if spec is None:
        return None
    name = str(spec.get("name", ""))
    if name not in entries:
        raise unknown(UnknownEncoding, f"encoding of {direction}", name, entries)
    arguments = {argument.name: argument for argument in entries[name].arguments}
    given = {key: value for key, value in spec.items() if key != "name"}
    values = check_arguments(arguments, given, f"encoding '{name}'")
    defaults = {name: argument.default for name, argument in arguments.items() if argument.default is not REQUIRED}
    return Encoding(name, defaults | values)


def check_allowed(encoding: Encoding | None, name: str, what: str) -> Encoding:
    """The run's encoding, if it has this name; raises EncodingNotAllowed."""
    if encoding is None or encoding.name != name or encoding.name not in _DECODERS:
        allowed = "none" if encoding is None else f"'{encoding.name}'"
        raise EncodingNotAllowed(
            f"{what}: a range came in encoding {name!r:.50}, the run's is {allowed}; send plain elements, or create "
            "the run with this encoding",
            got=name[:50],
            allowed=allowed,
        )
    return encoding


def _decode_float16(encoding: Encoding, encoded: Encoded, out: NDArray[Any], what: str) -> bool:
    scale = np.frombuffer(encoded.scales, "<f4")[0]
    if scale != np.float32(encoding.scale):
        raise InvalidEncoding(f"{what}: the scale is {scale}, expected the run's, {encoding.scale}; send it")
    halves = np.frombuffer(encoded.data, "<f2")
    np.divide(halves, scale, out=out, dtype=np.float32, casting="same_kind")
    exponent = np.uint16(0x7C00)
    return bool(((halves.view("<u2") & exponent) != exponent).all())


def _decode_int8(encoding: Encoding, encoded: Encoded, out: NDArray[Any], what: str) -> bool:
    scales = _scales(encoded, what)
    _multiply(np.frombuffer(encoded.data, np.int8), scales, encoding, out)
    # -128 is the largest code. A large scale of small ones is finite, too.
    return bool(np.isfinite(scales * np.float32(128)).all() or np.isfinite(out).all())


def _decode_sign(encoding: Encoding, encoded: Encoded, out: NDArray[Any], what: str) -> bool:
    scales = _scales(encoded, what)
    negative = np.unpackbits(np.frombuffer(encoded.data, np.uint8), count=encoded.elements, bitorder="little")
    _multiply(1 - 2 * negative.view(np.int8), scales, encoding, out)
    return bool(np.isfinite(scales).all())


def _decode_top_k(encoding: Encoding, encoded: Encoded, out: NDArray[Any], what: str) -> bool:
    if len(encoded.data) % 4:
        raise InvalidEncoding(f"{what}: {len(encoded.data)} bytes of values, expected whole binary32 ones; send these")
    values = np.frombuffer(encoded.data, "<f4")
    gaps = np.frombuffer(encoded.indices, np.uint8)
    ends = np.flatnonzero(gaps != _GAP_GOES_ON)
    if len(ends) != len(values) or (len(gaps) and ends[-1] != len(gaps) - 1):
        raise InvalidEncoding(f"{what}: {len(ends)} indices for {len(values)} values, expected as many; send both")
    # Before each value lie all gaps so far, and the values before it.
    places = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(len(ends))
    if len(places) and places[-1] >= encoded.elements:
        raise InvalidEncoding(
            f"{what}: an index of {places[-1]}, expected less than the range's {encoded.elements} elements; correct it"
        )
    out.fill(0)
    out[places] = values
    return bool(np.isfinite(values).all())


def _scales(encoded: Encoded, what: str) -> NDArray[np.float32]:
    scales = np.frombuffer(encoded.scales, "<f4")
    if (scales < 0).any():
        raise InvalidEncoding(f"{what}: a scale is {scales.min()}, expected 0 or more; send the sign with the elements")
    return scales


def _multiply(codes: NDArray[np.int8], scales: NDArray[np.float32], encoding: Encoding, out: NDArray[Any]) -> None:
    """Each code times the scale of its block."""
    block = encoding.block
    whole = len(codes) // block
    cut = whole * block
    np.multiply(codes[:cut].reshape(whole, block), scales[:whole, np.newaxis], out=out[:cut].reshape(whole, block))
    if cut < len(codes):
        np.multiply(codes[cut:], scales[-1], out=out[cut:])


_GAP_GOES_ON = 255

_DECODERS: dict[str, Callable[[Encoding, Encoded, NDArray[Any], str], bool]] = {
    "float16": _decode_float16,
    "int8": _decode_int8,
    "sign": _decode_sign,
    "top_k": _decode_top_k,
}
