"""The page of parity: how its numbers are grouped into lines, and how they are written as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Measurement:
    """One run of one row against its reference.

    table      optimizers, schedules, transforms or wrappers
    variant    what the row fixes; empty for one that draws everything
    hyper      what was drawn, by its names on the wire
    tolerance  (rtol, atol)
    error      the largest |x - y| / (atol + rtol * |y|) of all elements and steps
    """

    table: str
    name: str
    flavor: str
    dtype: str
    device: str
    reference: str
    variant: str
    hyper: tuple[tuple[str, object], ...]
    seed: int
    steps: int
    tolerance: tuple[float, float]
    error: float

    @property
    def line(self) -> tuple[str, ...]:
        """What has one line together."""
        return (self.name, self.flavor, self.reference, self.dtype, self.device)


COLUMNS: Mapping[str, Sequence[str]] = {
    "optimizers": ("optimizer", "flavor", "dtype", "device"),
    "schedules": ("schedule", "dtype"),
    "transforms": ("transform", "dtype", "device"),
    "wrappers": ("wrapper", "dtype", "device"),
}
SHARED_COLUMNS = ("reference", "variants", "runs", "seeds", "steps", "tolerance", "error / tolerance", "tried")


def write_table(table: str, measurements: Iterable[Measurement]) -> list[str]:
    """Markdown: one line for each optimizer (schedule, ...), flavor, dtype and reference; out of tolerance is bold."""
    columns = [*COLUMNS[table], *SHARED_COLUMNS]
    # float64 before float32.
    ordered = sorted(measurements, key=lambda one: (*one.line[:3], one.dtype != "float64", one.line))
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for _, group in groupby(ordered, key=lambda one: one.line):
        lines.append(_line(columns, list(group)))
    return lines


def read_tables(page: str) -> dict[str, list[dict[str, str]]]:
    """The lines of a written page by table: the cells by column."""
    found: dict[str, list[dict[str, str]]] = {}
    columns: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        table = next((table for table, (first, *_) in COLUMNS.items() if cells[:1] == [first]), "")
        if table:
            columns, rows = cells, found.setdefault(table, [])
        elif columns and len(cells) == len(columns) and not cells[0].startswith("---"):
            rows.append(dict(zip(columns, cells, strict=True)))
        elif not cells:
            columns = []
    return found


def _line(columns: Sequence[str], runs: Sequence[Measurement]) -> str:
    first, worst = runs[0], max(one.error for one in runs)
    seeds = sorted({one.seed for one in runs})
    cells = {
        "optimizer": f"`{first.name}`",
        "schedule": f"`{first.name}`",
        "transform": f"`{first.name}`",
        "wrapper": f"`{first.name}`",
        "flavor": f"`{first.flavor}`",
        "dtype": first.dtype,
        "device": first.device,
        "reference": first.reference,
        "variants": str(len({one.variant for one in runs})),
        "runs": str(len(runs)),
        "seeds": str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}",
        "steps": " or ".join(str(steps) for steps in sorted({one.steps for one in runs})),
        "tolerance": _tolerances(runs),
        "error / tolerance": f"{worst:.2g}" if worst <= 1 else f"**{worst:.2g}** ({_worst_words(runs)})",
        "tried": _tried(runs),
    }
    return f"| {' | '.join(cells[column] for column in columns)} |"


def _worst_words(runs: Sequence[Measurement]) -> str:
    worst = max(runs, key=lambda one: one.error)
    return f"{worst.variant or 'drawn'}, seed {worst.seed}"


def _tolerances(runs: Sequence[Measurement]) -> str:
    """What most variants are held to, then the others with their tolerance, as rtol, atol."""
    (usual, _), *others = Counter(one.tolerance for one in runs).most_common()
    words = _spell(usual)
    for tolerance, _ in others:
        variants = sorted({one.variant or "drawn" for one in runs if one.tolerance == tolerance})
        words += f"; {', '.join(variants)}: {_spell(tolerance)}"
    return words


def _spell(tolerance: tuple[float, float]) -> str:
    return ", ".join(f"{value:.0e}".replace("e-0", "e-") for value in tolerance)


def _tried(runs: Sequence[Measurement]) -> str:
    """Each hyperparameter that was given, with the values or between which of them it was."""
    values: dict[str, list[object]] = {}
    for one in runs:
        for name, value in one.hyper:
            values.setdefault(name, []).append(value)
    return ", ".join(f"{name} {_span(given)}" for name, given in sorted(values.items())) or "the defaults"


def _span(given: Sequence[object]) -> str:
    numbers = sorted(value for value in given if isinstance(value, (int, float)) and not isinstance(value, bool))
    words = sorted({_word(value) for value in given if isinstance(value, (bool, str, type(None)))})
    if any(isinstance(value, (list, tuple)) for value in given):
        words.append("a list")
    if numbers:
        words.insert(0, " to ".join(dict.fromkeys(map(_number, (numbers[0], numbers[-1])))))
    return "/".join(words)


def _number(value: float) -> str:
    """Whole numbers whole, others to two digits."""
    return f"{value:.0f}" if value == round(value, 0) and abs(value) < 1e6 else f"{value:.2g}"


def _word(value: object) -> str:
    return {"True": "on", "False": "off", "None": "none"}.get(str(value), str(value))
