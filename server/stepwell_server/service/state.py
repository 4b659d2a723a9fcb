"""Whole states on the wire: every array of a run at one version, out and in."""

from collections.abc import AsyncIterator

import numpy as np

from stepwell.v1 import control_pb2 as pb
from stepwell.wire import RANGE_BYTES
from stepwell_server.core.errors import InvalidRange, InvalidValue, MalformedRequest
from stepwell_server.core.group import vector_layouts
from stepwell_server.core.layout import LayoutGroup
from stepwell_server.core.memory import Vector
from stepwell_server.core.run import GroupArrays, Run
from stepwell_server.core.settings import Settings
from stepwell_server.core.update import GroupTransfer
from stepwell_server.service import outgoing
from stepwell_server.service.encode import check_plain
from stepwell_server.service.hosted import HostedRun
from stepwell_server.service.runs import Runs
from stepwell_server.service.streams import Peer

_INT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.float64)

Key = tuple[int, int, str]  # kind, group, name


async def send_state(runs: Runs, name: str, peer: Peer) -> None:
    """Stream a run's state, all of one version."""
    hosted = runs.get(name)
    hold, plain, groups, _ = await hosted.hold_state()
    settings = [group.settings for group in hosted.run.groups]
    try:
        header: pb.StateHeader | None = pb.StateHeader(
            version=plain["version"],
            samples=plain["samples"],
            run_uid=hosted.run.uid,
            generation=plain["generation"],
        )
        if not groups:
            await peer.write(pb.GetStateResponse(header=header))
        layouts = hosted.run.layout.groups
        for number, (layout, chosen, arrays) in enumerate(zip(layouts, settings, groups, strict=True)):
            for (kind, _, array), (shape, vector) in _arrays(number, layout, chosen, arrays).items():
                for begin in range(0, max(shape.packed_bytes, 1), RANGE_BYTES):
                    size = min(RANGE_BYTES, shape.packed_bytes - begin)
                    response = pb.GetStateResponse(header=header)
                    header = None
                    # An array without elements is there, too.
                    if not begin and shape.shapes != layout.shapes and kind == pb.STATE_KIND_SLOT:
                        response.slot_shapes.append(_slot_shapes(number, array, shape))
                    part = response.ranges.add(kind=kind, name=array).range
                    if size:
                        ranged, data = await runs.machine.run_sized(
                            size, outgoing.read, runs.machine.memory.device, [shape], [vector], (0, begin, size)
                        )
                        part.packed_offset_bytes, part.data = ranged.packed_offset_bytes, b"".join(data)
                    part.group = number
                    await peer.write(response)
    finally:
        hold.release()


async def read_state(runs: Runs, requests: AsyncIterator[pb.SetStateRequest]) -> HostedRun:
    """Take a state from the stream, whole, and go over to it."""
    first = await anext(requests, None)
    if first is None or not first.HasField("header"):
        raise MalformedRequest("a state came without a header, expected one in the first message; send it")
    hosted = runs.get(first.run)
    header = first.header
    if not 0.0 <= header.samples < float("inf"):
        raise InvalidValue(f"samples is {header.samples}, expected a finite number of 0 or more; give one")
    expected = first.expected_version if first.HasField("expected_version") else None
    hosted.run.check_version(expected)
    if hosted.run.tables:
        raise InvalidValue(
            f"run '{first.run}' has tables, expected none: a state on the wire holds no rows, and a run goes back "
            "whole or not at all; save a checkpoint and restore that"
        )
    groups = await _allocate(runs, hosted.run)
    taken = False
    try:
        transfers = {
            key: GroupTransfer(
                shape, vector, f"run '{first.run}', {pb.StateKind.Name(key[0])} {key[2]} of group {number}"
            )
            for number, (layout, group, arrays) in enumerate(
                zip(hosted.run.layout.groups, hosted.run.groups, groups, strict=True)
            )
            for key, (shape, vector) in _arrays(number, layout, group.settings, arrays).items()
        }
        await _place(runs, transfers, first)
        async for request in requests:
            await _place(runs, transfers, request)
        for transfer in transfers.values():
            transfer.check_complete()
        for arrays in groups:
            _check(arrays)
        await runs.replace_state(first.run, header.version, header.samples, groups, expected_version=expected)
        taken = True
        return hosted
    finally:
        if not taken:
            runs.machine.memory.free([vector for arrays in groups for vector in arrays.vectors.values()])


def _arrays(
    number: int, layout: LayoutGroup, settings: Settings | None, arrays: GroupArrays
) -> dict[Key, tuple[LayoutGroup, Vector]]:
    """Every array of a group's state with the layout of its packed form."""
    count = len(layout.indices)
    layouts = vector_layouts(layout, settings)
    found: dict[Key, tuple[LayoutGroup, Vector]] = {
        (pb.STATE_KIND_SLOT if slot else pb.STATE_KIND_PARAMETERS, number, slot): (layouts[slot], vector)
        for slot, vector in arrays.vectors.items()
    }
    for scalar, values in arrays.scalars.items():
        found[pb.STATE_KIND_SCALAR, number, scalar] = (outgoing.dense(count, _FLOAT64), values)
    found[pb.STATE_KIND_STEPS, number, ""] = (outgoing.dense(count, _INT64), arrays.steps)
    return found


def _slot_shapes(number: int, slot: str, layout: LayoutGroup) -> pb.SlotShapes:
    return pb.SlotShapes(group=number, name=slot, shapes=[pb.Shape(lengths=shape) for shape in layout.shapes])


async def _allocate(runs: Runs, run: Run) -> list[GroupArrays]:
    settings = [group.settings for group in run.groups]
    sizes = Run.state_sizes(run.layout, settings)
    flat = [size for group in sizes for size in group.values()]
    vectors = iter(runs.machine.memory.allocate(flat, f"run '{run.name}': a new state"))
    return [
        GroupArrays(
            {slot: next(vectors) for slot in names},
            np.zeros(len(layout.indices), np.int64),
            {name: np.zeros(len(layout.indices)) for name in (chosen.scalars if chosen else ())},
        )
        for layout, chosen, names in zip(run.layout.groups, settings, sizes, strict=True)
    ]


async def _place(runs: Runs, transfers: dict[Key, GroupTransfer], request: pb.SetStateRequest) -> None:
    for part in request.ranges:
        key = (part.kind, part.range.group, part.name)
        transfer = transfers.get(key)
        if transfer is None:
            raise InvalidRange(
                f"the run has no array {pb.StateKind.Name(part.kind)} '{part.name[:200]}' in group "
                f"{part.range.group}, expected those that GetState sends; send these"
            )
        check_plain(part.range)
        data = part.range.data  # each read copies
        transfer.admit(part.range.packed_offset_bytes, len(data))
        await runs.machine.run_sized(
            len(data), transfer.place, runs.machine.memory.device, part.range.packed_offset_bytes, data
        )


def _check(arrays: GroupArrays) -> None:
    if (arrays.steps < 0).any():
        raise InvalidValue("steps are below 0, expected 0 or more; send the steps that GetState sends")
    if not all(np.isfinite(values).all() for values in arrays.scalars.values()):
        raise InvalidValue("scalars are not finite, expected finite numbers; send those that GetState sends")
