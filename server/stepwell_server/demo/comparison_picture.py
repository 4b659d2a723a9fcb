"""The picture of several policies: what each reached when, and how stale its updates were."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MultipleLocator, PercentFormatter, StrMethodFormatter

from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.picture import BLUE, GREEN, GREY, ORANGE
from stepwell_server.demo.record import Record
from stepwell_server.demo.report import Histogram, bucket_names

COLORS: Final = {"async": BLUE, "bounded": ORANGE, "sync": GREEN}
BUCKETS_MIN: Final = 4
ACCURACY_MIN: Final = 0.8
SECONDS_MIN: Final = 0.1
BAR: Final = 0.42
LABELLED_MIN: Final = 0.02

Trained = tuple[DemoOptions, Record]


def draw(trainings: Sequence[Trained], path: Path) -> None:
    """Write a PNG: test accuracy over time for all of them, and below it the histogram of staleness of each."""
    # Not pyplot: it would choose a window system and keep the figure.
    figure = Figure(figsize=(12.5, 8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    grid = figure.add_gridspec(2, len(trainings), height_ratios=[1.2, 1])
    accuracy = figure.add_subplot(grid[0, :])
    _draw_accuracy(accuracy, trainings)
    buckets = max(BUCKETS_MIN, *(len(record.histogram.counts) for _, record in trainings if record.histogram))
    panels = [figure.add_subplot(grid[1, column]) for column in range(len(trainings))]
    for panel, (options, record) in zip(panels, trainings, strict=True):
        _draw_staleness(panel, options, record, buckets)
    panels[0].set_ylabel("share of their updates")
    for axes in (accuracy, *panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.title.set_fontweight("bold")
    options = trainings[0][0]
    figure.suptitle(
        f"Handwritten digits: {options.workers} workers, one of them {options.slow:g}× slower, "
        f"{options.updates:,} steps in all",
        fontsize=13,
    )
    figure.savefig(path, format="png", dpi=120)


def label(options: DemoOptions) -> str:
    """A policy's name, with its bound where it has one."""
    return f"bounded, s = {options.bound}" if options.policy == "bounded" else options.policy


def _draw_accuracy(axes: Axes, trainings: Sequence[Trained]) -> None:
    target = trainings[0][0].target
    axes.set_title("Test accuracy")
    axes.set_xlabel("seconds since the first step (logarithmic)")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylabel("held-out images recognised")
    axes.grid(alpha=0.25)
    axes.axhline(target, color=GREY, linestyle="--", linewidth=1, label=f"target {target:.0%}")
    for options, record in trainings:
        color = COLORS[options.policy]
        seconds = [max(SECONDS_MIN, each.at - record.began_at) for each in record.accuracies]
        shares = [each.share for each in record.accuracies]
        reached = record.seconds_to(target)
        when = f"never {target:.0%}" if reached is None else f"{target:.0%} after {reached:.1f} s"
        text = f"{label(options)}: {when}; {record.steps_per_second:,.0f} steps per second"
        axes.plot(seconds, shares, ".-", color=color, linewidth=1.2, markersize=4, label=text)
        if reached is not None:
            place = max(SECONDS_MIN, reached)
            axes.plot([place], [target], "o", color=color, markersize=9, markerfacecolor="white", zorder=3)
    axes.set_xlim(left=SECONDS_MIN)
    lowest = min(each.share for _, record in trainings for each in record.accuracies[-1:])
    zoomed = lowest > ACCURACY_MIN
    axes.set_ylim(ACCURACY_MIN if zoomed else 0, 1)
    axes.yaxis.set_major_locator(MultipleLocator(0.05 if zoomed else 0.2))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, loc="lower right")


def _draw_staleness(axes: Axes, options: DemoOptions, record: Record, buckets: int) -> None:
    """The slow worker's beside those of the others, each as shares of its own updates: it makes few of them."""
    assert record.histogram is not None
    histograms = [worker.histogram or Histogram() for worker in record.workers]
    slow = _counts(histograms[-1:], buckets)
    others = _counts(histograms[:-1], buckets)
    places = range(buckets)
    for counts, color, shift, name in (
        (others, COLORS[options.policy], -BAR / 2, f"{len(histograms) - 1} others, {sum(others):,} updates"),
        (slow, GREY, BAR / 2, f"slow worker, {sum(slow):,} updates"),
    ):
        shares = [count / max(1, sum(counts)) for count in counts]
        bars = axes.bar([place + shift for place in places], shares, width=BAR, color=color, label=name)
        axes.bar_label(bars, labels=[_percent(share) for share in shares], padding=2, fontsize=6.5)
    axes.set_title(f"{label(options)}: largest staleness {record.histogram.largest}")
    axes.set_xlabel("staleness: commits of others")
    axes.set_xticks(places, bucket_names(buckets), rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_ylim(0, 1.3)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, loc="upper right", fontsize=8)


def _counts(histograms: Sequence[Histogram], buckets: int) -> list[int]:
    padded = [(*each.counts, *[0] * (buckets - len(each.counts))) for each in histograms]
    return [sum(column) for column in zip(*padded, strict=True)] or [0] * buckets


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= LABELLED_MIN else ""
