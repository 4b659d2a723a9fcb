"""Places where the workers of a run wait for each other.

A barrier is a name; it exists while somebody waits at it. Every live worker must arrive, those who join meanwhile, too;
whoever is not live any more does not count. A worker waits at one barrier at a time, and counts its calls from 1 in an
epoch: so a call whose answer was lost is told apart from one that comes to the same name again.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from stepwell_server.core.errors import InvalidValue, SequenceTooOld


@dataclass(frozen=True)
class Release:
    """All have arrived: the calls of these workers are answered."""

    barrier: str
    workers: tuple[str, ...]


class Barriers:
    """Of one run."""

    def __init__(self) -> None:
        # Where each worker waits, with which call; and its last call that was released.
        self._at: dict[str, tuple[str, int]] = {}
        self._passed: dict[str, int] = {}
        self._counts: dict[str, int] = {}

    def arrive(self, barrier: str, worker: str, call: int, live: Collection[str]) -> list[Release]:
        """A live worker calls. One that repeats a call waits on, or goes at once if it was released.

        Raises InvalidValue, and SequenceTooOld for a call that the worker itself has given up for a later one.
        """
        if call < 1:
            raise InvalidValue(
                f"barrier '{barrier}': worker '{worker}' calls with number {call}, expected 1 or more; count the calls"
            )
        if call <= self._passed.get(worker, 0):
            return [Release(barrier, (worker,))]
        before, last = self._at.get(worker, (barrier, call))
        if (call, barrier) != (last, before) and call <= last:
            raise SequenceTooOld(
                f"barrier '{barrier}': worker '{worker}' calls with number {call}, expected {last + 1}, or {last} at "
                f"barrier '{before}', where it waits; give each call the next number",
                got=call,
                expected=last + 1,
            )
        self._leave(worker)
        self._at[worker] = barrier, call
        self._counts[barrier] = self._counts.get(barrier, 0) + 1
        return self._open(barrier, live)

    def gone(self, workers: Iterable[str], live: Collection[str]) -> list[Release]:
        """Workers are not live any more, and count no longer."""
        for worker in workers:
            self.forget(worker)
        return [release for barrier in list(self._counts) for release in self._open(barrier, live)]

    def forget(self, worker: str) -> None:
        """A worker has joined again: its calls count from 1."""
        self._leave(worker)
        self._passed.pop(worker, None)

    def waiting(self) -> Mapping[str, str]:
        """Which workers wait, and where."""
        return {worker: barrier for worker, (barrier, _) in self._at.items()}

    def to_data(self) -> dict[str, int]:
        """The last calls that were released, for a snapshot; whoever waits will call again."""
        return dict(self._passed)

    def restore(self, data: Mapping[str, int]) -> None:
        self._passed = {worker: int(call) for worker, call in data.items()}

    def _leave(self, worker: str) -> None:
        barrier, _ = self._at.pop(worker, (None, 0))
        if barrier is not None:
            self._counts[barrier] -= 1
            if self._counts[barrier] == 0:
                del self._counts[barrier]

    def _open(self, barrier: str, live: Collection[str]) -> list[Release]:
        if self._counts[barrier] < len(live):
            return []
        workers = tuple(worker for worker, (name, _) in self._at.items() if name == barrier)
        for worker in workers:
            self._passed[worker] = self._at.pop(worker)[1]
        del self._counts[barrier]
        return [Release(barrier, workers)]
