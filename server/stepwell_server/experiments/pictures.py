"""The pictures: schedules over the clock, and optimizers on a problem."""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from PIL import Image

from stepwell_server.experiments.problems import Problem
from stepwell_server.experiments.runner import Comparison, Trace

# Okabe & Ito's colours, which the colour-blind can tell apart too; the dashes tell them apart without any colour.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: Final = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
GREY: Final = "#718096"

SILENCE_MIN: Final = 20
"""So many steps in a row without a gradient are shaded."""
_DECADES_MAX: Final = 14
_STRONG, _FAINT = 1.0, 0.4
_FAR: Final = 1e6
"""What flies off further is drawn there, out of sight: Matplotlib overflows before float64 does."""
_PALETTE: Final = 128


def draw_schedules(values: Mapping[str, npt.NDArray[np.float64]], title: str, path: Path) -> None:
    """Write a PNG: one line per schedule, its value at each clock from 0."""
    figure = _figure(9, 4.6)
    axes = figure.subplots()
    for style, (label, line) in zip(_styles(), values.items(), strict=False):
        # A value holds until the next update takes another.
        axes.plot(line, drawstyle="steps-post", label=label, **style)
    axes.set_xlabel("clock (updates made before)")
    axes.set_ylabel("value")
    # Fixed point up to large numbers: offsets above the axis are easily overlooked.
    axes.ticklabel_format(axis="y", useOffset=False, style="sci", scilimits=(-4, 6))
    steps = max(len(line) for line in values.values())
    axes.set_xlim(0, steps)
    if min(float(line.min()) for line in values.values()) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_title(title, fontweight="bold")
    _finish(figure, [axes])
    _save(figure, path)


def draw_comparison(comparison: Comparison, problem: Problem, traces: Mapping[str, Trace], path: Path) -> None:
    """Write a PNG: where each contestant went, its loss, and its effective learning rate per feature."""
    figure = _figure(11, 8)
    ((way, loss), rates) = figure.subplots(2, 2)
    styles = dict(zip(traces, _styles(), strict=False))
    if problem.view:
        _draw_path(way, problem, traces, styles)
    elif problem.minimum is not None:
        _draw_distance(way, problem, traces, styles)
    else:
        _draw_position(way, problem, traces, styles)
    _draw_loss(loss, problem, traces, styles)
    for axes, group in zip(rates, problem.groups, strict=True):
        _draw_rate(axes, problem, group, traces, styles)
    bottom = [_range(axes, "y") for axes in rates]
    for axes in rates:  # one scale, so that the two can be compared
        axes.set_ylim(min(low for low, _ in bottom), max(high for _, high in bottom))
    for axes in (loss, *rates) if problem.view else (way, loss, *rates):
        axes.set_xlabel(axes.get_xlabel() or "step")
        axes.set_xlim(0, comparison.steps)
    figure.suptitle(f"{comparison.problem}: {problem.summary}", fontsize=13, fontweight="bold")
    _finish(figure, [way, loss, *rates], styles)
    _save(figure, path)


Styles = Mapping[str, Mapping[str, Any]]


def _draw_path(axes: Axes, problem: Problem, traces: Mapping[str, Trace], styles: Styles) -> None:
    assert problem.view is not None
    left, right, low, high = problem.view
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(low, high, 200))
    heights = np.array([problem.loss(point) for point in np.column_stack([x.ravel(), y.ravel()])]).reshape(x.shape)
    levels = np.geomspace(max(heights.min(), heights.max() / 1e4), heights.max(), 14)
    axes.contour(x, y, heights, levels=levels, colors=GREY, linewidths=0.6, alpha=0.5)
    for label, trace in traces.items():
        axes.plot(*_capped(trace.points, _FAR).T, **{**styles[label], "linewidth": 1.0, "alpha": 0.8})
    for label, trace in traces.items():  # above all paths
        known = trace.points[np.isfinite(trace.points).all(axis=1)]
        axes.plot(
            *_capped(known[-1], _FAR),
            "o",
            color=styles[label]["color"],
            markeredgecolor="white",
            markersize=7,
            zorder=4,
        )
    axes.plot(*problem.start, "o", color="black", markersize=6)
    # On the side that no path goes to.
    side = -1 if problem.minimum is not None and problem.start[0] < problem.minimum[0] else 1
    alignment = "left" if side > 0 else "right"
    place = (float(problem.start[0]), float(problem.start[1]))
    axes.annotate("start", place, (7 * side, 0), textcoords="offset points", ha=alignment, va="center")
    if problem.minimum is not None:
        axes.plot(*problem.minimum, "*", color="black", markersize=11, zorder=5)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_title("Path (star: the minimum, dots: the last points)")
    first, second = problem.groups
    axes.set_xlabel(first)
    axes.set_ylabel(second)


def _draw_distance(axes: Axes, problem: Problem, traces: Mapping[str, Trace], styles: Styles) -> None:
    """How far each group is from the minimum; the second group fainter."""
    assert problem.minimum is not None
    for label, trace in traces.items():
        for components, alpha in zip(problem.groups.values(), (_STRONG, _FAINT), strict=True):
            away = np.abs(trace.points - problem.minimum)[:, list(components)].mean(axis=1)
            axes.plot(_capped(away, _FAR), **{**styles[label], "alpha": alpha})
    first = np.abs(problem.start - problem.minimum).max()
    axes.set_title("Distance to the minimum")
    axes.set_ylabel("mean distance of the parameters")
    axes.set_ylim(0, min(axes.get_ylim()[1], 3 * first))
    _name_strengths(axes, problem)


def _draw_position(axes: Axes, problem: Problem, traces: Mapping[str, Trace], styles: Styles) -> None:
    """How far each component came; the second one fainter."""
    for label, trace in traces.items():
        for components, alpha in zip(problem.groups.values(), (_STRONG, _FAINT), strict=True):
            axes.plot(-trace.points[:, list(components)].mean(axis=1), **{**styles[label], "alpha": alpha})
    axes.set_title("Way made against the gradient")
    axes.set_ylabel("parameter, sign changed")
    _name_strengths(axes, problem)


def _name_strengths(axes: Axes, problem: Problem) -> None:
    """Say which group is drawn strong and which faint."""
    lines = [Line2D([], [], color="black", alpha=alpha) for alpha in (_STRONG, _FAINT)]
    axes.legend(lines, list(problem.groups), frameon=False, loc="best")


def _draw_loss(axes: Axes, problem: Problem, traces: Mapping[str, Trace], styles: Styles) -> None:
    window = problem.window if problem.random else 1
    start = problem.loss(problem.start)
    lines = {label: _running_mean(trace.losses, window) for label, trace in traces.items()}
    for label, line in lines.items():
        axes.plot(line if problem.minimum is None else _capped(line, _FAR * start), **styles[label])
    axes.set_title("Loss")
    if problem.minimum is None:
        axes.set_ylabel("mean loss")
        return
    axes.set_ylabel("loss above the lowest possible" + (f",\nmean of {window} steps" if window > 1 else ""))
    axes.set_yscale("log")
    _, top = axes.get_ylim()
    lowest = min((float(line[line > 0].min()) for line in lines.values()), default=start)
    # What shrinks to the last bit, or flies off, would leave no room for the rest.
    axes.set_ylim(max(lowest / 2, start * 10.0**-_DECADES_MAX), min(top, 100 * start))


def _draw_rate(axes: Axes, problem: Problem, group: str, traces: Mapping[str, Trace], styles: Styles) -> None:
    components = list(problem.groups[group])
    for place, (label, trace) in enumerate(traces.items()):
        rates = trace.effective_rates(components, problem.window)
        shown = np.flatnonzero(np.isfinite(rates) & (rates > 0))
        gaps = shown.size > 0 and bool(np.any(np.diff(shown) > SILENCE_MIN))
        axes.plot(shown, rates[shown], **{**styles[label], **({"alpha": _FAINT, "linewidth": 0.8} if gaps else {})})
        if gaps:  # there is a rate only where a gradient is; the faint line leads the eye over what lies between
            size = max(2.0, 7.0 - 1.5 * place)  # smaller on top of larger, where rates are the same
            axes.plot(shown, rates[shown], "o", color=styles[label]["color"], markersize=size, markeredgewidth=0)
    gradients = next(iter(traces.values())).gradients[:, components]
    silences = _silences(np.nan_to_num(gradients, nan=1.0)) if problem.minimum is None else []
    for begin, end in silences:
        axes.axvspan(begin, end, color=GREY, alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    axes.set_title(f"Effective learning rate: {group}")
    axes.set_xlabel("step" + (" (shaded: zero gradient)" if silences else ""))
    mean = f", mean of {problem.window} steps" if problem.window > 1 else ""
    axes.set_ylabel(f"|step| / |gradient|{mean}")


def _silences(gradients: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Where the gradient is zero for long: (first step, step after the last)."""
    runs, begin = [], 0
    for silent, steps in itertools.groupby(np.all(gradients == 0, axis=1)):
        length = len(list(steps))
        if silent and length >= SILENCE_MIN:
            runs.append((begin, begin + length))
        begin += length
    return runs if len(runs) <= 60 else []


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: it would choose a window system and keep the figure.
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def _styles() -> Any:
    """Colour and dashes for one line after another; no two alike among the first 28."""
    for number in itertools.count():
        lap, place = divmod(number, len(COLOURS))
        yield {"color": COLOURS[place], "linestyle": _DASHES[(place + lap) % len(_DASHES)], "linewidth": 1.6}


def _finish(figure: Figure, all_axes: Sequence[Axes], labels: Styles | None = None) -> None:
    """Grid, no frame, and one legend below everything."""
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    if labels is None:
        handles, names = all_axes[0].get_legend_handles_labels()
    else:
        handles = [all_axes[1].plot([], [], **style)[0] for style in labels.values()]
        names = list(labels)
    longest = max(map(len, names))
    columns = max(1, min(len(names), 120 // (longest + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=4)


def _capped(values: npt.NDArray[np.float64], bound: float) -> npt.NDArray[np.float64]:
    return np.clip(values, -bound, bound)


def _running_mean(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """The mean of the last `window` values, of fewer at the beginning."""
    if window == 1:
        return values
    total = np.concatenate([[0.0], np.cumsum(np.minimum(values, 1e100))])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return np.asarray((total[ends] - total[begins]) / (ends - begins))


def _save(figure: Figure, path: Path) -> None:
    """As a PNG with a palette: a third of the size of one with full colours, and it looks the same."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def _range(axes: Axes, which: str) -> tuple[float, float]:
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    return float(low), float(high)
