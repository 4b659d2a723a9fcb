"""Parts of flat vectors on their way out, cut into messages of at most one range size."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stepwell.payload import Buffer
from stepwell.v1 import run_pb2
from stepwell.wire import RANGE_BYTES, encode_dtype
from stepwell_server.core.devices.device import Bytes, Device
from stepwell_server.core.encoding import Encoding
from stepwell_server.core.errors import InvalidValue
from stepwell_server.core.layout import Layout, LayoutGroup
from stepwell_server.core.memory import Vector

Piece = tuple[int, int, int]  # group, begin and size in packed bytes


def select(layout: Layout, indices: Sequence[int]) -> list[Piece]:
    """The packed intervals of some parameters, or of all for none; neighbours are joined."""
    if not indices:
        return [(number, 0, group.packed_bytes) for number, group in enumerate(layout.groups) if group.packed_bytes]
    pieces: list[Piece] = []
    before = -1
    for index in indices:
        layout.check_index(index)
        if index <= before:
            raise InvalidValue(
                f"parameter index {index} follows {before}, expected ascending ones; sort them, each once"
            )
        before = index
        placed = layout.parameters[index]
        size = placed.spec.size_bytes
        if not size:
            continue
        if pieces and pieces[-1][0] == placed.group and sum(pieces[-1][1:]) == placed.packed_offset:
            pieces[-1] = (placed.group, pieces[-1][1], pieces[-1][2] + size)
        else:
            pieces.append((placed.group, placed.packed_offset, size))
    return pieces


def messages(pieces: Sequence[Piece], encoding: Encoding | None = None) -> Iterator[list[Piece]]:
    """The same bytes in lists that fit one message each; encoded ones take at most half of what they are."""
    message: list[Piece] = []
    room = room_max = RANGE_BYTES if encoding is None else 2 * RANGE_BYTES
    for group, begin, size in pieces:
        while size:
            part = min(size, room)
            message.append((group, begin, part))
            # In steps of the largest element, so that none of the pieces that follow is cut within one.
            begin, size, room = begin + part, size - part, room - math.ceil(part / 8) * 8
            if not room:
                yield message
                message, room = [], room_max
    if message:
        yield message


def read(
    device: Device,
    groups: Sequence[LayoutGroup],
    vectors: Sequence[Vector],
    piece: Piece,
    encoding: Encoding | None = None,
) -> tuple[run_pb2.Range, list[Buffer]]:
    """A range, and its data: where it lies in host memory as it travels, that itself, to be used while it is held."""
    number, begin, size = piece
    group, vector = groups[number], vectors[number]
    ranged = run_pb2.Range(group=number, packed_offset_bytes=begin)
    cast = encoding.dtype_for(group.dtype) if encoding else None
    if cast is not None:
        ranged.dtype = encode_dtype(cast)
        return ranged, [_elements(device, group, vector, begin, size, cast)]
    if encoding is not None and encoding.name == "int8":
        elements = _elements(device, group, vector, begin, size, vector.dtype).view(vector.dtype)
        codes, scales = encoding.encode(elements)
        ranged.encoding, ranged.elements, ranged.scales = encoding.name, len(elements), scales.tobytes()
        return ranged, [codes]
    if group.dtype != vector.dtype:
        return ranged, [_elements(device, group, vector, begin, size, group.dtype)]
    place = int(np.searchsorted(group.packed_offsets, begin, side="right")) - 1
    if begin + size <= group.packed_offsets[place + 1]:
        start = int(group.vector_offsets[place]) + begin - int(group.packed_offsets[place])
        return ranged, [device.read(vector, start, start + size)]
    packed = np.empty(size, np.uint8)
    device.gather(vector, packed, begin, group.packed_offsets, group.vector_offsets)
    return ranged, [packed]


def _elements(device: Device, group: LayoutGroup, vector: Vector, begin: int, size: int, dtype: np.dtype[Any]) -> Bytes:
    """A piece of the parameters as `dtype`; begin and size count in their own type."""
    wide = group.state
    packed = np.empty(size // group.dtype.itemsize * dtype.itemsize, np.uint8)
    begin = begin // group.dtype.itemsize * wide.dtype.itemsize
    device.gather(vector, packed, begin, wide.packed_offsets, wide.vector_offsets, dtype)
    return packed


def dense(elements: int, dtype: np.dtype[Any]) -> LayoutGroup:
    """A layout of plain numbers without padding: what steps and scalars have."""
    size = elements * dtype.itemsize
    return LayoutGroup("", dtype, False, (), ((elements,),), size, np.zeros(1, np.int64), np.array([0, size], np.int64))
