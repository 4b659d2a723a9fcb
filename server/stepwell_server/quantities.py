"""Numbers as people write them on a command line."""

import typer


def parse_count(text: str | int) -> int:
    """A whole number of 1 or more, also as 25_000_000 or 25e6; raises BadParameter."""
    try:
        number = float(str(text).replace("_", ""))
    except ValueError:
        number = 0.0
    if not (number >= 1 and number.is_integer()):
        raise typer.BadParameter(f"{text!r} is no count, expected a whole number of 1 or more, such as 25_000_000")
    return int(number)
