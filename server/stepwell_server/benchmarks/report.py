"""Tables as Markdown, which reads well in a terminal and can be put into docs/benchmarks.md as it is."""

import datetime as dt
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepwell_server.benchmarks.options import Options

_PACKAGES = ("stepwell", "numpy", "numba", "grpcio", "protobuf", "torch", "ray")
_UNPRINTED = ("key", "samples")


@dataclass(frozen=True)
class Table:
    """rows: figures by heading; "key" and "samples" are for the JSON file only."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        return {"title": self.title, "rows": [dict(row) for row in self.rows], "notes": list(self.notes)}


def print_table(table: Table) -> None:
    headings = [heading for heading in table.rows[0] if heading not in _UNPRINTED]
    cells = [[_text(row.get(heading)) for heading in headings] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    print(f"\n{table.title}\n")
    for line in (headings, rule, *cells):
        padded = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print(f"| {' | '.join(padded)} |")
    for note in table.notes:
        print(f"\n{note}")


def describe_machine(options: Options) -> dict[str, str]:
    """What the figures depend on."""
    given = f"{options.size:,} parameters, {options.rounds} rounds, {options.small_rounds} small rounds"
    return {**describe_host(options.threads), "options": given}


def describe_host(threads: int | None = None) -> dict[str, str]:
    """The date, this machine, its load now, and the versions of what runs on it. threads: how many are used."""
    cores = threads or len(os.sched_getaffinity(0))
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{cores} cores of {_processor()}, {_memory_gigabytes():.0f} GB of memory",
        "load before": f"{os.getloadavg()[0]:.2f} over the last minute",
        "system": platform.platform(),
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
    }


def print_footer(machine: Mapping[str, str]) -> None:
    print()
    for name, text in machine.items():
        print(f"- {name}: {text}")


def _text(value: object) -> str:
    """Three digits that matter."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gigabytes() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
