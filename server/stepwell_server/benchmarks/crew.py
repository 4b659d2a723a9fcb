"""Workers of one round in a process of their own, told what to do line by line.

They are as light as clients can be, so that what is measured is the server: each has a connection and a stream, speaks
the contract by hand (or bare bytes, with a bare server), makes its message before it is told to send it, and looks at
its answer when the round is over.
"""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from stepwell._allocator import tune_allocator
from stepwell.v1 import control_pb2, control_pb2_grpc, data_pb2, run_pb2
from stepwell_server.benchmarks.options import ITEM_BYTES, as_bytes, random_vector
from stepwell_server.benchmarks.peers import announce, start

LEASE_SECONDS = 3600.0

# What bare bytes are sent to.
BARE_METHOD = "/stepwell.Benchmark/Round"

# A connection each: as if every worker were a process of its own.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
_JOINING_MAX = 32
_SECONDS_MAX = 300.0
# A word from a server that is still at work is shorter, an answer with parameters longer.
_WORD_BYTES_MAX = 1024


class Crew:
    """The handle of such a process. Its workers have numbers from `first` on; run: theirs, "" for a bare server."""

    def __init__(self, address: str, run: str, first: int, count: int, elements: int) -> None:
        self.count = count
        self._peer = start("crew", address, run, first, count, elements)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()

    def begin(self, order: str, begin: int = 0, end: int | None = None) -> None:
        """Tell its workers from `begin` to `end` to "connect", to "send", or to have "answers".

        `end` waits until they have.
        """
        self._peer.tell(f"{order} {begin} {self.count if end is None else end}")

    def end(self) -> tuple[float, float]:
        """The first and the last time, in monotonic seconds: when they began to send, or when answers came."""
        first, last = self._peer.hear()
        return first, last


def together(crews: Sequence[Crew], order: str) -> tuple[float, float]:
    """All of several crews at once; the first and the last time of all."""
    for crew in crews:
        crew.begin(order)
    times = [crew.end() for crew in crews]
    return min(first for first, _ in times), max(last for _, last in times)


class _Dialect(Protocol):
    """What a worker says. method: of its stream."""

    method: str

    async def join(self, channel: Any) -> None:
        """Become a worker."""

    def message(self) -> bytes:
        """Its next update."""

    def take(self, answer: bytes) -> None:
        """Look at the answer; raises RuntimeError unless it is what was to come."""


class _Bare:
    """Bytes, as many as a gradient has."""

    method = BARE_METHOD

    def __init__(self, gradient: bytes) -> None:
        self._gradient = gradient

    async def join(self, channel: Any) -> None:
        pass

    def message(self) -> bytes:
        return self._gradient

    def take(self, answer: bytes) -> None:
        _expect(len(answer) == len(self._gradient), f"{len(answer)} bytes")


class _Contract:
    """A worker of a run, which steps over its stream."""

    method = "/stepwell.v1.DataService/Work"

    def __init__(self, run: str, worker: str, gradient: bytes) -> None:
        self._run, self._worker, self._gradient = run, worker, gradient
        self._membership = control_pb2.Membership()
        self._version = self._sequence = 0

    async def join(self, channel: Any) -> None:
        request = control_pb2.JoinRequest(run=self._run, worker=self._worker, lease_seconds=LEASE_SECONDS)
        stub: Any = control_pb2_grpc.ControlServiceStub(channel)
        async for response in stub.Join(request):
            if response.HasField("membership"):
                self._membership = response.membership
        self._version = self._membership.version

    def message(self) -> bytes:
        self._sequence += 1
        identity = data_pb2.UpdateIdentity(
            run=self._run,
            run_uid=self._membership.run_uid,
            generation=self._membership.generation,
            worker=self._worker,
            epoch=self._membership.epoch,
            sequence=self._sequence,
            fingerprint=secrets.token_bytes(16),
            acknowledged_version=self._version,
        )
        stage = data_pb2.Stage(
            header=data_pb2.UpdateHeader(identity=identity), ranges=[run_pb2.Range(data=self._gradient)]
        )
        selection = data_pb2.Selection(run=self._run)
        return data_pb2.WorkRequest(
            exchange=self._sequence, stage=stage, commit=data_pb2.Commit(), selection=selection, last=True
        ).SerializeToString()

    def take(self, answer: bytes) -> None:
        response = data_pb2.WorkResponse.FromString(answer)
        got = sum(len(part.data) for part in response.ranges)
        whole = response.answer.outcome == data_pb2.OUTCOME_COMMITTED and got == len(self._gradient)
        _expect(whole, f"{response.answer} and {got} bytes")
        self._version = response.answer.committed_version


def _expect(holds: bool, got: str) -> None:
    if not holds:
        raise RuntimeError(f"got {got[:500]}, expected the round's answer with all parameters; look at the server")


class _Member:
    """One worker, its connection and its stream."""

    def __init__(self, address: str, dialect: _Dialect) -> None:
        self._address, self._dialect = address, dialect
        self._stream: Any = None
        self._message = b""
        self._answer: asyncio.Future[tuple[float, bytes]] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def connect(self) -> float:
        channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        await self._dialect.join(channel)
        self._stream = channel.stream_stream(self._dialect.method)()
        await self._stream.wait_for_connection()
        self._message = self._dialect.message()
        self._listening = asyncio.create_task(self._listen())
        return time.monotonic()

    async def send(self) -> float:
        self._answer = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        await self._stream.write(self._message)
        return began

    async def answered(self) -> float:
        assert self._answer is not None
        return (await self._answer)[0]

    async def prepare(self) -> None:
        """Look at the answer, and make the next message."""
        assert self._answer is not None
        self._dialect.take((await self._answer)[1])
        self._message = self._dialect.message()

    async def _listen(self) -> None:
        while True:
            response = await self._stream.read()
            now = time.monotonic()
            if isinstance(response, bytes) and len(response) <= _WORD_BYTES_MAX:
                word = data_pb2.WorkResponse.FromString(response)
                if not word.HasField("error"):
                    continue
            assert self._answer is not None
            if isinstance(response, bytes) and len(response) > _WORD_BYTES_MAX:
                self._answer.set_result((now, response))
            else:
                self._answer.set_exception(RuntimeError(f"got {response!r:.500}, expected the round's answer"))


def serve(address: str, run: str, first: str, count: str, elements: str) -> None:
    """Be a crew: carry out each line on stdin, and print when its workers did so first and last."""
    tune_allocator()
    gradient = bytes(as_bytes(random_vector(int(elements))))
    assert len(gradient) == int(elements) * ITEM_BYTES
    members = [
        _Member(address, _Contract(run, f"worker-{number:05}", gradient) if run else _Bare(gradient))
        for number in range(int(first), int(first) + int(count))
    ]
    announce(address)
    asyncio.run(_obey(members))


async def _obey(members: Sequence[_Member]) -> None:
    loop = asyncio.get_running_loop()
    joining = asyncio.Semaphore(_JOINING_MAX)

    async def connect(member: _Member) -> float:
        async with joining:
            return await member.connect()

    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order, begin, end = line.split()
        chosen = members[int(begin) : int(end)]
        async with asyncio.timeout(_SECONDS_MAX):
            if order == "connect":
                times = await asyncio.gather(*map(connect, chosen))
            elif order == "send":
                times = await asyncio.gather(*[member.send() for member in chosen])
            else:
                times = await asyncio.gather(*[member.answered() for member in chosen])
                for member in chosen:
                    await member.prepare()
        print(json.dumps([min(times), max(times)]), flush=True)
