"""Named arguments of optimizers and schedules: their kinds, defaults and ranges, read from a signature.

An optimizer or schedule declares its arguments as the keyword-only parameters of one function. The kind of an
argument follows from its default, its range from `RANGES` by name (names are the field's own, so one table
serves all) unless the definition says otherwise.
"""

import difflib
import inspect
import math
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from stepwell_server.core.errors import DomainError, InvalidValue, UnknownArgument

E = TypeVar("E", bound=DomainError)

Value = float | bool | str | tuple[float, ...] | None


class Kind(Enum):
    NUMBER = "number"
    INTEGER = "integer"
    FLAG = "flag"
    TEXT = "text"
    NUMBERS = "list of numbers"


class Required(Enum):
    """The default of an argument that has none."""

    REQUIRED = "required"


REQUIRED = Required.REQUIRED


@dataclass(frozen=True)
class Range:
    """Which numbers an argument takes; an open end excludes the bound itself."""

    minimum: float = -math.inf
    maximum: float = math.inf
    minimum_open: bool = False
    maximum_open: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.minimum if self.minimum_open else number >= self.minimum
        below = number < self.maximum if self.maximum_open else number <= self.maximum
        return above and below

    def __str__(self) -> str:
        left = "(" if self.minimum_open or math.isinf(self.minimum) else "["
        right = ")" if self.maximum_open or math.isinf(self.maximum) else "]"
        return f"{left}{self.minimum:g}, {self.maximum:g}{right}"


ANY = Range()
POSITIVE = Range(0.0, minimum_open=True)
NON_NEGATIVE = Range(0.0)
FRACTION = Range(0.0, 1.0)
DECAY_RATE = Range(0.0, 1.0, maximum_open=True)
COUNT = Range(1.0)


@dataclass(frozen=True)
class Argument:
    """One named argument.

    default: the value when absent, or REQUIRED. optional: whether none is taken (it switches the thing off).
    choices: for a text, the texts that are taken. infinite: whether a number may be infinite.
    """

    name: str
    kind: Kind
    default: Value | Required
    optional: bool = False
    range: Range = ANY
    choices: tuple[str, ...] = ()
    infinite: bool = False

    def check(self, value: object, owner: str) -> Value:
        """Return `value` in its canonical type; raise InvalidValue, naming `owner`, where kind or range differ."""

        def refuse(expected: str) -> InvalidValue:
            return InvalidValue(
                f"{owner}: argument '{self.name}' is {reprlib.repr(value)}, expected {expected}; "
                "give such a value or leave it out",
                argument=self.name,
                got=reprlib.repr(value),
                expected=expected,
            )

        if value is None:
            if self.optional or self.default is None:
                return None
            raise refuse(self.expected)
        if self.kind is Kind.FLAG:
            if isinstance(value, bool):
                return value
            raise refuse(self.expected)
        if self.kind is Kind.TEXT:
            if isinstance(value, str) and (not self.choices or value in self.choices):
                return value
            raise refuse(self.expected)
        if self.kind is Kind.NUMBERS:
            if not isinstance(value, list | tuple):
                raise refuse(self.expected)
            return tuple(self._number(item, refuse) for item in value)
        return self._number(value, refuse)

    @property
    def expected(self) -> str:
        """What `check` takes, in words."""
        if self.kind is Kind.TEXT and self.choices:
            words = "one of " + ", ".join(self.choices)
        elif self.kind in (Kind.NUMBER, Kind.INTEGER, Kind.NUMBERS):
            words = f"a finite {self.kind.value}" if self.kind is Kind.NUMBER else f"a {self.kind.value}"
            if self.kind is Kind.INTEGER:
                words = "a whole number"
            if self.range != ANY:
                words += f" in {self.range}"
            if self.infinite:
                words += " or infinity"
        else:
            words = f"a {self.kind.value}"
        return words + (" or none" if self.optional or self.default is None else "")

    def _number(self, value: object, refuse: Callable[[str], InvalidValue]) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refuse(self.expected)
        if self.infinite and value == math.inf:
            return math.inf
        # Compared before it is converted: a Python int may be too large for a float. A NaN fails the comparison.
        if not abs(value) <= sys.float_info.max:
            raise refuse(self.expected)
        number = float(value)
        if number not in self.range:
            raise refuse(self.expected)
        if self.kind is Kind.INTEGER and not number.is_integer():
            raise refuse(self.expected)
        return number


def read_arguments(
    function: Callable[..., Any],
    ranges: Mapping[str, Range],
    *,
    integers: Iterable[str] = (),
    optional: Iterable[str] = (),
    choices: Mapping[str, tuple[str, ...]] | None = None,
    skip: Iterable[str] = (),
    infinite: Iterable[str] = (),
) -> dict[str, Argument]:
    """The arguments that `function` declares as keyword-only parameters, in order.

    An annotation is read only where the default cannot tell the kind (no default, or None): `float`, `int`,
    `bool`, `str`, `tuple`; without one it is a number. `skip` names parameters that are not arguments (`step`).
    """
    integers, optional, skip, infinite = set(integers), set(optional), set(skip), set(infinite)
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.name in skip:
            continue
        name, default = parameter.name, parameter.default
        if default is inspect.Parameter.empty:
            default = REQUIRED
        sample = _without_none(parameter.annotation) if default in (REQUIRED, None) else type(default)
        if sample is bool:
            kind = Kind.FLAG
        elif sample is str:
            kind = Kind.TEXT
        elif (get_origin(sample) or sample) in (tuple, list):
            kind = Kind.NUMBERS
        else:
            kind = Kind.INTEGER if name in integers or sample is int else Kind.NUMBER
        if kind in (Kind.NUMBER, Kind.INTEGER) and default not in (REQUIRED, None):
            default = float(default)
        arguments[name] = Argument(
            name=name,
            kind=kind,
            default=default,
            optional=name in optional or default is None,
            range=ranges.get(name, ANY),
            choices=(choices or {}).get(name, ()),
            infinite=name in infinite,
        )
    return arguments


def _without_none(annotation: Any) -> Any:
    """The type in `X | None`, or the annotation itself."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if isinstance(annotation, UnionType) and len(kinds) == 1 else annotation


def check_arguments(arguments: Mapping[str, Argument], given: Mapping[str, object], owner: str) -> dict[str, Value]:
    """Return the checked values of `given`; raise UnknownArgument for a name that `arguments` lacks."""
    checked = {}
    for name, value in given.items():
        if name not in arguments:
            raise unknown(UnknownArgument, f"{owner}: argument", name, arguments)
        checked[name] = arguments[name].check(value, owner)
    return checked


def unknown(error: type[E], what: str, name: str, known: Iterable[str]) -> E:
    """An error for a name that is not among `known`, with the nearest one as the remedy."""
    names = sorted(known)
    name = name[:128]  # so that a caller cannot make the message as long as it likes
    near = difflib.get_close_matches(name, names, n=1)
    remedy = f"did you mean '{near[0]}'?" if near else "choose one of them"
    return error(
        f"{what} '{name}' is not known, expected one of {', '.join(names) or '(none)'}; {remedy}",
        got=name,
        expected=", ".join(names),
    )
