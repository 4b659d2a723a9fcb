"""Shows the progress of the demo: a live table on a terminal, lines now and then elsewhere."""

import math
import time
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Record
from stepwell_server.demo.report import bucket_names

LIVE_SECONDS: Final = 0.1
LINE_SECONDS: Final = 2.0
BAR_CELLS: Final = 40


class Display(Protocol):
    """A context manager that may be told of every event: it decides when to draw."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stage(self, text: str) -> None:
        """What happens now."""

    def show(self, record: Record) -> None: ...
    def finish(self, record: Record) -> None:
        """Show the last state, whenever the one before it was shown."""


def make_display(console: Console, options: DemoOptions) -> Display:
    """The live one where the console can move its cursor, unless plain output was asked for."""
    live = console.is_terminal and not console.is_dumb_terminal and not options.plain
    return LiveDisplay(console, options) if live else LineDisplay(console, options)


def percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{accuracy:.1%}"


class LineDisplay:
    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._console, self._options = console, options
        self._shown_at = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def stage(self, text: str) -> None:
        say(self._console, text)

    def show(self, record: Record) -> None:
        now = time.monotonic()
        if now - self._shown_at >= LINE_SECONDS:
            self._shown_at = now
            self.finish(record)

    def finish(self, record: Record) -> None:
        workers = "; ".join(
            f"worker {index}: {worker.steps} steps, loss {worker.loss:.4f}, {worker.steps_per_second:.0f}/s"
            for index, worker in enumerate(record.workers)
            if worker.steps
        )
        version = f"version {record.version}/{self._options.versions}"
        say(self._console, f"{version}  test accuracy {percent(record.accuracy)}  {workers}")


class LiveDisplay:
    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._options = options
        self._stage = ""
        self._shown_at = -math.inf
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def stage(self, text: str) -> None:
        self._stage = text
        self._live.update(Text(text, style="dim"), refresh=True)

    def show(self, record: Record) -> None:
        now = time.monotonic()
        if now - self._shown_at >= LIVE_SECONDS:
            self._shown_at = now
            self.finish(record)

    def finish(self, record: Record) -> None:
        self._live.update(Group(Text(self._stage, style="dim"), self._table(record), self._bar(record)), refresh=True)

    def _table(self, record: Record) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for heading in ("worker", "steps", "version", "loss", "staleness", "steps/s"):
            table.add_column(heading, justify="right", min_width=7)
        for index, worker in enumerate(record.workers):
            table.add_row(
                str(index),
                f"{worker.steps:,}",
                f"{worker.version:,}",
                f"{worker.loss:.4f}" if worker.steps else "–",
                f"{worker.staleness:.2f}",
                f"{worker.steps_per_second:,.0f}",
            )
        return table

    def _bar(self, record: Record) -> RenderableType:
        versions = self._options.versions
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            ProgressBar(total=versions, completed=min(record.version, versions), width=BAR_CELLS),
            f"version {record.version:,} of {versions:,}",
            f"test accuracy [bold]{percent(record.accuracy)}[/bold]",
        )
        return bar


def staleness_lines(record: Record) -> list[str]:
    """How often each staleness occurred, in all and for each worker: a table as lines of text."""
    rows = [("all", record.histogram), *((f"worker {n}", worker.histogram) for n, worker in enumerate(record.workers))]
    known = [(name, histogram) for name, histogram in rows if histogram is not None]
    names = bucket_names(max((len(histogram.counts) for _, histogram in known), default=0))
    lines = [f"{'staleness':<10}" + "".join(f"{name:>10}" for name in names) + f"{'largest':>10}"]
    for name, histogram in known:
        counts = [*histogram.counts, *[0] * (len(names) - len(histogram.counts))]
        lines.append(f"{name:<10}" + "".join(f"{count:>10,}" for count in counts) + f"{histogram.largest:>10,}")
    return lines


def say(console: Console, text: str) -> None:
    """A line of plain text: nothing in it is markup, and it is not broken where the terminal ends."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
