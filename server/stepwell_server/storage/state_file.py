"""The arrays of a state as one safetensors file, one tensor per parameter and slot, so that any reader can use it:

    parameters/<parameter>          slots/<slot>/<parameter>            C order, no padding
    steps/<group>  int64            scalars/<scalar>/<group>  float64   one number per parameter of the group
    tables/<table>/<array>          accumulated/...                     see `core/tables/stored.py`

The file is 8 bytes with the header's length, the header, and the tensors one after another. It is read with the library
but written here: the library's writer would hold a copy of everything in memory.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from stepwell_server.core.devices.device import Access, HostMemory
from stepwell_server.core.errors import StorageFailed
from stepwell_server.core.layout import Layout, LayoutGroup
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.run import GroupArrays
from stepwell_server.core.tables import StoredArray

Allocate = Callable[[list[Size]], list[Vector]]

HOST = HostMemory()
DIGEST_BYTES = 32

_DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8"}
# The library reads no longer header.
_HEADER_BYTES_MAX = 100_000_000
_PIECE_BYTES = 4 << 20
# Shorter parts are collected: a system call for each would cost more than the copy.
_SMALL_BYTES = 64 << 10

_quote = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class GroupPlan:
    """What a group's state consists of.

    layouts: how each vector lies, the parameters under "", then the slots. scalars: their names.
    """

    layouts: Mapping[str, LayoutGroup]
    scalars: tuple[str, ...]


# An array beside those of the groups: name, dtype and shape.
Declared = tuple[str, str, Sequence[int]]


class TensorReader:
    """What an open file holds beside the groups' arrays."""

    def __init__(self, tensors: Any) -> None:
        self._tensors = tensors

    def read(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Rows of an array, in its first dimension."""
        array: NDArray[Any] = self._tensors.get_slice(name)[begin:end]
        return array


Load = Callable[[TensorReader], None]


class StateMismatch(Exception):
    """The file is not a safetensors file with the tensors that the run's description asks for."""


def write_state(
    path: Path,
    layout: Layout,
    plans: Sequence[GroupPlan],
    groups: Sequence[GroupArrays],
    access: Access = HOST,
    extras: Sequence[StoredArray] = (),
) -> tuple[int, str]:
    """Write and fsync the file, without a copy of the arrays; its size in bytes and its blake2b digest.

    access: how to read vectors. extras: what else is stored.
    """
    blocks = _blocks(plans, groups, extras)
    header = _header(layout, blocks)
    with path.open("xb", buffering=0) as file:
        stream = _HashedFile(file)
        stream.write(memoryview(len(header).to_bytes(8, "little")))
        stream.write(memoryview(header))
        del header
        for block in blocks:
            _write_block(stream, block, access)
        stream.flush()
        os.fsync(file.fileno())
    return stream.size_bytes, stream.digest.hexdigest()


def hash_state(path: Path) -> str:
    """The digest that `write_state` gave, of what the file holds now."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def read_state(
    path: Path,
    layout: Layout,
    plans: Sequence[GroupPlan],
    allocate: Allocate,
    access: Access = HOST,
    extras: Sequence[Declared] = (),
    load: Load | None = None,
) -> list[GroupArrays]:
    """Read the arrays into vectors from `allocate`, with a few MiB besides.

    extras: what else is in the file. load: gets that, once the groups have been read.
    Raises StateMismatch before it allocates, and what `allocate` and `load` raise.
    """
    try:
        with safe_open(path, framework="numpy") as tensors:
            _check_tensors(tensors, layout, plans, extras)
            groups = _read_groups(tensors, layout, plans, allocate, access)
            if load is not None:
                load(TensorReader(tensors))
            return groups
    except SafetensorError as error:
        raise StateMismatch(f"safetensors says: {error}") from error


@dataclass(frozen=True)
class _Block:
    """Tensors that lie together in the file. group: whose vector it is, None for an array that is one tensor."""

    name: str
    array: NDArray[Any]
    group: LayoutGroup | None

    @property
    def size_bytes(self) -> int:
        return self.array.nbytes if self.group is None else self.group.packed_bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype


def _blocks(
    plans: Sequence[GroupPlan], groups: Sequence[GroupArrays], extras: Sequence[StoredArray]
) -> list[_Block | StoredArray]:
    blocks: list[_Block | StoredArray] = [*extras]
    for number, (plan, arrays) in enumerate(zip(plans, groups, strict=True)):
        blocks += [_Block(_vector_name(slot), vector, plan.layouts[slot]) for slot, vector in arrays.vectors.items()]
        blocks.append(_Block(_steps_name(number), np.ascontiguousarray(arrays.steps), None))
        for scalar, values in arrays.scalars.items():
            blocks.append(_Block(_scalar_name(scalar, number), np.ascontiguousarray(values), None))
    # The widest numbers first, so that every tensor lies aligned for readers that map the file.
    return sorted(blocks, key=lambda block: -block.dtype.itemsize)


def _header(layout: Layout, blocks: Sequence[_Block | StoredArray]) -> bytearray:
    header = bytearray(b"{")
    start = 0
    for block in blocks:
        dtype = _DTYPES[block.dtype.name]
        for name, shape, begin, end in _tensors(layout, block):
            place = [start + begin, start + end]
            header += f'{_quote(name)}:{{"dtype":"{dtype}","shape":{list(shape)},"data_offsets":{place}}},'.encode()
        start += block.size_bytes
    header[-1:] = b"}"
    header += b" " * (-len(header) % 8)
    if len(header) > _HEADER_BYTES_MAX:
        raise StorageFailed(
            f"the parameters' names make a safetensors header of {len(header)} bytes, expected at most "
            f"{_HEADER_BYTES_MAX}; use shorter names or fewer parameters"
        )
    return header


def _tensors(layout: Layout, block: _Block | StoredArray) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Name, shape, and where it begins and ends within the block, in bytes."""
    if isinstance(block, StoredArray):
        yield block.name, block.shape, 0, block.size_bytes
        return
    if block.group is None:
        yield block.name, block.array.shape, 0, block.array.nbytes
        return
    offsets = block.group.packed_offsets.tolist()
    for place, index in enumerate(block.group.indices):
        name = block.name + layout.parameters[index].spec.name
        yield name, block.group.shapes[place], offsets[place], offsets[place + 1]


def _write_block(stream: "_HashedFile", block: _Block | StoredArray, access: Access) -> None:
    if isinstance(block, StoredArray):
        written = 0
        for part in block.parts():
            stream.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            written += part.nbytes
        assert written == block.size_bytes, f"{block.name} is {written} bytes"
        return
    if block.group is None:
        stream.write(block.array.view(np.uint8).data)
        return
    begins = block.group.vector_offsets
    ends = begins + np.diff(block.group.packed_offsets)
    # Neighbours without padding between them are written as one.
    cuts = np.flatnonzero(begins[1:] != ends[:-1])
    for begin, end in zip(begins[[0, *(cuts + 1)]].tolist(), ends[[*cuts, -1]].tolist(), strict=True):
        for at in range(begin, end, _PIECE_BYTES):
            stream.write(access.read(block.array, at, min(at + _PIECE_BYTES, end)))


class _HashedFile:
    """Writes in pieces of a few MiB and hashes them, both without the GIL."""

    def __init__(self, file: io.FileIO) -> None:
        self.digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.size_bytes = 0
        self._file = file
        self._small = bytearray()

    def write(self, content: memoryview) -> None:
        if len(content) < _SMALL_BYTES:
            self._small += content
            if len(self._small) >= _PIECE_BYTES:
                self.flush()
            return
        self.flush()
        for begin in range(0, len(content), _PIECE_BYTES):
            self._put(content[begin : begin + _PIECE_BYTES])

    def flush(self) -> None:
        self._put(memoryview(self._small))
        self._small = bytearray()

    def _put(self, piece: memoryview) -> None:
        self.digest.update(piece)
        self.size_bytes += len(piece)
        while piece:
            piece = piece[self._file.write(piece) :]


def _check_tensors(tensors: Any, layout: Layout, plans: Sequence[GroupPlan], extras: Sequence[Declared]) -> None:
    expected: dict[str, tuple[str, list[int]]] = {name: (_DTYPES[dtype], list(shape)) for name, dtype, shape in extras}
    for number, (group, plan) in enumerate(zip(layout.groups, plans, strict=True)):
        for slot, own in plan.layouts.items():
            for index, lengths in zip(own.indices, own.shapes, strict=True):
                name = _vector_name(slot) + layout.parameters[index].spec.name
                expected[name] = (_DTYPES[own.dtype.name], list(lengths))
        count = [len(group.indices)]
        expected[_steps_name(number)] = ("I64", count)
        expected |= {_scalar_name(scalar, number): ("F64", count) for scalar in plan.scalars}
    found = set(tensors.keys())
    for name in sorted(found ^ expected.keys()):
        raise StateMismatch(f"tensor '{name}' is {'not expected' if name in found else 'missing'}")
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get_slice(name)
        if (tensor.get_dtype(), tensor.get_shape()) != (dtype, shape):
            raise StateMismatch(
                f"tensor '{name}' is {tensor.get_dtype()} {tensor.get_shape()}, expected {dtype} {shape}"
            )


def _read_groups(
    tensors: Any, layout: Layout, plans: Sequence[GroupPlan], allocate: Allocate, access: Access
) -> list[GroupArrays]:
    allocated = iter(allocate([Size(own.elements, own.dtype) for plan in plans for own in plan.layouts.values()]))
    groups = []
    for number, plan in enumerate(plans):
        vectors = {slot: next(allocated) for slot in plan.layouts}
        for slot, own in plan.layouts.items():
            sizes = own.sizes.tolist()
            for begin, size, index, own_shape in zip(own.begins.tolist(), sizes, own.indices, own.shapes, strict=True):
                name = _vector_name(slot) + layout.parameters[index].spec.name
                _read_tensor(tensors, name, own_shape, vectors[slot][begin : begin + size], access)
        scalars = {scalar: tensors.get_tensor(_scalar_name(scalar, number)) for scalar in plan.scalars}
        groups.append(GroupArrays(vectors, tensors.get_tensor(_steps_name(number)), scalars))
    return groups


def _read_tensor(tensors: Any, name: str, shape: tuple[int, ...], target: Vector, access: Access) -> None:
    if target.nbytes <= _PIECE_BYTES:
        access.write(target, 0, tensors.get_tensor(name).reshape(-1))
        return
    tensor = tensors.get_slice(name)
    position = 0
    for cut in _pieces(shape, _PIECE_BYTES // target.itemsize):
        piece = tensor[cut].reshape(-1)
        access.write(target, position, piece)
        position += len(piece)


def _pieces(shape: tuple[int, ...], elements_max: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into parts that are contiguous in C order, each of at most `elements_max` elements."""
    axis = next(axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= elements_max)
    step = elements_max // math.prod(shape[axis + 1 :])
    for outer in np.ndindex(shape[:axis]):
        for begin in range(0, shape[axis], step):
            yield (*(slice(at, at + 1) for at in outer), slice(begin, min(begin + step, shape[axis])))


def _vector_name(slot: str) -> str:
    """What comes before the parameter's name; "" are the parameters themselves."""
    return f"slots/{slot}/" if slot else "parameters/"


def _steps_name(group: int) -> str:
    return f"steps/{group}"


def _scalar_name(scalar: str, group: int) -> str:
    return f"scalars/{scalar}/{group}"
