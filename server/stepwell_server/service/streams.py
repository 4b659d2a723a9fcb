"""Reading and writing messages with a limit on how long the peer may leave a transfer standing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from stepwell_server.core.errors import LimitExceeded

T = TypeVar("T")


class Peer:
    """The other end of a call. Whoever leaves a transfer standing for too long loses the call, and what it holds.

    A context manager, made in the call's own task. One timer serves all its transfers: a small step has two, and a
    timeout for each would take longer than the step's kernel.
    """

    def __init__(self, context: Any, silence_seconds: float) -> None:
        self._context = context
        self._seconds = silence_seconds
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        # Since when the transfer stands that is under way.
        self._since: float | None = None
        self._too_long = False
        self._writing = asyncio.Lock()
        self._timer = self._loop.call_later(silence_seconds, self._look)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    async def read(self) -> Any:
        """The stream's next message, None at its end; raises LimitExceeded when it is too long in coming."""
        request = await self._within(self._context.read(), "send the rest of its update")
        return None if request is grpc.aio.EOF else request

    async def wait(self) -> Any:
        """As `read`, however long it takes."""
        request = await self._context.read()
        return None if request is grpc.aio.EOF else request

    async def write(self, response: Any) -> None:
        """Send a message; raises LimitExceeded for a peer that does not read."""
        await self._within(self.say(response), "take what it asked for")

    async def say(self, response: Any) -> None:
        """Send a message from another task of the call, however long it takes."""
        async with self._writing:
            await self._context.write(response)

    async def messages(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The requests of a call that gets them as an iterator; raises as `read`."""
        iterator = aiter(requests)
        while True:
            try:
                yield await self._within(anext(iterator), "send the rest of its update")
            except StopAsyncIteration:
                return

    async def _within(self, transfer: Awaitable[T], what: str) -> T:
        self._since = self._loop.time()
        try:
            return await transfer
        except asyncio.CancelledError:
            if not self._too_long:
                raise
            self._task.uncancel()
            raise LimitExceeded(
                f"the peer did not {what} for {self._seconds} seconds; send and read without long pauses, or raise the "
                "limit"
            ) from None
        finally:
            self._since = None

    def _look(self) -> None:
        standing = 0.0 if self._since is None else self._loop.time() - self._since
        self._too_long = standing >= self._seconds
        if self._too_long:
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(self._seconds - standing, self._look)
