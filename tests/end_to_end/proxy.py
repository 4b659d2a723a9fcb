"""A TCP proxy on loopback that delays and cuts connections, at random from a seed."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK_BYTES = 16 << 10


class Proxy:
    """Forwards to `target` (HOST:PORT) from `address`, on threads of its own loop.

    delay_seconds_max: each chunk waits up to this long. bytes_mean: after about so many bytes, in both directions
    together, a connection is cut in the middle of whatever it carries; None for never. `mute` stops forwarding on all
    connections there are and leaves them open: the peer that is gone without a word; or only what the server says.
    `cut` cuts them.
    """

    def __init__(
        self, target: str, seed: int = 0, *, delay_seconds_max: float = 0.0, bytes_mean: float | None = None
    ) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._random = random.Random(seed)
        self._delay_seconds_max, self._bytes_mean = delay_seconds_max, bytes_mean
        self.address = ""
        self.connections_count = 0
        self.cuts_count = 0
        self._loop = asyncio.new_event_loop()
        self._links: set[Link] = set()
        self._ready = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def mute(self, answers_only: bool = False) -> None:
        """From now on nothing moves over the connections that there are; new ones are forwarded."""
        self._on_links(lambda link: link.mute(answers_only))

    def cut(self) -> None:
        """Cut the connections that there are."""
        self._on_links(lambda link: link.cut())

    def _on_links(self, act: Callable[["Link"], None]) -> None:
        done = threading.Event()

        def on_loop() -> None:
            for link in list(self._links):
                act(link)
            done.set()

        self._loop.call_soon_threadsafe(on_loop)
        assert done.wait(30)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for link in list(self._links):
            link.cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_count += 1
        chance = random.Random(self._random.random())
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()  # the server is down: so is this
            return
        budget = chance.expovariate(1 / self._bytes_mean) if self._bytes_mean else None
        link = Link(writer, far_writer, chance, budget, self._delay_seconds_max)
        self._links.add(link)
        try:
            await asyncio.gather(link.forward(reader, far_writer), link.forward(far_reader, writer))
        except asyncio.CancelledError:
            pass  # the proxy closes
        finally:
            self._links.discard(link)
            self.cuts_count += link.ran_out
            link.cut()


class Link:
    """One connection through the proxy. ran_out: whether it was cut because it had carried its bytes."""

    def __init__(
        self,
        near: asyncio.StreamWriter,
        far: asyncio.StreamWriter,
        chance: random.Random,
        budget: float | None,
        delay_seconds_max: float,
    ) -> None:
        self.ran_out = False
        self._ends = (near, far)
        self._random, self._budget, self._delay_seconds_max = chance, budget, delay_seconds_max
        self._open = {near: asyncio.Event(), far: asyncio.Event()}
        for towards in self._open.values():
            towards.set()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._delay_seconds_max:
                    await asyncio.sleep(self._random.uniform(0, self._delay_seconds_max))
                await self._open[writer].wait()
                if self._budget is not None:
                    data = data[: max(0, int(self._budget))]
                    self._budget -= len(data)
                writer.write(data)
                await writer.drain()
                if self._budget is not None and self._budget < 1:
                    self.ran_out = True
                    break
        except OSError:
            pass
        self.cut()

    def mute(self, answers_only: bool) -> None:
        near, far = self._ends
        self._open[near].clear()
        if not answers_only:
            self._open[far].clear()

    def cut(self) -> None:
        """End both sides at once, with a reset: what is on its way is lost."""
        for end in self._ends:
            end.transport.abort()
