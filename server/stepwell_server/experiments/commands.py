"""The commands that look at optimizers and schedules: schedule, optimizer, compare, experiments."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell_server.core.errors import DomainError, InvalidSpec

schedules = typer.Typer(no_args_is_help=True, help="Schedules: which there are, what they take, their values.")
optimizers = typer.Typer(no_args_is_help=True, help="Optimizers: which there are, what they take.")

_Words = Annotated[
    list[str] | None, typer.Argument(metavar="NAME [KEY=VALUE]...", help="A schedule and its arguments; and the next.")
]
_Specs = Annotated[
    list[str] | None, typer.Option("--spec", help='A whole spec as JSON, as in {"name": "noam", "d_model": 512}.')
]
_Initial = Annotated[float, typer.Option(help="The value that the schedule starts from, unless it has its own.")]


def add_commands(app: typer.Typer) -> None:
    """Enter everything here into the command line."""
    app.add_typer(schedules, name="schedule")
    app.add_typer(optimizers, name="optimizer")
    app.command()(compare)
    app.command()(experiments)


@schedules.command("list")
def list_schedules() -> None:
    """Every schedule, in one line each."""
    from stepwell_server.experiments import forms  # noqa: PLC0415  # the core takes a moment; --help need not wait

    forms.show(forms.schedules())


@schedules.command("show")
def show_schedule(
    words: _Words = None,
    spec: _Specs = None,
    initial: _Initial = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="How far the values go.")] = 1000,
    every: Annotated[int | None, typer.Option(min=1, help="Print one in so many; by default eleven in all.")] = None,
) -> None:
    """What a schedule takes, and its values where nothing that it needs is missing."""
    from stepwell_server.core.schedules import find_schedule  # noqa: PLC0415  # as above
    from stepwell_server.experiments import forms  # noqa: PLC0415
    from stepwell_server.experiments.words import parse_schedules  # noqa: PLC0415

    with _refusals():
        specs = parse_schedules(words or (), spec or ())
        if not specs:
            raise InvalidSpec("no schedule is named, expected one; `stepwell schedule list` has the names")
        for one in specs:
            entry = find_schedule(str(one.get("name", "")))
            try:
                line = _preview(one, initial, steps)
            except DomainError as error:
                if len(one) > 1:
                    raise
                # A bare name asks what there is to give.
                forms.show(forms.schedule(entry), f"To see values, give arguments, or --spec with JSON. {error}", "")
                continue
            stride = every or max(1, (steps - 1) // 10)
            clocks = sorted({*range(0, steps, stride), steps - 1})
            forms.show(forms.schedule(entry), forms.values(clocks, line))


@schedules.command("plot")
def plot_schedules(
    words: _Words = None,
    spec: _Specs = None,
    initial: _Initial = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="How many values are drawn.")] = 1000,
    output: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("schedule.png"),
) -> None:
    """Draw schedules into one PNG, as in: plot cosine t_max=1000 step step_size=300."""
    from stepwell_server.experiments.words import parse_schedules  # noqa: PLC0415  # as above

    with _refusals():
        specs = parse_schedules(words or (), spec or ())
        if not 1 <= len(specs) <= 12:
            raise InvalidSpec(
                f"{len(specs)} schedules are named, expected 1 to 12; `stepwell schedule list` has the names"
            )
        lines: dict[str, Any] = {}
        for one in specs:
            label = _label(one)
            lines[label if label not in lines else f"{label} ({len(lines) + 1})"] = _preview(one, initial, steps)
        # Heavy (Matplotlib), and not installed with the server alone.
        from stepwell_server.experiments.pictures import draw_schedules  # noqa: PLC0415

        with _written(output) as path:
            title = "Schedule" if len(specs) == 1 else "Schedules"
            draw_schedules(lines, f"{title} from the initial value {initial:g}", path)


@optimizers.command("list")
def list_optimizers() -> None:
    """Every optimizer, in one line each."""
    from stepwell_server.experiments import forms  # noqa: PLC0415  # as above

    forms.show(forms.optimizers())


@optimizers.command("show")
def show_optimizer(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """What an optimizer takes: its arguments, and the default that each flavor gives them."""
    from stepwell_server.core.optimizers import find_optimizer  # noqa: PLC0415  # as above
    from stepwell_server.experiments import forms  # noqa: PLC0415

    with _refusals():
        forms.show(forms.optimizer(find_optimizer(name)))


def compare(
    contestants: Annotated[
        list[str], typer.Argument(metavar="OPTIMIZER...", help="[LABEL=]OPTIMIZER[@FLAVOR], such as adam@keras.")
    ],
    problem: Annotated[
        str, typer.Option(help="sparse_dense, ravine, rosenbrock, noisy, alternating or zeros.")
    ] = "ravine",
    steps: Annotated[int, typer.Option(min=1, help="How many steps each one makes.")] = 500,
    flavor: Annotated[str | None, typer.Option(help="Whose defaults, for those that do not say it themselves.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[LABEL.]NAME=VALUE", help="A hyperparameter of one, or of all that have it."),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option("--schedule", metavar="[LABEL.]NAME=JSON", help="A schedule that drives a hyperparameter."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the problem's data and noise.")] = 0,
    output: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("compare.png"),
) -> None:
    """Run optimizers on a built-in problem and draw paths, losses and effective learning rates into one PNG."""
    from stepwell_server.experiments import forms  # noqa: PLC0415  # as above
    from stepwell_server.experiments.runner import Comparison  # noqa: PLC0415

    with _refusals():
        told = Comparison(
            contestants=tuple(contestants),
            problem=problem,
            steps=steps,
            flavor=flavor,
            assignments=tuple(assignments or ()),
            schedules=tuple(schedule or ()),
            seed=seed,
        )
        traces, made = told.run(), told.make_problem()
        from stepwell_server.experiments.pictures import draw_comparison  # noqa: PLC0415  # Matplotlib

        with _written(output) as path:
            draw_comparison(told, made, traces, path)
        forms.show(forms.results(told, traces, dict(made.groups)))


def experiments(
    output: Annotated[Path, typer.Option(help="The page; its pictures go to `pictures` beside it.")] = Path(
        "docs/experiments.md"
    ),
) -> None:
    """Measure what is claimed of the optimizers and schedules; write the page with its pictures and numbers."""
    from stepwell_server.experiments.page import write_page  # noqa: PLC0415  # Matplotlib

    with _refusals():
        try:
            write_page(output)
        except OSError as error:
            raise InvalidSpec(f"cannot write to '{output}': {error.strerror}; give another place") from error
    typer.echo(f"wrote {output}")


@contextmanager
def _refusals() -> Iterator[None]:
    """What the domain refuses ends with its message and status 2."""
    try:
        yield
    except DomainError as error:
        typer.echo(f"stepwell: {error}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    try:
        yield path
    except OSError as error:
        raise InvalidSpec(f"cannot write '{path}': {error.strerror}; give another place with --output") from error
    typer.echo(f"wrote {path}")


def _preview(spec: Mapping[str, Any], initial: float, steps: int) -> Any:
    from stepwell_server.core.schedules import Schedule, preview  # noqa: PLC0415  # as above

    return preview(Schedule.parse(spec), initial, steps)


def _label(spec: Mapping[str, Any]) -> str:
    """The spec as it could have been written on the command line, not longer than a legend bears."""
    words = [str(spec.get("name"))]
    for key, value in spec.items():
        if key == "schedules" and isinstance(value, list):
            words.append("(" + ", ".join(str(child.get("name")) for child in value if isinstance(child, dict)) + ")")
        elif key != "name":
            words.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    text = " ".join(words)
    return text if len(text) <= 60 else text[:57] + "..."
