"""The coefficients of rows with a gradient: one set where they share a step, else one for each step that occurs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.errors import InvalidValue

Integers = NDArray[np.int64]

LARGEST = {np.dtype(kind): float(np.finfo(kind).max) for kind in (np.float32, np.float64)}
# Steps up to this one keep their coefficients while the hyperparameters stay: most rows are touched less often.
_STEPS_MAX = 1 << 14


def cast(program: Program, table: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Coefficients in the table's own type; raises InvalidValue for those that it cannot hold."""
    _check_size(program, float(np.abs(table).max(initial=0.0)), dtype)
    return table.astype(dtype)


def _check_size(program: Program, largest: float, dtype: np.dtype[Any]) -> None:
    if largest > LARGEST[dtype]:
        raise InvalidValue(
            f"optimizer '{program.name}': the hyperparameters give coefficients up to {largest:g} that {dtype} cannot "
            "hold, expected finite ones; use smaller values"
        )


def shared(
    program: Program,
    step: int,
    values: Mapping[str, Value],
    scalars: Mapping[str, float],
    given: Mapping[str, float],
    dtype: np.dtype[Any],
) -> tuple[NDArray[Any], dict[str, float]]:
    """The one row of coefficients of rows that share a step, and the scalars after it. Raises InvalidValue."""
    before = [scalars[name] for name in program.scalars]
    coefficients, advanced = program.host(step, values, before, given=given)
    _check_size(program, max((abs(number) for number in coefficients), default=0.0), dtype)
    return np.array([coefficients], dtype), dict(zip(program.scalars, advanced, strict=True))


def by_scalars(
    program: Program,
    steps: Integers,
    values: Mapping[str, Value],
    scalars: NDArray[np.float64],
    given: Mapping[str, float],
    dtype: np.dtype[Any],
) -> tuple[NDArray[Any], Integers, NDArray[np.float64]]:
    """For rows with steps and scalars of their own: coefficients, each row's place in them, scalars after the step.

    scalars: shape (rows, scalars). Raises InvalidValue.
    """
    keys = np.concatenate([steps[:, None].astype(np.float64), scalars], axis=1)
    distinct, places = np.unique(keys, axis=0, return_inverse=True)
    table = np.empty((len(distinct), program.last.coefficients))
    after = np.empty((len(distinct), scalars.shape[1]))
    for number, key in enumerate(distinct.tolist()):
        table[number], after[number] = program.host(int(key[0]), values, key[1:], given=given)
    places = places.reshape(-1)
    return cast(program, table, dtype), places, after[places]


@dataclass
class StepCoefficients:
    """For rows with steps of their own and no scalars; kept until a hyperparameter changes."""

    dtype: np.dtype[Any]
    _program: Program | None = None
    _values: dict[str, Any] = field(default_factory=dict)
    _table: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0)))
    _known: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def find(
        self, program: Program, steps: Integers, values: Mapping[str, Value], given: Mapping[str, float]
    ) -> tuple[NDArray[Any], Integers]:
        """The coefficients, and each row's place in them. Raises InvalidValue."""
        present = {**values, **given}
        most = int(steps.max(initial=0))
        changed = present != self._values or program is not self._program
        if changed:
            self._program, self._values = program, present
            self._table = np.zeros((0, program.last.coefficients), self.dtype)
            self._known = np.zeros(0, np.bool_)
        if changed or most > _STEPS_MAX:
            # Hyperparameters that change with every commit are not worth keeping.
            distinct, found = np.unique(steps, return_inverse=True)
            return self._compute(program, distinct, values, given), found.reshape(-1)
        if most > len(self._known):
            more = max(64, 1 << most.bit_length()) - len(self._known)
            self._table = np.concatenate([self._table, np.zeros((more, self._table.shape[1]), self.dtype)])
            self._known = np.concatenate([self._known, np.zeros(more, np.bool_)])
        places = steps - 1
        unknown = np.unique(steps[~self._known[places]])
        if len(unknown):
            self._table[unknown - 1] = self._compute(program, unknown, values, given)
            self._known[unknown - 1] = True
        return self._table, places

    def _compute(
        self, program: Program, steps: Integers, values: Mapping[str, Value], given: Mapping[str, float]
    ) -> NDArray[Any]:
        table = np.empty((len(steps), program.last.coefficients))
        for number, step in enumerate(steps.tolist()):
            table[number] = program.host(step, values, (), given=given)[0]
        return cast(program, table, self.dtype)
