"""Fulfils requests over a grpc.aio channel, in the running event loop.

Cancelling a read of grpc.aio cancels the whole call; so a stream keeps one task that reads and one that writes, and a
limit in time ends the wait for a task, never the task.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import grpc

from stepwell._blocking import CHANNEL_OPTIONS, METADATA
from stepwell._forks import check_process, is_forked, make_immortal
from stepwell._methods import Method
from stepwell._requests import (
    Disconnect,
    Do,
    Finish,
    Lost,
    Open,
    Receive,
    Reconnect,
    Repeat,
    Request,
    Send,
    Silent,
    Sleep,
    lost,
)

# The tasks of ended calls need a few turns of the loop; who has not ended by then is left alone.
_SETTLE_SECONDS_MAX: Final = 1.0


class AwaitingConnection:
    """The channel of a client. It is made when it is first needed, and made anew in another event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()  # of calls, until they have ended

    async def perform(self, request: Request) -> Any:
        match request:
            case Send(stream, message, seconds):
                return await stream.send(message, seconds)  # type: ignore[attr-defined]
            case Receive(stream, seconds, meanwhile):
                if meanwhile is not None:
                    await stream.wait_until_sent(seconds)  # type: ignore[attr-defined]
                    meanwhile()
                return await stream.receive(seconds)  # type: ignore[attr-defined]
            case Open(method, message):
                return self._open(method, message)
            case Finish(stream):
                return await stream.finish()  # type: ignore[attr-defined]
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Do(work):
                return await _on_thread(work)
            case Repeat():
                return AwaitingRepeat(self, request)
            case Reconnect(stream):
                return await self._drop(stream.channel)  # type: ignore[attr-defined]
            case Disconnect():
                self._closed = True
                await self._drop(self._channel)
                return await self._settle()

    def _open(self, method: Method[Any, Any], message: Any) -> "AwaitingCall | AwaitingStream":
        channel = self._present_channel()
        kind = AwaitingCall if method.unary else AwaitingStream
        return kind(channel, method, message, self._tasks)

    def _present_channel(self) -> grpc.aio.Channel:
        check_process()
        if self._closed:
            raise RuntimeError("got a call on a closed client, expected an open one; connect again")
        if self._home is not asyncio.get_running_loop():
            make_immortal(self._channel)
            self._channel, self._home = None, asyncio.get_running_loop()
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)
        return self._channel

    async def _drop(self, channel: grpc.aio.Channel | None) -> None:
        if is_forked():
            make_immortal(channel)
            return
        if self._channel is channel:
            self._channel = None
        if channel is not None and self._home is asyncio.get_running_loop():
            await channel.close()  # ends its calls; whoever waits on one tries again over the next channel

    async def _settle(self) -> None:
        """Let the tasks of calls that were just ended hear of it: the event loop may be closed next."""
        here = {task for task in self._tasks if task.get_loop() is asyncio.get_running_loop()}
        if here and not is_forked():
            await asyncio.wait(here, timeout=_SETTLE_SECONDS_MAX)


class AwaitingCall:
    """A call with one request and one response."""

    def __init__(
        self, channel: grpc.aio.Channel, method: Method[Any, Any], message: Any, tasks: set[asyncio.Task[Any]]
    ) -> None:
        self.channel = channel
        call = channel.unary_unary(method.path, method.encode, method.decode)
        self._call: Any = call(message, metadata=METADATA)
        self._answer = _task(self._call, tasks)

    async def receive(self, seconds: float) -> Any:
        return await _result(self._answer, seconds)

    def cancel(self) -> None:
        self._call.cancel()


class AwaitingRepeat:
    """A call that is made again and again, in a task of its own."""

    def __init__(self, connection: AwaitingConnection, repeat: Repeat) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = _task(_repeat(connection, repeat), set())

    def cancel(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)


async def _repeat(connection: AwaitingConnection, repeat: Repeat) -> None:
    while True:
        await asyncio.sleep(repeat.seconds)
        try:
            call: Any = await connection.perform(Open(repeat.method, repeat.request))
        except RuntimeError:
            return  # the client is closed
        try:
            response = await call.receive(repeat.seconds)
        except (Lost, Silent):
            call.cancel()
        else:
            repeat.heard(response)


class AwaitingStream:
    """A call that streams in at least one direction."""

    def __init__(
        self, channel: grpc.aio.Channel, method: Method[Any, Any], message: Any, tasks: set[asyncio.Task[Any]]
    ) -> None:
        self.channel = channel
        self._tasks = tasks
        # On the wire all calls look the same, so one kind serves all that stream.
        call = channel.stream_stream(method.path, method.encode, method.decode)
        self._call: Any = call(metadata=METADATA)
        self._call.add_done_callback(self._note_end)
        self._end: Lost | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[Any] | None = None
        if message is not None:
            self._writing = _task(self._write_only(message), tasks)

    async def send(self, message: Any, seconds: float) -> bool:
        reading = self._read()
        if self._writing is not None:
            await asyncio.wait({self._writing, reading}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and self._writing.done() and self._writing.exception() is not None:
                await asyncio.wait({reading}, timeout=seconds)  # the call is over, and the read will say why
            if not reading.done() and not self._writing.done():
                raise Silent
        if reading.done():
            return False
        self._writing = _task(self._call.write(message), self._tasks)
        return True

    async def finish(self) -> None:
        async def finish(writing: asyncio.Task[Any] | None) -> None:
            if writing is not None:
                await asyncio.wait({writing})
            await self._call.done_writing()

        self._writing = _task(finish(self._writing), self._tasks)

    async def wait_until_sent(self, seconds: float) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing, self._read()}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def receive(self, seconds: float) -> Any:
        try:
            response = await _result(self._read(), seconds)
        except Lost as failure:
            raise self._end or failure from None
        if response is grpc.aio.EOF:
            return None
        self._reading = None
        return response

    def cancel(self) -> None:
        self._call.cancel()

    def _read(self) -> asyncio.Task[Any]:
        if self._reading is None:
            self._reading = _task(self._call.read(), self._tasks)
        return self._reading

    def _note_end(self, _call: Any) -> None:
        """Keep the status that the server gave, for a write that fails after it replaces it by INTERNAL.

        See https://github.com/grpc/grpc/issues/36066: without this, nine in ten errors that end an upload are lost.
        """
        code = _now(self._call.code())
        if code is not grpc.StatusCode.OK:
            self._end = lost(code, _now(self._call.details()), _now(self._call.trailing_metadata()))

    async def _write_only(self, message: Any) -> None:
        await self._call.write(message)
        await self._call.done_writing()


async def _on_thread(work: Callable[[], Any]) -> Any:
    """Do work on a thread. A cancelled caller gets away only when it is done: it writes to the caller's memory."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        raise


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a call that is done knows its status")


def _task(awaitable: Any, tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """A task that is among these until it is done."""

    async def result() -> Any:
        return await awaitable

    task = asyncio.ensure_future(result())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    # Nobody may come for the result of a call that was given up; asyncio would complain about its error.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _result(task: asyncio.Task[Any], seconds: float) -> Any:
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        raise Silent
    if task.cancelled():
        raise Lost(grpc.StatusCode.CANCELLED, "the call was cancelled")
    error = task.exception()
    if isinstance(error, grpc.aio.AioRpcError):
        raise lost(error.code(), error.details(), error.trailing_metadata()) from None
    return task.result()
