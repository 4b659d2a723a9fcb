"""Kinds, ranges and none; and that an unknown name is answered with the nearest one."""

import math
import re

import numpy as np
import pytest

from stepwell_server.core.arguments import (
    ANY,
    COUNT,
    DECAY_RATE,
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    REQUIRED,
    Argument,
    Kind,
    Range,
    check_arguments,
    read_arguments,
    unknown,
)
from stepwell_server.core.errors import InvalidValue, UnknownArgument, UnknownRun

INFINITY = math.inf
TINY = 5e-324


def argument(kind, **more):
    return Argument("x", kind, more.pop("default", REQUIRED), **more)


NUMBER = argument(Kind.NUMBER)
RATE = argument(Kind.NUMBER, range=DECAY_RATE)
INTEGER = argument(Kind.INTEGER)
FLAG = argument(Kind.FLAG)
TEXT = argument(Kind.TEXT)
CHOICE = argument(Kind.TEXT, choices=("min", "max"))
NUMBERS = argument(Kind.NUMBERS, range=POSITIVE)
OPTIONAL = argument(Kind.NUMBER, default=1.0, optional=True)
NONE = argument(Kind.NUMBER, default=None)

TAKEN = [
    (NUMBER, 3, 3.0),
    (NUMBER, -0.5, -0.5),
    (NUMBER, np.float64(2.5), 2.5),
    (NUMBER, 1 << 1000, float(1 << 1000)),
    (NUMBER, -1.7976931348623157e308, -1.7976931348623157e308),
    (RATE, 0, 0.0),
    (RATE, 0.9999999999999999, 0.9999999999999999),
    (INTEGER, 3, 3.0),
    (INTEGER, -3.0, -3.0),
    (FLAG, True, True),
    (FLAG, False, False),
    (TEXT, "", ""),
    (CHOICE, "max", "max"),
    (NUMBERS, [], ()),
    (NUMBERS, (1, 2.5), (1.0, 2.5)),
    (OPTIONAL, None, None),
    (NONE, None, None),
    (NONE, 2, 2.0),
]


@pytest.mark.parametrize(("declared", "given", "expected"), TAKEN)
def test_what_is_taken(declared, given, expected):
    got = declared.check(given, "owner")
    assert got == expected
    assert type(got) is type(expected) or isinstance(given, np.floating)


REFUSED = [
    (NUMBER, None, "a finite number"),
    (NUMBER, True, "a finite number"),
    (NUMBER, "0.1", "a finite number"),
    (NUMBER, [0.1], "a finite number"),
    (NUMBER, 1j, "a finite number"),
    (NUMBER, math.nan, "a finite number"),
    (NUMBER, INFINITY, "a finite number"),
    (NUMBER, -INFINITY, "a finite number"),
    (NUMBER, 1 << 1024, "a finite number"),
    (NUMBER, -(10**400), "a finite number"),
    (RATE, 1, "a finite number in [0, 1)"),
    (RATE, -TINY, "a finite number in [0, 1)"),
    (RATE, math.nan, "a finite number in [0, 1)"),
    (INTEGER, 2.5, "a whole number"),
    (INTEGER, True, "a whole number"),
    (INTEGER, INFINITY, "a whole number"),
    (FLAG, 1, "a flag"),
    (FLAG, None, "a flag"),
    (FLAG, "true", "a flag"),
    (TEXT, 3, "a text"),
    (TEXT, b"min", "a text"),
    (CHOICE, "Min", "one of min, max"),
    (CHOICE, None, "one of min, max"),
    (NUMBERS, 1.0, "a list of numbers in (0, inf)"),
    (NUMBERS, "12", "a list of numbers in (0, inf)"),
    (NUMBERS, [1.0, 0.0], "a list of numbers in (0, inf)"),
    (NUMBERS, [1.0, None], "a list of numbers in (0, inf)"),
    (NUMBERS, [[1.0]], "a list of numbers in (0, inf)"),
    (NUMBERS, None, "a list of numbers in (0, inf)"),
    (OPTIONAL, "none", "a finite number or none"),
    (NONE, math.nan, "a finite number or none"),
]


@pytest.mark.parametrize(("declared", "given", "expected"), REFUSED)
def test_what_is_refused(declared, given, expected):
    with pytest.raises(InvalidValue, match=f"^owner: argument 'x' is .*, expected {re.escape(expected)}; ") as caught:
        declared.check(given, "owner")
    assert caught.value.details["argument"] == "x"
    assert caught.value.details["expected"] == expected
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "text"),
    [
        (ANY, [-1e308, 0.0, 1e308], [], "(-inf, inf)"),
        (POSITIVE, [TINY, 1e308], [0.0, -TINY], "(0, inf)"),
        (NON_NEGATIVE, [0.0, -0.0, TINY], [-TINY], "[0, inf)"),
        (FRACTION, [0.0, 1.0], [-TINY, math.nextafter(1, 2)], "[0, 1]"),
        (DECAY_RATE, [0.0, math.nextafter(1, 0)], [1.0, -TINY], "[0, 1)"),
        (COUNT, [1.0, 1e308], [math.nextafter(1, 0), 0.0], "[1, inf)"),
        (Range(-2, 2, minimum_open=True, maximum_open=True), [0.0], [-2.0, 2.0], "(-2, 2)"),
    ],
)
def test_ranges(interval, inside, outside, text):
    assert all(number in interval for number in inside)
    assert not any(number in interval for number in outside)
    assert str(interval) == text


def declared(
    first,
    second=1,
    *,
    step: int,
    lr=1e-3,
    whole: int,
    named=3,
    flag=False,
    text="a",
    numbers=(1.0, 2.0),
    no_default: float,
    no_default_flag: bool,
    no_default_text: str,
    no_default_numbers: tuple[float, ...],
    perhaps: float | None = None,
    nullable=0.5,
    bare=None,
):
    """Every way to declare an argument."""


def test_arguments_are_read_from_a_signature():
    arguments = read_arguments(
        declared,
        {"lr": POSITIVE, "numbers": FRACTION, "unused": COUNT},
        integers=["named"],
        optional=["nullable"],
        choices={"text": ("a", "b")},
        skip=["step"],
    )
    assert list(arguments.values()) == [
        Argument("lr", Kind.NUMBER, 1e-3, range=POSITIVE),
        Argument("whole", Kind.INTEGER, REQUIRED),
        Argument("named", Kind.INTEGER, 3.0),
        Argument("flag", Kind.FLAG, False),
        Argument("text", Kind.TEXT, "a", choices=("a", "b")),
        Argument("numbers", Kind.NUMBERS, (1.0, 2.0), range=FRACTION),
        Argument("no_default", Kind.NUMBER, REQUIRED),
        Argument("no_default_flag", Kind.FLAG, REQUIRED),
        Argument("no_default_text", Kind.TEXT, REQUIRED),
        Argument("no_default_numbers", Kind.NUMBERS, REQUIRED),
        Argument("perhaps", Kind.NUMBER, None, optional=True),
        Argument("nullable", Kind.NUMBER, 0.5, optional=True),
        Argument("bare", Kind.NUMBER, None, optional=True),
    ]
    assert list(arguments) == [argument.name for argument in arguments.values()]
    # A whole number as the default of a number is a float: kernels are told floats.
    assert type(arguments["named"].default) is float


def test_an_annotation_with_none_tells_the_kind():
    def optional(*, numbers: tuple[float, ...] | None = None, text: str | None = None):
        """Two kinds that may be none."""

    assert [a.kind for a in read_arguments(optional, {}).values()] == [Kind.NUMBERS, Kind.TEXT]


def test_given_arguments_are_checked_by_name():
    arguments = {"lr": RATE, "momentum": OPTIONAL}
    assert check_arguments(arguments, {"momentum": None, "lr": 0}, "sgd") == {"momentum": None, "lr": 0.0}
    assert check_arguments(arguments, {}, "sgd") == {}
    with pytest.raises(UnknownArgument, match=r"sgd: argument 'momentun' is not known, .* did you mean 'momentum'"):
        check_arguments(arguments, {"lr": 0, "momentun": 0.9}, "sgd")


def test_the_nearest_name_is_the_remedy():
    error = unknown(UnknownRun, "run", "mnits", {"mnist", "cifar"})
    assert type(error) is UnknownRun
    assert str(error) == "run 'mnits' is not known, expected one of cifar, mnist; did you mean 'mnist'?"
    assert error.details == {"got": "mnits", "expected": "cifar, mnist"}
    assert str(unknown(UnknownRun, "run", "zzz", ["mnist"])).endswith("expected one of mnist; choose one of them")
    assert "expected one of (none);" in str(unknown(UnknownRun, "run", "zzz", []))
    assert len(str(unknown(UnknownRun, "run", "x" * 10**6, ["mnist"]))) < 250
