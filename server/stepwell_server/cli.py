"""The command `stepwell`. A light install has it without the server's libraries; then it says what to install."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from stepwell_server.commands import app  # noqa: PLC0415  # what may be missing is caught
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("stepwell"):
            raise
        sys.exit(f"stepwell: module '{error.name}' is not installed; run: pip install 'stepwell[server]'")
    app()
