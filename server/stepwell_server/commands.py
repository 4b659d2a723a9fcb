"""The commands of `stepwell`: serve, demo, demo-policies, demo-worker, healthcheck."""

import asyncio
import logging
import re
import sys
from pathlib import Path
from typing import Annotated

import grpc
import structlog
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stepwell_server import __version__
from stepwell_server.core.devices.device import DeviceUnavailable
from stepwell_server.core.errors import DomainError
from stepwell_server.demo.options import DemoOptions, WorkerOptions
from stepwell_server.service.limits import Limits

app = typer.Typer(
    name="stepwell",
    help="An optimizer as a service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2] not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size, expected a number and a unit, such as 4GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stepwell {__version__}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """An optimizer as a service: trainers push gradients, the server applies the update, trainers pull parameters."""


@app.command()
def serve(
    address: Annotated[
        str, typer.Option(envvar="STEPWELL_LISTEN", help="HOST:PORT (port 0: the system chooses) or unix:/path.")
    ] = "127.0.0.1:50051",
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="STEPWELL_DATA_DIR", help="Where runs are stored; without it they live in memory."),
    ] = None,
    max_memory: Annotated[
        str, typer.Option(help="Memory of all runs, staged updates and copies for readers together.")
    ] = "4GiB",
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen off loopback, readable and changeable by whoever reaches the port."),
    ] = False,
    snapshot_seconds: Annotated[
        float, typer.Option(min=0, help="How often runs are written to --data-dir; 0: only on a clean stop.")
    ] = 60.0,
    snapshots_kept: Annotated[int, typer.Option(min=1, help="How many snapshots of a run are kept.")] = 3,
    drain_seconds: Annotated[float, typer.Option(min=0, help="How long a stop waits for calls in flight.")] = 20.0,
    silence_seconds: Annotated[
        float, typer.Option(min=0.1, help="How long a peer may leave a transfer standing before it is dropped.")
    ] = 60.0,
    word_seconds: Annotated[float, typer.Option(min=0.05, help="How often a waiting caller gets word.")] = 5.0,
    threads: Annotated[int, typer.Option(min=0, help="Kernel threads; 0: one per core.")] = 0,
    kernel_cache: Annotated[
        Path | None,
        typer.Option(
            envvar="STEPWELL_KERNEL_CACHE", help="Where compiled kernels are kept; a private directory (0700)."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where state lives and kernels run: cpu, cuda or cuda:N.")] = "cpu",
    shared_memory: Annotated[
        bool,
        typer.Option("--shared-memory/--no-shared-memory", help="Share memory with workers of this machine and user."),
    ] = True,
    shared_memory_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="STEPWELL_SHARED_MEMORY_DIR",
            help="Where such workers find the socket for it; a private directory (0700), by default in /tmp.",
        ),
    ] = None,
    update_log: Annotated[
        Path | None,
        typer.Option(help="Append a line of JSON to this file for whatever becomes of updates and workers."),
    ] = None,
    reflection: Annotated[bool, typer.Option("--reflection", help="Offer gRPC server reflection.")] = False,
    log_format: Annotated[str, typer.Option(help="json or console; the default depends on the terminal.")] = "",
) -> None:
    """Serve runs until SIGTERM or Ctrl-C; then store them in --data-dir and exit.

    The first line on stdout is `listening on ADDRESS`, the next ones say how to join. Logs go to stderr.
    """
    # Heavy (gRPC's server, Numba): --help and healthcheck stay quick without.
    from stepwell_server.plugins import load_plugins  # noqa: PLC0415
    from stepwell_server.service.server import ServerSettings  # noqa: PLC0415
    from stepwell_server.service.server import serve as serve_until_stopped  # noqa: PLC0415

    _configure_logs(log_format)
    load_plugins()
    limits = Limits(memory_bytes=_bytes(max_memory), silence_seconds=silence_seconds, word_seconds=word_seconds)
    settings = ServerSettings(
        address=address,
        data_directory=data_dir,
        insecure=insecure,
        reflection=reflection,
        snapshot_seconds=snapshot_seconds,
        snapshots_kept=snapshots_kept,
        drain_seconds=drain_seconds,
        threads=threads,
        kernel_cache=kernel_cache,
        device=device,
        shared_memory=shared_memory,
        shared_memory_directory=shared_memory_dir,
        update_log=update_log,
        limits=limits,
    )
    try:
        asyncio.run(serve_until_stopped(settings, lambda listening: _announce(listening, insecure)))
    except DeviceUnavailable as error:
        typer.echo(f"stepwell: {error}", err=True)
        raise typer.Exit(2) from None
    except DomainError as error:
        sys.exit(f"stepwell: {error}")


@app.command()
def healthcheck(
    address: Annotated[str, typer.Option(envvar="STEPWELL_ADDRESS")] = "127.0.0.1:50051",
    timeout_seconds: Annotated[float, typer.Option(min=0.1)] = 3.0,
) -> None:
    """Exit with 0 if the server at the address is serving, else with 1 and the reason."""
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest()
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_seconds)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            sys.exit(f"stepwell: no healthy server at {address}: {error.code().name}")
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(
            f"stepwell: the server at {address} is {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"
        )


_Optimizer = Annotated[str, typer.Option(help="The optimizer's name.")]
_Flavor = Annotated[str | None, typer.Option(help="Whose defaults: torch, optax, keras, lecture; else the first.")]
_LearningRate = Annotated[float | None, typer.Option("--lr", help="The learning rate; else one that suits.")]
_Schedule = Annotated[str, typer.Option(help="The learning rate's schedule; a wrong name lists those that there are.")]
_Workers = Annotated[int, typer.Option(min=1, help="How many workers train.")]
_Steps = Annotated[int, typer.Option(min=1, help="Updates that each worker makes.")]
_Policy = Annotated[str, typer.Option(help="How updates become versions: async, bounded or sync.")]
_Bound = Annotated[int, typer.Option(min=1, help="For bounded: how many steps a worker may be ahead of the slowest.")]
_Slow = Annotated[float, typer.Option(metavar="FACTOR", help="The last worker takes so many times as long for a step.")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Images per update.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of the first weights and the mini-batches.")]
_Run = Annotated[str, typer.Option(help="The run's name on the server.")]
_GradientEncoding = Annotated[
    str | None, typer.Option(metavar="NAME", help="Send gradients so, such as int8 or top_k:density=0.05.")
]
_ParameterEncoding = Annotated[str | None, typer.Option(metavar="NAME", help="Get parameters so, such as bfloat16.")]
_Target = Annotated[float, typer.Option(min=0, max=1, help="The test accuracy to be reached.")]
_Plain = Annotated[bool, typer.Option("--plain", help="Print lines now and then instead of a live table.")]

_DEMO = DemoOptions()


@app.command()
def demo(
    optimizer: _Optimizer = _DEMO.optimizer,
    flavor: _Flavor = None,
    lr: _LearningRate = None,
    schedule: _Schedule = _DEMO.schedule,
    workers: _Workers = _DEMO.workers,
    steps: _Steps = _DEMO.steps,
    policy: _Policy = _DEMO.policy,
    bound: _Bound = _DEMO.bound,
    slow: _Slow = _DEMO.slow,
    batch_size: _BatchSize = _DEMO.batch_size,
    seed: _Seed = _DEMO.seed,
    run: _Run = _DEMO.run,
    gradient_encoding: _GradientEncoding = None,
    parameter_encoding: _ParameterEncoding = None,
    target: _Target = _DEMO.target,
    picture: Annotated[Path, typer.Option(help="Where the PNG goes.")] = _DEMO.picture,
    address: Annotated[str | None, typer.Option(help="Use this running server instead of starting one.")] = None,
    plain: _Plain = False,
) -> None:
    """Train on handwritten digits: a server, workers, live progress, the test accuracy, and a picture."""
    # Heavy (scikit-learn, Matplotlib), and not installed with the server alone.
    from stepwell_server.demo.session import run_demo  # noqa: PLC0415

    options = DemoOptions(
        optimizer=optimizer,
        flavor=flavor,
        lr=lr,
        schedule=schedule,
        workers=workers,
        steps=steps,
        policy=policy,
        bound=bound,
        slow=slow,
        batch_size=batch_size,
        seed=seed,
        run=run,
        gradient_encoding=gradient_encoding,
        parameter_encoding=parameter_encoding,
        target=target,
        picture=picture,
        address=address,
        plain=plain,
    )
    raise typer.Exit(run_demo(options))


@app.command("demo-policies")
def demo_policies(
    optimizer: _Optimizer = _DEMO.optimizer,
    lr: _LearningRate = None,
    schedule: _Schedule = "constant",
    workers: _Workers = 4,
    steps: _Steps = 200,
    bound: _Bound = _DEMO.bound,
    slow: _Slow = 10.0,
    batch_size: _BatchSize = _DEMO.batch_size,
    seed: _Seed = _DEMO.seed,
    target: _Target = _DEMO.target,
    picture: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("stepwell-policies.png"),
    plain: _Plain = False,
) -> None:
    """Train under async, bounded and sync with one slow worker: a table, and a picture of accuracy and staleness."""
    from stepwell_server.demo.comparison import run_comparison  # noqa: PLC0415  # heavy, as above

    options = DemoOptions(
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        workers=workers,
        steps=steps,
        bound=bound,
        slow=slow,
        batch_size=batch_size,
        seed=seed,
        target=target,
        picture=picture,
        plain=plain,
    )
    raise typer.Exit(run_comparison(options))


@app.command("demo-worker")
def demo_worker(
    address: Annotated[str, typer.Option(envvar="STEPWELL_ADDRESS", help="The server's.")] = "127.0.0.1:50051",
    index: Annotated[int | None, typer.Option(help="Which worker this is; else it helps to the end.")] = None,
    supervised: Annotated[bool, typer.Option("--supervised", help="Report JSON lines; end with stdin.")] = False,
    optimizer: _Optimizer = _DEMO.optimizer,
    flavor: _Flavor = None,
    lr: _LearningRate = None,
    schedule: _Schedule = _DEMO.schedule,
    workers: _Workers = _DEMO.workers,
    steps: _Steps = _DEMO.steps,
    policy: _Policy = _DEMO.policy,
    bound: _Bound = _DEMO.bound,
    slow: _Slow = _DEMO.slow,
    batch_size: _BatchSize = _DEMO.batch_size,
    seed: _Seed = _DEMO.seed,
    run: _Run = _DEMO.run,
    gradient_encoding: _GradientEncoding = None,
    parameter_encoding: _ParameterEncoding = None,
) -> None:
    """One worker of the demo: create or join the run, train, and print progress."""
    from stepwell_server.demo.worker import run_worker  # noqa: PLC0415  # heavy, as above

    options = WorkerOptions(
        address=address,
        index=index,
        supervised=supervised,
        optimizer=optimizer,
        flavor=flavor,
        lr=lr,
        schedule=schedule,
        workers=workers,
        steps=steps,
        policy=policy,
        bound=bound,
        slow=slow,
        batch_size=batch_size,
        seed=seed,
        run=run,
        gradient_encoding=gradient_encoding,
        parameter_encoding=parameter_encoding,
    )
    raise typer.Exit(run_worker(options))


def _announce(address: str, insecure: bool) -> None:
    typer.echo(f"listening on {address}")
    if insecure:
        typer.echo("insecure: without TLS, whoever reaches this port can read and change the runs")
    typer.echo(f'join with: stepwell.connect("{address}")')
    sys.stdout.flush()


def _configure_logs(log_format: str) -> None:
    if log_format not in ("", "json", "console"):
        raise typer.BadParameter(f"{log_format!r} is no log format, expected json or console")
    # Without the frames' variables: those are whole parameter arrays.
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    json = [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]
    console = log_format == "console" or (not log_format and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)] if console else json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
