"""A schedule as data: parsed from a plain spec, checked whole, evaluated as a pure function of the clock.

A spec is {"name": ..., arguments, "clock": at the root only, "schedules": [children]}. Nothing in it is code.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

from stepwell_server.core.arguments import REQUIRED, Kind, Value, unknown
from stepwell_server.core.errors import InvalidSpec, InvalidValue, LimitExceeded, UnknownArgument
from stepwell_server.core.schedules.definition import ScheduleEntry, find_schedule

Clock: TypeAlias = Literal["updates", "samples", "epochs"]

DEPTH_MAX = 8
NODES_MAX = 64
LIST_LENGTH_MAX = 100_000
PREVIEW_STEPS_MAX = 1_000_000


@dataclass(frozen=True)
class Schedule:
    """A function (t, initial) -> value in float64: t in units of the clock, value in the hyperparameter's own.

    Build one with `Schedule.parse`. It holds what its spec gave, sorted by name, and no defaults: two are equal
    if their specs are, whatever the order of keys. `given_clock` is None in children and where left out.
    """

    name: str
    arguments: tuple[tuple[str, Value], ...] = ()
    children: tuple["Schedule", ...] = ()
    given_clock: Clock | None = None

    @classmethod
    def parse(cls, spec: Mapping[str, object]) -> "Schedule":
        """Check `spec` whole and return its schedule.

        Raises UnknownSchedule, UnknownArgument, InvalidValue (a value by itself), InvalidSpec (parts that are
        missing or do not fit together) or LimitExceeded. Arguments are named by their path: `schedules[1].gamma`.
        """
        return _parse(spec, "", 1, itertools.count(1))

    def __call__(self, t: float, initial: float) -> float:
        """Return the value at clock `t`, at least 0; raise InvalidValue where it is not finite."""
        assert 0.0 <= t < math.inf, f"clock {t} runs from 0 and is finite"
        try:
            value = self._function(float(t), float(initial))
        except (ArithmeticError, ValueError):  # math raises where IEEE arithmetic gives an infinity or NaN
            value = math.nan
        if not math.isfinite(value):
            raise InvalidValue(
                f"schedule '{self.name}': the value at clock {t:g} from the initial value {initial:g} is not finite, "
                "expected a finite number; choose arguments that stay in the range of float64",
                schedule=self.name,
                clock=t,
                initial=initial,
            )
        return value

    @property
    def clock(self) -> Clock:
        """What t counts: committed `updates` (the default), `samples`, or `epochs`."""
        return self.given_clock or "updates"

    @property
    def absolute(self) -> bool:
        """Whether the value is independent of the initial one."""
        entry = find_schedule(self.name)
        inherited = bool(self.children) and all(child.absolute for child in self.children)
        return entry.absolute or inherited or self.keywords.get(entry.absolute_with or "") is not None

    @property
    def level(self) -> str | None:
        """The path of what keeps the value from being proportional to the initial one: an argument, or `name`."""
        entry, keywords = find_schedule(self.name), self.keywords
        if entry.absolute:
            return "name"
        for name in sorted(entry.levels):
            if keywords[name] not in (None, 0.0):
                return name
        levels = (child.level and f"schedules[{i}].{child.level}" for i, child in enumerate(self.children))
        return next(filter(None, levels), None)

    @property
    def keywords(self) -> dict[str, Value]:
        """Every argument with its value, defaults filled in."""
        defaults = {argument.name: cast(Value, argument.default) for argument in find_schedule(self.name).arguments}
        return defaults | dict(self.arguments)

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that parses to an equal schedule: what was given and no defaults; numbers are floats."""
        plain: dict[str, Any] = {"name": self.name}
        plain.update((name, list(value) if isinstance(value, tuple) else value) for name, value in self.arguments)
        if self.given_clock is not None:
            plain["clock"] = self.given_clock
        if self.children:
            plain["schedules"] = [child.spec for child in self.children]
        return plain

    @cached_property
    def _function(self) -> Callable[[float, float], float]:
        return partial(find_schedule(self.name).function, **self._inputs)

    @property
    def _inputs(self) -> dict[str, Any]:
        """What the function takes after t and initial."""
        children = {} if find_schedule(self.name).children is None else {"children": self.children}
        return {**self.keywords, **children}


def preview(schedule: Schedule, initial: float, steps: int) -> npt.NDArray[np.float64]:
    """Return the values at clock 0, 1, ..., steps - 1: shape (steps,), float64.

    Raises LimitExceeded beyond PREVIEW_STEPS_MAX, InvalidValue where `initial` or a value is not finite.
    """
    if steps < 0:
        raise InvalidValue(f"preview: steps is {steps}, expected 0 or more", argument="steps", got=steps)
    if steps > PREVIEW_STEPS_MAX:
        raise _limit("preview", "steps", steps, PREVIEW_STEPS_MAX, "preview fewer steps")
    if not math.isfinite(initial):
        raise InvalidValue(f"preview: initial is {initial}, expected a finite number", argument="initial", got=initial)
    return np.fromiter((schedule(float(t), initial) for t in range(steps)), dtype=np.float64, count=steps)


def _parse(spec: object, path: str, depth: int, nodes: Iterator[int]) -> Schedule:
    """path: where spec stands, such as `schedules[1].schedules[0]`, empty at the root. nodes: counts the nodes."""
    # The limits come first: they also end the descent into a spec that contains itself.
    if depth > DEPTH_MAX:
        raise _limit(f"schedule at '{path}'", "nesting depth", depth, DEPTH_MAX, "nest less deeply")
    if (count := next(nodes)) > NODES_MAX:
        raise _limit(f"schedule at '{path}'", "number of schedules", count, NODES_MAX, "use fewer, or a table")
    place = f" at '{path}'" if path else ""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise InvalidSpec(
            f"schedule{place}: expected a mapping with a text under 'name'; give one, such as "
            "{'name': 'step', 'step_size': 10}",
            path=path,
        )
    entry = find_schedule(spec["name"], f"at '{path}': schedule" if path else "schedule")
    if entry.stateful and path:
        raise InvalidSpec(
            f"schedule '{entry.name}'{place}: it follows what is reported, not the clock alone, expected it at the "
            "root only; drive the hyperparameter with it directly",
            schedule=entry.name,
            path=path,
        )
    schedule = Schedule(
        name=entry.name,
        arguments=_parse_arguments(entry, spec, path),
        children=_parse_children(entry, spec, path, depth, nodes),
        given_clock=_parse_clock(entry, spec, path),
    )
    objection = entry.check(**schedule._inputs) if entry.check else None
    if objection is not None:
        raise InvalidSpec(f"schedule '{entry.name}'{place}: {objection}", schedule=entry.name, path=path)
    return schedule


def _parse_arguments(entry: ScheduleEntry, spec: Mapping[Any, object], path: str) -> tuple[tuple[str, Value], ...]:
    known = {argument.name: argument for argument in entry.arguments}
    owner = f"schedule '{entry.name}'"
    given: dict[str, Value] = {}
    for name in spec:
        if name in ("name", "clock", "schedules"):
            continue
        if name not in known:
            place = f" at '{path}'" if path else ""
            raise unknown(UnknownArgument, f"{owner}{place}: argument", str(name), known)
        value, qualified = spec[name], _join(path, name)
        if isinstance(value, list | tuple) and len(value) > LIST_LENGTH_MAX:
            raise _limit(owner, f"length of '{qualified}'", len(value), LIST_LENGTH_MAX, "give a shorter list")
        if name in entry.lists and not isinstance(value, list | tuple):
            number = replace(known[name], name=qualified, kind=Kind.NUMBER).check(value, owner)
            given[name] = (cast(float, number),)
        else:
            given[name] = replace(known[name], name=qualified).check(value, owner)
    for argument in entry.arguments:
        if argument.default is REQUIRED and argument.name not in given:
            raise InvalidSpec(
                f"{owner}: argument '{_join(path, argument.name)}' is missing, expected {argument.expected}; give it",
                argument=_join(path, argument.name),
                expected=argument.expected,
            )
    return tuple(sorted(given.items()))


def _parse_clock(entry: ScheduleEntry, spec: Mapping[Any, object], path: str) -> Clock | None:
    if "clock" not in spec:
        return None
    if path:
        raise InvalidSpec(
            f"schedule '{entry.name}': '{_join(path, 'clock')}' is given, expected a clock at the root only, which "
            "all schedules below share; move it there",
            path=path,
        )
    clock, clocks = spec["clock"], get_args(Clock)
    if clock not in clocks:
        raise InvalidValue(
            f"schedule '{entry.name}': 'clock' is {str(clock)[:128]!r}, expected one of {', '.join(clocks)}; "
            "choose one or leave it out",
            argument="clock",
            expected=", ".join(clocks),
        )
    return cast(Clock, clock)


def _parse_children(
    entry: ScheduleEntry, spec: Mapping[Any, object], path: str, depth: int, nodes: Iterator[int]
) -> tuple[Schedule, ...]:
    place = _join(path, "schedules")
    children = spec.get("schedules", [])
    if not isinstance(children, list | tuple):
        raise InvalidValue(
            f"schedule '{entry.name}': '{place}' is {type(children).__name__}, expected a list of schedules",
            argument=place,
        )
    fits = {None: len(children) == 0, 1: len(children) == 1, "many": len(children) >= 1}[entry.children]
    if not fits:
        expected = {None: "none", 1: "exactly one", "many": "at least one"}[entry.children]
        raise InvalidSpec(
            f"schedule '{entry.name}': '{place}' holds {len(children)} schedules, expected {expected}; "
            "add or remove some",
            path=path,
            expected=expected,
        )
    return tuple(_parse(child, f"{place}[{i}]", depth + 1, nodes) for i, child in enumerate(children))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _limit(owner: str, what: str, got: int, maximum: int, remedy: str) -> LimitExceeded:
    return LimitExceeded(
        f"{owner}: {what} is {got}, expected at most {maximum}; {remedy}", what=what, got=got, maximum=maximum
    )
