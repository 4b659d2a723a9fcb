"""What one group is optimized with: the optimizer, its hyperparameters, and the schedules that drive them.

Settings never change; a change makes new ones, so that everything which can fail has failed before state is touched.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from stepwell_server.core.arguments import REQUIRED, Kind, Value, unknown
from stepwell_server.core.compiler.definition import STEP_PER_PARAMETER, Definition
from stepwell_server.core.compiler.program import Program, specialise
from stepwell_server.core.errors import ChangeRefused, InvalidSpec, UnknownArgument
from stepwell_server.core.optimizers import find_optimizer
from stepwell_server.core.schedules import Clock, Schedule


@dataclass(frozen=True)
class Moment:
    """Where the clocks of a run stand before a commit. samples_per_epoch: None where epochs are not counted."""

    updates: int
    samples: float
    samples_per_epoch: float | None

    def read(self, clock: Clock) -> float:
        if clock == "updates":
            return float(self.updates)
        if clock == "samples":
            return self.samples
        assert self.samples_per_epoch is not None, "a schedule on epochs was admitted without samples_per_epoch"
        return self.samples / self.samples_per_epoch


@dataclass(frozen=True)
class Scheduled:
    """A schedule in force. origin: where its clock stood when it was set."""

    schedule: Schedule
    origin: float


@dataclass(frozen=True)
class Settings:
    """own: every hyperparameter's own value; a schedule starts from it unless it sets absolute values.

    unset: those that have no value of their own, because only an absolute schedule gives them one.
    """

    definition: Definition
    flavor: str
    own: Mapping[str, Value]
    schedules: Mapping[str, Scheduled]
    unset: frozenset[str] = frozenset()

    @property
    def step_per_parameter(self) -> bool:
        return self.flavor in STEP_PER_PARAMETER

    @cached_property
    def program(self) -> Program:
        return specialise(self.definition, self.own, live=self.schedules)

    def at(self, moment: Moment) -> dict[str, Value]:
        """Every hyperparameter's value for the commit at `moment`; raises InvalidValue for one out of its range."""
        values = dict(self.own)
        for name, scheduled in self.schedules.items():
            own = self.own[name]
            initial = own if isinstance(own, float) else 0.0
            at = max(0.0, moment.read(scheduled.schedule.clock) - scheduled.origin)
            value = scheduled.schedule(at, initial)
            owner = f"schedule '{scheduled.schedule.name}' of '{self.definition.name}' at {at:g}"
            values[name] = self.definition.arguments[name].check(value, owner)
        return values

    def changed(
        self,
        moment: Moment,
        hyperparameters: Mapping[str, object],
        schedules: Mapping[str, Mapping[str, Any]],
        removed: Iterable[str] = (),
        keep_clock: bool = False,
    ) -> "Settings":
        """The settings after a change; raises ChangeRefused if slots or scalars would come or go."""
        for name in removed:
            if name not in self.arguments:
                raise unknown(UnknownArgument, f"optimizer '{self.definition.name}': argument", name, self.arguments)
        kept = {name: scheduled for name, scheduled in self.schedules.items() if name not in set(removed)}
        new = _parse_schedules(self.definition, self.flavor, schedules, moment)
        if keep_clock:
            new = {name: replace(scheduled, origin=self._origin(name, scheduled)) for name, scheduled in new.items()}
        after = _join(self.definition, self.flavor, self._given() | expand_aliases(hyperparameters), kept | new)
        before_state = self.program.slots + self.program.scalars
        after_state = after.program.slots + after.program.scalars
        if before_state != after_state:
            raise ChangeRefused(
                f"optimizer '{self.definition.name}': the change would make the slots {list(after_state)}, expected "
                f"{list(before_state)}; change only what keeps them: {', '.join(self._changeable())}",
                got=list(after_state),
                expected=list(before_state),
            )
        after.at(moment)
        return after

    @property
    def arguments(self) -> dict[str, Any]:
        return self.definition.arguments_of(self.flavor)

    def to_data(self) -> dict[str, Any]:
        """The settings as plain data, for a snapshot."""
        return {
            "optimizer": self.definition.name,
            "flavor": self.flavor,
            "own": self._given(),
            "schedules": {
                name: {"schedule": scheduled.schedule.spec, "origin": scheduled.origin}
                for name, scheduled in self.schedules.items()
            },
        }

    def _origin(self, name: str, new: Scheduled) -> float:
        """Where the clock of the schedule that `new` replaces began, or the run's own start."""
        old = self.schedules.get(name)
        return old.origin if old is not None and old.schedule.clock == new.schedule.clock else 0.0

    def _given(self) -> dict[str, Value]:
        """The values that make these settings again."""
        left_out = self.unset | self.definition.fixed.keys()
        return {name: value for name, value in self.own.items() if name not in left_out}

    def _changeable(self) -> list[str]:
        return [name for name, argument in self.arguments.items() if argument.kind in (Kind.NUMBER, Kind.INTEGER)]


def make_settings(
    optimizer: str,
    flavor: str | None,
    hyperparameters: Mapping[str, object],
    schedules: Mapping[str, Mapping[str, Any]],
    moment: Moment,
) -> Settings:
    """Settings from a spec's words. Raises Unknown..., InvalidValue or InvalidSpec, each naming the field."""
    definition = find_optimizer(optimizer)
    flavor = definition.flavor(flavor)
    parsed = _parse_schedules(definition, flavor, schedules, moment)
    settings = _join(definition, flavor, expand_aliases(hyperparameters), parsed)
    settings.at(moment)
    return settings


def settings_from_data(data: Mapping[str, Any]) -> Settings:
    """What `to_data` gave."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in data["own"].items()}
    schedules = {
        name: Scheduled(Schedule.parse(scheduled["schedule"]), float(scheduled["origin"]))
        for name, scheduled in data["schedules"].items()
    }
    return _join(find_optimizer(data["optimizer"]), data["flavor"], given, schedules)


def _join(
    definition: Definition, flavor: str, given: Mapping[str, object], schedules: Mapping[str, Scheduled]
) -> Settings:
    """Settings from values and schedules; a value that is required may be left to an absolute schedule."""
    arguments = definition.arguments_of(flavor)
    unset = frozenset(
        name
        for name, scheduled in schedules.items()
        if scheduled.schedule.absolute and name not in given and arguments[name].default is REQUIRED
    )
    own = definition.resolve(flavor, dict.fromkeys(unset, 0.0) | dict(given), live=schedules)
    for name in schedules:
        if own[name] is None:
            raise InvalidSpec(
                f"optimizer '{definition.name}': argument '{name}' is none, which switches it off, and has a "
                "schedule; give a number, or take the schedule away",
                argument=name,
            )
    return Settings(definition, flavor, own, schedules, unset)


def _parse_schedules(
    definition: Definition, flavor: str, schedules: Mapping[str, Mapping[str, Any]], moment: Moment
) -> dict[str, Scheduled]:
    arguments = definition.arguments_of(flavor)
    parsed = {}
    for name, spec in schedules.items():
        if name not in arguments:
            raise unknown(UnknownArgument, f"optimizer '{definition.name}': scheduled argument", name, arguments)
        if arguments[name].kind is not Kind.NUMBER:
            raise InvalidSpec(
                f"optimizer '{definition.name}': argument '{name}' is a {arguments[name].kind.value}, expected a "
                "number for a schedule; schedule a number or leave it",
                argument=name,
            )
        schedule = Schedule.parse(spec)
        if schedule.clock == "epochs" and moment.samples_per_epoch is None:
            raise InvalidSpec(
                f"the schedule of '{name}' counts epochs, but the run has no samples_per_epoch, expected a "
                "number; give it, or use another clock",
                argument=name,
            )
        parsed[name] = Scheduled(schedule, moment.read(schedule.clock))
    return parsed


def expand_aliases(hyperparameters: Mapping[str, object]) -> dict[str, object]:
    """Replace the alias betas=[..] by beta1, beta2, ..."""
    expanded = {name: value for name, value in hyperparameters.items() if name != "betas"}
    betas = hyperparameters.get("betas", ())
    if not isinstance(betas, list | tuple):
        raise InvalidSpec(f"argument 'betas' is {betas!r}, expected a list of numbers; give beta1, beta2, ... in order")
    for position, value in enumerate(betas, 1):
        if f"beta{position}" in expanded:
            raise InvalidSpec(f"argument 'beta{position}' is given twice, by itself and in betas; give it once")
        expanded[f"beta{position}"] = value
    return expanded
