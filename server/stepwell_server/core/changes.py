"""Changes of hyperparameters and schedules: which groups and tables they are meant for."""

from collections.abc import Mapping, Sequence

from stepwell_server.core.errors import UnknownArgument, UnknownGroup
from stepwell_server.core.settings import Moment, Settings, expand_aliases
from stepwell_server.core.spec import Schedules

Named = Sequence[tuple[str, Settings | None]]


def change(
    run: str,
    before: Named,
    moment: Moment,
    group: str,
    hyperparameters: Mapping[str, object],
    schedules: Schedules = {},  # noqa: B006  # never written to
    removed: Sequence[str] = (),
    keep_clock: bool = False,
) -> list[Settings | None]:
    """The settings of all groups and tables after a change of one of them, or of all that have what changes.

    before: each with the name of its group or table; None where frozen. group: which is meant, "" for all.
    Raises UnknownGroup, UnknownArgument, ChangeRefused and what is wrong with the values.
    """
    known = sorted({name for name, settings in before if settings is not None})
    if group and group not in known:
        raise UnknownGroup(
            f"run '{run}' has no group '{group[:200]}' to optimize, expected one of {', '.join(known)}; choose one of "
            "them",
            got=group[:200],
        )
    hyperparameters = expand_aliases(hyperparameters)
    after: list[Settings | None] = []
    named = {*hyperparameters, *schedules, *removed}
    found: set[str] = set()
    for name, settings in before:
        if settings is None or (group and name != group):
            after.append(settings)
            continue
        chosen = {argument for argument in named if group or argument in settings.arguments}
        found |= chosen
        after.append(
            settings.changed(
                moment,
                {argument: value for argument, value in hyperparameters.items() if argument in chosen},
                {argument: spec for argument, spec in schedules.items() if argument in chosen},
                [argument for argument in removed if argument in chosen],
                keep_clock,
            )
            if chosen
            else settings
        )
    for argument in sorted(named - found):
        raise UnknownArgument(
            f"run '{run}': no group's optimizer has an argument '{argument[:200]}', expected one that some group has; "
            "see list_optimizers",
            got=argument[:200],
        )
    return after
