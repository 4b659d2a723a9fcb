"""One worker's update while it arrives: its ranges are placed, checked and counted; the run is not touched.

`Coverage` and `place_range` serve every transfer of ranges: updates, first values, and states.
"""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import unknown
from stepwell_server.core.devices.device import Device
from stepwell_server.core.encoding import Encoded, Encoding, check_allowed
from stepwell_server.core.errors import (
    GradientRequired,
    IncompleteUpdate,
    InputRequired,
    InvalidRange,
    InvalidValue,
    LimitExceeded,
    UnknownArgument,
)
from stepwell_server.core.layout import Layout, LayoutGroup
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.settings import Settings
from stepwell_server.core.tables.staged import StagedRows
from stepwell_server.core.tables.tables import Brought
from stepwell_server.core.workers import Identity

_INTERVALS_MAX = 4096
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class UpdateHeader:
    """What an update carries.

    without_gradient: indices of parameters that have none, ascending. hyperparameters: numbers by group name ("" for
    every group that has them). inputs: the vectors that it brings beside the gradient, by name. given: numbers that
    it brings, of `GIVEN_NUMBERS`. base_version: of the parameters that the gradients were taken at, where that is not
    the newest that the worker has been told of. rows: how many it brings of each table, by number. rows_only: whether
    that is all: no parameter has a gradient.
    """

    identity: Identity
    without_gradient: tuple[int, ...] = ()
    samples: float = 0.0
    hyperparameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    given: Mapping[str, float] = field(default_factory=dict)
    base_version: int | None = None
    rows: Mapping[int, int] = field(default_factory=dict)
    rows_only: bool = False


class Coverage:
    """Which parts of 0..length have arrived; parts may come in any order but only once."""

    def __init__(self, intervals_max: int = _INTERVALS_MAX) -> None:
        self.intervals: list[tuple[int, int]] = []
        self._intervals_max = intervals_max

    def add(self, begin: int, end: int, what: str) -> None:
        """Count a part; raises InvalidRange if some of it has arrived before."""
        intervals = self.intervals
        at = bisect.bisect_left(intervals, (begin, begin))
        before = intervals[at - 1] if at else None
        after = intervals[at] if at < len(intervals) else None
        if (before and before[1] > begin) or (after and after[0] < end):
            raise InvalidRange(
                f"{what} bytes {begin} to {end} overlap bytes that have arrived, expected new ones; send each byte once"
            )
        low, high = at, at
        if before and before[1] == begin:
            low, begin = at - 1, before[0]
        if after and after[0] == end:
            high, end = at + 1, after[1]
        intervals[low:high] = [(begin, end)]
        if len(intervals) > self._intervals_max:
            raise LimitExceeded(
                f"{what} arrived in more than {self._intervals_max} pieces that do not touch; send ranges in order",
                limit=self._intervals_max,
            )


class GroupTransfer:
    """One vector on its way in: placed range by range, whole when every expected byte has come once."""

    def __init__(self, layout: LayoutGroup, vector: Vector, what: str) -> None:
        """vector: of the layout's state type; what arrives is of the layout's own."""
        self.layout = layout
        self.vector = vector
        self.what = what
        # Parameters without a gradient cut the rest into as many pieces as there are parameters, at most.
        self.coverage = Coverage(max(_INTERVALS_MAX, len(layout.indices)))

    def admit(self, begin: int, size: int, dtype: np.dtype[Any] | None = None) -> None:
        """Count a range before it is placed; raises InvalidRange.

        begin: in bytes of the layout's type. size: in bytes of `dtype`, the type of what arrives; None: the layout's.
        """
        itemsize = self.layout.dtype.itemsize
        if dtype is not None and dtype != self.layout.dtype:
            if size % dtype.itemsize:
                raise InvalidRange(
                    f"{self.what}: a range of {size} bytes, expected whole elements of {dtype.name}; correct it"
                )
            size = size // dtype.itemsize * itemsize
        if size <= 0 or begin < 0 or begin % itemsize or size % itemsize or begin + size > self.layout.packed_bytes:
            raise InvalidRange(
                f"{self.what}: a range of {size} bytes at {begin}, expected whole elements of {itemsize} bytes within "
                f"{self.layout.packed_bytes}; take offsets from the layout"
            )
        self.coverage.add(begin, begin + size, self.what)

    def place(self, device: Device, begin: int, data: Any, dtype: np.dtype[Any] | None = None) -> None:
        """Copy an admitted range to its place, widened or narrowed to the vector's type; safe on any thread."""
        layout = self.layout.state
        begin = begin // self.layout.dtype.itemsize * layout.dtype.itemsize
        packed = np.frombuffer(data, np.uint8)
        device.place(
            self.vector, packed, begin, layout.packed_offsets, layout.vector_offsets, dtype or self.layout.dtype
        )

    def place_decoded(self, device: Device, begin: int, encoded: Encoded, encoding: Encoding) -> int:
        """Decode an admitted range to its place; returns the index of an element that is not finite, else -1.

        Safe on any thread. Raises InvalidEncoding.
        """
        layout = self.layout.state
        begin = begin // self.layout.dtype.itemsize * layout.dtype.itemsize
        size = encoded.elements * layout.dtype.itemsize
        place = int(np.searchsorted(layout.packed_offsets, begin, side="right")) - 1
        in_place = begin + size <= layout.packed_offsets[place + 1] and isinstance(self.vector, np.ndarray)
        if in_place:
            first = int(layout.begins[place]) + (begin - int(layout.packed_offsets[place])) // layout.dtype.itemsize
            elements = self.vector[first : first + encoded.elements]
        else:  # over padding, or into another memory
            elements = np.empty(encoded.elements, layout.dtype)
        finite = encoding.decode(encoded, elements, self.what)
        if not in_place:
            device.place(self.vector, elements.view(np.uint8), begin, layout.packed_offsets, layout.vector_offsets)
        return -1 if finite else int(np.argmin(np.isfinite(elements)))

    def expect_all(self, present: NDArray[np.bool_] | None) -> list[tuple[int, int]]:
        """Count everything as arrived at once; returns the packed intervals that this is."""
        for begin, end in _expected(self.layout, present):
            self.coverage.add(begin, end, self.what)
        return self.coverage.intervals

    def check_complete(self, present: NDArray[np.bool_] | None = None) -> None:
        """Raise IncompleteUpdate or InvalidRange unless exactly the parameters present have arrived."""
        expected = _expected(self.layout, present)
        if self.coverage.intervals == expected:
            return
        missing = _subtract(expected, self.coverage.intervals)
        if missing:
            raise IncompleteUpdate(
                f"{self.what}: {sum(end - begin for begin, end in missing)} bytes are missing, the first at "
                f"{missing[0][0]}, expected every declared parameter whole; send the rest",
                missing_bytes=sum(end - begin for begin, end in missing),
            )
        extra = _subtract(self.coverage.intervals, expected)
        raise InvalidRange(
            f"{self.what}: bytes {extra[0][0]} to {extra[0][1]} are of a parameter that is declared without a "
            "gradient, expected none; declare it or do not send it"
        )


# A staged vector: the group, and 0 for the gradient or 1, 2, ... for the header's inputs.
Key = tuple[int, int]


class Staging:
    """An update's gradients and other inputs on their way in. vectors: as `sizes` asks for them."""

    def __init__(
        self,
        run: str,
        header: UpdateHeader,
        layout: Layout,
        settings: Sequence[Settings | None],
        vectors: Mapping[Key, Vector],
        check_finite: bool,
        encoding: Encoding | None = None,
        rows: StagedRows | None = None,
    ) -> None:
        """encoding: that ranges of gradients may be in. rows: what it brings to tables."""
        self.header = header
        self.rows = rows
        # What its commit brings to tables, where several updates were combined in it.
        self.combined_rows: list[Brought] | None = None
        self.layout = layout
        self._run = run
        self._settings = settings
        self.present = _present(run, header, layout, settings)
        _check_inputs(run, header, settings)
        self.transfers = {
            (group, number): GroupTransfer(
                layout.groups[group], vector, f"run '{run}', group {group}" + (f", input {number}" if number else "")
            )
            for (group, number), vector in vectors.items()
        }
        self.nonfinite: tuple[Key, int] | None = None
        # Whether the vectors are a worker's own, which a commit reads and never writes.
        self.borrowed = False
        self.checks_finite = check_finite
        self._encoding = encoding

    @staticmethod
    def sizes(layout: Layout, settings: Sequence[Settings | None], header: UpdateHeader) -> dict[Key, Size]:
        """The vectors that staging needs, by group and input."""
        sizes: dict[Key, Size] = {}
        for number, (group, chosen) in enumerate(zip(layout.groups, settings, strict=True)):
            if chosen is None or header.rows_only:
                continue
            sizes[number, 0] = Size(group.state.elements, group.state.dtype)
            for place, name in enumerate(header.inputs, 1):
                if name in chosen.definition.inputs:
                    sizes[number, place] = sizes[number, 0]
        return sizes

    def admit(
        self,
        group: int,
        begin: int,
        size: int,
        number: int = 0,
        dtype: np.dtype[Any] | None = None,
        encoded: Encoded | None = None,
    ) -> None:
        """Count a range before it is placed; raises InvalidRange. number: 0 for gradients, else the input's.

        encoded: the range, where it is; size and dtype then do not count. Raises EncodingNotAllowed, InvalidEncoding.
        """
        if (group, number) not in self.transfers:
            known = sorted({group for group, _ in self.transfers})
            raise InvalidRange(
                f"a range for group {group}, input {number}, expected one of the groups {known} and the inputs "
                f"{list(self.header.inputs)} that the header names; frozen groups take no gradients"
            )
        transfer = self.transfers[group, number]
        if encoded is not None:
            check_allowed(None if number else self._encoding, encoded.name, transfer.what).check(encoded, transfer.what)
            size, dtype = encoded.elements * transfer.layout.dtype.itemsize, None
        transfer.admit(begin, size, dtype)

    def place(
        self,
        device: Device,
        group: int,
        begin: int,
        data: Any,
        number: int = 0,
        dtype: np.dtype[Any] | None = None,
        encoded: Encoded | None = None,
    ) -> None:
        """Copy or decode an admitted range to its place and test it; safe on any thread. Raises InvalidEncoding."""
        transfer = self.transfers[group, number]
        if encoded is not None:
            assert self._encoding is not None, "admitted"
            bad = transfer.place_decoded(device, begin, encoded, self._encoding)
            if bad >= 0 and self.checks_finite:
                self.nonfinite = ((group, number), begin + bad * transfer.layout.dtype.itemsize)
            return
        transfer.place(device, begin, data, dtype)
        arrived = dtype or transfer.layout.dtype
        if not self.checks_finite:
            return
        elements = np.frombuffer(data, arrived)
        if arrived.itemsize > transfer.vector.dtype.itemsize:
            with np.errstate(over="ignore"):
                elements = elements.astype(transfer.vector.dtype)  # what is too large for it is an infinity, too
        if not device.is_finite(elements.view(np.uint8), elements.dtype):
            finite = np.isfinite(elements)
            self.nonfinite = ((group, number), begin + int(np.argmin(finite)) * transfer.layout.dtype.itemsize)

    def leave_out(self, indices: Sequence[int]) -> None:
        """Learn that further parameters have no gradient; raises as the constructor does."""
        left_out = tuple(sorted({*self.header.without_gradient, *indices}))
        header = replace(self.header, without_gradient=left_out)
        self.present = _present(self._run, header, self.layout, self._settings)
        self.header = header

    @property
    def brought(self) -> Sequence[Brought]:
        """What its commit brings to tables."""
        if self.combined_rows is not None:
            return self.combined_rows
        return () if self.rows is None else (Brought(self.rows),)

    def become(self, header: UpdateHeader, rows: list[Brought]) -> None:
        """Stand for several updates that were combined in its vectors. rows: of all of them."""
        self.header, self.combined_rows = header, rows
        self.present = _present(self._run, header, self.layout, self._settings)

    def take(self, device: Device, shared: Mapping[Key, Vector]) -> None:
        """Take the whole update from vectors of the groups' own types, and test it; safe on any thread.

        shared: where they are the staging's own vectors, nothing is copied.
        """
        for key, transfer in self.transfers.items():
            layout, source = transfer.layout, shared[key]
            expected = transfer.expect_all(self.present_in(key[0]))
            tested, intervals = layout, expected
            if source is not transfer.vector:
                # What was copied is what is applied: the worker may write to its own at any time.
                tested = layout.state
                factor = tested.dtype.itemsize // layout.dtype.itemsize
                intervals = [(begin * factor, end * factor) for begin, end in expected]
                for begin, end in expected:
                    for place in layout.places(begin, end):
                        data = layout.view(source, place).reshape(-1).view(np.uint8)
                        transfer.place(device, int(layout.packed_offsets[place]), data)
            if self.checks_finite and not device.finite_pieces(transfer.vector, *tested.pieces(intervals)):
                self.nonfinite = (key, self._first_nonfinite(layout, transfer.vector, expected))

    def _first_nonfinite(self, layout: LayoutGroup, vector: Vector, intervals: Sequence[tuple[int, int]]) -> int:
        """The packed offset of a parameter that is not finite; the first one's where none is any more."""
        places = [place for begin, end in intervals for place in layout.places(begin, end)]
        bad = [place for place in places if not np.isfinite(layout.state.view(vector, place)).all()]
        return int(layout.packed_offsets[(bad or places)[0]])

    def inputs_of(self, group: int) -> dict[str, Vector]:
        """The vectors that arrived for a group, by the names that its optimizer knows; the gradient under "grad"."""
        names = ("grad", *self.header.inputs)
        return {
            names[number]: transfer.vector for (owner, number), transfer in self.transfers.items() if owner == group
        }

    @property
    def vectors(self) -> list[Vector]:
        return [transfer.vector for transfer in self.transfers.values()]

    def give_up(self) -> None:
        """Its memory is somebody else's from now on."""
        self.transfers, self.rows = {}, None

    def check_complete(self) -> None:
        """Raise IncompleteUpdate or InvalidRange unless exactly what the header declares has arrived."""
        for (group, _), transfer in self.transfers.items():
            transfer.check_complete(self.present_in(group))
        if self.rows is not None:
            self.rows.check_complete()

    @property
    def is_finite(self) -> bool:
        """Whether no NaN or infinity was found, where it is looked for."""
        return self.nonfinite is None and (self.rows is None or self.rows.nonfinite is None)

    def present_in(self, group: int) -> NDArray[np.bool_] | None:
        """Which parameters of a group have gradients, None for all."""
        return None if self.present is None else self.present[list(self.layout.groups[group].indices)]

    def nonfinite_owner(self) -> str:
        """The name of a parameter whose gradient is not finite, or of a table."""
        if self.nonfinite is None:
            assert self.rows is not None
            assert self.rows.nonfinite is not None
            return self.rows.nonfinite
        (number, _), at = self.nonfinite
        group = self.layout.groups[number]
        place = int(np.searchsorted(group.packed_offsets, at, side="right")) - 1
        return self.layout.parameters[group.indices[place]].spec.name


def _present(
    run: str, header: UpdateHeader, layout: Layout, settings: Iterable[Settings | None]
) -> NDArray[np.bool_] | None:
    if not (0.0 <= header.samples < float("inf")):
        raise InvalidValue(f"run '{run}': samples is {header.samples}, expected a finite number of 0 or more; give one")
    if header.rows_only and (header.without_gradient or header.inputs):
        raise InvalidValue(
            f"run '{run}': the update says that it brings rows only, and names parameters without a gradient or "
            "inputs, expected neither; leave them out"
        )
    if not header.without_gradient or header.rows_only:
        return None
    present = np.ones(len(layout.parameters), np.bool_)
    for index in header.without_gradient:
        layout.check_index(index)
        present[index] = False
    for group, chosen in zip(layout.groups, settings, strict=True):
        if chosen is None or chosen.step_per_parameter:
            continue
        absent = [layout.parameters[index].spec.name for index in group.indices if not present[index]]
        if absent:
            raise GradientRequired(
                f"run '{run}': no gradient for {absent[:_NAMES_SHOWN]}, expected one for each parameter of group "
                f"'{group.name}': {chosen.definition.name} in flavor {chosen.flavor} counts one step for all of "
                "them; send zeros or use the torch flavor",
                parameters=absent[:_NAMES_SHOWN],
            )
    return present


def _check_inputs(run: str, header: UpdateHeader, settings: Iterable[Settings | None]) -> None:
    """Raise InputRequired for what an optimizer needs and the update lacks, UnknownArgument for what nobody takes."""
    for name, value in header.given.items():
        if not math.isfinite(value) or (name == "loss_scale" and value <= 0):
            raise InvalidValue(f"run '{run}': {name} is {value}, expected a finite number; send one", argument=name)
    if header.rows_only:
        return
    taken: set[str] = set()
    for chosen in settings:
        if chosen is None:
            continue
        taken |= chosen.definition.inputs.keys()
        lacking = sorted(chosen.needed.difference(header.inputs, header.given))
        if lacking:
            raise InputRequired(
                f"run '{run}': the update has no {lacking[0]}, expected one: optimizer '{chosen.definition.name}' "
                "needs it beside the gradient; send it with every update",
                missing=lacking[0],
            )
    for name in header.inputs:
        if name not in taken:
            raise unknown(UnknownArgument, f"run '{run}': input", name, taken)
    if len(set(header.inputs)) < len(header.inputs):
        raise InvalidValue(f"run '{run}': an input is named twice in {header.inputs}, expected each once")


def _expected(layout: LayoutGroup, present: NDArray[np.bool_] | None) -> list[tuple[int, int]]:
    offsets = layout.packed_offsets
    if present is None:
        return [(0, layout.packed_bytes)] if layout.packed_bytes else []
    merged: list[tuple[int, int]] = []
    for place in np.flatnonzero(present):
        begin, end = int(offsets[place]), int(offsets[place + 1])
        if begin == end:
            continue
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return merged


def _subtract(whole: list[tuple[int, int]], parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of `whole` is not in `parts`; both sorted and disjoint."""
    left = []
    following = 0
    for begin, end in whole:
        while following < len(parts) and parts[following][1] <= begin:
            following += 1
        at = following
        while at < len(parts) and parts[at][0] < end:
            if parts[at][0] > begin:
                left.append((begin, parts[at][0]))
            begin = max(begin, parts[at][1])
            at += 1
        following = max(following, at - 1)
        if begin < end:
            left.append((begin, end))
    return left
