"""What a row begins with: a pure function of the table's seed and name, the row's id and the element's place."""

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.tables.row_loops import CONSTANT, NORMAL, UNIFORM
from stepwell_server.core.tables.spec import TableSpec

_KINDS = {
    "constant": (CONSTANT, "value", "value"),
    "uniform": (UNIFORM, "minimum", "maximum"),
    "normal": (NORMAL, "mean", "std"),
}


class Initializer:
    """Two hashes, of the id and of the place, are added and hashed again: 64 random bits for each element.

    So neither the order in which rows come nor who asks for them makes a difference. Each element is computed in
    float64 and rounded to the table's dtype.
    """

    def __init__(self, spec: TableSpec, loops: SimpleNamespace) -> None:
        """loops: see `row_loops.py`."""
        self._loops = loops
        self._kind, first, second = _KINDS[str(spec.initializer["name"])]
        self._first, self._second = float(spec.initializer[first]), float(spec.initializer[second])
        digest = hashlib.blake2b(f"{spec.seed} {spec.name}".encode(), digest_size=16).digest()
        self._key, columns_key = np.frombuffer(digest, "<u8").astype(np.uint64)
        places = np.arange(spec.width, dtype=np.uint64)
        # Odd multiples of the golden ratio lie far apart; the loop hashes them once more.
        self._columns: NDArray[np.uint64] = columns_key + places * np.uint64(0x9E3779B97F4A7C15)
        self._like = np.zeros(1, spec.element_type)

    def write(self, ids: NDArray[np.int64], addresses: NDArray[np.uint64]) -> None:
        """Write the parameters of rows to where they lie."""
        arguments: tuple[Any, ...] = (self._like, self._kind, self._first, self._second, self._key, self._columns)
        self._loops.initialise(ids, addresses, *arguments)
