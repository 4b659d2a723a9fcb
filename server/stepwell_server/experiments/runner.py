"""Optimizers on a problem: one contestant, its settings, and the trace that it leaves."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stepwell_server.core.arguments import unknown
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.errors import InvalidSpec, InvalidValue, UnknownArgument
from stepwell_server.core.optimizers import find_optimizer
from stepwell_server.core.schedules import find_schedule
from stepwell_server.core.settings import Moment, Settings, make_settings
from stepwell_server.experiments.problems import Point, Problem, make_problem
from stepwell_server.experiments.words import parse_assignment, parse_json, split_assignment

CONTESTANTS_MAX: Final = 12
_FORM: Final = re.compile(r"(?:(?P<label>[\w.+-]{1,40})=)?(?P<optimizer>\w{1,64})(?:@(?P<flavor>\w{1,64}))?")


@dataclass(frozen=True)
class Trace:
    """What a contestant did in so many steps.

    stored: the parameters as they are kept, where gradients are taken, (steps + 1, features).
    points: where the optimizer wants to be judged: the stored parameters unless it has a point of its own.
    gradients: (steps, features). losses: at the points, (steps + 1,).
    state: slots and scalars after the last step. diverged: the step (from 1) that left the finite numbers; from there
    on everything is NaN.
    """

    stored: Point
    points: Point
    gradients: Point
    losses: npt.NDArray[np.float64]
    state: Mapping[str, Any]
    diverged: int | None

    @property
    def moves(self) -> Point:
        """What each step added to the stored parameters, (steps, features)."""
        return np.diff(self.stored, axis=0)

    def effective_rates(self, components: Sequence[int], window: int = 1) -> npt.NDArray[np.float64]:
        """|step| / |gradient| over some components and the last `window` steps, (steps,); NaN without a gradient."""
        moved = _trailing_sum(np.abs(self.moves[:, components]).sum(axis=1), window)
        slope = _trailing_sum(np.abs(self.gradients[:, components]).sum(axis=1), window)
        return np.divide(moved, slope, out=np.full_like(moved, np.nan), where=slope > 0)


@dataclass(frozen=True)
class Comparison:
    """What `stepwell compare` is told.

    contestants: `[LABEL=]OPTIMIZER[@FLAVOR]`. assignments: `[LABEL.]ARGUMENT=VALUE`; without a label for all that have
    the argument. schedules: `[LABEL.]ARGUMENT=JSON`. flavor: of those that name none.
    """

    contestants: tuple[str, ...]
    problem: str = "ravine"
    steps: int = 500
    flavor: str | None = None
    assignments: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    seed: int = 0

    def words(self, output: str) -> list[str]:
        """The command line that makes the same picture, quoted; an option and its value are one entry."""
        options = [("--problem", self.problem), ("--steps", str(self.steps))]
        options += [("--flavor", self.flavor)] if self.flavor else []
        options += [("--set", text) for text in self.assignments]
        options += [("--schedule", text) for text in self.schedules]
        options += [("--seed", str(self.seed))] if self.seed else []
        options += [("--output", output)]
        return ["stepwell compare", *map(shlex.quote, self.contestants), *map(shlex.join, options)]

    def make_problem(self) -> Problem:
        return make_problem(self.problem, self.steps, self.seed)

    def run(self) -> dict[str, Trace]:
        """Every contestant's trace by its label. Raises what wrong input raises, before the first step."""
        settings = self.settings()
        problem = self.make_problem()
        for each in settings.values():
            if each.array_program:
                each.array_program.check_shape("point", problem.start.shape)
        return {label: run(each, problem, self.steps) for label, each in settings.items()}

    def settings(self) -> dict[str, Settings]:
        """Every contestant's settings by its label; raises Unknown..., InvalidSpec or InvalidValue."""
        if not 1 <= len(self.contestants) <= CONTESTANTS_MAX:
            raise InvalidSpec(f"{len(self.contestants)} contestants, expected 1 to {CONTESTANTS_MAX}; compare fewer")
        entered = dict(map(self._enter, self.contestants))
        if len(entered) < len(self.contestants):
            raise InvalidSpec("two contestants have the same label, expected different ones; write LABEL=OPTIMIZER")
        arguments = {
            label: find_optimizer(optimizer).arguments_of(find_optimizer(optimizer).flavor(flavor))
            for label, (optimizer, flavor) in entered.items()
        }
        given = _distribute(map(parse_assignment, self.assignments), arguments)
        specs = ((key, parse_json(text)) for key, text in map(split_assignment, self.schedules))
        scheduled = _distribute(specs, arguments)
        return {
            label: _make_settings(optimizer, flavor, given[label], scheduled[label])
            for label, (optimizer, flavor) in entered.items()
        }

    def _enter(self, text: str) -> tuple[str, tuple[str, str | None]]:
        match = _FORM.fullmatch(text)
        if match is None:
            raise InvalidSpec(
                f"contestant {text[:80]!r} is not understood, expected [LABEL=]OPTIMIZER[@FLAVOR], such as adam@keras"
            )
        flavor = match["flavor"]
        label = match["label"] or (f"{match['optimizer']}@{flavor}" if flavor else match["optimizer"])
        return label, (match["optimizer"], flavor or self.flavor)


def run(settings: Settings, problem: Problem, steps: int) -> Trace:
    """Make so many steps from the problem's start. Gradients are taken at the stored parameters."""
    rule = _Rule(settings, problem.start)
    stored = np.full((steps + 1, len(problem.start)), np.nan)
    points, gradients, losses = stored.copy(), stored[1:].copy(), stored[:, 0].copy()
    # The problem is its own witness: what overflows becomes infinite, and ends the run here.
    with np.errstate(all="ignore"):
        for t in range(steps + 1):
            stored[t], points[t] = rule.param, rule.evaluated(t)
            losses[t] = problem.loss(points[t])
            if not math.isfinite(stored[t].sum() + losses[t]):
                for trace in (stored, points, losses):
                    trace[t:] = np.nan
                return Trace(stored, points, gradients, losses, rule.state, t)
            if t < steps:
                gradients[t] = problem.gradient(rule.param, t)
                rule.advance(gradients[t], t, problem.step_loss(rule.param, t))
    return Trace(stored, points, gradients, losses, rule.state, None)


class _Rule:
    """An optimizer with its state, as its settings say."""

    def __init__(self, settings: Settings, start: Point) -> None:
        self.param: Any = start.copy()
        self._settings = settings
        self._arrays = settings.array_program
        self._program = None if self._arrays else settings.program_with(())
        initial, shapes = settings.initial_slots, settings.slot_shapes
        self.state: dict[str, Any] = {}
        for name in settings.slots:
            source = initial[name]
            shape = shapes[name](start.shape) if name in shapes else start.shape
            first = settings.own.get(source or "", 0.0)
            self.state[name] = start.copy() if source == "param" else np.full(shape, first, np.float64)
        for name in settings.scalars:
            self.state[name] = settings.declared_scalars[name]
        self._names = self._in_order(self._program)
        self._evaluation = settings.points.get("evaluation")
        self._evaluation_names = self._in_order(self._evaluation)

    def advance(self, gradient: Point, t: int, loss: float) -> None:
        """Make step t, from 0."""
        values = self._settings.at(_moment(t))
        try:
            if self._arrays:
                self._advance_arrays(gradient, t, values)
            else:
                assert self._program is not None
                state = (self.state[name] for name in self._names)
                given = {"loss": loss}
                new = self._program.reference(self.param, gradient, *state, step=t + 1, values=values, given=given)
                self.param = new[0]
                self.state.update(zip(self._names, new[1:], strict=True))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise self._refusal(t, error) from error

    def evaluated(self, t: int) -> Point:
        """Where the parameters are to be judged after t steps."""
        if self._evaluation is None or not self._evaluation_names:
            return np.asarray(self.param)
        values = self._settings.at(_moment(max(0, t - 1)))
        state = (self.state[name] for name in self._evaluation_names)
        try:
            (point,) = self._evaluation.reference(self.param, *state, step=t, values=values)
        except ArithmeticError as error:
            raise self._refusal(t, error) from error
        return np.asarray(point)

    def _advance_arrays(self, gradient: Point, t: int, values: Mapping[str, Any]) -> None:
        assert self._arrays is not None
        rule = self._settings.definition.arrays
        if rule is not None and rule.scope == "group":
            listed = {name: [value] for name, value in self.state.items()}
            (self.param,), state = self._arrays.run(np, [self.param], [gradient], listed, t + 1, values)
            self.state |= {name: value[0] for name, value in state.items()}
        else:
            self.param, state = self._arrays.run(np, self.param, gradient, self.state, t + 1, values)
            self.state |= state

    def _in_order(self, program: Program | None) -> list[str]:
        """A program's slots and scalars, in the order of the signature."""
        used = {*program.slots, *program.scalars} if program else set()
        return [name for name in self._settings.definition.state if name in used]

    def _refusal(self, t: int, error: Exception) -> InvalidValue:
        return InvalidValue(
            f"optimizer '{self._settings.definition.name}' at step {t + 1}: {error}, expected hyperparameters that "
            "give finite steps; change them"
        )


def _make_settings(
    optimizer: str, flavor: str | None, given: Mapping[str, Any], schedules: Mapping[str, Mapping[str, Any]]
) -> Settings:
    settings = make_settings(optimizer, flavor, given, schedules, _moment(0))
    definition = settings.definition
    needed = [name for name, need in definition.inputs.items() if need == "required"]
    if needed:
        raise InvalidSpec(
            f"optimizer '{optimizer}' needs '{needed[0]}' with every update, expected one that a gradient and a loss "
            "suffice for; leave it out"
        )
    for name, scheduled in settings.schedules.items():
        if find_schedule(scheduled.schedule.name).stateful:
            raise InvalidSpec(
                f"schedule '{scheduled.schedule.name}' of '{name}' follows what is reported, and nothing is reported "
                "here, expected a function of the clock; choose another",
                argument=name,
            )
    return settings


def _distribute(
    assigned: Iterable[tuple[str, Any]], arguments: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What each label gets: `label.argument` for one, `argument` for all that have it."""
    given: dict[str, dict[str, Any]] = {label: {} for label in arguments}
    for key, value in assigned:
        label, dot, name = key.rpartition(".")
        if dot and label not in arguments:
            raise unknown(InvalidSpec, "contestant", label, arguments)
        takers = [label] if dot else [each for each, known in arguments.items() if name in known]
        if not takers:
            raise unknown(UnknownArgument, "argument", name, set().union(*arguments.values()))
        for taker in takers:
            given[taker][name] = value
    return given


def _moment(t: int) -> Moment:
    # A step is one sample here, and there are no epochs.
    return Moment(updates=t, samples=float(t), samples_per_epoch=None)


def _trailing_sum(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    padded = np.concatenate([np.zeros(window - 1), values])
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, window).sum(axis=1))
