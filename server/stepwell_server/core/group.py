"""The state of one group: its flat vectors, the steps of its parameters, and how a commit moves them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.cpu import ALIGNMENT_BYTES, CpuDevice, Kernel
from stepwell_server.core.errors import InvalidValue
from stepwell_server.core.layout import LayoutGroup
from stepwell_server.core.memory import Size, Vector
from stepwell_server.core.settings import Moment, Settings


@dataclass
class Held:
    """A vector of the state and how many readers hold it. A commit writes in place only where nobody holds."""

    vector: Vector
    holders: int = 0


@dataclass(frozen=True)
class Launch:
    """A run of elements that share coefficients."""

    begin: int
    end: int
    coefficients: tuple[np.floating[Any], ...]


@dataclass
class GroupCommit:
    """What one commit will do to one group; nothing is written before `apply`.

    copies: new vectors for what readers hold, by slot name ("" for the parameters).
    """

    group: "GroupState"
    settings: Settings
    kernel: Kernel
    launches: list[Launch]
    steps: NDArray[np.int64]
    scalars: dict[str, NDArray[np.float64]]
    copies: dict[str, Vector]

    def held(self) -> list[str]:
        """The names of the vectors that are held by readers and would be written."""
        if not self.launches:
            return []
        return [name for name, held in self.group.vectors.items() if held.holders]

    def apply(self, device: CpuDevice, gradient: Vector) -> None:
        """Run the kernels. Cannot fail."""
        if not self.launches:
            return
        vectors = self.group.vectors
        covers_all = self.launches[0].end - self.launches[0].begin == len(gradient)
        for name, copy in self.copies.items():
            # A whole new version of the parameters is written out of place; anything else is copied and then updated.
            if name or not covers_all:
                device.copy(vectors[name].vector, copy)
        now = {name: self.copies.get(name, held.vector) for name, held in vectors.items()}
        source = vectors[""].vector if "" in self.copies and covers_all else now[""]
        slots = [now[name] for name in self.settings.program.slots]
        for launch in self.launches:
            self.kernel.launch(device, launch.begin, launch.end, source, now[""], gradient, slots, launch.coefficients)


class GroupState:
    """vectors: the parameters under "" and each slot under its name. settings: None if frozen.

    steps: the commits that touched each parameter. scalars: float64 per parameter, by name.
    """

    def __init__(
        self,
        layout: LayoutGroup,
        settings: Settings | None,
        vectors: Mapping[str, Vector],
        steps: NDArray[np.int64] | None = None,
        scalars: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        self.layout = layout
        self.settings = settings
        self.vectors = {name: Held(vector) for name, vector in vectors.items()}
        count = len(layout.indices)
        self.steps = np.zeros(count, np.int64) if steps is None else steps
        declared = {} if settings is None else settings.definition.scalars
        names = () if settings is None else settings.program.scalars
        # In the program's order, which is the order in which the host function takes and gives them.
        self.scalars = {
            name: np.full(count, declared[name], np.float64) if scalars is None else scalars[name] for name in names
        }

    @staticmethod
    def sizes(layout: LayoutGroup, settings: Settings | None) -> dict[str, Size]:
        """The vectors that a group's state needs, in the form that `Memory.allocate` takes."""
        names = ["", *(settings.program.slots if settings else ())]
        return dict.fromkeys(names, (layout.elements, layout.dtype))

    def initialise_slots(self) -> None:
        """Set the slots to what the optimizer declares; the parameters are in place."""
        if self.settings is None:
            return
        for name in self.settings.program.slots:
            source = self.settings.definition.init.get(name)
            vector = self.vectors[name].vector
            if source == "param":
                np.copyto(vector, self.vectors[""].vector)
            else:
                vector.fill(0.0 if source is None else self.settings.own[source])

    def prepare(
        self, device: CpuDevice, settings: Settings, present: NDArray[np.bool_] | None, moment: Moment
    ) -> GroupCommit:
        """Plan a commit: the launches and everything that can fail. present: None if every parameter has a gradient."""
        values = settings.at(moment)
        kernel = device.compile(settings.program, self.layout.dtype)
        steps = self.steps + (1 if present is None else present)
        names = list(self.scalars)
        before = np.stack([self.scalars[name] for name in names]) if names else np.empty((0, len(steps)))
        after = before.copy()
        launches = []
        known: dict[tuple[int, tuple[float, ...]], tuple[tuple[float, ...], tuple[float, ...]]] = {}
        for begin, end in _runs(steps, before, present):
            key = (int(steps[begin]), tuple(before[:, begin].tolist()))
            if key not in known:
                known[key] = settings.program.host(key[0], values, key[1])
            coefficients, advanced = known[key]
            after[:, begin:end] = np.array(advanced)[:, None]
            launches.append(Launch(self._element(begin), self._element(end), self._cast(coefficients, settings)))
        return GroupCommit(
            self,
            settings,
            kernel,
            [launch for launch in launches if launch.end > launch.begin],
            steps,
            dict(zip(names, after, strict=True)),
            {},
        )

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
        self.scalars = commit.scalars
        return unneeded

    def _cast(self, coefficients: tuple[float, ...], settings: Settings) -> tuple[np.floating[Any], ...]:
        """The coefficients in the kernel's type; raises InvalidValue for one that it cannot hold."""
        with np.errstate(over="ignore"):
            cast = tuple(self.layout.dtype.type(number) for number in coefficients)
        if not all(np.isfinite(number) for number in cast):
            raise InvalidValue(
                f"optimizer '{settings.definition.name}': the hyperparameters give coefficients {coefficients} that "
                f"{self.layout.dtype} cannot hold, expected finite ones; use smaller values"
            )
        return cast

    def state_bytes(self) -> int:
        """What the vectors take from the memory, alignment included."""
        return sum(held.vector.nbytes + ALIGNMENT_BYTES for held in self.vectors.values())

    def _element(self, place: int) -> int:
        """Where the parameter at `place` begins in the vector, in elements."""
        offsets = self.layout.vector_offsets
        position = int(offsets[place]) if place < len(offsets) else self.layout.vector_bytes
        return position // self.layout.dtype.itemsize


def _runs(
    steps: NDArray[np.int64], scalars: NDArray[np.float64], present: NDArray[np.bool_] | None
) -> list[tuple[int, int]]:
    """The longest runs of neighbours that have a gradient and share step and scalars: (first place, place after)."""
    differs = steps[1:] != steps[:-1]
    differs |= (scalars[:, 1:] != scalars[:, :-1]).any(axis=0)
    if present is not None:
        differs |= present[1:] != present[:-1]
    cuts = [0, *(np.flatnonzero(differs) + 1).tolist(), len(steps)]
    runs = list(pairwise(cuts))
    return runs if present is None else [run for run in runs if present[run[0]]]
