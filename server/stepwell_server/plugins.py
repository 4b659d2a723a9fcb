"""Loads plug-ins: installed packages that add optimizers and schedules.

A package names its modules in the entry points of the groups below; importing one registers what it decorates with
`stepwell_server.plugin`. A plug-in runs with the server's rights: it is trusted as any installed package is, and found
in the server's own environment only, never over the wire.

One that fails, or takes a name that is taken, is refused as a whole: what it has registered is taken back, the log says
which package, which entry point and why, and the server starts without it. A run that needs it is refused by the name
of its optimizer, as any unknown one; a server that does not start would take all other runs with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import structlog

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.definition import Definition
from stepwell_server.core.compiler.program import specialise
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.schedules import SCHEDULES

GROUPS = ("stepwell.optimizers", "stepwell.schedules")

log = structlog.get_logger()


@dataclass(frozen=True)
class Loaded:
    """An entry point, and what it added or why it was refused."""

    package: str
    entry_point: str
    optimizers: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    refused: str = ""


def load_plugins() -> list[Loaded]:
    """Import every plug-in, in the order of packages and names; call it once, before the server restores runs."""
    found = [point for group in GROUPS for point in entry_points(group=group)]
    return [_load(point) for point in sorted(found, key=lambda point: (_package(point), point.group, point.name))]


def _load(point: EntryPoint) -> Loaded:
    package, place = _package(point), f"{point.group}: {point.name} = {point.value}"
    optimizers, schedules = dict(OPTIMIZERS), dict(SCHEDULES)
    try:
        point.load()
        added = [name for name in OPTIMIZERS if name not in optimizers]
        _check(OPTIMIZERS[name] for name in added)
    # Whatever foreign code does when it is imported, exit included, must not keep the server from starting.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        for registry, before in ((OPTIMIZERS, optimizers), (SCHEDULES, schedules)):
            registry.clear()
            registry.update(before)  # type: ignore[arg-type]  # each its own kind
        reason = f"{type(error).__name__}: {error}"
        log.error(
            "plug-in refused", package=package, entry_point=place, reason=reason, remedy="mend or uninstall the package"
        )
        return Loaded(package, place, refused=reason)
    loaded = Loaded(package, place, tuple(added), tuple(name for name in SCHEDULES if name not in schedules))
    log.info(
        "plug-in loaded", package=package, entry_point=place, optimizers=loaded.optimizers, schedules=loaded.schedules
    )
    return loaded


def _check(definitions: Iterable[Definition]) -> None:
    """Raise what the compiler refuses now, and not when somebody creates a run."""
    for definition in definitions:
        if definition.arrays:
            continue
        for flavor in definition.flavors:
            missing = [name for name, value in definition.defaults(flavor).items() if value is REQUIRED]
            specialise(definition, definition.resolve(flavor, dict.fromkeys(missing, 1.0)), inputs=definition.inputs)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "(unknown)"
