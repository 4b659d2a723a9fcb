"""Measures the tables that were chosen; prints them, and writes the figures and the picture."""

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from stepwell_server.benchmarks.options import TABLES, Options
from stepwell_server.benchmarks.report import Table, describe_machine, print_footer, print_table

# The module of each table, where it is called otherwise.
_MODULES = {"small": "small_step", "trainer": "trainer_memory"}


def measure(tables: Sequence[str], options: Options, figures: Path | None, picture: Path | None) -> None:
    """The tables in their own order."""
    if picture is not None:
        # Before minutes of measuring: matplotlib comes with the extra demo.
        from stepwell_server.benchmarks.picture import draw
    # Before the first table: the load is then what others put on the machine.
    machine = describe_machine(options)
    measured: dict[str, Table] = {}
    for name in TABLES:
        if name in tables:
            module = importlib.import_module(f"stepwell_server.benchmarks.{_MODULES.get(name, name)}")
            benchmark: Callable[[Options], Table] = module.benchmark
            measured[name] = benchmark(options)
            print_table(measured[name])
    print_footer(machine)
    if figures is not None:
        data = {"machine": machine, "tables": {name: table.to_data() for name, table in measured.items()}}
        figures.write_text(json.dumps(data, indent=2) + "\n")
    if picture is not None:
        draw(measured, machine, picture)
