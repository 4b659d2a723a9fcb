"""Whether the server's memory stays where it is over many steps."""

from contextlib import ExitStack
from typing import Any

import numpy as np

import stepwell
from stepwell_server.benchmarks.memory import status
from stepwell_server.benchmarks.options import Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import start_stepwell
from stepwell_server.benchmarks.report import Table

ELEMENTS = 1_000_000

_PARTS = 10


def benchmark(options: Options) -> Table:
    """A row for each transport and each tenth of the steps; all workers of a transport on one server."""
    rows: list[dict[str, Any]] = []
    for transport in options.transports:
        kind: Any = transport
        with ExitStack() as stack:
            server = stack.enter_context(start_stepwell())
            client = stack.enter_context(stepwell.connect(server.address, transport=kind))
            grads = as_tensors(random_vector(ELEMENTS), 10)
            run = stack.enter_context(client.create_run("steady", grads, optimizer="adam"))
            out = {name: np.empty_like(grad) for name, grad in grads.items()}
            first = None
            for part in range(1, _PARTS + 1):
                for _ in range(options.steps // _PARTS):
                    run.step(grads, out=out)
                now = status(server)["VmRSS"]
                first = now if first is None else first
                rows.append(
                    {
                        "transport": transport.replace("_", " "),
                        "steps": part * (options.steps // _PARTS),
                        "server MB": now,
                        "since the first row MB": now - first,
                    }
                )
    return Table(f"The server's memory over {options.steps:,} steps of {ELEMENTS:,} float32 parameters", rows)
