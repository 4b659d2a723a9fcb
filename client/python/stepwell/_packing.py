"""Gradients and parameters into ranges: what goes out."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from stepwell._layout import Layout, Parameter, listed
from stepwell.errors import InvalidGradient
from stepwell.wire import RANGE_BYTES

RANGE_OVERHEAD_BYTES: Final = 24
"""What a range takes in a message beside its data, at most; counted from a message's second range on, so that thousands
of tiny ranges stay bounded and one large array is cut at whole RANGE_BYTES."""


class Piece(NamedTuple):
    """A range before it is a message: `ranges.add(**piece._asdict())` copies the data once, a constructor thrice."""

    group: int
    packed_offset_bytes: int
    data: bytes


class Gradients:
    """The checked gradients of one update.

    arrays: C-contiguous and little-endian, by index of the parameter; without_gradient: the indices of the others.
    """

    def __init__(self, layout: Layout, grads: Mapping[str, Any], what: str) -> None:
        self._layout = layout
        self.without_gradient: list[int] = []
        self.arrays: dict[int, np.ndarray[Any, Any]] = {}
        self.data_bytes = 0
        _check_names(layout, grads, what)
        for parameter in layout.parameters:
            if parameter.frozen:
                continue
            gradient = grads[parameter.name]
            if gradient is None:
                self.without_gradient.append(parameter.index)
            else:
                self.arrays[parameter.index] = _check_array(parameter, gradient, what)
                self.data_bytes += parameter.size_bytes

    def messages(self) -> Iterator[list[Piece]]:
        """The ranges, grouped into messages of at most RANGE_BYTES; at least one message, perhaps empty."""
        pieces = (
            (group, parameter.offset_bytes, self.arrays[parameter.index])
            for group, members in enumerate(self._layout.by_group)
            for parameter in members
            if parameter.index in self.arrays
        )
        return pack(pieces)


def pack(pieces: Iterable[tuple[int, int, np.ndarray[Any, Any]]]) -> Iterator[list[Piece]]:
    """Cut (group, offset in bytes, C-contiguous array) into messages of at most RANGE_BYTES.

    Neighbours share a range, a large array is sliced. Gives at least one message, perhaps empty.
    """
    message: list[Piece] = []
    message_bytes = 0
    parts: list[Any] = []  # what the open range holds: arrays and slices of arrays
    group = start = end = -1

    def close_range() -> None:
        if parts:
            # The one copy before protobuf's own: many small arrays in one go, no message per tensor.
            message.append(Piece(group, start, b"".join(parts)))
            parts.clear()

    for next_group, offset, array in pieces:
        if array.nbytes == 0:
            continue
        if parts and (next_group != group or offset != end):
            close_range()
        group, end = next_group, offset + array.nbytes
        taken = 0
        while taken < array.nbytes:
            if not parts:
                start = offset + taken
                message_bytes += RANGE_OVERHEAD_BYTES if message else 0
            room = (RANGE_BYTES - message_bytes) // array.itemsize * array.itemsize
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


def _check_array(parameter: Parameter, gradient: Any, what: str) -> np.ndarray[Any, Any]:
    array = gradient if type(gradient) is np.ndarray else np.asarray(gradient)
    if array.dtype != parameter.dtype and array.dtype.newbyteorder("<") != parameter.dtype:
        raise InvalidGradient(
            f"{what}: gradient for '{parameter.name}' has dtype {array.dtype}, expected {parameter.dtype.name}; "
            f"convert it yourself, with .astype(np.{parameter.dtype.name}), so that no precision is lost unseen",
            {"parameter": parameter.name, "got": str(array.dtype), "expected": parameter.dtype.name},
        )
    if array.shape != parameter.shape:
        raise InvalidGradient(
            f"{what}: gradient for '{parameter.name}' has shape {array.shape}, expected {parameter.shape}; "
            "push gradients in the parameter's own shape",
            {"parameter": parameter.name, "got": str(array.shape), "expected": str(parameter.shape)},
        )
    return contiguous(array, parameter.dtype)
