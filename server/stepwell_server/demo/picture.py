"""The picture of a finished run."""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MultipleLocator, PercentFormatter

from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Record

BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
SMOOTHED_SHARE: Final = 0.02
"""Of all steps: how many one value of the smooth loss is the mean of."""

ZOOM_ACCURACY: Final = 0.8
"""A run that ends above this is shown from here on: what matters lies in the last percents."""

STALENESS_BARS_MIN, STALENESS_BARS_MAX = 4, 24
LABELLED_BARS_MAX: Final = 12


def draw(record: Record, options: DemoOptions, path: Path) -> None:
    """Write a PNG: loss, test accuracy and learning rate by version, and how often each staleness occurred."""
    # Not pyplot: it would choose a window system and keep the figure.
    figure = Figure(figsize=(11, 7.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    ((loss, accuracy), (learning_rate, staleness)) = figure.subplots(2, 2)
    _draw_loss(loss, record)
    _draw_accuracy(accuracy, record, options.target)
    _draw_learning_rate(learning_rate, record, options)
    _draw_staleness(staleness, record)
    for axes in (loss, accuracy, learning_rate):
        axes.set_xlabel("version")
        axes.set_xlim(0, 1.01 * max(options.versions, record.version))
    for axes in (loss, accuracy, learning_rate, staleness):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.title.set_fontweight("bold")
    figure.suptitle(_title(record, options), fontsize=13)
    figure.savefig(path, format="png", dpi=120)


def _title(record: Record, options: DemoOptions) -> str:
    optimizer = options.optimizer if options.flavor is None else f"{options.optimizer} ({options.flavor})"
    steps = (
        f"{options.steps:,} steps" if options.slow == 1 else f"{options.steps:,} steps, one {options.slow:g}× slower"
    )
    title = f"Handwritten digits: {optimizer}, {_workers(options)} × {steps}"
    return title if record.accuracy is None else f"{title}, {record.accuracy:.1%} of test images right"


def _workers(options: DemoOptions) -> str:
    if options.workers == 1:
        return "1 worker"
    kinds = {
        "async": "asynchronous workers",
        "sync": "synchronous workers",
        "bounded": f"workers bounded by {options.bound}",
    }
    return f"{options.workers} {kinds[options.policy]}"


def _draw_loss(axes: Axes, record: Record) -> None:
    steps = sorted(record.steps, key=lambda step: step.version)
    versions = np.array([step.version for step in steps])
    losses = np.array([step.loss for step in steps])
    axes.set_title("Training loss")
    axes.set_ylabel("cross-entropy (nats)")
    axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.plot(versions, losses, ".", color=BLUE, alpha=0.2, markersize=4, markeredgewidth=0, label="mini-batch")
    window = max(1, round(SMOOTHED_SHARE * len(losses)))
    if len(losses) >= window > 1:
        axes.plot(_smooth(versions, window), _smooth(losses, window), color=BLUE, label=f"mean of {window}")
        legend = axes.legend(frameon=False, loc="upper right", markerscale=2)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)


def _draw_accuracy(axes: Axes, record: Record, target: float) -> None:
    versions = [each.version for each in record.accuracies]
    accuracies = [each.share for each in record.accuracies]
    axes.set_title("Test accuracy")
    axes.set_ylabel("held-out images recognised")
    axes.grid(alpha=0.25)
    axes.axhline(target, color=GREY, linestyle="--", linewidth=1, label=f"target {target:.0%}")
    axes.plot(versions, accuracies, ".-", color=GREEN, label="measured by a reader")
    axes.legend(frameon=False, loc="best")
    zoomed = record.accuracy is not None and record.accuracy > ZOOM_ACCURACY
    axes.set_ylim(ZOOM_ACCURACY if zoomed else 0, 1)
    axes.yaxis.set_major_locator(MultipleLocator(0.05 if zoomed else 0.2))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_learning_rate(axes: Axes, record: Record, options: DemoOptions) -> None:
    axes.set_ylabel("learning rate")
    axes.grid(alpha=0.25)
    if record.learning_rates is None:
        axes.set_title("Learning rate")
        axes.text(0.5, 0.5, f"{options.optimizer} has none", transform=axes.transAxes, ha="center", color=GREY)
        return
    axes.set_title(f"Learning rate: {options.schedule}")
    axes.plot(np.arange(1, len(record.learning_rates) + 1), record.learning_rates, color=ORANGE)
    axes.set_ylim(bottom=0)


def _draw_staleness(axes: Axes, record: Record) -> None:
    # Two rounds of all workers hold nearly everything; one who was held up is counted in the last bar.
    longest = min(max(8, 2 * len(record.workers)), STALENESS_BARS_MAX - 1)
    counts = np.bincount([min(step.staleness, longest) for step in record.steps], minlength=STALENESS_BARS_MIN)
    names = [f"≥ {value}" if value == longest else str(value) for value in range(len(counts))]
    axes.set_title("Staleness")
    axes.set_xlabel("commits of others between parameters and update")
    axes.set_ylabel("updates")
    axes.grid(axis="y", alpha=0.25)
    bars = axes.bar(names, counts, width=0.7, color=GREY)
    if len(counts) <= LABELLED_BARS_MAX:
        axes.bar_label(bars, labels=[_share(count, len(record.steps)) for count in counts], padding=2, fontsize=9)
        axes.margins(y=0.12)


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if count else ""


def _smooth(values: npt.NDArray[np.floating] | npt.NDArray[np.integer], window: int) -> npt.NDArray[np.float64]:
    return np.convolve(values, np.full(window, 1 / window), mode="valid")
