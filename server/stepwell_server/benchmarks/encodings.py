"""One step of a large run over the stream, in fewer bytes."""

import os
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import stepwell
from stepwell_server.benchmarks.contest import Baseline, Contestant, compete
from stepwell_server.benchmarks.options import Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import start_stepwell
from stepwell_server.benchmarks.report import Table

_PLAIN = "float32/float32"
# Of Linux's struct tcp_info: tcpi_bytes_received and tcpi_bytes_sent.
_TCP_INFO = struct.Struct("128x Q 64x Q")


def benchmark(options: Options) -> Table:
    """A row for each pair of encodings; on loopback, where bytes are cheap and only the work is measured."""
    vector = random_vector(options.size)
    grads = as_tensors(vector)
    moved: dict[str, float] = {}
    with ExitStack() as stack:
        # Every run keeps its own state.
        memory = str(24 * options.size_bytes * len(options.encodings))
        server = stack.enter_context(start_stepwell("--max-memory", memory))
        contestants = []
        for pair in options.encodings:
            names = dict(zip(("gradients", "parameters"), pair.split("/"), strict=True))
            client = stack.enter_context(stepwell.connect(server.address, transport="stream"))
            run = client.create_run(
                pair.replace("/", "-"),
                as_tensors(vector),
                optimizer="adam",
                encodings={key: name for key, name in names.items() if name != "float32"},
            )
            step = _step(stack.enter_context(run), grads)
            before = _moved_bytes(server.address)
            step()
            moved[pair] = (_moved_bytes(server.address) - before) / 1e6
            words = f"gradients in {names['gradients']}, parameters in {names['parameters']}"
            contestants.append(Contestant(pair, words, step))
        table = compete(
            f"One step over the stream, encoded: {options.size:,} float32 parameters under Adam, "
            f"{options.size_bytes / 1e6:.0f} MB each way as they are",
            contestants,
            [Baseline(_PLAIN, "plain")],
            rounds=options.rounds,
            warmup_rounds=1,
            notes=("MB: what the connections carried in one step, both ways together.",),
        )
    rows = [{"what": row["what"], "MB": moved[row["key"]], **row} for row in table.rows]
    return Table(table.title, rows, table.notes)


def _step(run: stepwell.Run, grads: Any) -> Callable[[], object]:
    kept: dict[str, object] = {}

    def step() -> None:
        kept["now"] = run.step(grads)

    return step


def _moved_bytes(address: str) -> int:
    """What this process's open connections to the server have carried so far, both ways."""
    port, total = int(address.rpartition(":")[2]), 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            descriptor = os.dup(int(link.name))
        except OSError:  # closed meanwhile
            continue
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            continue
        # What is not connected has no peer.
        with socket.socket(fileno=descriptor) as found, suppress(OSError):
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getpeername()[1] == port:
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                total += sum(_TCP_INFO.unpack(info))
    return total
