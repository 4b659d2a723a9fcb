"""What one group is optimized with: the optimizer, its hyperparameters, and the schedules that drive them.

Settings never change; a change makes new ones, so that everything which can fail has failed before state is touched.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from stepwell_server.core.arguments import REQUIRED, Kind, Value, unknown
from stepwell_server.core.compiler.array_program import ADOPT, ArrayProgram
from stepwell_server.core.compiler.definition import STEP_PER_PARAMETER, Definition, Rule
from stepwell_server.core.compiler.first_step import check_first_step
from stepwell_server.core.compiler.program import Program, point_program, specialise
from stepwell_server.core.compiler.text import define_from_text, find_definition, refusing
from stepwell_server.core.errors import ChangeRefused, InvalidSpec, InvalidValue, UnknownArgument
from stepwell_server.core.optimizers import find_optimizer
from stepwell_server.core.schedules import Clock, Schedule, find_schedule, plateau
from stepwell_server.core.schedules.plateau import PlateauState
from stepwell_server.core.transforms import Transforming, parse_transforms
from stepwell_server.core.wrappers import Wrapping, parse_wrappers

# The slot in which gradients wait for the commits that a policy accumulates.
ACCUMULATOR = "accumulated_gradient"

# A small and a large matrix, a vector, a filter: lengths in an optimizer's arguments tell them apart.
_PROBES = ((2, 3), (1 << 20, 1 << 21), (7,), (3, 3, 64, 128))


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
    """A schedule in force. origin: where its clock stood when it was set. state: what a plateau knows from reports."""

    schedule: Schedule
    origin: float
    state: PlateauState | None = None

    @property
    def stateful(self) -> bool:
        return find_schedule(self.schedule.name).stateful

    def value(self, moment: Moment, initial: float) -> float:
        """The hyperparameter's value for the commit at `moment`."""
        if self.state is not None:
            return plateau.value(self.state, initial)
        return self.schedule(self.at(moment), initial)

    def at(self, moment: Moment) -> float:
        """Where the schedule's own clock stands."""
        return max(0.0, moment.read(self.schedule.clock) - self.origin)

    def reported(self, metrics: Mapping[str, float], initial: float) -> "Scheduled":
        """After a report; raises InvalidValue where it is not clear which metric is meant."""
        wanted = str(self.schedule.keywords["metric"])
        if wanted and wanted not in metrics:
            return self
        if not wanted and len(metrics) > 1:
            raise InvalidValue(
                f"schedule '{self.schedule.name}' got the metrics {', '.join(sorted(metrics))}, expected one; report "
                "one, or name it in the schedule's argument 'metric'",
                argument="metric",
            )
        value = metrics[wanted] if wanted else next(iter(metrics.values()))
        return replace(self, state=plateau.report(self.schedule.keywords, self.state or PlateauState(), value, initial))

    def to_data(self) -> dict[str, Any]:
        """Plain data, for a snapshot."""
        return {"schedule": self.schedule.spec, "origin": self.origin, "state": self.state and vars(self.state)}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "Scheduled":
        state = data["state"]
        return Scheduled(
            Schedule.parse(data["schedule"]), float(data["origin"]), None if state is None else PlateauState(**state)
        )


@dataclass(frozen=True)
class Settings:
    """own: every hyperparameter's own value; a schedule starts from it unless it sets absolute values.

    unset: those that have no value of their own, because only an absolute schedule gives them one.
    wrappers: what runs after the optimizer, in order. transforms: what runs before it; some keep slots here.
    accumulates: whether there is a slot for gradients that wait for the commits of a policy that accumulates.
    """

    definition: Definition
    flavor: str
    own: Mapping[str, Value]
    schedules: Mapping[str, Scheduled]
    unset: frozenset[str] = frozenset()
    wrappers: tuple[Wrapping, ...] = ()
    transforms: tuple[Transforming, ...] = ()
    accumulates: bool = False

    @cached_property
    def needed(self) -> frozenset[str]:
        """What an update must bring beside gradients: inputs and numbers."""
        required = {name for name, need in self.definition.inputs.items() if need == "required"}
        return frozenset(required.union(self.definition.numbers))

    @property
    def step_per_parameter(self) -> bool:
        """Whether a parameter without a gradient is left alone; if not, every update must bring all gradients."""
        return self.flavor in STEP_PER_PARAMETER and self.definition.scope != "group"

    @cached_property
    def program(self) -> Program:
        """What runs on the elements, with every optional input present; after array code, its wrappers."""
        return self.program_with(self.definition.inputs)

    @cached_property
    def array_program(self) -> ArrayProgram | None:
        """The rule as array code, where it is that."""
        return ArrayProgram(self.definition, self.own) if self.definition.arrays else None

    def program_with(self, inputs: Iterable[str]) -> Program:
        """The program for an update that carries these inputs."""
        base = ADOPT if self.definition.arrays else self.definition
        optional = frozenset(inputs).intersection(base.inputs)
        if optional not in self._programs:
            values, wrappers = self.values_of(self.own), [each.definition for each in self.wrappers]
            self._programs[optional] = specialise(base, values, frozenset(self.schedules), optional, wrappers)
        return self._programs[optional]

    @cached_property
    def _programs(self) -> dict[frozenset[str], Program]:
        """By the optional inputs: every commit asks for one."""
        return {}

    @cached_property
    def _constant(self) -> dict[str, Value]:
        return self.values_of(self.own)

    def values_of(self, own: Mapping[str, Value]) -> dict[str, Value]:
        """Hyperparameters and the wrappers' arguments by the names that programs know."""
        values = dict(own)
        for each in self.wrappers:
            values |= each.prefixed_values
        return values

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The slots of the state, the wrappers' last."""
        before = self.array_program.slots if self.array_program else self.program_with(()).slots
        own = [ACCUMULATOR] if self.accumulates else []
        return tuple(dict.fromkeys([*before, *self.program.slots, *self.transform_slots, *own]))

    @property
    def transform_slots(self) -> list[str]:
        return [each.prefix + name for each in self.transforms for name in each.definition.state]

    @property
    def scalars(self) -> tuple[str, ...]:
        return self.program.scalars

    @property
    def declared_scalars(self) -> dict[str, float]:
        """What each scalar starts as."""
        declared = dict(self.definition.scalars)
        for each in self.wrappers:
            declared |= {each.prefix + name: value for name, value in each.definition.scalars.items()}
        return declared

    @property
    def initial_slots(self) -> dict[str, str | None]:
        """What each slot starts as: "param", the name of a hyperparameter, or None for zero."""
        sources = dict(self.definition.init)
        for each in self.wrappers:
            sources |= {each.prefix + name: source for name, source in each.definition.init.items()}
        return {name: sources.get(name) for name in self.slots}

    @property
    def slot_shapes(self) -> dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]]:
        """For slots that are not shaped like their parameter: their shape from the parameter's."""
        own = self.array_program
        return {name: partial(own.slot_shape, name) for name in own.slots} if own else {}

    def point(self, of: str) -> Program | None:
        """How to compute a point; None for the parameters as they are stored, and for a point that is not here."""
        # nag keeps the parameters at the look-ahead point, and may serve the others.
        return self.points.get("evaluation" if of == "parameters" and self.own.get("serve") == "theta" else of)

    @cached_property
    def points(self) -> dict[str, Program]:
        """How to compute each point that this optimizer and its wrappers offer."""
        values = self.values_of(self.own)
        rules: dict[str, tuple[Definition, Rule, str, Mapping[str, Value]]] = {}
        for name, rule in self.definition.points.items():
            rules[name] = (self.definition, rule, "", values)
        for each in self.wrappers:
            for name, rule in each.definition.points.items():
                rules[name] = (each.definition, rule, each.prefix, values)
        return {
            name: point_program(definition, rule, known, prefix)
            for name, (definition, rule, prefix, known) in rules.items()
        }

    def at(self, moment: Moment) -> dict[str, Value]:
        """Every hyperparameter's value for the commit at `moment`; raises InvalidValue for one out of its range."""
        if not self.schedules:
            return dict(self._constant)
        values = dict(self.own)
        for name, scheduled in self.schedules.items():
            own = self.own[name]
            initial = own if isinstance(own, float) else 0.0
            value = scheduled.value(moment, initial)
            owner = f"schedule '{scheduled.schedule.name}' of '{self.definition.name}' at {scheduled.at(moment):g}"
            values[name] = self.definition.arguments[name].check(value, owner)
        return self.values_of(values)

    def reported(self, metrics: Mapping[str, float], moment: Moment) -> "Settings":
        """The settings after a report of metrics; raises what a schedule that waits for one objects to."""
        after = dict(self.schedules)
        for name, scheduled in self.schedules.items():
            own = self.own[name]
            if scheduled.stateful and isinstance(own, float):
                after[name] = scheduled.reported(metrics, own)
        reported = replace(self, schedules=after)
        reported.at(moment)
        return reported

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
        given = self._given() | expand_aliases(hyperparameters)
        after = _join(self.definition, self.flavor, given, kept | new, self.wrappers, self.transforms)
        after = replace(after, accumulates=self.accumulates)
        after.check_definition()
        before_state, after_state = self.slots + self.scalars, after.slots + after.scalars
        if before_state != after_state or self._probed_shapes() != after._probed_shapes():
            raise ChangeRefused(
                f"optimizer '{self.definition.name}': the change would make the slots {list(after_state)}, expected "
                f"{list(before_state)}; change only what keeps them: {', '.join(self._changeable())}",
                got=list(after_state),
                expected=list(before_state),
            )
        after.at(moment)
        return after

    def check_definition(self) -> None:
        """Raise InvalidSpec for a definition from text of which these values pick a part that cannot be compiled."""
        if not self.definition.text:
            return
        with refusing(self.definition):
            _ = self.program, self.slots
        own = {*self.definition.state, *self.definition.arguments}
        added: list[str] = [each.prefix + name for each in self.transforms for name in each.definition.state]
        for each in self.wrappers:
            added += [each.prefix + name for name in (*each.definition.state, *each.definition.arguments)]
        for name in added:
            if name in own:
                raise InvalidSpec(
                    f"definition: '{name}' is also what a wrapper or transform of the run keeps, expected another "
                    "name; rename it",
                    argument="definition",
                    got=name,
                )

    @property
    def arguments(self) -> dict[str, Any]:
        return self.definition.arguments_of(self.flavor)

    def to_data(self) -> dict[str, Any]:
        """The settings as plain data, for a snapshot."""
        return {
            "optimizer": self.definition.name,
            "definition": self.definition.text,
            "flavor": self.flavor,
            "own": self._given(),
            "schedules": {name: scheduled.to_data() for name, scheduled in self.schedules.items()},
            "wrappers": [each.spec for each in self.wrappers],
            "transforms": [each.spec for each in self.transforms],
            "accumulates": self.accumulates,
        }

    def _origin(self, name: str, new: Scheduled) -> float:
        """Where the clock of the schedule that `new` replaces began, or the run's own start."""
        old = self.schedules.get(name)
        return old.origin if old is not None and old.schedule.clock == new.schedule.clock else 0.0

    def _given(self) -> dict[str, Value]:
        """The values that make these settings again."""
        left_out = self.unset | self.definition.fixed.keys()
        return {name: value for name, value in self.own.items() if name not in left_out}

    def _probed_shapes(self) -> list[tuple[int, ...]]:
        """The slots' shapes beside some parameters: what a change of a length would alter."""
        return [shape(probe) for shape in self.slot_shapes.values() for probe in _PROBES]

    def _changeable(self) -> list[str]:
        return [name for name, argument in self.arguments.items() if argument.kind in (Kind.NUMBER, Kind.INTEGER)]


@dataclass(frozen=True)
class RunSettings:
    """What everything of a run is optimized with. groups: by group of the layout, None where frozen."""

    groups: list[Settings | None]
    tables: list[Settings] = field(default_factory=list)


def damped(values: dict[str, Value], damping: float) -> dict[str, Value]:
    """Hyperparameters with a learning rate that is multiplied; they have one, see `fit_policy`."""
    if damping != 1.0:
        values["lr"] = damping * float(values["lr"])  # type: ignore[arg-type]  # a number
    return values


def make_settings(
    optimizer: str,
    flavor: str | None,
    hyperparameters: Mapping[str, object],
    schedules: Mapping[str, Mapping[str, Any]],
    moment: Moment,
    wrappers: tuple[Wrapping, ...] = (),
    transforms: tuple[Transforming, ...] = (),
    text: str = "",
) -> Settings:
    """Settings from a spec's words. Raises Unknown..., InvalidValue or InvalidSpec, each naming the field.

    text: the optimizer's definition, where it is not one of the server's.
    """
    definition = find_definition(optimizer, text)
    flavor = definition.flavor(flavor)
    parsed = _parse_schedules(definition, flavor, schedules, moment)
    settings = _join(definition, flavor, expand_aliases(hyperparameters), parsed, wrappers, transforms)
    settings.check_definition()
    check_first_step(definition, settings.at(moment), schedules)
    return settings


def settings_from_data(data: Mapping[str, Any]) -> Settings:
    """What `to_data` gave."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in data["own"].items()}
    schedules = {name: Scheduled.from_data(scheduled) for name, scheduled in data["schedules"].items()}
    joined = _join(
        define_from_text(data["definition"]) if data.get("definition") else find_optimizer(data["optimizer"]),
        data["flavor"],
        given,
        schedules,
        parse_wrappers(data["wrappers"]),
        parse_transforms(data["transforms"]),
    )
    return replace(joined, accumulates=bool(data["accumulates"]))


def _join(
    definition: Definition,
    flavor: str,
    given: Mapping[str, object],
    schedules: Mapping[str, Scheduled],
    wrappers: tuple[Wrapping, ...],
    transforms: tuple[Transforming, ...],
) -> Settings:
    """Settings from values and schedules; a value that is required may be left to an absolute schedule."""
    arguments = definition.arguments_of(flavor)
    unset = frozenset(
        name
        for name, scheduled in schedules.items()
        if scheduled.schedule.absolute and name not in given and arguments[name].default is REQUIRED
    )
    # A stand-in that no commit uses; an argument that must be above 0 would refuse 0.
    stand_ins = {name: 0.0 if 0.0 in arguments[name].range else 1.0 for name in unset}
    own = definition.resolve(flavor, stand_ins | dict(given), live=schedules)
    for name in schedules:
        if own[name] is None:
            raise InvalidSpec(
                f"optimizer '{definition.name}': argument '{name}' is none, which switches it off, and has a "
                "schedule; give a number, or take the schedule away",
                argument=name,
            )
    for each in wrappers:
        if "lr" in each.definition.given and "lr" not in definition.arguments:
            raise InvalidSpec(
                f"wrapper '{each.definition.name}' looks at the learning rate, which optimizer '{definition.name}' has "
                "not; choose another"
            )
    return Settings(definition, flavor, own, schedules, unset, wrappers, transforms)


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
