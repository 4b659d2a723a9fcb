"""The command `stepwell`. A light install has it without the server's libraries; then it says what to install."""

import sys

_DEMO_MODULES = frozenset({"matplotlib", "sklearn", "threadpoolctl"})


def main() -> None:
    """Run the command line."""
    try:
        # Here, so that what may be missing is caught.
        from stepwell_server.benchmarks import commands as benchmarks  # noqa: PLC0415
        from stepwell_server.capacity import commands as capacity  # noqa: PLC0415
        from stepwell_server.commands import app  # noqa: PLC0415
        from stepwell_server.experiments import commands as experiments  # noqa: PLC0415

        experiments.add_commands(app)
        benchmarks.add_commands(app)
        capacity.add_commands(app)
        app()
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module.startswith("stepwell"):
            raise
        extra = "demo" if module in _DEMO_MODULES else "server"
        sys.exit(
            f"stepwell: module '{module}' is not installed, expected it for this command; it comes with the extra "
            f"'{extra}': in the clone, pip install '.[{extra}]'"
        )
