"""The command `stepwell capacity`."""

import json
import math
from dataclasses import fields, replace
from typing import Annotated, Any

import typer

from stepwell_server.capacity.inputs import Costs, Machine, Sizes, Workload
from stepwell_server.core.errors import DomainError
from stepwell_server.quantities import parse_count

_WORKLOAD, _MACHINE = Workload(), Machine()
_BARS = 40


def add_commands(app: typer.Typer) -> None:
    """Enter everything here into the command line."""
    app.command()(capacity)


def _policy(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"name": text}
    return _json(text, "policy") or {"name": "async"}


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no {what}, expected a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{text!r} is no {what}, expected a JSON object")
    return found


def _costs(text: str) -> Costs:
    given = _json(text, "costs")
    known = {field.name for field in fields(Costs)}
    for name, value in given.items():
        if name not in known or isinstance(value, bool) or not isinstance(value, int | float):
            raise typer.BadParameter(f"{name} {value!r} is no cost, expected numbers for some of {', '.join(known)}")
    return replace(Costs(), **given)


def _gigabits(value: float) -> float:
    return value * 1e9 / 8 if value else math.inf


def capacity(
    workers: Annotated[str, typer.Option(help="How many train.")] = str(_WORKLOAD.workers),
    parameters: Annotated[str, typer.Option(help="Elements of the run.")] = "1_000_000",
    policy: Annotated[str, typer.Option(help='Its name, or JSON: {"name": "bounded", "lead_max": 3}.')] = "async",
    compute_seconds: Annotated[
        float, typer.Option(min=0, help="What a worker takes for a gradient, on average.")
    ] = _WORKLOAD.compute_seconds,
    spread: Annotated[float, typer.Option(min=0, help="Its standard deviation as a share of it.")] = _WORKLOAD.spread,
    local_steps: Annotated[int, typer.Option(min=1, help="Gradients for each update.")] = _WORKLOAD.local_steps,
    slow_workers: Annotated[int, typer.Option(min=0, help="How many of the workers are slow.")] = 0,
    slow_factor: Annotated[float, typer.Option(min=1, help="How much longer those take.")] = _WORKLOAD.slow_factor,
    gradient_bytes: Annotated[
        float, typer.Option(min=0.01, help="Of a gradient's element on its way: 4 plain, 2 in bfloat16, 1.02 in int8.")
    ] = _WORKLOAD.gradient_bytes,
    parameter_bytes: Annotated[
        float, typer.Option(min=0.01, help="Of a parameter on its way back.")
    ] = _WORKLOAD.parameter_bytes,
    link: Annotated[
        float, typer.Option(min=0, help="Of the server, each way, in gigabits per second; 0: loopback.")
    ] = 10,
    worker_link: Annotated[float, typer.Option(min=0, help="Of each worker.")] = 10,
    cores: Annotated[int, typer.Option(min=1, help="Of the server.")] = _MACHINE.cores,
    memory: Annotated[
        float, typer.Option(min=0.1, help="Bandwidth of the server's memory, in gigabytes per second.")
    ] = _MACHINE.memory_bytes_per_second / 1e9,
    shards: Annotated[
        int, typer.Option(min=1, help="Servers with an equal part of the run each; planned, not built.")
    ] = 1,
    local: Annotated[bool, typer.Option("--local", help="The workers run on the server's own cores.")] = False,
    costs: Annotated[str, typer.Option(help="What an update costs, as JSON, where that was measured.")] = "{}",
    updates: Annotated[
        int, typer.Option(min=0, help="How many are simulated, 5 of each worker or more; 0: as many as it takes.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the times that workers take.")] = 0,
) -> None:
    """Predict steps per second and staleness, and say which part of the server is full first.

    The defaults of what an update costs were measured, see docs/scaling.md; the policy is the server's own.
    """
    # The core takes a moment; --help need not wait.
    from stepwell_server.capacity.limits import memory_bytes, servers_needed, updates_max  # noqa: PLC0415
    from stepwell_server.capacity.model import predict  # noqa: PLC0415

    try:
        workload = Workload(
            workers=parse_count(workers),
            parameters=parse_count(parameters),
            compute_seconds=compute_seconds,
            spread=spread,
            local_steps=local_steps,
            slow_workers=slow_workers,
            slow_factor=slow_factor,
            gradient_bytes=gradient_bytes,
            parameter_bytes=parameter_bytes,
            policy=_policy(policy),
        )
        machine = Machine(cores, _gigabits(link), _gigabits(worker_link), memory * 1e9, shards, local)
        priced = _costs(costs)
        found = predict(workload, machine, priced, updates=updates, seed=seed)
    except DomainError as error:
        raise typer.BadParameter(str(error)) from None
    most = updates_max(workload, machine, priced)
    kept = memory_bytes(workload, machine, priced, found.staged_max, found.versions_max)

    say = typer.echo
    say(
        f"{workload.workers:,} workers, {workload.parameters:,} parameters, policy {workload.policy['name']}, "
        f"{compute_seconds * 1e3:g} ms for a gradient, {local_steps} for each update; {shards} x {cores} cores"
    )
    rate = found.updates_per_second
    say(f"\nupdates per second    {rate:,.1f} of all workers, {rate / workload.workers:,.3g} of each")
    say(f"gradients per second  {rate * local_steps:,.1f}")
    say(f"versions per second   {found.versions_per_second:,.3g}")
    say(f"workers compute       {found.computing:.0%} of their time")
    say(
        f"an exchange takes     {_duration(found.exchange_percentile(50))}, "
        f"one in a hundred {_duration(found.exchange_percentile(99))} or more"
    )
    if found.refused:
        say(f"dropped or refused    {found.refused:.1%}")
    say("\npart          in use   lets through at most, updates per second")
    say(f"{'workers':12} {found.computing:7.0%}   {most['workers']:,.1f}")
    for part, use in found.use.items():
        say(f"{part:12} {use:7.0%}   {most[part]:,.1f}")
    servers = servers_needed(workload, machine, priced)
    say(
        "\nso that all workers compute all the time: "
        + (
            "no number of servers is enough; ask less often, or aggregate"
            if servers is None
            else f"{servers:,} such servers, each with an equal part of the run (planned, not built)"
            if servers > 1
            else "one such server"
        )
    )
    say("\nmemory of a server at most, in MB")
    words = {
        "state": "parameters and slots",
        "staged": f"{found.staged_max:,} staged updates",
        "versions": f"{found.versions_max:,} versions that are being sent",
        "connections": f"{workload.workers:,} connections",
    }
    for part, size in kept.items():
        say(f"{size / 1e6:10,.0f}   {words[part]}")
    say(
        f"\nstaleness             mean {found.staleness_mean:.2f}, 99 % at most {found.staleness_percentile(99)}, "
        f"largest {found.staleness_max}"
    )
    _draw(found.staleness)
    sizes = Sizes.of(workload, machine)
    say(f"\nwhat travels for an update: {sizes.gradients / 1e6:,.2f} MB in, {sizes.parameters / 1e6:,.2f} MB out")


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1e3:,.1f} ms"


def _draw(staleness: dict[int, int]) -> None:
    """Shares in the ranges in which the server counts, too: 0, 1, 2 to 3, 4 to 7, ..."""
    counts: dict[int, int] = {}
    for value, count in staleness.items():
        counts[value.bit_length()] = counts.get(value.bit_length(), 0) + count
    total = sum(counts.values())
    for digits in range(max(counts, default=-1) + 1):
        low, high = (1 << digits) // 2, (1 << digits) - 1
        share = counts.get(digits, 0) / total
        name = f"{low}" if low == high else f"{low} to {high}"
        typer.echo(f"{name:>14} {share:6.1%} {'#' * round(share * _BARS)}")
