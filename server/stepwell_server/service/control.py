"""The control service: making, describing, changing and storing runs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from stepwell.v1 import control_pb2 as pb
from stepwell.v1 import control_pb2_grpc, run_pb2
from stepwell.wire import CONTRACT, RANGE_BYTES, decode_part, decode_schedule
from stepwell_server import __version__
from stepwell_server.core.encoding import GRADIENT_ENCODINGS, PARAMETER_ENCODINGS
from stepwell_server.core.errors import InvalidValue, LimitExceeded, MalformedRequest
from stepwell_server.core.layout import check_name
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.policies import POLICIES
from stepwell_server.core.schedules import Schedule, list_schedules, preview
from stepwell_server.core.transforms import TRANSFORMS
from stepwell_server.core.wrappers import WRAPPERS
from stepwell_server.service import encode
from stepwell_server.service.hosted import HostedRun
from stepwell_server.service.runs import Claim, Runs
from stepwell_server.service.state import read_state, send_state
from stepwell_server.service.streams import Peer
from stepwell_server.storage.directory import CheckpointInfo

T = TypeVar("T")

_PREVIEW_STEPS_MAX = 100_000
_PAGE_SIZE = 100
_PAGE_SIZE_MAX = 1000


class ControlService(control_pb2_grpc.ControlServiceServicer):
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def GetServer(self, request: pb.GetServerRequest, context: Any) -> pb.GetServerResponse:
        limits = self._runs.limits
        return pb.GetServerResponse(
            version=__version__,
            contract=CONTRACT,
            message_bytes_max=limits.message_bytes,
            range_bytes=RANGE_BYTES,
            memory_bytes_max=limits.memory_bytes,
            outstanding_updates_max=limits.outstanding_updates_count,
            word_seconds=limits.word_seconds,
        )

    async def CreateRun(self, requests: AsyncIterator[pb.CreateRunRequest], context: Any) -> None:
        with Peer(context, self._runs.limits.silence_seconds) as peer:
            await self._create(peer, peer.messages(requests))

    async def _create(self, peer: Peer, pieces: AsyncIterator[pb.CreateRunRequest]) -> None:
        async def say(creation: pb.Creation, **parts: Any) -> None:
            await peer.write(pb.CreateRunResponse(creation=creation, **parts))

        name, message = await self._read_spec(pieces)
        spec = await self._runs.machine.run(encode.decode_spec, message, self._runs.limits.parameters_count)
        async with self._runs.claim(name, spec, lambda: say(pb.CREATION_WAIT)) as claim:
            if isinstance(claim, HostedRun):
                await say(pb.CREATION_EXISTS, run=encode.encode_run(claim.run))
                return
            for layout in encode.encode_layout(claim.layout, claim.spec.parsed_tables):
                await say(pb.CREATION_SEND_VALUES, layout=layout)
            await self._read_values(pieces, claim)
            await say(pb.CREATION_WORKING)
            hosted = await self._runs.complete(claim)
            await say(pb.CREATION_CREATED, run=encode.encode_run(hosted.run))

    async def Join(self, request: pb.JoinRequest, context: Any) -> None:
        check_name("worker", request.worker)
        hosted = self._runs.get(request.run)
        joined, place, lease_seconds = await hosted.join(request.worker, request.lease_seconds)
        membership: pb.Membership | None = pb.Membership(
            run_uid=joined.uid,
            generation=joined.generation,
            epoch=joined.epoch,
            version=joined.version,
            last_sequence=joined.last_sequence,
            last_epoch=joined.last_epoch,
            lease_seconds=lease_seconds,
            place=encode.encode_place(place),
        )
        with Peer(context, self._runs.limits.silence_seconds) as peer:
            for layout in encode.encode_layout(hosted.run.layout, hosted.run.spec.parsed_tables):
                await peer.write(pb.JoinResponse(membership=membership, layout=layout))
                membership = None

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        place = self._runs.get(request.run).renew(request.worker, request.epoch)
        return pb.HeartbeatResponse(place=encode.encode_place(place))

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveResponse:
        await self._runs.get(request.run).leave(request.worker, request.epoch)
        return pb.LeaveResponse()

    async def Barrier(self, request: pb.BarrierRequest, context: Any) -> None:
        check_name("barrier", request.barrier)
        hosted = self._runs.get(request.run)
        arriving = hosted.commits.barrier(request.barrier, request.worker, request.epoch, request.call)
        waiting = asyncio.ensure_future(arriving)
        try:
            with Peer(context, self._runs.limits.silence_seconds) as peer:
                while not waiting.done():
                    await asyncio.wait({waiting}, timeout=self._runs.limits.word_seconds)
                    if not waiting.done():
                        await peer.write(pb.BarrierResponse())
                await waiting
                await peer.write(pb.BarrierResponse(released=True))
        finally:
            waiting.cancel()

    async def GetLayout(self, request: pb.GetLayoutRequest, context: Any) -> None:
        run = self._runs.get(request.run).run
        uid = run.uid
        with Peer(context, self._runs.limits.silence_seconds) as peer:
            for layout in encode.encode_layout(run.layout, run.spec.parsed_tables):
                await peer.write(pb.GetLayoutResponse(run_uid=uid, layout=layout))
                uid = b""

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=encode.encode_run(self._runs.get(request.run).run))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        names, token = _page(self._runs.names(), request.page_size, request.page_token, lambda name: name)
        return pb.ListRunsResponse(
            runs=[encode.encode_run(self._runs.get(name).run) for name in names], next_page_token=token
        )

    async def UpdateRun(self, request: pb.UpdateRunRequest, context: Any) -> pb.UpdateRunResponse:
        hosted = self._runs.get(request.run)
        await hosted.change(
            request.group,
            encode.decode_values(request.hyperparameters),
            encode.decode_schedules(request.schedules),
            request.schedules_removed,
            request.keep_clock,
            request.etag,
            decode_part(request.policy) if request.HasField("policy") else None,
        )
        return pb.UpdateRunResponse(run=encode.encode_run(hosted.run))

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:
        hosted = self._runs.get(request.run)
        await hosted.report(dict(request.metrics))
        return pb.ReportResponse(run=encode.encode_run(hosted.run))

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: Any) -> pb.DeleteRunResponse:
        await self._runs.delete(request.run)
        return pb.DeleteRunResponse()

    async def ListOptimizers(self, request: pb.ListOptimizersRequest, context: Any) -> pb.ListOptimizersResponse:
        return pb.ListOptimizersResponse(
            optimizers=[encode.encode_optimizer(definition) for _, definition in sorted(OPTIMIZERS.items())]
        )

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Any) -> pb.ListSchedulesResponse:
        return pb.ListSchedulesResponse(schedules=[encode.encode_schedule_entry(entry) for entry in list_schedules()])

    async def ListParts(self, request: pb.ListPartsRequest, context: Any) -> pb.ListPartsResponse:
        return pb.ListPartsResponse(
            transforms=[encode.encode_part_entry(definition) for _, definition in sorted(TRANSFORMS.items())],
            wrappers=[encode.encode_part_entry(definition) for _, definition in sorted(WRAPPERS.items())],
            gradient_encodings=map(encode.encode_encoding_entry, GRADIENT_ENCODINGS.values()),
            parameter_encodings=map(encode.encode_encoding_entry, PARAMETER_ENCODINGS.values()),
            policies=[encode.encode_policy_entry(policy) for _, policy in sorted(POLICIES.items())],
        )

    async def PreviewSchedule(self, request: pb.PreviewScheduleRequest, context: Any) -> pb.PreviewScheduleResponse:
        if request.steps > _PREVIEW_STEPS_MAX:
            raise LimitExceeded(f"steps is {request.steps}, expected at most {_PREVIEW_STEPS_MAX}; preview fewer")
        if not abs(request.initial) < float("inf"):
            raise InvalidValue(f"initial is {request.initial}, expected a finite number; give one")
        schedule = Schedule.parse(decode_schedule(request.schedule))
        values = await self._runs.machine.run(preview, schedule, request.initial, request.steps)
        return pb.PreviewScheduleResponse(values=values)

    async def GetState(self, request: pb.GetStateRequest, context: Any) -> None:
        with Peer(context, self._runs.limits.silence_seconds) as peer:
            await send_state(self._runs, request.run, peer)

    async def SetState(self, requests: AsyncIterator[pb.SetStateRequest], context: Any) -> pb.SetStateResponse:
        with Peer(context, self._runs.limits.silence_seconds) as peer:
            hosted = await read_state(self._runs, peer.messages(requests))
        return pb.SetStateResponse(run=encode.encode_run(hosted.run))

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Any) -> pb.SaveCheckpointResponse:
        info = await self._runs.save_checkpoint(request.run, request.checkpoint)
        return pb.SaveCheckpointResponse(checkpoint=_encode_checkpoint(info))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsResponse:
        stored = [_encode_checkpoint(info) for info in await self._runs.list_checkpoints(request.run)]
        # Oldest first; the time written orders them, the name tells apart those of the same instant.
        ordered, token = _page(
            stored, request.page_size, request.page_token, lambda c: f"{c.created_seconds:020.6f} {c.name}"
        )
        return pb.ListCheckpointsResponse(checkpoints=ordered, next_page_token=token)

    async def RestoreCheckpoint(
        self, request: pb.RestoreCheckpointRequest, context: Any
    ) -> pb.RestoreCheckpointResponse:
        hosted = await self._runs.restore_checkpoint(request.run, request.checkpoint)
        return pb.RestoreCheckpointResponse(run=encode.encode_run(hosted.run))

    async def _read_spec(self, requests: AsyncIterator[pb.CreateRunRequest]) -> tuple[str, run_pb2.Spec]:
        name, spec, size = "", run_pb2.Spec(), 0
        async for request in requests:
            name = name or request.run
            size += request.spec.ByteSize()
            if size > self._runs.limits.spec_bytes:
                raise LimitExceeded(
                    f"the spec has more than {self._runs.limits.spec_bytes} bytes; use fewer or shorter names",
                    limit=self._runs.limits.spec_bytes,
                )
            spec.MergeFrom(request.spec)
            if request.spec_complete:
                return name, spec
        raise MalformedRequest("the creation ended inside its spec, expected it whole; send all of it")

    async def _read_values(self, requests: AsyncIterator[pb.CreateRunRequest], claim: Claim) -> None:
        machine = self._runs.machine
        async for request in requests:
            for part in request.values:
                data = part.data  # each read copies
                if part.group >= len(claim.transfers):
                    raise MalformedRequest(
                        f"values for group {part.group}, expected one of the layout; take it from there"
                    )
                encode.check_plain(part)
                transfer = claim.transfers[part.group]
                transfer.admit(part.packed_offset_bytes, len(data))
                await machine.run_sized(
                    len(data), transfer.place, machine.memory.device, part.packed_offset_bytes, data
                )
            if request.values_complete:
                return
        raise MalformedRequest("the creation ended inside its values, expected all of them; send the rest")


def _page(items: Sequence[T], size: int, token: str, key: Any) -> tuple[list[T], str]:
    """The items after `token` in order, and the token of the next page. A token is the key of the last item seen."""
    following = sorted((item for item in items if not token or key(item) > token), key=key)
    page = following[: min(size or _PAGE_SIZE, _PAGE_SIZE_MAX)]
    return page, key(page[-1]) if len(page) < len(following) else ""


def _encode_checkpoint(info: CheckpointInfo) -> pb.Checkpoint:
    return pb.Checkpoint(
        name=info.name, version=info.version, created_seconds=info.created_seconds, size_bytes=info.size_bytes
    )
