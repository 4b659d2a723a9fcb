"""A run's whole state as data: what get_state returns and set_state takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

from stepwell._layout import Layout, Parameter, listed
from stepwell._packing import contiguous, pack
from stepwell._receiving import BufferPool, Bytes
from stepwell.errors import Internal, InvalidValue
from stepwell.v1 import control_pb2

Array = np.ndarray[Any, Any]

SCALAR_DTYPE: Final = np.dtype("<f8")
STEPS_DTYPE: Final = np.dtype("<i8")


@dataclass(frozen=True)
class State:
    """Everything that training goes on from, all at one version.

    parameters: arrays by name. slots: by parameter, then by slot; most have the parameter's shape. Parameters of 16
    bits and their slots are float32 here, as the server keeps them. scalars: the float64 numbers that some optimizers
    keep per parameter. steps: how many commits have touched each parameter.
    version: the run's. samples: the sum of the committed updates' samples, the clock of schedules that count them.
    """

    parameters: Mapping[str, Array]
    slots: Mapping[str, Mapping[str, Array]]
    scalars: Mapping[str, Mapping[str, float]]
    steps: Mapping[str, int]
    version: int
    samples: float


class Key(NamedTuple):
    """Which array of a state: the group's index, the kind, and the name of the slot or scalar."""

    group: int
    kind: control_pb2.StateKind
    name: str


class StatePieces:
    """Puts a state together from its pieces; a collector for GetState."""

    def __init__(self, layout: Layout, pool: BufferPool) -> None:
        self._layout, self._pool = layout, pool
        self._header = control_pb2.StateHeader()
        self._buffers: dict[Key, Bytes] = {}
        self._filled: dict[Key, int] = {}
        self._shapes: dict[tuple[int, str], list[tuple[int, ...]]] = {}

    @property
    def filled_bytes(self) -> int:
        return sum(self._filled.values())

    def add(self, message: control_pb2.GetStateResponse) -> None:
        if message.HasField("header"):
            self._header = message.header
        for slot in message.slot_shapes:
            self._shapes[slot.group, slot.name] = [tuple(shape.lengths) for shape in slot.shapes]
        for piece in message.ranges:
            key = Key(piece.range.group, piece.kind, piece.name)
            buffer = self._buffer(key)
            data = np.frombuffer(piece.range.data, np.uint8)  # the field is read once: each read is a copy
            start = piece.range.packed_offset_bytes
            if start + data.nbytes > buffer.nbytes:
                raise Internal(f"got bytes to {start + data.nbytes} of {key}, expected {buffer.nbytes}; report this")
            buffer[start : start + data.nbytes] = data
            self._filled[key] += data.nbytes

    def state(self) -> State:
        """The state, once all has come."""
        for key, buffer in self._buffers.items():
            if self._filled[key] != buffer.nbytes:
                raise Internal(f"got {self._filled[key]} bytes of {key}, expected {buffer.nbytes}; report this")
        layout = self._layout
        parameters: dict[str, Array] = {}
        slots: dict[str, dict[str, Array]] = {parameter.name: {} for parameter in layout.parameters}
        scalars: dict[str, dict[str, float]] = {parameter.name: {} for parameter in layout.parameters}
        steps: dict[str, int] = {}
        for parameter in layout.parameters:
            buffer = self._buffer(Key(parameter.group, control_pb2.STATE_KIND_PARAMETERS, ""))
            dtype = state_dtype(parameter.dtype)
            begin = parameter.offset_bytes // parameter.dtype.itemsize * dtype.itemsize
            parameters[parameter.name] = np.ndarray(parameter.shape, dtype, buffer, begin)
        for (group, kind, name), buffer in self._buffers.items():
            members = layout.by_group[group]
            if kind == control_pb2.STATE_KIND_SLOT:
                begin = 0
                for parameter, shape in zip(members, self._shapes_of(group, name), strict=True):
                    dtype = state_dtype(parameter.dtype)
                    slots[parameter.name][name] = np.ndarray(shape, dtype, buffer, begin)
                    begin += prod(shape) * dtype.itemsize
            elif kind == control_pb2.STATE_KIND_SCALAR:
                for parameter, number in zip(members, buffer.view(SCALAR_DTYPE).tolist(), strict=True):
                    scalars[parameter.name][name] = number
            elif kind == control_pb2.STATE_KIND_STEPS:
                for parameter, count in zip(members, buffer.view(STEPS_DTYPE).tolist(), strict=True):
                    steps[parameter.name] = count
        return State(parameters, slots, scalars, steps, self._header.version, self._header.samples)

    def _buffer(self, key: Key) -> Bytes:
        if key not in self._buffers:
            if key.group >= len(self._layout.groups):
                raise Internal(f"got a piece of group {key.group} of {len(self._layout.groups)}; report this")
            if key.kind in (control_pb2.STATE_KIND_PARAMETERS, control_pb2.STATE_KIND_SLOT):
                elements = sum(prod(shape) for shape in self._shapes_of(key.group, key.name))
                size_bytes = elements * state_dtype(self._layout.groups[key.group].dtype).itemsize
            else:
                size_bytes = 8 * len(self._layout.by_group[key.group])
            self._buffers[key], self._filled[key] = self._pool.take(size_bytes), 0
        return self._buffers[key]

    def _shapes_of(self, group: int, name: str) -> list[tuple[int, ...]]:
        """The shapes of a slot, or of the parameters themselves, in the group's order."""
        return self._shapes.get((group, name)) or [parameter.shape for parameter in self._layout.by_group[group]]


def state_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which the server keeps parameters of a type, and their slots."""
    return np.dtype("<f4") if dtype.itemsize == 2 else dtype


def state_bytes(state: State) -> int:
    """How much data a state holds, without what is one number per parameter."""
    slots = sum(array.nbytes for slots in state.slots.values() for array in slots.values())
    return slots + sum(array.nbytes for array in state.parameters.values())


def state_requests(
    run: str, state: State, layout: Layout, expected_version: int | None
) -> Iterator[control_pb2.SetStateRequest]:
    """The state in messages; raises InvalidValue where it does not fit the layout."""
    _check_parameters(state, layout)
    request = control_pb2.SetStateRequest(
        run=run,
        expected_version=expected_version,
        header=control_pb2.StateHeader(version=state.version, samples=state.samples),
    )
    for key, arrays in _arrays(state, layout):
        for ranges in pack(arrays):
            for piece in ranges:
                request.ranges.add(kind=key.kind, name=key.name, range=piece.range(data=True))
            yield request
            request = control_pb2.SetStateRequest()


def _arrays(state: State, layout: Layout) -> Iterator[tuple[Key, Iterator[tuple[int, int, Array]]]]:
    """Every array of the state, as the pieces that `pack` takes."""
    for group, members in enumerate(layout.by_group):
        key = Key(group, control_pb2.STATE_KIND_PARAMETERS, "")
        yield key, _checked(members, state.parameters, "parameter")
        for slot in _names(members, state.slots, "slots"):
            key = Key(group, control_pb2.STATE_KIND_SLOT, slot)
            yield key, _packed(members, {each.name: state.slots[each.name][slot] for each in members}, f"slot '{slot}'")
        for scalar in _names(members, state.scalars, "scalars"):
            numbers = [state.scalars[parameter.name][scalar] for parameter in members]
            yield Key(group, control_pb2.STATE_KIND_SCALAR, scalar), iter([(group, 0, np.array(numbers, SCALAR_DTYPE))])
        counted = [parameter for parameter in members if parameter.name in state.steps]
        if counted and len(counted) != len(members):
            raise InvalidValue(f"state: got steps of {len(counted)} of {len(members)} parameters, expected all or none")
        counts = np.array([state.steps[parameter.name] for parameter in counted], STEPS_DTYPE)
        yield Key(group, control_pb2.STATE_KIND_STEPS, ""), iter([(group, 0, counts)])


def _checked(members: tuple[Parameter, ...], arrays: Mapping[str, Any], what: str) -> Iterator[tuple[int, int, Array]]:
    for parameter in members:
        array = np.asarray(arrays[parameter.name])
        if array.shape != parameter.shape:
            raise InvalidValue(
                f"state: {what} of '{parameter.name}' is {array.dtype} of shape {array.shape}, expected "
                f"{state_dtype(parameter.dtype).name} of shape {parameter.shape}; give the state of a run with the "
                "same parameters"
            )
    return _packed(members, arrays, what)


def _packed(members: tuple[Parameter, ...], arrays: Mapping[str, Any], what: str) -> Iterator[tuple[int, int, Array]]:
    """One array after another, as they lie without padding. The server sees whether slots have the right shapes."""
    begin = 0
    for parameter in members:
        array, dtype = np.asarray(arrays[parameter.name]), state_dtype(parameter.dtype)
        if array.dtype.newbyteorder("<") != dtype:
            raise InvalidValue(
                f"state: {what} of '{parameter.name}' is {array.dtype} of shape {array.shape}, expected "
                f"{dtype.name} of shape {parameter.shape}; give the state of a run with the same parameters"
            )
        yield parameter.group, begin, contiguous(array, dtype)
        begin += array.nbytes


def _names(members: tuple[Parameter, ...], by_parameter: Mapping[str, Mapping[str, Any]], what: str) -> list[str]:
    names = [sorted(by_parameter.get(parameter.name, {})) for parameter in members]
    if any(other != names[0] for other in names):
        raise InvalidValue(f"state: got different {what} within one group, expected the same; copy them from get_state")
    return names[0] if names else []


def _check_parameters(state: State, layout: Layout) -> None:
    given, wanted = set(state.parameters), set(layout.by_name)
    if given != wanted:
        raise InvalidValue(
            f"state: {listed(sorted(wanted - given))} missing and {listed(sorted(given - wanted))} unknown, "
            "expected exactly the run's; give the state of a run with the same parameters"
        )
