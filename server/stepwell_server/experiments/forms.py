"""What optimizers and schedules take, as tables for the terminal."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from stepwell_server.core.arguments import Required, Value
from stepwell_server.core.optimizers import OPTIMIZERS, Definition
from stepwell_server.core.schedules import ScheduleEntry, list_schedules
from stepwell_server.experiments.runner import Comparison, Trace

_PIPED_COLUMNS = 160


def show(*parts: RenderableType) -> None:
    """Print, as wide as the terminal; into a pipe as wide as a table should be at most."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_COLUMNS)
    console.print(Group(*parts))


def optimizers() -> Table:
    """Every optimizer, sorted by name."""
    table = _table("optimizer", "flavors", "what it is")
    for name in sorted(OPTIMIZERS):
        table.add_row(name, ", ".join(OPTIMIZERS[name].flavors), escape(OPTIMIZERS[name].summary))
    return table


def schedules() -> Table:
    """Every schedule, sorted by name."""
    table = _table("schedule", "what it is")
    for entry in list_schedules():
        table.add_row(entry.name, escape(entry.summary))
    return table


def optimizer(definition: Definition) -> Group:
    """One optimizer's arguments, with the default that each flavor gives them."""
    flavors = list(definition.flavors)
    table = _table("argument", *flavors, "expected")
    by_flavor = {flavor: definition.arguments_of(flavor) for flavor in flavors}
    for name, argument in by_flavor[flavors[0]].items():
        defaults = [_default(by_flavor[flavor][name].default) for flavor in flavors]
        table.add_row(name, *defaults, escape(argument.expected))
    facts = [definition.summary, f"reference: {definition.reference}"]
    facts += [f"gives the numbers of: {definition.matches}"] if definition.matches else []
    facts += [f"keeps: {', '.join(definition.state)}"] if definition.state else []
    facts += [f"also takes with an update: {name} ({need})" for name, need in definition.inputs.items()]
    return Group(*map(escape, facts), table)


def schedule(entry: ScheduleEntry) -> Group:
    """One schedule's arguments."""
    facts = [entry.summary, f"reference: {entry.reference}"]
    facts += [f"gives the numbers of: {entry.matches}"] if entry.matches else []
    facts += ["its values are absolute: they do not depend on the initial one"] if entry.absolute else []
    facts += ["it follows what is reported, not the clock"] if entry.stateful else []
    if entry.children:
        facts.append(f"under schedules: {'exactly one schedule' if entry.children == 1 else 'one schedule or more'}")
    if not entry.arguments:
        return Group(*map(escape, facts))
    table = _table("argument", "default", "expected")
    for argument in entry.arguments:
        table.add_row(argument.name, _default(argument.default), escape(argument.expected))
    return Group(*map(escape, facts), table)


def values(clocks: Iterable[int], values: npt.NDArray[np.float64]) -> Table:
    """A schedule's values at some clocks."""
    table = _table("clock", "value", numbers=(0, 1))
    for clock in clocks:
        table.add_row(f"{clock:,}", f"{values[clock]:.8g}")
    return table


def results(comparison: Comparison, traces: dict[str, Trace], groups: dict[str, Sequence[int]]) -> Table:
    """What came of a comparison: losses, and the effective rates over the last tenth."""
    table = _table(
        "contestant",
        "last loss",
        "lowest loss",
        *(f"rate: {group}" for group in groups),
        numbers=range(1, 3 + len(groups)),
    )
    for label, trace in traces.items():
        if trace.diverged is not None:
            lowest = np.nanmin(trace.losses)
            table.add_row(label, f"left the finite numbers in step {trace.diverged:,}", f"{lowest:.4g}")
            continue
        tail = max(1, comparison.steps // 10)
        rates = [trace.effective_rates(components, tail)[-1] for components in groups.values()]
        table.add_row(
            label,
            f"{trace.losses[-1]:.4g}",
            f"{trace.losses.min():.4g}",
            *(f"{rate:.4g}" if np.isfinite(rate) else "no gradient" for rate in rates),
        )
    return table


def _default(value: Value | Required) -> str:
    if isinstance(value, Required):
        return "required"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return escape("[" + ", ".join(f"{number:g}" for number in value) + "]")
    return escape(value) if isinstance(value, str) else f"{value:g}"


def _table(*columns: str, numbers: Iterable[int] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    right = set(numbers)
    for place, column in enumerate(columns):
        # Names and defaults stay whole; what is long is words, in the last column.
        words = place == len(columns) - 1 and place not in right
        table.add_column(column, justify="right" if place in right else "left", overflow="fold", no_wrap=not words)
    return table
