"""From the start of a server to its first steps, without compiled kernels and with those that the start before kept."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import stepwell
from stepwell_server.benchmarks.options import Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import start_stepwell
from stepwell_server.benchmarks.report import Table

_ELEMENTS = 1_000_000
_STEPS = 10


def benchmark(options: Options) -> Table:
    """A row without a cache, and the medians of as many warm starts as there are rounds."""
    with tempfile.TemporaryDirectory() as directory:
        kernels = Path(directory) / "kernels"
        cold = _start(kernels)
        warm = [_start(kernels) for _ in range(options.rounds)]
    medians = {name: statistics.median(each[name] for each in warm) for name in cold}
    return Table(
        f"A server's start to the first step: Adam, {_ELEMENTS:,} float32 parameters; {options.rounds} warm starts",
        [
            {"what": "nothing compiled yet", **cold, "key": "cold"},
            {"what": "kernels kept from the start before", **medians, "key": "warm", "samples": warm},
        ],
        ("The first step opens the worker's stream, too. Packages that Numba looks for, SciPy above all, count.",),
    )


def _start(kernels: Path) -> dict[str, Any]:
    """Seconds since the process was started; milliseconds of steps."""
    begin = time.perf_counter()
    with start_stepwell("--kernel-cache", str(kernels)) as server, stepwell.connect(server.address) as client:
        listening = time.perf_counter() - begin
        grads = as_tensors(random_vector(_ELEMENTS))
        run = client.create_run("start", grads, optimizer="adam")
        created = time.perf_counter() - begin
        steps = []
        for _ in range(_STEPS):
            before = time.perf_counter()
            run.step(grads)
            steps.append(time.perf_counter() - before)
        return {
            "listening s": listening,
            "run created s": created,
            "first step done s": created + steps[0],
            "first step ms": steps[0] * 1e3,
            "tenth step ms": steps[-1] * 1e3,
        }
