"""The tables as a picture: a panel for each that says more when it is drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from stepwell_server.benchmarks.report import Table

_OURS, _OTHERS = "#2a6f97", "#b0b7bf"
_COLORS = {"stream": "#2a6f97", "shared memory": "#c8553d"}
_WIDTH, _HEIGHT = 11.0, 4.2


def draw(tables: Mapping[str, Table], machine: Mapping[str, str], path: Path) -> None:
    """Draw what there is into one PNG."""
    panels = {
        "step": _bars,
        "encodings": _bars,
        "small": _bars,
        "kernel": _bars,
        "workers": _workers,
        "growth": _growth,
        "steady": _steady,
    }
    found = [(panels[name], table) for name, table in tables.items() if name in panels]
    if not found:
        return
    # Not pyplot: it would choose a window system and keep the figure.
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 1, squeeze=False)
    for (panel, table), axis in zip(found, axes[:, 0], strict=True):
        axis.set_title(table.title, fontsize=10, loc="left", wrap=True)
        panel(axis, table)
        axis.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, -0.01, f"{machine['machine']}; {machine['date']}; {machine['versions']}", fontsize=7, va="top")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _bars(axis: Axes, table: Table) -> None:
    """Medians as bars, and the fastest and slowest turn as a line on each."""
    rows = list(reversed(table.rows))
    unit = next(heading.removeprefix("median ") for heading in rows[0] if heading.startswith("median "))
    medians = [row[f"median {unit}"] for row in rows]
    spread = [
        [row[f"median {unit}"] - row[f"min {unit}"] for row in rows],
        [row[f"max {unit}"] - row[f"median {unit}"] for row in rows],
    ]
    ours = [_OURS if row["what"].startswith(("Stepwell", "gradients in")) else _OTHERS for row in rows]
    axis.barh([row["what"] for row in rows], medians, xerr=spread, color=ours, ecolor="#555555", capsize=2)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel(f"{unit}: median, fastest and slowest turn")


def _by_transport(table: Table) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in table.rows:
        found.setdefault(row["transport"], []).append(row)
    return found


def _lines(axis: Axes, table: Table, x: str, y: str, **style: Any) -> None:
    for transport, rows in _by_transport(table).items():
        color = _COLORS[transport]
        axis.plot([row[x] for row in rows], [row[y] for row in rows], color=color, label=transport, **style)
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def _workers(axis: Axes, table: Table) -> None:
    _lines(axis, table, "workers", "steps/s", marker="o")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, loc="upper left")
    waits = axis.twinx()
    _lines(waits, table, "workers", "p99 ms", linestyle=":", marker=".")
    waits.set_yscale("log")
    waits.set_ylabel("p99 ms (dotted)")


def _growth(axis: Axes, table: Table) -> None:
    _lines(axis, table, "parameters", "median ms", marker="o")
    for transport, rows in _by_transport(table).items():
        line = [row["median ms"] / row["x line"] for row in rows]
        axis.plot([row["parameters"] for row in rows], line, color=_COLORS[transport], linestyle="--", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylabel("median ms (dashed: fixed cost + slope)")
    axis.legend(frameon=False)


def _steady(axis: Axes, table: Table) -> None:
    _lines(axis, table, "steps", "server MB", marker=".")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
