"""Who may bring in a large update now.

Of many workers that push at once, the server reads a few at a time, first come first served: what has arrived is then
still in the processor's cache when it is applied. A turn is short, so that whoever sends over a slow network, or while
it still computes, holds up nobody: it goes on without.
"""

import asyncio
from collections import deque


class Turn:
    """Given back once, by whoever has it or by time."""

    def __init__(self, turns: "Turns") -> None:
        self._turns: Turns | None = turns
        self._timer = asyncio.get_running_loop().call_later(turns.seconds, self.release)

    def release(self) -> None:
        turns, self._turns = self._turns, None
        if turns is not None:
            self._timer.cancel()
            turns.give_back()


class Turns:
    """count: how many have one at a time. seconds: how long a turn lasts."""

    def __init__(self, count: int, seconds: float = 0.05) -> None:
        self.seconds = seconds
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> Turn:
        """Wait for a turn."""
        if self._free and not self._waiting:
            self._free -= 1
            return Turn(self)
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self.give_back()
            else:
                self._waiting.remove(waiting)
            raise
        return Turn(self)

    def give_back(self) -> None:
        """Give a turn to the next who waits."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1
