"""What a client asks for when it creates a run: everything except the values of its parameters."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from stepwell_server.core.arguments import POSITIVE
from stepwell_server.core.compiler.text import define_from_text, digest
from stepwell_server.core.encoding import GRADIENT_ENCODINGS, PARAMETER_ENCODINGS, Encoding, parse_encoding
from stepwell_server.core.errors import InvalidSpec, InvalidValue, LimitExceeded
from stepwell_server.core.layout import DEFAULT_GROUP, DTYPES, Layout, LayoutGroup, ParameterSpec, build_layout
from stepwell_server.core.policies import Policy, parse_policy
from stepwell_server.core.schedules import Schedule, find_schedule
from stepwell_server.core.settings import Moment, Settings, expand_aliases, make_settings
from stepwell_server.core.tables.spec import TableSpec
from stepwell_server.core.transforms import Transforming, parse_transforms
from stepwell_server.core.wrappers import Wrapping, parse_wrappers

Schedules = Mapping[str, Mapping[str, Any]]

# dtype.name is slow, and a spec may have a million parameters.
_DTYPE_NAMES = {dtype: dtype.name for dtype in DTYPES}

NONFINITE = ("reject", "skip", "allow")
TABLES_MAX = 1000
# What of a table's spec is told by its settings.
_OF_TABLE_SETTINGS = ("name", "optimizer", "flavor", "hyperparameters", "schedules")


@dataclass(frozen=True)
class GroupSpec:
    """Parameters that share settings. optimizer "": the run's; parameters: globs over names.

    definition: an optimizer as text, as of RunSpec.
    """

    name: str
    parameters: tuple[str, ...]
    optimizer: str = ""
    flavor: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    schedules: Schedules = field(default_factory=dict)
    frozen: bool = False
    definition: str = ""


@dataclass(frozen=True)
class RunSpec:
    """A run's definition, in plain data. flavor "": the optimizer's first.

    transforms, wrappers: [{"name": ..., arguments}], for all groups. report_norms: whether answers tell them.
    definition: an optimizer as text, see `compiler/text.py`; then optimizer is its function's name, or "".
    gradient_encoding, parameter_encoding: {"name": ..., arguments}, see `encoding.py`; None for none.
    policy: the first one, {"name": ..., arguments}, see `policies/`; None for async.
    tables: each as of `tables.TableSpec`.
    """

    parameters: tuple[ParameterSpec, ...]
    optimizer: str
    flavor: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    schedules: Schedules = field(default_factory=dict)
    groups: tuple[GroupSpec, ...] = ()
    nonfinite: str = "reject"
    samples_per_epoch: float | None = None
    transforms: tuple[Mapping[str, Any], ...] = ()
    wrappers: tuple[Mapping[str, Any], ...] = ()
    report_norms: bool = False
    definition: str = ""
    gradient_encoding: Mapping[str, Any] | None = None
    parameter_encoding: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None
    tables: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def parsed_tables(self) -> tuple[TableSpec, ...]:
        """The tables, checked; raises what `TableSpec.from_data` raises, and InvalidSpec for a name that is taken."""
        tables = tuple(TableSpec.from_data(each) for each in self.tables)
        if len(tables) > TABLES_MAX:
            raise LimitExceeded(f"the spec has {len(tables)} tables, expected at most {TABLES_MAX}; use fewer")
        taken = {DEFAULT_GROUP, *(group.name for group in self.groups)}
        for table in tables:
            if table.name in taken:
                raise InvalidSpec(
                    f"table '{table.name}' has the name of a group or of another table, expected its own; choose "
                    "another",
                    table=table.name,
                )
            taken.add(table.name)
        return tables

    def table_settings(self) -> list[Settings]:
        """What each table's rows are optimized with; raises what is wrong with the tables."""
        start, policy = Moment(0, 0.0, self.samples_per_epoch), parse_policy(self.policy)
        made = [table.settings(start) for table in self.parsed_tables]
        for settings in made:
            check_policy(settings, policy)
        return made

    @cached_property
    def parsed_gradient_encoding(self) -> Encoding | None:
        """What gradients may come in; raises what `parse_encoding` raises."""
        return parse_encoding(self.gradient_encoding, GRADIENT_ENCODINGS, "gradients")

    @cached_property
    def parsed_parameter_encoding(self) -> Encoding | None:
        """What parameters may be sent in; raises what `parse_encoding` raises."""
        return parse_encoding(self.parameter_encoding, PARAMETER_ENCODINGS, "parameters")

    @cached_property
    def parsed_transforms(self) -> tuple[Transforming, ...]:
        """The transforms, checked; raises what `parse_transforms` raises."""
        return parse_transforms(self.transforms)

    def layout(self) -> Layout:
        """Where the parameters lie; raises as `build_layout`."""
        if not self.parameters and not self.tables:
            raise InvalidSpec("the spec has no parameters and no tables, expected at least one; name them")
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
        if all(group.frozen for group in layout.groups) and not self.tables:
            raise InvalidSpec("every parameter is frozen, expected one to optimize; leave one unfrozen")
        _ = self.parsed_transforms, self.parsed_gradient_encoding, self.parsed_parameter_encoding
        wrappers = parse_wrappers(self.wrappers)
        specs = {group.name: group for group in (GroupSpec(DEFAULT_GROUP, ()), *self.groups)}
        made = {name: self._settings(specs[name], wrappers) for name in {group.name for group in layout.groups}}
        policy = parse_policy(self.policy)
        made = {name: fit_policy(settings, policy) for name, settings in made.items()}
        for name, settings in made.items():
            _check_groups_of(name, settings, [group for group in layout.groups if group.name == name], layout)
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
            "transforms": [dict(each) for each in self.transforms],
            "wrappers": [dict(each) for each in self.wrappers],
            "report_norms": self.report_norms,
            "definition": self.definition,
            "gradient_encoding": self.gradient_encoding,
            "parameter_encoding": self.parameter_encoding,
            "policy": self.policy,
            "tables": [dict(each) for each in self.tables],
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "RunSpec":
        """The spec that gave `data`."""
        parameters = tuple(
            ParameterSpec(name, tuple(shape), np.dtype(dtype)) for name, shape, dtype in data["parameters"]
        )
        groups = tuple(GroupSpec(**(group | {"parameters": tuple(group["parameters"])})) for group in data["groups"])
        listed = {name: tuple(data[name]) for name in ("transforms", "wrappers", "tables")}
        return RunSpec(**({**data} | listed | {"parameters": parameters, "groups": groups}))

    def _settings(self, group: GroupSpec, wrappers: tuple[Wrapping, ...]) -> Settings | None:
        start = Moment(0, 0.0, self.samples_per_epoch)
        if group.frozen:
            if group.optimizer or group.definition or group.hyperparameters or group.schedules:
                raise InvalidSpec(
                    f"group '{group.name}' is frozen and has an optimizer, hyperparameters or schedules, expected "
                    "none; leave out one or the other",
                    group=group.name,
                )
            return None
        if not self._is_own(group):
            return make_settings(
                group.optimizer,
                group.flavor,
                group.hyperparameters,
                group.schedules,
                start,
                wrappers,
                self.parsed_transforms,
                group.definition,
            )
        own = expand_aliases(group.hyperparameters)
        schedules = {name: spec for name, spec in self.schedules.items() if name not in own}
        return make_settings(
            self.optimizer,
            group.flavor or self.flavor,
            expand_aliases(self.hyperparameters) | own,
            schedules | dict(group.schedules),
            start,
            wrappers,
            self.parsed_transforms,
            self.definition,
        )

    def _is_own(self, group: GroupSpec) -> bool:
        """Whether a group has the run's optimizer, and so begins with the run's hyperparameters."""
        if group.definition:
            return bool(self.definition) and digest(define_from_text(group.definition)) == digest(
                define_from_text(self.definition)
            )
        name = define_from_text(self.definition).name if self.definition else self.optimizer
        return group.optimizer in ("", name)

    def _canonical(self) -> dict[str, str]:
        layout = self.layout()
        facts = {
            "nonfinite": self.nonfinite,
            "samples_per_epoch": str(self.samples_per_epoch),
            "report_norms": str(self.report_norms),
            "transforms": str([each.spec for each in self.parsed_transforms]),
            "wrappers": str([each.spec for each in parse_wrappers(self.wrappers)]),
            "encoding of gradients": _spec_of(self.parsed_gradient_encoding),
            "encoding of parameters": _spec_of(self.parsed_parameter_encoding),
        }
        for placed in layout.parameters:
            group = layout.groups[placed.group].name
            facts[f"parameter '{placed.spec.name}'"] = f"{placed.spec.dtype} {placed.spec.shape} in group '{group}'"
        for placed_group, settings in zip(layout.groups, self.settings(layout), strict=True):
            group = placed_group.name
            if settings is None:
                facts[f"group '{group}'"] = "frozen"
                continue
            text = f", definition {digest(settings.definition)}" if settings.definition.text else ""
            facts[f"group '{group}': optimizer"] = f"{settings.definition.name} ({settings.flavor}){text}"
            for name, value in settings.own.items():
                facts[f"group '{group}': {name}"] = repr(value)
            for name, scheduled in settings.schedules.items():
                facts[f"group '{group}': schedule of {name}"] = _describe(scheduled.schedule)
        for table, made in zip(self.parsed_tables, self.table_settings(), strict=True):
            what = f"table '{table.name}'"
            facts[f"{what}: optimizer"] = f"{made.definition.name} ({made.flavor})"
            own = {name: value for name, value in vars(table).items() if name not in _OF_TABLE_SETTINGS}
            facts |= {f"{what}: {name}": repr(value) for name, value in {**own, **made.own}.items()}
            for name, scheduled in made.schedules.items():
                facts[f"{what}: schedule of {name}"] = _describe(scheduled.schedule)
        return facts


def fit_policy(settings: Settings | None, policy: Policy) -> Settings | None:
    """Settings with what a policy asks for; raises InvalidSpec for an optimizer that cannot have it."""
    if settings is None:
        return None
    check_policy(settings, policy)
    return replace(settings, accumulates=settings.accumulates or policy.accumulates or policy.has_rounds)


def check_policy(settings: Settings, policy: Policy) -> None:
    """Raise InvalidSpec for an optimizer that cannot have what a policy asks for."""
    if policy.damps and "lr" not in settings.definition.arguments:
        raise InvalidSpec(
            f"policy '{policy.name}' lowers the learning rate of stale updates, which optimizer "
            f"'{settings.definition.name}' has not; choose another, or damping 'none'",
            argument="damping",
        )


def _spec_of(encoding: Encoding | None) -> str:
    return "none" if encoding is None else str(encoding.spec)


def _check_groups_of(name: str, settings: Settings | None, groups: Sequence[LayoutGroup], layout: Layout) -> None:
    """Raise InvalidSpec for parameters that a group's optimizer cannot take."""
    program = settings.array_program if settings else None
    if settings is None or program is None:
        return
    if settings.definition.scope == "group" and len(groups) > 1:
        raise InvalidSpec(
            f"group '{name}' has parameters of {len(groups)} dtypes, expected one: {settings.definition.name} works on "
            "all of them as one vector; split the group",
            group=name,
        )
    for group in groups:
        for index, shape in zip(group.indices, group.shapes, strict=True):
            program.check_shape(layout.parameters[index].spec.name, shape)


def _describe(schedule: Schedule, root: bool = True) -> str:
    """The schedule with every default filled in, so that what means the same reads the same."""
    values = {argument.name: argument.default for argument in find_schedule(schedule.name).arguments}
    parts = [f"{name}={reprlib.repr(value)}" for name, value in sorted((values | dict(schedule.arguments)).items())]
    parts += [_describe(child, root=False) for child in schedule.children]
    clock = f" on {schedule.clock}" if root else ""
    return f"{schedule.name}({', '.join(parts)}){clock}"
