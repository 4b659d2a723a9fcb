"""How much memory the server takes: VmRSS and VmHWM (the most so far) of its process, from /proc.

VmHWM never falls, so on each server the phases come in the order of what they need.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import stepwell
from stepwell_server.benchmarks.options import Floats, Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import Peer, start_stepwell
from stepwell_server.benchmarks.report import Table

READERS_MAX = 3

_RUN = "memory"
_POLL_SECONDS = 0.01
_WAIT_SECONDS_MAX = 120.0


def benchmark(options: Options) -> Table:
    """One worker alone, beside readers, and beside a snapshot."""
    grads = as_tensors(random_vector(options.size))
    with tempfile.TemporaryDirectory() as directory:
        rows = [*_readers(options, grads), *_snapshot(options, grads, Path(directory))]
    return Table(
        f"Memory of the server: {options.size:,} float32 parameters under Adam; "
        f"one copy of the parameters is {options.size_bytes / 1e6:.0f} MB",
        rows,
        ("Added: the most so far less the most with one worker alone on the same server.",),
    )


def _readers(options: Options, grads: dict[str, Floats]) -> Iterator[dict[str, Any]]:
    with _server(options) as server:
        yield _row("the server as it starts", server)
        with _training(server, grads) as run:
            yield _row("the run created: parameters and two slots", server)
            _alternate(run, grads, options.rounds)
            alone = _peak(server)
            state, update = 3 * options.size_bytes / 1e6, options.size_bytes / 1e6
            yield _row(
                "one worker, push and pull in turn",
                server,
                accounted=state + update,
                besides=alone - state - update,
            )
            for count in range(1, READERS_MAX + 1):
                with _pulling(server, count):
                    _alternate(run, grads, options.rounds)
                words = f"and {count} pulling all the time: at most {count} more of the parameters"
                yield _row(words, server, options=options, alone=alone)


def _snapshot(options: Options, grads: dict[str, Floats], directory: Path) -> Iterator[dict[str, Any]]:
    with (
        _server(options, "--data-dir", str(directory), "--snapshot-seconds", "0") as server,
        _training(server, grads) as run,
    ):
        # The snapshot with which a new run begins is none of those that are measured.
        wait_for(lambda: any((directory / "runs" / _RUN / "snapshots").glob("[0-9]*[0-9]")))
        _alternate(run, grads, options.rounds)
        alone = _peak(server)
        yield _row("one worker, on a server with a data directory", server)
        with stepwell.connect(server.address) as client, ThreadPoolExecutor(1) as threads:
            saving = threads.submit(client.get_run(_RUN).save_checkpoint)
            while not saving.done():
                _alternate(run, grads, 1)
            saving.result()
        yield _row(
            "and a snapshot is written: at most 3 more, of parameters and slots", server, options=options, alone=alone
        )


@contextmanager
def _server(options: Options, *arguments: str) -> Iterator[Peer]:
    with start_stepwell("--max-memory", options.server_memory(), *arguments) as server:
        yield server


@contextmanager
def _training(server: Peer, grads: dict[str, Floats]) -> Iterator[stepwell.Run]:
    with stepwell.connect(server.address) as client, client.create_run(_RUN, grads, optimizer="adam") as run:
        yield run


@contextmanager
def _pulling(server: Peer, count: int) -> Iterator[None]:
    """So many readers pull again and again; each has pulled once before the block begins."""
    stop = threading.Event()
    begun = [threading.Event() for _ in range(count)]

    def pull(mine: threading.Event) -> None:
        with stepwell.connect(server.address) as client:
            run = client.get_run(_RUN)
            out = run.pull()
            mine.set()
            while not stop.is_set():
                run.pull(out=out)

    with ThreadPoolExecutor(count) as threads:
        readers = [threads.submit(pull, mine) for mine in begun]
        try:
            wait_for(lambda: all(mine.is_set() for mine in begun) or any(reader.done() for reader in readers))
            yield
        finally:
            stop.set()
        for reader in readers:
            reader.result()


def _alternate(run: stepwell.Run, grads: dict[str, Floats], times: int) -> None:
    out = {name: np.empty_like(grad) for name, grad in grads.items()}
    for _ in range(times):
        run.push(grads)
        run.pull(out=out)


def _row(
    what: str,
    server: Peer,
    *,
    accounted: float | None = None,
    besides: float | None = None,
    options: Options | None = None,
    alone: float = 0.0,
) -> dict[str, Any]:
    memory = status(server)
    added = None if options is None else memory["VmHWM"] - alone
    return {
        "what": what,
        "now MB": memory["VmRSS"],
        "most so far MB": memory["VmHWM"],
        "state and one update MB": accounted,
        "besides MB": besides,
        "added MB": added,
        "copies added": None if added is None or options is None else added / (options.size_bytes / 1e6),
    }


def _peak(server: Peer) -> float:
    return status(server)["VmHWM"]


def status(server: Peer) -> dict[str, float]:
    """VmRSS and VmHWM in MB."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].removesuffix("kB")) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")}


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again until it holds; raises TimeoutError."""
    give_up = time.monotonic() + _WAIT_SECONDS_MAX
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"nothing came for {_WAIT_SECONDS_MAX:.0f} seconds; look at the server")
        time.sleep(_POLL_SECONDS)
