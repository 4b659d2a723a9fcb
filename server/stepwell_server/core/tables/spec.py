"""What a client asks for when it creates a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepwell_server.core.arguments import (
    COUNT,
    REQUIRED,
    Argument,
    Kind,
    Range,
    Value,
    check_arguments,
    unknown,
)
from stepwell_server.core.errors import InvalidSpec, InvalidValue
from stepwell_server.core.layout import check_name
from stepwell_server.core.settings import Moment, Settings, make_settings
from stepwell_server.core.tables.rules import LAZY, MODES, check_rows

WIDTH_MAX = 1 << 16
ROWS_MAX = 1 << 40
SEED_MAX = (1 << 63) - 1
DTYPES = ("float32", "float64")

_NUMBER = Range(-1e30, 1e30)  # float32 holds what is drawn between or around such numbers
INITIALIZERS: Mapping[str, Sequence[Argument]] = {
    "constant": [Argument("value", Kind.NUMBER, 0.0, range=_NUMBER)],
    "uniform": [
        Argument("minimum", Kind.NUMBER, -0.05, range=_NUMBER),
        Argument("maximum", Kind.NUMBER, 0.05, range=_NUMBER),
    ],
    "normal": [
        Argument("mean", Kind.NUMBER, 0.0, range=_NUMBER),
        Argument("std", Kind.NUMBER, 0.05, range=Range(0.0, 1e30)),
    ],
}
_ADMISSION = [
    # What is counted in one byte.
    Argument("touches", Kind.INTEGER, REQUIRED, range=Range(1.0, 255.0)),
    Argument("bytes_max", Kind.INTEGER, float(16 << 20), range=Range(1024.0, float(1 << 36))),
]
EVICTIONS: Mapping[str, Sequence[Argument]] = {
    "least_recent": [],
    "age": [Argument("age", Kind.INTEGER, REQUIRED, range=COUNT)],
}


@dataclass(frozen=True)
class TableSpec:
    """A table's definition, in plain data.

    name: as of runs. width: elements of a row, 1 to 65,536. dtype: "float32" or "float64".
    initializer: {"name": "constant", "value"}, {"name": "uniform", "minimum", "maximum"} or {"name": "normal", "mean",
    "std"}; what a row begins with follows from it, the seed, the table's name and the row's id. seed: of 64 bits.
    optimizer, flavor, hyperparameters, schedules: as of runs; flavor "": the optimizer's first.
    sparse_mode: "lazy", where a commit touches the rows that it brings and no others, or "exact", where every row ends
    up as if each commit had brought it a gradient, of zero if none came.
    rows_max: how many rows there may be at once.
    admission: {"touches": n, "bytes_max"}: a row is created by the n-th commit that brings its id, and the gradients of
    those before it are counted and dropped; counting takes at most bytes_max. None creates a row at once.
    eviction: {"by": "least_recent"}: where there is no room for a new row, that which was not touched for the longest
    goes; {"by": "age", "age": n}: rows that n commits of the table have not touched go with the next one. None evicts
    nothing. A row that went begins anew when its id comes again.
    """

    name: str
    width: int
    dtype: str = "float32"
    initializer: Mapping[str, Any] = field(default_factory=lambda: {"name": "uniform"})
    seed: int = 0
    optimizer: str = "adagrad"
    flavor: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    schedules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sparse_mode: str = LAZY
    rows_max: int = 1 << 31
    admission: Mapping[str, Any] | None = None
    eviction: Mapping[str, Any] | None = None

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "TableSpec":
        """A spec from plain data, checked but for its optimizer, which `settings` checks.

        Raises InvalidName, InvalidSpec for what is missing or not known, InvalidValue, UnknownArgument.
        """
        known = set(TableSpec.__dataclass_fields__)
        for name in data:
            if name not in known:
                raise unknown(InvalidSpec, "table: field", name, known)
        for name in ("name", "width"):
            if name not in data:
                raise InvalidSpec(f"a table's {name} is missing, expected one; give it", argument=name)
        return TableSpec(**data).checked()

    def checked(self) -> "TableSpec":
        """The same with every argument in its canonical form; raises as `from_data`."""
        given: Mapping[str, Any] = vars(self)  # what a caller gave, whatever the annotations say
        for name in ("name", "optimizer", "flavor"):
            if not isinstance(given[name], str):
                raise self._refuse(name, given[name], "a text")
        check_name("table", self.name)
        for name in ("hyperparameters", "schedules"):
            self._mapping(name, given[name])
        for name, least, most in (("width", 1, WIDTH_MAX), ("rows_max", 1, ROWS_MAX), ("seed", -(1 << 63), SEED_MAX)):
            value = given[name]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise self._refuse(name, value, f"a whole number from {least} to {most}")
        for name, choices in (("dtype", DTYPES), ("sparse_mode", MODES)):
            if given[name] not in choices:
                raise self._refuse(name, given[name], f"one of {', '.join(choices)}")
        values = vars(self) | {
            "initializer": self._initializer(),
            "admission": self._admission(),
            "eviction": self._eviction(),
        }
        return TableSpec(**values)

    def settings(self, moment: Moment) -> Settings:
        """What the rows are optimized with.

        Raises what `make_settings` raises, and RowsNotSupported where the optimizer does not work on rows, or not so.
        """
        made = make_settings(self.optimizer, self.flavor, self.hyperparameters, self.schedules, moment)
        check_rows(made, self.sparse_mode, f"table '{self.name}'")
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data, from which `from_data` makes the same spec."""
        nested = ("initializer", "hyperparameters", "admission", "eviction")
        data = {
            name: dict(value) if name in nested and value is not None else value for name, value in vars(self).items()
        }
        return data | {"schedules": {name: dict(spec) for name, spec in self.schedules.items()}}

    @property
    def element_type(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    def _initializer(self) -> dict[str, Value]:
        given = self._mapping("initializer", self.initializer)
        name = str(given.pop("name", ""))
        if name not in INITIALIZERS:
            raise unknown(InvalidSpec, f"table '{self.name}': initializer", name, INITIALIZERS)
        values = _fill(INITIALIZERS[name], given, f"table '{self.name}': initializer '{name}'")
        if name == "uniform" and not _number(values["minimum"]) <= _number(values["maximum"]):
            raise self._refuse("initializer", self.initializer, "a minimum that is not above the maximum")
        return {"name": name, **values}

    def _admission(self) -> dict[str, Value] | None:
        if self.admission is None:
            return None
        return _fill(_ADMISSION, self._mapping("admission", self.admission), f"table '{self.name}': admission")

    def _eviction(self) -> dict[str, Value] | None:
        if self.eviction is None:
            return None
        given = self._mapping("eviction", self.eviction)
        name = str(given.pop("by", ""))
        if name not in EVICTIONS:
            raise unknown(InvalidSpec, f"table '{self.name}': eviction by", name, EVICTIONS)
        return {"by": name, **_fill(EVICTIONS[name], given, f"table '{self.name}': eviction by '{name}'")}

    def _mapping(self, name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._refuse(name, value, "named arguments")
        return {str(key): each for key, each in value.items()}

    def _refuse(self, name: str, value: object, expected: str) -> InvalidValue:
        return InvalidValue(
            f"table '{self.name}': {name} is {value!r:.200}, expected {expected}; give such a value",
            argument=name,
            got=f"{value!r:.200}",
            expected=expected,
        )


def _fill(arguments: Sequence[Argument], given: Mapping[str, Any], owner: str) -> dict[str, Value]:
    """The checked values over the defaults."""
    by_name = {argument.name: argument for argument in arguments}
    values = check_arguments(by_name, given, owner)
    filled: dict[str, Value] = {}
    for name, argument in by_name.items():
        if name not in values and argument.default is REQUIRED:
            raise InvalidValue(
                f"{owner}: argument '{name}' is missing, expected {argument.expected}; give it",
                argument=name,
                expected=argument.expected,
            )
        filled[name] = values.get(name, argument.default)  # type: ignore[arg-type]  # REQUIRED was refused above
    return filled


def _number(value: Value) -> float:
    return value if isinstance(value, float) else math.nan
