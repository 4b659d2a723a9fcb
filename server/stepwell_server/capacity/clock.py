"""A simulated clock, and what work waits for under it: a queue, and cores that are shared."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable

Then = Callable[[], object]


class Clock:
    """Seconds that pass only from one event to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Then]] = []

    def after(self, seconds: float, then: Then) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), then))

    def advance(self) -> bool:
        """Go on to the next event; False if there is none."""
        if not self._events:
            return False
        self.now, _, then = heapq.heappop(self._events)
        then()
        return True


class Cores:
    """Work on some cores. If it needs more of them than there are, all of it goes on in proportion more slowly.

    busy_seconds: of cores, so far.
    """

    def __init__(self, clock: Clock, count: float) -> None:
        self._clock = clock
        self._count = count
        self._demand = 0.0
        # What work that has gone on all the time has got done, in its own seconds.
        self._progress = 0.0
        self._since = 0.0
        self._busy_seconds = 0.0
        self._order = itertools.count()
        self._jobs: list[tuple[float, int, float, Then]] = []
        self._planned = 0

    @property
    def busy_seconds(self) -> float:
        self._catch_up()
        return self._busy_seconds

    def work(self, seconds: float, cores: float, then: Then) -> None:
        """Keep so many cores busy for so many seconds, if they are free; longer if not."""
        self._catch_up()
        heapq.heappush(self._jobs, (self._progress + seconds, next(self._order), cores, then))
        self._demand += cores
        self._plan()

    @property
    def _rate(self) -> float:
        return min(1.0, self._count / self._demand) if self._jobs else 0.0

    def _catch_up(self) -> None:
        elapsed, self._since = self._clock.now - self._since, self._clock.now
        self._progress += elapsed * self._rate
        self._busy_seconds += elapsed * min(self._demand, self._count)

    def _plan(self) -> None:
        self._planned += 1
        if self._jobs:
            planned, wait = self._planned, (self._jobs[0][0] - self._progress) / self._rate
            self._clock.after(max(0.0, wait), lambda: self._end(planned))

    def _end(self, planned: int) -> None:
        if planned != self._planned:
            return  # other work has come or gone since
        self._catch_up()
        end, _, cores, then = heapq.heappop(self._jobs)
        self._progress = max(self._progress, end)
        self._demand = self._demand - cores if self._jobs else 0.0
        self._plan()
        then()


class Queue:
    """One thing at a time: first what goes first, then in the order in which it came. busy_seconds: so far."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: deque[Callable[[Then], object]] = deque()
        self._then: deque[Callable[[Then], object]] = deque()
        self._since: float | None = None
        self._busy_seconds = 0.0

    @property
    def busy_seconds(self) -> float:
        return self._busy_seconds + (0.0 if self._since is None else self._clock.now - self._since)

    def take(self, begin: Callable[[Then], object], *, first: bool = False) -> None:
        """begin: starts the work, and is told what to do when it is over."""
        (self._first if first else self._then).append(begin)
        if self._since is None:
            self._next()

    def _next(self) -> None:
        self._since = self._clock.now
        (self._first or self._then).popleft()(self._done)

    def _done(self) -> None:
        assert self._since is not None
        self._busy_seconds += self._clock.now - self._since
        self._since = None
        if self._first or self._then:
            self._next()
