"""Many workers at once on one run: steps per second together, and how long each of them waits."""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

import stepwell
from stepwell_server.benchmarks.options import SEED, Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import announce, start_stepwell
from stepwell_server.benchmarks.report import Table

ELEMENTS = 1_000_000

_RUN = "workers"
_SECONDS = 6.0
_TENSORS = 10


def benchmark(options: Options) -> Table:
    """A row for each number of workers and transport; the turns of all of them in an order drawn anew each round."""
    cases = [(transport, count) for transport in options.transports for count in options.workers]
    rates: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    waits: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    rounds = max(1, options.rounds // 3)
    with ExitStack() as stack:
        server = stack.enter_context(start_stepwell("--max-memory", options.server_memory()))
        with stepwell.connect(server.address) as client:
            client.create_run(_RUN, as_tensors(random_vector(ELEMENTS), _TENSORS), optimizer="adam").close()
        crews = {
            transport: [stack.enter_context(Worker(server.address, transport)) for _ in range(max(options.workers))]
            for transport in options.transports
        }
        order = list(cases)
        for number in range(rounds + 1):
            random.Random(SEED + number).shuffle(order)
            for transport, count in order:
                rate, seconds = _together(crews[transport][:count])
                if number:  # the first round opens connections and fills pools
                    rates[transport, count].append(rate)
                    waits[transport, count] += seconds
    rows = []
    best: dict[str, float] = {}
    for transport, count in cases:
        rate = statistics.median(rates[transport, count])
        millis = np.array(waits[transport, count]) * 1e3
        rows.append(
            {
                "transport": transport.replace("_", " "),
                "workers": count,
                "steps/s": rate,
                "of the best with fewer": rate / best[transport] if transport in best else None,
                "p50 ms": float(np.percentile(millis, 50)),
                "p99 ms": float(np.percentile(millis, 99)),
                "key": f"{transport} {count}",
                "samples": rates[transport, count],
            }
        )
        best[transport] = max(best.get(transport, 0.0), rate)
    return Table(
        f"Workers at once on one run, each a process of its own: {ELEMENTS:,} float32 parameters under Adam, policy "
        f"async; {rounds} rounds of {_SECONDS:.0f} s",
        rows,
        ("Steps are those of all workers together; the percentiles are of single calls of step.",),
    )


def _together(crew: Sequence["Worker"]) -> tuple[float, list[float]]:
    """Steps per second of these workers, and the seconds of every step."""
    for worker in crew:
        worker.go()
    done = [worker.done() for worker in crew]
    # Between the last to begin and the first to end all were at work.
    begin, end = max(each["begin"] for each in done), min(each["end"] for each in done)
    steps = [pair for each in done for pair in zip(each["at"], each["seconds"], strict=True) if begin <= pair[0] < end]
    return len(steps) / (end - begin), [seconds for _, seconds in steps]


class Worker:
    """A worker in a process of its own, which steps for a while each time that it is told to."""

    def __init__(self, address: str, transport: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stepwell_server.benchmarks.peers", "workers", address, transport],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        self._line()
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def done(self) -> Any:
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended before it was told to; its error is above")
        return line


def serve(address: str, transport: str) -> None:
    """Be a worker: for each line on stdin step for a while, and print when each step began and how long it took."""
    kind: Any = transport
    grads = as_tensors(random_vector(ELEMENTS), _TENSORS)
    out = {name: np.empty_like(grad) for name, grad in grads.items()}
    with stepwell.connect(address, transport=kind) as client, client.get_run(_RUN) as run:
        run.step(grads, out=out)
        announce(address)
        for _ in sys.stdin:
            at, seconds = [], []
            begin = now = time.monotonic()
            while now < begin + _SECONDS:
                run.step(grads, out=out)
                after = time.monotonic()
                at.append(after)
                seconds.append(after - now)
                now = after
            print(json.dumps({"begin": begin, "end": now, "at": at, "seconds": seconds}), flush=True)
