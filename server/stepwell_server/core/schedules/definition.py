"""How a schedule is defined: one decorated function of the clock, entered in the registry under its name.

Adding a schedule is writing its function in the module of its family:

    @schedule(reference="...", matches="torch.optim.lr_scheduler.ExponentialLR")
    def exponential(t: float, initial: float, *, gamma: float) -> float:
        '''One line for the catalogue. Then the formula, the units, the edges.'''
        return initial * gamma**t

t is the clock (updates, samples or epochs since the schedule began, at least 0, perhaps fractional), initial the
value of the hyperparameter that the schedule starts from. The keyword-only parameters are the arguments on the
wire. A function with children also takes `children`, a sequence of schedules to call as (t, initial) -> value.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol, TypeVar

from stepwell_server.core.arguments import (
    COUNT,
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    Argument,
    Range,
    read_arguments,
    unknown,
)
from stepwell_server.core.errors import UnknownSchedule

Function = TypeVar("Function", bound=Callable[..., float])


class Child(Protocol):
    """A schedule as the one above it sees it."""

    @property
    def level(self) -> str | None:
        """The path of what keeps the value from being proportional to the initial one, if anything."""

    def __call__(self, t: float, initial: float) -> float: ...


# Numbers of clock units are not whole: half an epoch is a fair step_size. An argument missing here takes any
# finite number, as eta_min does: a schedule may drive a hyperparameter of either sign.
RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "anneal_epochs": NON_NEGATIVE,
        "boundaries": NON_NEGATIVE,
        "cooldown": NON_NEGATIVE,
        "d_model": POSITIVE,
        "decay_rate": NON_NEGATIVE,
        "decay_steps": POSITIVE,
        "div_factor": POSITIVE,
        "end_factor": NON_NEGATIVE,
        "eps": NON_NEGATIVE,
        "exponent": NON_NEGATIVE,
        "factor": NON_NEGATIVE,
        "final_div_factor": POSITIVE,
        "gamma": NON_NEGATIVE,  # a negative base has no real power at a fractional clock
        "m_mul": NON_NEGATIVE,
        "milestones": NON_NEGATIVE,
        "min_lr": NON_NEGATIVE,
        "min_lr_rate": NON_NEGATIVE,
        "min_lr_ratio": NON_NEGATIVE,
        "num_cycles": NON_NEGATIVE,
        "num_decay_steps": NON_NEGATIVE,
        "num_stable_steps": NON_NEGATIVE,
        "num_training_steps": NON_NEGATIVE,
        "num_warmup_steps": NON_NEGATIVE,
        "patience": NON_NEGATIVE,
        "pct_final": FRACTION,
        "pct_start": FRACTION,
        "period": POSITIVE,
        "power": NON_NEGATIVE,  # a negative one has no value where the base ends, at 0
        "scales": NON_NEGATIVE,
        "start": NON_NEGATIVE,
        "start_factor": NON_NEGATIVE,
        "step_size": POSITIVE,
        "step_size_down": POSITIVE,
        "step_size_up": POSITIVE,
        "t_0": POSITIVE,
        "t_max": POSITIVE,
        "t_mult": COUNT,
        "threshold": NON_NEGATIVE,
        "timescale": POSITIVE,
        "total_iters": NON_NEGATIVE,
        "total_steps": COUNT,
        "transition_begin": NON_NEGATIVE,
        "transition_steps": NON_NEGATIVE,
        "warmup": NON_NEGATIVE,
        "warmup_steps": NON_NEGATIVE,
    }
)


@dataclass(frozen=True)
class ScheduleEntry:
    """One schedule of the registry: what a client needs to build a form, and how it is evaluated.

    absolute: the value does not depend on the initial one; with children it also is so where all of them are.
    absolute_with: the argument that makes it absolute where it is given.
    levels: arguments in the value's own unit; the value is proportional to the initial one only if all are none or 0.
    lists: lists for which a single number may be given, a list of one.
    stateful: the value follows what was reported; it stands at the root only.
    children: how many schedules stand under `schedules`: none, exactly one, or one and more.
    check: takes what the function takes after t and initial, and says what does not fit together, if anything.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    absolute: bool
    absolute_with: str | None
    levels: frozenset[str]
    lists: frozenset[str]
    stateful: bool
    children: Literal[1, "many"] | None
    reference: str
    matches: str | None
    function: Callable[..., float] = field(repr=False)
    check: Callable[..., str | None] | None = field(repr=False)


SCHEDULES: dict[str, ScheduleEntry] = {}


def schedule(
    *,
    reference: str,
    matches: str | None = None,
    absolute: bool = False,
    absolute_with: str | None = None,
    levels: Collection[str] = (),
    lists: Collection[str] = (),
    stateful: bool = False,
    ranges: Mapping[str, Range] = MappingProxyType({}),
    choices: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    children: Literal[1, "many"] | None = None,
    check: Callable[..., str | None] | None = None,
) -> Callable[[Function], Function]:
    """Enter the decorated function in the registry under its own name.

    reference: where the formula comes from. matches: the class that gives the same numbers, by its full name.
    ranges: what RANGES lacks or says otherwise. choices: the words that a text argument takes. The others are as in
    ScheduleEntry.
    """

    def enter(function: Function) -> Function:
        name, docstring = function.__name__, function.__doc__
        if name in SCHEDULES:
            raise ValueError(f"two schedules are called '{name}'; call one something else")
        assert docstring, f"schedule '{name}' has no docstring; its first line is the summary that clients show"
        arguments = read_arguments(function, {**RANGES, **ranges}, choices=choices, skip={"children"})
        assert arguments.keys() >= {*levels, *lists, *choices, *ranges}, f"schedule '{name}' lacks an argument named"
        SCHEDULES[name] = ScheduleEntry(
            name=name,
            summary=docstring.strip().splitlines()[0],
            arguments=tuple(arguments.values()),
            absolute=absolute,
            absolute_with=absolute_with,
            levels=frozenset(levels),
            lists=frozenset(lists),
            stateful=stateful,
            children=children,
            reference=reference,
            matches=matches,
            function=function,
            check=check,
        )
        return function

    return enter


def list_schedules() -> list[ScheduleEntry]:
    """Every schedule, sorted by name."""
    return [SCHEDULES[name] for name in sorted(SCHEDULES)]


def find_schedule(name: str, what: str = "schedule") -> ScheduleEntry:
    """Return the entry of `name`; raise UnknownSchedule, with the nearest name, where there is none."""
    if name not in SCHEDULES:
        raise unknown(UnknownSchedule, what, name, SCHEDULES)
    return SCHEDULES[name]
