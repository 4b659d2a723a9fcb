"""What a client asks for when it creates a run: everything except the values of its parameters."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from stepwell_server.core.arguments import POSITIVE
from stepwell_server.core.errors import InvalidSpec, InvalidValue
from stepwell_server.core.layout import DEFAULT_GROUP, DTYPES, Layout, ParameterSpec, build_layout
from stepwell_server.core.schedules import Schedule, find_schedule
from stepwell_server.core.settings import Moment, Settings, expand_aliases, make_settings

Schedules = Mapping[str, Mapping[str, Any]]

# dtype.name is slow, and a spec may have a million parameters.
_DTYPE_NAMES = {dtype: dtype.name for dtype in DTYPES}

NONFINITE = ("reject", "skip", "allow")


@dataclass(frozen=True)
class GroupSpec:
    """Parameters that share settings. optimizer "": the run's; parameters: globs over names."""

    name: str
    parameters: tuple[str, ...]
    optimizer: str = ""
    flavor: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    schedules: Schedules = field(default_factory=dict)
    frozen: bool = False


@dataclass(frozen=True)
class RunSpec:
    """A run's definition, in plain data. flavor "": the optimizer's first."""

    parameters: tuple[ParameterSpec, ...]
    optimizer: str
    flavor: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    schedules: Schedules = field(default_factory=dict)
    groups: tuple[GroupSpec, ...] = ()
    nonfinite: str = "reject"
    samples_per_epoch: float | None = None

    def layout(self) -> Layout:
        """Where the parameters lie; raises as `build_layout`."""
        return build_layout(self.parameters, [(group.name, group.parameters, group.frozen) for group in self.groups])

    def settings(self, layout: Layout) -> list[Settings | None]:
        """The settings of each group of the layout, None where frozen; raises what is wrong with the spec."""
        if self.nonfinite not in NONFINITE:
            raise InvalidValue(f"nonfinite is {self.nonfinite!r}, expected one of {', '.join(NONFINITE)}; choose one")
        epoch = self.samples_per_epoch
        if epoch is not None and not (epoch in POSITIVE and epoch < float("inf")):
            raise InvalidValue(
                f"samples_per_epoch is {epoch!r}, expected a finite number above 0; leave it out or give one"
            )
        if all(group.frozen for group in layout.groups):
            raise InvalidSpec("every parameter is frozen, expected one to optimize; leave one unfrozen")
        specs = {group.name: group for group in (GroupSpec(DEFAULT_GROUP, ()), *self.groups)}
        made = {name: self._settings(specs[name]) for name in {group.name for group in layout.groups}}
        return [made[group.name] for group in layout.groups]

    def differences(self, other: "RunSpec") -> list[str]:
        """How `other` differs from this spec, in words; names are compared, not order, and defaults count as given."""
        mine, theirs = self._canonical(), other._canonical()
        found = []
        for key in sorted(mine.keys() | theirs.keys()):
            here, there = mine.get(key, "(absent)"), theirs.get(key, "(absent)")
            if here != there:
                found.append(f"{key} is {there}, the run has {here}")
        return found

    @cached_property
    def data(self) -> dict[str, Any]:
        """The spec as plain data, for snapshots; made once, since names may be many and a spec never changes."""
        return {
            "parameters": [[p.name, list(p.shape), _DTYPE_NAMES[p.dtype]] for p in self.parameters],
            "optimizer": self.optimizer,
            "flavor": self.flavor,
            "hyperparameters": dict(self.hyperparameters),
            "schedules": dict(self.schedules),
            "groups": [vars(group) | {"parameters": list(group.parameters)} for group in self.groups],
            "nonfinite": self.nonfinite,
            "samples_per_epoch": self.samples_per_epoch,
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "RunSpec":
        """The spec that gave `data`."""
        parameters = tuple(
            ParameterSpec(name, tuple(shape), np.dtype(dtype)) for name, shape, dtype in data["parameters"]
        )
        groups = tuple(GroupSpec(**(group | {"parameters": tuple(group["parameters"])})) for group in data["groups"])
        return RunSpec(**({**data} | {"parameters": parameters, "groups": groups}))

    def _settings(self, group: GroupSpec) -> Settings | None:
        start = Moment(0, 0.0, self.samples_per_epoch)
        if group.frozen:
            if group.optimizer or group.hyperparameters or group.schedules:
                raise InvalidSpec(
                    f"group '{group.name}' is frozen and has an optimizer, hyperparameters or schedules, expected "
                    "none; leave out one or the other",
                    group=group.name,
                )
            return None
        if group.optimizer and group.optimizer != self.optimizer:
            return make_settings(group.optimizer, group.flavor, group.hyperparameters, group.schedules, start)
        own = expand_aliases(group.hyperparameters)
        schedules = {name: spec for name, spec in self.schedules.items() if name not in own}
        return make_settings(
            self.optimizer,
            group.flavor or self.flavor,
            expand_aliases(self.hyperparameters) | own,
            schedules | dict(group.schedules),
            start,
        )

    def _canonical(self) -> dict[str, str]:
        layout = self.layout()
        facts = {"nonfinite": self.nonfinite, "samples_per_epoch": str(self.samples_per_epoch)}
        for placed in layout.parameters:
            group = layout.groups[placed.group].name
            facts[f"parameter '{placed.spec.name}'"] = f"{placed.spec.dtype} {placed.spec.shape} in group '{group}'"
        for placed_group, settings in zip(layout.groups, self.settings(layout), strict=True):
            group = placed_group.name
            if settings is None:
                facts[f"group '{group}'"] = "frozen"
                continue
            facts[f"group '{group}': optimizer"] = f"{settings.definition.name} ({settings.flavor})"
            for name, value in settings.own.items():
                facts[f"group '{group}': {name}"] = repr(value)
            for name, scheduled in settings.schedules.items():
                facts[f"group '{group}': schedule of {name}"] = _describe(scheduled.schedule)
        return facts


def _describe(schedule: Schedule, root: bool = True) -> str:
    """The schedule with every default filled in, so that what means the same reads the same."""
    values = {argument.name: argument.default for argument in find_schedule(schedule.name).arguments}
    parts = [f"{name}={reprlib.repr(value)}" for name, value in sorted((values | dict(schedule.arguments)).items())]
    parts += [_describe(child, root=False) for child in schedule.children]
    clock = f" on {schedule.clock}" if root else ""
    return f"{schedule.name}({', '.join(parts)}){clock}"
