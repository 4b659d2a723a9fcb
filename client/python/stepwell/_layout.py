"""Where parameters lie: groups, each one packed vector, and the parameters in them; and what rows the tables have.

Offsets here count in the packed vector, without the padding that the server's flat vectors have between parameters:
consecutive parameters of a group are contiguous, and that is what travels. Shared memory alone has the flat vectors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from stepwell.errors import Internal, UnknownParameter, UnknownTable
from stepwell.v1 import run_pb2
from stepwell.wire import decode_dtype


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters of one dtype that share an optimizer."""

    name: str
    dtype: np.dtype[Any]
    packed_bytes: int
    frozen: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. index: its place in the layout; offset_bytes: where it begins in its group without padding;
    vector_offset_bytes: where in the group's flat vector."""

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    group: int
    offset_bytes: int
    vector_offset_bytes: int
    size_bytes: int
    frozen: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table of rows. index: its place in the spec; width: how many elements a row has."""

    name: str
    index: int
    width: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


class Layout:
    """A whole layout. by_group: the parameters of each group, in the order of their offsets; trained: those without the
    frozen ones. size_bytes: of all parameters. tables: by name, in order."""

    def __init__(
        self,
        groups: Iterable[run_pb2.LayoutGroup],
        parameters: Iterable[run_pb2.LayoutParameter],
        tables: Iterable[run_pb2.LayoutTable] = (),
    ) -> None:
        self.groups = tuple(
            Group(group.name, decode_dtype(group.dtype), group.packed_bytes, group.frozen) for group in groups
        )
        self.parameters = tuple(self._parameter(index, parameter) for index, parameter in enumerate(parameters))
        self.by_name: Mapping[str, Parameter] = {parameter.name: parameter for parameter in self.parameters}
        by_group: list[list[Parameter]] = [[] for _ in self.groups]
        for parameter in self.parameters:
            by_group[parameter.group].append(parameter)
        self.by_group = tuple(tuple(sorted(members, key=lambda member: member.offset_bytes)) for members in by_group)
        self.tables: Mapping[str, Table] = {
            table.name: Table(table.name, index, table.width, decode_dtype(table.dtype))
            for index, table in enumerate(tables)
        }
        self._check()
        self.size_bytes = sum(group.packed_bytes for group in self.groups)
        # What every step goes through, one entry a parameter, so that a step of many small ones is quick.
        self.places = [(each.name, each.shape, each.dtype, each.group, each.offset_bytes) for each in self.parameters]
        self.trained = [(each.name, each.shape, each.dtype, each.index) for each in self.parameters if not each.frozen]
        self.trained_names = frozenset(name for name, *_ in self.trained)
        # The same column by column: two lists are compared far quicker than their items one by one.
        trained = [each for each in self.parameters if not each.frozen]
        self.trained_order = [each.name for each in trained]
        self.trained_shapes = [each.shape for each in trained]
        self.trained_dtypes = [each.dtype for each in trained]
        self.trained_indices = [each.index for each in trained]
        self.trained_bytes = sum(each.size_bytes for each in trained)
        # Of each group, whether its flat vector has no padding between parameters.
        self.dense = [
            all(each.vector_offset_bytes == each.offset_bytes for each in members) for members in self.by_group
        ]

    def select(self, names: Iterable[str]) -> list[Parameter]:
        """The parameters of these names, in this order; raises UnknownParameter."""
        selected = []
        for name in names:
            if name not in self.by_name:
                raise UnknownParameter(
                    f"got parameter {name!r:.200}, expected one of {listed(self.by_name)}; choose one of them",
                    {"got": str(name)[:200]},
                )
            selected.append(self.by_name[name])
        return selected

    def table(self, name: object) -> Table:
        """The table of this name; raises UnknownTable."""
        table = self.tables.get(name) if isinstance(name, str) else None
        if table is None:
            raise UnknownTable(
                f"got table {name!r:.200}, expected one of {listed(self.tables)}; choose one of them",
                {"got": str(name)[:200]},
            )
        return table

    def _parameter(self, index: int, parameter: run_pb2.LayoutParameter) -> Parameter:
        if parameter.group >= len(self.groups):
            raise Internal(f"got a layout with group {parameter.group} of {len(self.groups)}; see the server's log")
        group = self.groups[parameter.group]
        shape = tuple(parameter.shape)
        size_bytes = prod(shape) * group.dtype.itemsize
        return Parameter(
            name=parameter.name,
            index=index,
            shape=shape,
            dtype=group.dtype,
            group=parameter.group,
            offset_bytes=parameter.packed_offset_bytes,
            vector_offset_bytes=parameter.vector_offset_bytes,
            size_bytes=size_bytes,
            frozen=group.frozen,
        )

    def _check(self) -> None:
        """That the parameters of each group follow one another without a gap: the views into buffers rest on it."""
        for group, members in zip(self.groups, self.by_group, strict=True):
            end = 0
            for parameter in members:
                if parameter.offset_bytes != end:
                    raise Internal(f"got a layout with a gap before '{parameter.name}', expected none; report this")
                end += parameter.size_bytes
            if end != group.packed_bytes:
                raise Internal(f"got a layout whose group '{group.name}' holds {end} of {group.packed_bytes} bytes")


class LayoutPieces:
    """Puts a layout together from its pieces; a collector for GetLayout."""

    def __init__(self) -> None:
        self._groups: list[run_pb2.LayoutGroup] = []
        self._parameters: list[run_pb2.LayoutParameter] = []
        self._tables: list[run_pb2.LayoutTable] = []
        self.complete = False

    def add(self, piece: run_pb2.Layout) -> None:
        self._groups.extend(piece.groups)
        self._parameters.extend(piece.parameters)
        self._tables.extend(piece.tables)
        self.complete = self.complete or piece.last

    def layout(self) -> Layout:
        if not self.complete:
            raise Internal("got a layout without its last piece, expected it whole; see the server's log")
        return Layout(self._groups, self._parameters, self._tables)


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names for a message, the first few."""
    names = list(names)
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more if names else "(none)"
