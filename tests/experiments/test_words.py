import math

import pytest

from stepwell_server.core.errors import InvalidSpec, InvalidValue
from stepwell_server.experiments.words import parse_assignment, parse_json, parse_schedules, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("-3", -3.0),
        ("1e-4", 1e-4),
        ("inf", math.inf),
        ("true", True),
        ("False", False),
        ("none", None),
        ("cos", "cos"),
        ("[]", []),
        ("[1,2.5, 3]", [1.0, 2.5, 3.0]),
        ("[true,none]", [True, None]),
        (" 7 ", 7.0),
        ("1-sqrt", "1-sqrt"),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "says"), [("", "empty"), ("  ", "empty"), ("[1,2", "does not end"), ("[1,,2]", "empty")]
)
def test_refused_values(text, says):
    with pytest.raises(InvalidValue, match=says):
        parse_value(text)


@pytest.mark.parametrize("word", ["lr", "=3", "", " =1"])
def test_refused_assignments(word):
    with pytest.raises(InvalidSpec, match="expected name=value"):
        parse_assignment(word)


def test_only_the_first_equals_sign_divides():
    assert parse_assignment("name=a=b") == ("name", "a=b")


def test_schedules_side_by_side():
    words = ["cosine", "t_max=100", "hold=true", "multistep", "milestones=[10,20]"]
    assert parse_schedules(words, ['{"name": "noam", "d_model": 512}']) == [
        {"name": "cosine", "t_max": 100.0, "hold": True},
        {"name": "multistep", "milestones": [10.0, 20.0]},
        {"name": "noam", "d_model": 512},
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [(["t_max=3"], "before any schedule"), (["step", "gamma=1", "gamma=2"], "given twice"), (["a", "name=b"], "twice")],
)
def test_refused_schedules(words, says):
    with pytest.raises(InvalidSpec, match=says):
        parse_schedules(words)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"step"', "nul", "[" * 100_000])
def test_refused_json(text):
    with pytest.raises(InvalidSpec, match="expected"):
        parse_json(text)
