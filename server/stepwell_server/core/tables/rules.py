"""Which optimizers work on a table's rows, and how: what a row's step is, and what missed steps make of it.

**The step.** In lazy mode a row is like a parameter of its own, which an update without it leaves alone. Under flavors
that count steps per parameter (torch) its step is the number of commits that touched it, so that bias corrections fit
what its slots have seen, however late the row came. Under flavors with one step for all (optax, Keras) the clock runs
on for idle rows: their step is the table's number of commits. sparse_adam counts like PyTorch's SparseAdam, for the
whole table. In exact mode the table stands for one dense parameter, and its step is the number of its commits.

**Missed steps.** In exact mode a row is brought up to date when it is touched or read, by the optimizer's companion
(`compiler/idle.py`). An optimizer without one has no closed form for idle rows.

**Weight decay** is applied with a row's gradient. Decoupled decay of idle rows is made up for in exact mode; L2 decay,
whose idle gradient goes through the optimizer's state, is not, and exact mode refuses it.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.program import IdleProgram, Program, idle_program
from stepwell_server.core.errors import ChangeRefused, RowsNotSupported
from stepwell_server.core.settings import Settings

LAZY, EXACT = "lazy", "exact"
MODES = (LAZY, EXACT)

_REMEDY = 'use sparse_mode "lazy", or a dense parameter'


@dataclass(frozen=True)
class RowRule:
    """What settings do to rows.

    program: the pass over a row with a gradient. idle: what missed steps make of a row; None where that is nothing.
    row_steps: whether each row has a step of its own.
    """

    program: Program
    idle: IdleProgram | None
    row_steps: bool


def check_rows(settings: Settings, mode: str, owner: str) -> None:
    """Raise RowsNotSupported where the settings do not work on rows in this mode."""
    definition = settings.definition
    what = f"{owner}: optimizer '{definition.name}'"
    if definition.arrays is not None:
        raise RowsNotSupported(
            f"{what} works on whole tensors, expected one that works on elements; use another one, or a dense parameter"
        )
    program = settings.program_with(())
    if len(program.stages) > 1 or program.scope:
        raise RowsNotSupported(
            f"{what} sums over whole tensors, expected one that works on elements; use another one, or a dense "
            "parameter"
        )
    required = sorted(name for name, need in definition.inputs.items() if need == "required")
    # Without an optional input a slot may be read that nothing ever writes.
    if required or settings.program.last.outputs.keys() != program.last.outputs.keys():
        raise RowsNotSupported(
            f"{what} needs {', '.join(required or definition.inputs)} beside the gradient, which rows do not bring; "
            "use another one, or a dense parameter"
        )
    if settings.point("parameters") is not None:
        raise RowsNotSupported(
            f"{what} keeps other values than it serves, which rows do not have; serve what is stored, or use a dense "
            "parameter"
        )
    if mode == EXACT:
        _check_exact(settings, what)


def row_rule(settings: Settings, mode: str) -> RowRule:
    """What settings that `check_rows` has passed do to rows."""
    program = settings.program_with(())
    if mode != EXACT:
        return RowRule(program, None, settings.step_per_parameter and not settings.definition.table_step)
    idle = _idle_of(settings)
    return RowRule(program, idle if idle.moves else None, row_steps=False)


def check_change(before: RowRule, after: RowRule, owner: str) -> None:
    """Raise ChangeRefused where rows that wait for what they have missed could not make sense of new settings."""
    if _form(before.idle) != _form(after.idle):
        raise ChangeRefused(
            f"{owner}: the change would alter how idle rows move (decay or momentum that comes or goes), expected one "
            "of numbers alone; keep such numbers above 0, or give them a schedule when the table is created"
        )


def _form(idle: IdleProgram | None) -> tuple[Any, ...]:
    """What a companion's kernel does, whatever the numbers are."""
    if idle is None:
        return ()
    last = idle.program.last
    parts = [(name, ast.unparse(value)) for name, value in (*last.elements, *last.outputs.items())]
    return idle.pairs, last.host_source, tuple(parts)


def _idle_of(settings: Settings) -> IdleProgram:
    values = settings.values_of(settings.own)
    return idle_program(settings.definition, values, frozenset(settings.schedules))


def _check_exact(settings: Settings, what: str) -> None:
    companion = settings.definition.idle
    if companion is None or settings.definition.table_step:
        raise RowsNotSupported(
            f'{what} has no closed form for rows without a gradient, which sparse_mode "exact" needs; {_REMEDY}'
        )
    # What has a schedule may become anything.
    values = seen_values(settings)
    for reason, holds in companion.refuse.items():
        if holds(values):
            raise RowsNotSupported(f'{what} in sparse_mode "exact": {reason}; or {_REMEDY}')
    if not values.get("weight_decay"):
        return
    if not values.get("decoupled_weight_decay"):
        raise RowsNotSupported(
            f'{what} has weight_decay that goes through its state, which sparse_mode "exact" cannot make up for in '
            f"idle rows; leave it at 0, {_REMEDY}"
        )
    if not companion.decays:
        raise RowsNotSupported(
            f'{what} has no closed form for rows that decay, which sparse_mode "exact" needs; leave weight_decay at 0, '
            f"{_REMEDY}"
        )


def seen_values(settings: Settings) -> Mapping[str, Value]:
    """The hyperparameters, where those with a schedule count as 1."""
    return {**settings.own, **dict.fromkeys(settings.schedules, 1.0)}
