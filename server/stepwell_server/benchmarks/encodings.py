"""One step of a large run over the stream, in fewer bytes."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import stepwell
from stepwell_server.benchmarks.contest import Baseline, Contestant, compete
from stepwell_server.benchmarks.options import Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import start_stepwell
from stepwell_server.benchmarks.report import Table

_PLAIN = "float32/float32"
_MOVED_ROUNDS = 3


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
            moved[pair] = min(_loopback_bytes(step) for _ in range(_MOVED_ROUNDS)) / 1e6
            words = f"gradients in {names['gradients']}, parameters in {names['parameters']}"
            contestants.append(Contestant(pair, words, step))
        table = compete(
            f"One step over the stream, encoded: {options.size:,} float32 parameters under Adam, "
            f"{options.size_bytes / 1e6:.0f} MB each way as they are",
            contestants,
            [Baseline(_PLAIN, "plain")],
            rounds=options.rounds,
            warmup_rounds=1,
            notes=("MB: what crossed the loopback device in one step, both ways together; the least of three.",),
        )
    rows = [{"what": row["what"], "MB": moved[row["key"]], **row} for row in table.rows]
    return Table(table.title, rows, table.notes)


def _step(run: stepwell.Run, grads: Any) -> Callable[[], object]:
    kept: dict[str, object] = {}

    def step() -> None:
        kept["now"] = run.step(grads)

    return step


def _loopback_bytes(step: Callable[[], object]) -> int:
    """What the loopback device takes in meanwhile: the step's bytes, and those of whoever else uses it."""
    before = _received_bytes()
    step()
    return _received_bytes() - before


def _received_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[0])
    return 0
