"""How the time of a step grows with the number of parameters."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

import stepwell
from stepwell._calls import Transport
from stepwell_server.benchmarks.contest import Contestant, compete
from stepwell_server.benchmarks.options import Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import start_stepwell
from stepwell_server.benchmarks.report import Table

_TENSORS = 10


def benchmark(options: Options) -> Table:
    """A row for each size and transport; each against the line t = fixed + size * slope through the transport's own."""
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        with ExitStack() as stack:
            server = stack.enter_context(start_stepwell("--max-memory", options.server_memory(size)))
            vector = random_vector(size)
            contestants = [
                Contestant(transport, transport.replace("_", " "), _step(stack, server.address, transport, vector))
                for transport in options.transports
            ]
            # Of small ones more, since each is short.
            rounds = options.rounds * max(1, min(20, 1_000_000 // size))
            table = compete("", contestants, [], rounds=rounds, warmup_rounds=3)
        rows += [
            {
                "transport": row["what"],
                "parameters": size,
                "median ms": row["median ms"],
                "ns each": row["median ms"] * 1e6 / size,
                "key": f"{row['key']} {size}",
                "samples": row["samples"],
            }
            for row in table.rows
        ]
    for transport in {row["transport"] for row in rows}:
        mine = [row for row in rows if row["transport"] == transport]
        for row, line in zip(mine, _line(mine), strict=True):
            row["x line"] = row["median ms"] / line
    rows.sort(key=lambda row: (row["transport"], row["parameters"]))
    return Table(
        "The time of a step with its size: float32 parameters under Adam in 10 tensors, arrays in, kept arrays out",
        rows,
        ("x line: against a fixed cost and a cost for each parameter, fitted to all sizes of the transport.",),
    )


def _step(stack: ExitStack, address: str, transport: str, vector: np.ndarray[Any, Any]) -> Callable[[], object]:
    kind: Transport = "stream" if transport == "stream" else "shared_memory"
    client = stack.enter_context(stepwell.connect(address, transport=kind))
    grads = as_tensors(vector, _TENSORS)
    run = stack.enter_context(client.create_run(transport, as_tensors(vector.copy(), _TENSORS), optimizer="adam"))
    out = {name: np.empty_like(grad) for name, grad in grads.items()}
    return lambda: run.step(grads, out=out)


def _line(rows: list[dict[str, Any]]) -> list[float]:
    """What a fixed cost and a slope give for each row, with the relative errors as small as they get."""
    sizes = np.array([row["parameters"] for row in rows], np.float64)
    times = np.array([row["median ms"] for row in rows])
    design = np.stack([np.ones_like(sizes), sizes], axis=1) / times[:, np.newaxis]
    fitted = np.linalg.lstsq(design, np.ones_like(times), rcond=None)[0]
    return [float(value) for value in fitted[0] + fitted[1] * sizes]
