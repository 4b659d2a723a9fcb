"""The command `stepwell bench`."""

from pathlib import Path
from typing import Annotated

import typer

from stepwell_server.benchmarks.options import ENCODINGS, TABLES, TRANSPORTS, Options
from stepwell_server.quantities import parse_count


def add_commands(app: typer.Typer) -> None:
    """Enter everything here into the command line."""
    app.command()(bench)


def _chosen(given: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is no {what}, expected some of {', '.join(known)}")
    return names


def bench(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]...", help=f"Which tables, by default all: {', '.join(TABLES)}."),
    ] = None,
    size: Annotated[int, typer.Option(parser=parse_count, help="Parameters of the large run, float32.")] = 25_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Timed turns of every row of a table.")] = 9,
    small_rounds: Annotated[int, typer.Option(min=1, help="The same for the table of small steps.")] = 500,
    workers: Annotated[str, typer.Option(help="How many workers at once, for the table of workers.")] = "1,2,4,8,16,32",
    waiting: Annotated[
        int, typer.Option(parser=parse_count, help="How many workers, for the table of a round.")
    ] = 1000,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn, for the table of the capacity model.")] = 3.0,
    transports: Annotated[str, typer.Option(help="Which ways to the server.")] = ",".join(TRANSPORTS),
    encodings: Annotated[
        str, typer.Option(help="Which rows of the table of encodings, as gradients/parameters.")
    ] = ",".join(ENCODINGS),
    sizes: Annotated[str, typer.Option(help="Parameters of the runs in the table of growth.")] = "1e4,1e5,1e6,1e7,1e8",
    steps: Annotated[int, typer.Option(min=10, help="Steps over which the server's memory is watched.")] = 10_000,
    table_rows: Annotated[
        int,
        typer.Option(parser=parse_count, help="Rows of the embedding table; 1 KB each, one side after the other."),
    ] = 10_000_000,
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the figures and every sample here.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Draw the tables into this PNG.")] = None,
) -> None:
    """Measure this machine: a step by every way there is, side by side in one run, and what the server takes for it.

    Every row says what it does. Rows for PyTorch and Ray appear where these are installed.
    """
    # These import Numba and the client's whole library; --help need not wait.
    from stepwell_server.benchmarks.run import measure

    chosen = _chosen(",".join(tables or TABLES), TABLES, "table")
    options = Options(
        size=size,
        rounds=rounds,
        small_rounds=small_rounds,
        workers=tuple(parse_count(text) for text in workers.split(",")),
        waiting=waiting,
        seconds=seconds,
        transports=_chosen(transports, TRANSPORTS, "transport"),
        encodings=_chosen(encodings, ENCODINGS, "row of encodings"),
        sizes=tuple(parse_count(text) for text in sizes.split(",")),
        steps=steps,
        table_rows=table_rows,
    )
    measure(chosen, options, json, plot)
