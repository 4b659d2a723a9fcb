"""The command line of the benchmarks."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import kernel, kernels, memory, small_step, start, step
from tests.benchmarks.options import Options
from tests.benchmarks.report import Table, describe_machine, print_footer, print_table

SECTIONS: dict[str, Callable[[Options], Table]] = {
    "step": step.benchmark,
    "kernel": kernel.benchmark,
    "kernels": kernels.benchmark,
    "small": small_step.benchmark,
    "memory": memory.benchmark,
    "start": start.benchmark,
}


def main() -> None:
    """Measure, print, and with --json write the same figures to a file."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=...", description=__doc__)
    parser.add_argument("--size", type=_count, default=25_000_000, help="parameters of the large run, float32")
    parser.add_argument("--rounds", type=_count, default=9, help="timed turns of every row of a table")
    parser.add_argument("--small-rounds", type=_count, default=500, help="the same for the table of small steps")
    parser.add_argument("--only", choices=list(SECTIONS), action="append", help="this table; may be given again")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures and every sample to a file")
    arguments = parser.parse_args()
    options = Options(arguments.size, arguments.rounds, arguments.small_rounds)

    # Before the first table: the load is then what others put on the machine.
    machine = describe_machine(options)
    tables = []
    for name in arguments.only or SECTIONS:
        tables.append(SECTIONS[name](options))
        print_table(tables[-1])
    print_footer(machine)
    if arguments.json is not None:
        figures = {"machine": machine, "tables": [table.to_data() for table in tables]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _count(text: str) -> int:
    value = int(text.replace("_", ""))
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value
