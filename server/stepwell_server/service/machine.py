"""What all runs of a server share: memory and those who wait for it, turns, and the threads that work."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from stepwell.wire import RANGE_BYTES
from stepwell_server.core.errors import MemoryExhausted
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.service.turns import Turns
from stepwell_server.service.update_log import UpdateLog

R = TypeVar("R")

# Copies of up to one message are made on the loop: handing each to a thread and back cost a fifth of a whole step.
INLINE_BYTES_MAX = RANGE_BYTES


@dataclass
class _Waiter:
    """Somebody who waits for memory. got: the vectors."""

    sizes: Sequence[Size]
    purpose: str
    spare: Callable[[], int]
    got: "asyncio.Future[list[Vector]]"


class Machine:
    """What all runs of a server share: the memory, those who wait for it, turns, and the worker threads."""

    def __init__(self, memory: Memory, threads: ThreadPoolExecutor, turns: Turns) -> None:
        self.memory = memory
        self.turns = turns
        self.update_log: UpdateLog | None = None
        self._threads = threads
        self._waiters: dict[int, _Waiter] = {}
        self._served_soon = False
        # Set when memory is free; None while nobody waits for it.
        self._freed: asyncio.Event | None = None
        memory.on_free = self.wake
        # What the states of all runs take, beside which everything else must fit.
        self.state_bytes: Callable[[], int] = lambda: 0

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """Do blocking work on a thread. A cancelled caller gets away only when the work is done.

        A thread cannot be stopped, and what it works on must not be freed under it.
        """
        done = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            while not done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([done])
            raise

    async def run_sized(self, size_bytes: int, work: Callable[..., R], *arguments: Any) -> R:
        """Do work on a thread, or here if it is small."""
        return work(*arguments) if size_bytes <= INLINE_BYTES_MAX else await self.run(work, *arguments)

    async def allocate(self, sizes: Sequence[Size], purpose: str, spare: Callable[[], int] = lambda: 0) -> list[Vector]:
        """Vectors for a staged update, first come first served; waits without a thread while there is no memory.

        spare: how many bytes must stay free beside; asked at each try. Whoever asks for some holds up nobody: where
        updates wait for others, those that can go on always find room. Raises MemoryExhausted if the vectors could not
        be had even with nothing else in the way but the states of the runs.
        """
        if not self._waiters and (vectors := self.memory.try_allocate(sizes, spare())) is not None:
            return vectors
        self.memory.check_fits(sizes, purpose, self.state_bytes())
        waiter = _Waiter(sizes, purpose, spare, asyncio.get_running_loop().create_future())
        self._waiters[id(waiter)] = waiter
        self._serve()
        try:
            return await waiter.got
        except asyncio.CancelledError:
            if waiter.got.done() and not waiter.got.cancelled() and waiter.got.exception() is None:
                self.memory.free(waiter.got.result())
            raise
        finally:
            self._waiters.pop(id(waiter), None)
            self.wake()

    def _serve(self) -> None:
        """Give memory to those who wait for it, as far as it goes."""
        self._served_soon = False
        patient_waits = False
        for waiter in list(self._waiters.values()):
            spare_bytes = waiter.spare()
            if waiter.got.done() or (spare_bytes and patient_waits):
                continue
            vectors = self.memory.try_allocate(waiter.sizes, spare_bytes)
            if vectors is not None:
                del self._waiters[id(waiter)]
                waiter.got.set_result(vectors)
            elif spare_bytes:
                patient_waits = True
            else:
                try:
                    self.memory.check_fits(waiter.sizes, waiter.purpose, self.state_bytes())
                    return  # those who came later wait, too
                except MemoryExhausted as error:
                    del self._waiters[id(waiter)]
                    waiter.got.set_exception(error)

    async def changed(self) -> None:
        """Wait until memory was freed or a reader let go."""
        self._freed = self._freed or asyncio.Event()
        await self._freed.wait()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        if self._freed is not None:
            self._freed.set()
            self._freed = None
        if self._waiters and not self._served_soon:
            self._served_soon = True  # once for all that becomes free by then
            asyncio.get_running_loop().call_soon(self._serve)
