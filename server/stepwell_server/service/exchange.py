"""One exchange: an update on its way in, and parameters on their way out. The same code serves every data call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from stepwell.payload import Buffer, Outgoing
from stepwell.v1 import data_pb2
from stepwell.wire import decode_dtype
from stepwell_server.core.encoding import Encoded, Encoding
from stepwell_server.core.errors import MalformedRequest, RunReplaced
from stepwell_server.core.memory import Vector
from stepwell_server.core.run import Hold
from stepwell_server.core.update import Staging
from stepwell_server.core.workers import Answer
from stepwell_server.service import outgoing, rows
from stepwell_server.service.encode import decode_header, decode_identity
from stepwell_server.service.hosted import HostedRun, placed_bytes
from stepwell_server.service.machine import INLINE_BYTES_MAX, Machine
from stepwell_server.service.runs import Runs
from stepwell_server.service.sharing import Session
from stepwell_server.service.turns import Turn

M = TypeVar("M", bound=Message)


class Exchange:
    """Stages one update at a time and commits it; what is staged is freed on `close`, whatever has happened."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._hosted: HostedRun | None = None
        self._staging: Staging | None = None
        self._stored: Answer | None = None
        # Of an update that is here already, and waits.
        self._attached: asyncio.Future[Answer] | None = None
        self._placing: asyncio.Task[None] | None = None
        self._turn: Turn | None = None
        # Where rows of the update may lie.
        self._session: Session | None = None

    @property
    def staging(self) -> bool:
        """Whether an update is half here."""
        return self._staging is not None

    @property
    def stored(self) -> Answer | None:
        """The answer of the update on its way in, where it was made before."""
        return self._stored

    async def stage(
        self, message: data_pb2.Stage, datas: Sequence[Buffer], rows_datas: Sequence[Buffer], *, whole: bool
    ) -> None:
        """Take a piece of an update, with the data of its ranges and rows. Raises what is wrong; it is then gone.

        whole: whether nothing follows.
        """
        if message.HasField("header"):
            await self._begin(message.header, message.shared_memory, whole)
        if self._stored is not None or self._attached is not None:
            return
        if self._staging is None or self._hosted is None:
            raise MalformedRequest(
                "a stage message came before a header, expected one in an update's first piece; send it"
            )
        ranges = []
        for part, data in zip(message.ranges, datas, strict=True):
            dtype = decode_dtype(part.dtype) if part.dtype else None
            encoded = Encoded(part.encoding, part.elements, data, part.scales, part.indices) if part.encoding else None
            self._staging.admit(part.group, part.packed_offset_bytes, len(data), part.input, dtype, encoded)
            ranges.append((part.group, part.packed_offset_bytes, data, part.input, dtype, encoded))
        if message.rows:
            arrived = rows.admit(self._staging, message.rows, rows_datas, self._session)
            await self._placed()
            await self._hosted.place_rows(self._staging, arrived)
            if not ranges:
                return
        await self._placed()
        placing = self._hosted.place(self._staging, ranges)
        if placed_bytes(ranges) <= INLINE_BYTES_MAX:
            await placing
        else:  # on a thread, while the next message is read
            self._placing = asyncio.create_task(placing)

    async def commit(self, message: data_pb2.Commit) -> Answer:
        """Commit what was staged, or say what became of it before."""
        if self._stored is not None:
            stored, self._stored = self._stored, None
            return stored
        if self._attached is not None:
            attached, self._attached = self._attached, None
            return await asyncio.shield(attached)
        if self._staging is None or self._hosted is None:
            raise MalformedRequest(
                "a commit came before a stage, expected the update first; send its header and ranges"
            )
        if message.HasField("identity") and decode_identity(message.identity) != self._staging.header.identity:
            raise MalformedRequest("a commit names another update, expected the staged one; send that one's identity")
        await self._placed()
        if message.without_gradient:
            self._staging.leave_out(message.without_gradient)
        staging, self._staging = self._staging, None
        if self._hosted.run.coordinator.policy.round_size > 1:
            self._end_turn()  # it waits for others, who need the turn
        try:
            return await self._hosted.commit(staging)
        finally:
            self._end_turn()

    async def select(self, selection: data_pb2.Selection) -> "Parameters | PulledRows":
        """Hold the parameters that were asked for, and fetch the rows; the caller closes what it gets."""
        hosted = self._runs.get(selection.run)
        if selection.run_uid and selection.run_uid != hosted.run.uid:
            raise RunReplaced(
                f"run '{selection.run}' was made anew, expected the uid of the present one; get it again for its layout"
            )
        newer_than = selection.if_newer_than if selection.HasField("if_newer_than") else None
        session = None
        if selection.shared_memory:
            session = self._runs.sharing.find(selection.shared_memory, hosted)
        machine = self._runs.machine
        wanted = await rows.want(machine, hosted.run.tables, selection.rows, session) if selection.rows else []
        try:
            asked = [(each.number, each.ids, each.out) for each in wanted]
            if selection.rows_only:
                version, newer = await hosted.pull_rows(asked, newer_than)
                return PulledRows(machine, version, newer, wanted)
            if session is not None:
                if selection.point not in ("", "parameters"):
                    raise MalformedRequest(
                        f"a selection by shared memory names point '{selection.point}', expected none, since what is "
                        "shared are the parameters; select it without shared memory"
                    )
                version, vectors = await session.hold(newer_than, asked)
                return PulledRows(machine, version, vectors is not None, wanted, vectors or ())
            pieces = outgoing.select(hosted.run.layout, selection.parameters)
            hold, points = await hosted.hold_point(selection.point or "parameters", newer_than, asked)
        except BaseException:
            rows.free(machine.memory, wanted)
            raise
        encoding = hosted.run.spec.parsed_parameter_encoding if selection.encoded else None
        return Parameters(machine, hosted, hold, pieces, points, encoding, wanted)

    def close(self) -> None:
        """Free what is staged, once nothing is written to it any more. Does not wait: a wait could be cancelled."""
        hosted, staging, placing = self._hosted, self._staging, self._placing
        self._staging = self._stored = self._attached = self._placing = self._session = None
        self._end_turn()
        if staging is None or hosted is None:
            return

        def discard(placed: asyncio.Task[None] | None) -> None:
            if placed is not None and not placed.cancelled():
                placed.exception()  # heard of: nobody waits any more for what is wrong with a range
            hosted.discard(staging)

        if placing is None or placing.done():
            discard(placing)
        else:
            placing.add_done_callback(discard)

    async def _begin(self, message: data_pb2.UpdateHeader, token: bytes, whole: bool) -> None:
        """token: of the shared memory that holds the update, b"" if it comes in ranges."""
        self.close()
        header = decode_header(message)
        self._hosted = self._runs.get(header.identity.run)
        self._attached = self._hosted.commits.attach(header.identity)
        self._stored = self._hosted.run.recall(header.identity) if self._attached is None else None
        if self._attached is not None or self._stored is not None:
            return
        self._hosted.renew(header.identity.worker, header.identity.epoch)
        if token or not whole:
            self._turn = await self._runs.machine.turns.take()
        if token:
            self._session = session = self._runs.sharing.find(token, self._hosted)
            session.let_go()
            self._staging = await self._hosted.stage_shared(header, session.inputs, session.vectors)
        else:
            self._staging = await self._hosted.stage(header)

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.release()
            self._turn = None

    async def _placed(self) -> None:
        if self._placing is not None:
            await self._placing
            self._placing = None


class PulledRows:
    """Rows on their way out, and parameters, if any, that their worker reads where they lie."""

    def __init__(
        self,
        machine: Machine,
        version: int,
        newer: bool,
        wanted: Sequence[rows.WantedTable],
        vectors: Sequence[data_pb2.SharedVector] = (),
    ) -> None:
        """newer: whether the run is beyond the version that was asked about; nothing follows if not."""
        self._machine, self._wanted, self._newer = machine, wanted, newer
        self.header = data_pb2.ParametersHeader(version=version, unchanged=not newer, vectors=vectors)

    async def messages(self, response: type[M]) -> AsyncIterator[tuple[Outgoing[M], bool]]:
        """The messages, and whether each is the last; at least one."""
        following = rows.messages(response, self._wanted if self._newer else ())
        present = next(following, None) or Outgoing(response())
        for after in following:
            yield present, False
            present = after
        yield present, True

    def close(self) -> None:
        """The rows' memory is free; the worker's session holds the version, not this."""
        wanted, self._wanted = self._wanted, ()
        rows.free(self._machine.memory, wanted)


class Parameters:
    """A version on its way out."""

    def __init__(
        self,
        machine: Machine,
        hosted: HostedRun,
        hold: Hold | None,
        pieces: list[outgoing.Piece],
        points: Sequence[Vector | None],
        encoding: Encoding | None = None,
        wanted: Sequence[rows.WantedTable] = (),
    ) -> None:
        """points: by group, vectors to send in place of the parameters; freed on `close`. encoding: to send them in.

        wanted: rows of the same version; freed on `close`, too.
        """
        self._points = points
        self._wanted = wanted
        self._encoding = encoding
        self._machine = machine
        self._layout = hosted.run.layout
        self._hold = hold
        self._pieces = pieces if hold is not None else []
        self.header = data_pb2.ParametersHeader(
            version=hosted.run.version if hold is None else hold.version,
            unchanged=hold is None,
            data_bytes=sum(size for _, _, size in self._pieces),
        )

    async def messages(self, response: type[M]) -> AsyncIterator[tuple[Outgoing[M], bool]]:
        """The messages with the ranges, and whether each is the last; at least one. The next is made meanwhile."""
        if self._hold is None:
            yield Outgoing(response()), True
            return
        held = [group[""].vector for group in self._hold.groups]
        vectors = [own if point is None else point for own, point in zip(held, self._points, strict=True)]
        cut = list(outgoing.messages(self._pieces, self._encoding)) or [[]]
        following = self._read(response, vectors, cut[0])
        for number in range(len(cut)):
            ready = await following
            last = number + 1 == len(cut)
            if not last:
                following = self._read(response, vectors, cut[number + 1])
            yield ready, last and not self._wanted
        if self._wanted:
            for message in rows.messages(response, self._wanted):
                yield message, False
            yield Outgoing(response()), True

    def close(self) -> None:
        """Let the version go."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None
            self._machine.memory.free([point for point in self._points if point is not None])
        wanted, self._wanted = self._wanted, ()
        rows.free(self._machine.memory, wanted)

    def _read(
        self, response: type[Any], vectors: list[np.ndarray[Any, Any]], message: list[outgoing.Piece]
    ) -> asyncio.Future[Any]:
        def read() -> Any:
            device, groups = self._machine.memory.device, self._layout.groups
            return Outgoing(
                response(), [outgoing.read(device, groups, vectors, piece, self._encoding) for piece in message]
            )

        size = sum(size for _, _, size in message)
        if self._encoding is not None and self._encoding.is_cast:
            size //= 2  # what is written, which is at most half
        if size <= INLINE_BYTES_MAX:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            done.set_result(read())
            return done
        return asyncio.ensure_future(self._machine.run(read))
