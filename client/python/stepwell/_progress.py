"""Tells the caller how far a long transfer is."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

TRANSFER_BYTES_MIN: Final = 16 << 20
"""Shorter transfers take a moment and are not reported."""

Progress = bool | Callable[[int, int], object]
"""False for none, True for a bar on the terminal, or a function of the bytes done and the bytes in all."""


class Transfer:
    """One transfer of known length; a context manager. A try that starts over reports smaller numbers again."""

    def __init__(self, progress: Progress, what: str, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._what = what
        self._report: Callable[[int, int], object] | None = None
        self._bar: Any = None
        if progress is not False and total_bytes >= TRANSFER_BYTES_MIN:
            self._report = self._draw if progress is True else progress

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def done(self, done_bytes: int) -> None:
        """So many bytes have gone, of the total."""
        if self._report is not None:
            self._report(min(done_bytes, self._total_bytes), self._total_bytes)

    def follow(self, items: Iterable[T], size_bytes: Callable[[T], int]) -> Iterator[T]:
        """The items; each counts as done when the next one is asked for."""
        done_bytes = 0
        for item in items:
            yield item
            done_bytes += size_bytes(item)
            self.done(done_bytes)

    def _draw(self, done_bytes: int, total_bytes: int) -> None:
        if self._bar is None:
            from rich import progress  # an extra, needed only for the bar

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                transient=True,
            )
            self._bar.add_task(self._what, total=total_bytes)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done_bytes)
