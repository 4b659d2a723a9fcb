"""Operations that go on while the caller computes: one after another, in the order in which they were asked for.

What they return belongs to a state of the run. When the run goes back to an older one, those that wait are cancelled:
their gradients were taken where the run is no more.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from stepwell._forks import check_process, is_forked
from stepwell.errors import LimitExceeded, RunRewound

R = TypeVar("R")


class _Outstanding:
    def __init__(self, run: str, count_max: int) -> None:
        self._run = run
        self._count_max = count_max
        self._waiting: set[Any] = set()

    def _check_room(self) -> None:
        """Raise LimitExceeded, before anything has happened, where as many as may be are under way."""
        # Whoever has a result may go on before the callback below was called.
        self._waiting = {future for future in self._waiting if not future.done()}
        if len(self._waiting) >= self._count_max:
            raise LimitExceeded(
                f"run '{self._run}': got another operation while {len(self._waiting)} are under way, expected at most "
                f"{self._count_max}; wait for one, or connect with a larger outstanding_updates_max"
            )

    def _done(self, future: Any) -> None:
        self._waiting.discard(future)
        if not future.cancelled() and isinstance(future.exception(), RunRewound):
            for other in list(self._waiting):
                other.cancel()


class Threaded(_Outstanding):
    """On a thread of its own, which lives as long as there is something to do."""

    def __init__(self, run: str, count_max: int) -> None:
        super().__init__(run, count_max)
        self._thread: ThreadPoolExecutor | None = None

    def start(self, work: Callable[..., R], *args: Any, **kwargs: Any) -> "Future[R]":
        check_process()  # in a forked child nobody would ever do the work
        self._check_room()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="stepwell-outstanding")
        future = self._thread.submit(work, *args, **kwargs)
        self._waiting.add(future)
        future.add_done_callback(self._done)
        return future

    def finish(self) -> None:
        """Wait for all of them."""
        thread, self._thread = self._thread, None
        if thread is not None and not is_forked():
            thread.shutdown()


class Tasks(_Outstanding):
    """As tasks of the running event loop; the run's own lock, which is fair, keeps them in order."""

    def start(self, work: Coroutine[Any, Any, R]) -> "asyncio.Task[R]":
        try:
            self._check_room()
        except LimitExceeded:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        self._waiting.add(task)
        task.add_done_callback(self._done)
        return task

    async def finish(self) -> None:
        """Wait for all of them."""
        await asyncio.gather(*self._waiting, return_exceptions=True)
