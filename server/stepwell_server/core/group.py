"""The state of one group: its vectors, the steps of its parameters, and how a commit moves them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.program import Program
from stepwell_server.core.devices.device import ALIGNMENT_BYTES, Device
from stepwell_server.core.errors import InvalidValue
from stepwell_server.core.layout import LayoutGroup
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.pieces import Pieces, whole
from stepwell_server.core.settings import Moment, Settings, damped

Scalars = dict[str, NDArray[np.float64]]

# What the state's types hold: a larger number would be cast to an infinity. (One that is rounded down to it, too.)
_LARGEST = {np.dtype(kind): float(np.finfo(kind).max) for kind in (np.float32, np.float64)}


@dataclass
class Held:
    """A vector of the state and how many readers hold it. A commit writes in place only where nobody holds."""

    vector: Vector
    holders: int = 0


@dataclass
class Row:
    """What shares coefficients in a launch: parameters with equal step and scalars, or one tensor.

    first, after: places of its parameters. reductions: what earlier stages gave. size: the elements that they ran over.
    """

    first: int
    after: int
    step: int
    scalars: tuple[float, ...]
    reductions: tuple[float, ...] = ()
    size: float = 0.0


class Launch:
    """One program on one group's vectors, stage after stage. Nothing is written before `run`."""

    def __init__(
        self,
        device: Device,
        layout: LayoutGroup,
        program: Program,
        values: Mapping[str, Value],
        steps: NDArray[np.int64],
        scalars: Mapping[str, NDArray[np.float64]],
        present: NDArray[np.bool_] | None,
        given: Mapping[str, float],
    ) -> None:
        """steps: of this commit. present: which parameters take part, None for all."""
        self.program = program
        self.layout = layout
        self._kernel = device.compile(program, layout.dtype)
        self._values = values
        self._given = given
        before = [scalars[name] for name in program.scalars]
        self.rows = list(_rows(program.scope == "tensor", steps, before, present, layout))
        self.after: Scalars = {name: scalars[name].copy() for name in program.scalars}
        self._exact = self._make_pieces(exact=True) if program.scope else None
        self._table: NDArray[Any] | None = None

    def reduce(self, stage: int, arrays: Mapping[str, Vector]) -> Callable[[], NDArray[np.float64]]:
        """What waits for what each row gives for the stage's reductions, norms still squared."""
        assert self._exact is not None
        return self._kernel.reduce(stage, self._exact, self._coefficients(stage), arrays)

    def finish(self) -> None:
        """The last coefficients and the new scalars; everything that can fail has then been done."""
        self._table = self._coefficients(len(self.program.stages) - 1)

    def run(self, arrays: Mapping[str, Vector], out: Vector | None = None) -> None:
        """Write the target and slots; cannot fail."""
        assert self._table is not None, "finish comes first"
        if self.rows:
            self._kernel.update(self._exact or self._make_pieces(exact=False), self._table, arrays, out)

    @property
    def covers_all(self) -> bool:
        """Whether every element is written, padding or not."""
        return len(self.rows) == 1 and self.rows[0].after - self.rows[0].first == len(self.layout.indices)

    def _coefficients(self, stage: int) -> NDArray[Any]:
        last = stage == len(self.program.stages) - 1
        table = np.empty((len(self.rows), self.program.stages[stage].coefficients), np.float64)
        known: dict[tuple[Any, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}
        for number, row in enumerate(self.rows):
            key = (row.step, row.scalars, row.reductions, row.size)
            if key not in known:
                known[key] = self.program.host(
                    row.step,
                    self._values,
                    row.scalars,
                    stage=stage,
                    reductions=row.reductions,
                    size=row.size,
                    given=self._given,
                )
            table[number], advanced = known[key]
            if last:
                for name, value in zip(self.program.scalars, advanced, strict=True):
                    self.after[name][row.first : row.after] = value
        largest = max((abs(number) for row, _ in known.values() for number in row), default=0.0)
        if largest > _LARGEST[self.layout.dtype]:
            raise InvalidValue(
                f"optimizer '{self.program.name}': the hyperparameters give coefficients up to {largest:g} that "
                f"{self.layout.dtype} cannot hold, expected finite ones; use smaller values"
            )
        return table.astype(self.layout.dtype)

    def _make_pieces(self, exact: bool) -> Pieces:
        """Each row's elements; exact leaves padding out, which reductions and rules of single tensors must not see."""
        if not exact and self.covers_all and self.layout.elements:
            return whole(self.layout.elements)
        begins, sizes = self.layout.begins, self.layout.sizes
        if exact:
            counts = [row.after - row.first for row in self.rows]
            places = np.concatenate([np.arange(row.first, row.after) for row in self.rows] or [np.zeros(0, np.int64)])
            rows = np.repeat(np.arange(len(self.rows)), counts)
            pieces = Pieces(begins[places], begins[places] + sizes[places], rows)
            filled = sizes[places] > 0
            return Pieces(pieces.begins[filled], pieces.ends[filled], pieces.rows[filled])
        edges = np.append(begins, self.layout.elements)
        firsts = np.array([row.first for row in self.rows], np.int64)
        afters = np.array([row.after for row in self.rows], np.int64)
        pieces = Pieces(edges[firsts], edges[afters], np.arange(len(self.rows)))
        filled = pieces.ends > pieces.begins
        return Pieces(pieces.begins[filled], pieces.ends[filled], pieces.rows[filled])


def reduce_together(launches: Sequence[tuple[Launch, Mapping[str, Vector]]], scope: str) -> None:
    """Run the reductions of launches of one program; over a group all their rows get the same values."""
    if not launches:
        return
    program = launches[0][0].program
    own = [[float(launch.layout.sizes[row.first : row.after].sum()) for row in launch.rows] for launch, _ in launches]
    everything = sum(sum(sizes) for sizes in own)
    for (launch, _), sizes in zip(launches, own, strict=True):
        for row, size in zip(launch.rows, sizes, strict=True):
            row.size = everything if scope == "group" else size
    for stage in range(len(program.stages) - 1):
        kinds = [kind for kind, _ in program.stages[stage].reductions]
        started = [launch.reduce(stage, arrays) for launch, arrays in launches]
        found = [wait() for wait in started]
        if scope == "group":
            joined = np.concatenate(found)
            parts = [joined[:, column] for column in range(len(kinds))]
            all_rows = np.array([[_join(kind, part) for kind, part in zip(kinds, parts, strict=True)]])
            found = [np.repeat(all_rows, len(launch.rows), axis=0) for launch, _ in launches]
        for (launch, _), values in zip(launches, found, strict=True):
            for row, numbers in zip(launch.rows, values.tolist(), strict=True):
                rooted = (math.sqrt(n) if kind == "norm" else n for kind, n in zip(kinds, numbers, strict=True))
                row.reductions += tuple(rooted)


def _join(kind: str, values: NDArray[np.float64]) -> float:
    return float(values.max(initial=0.0) if kind == "max_abs" else values.sum())


@dataclass
class GroupCommit:
    """What one commit will do to one group; nothing is written before `apply`.

    launch: the optimizer's pass; for a rule of array code, the pass of its wrappers.
    copies: new vectors for what readers hold, by slot name ("" for the parameters).
    inputs: what came with the update, the gradient under "grad".
    """

    group: "GroupState"
    settings: Settings
    launch: Launch
    values: Mapping[str, Value]
    steps: NDArray[np.int64]
    present: NDArray[np.bool_] | None
    inputs: Mapping[str, Vector]
    copies: dict[str, Vector] = field(default_factory=dict)

    def held(self) -> list[str]:
        """The names of the vectors that are held by readers and would be written."""
        if not self.launch.rows:
            return []
        written = [name for name, held in self.group.vectors.items() if held.holders and name in self._written]
        # Transforms run while the commit can still fail, so their slots are never written in place.
        return [*written, *self.settings.transform_slots]

    def scratch(self) -> list[Size]:
        """What array code needs beside the vectors: copies of its largest tensor, or of all of them."""
        rule = self.settings.definition.arrays
        if rule is None:
            return []
        layout = self.group.layout.state
        elements = int(layout.sizes.sum() if rule.scope == "group" else layout.sizes.max(initial=0))
        return [Size(elements * rule.scratch, layout.dtype)]

    @property
    def layout(self) -> LayoutGroup:
        """How the vectors lie, but for slots of other shapes."""
        return self.group.layout.state

    @property
    def arrays(self) -> dict[str, Vector]:
        """The vectors as kernels know them, before the commit."""
        vectors = {name or "param": held.vector for name, held in self.group.vectors.items()}
        return {**vectors, **self.inputs}

    @property
    def parameters(self) -> Vector:
        """The parameters after `apply`."""
        return self.copies.get("", self.group.vectors[""].vector)

    def apply(self, device: Device) -> None:
        """Run the kernels. Cannot fail."""
        if not self.launch.rows:
            return
        vectors = self.group.vectors
        covers_all = self.launch.covers_all
        for name, copy in self.copies.items():
            # A whole new version of the parameters is written out of place; anything else is copied and then updated.
            if (name or not covers_all) and name not in self.settings.transform_slots:
                device.copy(vectors[name].vector, copy)
        now = {name or "param": self.copies.get(name, held.vector) for name, held in vectors.items()}
        out = now["param"]
        if "" in self.copies and covers_all:
            now["param"] = vectors[""].vector
        if self.settings.array_program is not None:
            self._apply_arrays(device, now)
        self.launch.run({**now, **self.inputs}, out)

    def _apply_arrays(self, device: Device, now: Mapping[str, Vector]) -> None:
        """Run array code tensor by tensor; the new parameters take the gradients' place, for the wrappers' pass."""
        program = self.settings.array_program
        assert program is not None
        layouts, places = self.group.layouts, self.places
        params = [layouts[""].view(now["param"], place) for place in places]
        grads = [layouts[""].view(self.inputs["grad"], place) for place in places]
        slots = {name: [layouts[name].view(now[name], place) for place in places] for name in program.slots}
        if program.definition.scope == "group":
            new, changed = program.run(device.xp, params, grads, slots, int(self.steps[0]), self.values)
            # The gradients last: a slot may be given one as it is.
            for name, values in changed.items():
                _write(slots[name], values)
            _write(grads, new)
            return
        for number, place in enumerate(places):
            own = {name: views[number] for name, views in slots.items()}
            new, changed = program.run(
                device.xp, params[number], grads[number], own, int(self.steps[place]), self.values
            )
            for name, value in changed.items():
                _write([own[name]], [value])
            _write([grads[number]], [new])

    @property
    def places(self) -> list[int]:
        """The places of the parameters that take part and have elements."""
        sizes = self.group.layout.sizes
        return [place for place in range(len(sizes)) if sizes[place] and (self.present is None or self.present[place])]

    @property
    def _written(self) -> set[str]:
        outputs = {"" if name == "param" else name for name in self.launch.program.last.outputs}
        own = self.settings.array_program
        return outputs | {""} | (set(own.slots) if own else set())


def _write(targets: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]]) -> None:
    for target, value in zip(targets, values, strict=True):
        target[...] = value


class GroupState:
    """vectors: the parameters under "" and each slot under its name. settings: None if frozen.

    steps: the commits that touched each parameter. scalars: float64 per parameter, by name.
    layouts: how each vector lies. owner: "" unless other processes may map the parameters, see `Size`.
    """

    def __init__(
        self,
        layout: LayoutGroup,
        settings: Settings | None,
        vectors: Mapping[str, Vector],
        steps: NDArray[np.int64] | None = None,
        scalars: Scalars | None = None,
    ) -> None:
        self.layout = layout
        self.settings = settings
        self.layouts = vector_layouts(layout, settings)
        self.vectors = {name: Held(vector) for name, vector in vectors.items()}
        self.owner = ""
        count = len(layout.indices)
        self.steps = np.zeros(count, np.int64) if steps is None else steps
        declared = {} if settings is None else settings.declared_scalars
        names = () if settings is None else settings.scalars
        # In the program's order, which is the order in which the host function takes and gives them.
        self.scalars = {
            name: np.full(count, declared[name], np.float64) if scalars is None else scalars[name] for name in names
        }

    @staticmethod
    def sizes(layout: LayoutGroup, settings: Settings | None) -> dict[str, Size]:
        """The vectors that a group's state needs, in the form that `Memory.allocate` takes."""
        return {name: Size(each.elements, each.dtype) for name, each in vector_layouts(layout, settings).items()}

    def size(self, name: str) -> Size:
        """What a copy of a vector takes."""
        layout = self.layouts[name]
        return Size(layout.elements, layout.dtype, "" if name else self.owner)

    @property
    def accumulator_size(self) -> Size:
        """What gradients that wait for a commit take."""
        return Size(self.layout.state.elements, self.layout.state.dtype)

    def add(self, slot: str, vector: Vector, settings: Settings | None) -> None:
        """Take a further slot, which these settings have."""
        self.vectors[slot] = Held(vector)
        self.layouts = vector_layouts(self.layout, settings)

    def initialise_slots(self, device: Device, moment: Moment) -> None:
        """Set the slots to what the optimizer declares; the parameters are in place."""
        if self.settings is None:
            return
        values = self.settings.at(moment)
        for name, source in self.settings.initial_slots.items():
            vector = self.vectors[name].vector
            if source == "param":
                device.copy(self.vectors[""].vector, vector)
            else:
                device.fill(vector, 0.0 if source is None else float(values[source]))  # type: ignore[arg-type]  # a number

    def point_launch(self, device: Device, of: str, moment: Moment) -> tuple[Launch, dict[str, Vector]] | None:
        """How to compute a point from the present state, None where it is the parameters as they are."""
        program = self.settings.point(of) if self.settings else None
        if self.settings is None or program is None:
            return None
        layout = self.layout.state
        launch = Launch(device, layout, program, self.settings.at(moment), self.steps, self.scalars, None, {})
        launch.finish()
        return launch, {name or "param": held.vector for name, held in self.vectors.items()}

    def prepare(
        self,
        device: Device,
        settings: Settings,
        present: NDArray[np.bool_] | None,
        moment: Moment,
        inputs: Mapping[str, Vector],
        given: Mapping[str, float],
        damping: float = 1.0,
    ) -> GroupCommit:
        """Plan a commit up to its reductions, which may run over several groups; `Launch.finish` completes it.

        damping: what the learning rate is multiplied by.
        """
        values = damped(settings.at(moment), damping)
        steps = self.steps + (1 if present is None else present)
        program = settings.program_with(inputs)
        launch = Launch(device, self.layout.state, program, values, steps, self.scalars, present, given)
        return GroupCommit(self, settings, launch, values, steps, present, inputs)

    def finish(self, commit: GroupCommit) -> list[Vector]:
        """Make the commit the present state; returns vectors that nobody needs any more."""
        unneeded = []
        for name, copy in commit.copies.items():
            old = self.vectors[name]
            self.vectors[name] = Held(copy)
            if old.holders == 0:
                unneeded.append(old.vector)
        self.settings = commit.settings
        self.steps = commit.steps
        self.scalars = {**self.scalars, **commit.launch.after}
        return unneeded

    def state_bytes(self) -> int:
        """What the vectors take from the memory, alignment included."""
        return sum(held.vector.nbytes + ALIGNMENT_BYTES for held in self.vectors.values())


def vector_layouts(layout: LayoutGroup, settings: Settings | None) -> dict[str, LayoutGroup]:
    """How the vectors of a group's state lie: the parameters under "", then each slot."""
    state = layout.state
    layouts = {"": state}
    if settings is None:
        return layouts
    shapes = settings.slot_shapes
    for name in settings.slots:
        layouts[name] = (
            state.with_shapes([shapes[name](shape) for shape in state.shapes], state.dtype) if name in shapes else state
        )
    return layouts


def _rows(
    single: bool,
    steps: NDArray[np.int64],
    scalars: Sequence[NDArray[np.float64]],
    present: NDArray[np.bool_] | None,
    layout: LayoutGroup,
) -> Iterator[Row]:
    """The longest runs of neighbours that have a gradient and share step and scalars; single: one parameter each."""
    if not single and not scalars and present is None and (steps == steps[0]).all():
        yield Row(0, len(steps), int(steps[0]), ())  # what nearly every commit is
        return
    stacked = np.stack(scalars) if scalars else np.empty((0, len(steps)))
    if single:
        cuts = list(range(len(steps) + 1))
    else:
        differs = steps[1:] != steps[:-1]
        differs |= (stacked[:, 1:] != stacked[:, :-1]).any(axis=0)
        if present is not None:
            differs |= present[1:] != present[:-1]
        cuts = [0, *(np.flatnonzero(differs) + 1).tolist(), len(steps)]
    for first, after in pairwise(cuts):
        absent = present is not None and not present[first]
        if absent or (single and not layout.sizes[first]):
            continue
        yield Row(first, after, int(steps[first]), tuple(stacked[:, first].tolist()))
