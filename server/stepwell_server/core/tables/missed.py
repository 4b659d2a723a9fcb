"""Bringing rows up to the present step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.program import IdleProgram
from stepwell_server.core.devices.cpu import Addresses, RowKernel
from stepwell_server.core.tables.chunks import RowLayout
from stepwell_server.core.tables.coefficients import cast
from stepwell_server.core.tables.history import History

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class MissedSteps:
    """history: up to now. values: the hyperparameters of the last step. slots: a record's, in their order."""

    idle: IdleProgram
    kernel: RowKernel
    loops: SimpleNamespace
    history: History
    values: Mapping[str, Value]
    layout: RowLayout
    slots: tuple[str, ...]

    def frozen(self) -> "MissedSteps":
        """The same, while the table goes on."""
        return replace(self, history=self.history.frozen())

    def coefficients(self, lasts: Integers) -> NDArray[Any]:
        """For rows whose values stand after these steps, 0 for what no gradient has reached; shape (rows, n).

        Raises InvalidValue.
        """
        pairs = self.history.compose(self.loops, lasts)
        values: dict[str, Any] = dict(self.values)
        for number in range(self.idle.pairs):
            values[f"idle_product_{number}"] = pairs[:, number, 0]
            values[f"idle_sum_{number}"] = pairs[:, number, 1]
        values["last"] = lasts
        return cast(self.idle.program, self.idle.program.host_rows(len(lasts), values), self.layout.dtype)

    def write(self, addresses: Addresses, table: NDArray[Any]) -> None:
        """Bring records up to date, in place. table: their coefficients. Cannot fail."""
        self._run(addresses, addresses, table, out=False)

    def write_current(self, addresses: Addresses, lasts: Integers, targets: Addresses) -> None:
        """Write the parameters as they are now, and leave the records as they are."""
        self._run(addresses, targets, self.coefficients(lasts), out=True)

    def _run(self, addresses: Addresses, others: Addresses, table: NDArray[Any], out: bool) -> None:
        places = np.arange(len(addresses), dtype=np.uint64)
        offsets = byte_offsets(self.layout, self.slots, self.idle.program.slots)
        self.kernel.update(addresses, others, places, table, offsets, self.layout.width, out)


@lru_cache(maxsize=256)
def byte_offsets(layout: RowLayout, slots: tuple[str, ...], used: tuple[str, ...]) -> Addresses:
    """Where in a record a program's arrays lie, and what a record takes, in bytes."""
    size = layout.width * layout.dtype.itemsize
    places = {name: place for place, name in enumerate(("param", *slots))}
    return np.array([*(places[name] * size for name in ("param", *used)), layout.record_bytes], np.uint64)
