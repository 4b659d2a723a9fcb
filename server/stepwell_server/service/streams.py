"""Reading and writing messages with a limit on how long the peer may leave a transfer standing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from stepwell_server.core.errors import LimitExceeded


async def write(context: Any, response: Any, silence_seconds: float) -> None:
    """Send a message; a peer that does not read for too long loses the call, and with it the version it holds."""
    await _within(context.write(response), silence_seconds, "take what it asked for")


async def patient(requests: AsyncIterator[Any], seconds: float) -> AsyncIterator[Any]:
    """The requests; raises LimitExceeded when the next one is too long in coming."""
    iterator = aiter(requests)
    while True:
        try:
            yield await _within(anext(iterator), seconds, "send the rest of its update")
        except StopAsyncIteration:
            return


async def read(context: Any, seconds: float | None) -> Any:
    """The stream's next message, None at its end; raises LimitExceeded when it is too long in coming."""
    request = await _within(context.read(), seconds, "send the rest of its update")
    return None if request is grpc.aio.EOF else request


async def _within(waiting: Any, seconds: float | None, what: str) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await waiting
    except TimeoutError:
        raise LimitExceeded(
            f"the peer did not {what} for {seconds} seconds; send and read without long pauses, or raise the limit"
        ) from None
