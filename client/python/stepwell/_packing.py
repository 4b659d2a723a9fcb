"""Gradients and parameters into ranges: what goes out."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np

from stepwell._layout import Layout, Parameter, listed
from stepwell.errors import InvalidGradient
from stepwell.payload import Buffer
from stepwell.v1 import run_pb2
from stepwell.wire import RANGE_BYTES, encode_dtype

RANGE_OVERHEAD_BYTES: Final = 24
"""What a range takes in a message beside its data, at most; counted from a message's second range on, so that thousands
of tiny ranges stay bounded and one large array is cut at whole RANGE_BYTES."""


WIDENED: Final[Mapping[str, tuple[str, ...]]] = {
    "float64": ("float32", "float16", "bfloat16"),
    "float32": ("float16", "bfloat16"),
    "float16": ("float32", "bfloat16"),
    "bfloat16": ("float32", "float16"),
}
"""Gradients of which other types a parameter takes: those that its state holds exactly. 16-bit parameters have 32."""


class Encoded(NamedTuple):
    """What an encoded range has beside its data."""

    name: str
    elements: int
    scales: bytes
    indices: bytes


class Piece(NamedTuple):
    """A range before it is a message. parts: the arrays, and slices of arrays, that are its data."""

    group: int
    packed_offset_bytes: int
    parts: list[Buffer]
    input: int = 0
    dtype: run_pb2.DType = run_pb2.D_TYPE_UNSPECIFIED
    encoded: Encoded | None = None

    @property
    def size_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def range(self, *, data: bool = False) -> run_pb2.Range:
        """The message, with or without its data."""
        message = run_pb2.Range(
            group=self.group,
            packed_offset_bytes=self.packed_offset_bytes,
            input=self.input,
            dtype=self.dtype,
            data=b"".join(self.parts) if data else b"",
        )
        if self.encoded is not None:
            message.encoding, message.elements, message.scales, message.indices = self.encoded
        return message


class Part(NamedTuple):
    """An array on its way out: it belongs at an offset of a group. offset_bytes: counted in the group's own type."""

    group: int
    offset_bytes: int
    array: np.ndarray[Any, Any]
    item_bytes: int = 0
    """The size of the group's elements, where the array has another type."""


class Gradients:
    """The checked gradients of one update, and its further inputs.

    arrays: C-contiguous and little-endian, by index of the parameter; without_gradient: the indices of the others.
    whole: whether nothing is missing or of another type, and there are no inputs.
    inputs: the same for each further input, by its name.
    """

    def __init__(
        self,
        layout: Layout,
        grads: Mapping[str, Any],
        what: str,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._layout = layout
        self.inputs = {name: _check_input(layout, arrays, f"{what}: {name}") for name, arrays in (inputs or {}).items()}
        self.without_gradient: list[int] = []
        self.arrays: dict[int, np.ndarray[Any, Any]] = {}
        if grads.keys() != layout.trained_names:
            _check_names(layout, grads, what)
        self.whole = not self.inputs
        values = [grads[name] for name in layout.trained_order]
        if _as_expected(layout, values):
            self.arrays = dict(zip(layout.trained_indices, values, strict=True))
            self.data_bytes = layout.trained_bytes
        else:
            self._check_each(layout, grads, what)
        for arrays in self.inputs.values():
            self.data_bytes += sum([array.nbytes for array in arrays.values()])

    def _check_each(self, layout: Layout, grads: Mapping[str, Any], what: str) -> None:
        """Take the gradients one by one, and make of each what can be sent."""
        for name, shape, dtype, index in layout.trained:
            gradient = grads[name]
            if gradient is None:
                self.without_gradient.append(index)
                self.whole = False
                continue
            if not (
                type(gradient) is np.ndarray
                and gradient.dtype is dtype
                and gradient.shape == shape
                and gradient.flags.c_contiguous
            ):
                gradient = check_array(layout.parameters[index], gradient, what)
                self.whole &= gradient.dtype == dtype
            self.arrays[index] = gradient
        self.data_bytes = sum([array.nbytes for array in self.arrays.values()])

    def messages(self, message_bytes_max: int = RANGE_BYTES) -> Iterator[list[Piece]]:
        """The ranges, grouped into messages of at most so many bytes; at least one message, perhaps empty."""
        if self.whole and self.data_bytes + RANGE_OVERHEAD_BYTES * len(self._layout.groups) <= RANGE_BYTES:
            return iter([self._one_message()])
        first = pack(self._parts(self.arrays), message_bytes_max)
        if not self.inputs:
            return first
        rest = (
            [piece._replace(input=number) for piece in message]
            for number, arrays in enumerate(self.inputs.values(), start=1)
            for message in pack(self._parts(arrays))
        )
        return chain(first, rest)

    def _one_message(self) -> list[Piece]:
        """A whole small update: a range for each group."""
        arrays = self.arrays
        return [
            Piece(number, 0, [_join([arrays[parameter.index] for parameter in members])])
            for number, (group, members) in enumerate(zip(self._layout.groups, self._layout.by_group, strict=True))
            if group.packed_bytes and not group.frozen
        ]

    def _parts(self, arrays: Mapping[int, np.ndarray[Any, Any]]) -> Iterator[Part]:
        for group, members in enumerate(self._layout.by_group):
            item_bytes = self._layout.groups[group].dtype.itemsize
            for parameter in members:
                array = arrays.get(parameter.index)
                if array is not None:
                    other = array.dtype != parameter.dtype
                    yield Part(group, parameter.offset_bytes, array, item_bytes if other else 0)


def pack(
    pieces: Iterable[tuple[int, int, np.ndarray[Any, Any]] | Part], message_bytes_max: int = RANGE_BYTES
) -> Iterator[list[Piece]]:
    """Cut arrays, which are C-contiguous, into messages of at most so many bytes.

    Neighbours share a range, a large array is sliced. Gives at least one message, perhaps empty.
    """
    message: list[Piece] = []
    message_bytes = 0
    parts: list[Buffer] = []  # of the open range
    group = start = end = -1
    dtype: run_pb2.DType = run_pb2.D_TYPE_UNSPECIFIED

    def close_range() -> None:
        nonlocal parts
        if parts:
            message.append(Piece(group, start, parts, 0, dtype))
            parts = []

    for next_group, offset, array, *other in pieces:
        if array.nbytes == 0:
            continue
        # The group's elements may have another size than the array's.
        item_bytes = (other[0] if other else 0) or array.itemsize
        next_dtype = encode_dtype(array.dtype) if other and other[0] else run_pb2.D_TYPE_UNSPECIFIED
        if parts and (next_group != group or offset != end or next_dtype != dtype):
            close_range()
        group, end, dtype = next_group, offset + array.size * item_bytes, next_dtype
        taken = 0
        while taken < array.nbytes:
            if not parts:
                start = offset + taken // array.itemsize * item_bytes
                message_bytes += RANGE_OVERHEAD_BYTES if message else 0
            room = (message_bytes_max - message_bytes) // array.itemsize * array.itemsize
            if room <= 0:
                close_range()
                yield message
                message, message_bytes = [], 0
                continue
            if taken == 0 and array.nbytes <= room:
                part, size = array, array.nbytes
            else:
                size = min(room, array.nbytes - taken)
                part = array.reshape(-1).view(np.uint8)[taken : taken + size]
            parts.append(part)
            taken += size
            message_bytes += size
    close_range()
    yield message


def _as_expected(layout: Layout, values: list[Any]) -> bool:
    """Whether every gradient is an array that can be sent as it is."""
    return (
        {*map(type, values)} == {np.ndarray}
        and [*map(_dtype, values)] == layout.trained_dtypes
        and [*map(_shape, values)] == layout.trained_shapes
        and all(map(_c_contiguous, values))
    )


# Half the time of comprehensions that ask for the same.
_dtype, _shape, _c_contiguous = attrgetter("dtype"), attrgetter("shape"), attrgetter("flags.c_contiguous")


def _join(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.frombuffer(b"".join(arrays), np.uint8)  # type: ignore[arg-type]  # arrays are buffers


def contiguous(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The array in C order and in this dtype, itself where it is so already."""
    if array.flags.c_contiguous and array.dtype == dtype:
        return array
    return np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)  # 0-d would become 1-d


def _check_names(layout: Layout, grads: Mapping[str, Any], what: str) -> None:
    unknown = [name for name in grads if name not in layout.by_name or layout.by_name[name].frozen]
    if unknown:
        frozen = [name for name in unknown if name in layout.by_name]
        why = f"; {listed(frozen)} is frozen and takes none" if frozen else ""
        raise InvalidGradient(
            f"{what}: got gradients for {listed(map(str, unknown))}, which the run does not train, expected the names "
            f"{listed(parameter.name for parameter in layout.parameters if not parameter.frozen)}{why}; leave them out",
            {"got": listed(map(str, unknown))},
        )
    missing = [
        parameter.name for parameter in layout.parameters if not parameter.frozen and parameter.name not in grads
    ]
    if missing:
        raise InvalidGradient(
            f"{what}: got no gradient for {listed(missing)}, expected every parameter to be named; "
            "give None for a parameter that has no gradient in this update",
            {"missing": listed(missing)},
        )


def _check_input(layout: Layout, arrays: Mapping[str, Any], what: str) -> dict[int, np.ndarray[Any, Any]]:
    """A further input's arrays; which parameters need one is the server's to say."""
    return {
        parameter.index: check_array(parameter, arrays[parameter.name], what) for parameter in layout.select(arrays)
    }


def check_array(parameter: Parameter, gradient: Any, what: str) -> np.ndarray[Any, Any]:
    """A gradient as it can be sent; raises InvalidGradient for a wrong shape or dtype."""
    array = gradient if type(gradient) is np.ndarray else np.asarray(gradient)
    dtype = parameter.dtype
    if array.dtype != dtype and array.dtype.newbyteorder("<") != dtype:
        if array.dtype.name in WIDENED[dtype.name]:
            dtype = array.dtype.newbyteorder("<") if array.dtype.name != "bfloat16" else array.dtype
        else:
            raise _wrong_dtype(parameter, array, what)
    if array.shape != parameter.shape:
        raise InvalidGradient(
            f"{what}: gradient for '{parameter.name}' has shape {array.shape}, expected {parameter.shape}; "
            "push gradients in the parameter's own shape",
            {"parameter": parameter.name, "got": str(array.shape), "expected": str(parameter.shape)},
        )
    return contiguous(array, dtype)


def _wrong_dtype(parameter: Parameter, array: np.ndarray[Any, Any], what: str) -> InvalidGradient:
    return InvalidGradient(
        f"{what}: gradient for '{parameter.name}' has dtype {array.dtype}, expected {parameter.dtype.name}; "
        f"convert it yourself, with .astype(np.{parameter.dtype.name}), so that no precision is lost unseen",
        {"parameter": parameter.name, "got": str(array.dtype), "expected": parameter.dtype.name},
    )
