"""How a schedule is defined: one decorated function of the clock, entered in the registry under its name.

Adding a schedule is writing its function in the module of its family:

    @schedule(reference="...", matches="torch.optim.lr_scheduler.ExponentialLR")
    def exponential(t: float, initial: float, *, gamma: float) -> float:
        '''One line for the catalogue. Then the formula, the units, the edges.'''
        return initial * gamma**t

t is the clock (updates, samples or epochs since the schedule began, at least 0, perhaps fractional), initial the
value of the hyperparameter that the schedule starts from. The keyword-only parameters are the arguments on the
wire. A function with children also takes `children`, a sequence of functions (t, initial) -> value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

from stepwell_server.core.arguments import COUNT, NON_NEGATIVE, POSITIVE, Argument, Range, read_arguments, unknown
from stepwell_server.core.errors import UnknownSchedule

Function = TypeVar("Function", bound=Callable[..., float])
Child: TypeAlias = Callable[[float, float], float]  # (t, initial) -> value

# Numbers of clock units are not whole: half an epoch is a fair step_size. An argument missing here takes any
# finite number, as eta_min does: a schedule may drive a hyperparameter of either sign.
RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "end_factor": NON_NEGATIVE,
        "factor": NON_NEGATIVE,
        "gamma": NON_NEGATIVE,  # a negative base has no real power at a fractional clock
        "m_mul": NON_NEGATIVE,
        "milestones": NON_NEGATIVE,
        "num_warmup_steps": NON_NEGATIVE,
        "period": POSITIVE,
        "start": NON_NEGATIVE,
        "start_factor": NON_NEGATIVE,
        "step_size": POSITIVE,
        "step_size_down": POSITIVE,
        "step_size_up": POSITIVE,
        "t_0": POSITIVE,
        "t_max": POSITIVE,
        "t_mult": COUNT,
        "total_iters": NON_NEGATIVE,
    }
)


@dataclass(frozen=True)
class ScheduleEntry:
    """One schedule of the registry: what a client needs to build a form, and how it is evaluated.

    absolute: the value does not depend on the initial one; with children it also is so where all of them are.
    children: how many schedules stand under `schedules`: none, exactly one, or one and more.
    check: takes what the function takes after t and initial, and says what does not fit together, if anything.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    absolute: bool
    children: Literal[1, "many"] | None
    reference: str
    matches: str | None
    function: Callable[..., float] = field(repr=False)
    check: Callable[..., str | None] | None = field(repr=False)


_ENTRIES: dict[str, ScheduleEntry] = {}


def schedule(
    *,
    reference: str,
    matches: str | None = None,
    absolute: bool = False,
    ranges: Mapping[str, Range] = MappingProxyType({}),
    choices: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    children: Literal[1, "many"] | None = None,
    check: Callable[..., str | None] | None = None,
) -> Callable[[Function], Function]:
    """Enter the decorated function in the registry under its own name.

    reference: where the formula comes from. matches: the class that gives the same numbers, by its full name.
    ranges: what RANGES lacks or says otherwise. choices: the words that a text argument takes.
    """

    def enter(function: Function) -> Function:
        name, docstring = function.__name__, function.__doc__
        assert name not in _ENTRIES, f"schedule '{name}' is defined twice"
        assert docstring, f"schedule '{name}' has no docstring; its first line is the summary that clients show"
        arguments = read_arguments(function, {**RANGES, **ranges}, choices=choices, skip={"children"})
        _ENTRIES[name] = ScheduleEntry(
            name=name,
            summary=docstring.strip().splitlines()[0],
            arguments=tuple(arguments.values()),
            absolute=absolute,
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
    return [_ENTRIES[name] for name in sorted(_ENTRIES)]


def find_schedule(name: str, what: str = "schedule") -> ScheduleEntry:
    """Return the entry of `name`; raise UnknownSchedule, with the nearest name, where there is none."""
    if name not in _ENTRIES:
        raise unknown(UnknownSchedule, what, name, _ENTRIES)
    return _ENTRIES[name]
