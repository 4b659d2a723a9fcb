"""Where each parameter lies: groups as flat vectors, and the packed form in which ranges travel.

A group holds the parameters of one user group and one dtype. In its vector each parameter begins on a 64-byte
boundary; in its packed form parameters follow one another without padding. Offsets and sizes are in bytes.
"""

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.errors import InvalidName, InvalidSpec, LimitExceeded, UnknownParameter

ALIGNMENT_BYTES = 64
DEFAULT_GROUP = "default"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16)
# Types that travel but are not computed in: their state is float32.
HALVES = DTYPES[2:]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARAMETER_NAME_BYTES_MAX = 1024
_DIMENSIONS_MAX = 32
_BYTES_MAX = 1 << 62


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter before it has a place. shape in elements, outermost first; () for a single number."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Placed:
    """Where a parameter lies, in bytes."""

    spec: ParameterSpec
    group: int
    vector_offset: int
    packed_offset: int


@dataclass(frozen=True)
class LayoutGroup:
    """One flat vector.

    indices: its parameters' places in the run's list, ascending. shapes: theirs, in the same order. packed_offsets has
    one more entry than there are parameters: the end.

    A run's state has such a layout for every vector: a slot may have other shapes than the parameters, and where they
    have 16 bits the state has 32.
    """

    name: str
    dtype: np.dtype[Any]
    frozen: bool
    indices: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    vector_bytes: int
    vector_offsets: NDArray[np.int64]
    packed_offsets: NDArray[np.int64]

    @property
    def elements(self) -> int:
        """The length of the vector, padding included."""
        return self.vector_bytes // self.dtype.itemsize

    @property
    def packed_bytes(self) -> int:
        return int(self.packed_offsets[-1])

    @cached_property
    def begins(self) -> NDArray[np.int64]:
        """Where each parameter begins in the vector, in elements."""
        begins: NDArray[np.int64] = self.vector_offsets // self.dtype.itemsize
        return begins

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """How many elements each parameter has."""
        sizes: NDArray[np.int64] = np.diff(self.packed_offsets) // self.dtype.itemsize
        return sizes

    def view(self, vector: NDArray[Any], place: int) -> NDArray[Any]:
        """The parameter at a place as an array in its own shape, in the vector's memory."""
        begin = int(self.begins[place])
        return vector[begin : begin + int(self.sizes[place])].reshape(self.shapes[place])

    def places(self, begin: int, end: int) -> range:
        """The places of the parameters that lie whole from packed offset `begin` to `end`."""
        first, after = np.searchsorted(self.packed_offsets, [begin, end])
        return range(int(first), int(after))

    def pieces(self, intervals: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Packed intervals of whole parameters as begins and ends in the vector, in elements, without padding."""
        places = np.array([place for begin, end in intervals for place in self.places(begin, end)], np.int64)
        places = places[self.sizes[places] > 0]
        begins = self.begins[places]
        ends = begins + self.sizes[places]
        # Neighbours without padding between them are one piece.
        apart = np.flatnonzero(begins[1:] != ends[:-1])
        firsts, lasts = np.concatenate([[0], apart + 1]), np.concatenate([apart, [len(places) - 1]])
        return (begins[firsts], ends[lasts]) if len(places) else (begins, ends)

    @cached_property
    def state(self) -> "LayoutGroup":
        """The layout of the group's parameters in the state: the same elements, of a type that is computed in."""
        return self if self.dtype not in HALVES else self.with_shapes(self.shapes, np.dtype(np.float32))

    def with_shapes(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> "LayoutGroup":
        """A vector beside this one: for each parameter an array of another shape."""
        offsets = _offsets(np.array([math.prod(shape) * dtype.itemsize for shape in shapes], np.int64))
        return replace(self, dtype=dtype, shapes=tuple(shapes), **offsets)


@dataclass(frozen=True)
class Layout:
    """Where every parameter of a run lies."""

    parameters: tuple[Placed, ...]
    groups: tuple[LayoutGroup, ...]

    @cached_property
    def indices(self) -> dict[str, int]:
        """The place of each parameter in the list, by name."""
        return {placed.spec.name: index for index, placed in enumerate(self.parameters)}

    def check_index(self, index: int) -> None:
        if index >= len(self.parameters):
            raise UnknownParameter(
                f"parameter index {index} is not known, expected 0 to {len(self.parameters) - 1}; see the layout",
                got=index,
            )


def build_layout(parameters: Sequence[ParameterSpec], groups: Sequence[tuple[str, Sequence[str], bool]]) -> Layout:
    """Place parameters, in order, into groups.

    groups: (name, globs over parameter names, frozen); the first match wins, the rest is group "default". Raises
    InvalidName, InvalidSpec for names or groups that occur twice or match nothing, LimitExceeded for absurd sizes.
    """
    _check(parameters)
    assigned: dict[tuple[int, int], list[int]] = {}
    matchers = [[re.compile(fnmatch.translate(glob)) for glob in globs] for _, globs, _ in groups]
    for index, parameter in enumerate(parameters):
        position = next(
            (place for place, globs in enumerate(matchers) if any(glob.match(parameter.name) for glob in globs)),
            len(groups),
        )
        assigned.setdefault((position, DTYPES.index(parameter.dtype)), []).append(index)
    _check_groups(groups, {position for position, _ in assigned})

    placed: list[Placed | None] = [None] * len(parameters)
    built = []
    for number, ((position, dtype), indices) in enumerate(sorted(assigned.items())):
        name, frozen = (groups[position][0], groups[position][2]) if position < len(groups) else (DEFAULT_GROUP, False)
        offsets = _offsets(np.array([parameters[index].size_bytes for index in indices], np.int64))
        vector_offsets, packed_offsets = offsets["vector_offsets"], offsets["packed_offsets"]
        for place, index in enumerate(indices):
            placed[index] = Placed(parameters[index], number, int(vector_offsets[place]), int(packed_offsets[place]))
        built.append(
            LayoutGroup(
                name=name,
                dtype=DTYPES[dtype],
                frozen=frozen,
                indices=tuple(indices),
                shapes=tuple(parameters[index].shape for index in indices),
                **offsets,
            )
        )
    return Layout(tuple(place for place in placed if place is not None), tuple(built))


def check_name(kind: str, name: str) -> str:
    """Return a run's, worker's, group's or checkpoint's name; raises InvalidName."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{kind} name {name[:200]!r} is not valid, expected a letter or digit and then at most 127 letters, "
            "digits, '.', '_' or '-'; choose such a name",
            got=name[:200],
        )
    return name


def _offsets(sizes: NDArray[np.int64]) -> dict[str, Any]:
    """Where arrays of these sizes in bytes lie: the fields of a LayoutGroup."""
    padded = -(-sizes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    vector_offsets = np.concatenate([[0], np.cumsum(padded)]).astype(np.int64)
    return {
        "vector_bytes": int(vector_offsets[-1]),
        "vector_offsets": vector_offsets[:-1].copy(),
        "packed_offsets": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    }


def _check(parameters: Sequence[ParameterSpec]) -> None:
    seen = set()
    total = 0
    for parameter in parameters:
        name = parameter.name
        if not 1 <= len(name.encode()) <= _PARAMETER_NAME_BYTES_MAX or "\0" in name:
            raise InvalidName(
                f"parameter name {name[:200]!r} is not valid, expected 1 to {_PARAMETER_NAME_BYTES_MAX} bytes of UTF-8 "
                "without NUL; choose such a name",
                got=name[:200],
            )
        if name in seen:
            raise InvalidSpec(f"parameter '{name}' occurs twice, expected each name once; rename one", parameter=name)
        seen.add(name)
        if any(length < 0 for length in parameter.shape):
            raise InvalidSpec(
                f"parameter '{name}' has shape {parameter.shape}, expected lengths of 0 or more; correct it",
                parameter=name,
            )
        if parameter.dtype not in DTYPES:
            raise InvalidSpec(
                f"parameter '{name}' has dtype {parameter.dtype}, expected one of "
                f"{', '.join(each.name for each in DTYPES)}; convert it",
                parameter=name,
            )
        total += parameter.size_bytes
        if len(parameter.shape) > _DIMENSIONS_MAX or total > _BYTES_MAX:
            raise LimitExceeded(
                f"parameter '{name}' with shape {parameter.shape[:8]} is too large, expected at most {_DIMENSIONS_MAX} "
                f"dimensions and {_BYTES_MAX} bytes in all; use a smaller shape",
                parameter=name,
            )


def _check_groups(groups: Sequence[tuple[str, Sequence[str], bool]], used: set[int]) -> None:
    seen = {DEFAULT_GROUP}
    for position, (name, globs, _) in enumerate(groups):
        check_name("group", name)
        if name in seen:
            raise InvalidSpec(
                f"group '{name}' occurs twice or is called 'default', expected other names; rename it", group=name
            )
        seen.add(name)
        if position not in used:
            raise InvalidSpec(
                f"group '{name}' has no parameters: {list(globs)} match none that an earlier group has not taken, "
                "expected some; correct the globs or the order",
                group=name,
            )
