"""What a PyTorch trainer's memory holds with its optimizer in it, and with the optimizer on a server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from stepwell_server.benchmarks.options import Options, has_torch, missing
from stepwell_server.benchmarks.peers import start_stepwell
from stepwell_server.benchmarks.report import Table

_LOCAL = "local"


def benchmark(options: Options) -> Table:
    """A process for each way to train."""
    title = f"Memory of a trainer in PyTorch: {options.size:,} parameters, AdamW, after four steps"
    if not has_torch():
        return Table(title, [], missing())
    with ExitStack() as stack:
        peer = stack.enter_context(start_stepwell("--max-memory", options.server_memory()))
        rows = list(_rows(options, peer.address))
    note = (
        "More than with a model of 1,000 parameters; without activations. Own: weights, gradients, moments and the "
        "client's buffers. Shared: of the server's memory, the gradients and two versions of the parameters."
    )
    return Table(title, rows, (note,))


def _rows(options: Options, address: str) -> Iterator[dict[str, Any]]:
    yield _row("float32 weights, torch.optim.AdamW", options, _LOCAL, "auto", "float32", "-")
    words = "bfloat16 weights, torch.optim.AdamW on a float32 copy of them"
    yield _row(words, options, _LOCAL, "auto", "bfloat16", "master")
    for transport in options.transports:
        words = f"float32 weights, RemoteOptimizer, {transport.replace('_', ' ')}"
        yield _row(words, options, address, transport, "float32", "-")
    # Parameters of 16 bits have no shared memory, as what the server keeps of them has 32.
    yield _row("bfloat16 weights, RemoteOptimizer, stream", options, address, "stream", "bfloat16", "-")


def _row(what: str, options: Options, address: str, transport: str, dtype: str, master: str) -> dict[str, Any]:
    arguments = [str(options.size), address, f"{dtype}-{transport}", transport, dtype, master]
    command = [sys.executable, "-m", "stepwell_server.benchmarks.torch_trainer", *arguments]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {
        "what": what,
        "own MB": found["RssAnon"],
        "shared MB": found["RssShmem"],
        "own bytes each": found["RssAnon"] * 1e6 / options.size,
        "key": f"{dtype} {master} {address == _LOCAL or transport}",
    }
