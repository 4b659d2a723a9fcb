"""What is written on a command line: values, assignments, and specs of schedules."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stepwell_server.core.errors import InvalidSpec, InvalidValue

_CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None}


def parse_value(text: str) -> object:
    """A number, true, false, none, a [list] of such values, or else the text itself.

    Raises InvalidValue for nothing, and for a list that does not end.
    """
    text = text.strip()
    if not text:
        raise InvalidValue("a value is empty, expected a number, true, false, none, a [list] or a text; give one")
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if text.startswith("["):
        if not text.endswith("]"):
            raise InvalidValue(
                f"the list {text!r} does not end, expected a ']'; quote it for the shell if it has spaces"
            )
        inner = text[1:-1].strip()
        return [parse_value(item) for item in inner.split(",")] if inner else []
    try:
        return float(text)
    except ValueError:
        return text


def parse_assignment(word: str) -> tuple[str, object]:
    """`key=value`; raises InvalidSpec without a key or an equals sign."""
    key, value = split_assignment(word)
    return key, parse_value(value)


def split_assignment(word: str) -> tuple[str, str]:
    """The texts on both sides of the first equals sign."""
    key, equals, value = word.partition("=")
    if not equals or not key.strip():
        raise InvalidSpec(f"{word!r} is no assignment, expected name=value, such as lr=0.1; write it so")
    return key.strip(), value


def parse_schedules(words: Iterable[str], specs: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Specs from `NAME [key=value ...] [NAME ...]`, then those given as JSON.

    Raises InvalidSpec for an assignment before the first name, one that is made twice, and text that is no JSON.
    """
    found: list[dict[str, Any]] = []
    for word in words:
        if "=" not in word:
            found.append({"name": word})
            continue
        if not found:
            raise InvalidSpec(f"{word!r} stands before any schedule, expected a name first, as in: step step_size=100")
        key, value = parse_assignment(word)
        if key in found[-1]:
            raise InvalidSpec(
                f"schedule '{found[-1]['name']}': '{key}' is given twice, expected it once; leave one out"
            )
        found[-1][key] = value
    return found + [parse_json(spec) for spec in specs]


def parse_json(text: str) -> dict[str, Any]:
    """A mapping from JSON; raises InvalidSpec."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(
            f"the spec {text[:60]!r} is no JSON ({error}), expected a mapping such as "
            '{"name": "step", "step_size": 100}; quote it for the shell'
        ) from error
    if not isinstance(spec, dict):
        raise InvalidSpec(f'the spec {text[:60]!r} is no mapping, expected one such as {{"name": "noam", ...}}')
    return spec
