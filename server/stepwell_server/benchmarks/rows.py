"""Rows of an embedding table: a batch pushed and one pulled, against PyTorch's backward pass and step in one process.

The sides come one after the other, each in processes of its own, since two tables of this size would not fit: so the
figures of this table are of one run, but not of turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stepwell
from stepwell_server.benchmarks.options import SEED, Options, has_torch, missing
from stepwell_server.benchmarks.peers import announce, start_stepwell
from stepwell_server.benchmarks.report import Table

WIDTH = 64
BATCH = 4096

_EXPONENT = 1.1
_BATCHES = 32
_WARMUP = 20
_FILL = 1 << 15
_TABLE = {"name": "rows", "width": WIDTH, "optimizer": "sparse_adam", "initializer": {"name": "constant"}}
_MEMORY_BYTES_PER_ROW = 1100


def benchmark(options: Options) -> Table:
    """PyTorch, the core without a server, and the server by each transport."""
    turns = 10 * options.rounds
    sides = [("core", "the server's own work alone: a table in this process, the batch pushed, another one pulled")]
    if has_torch():
        words = 'PyTorch: backward of EmbeddingBag(sparse=True, mode="sum") and a step of SparseAdam'
        sides.insert(0, ("torch", words))
    found = {key: _side(key, options.table_rows, turns) for key, _ in sides}
    for transport in options.transports:
        key = f"server {transport}"
        sides.append((key, f"Stepwell, {transport.replace('_', ' ')}: push_rows, then pull_rows of another batch"))
        found[key] = _served(transport, options.table_rows, turns)
    medians = {key: statistics.median(samples) for key, samples in found.items()}
    rows = []
    for key, words in sides:
        wire = medians[key] - medians["core"] if key.startswith("server") else None
        rows.append(
            {
                "what": words,
                "median ms": medians[key] * 1e3,
                "min ms": min(found[key]) * 1e3,
                "max ms": max(found[key]) * 1e3,
                "wire ms": None if wire is None else wire * 1e3,
                "x PyTorch": medians[key] / medians["torch"] if "torch" in medians else None,
                "key": key,
                "samples": found[key],
            }
        )
    return Table(
        f"A batch of {BATCH:,} rows of {WIDTH} float32, of a table with {options.table_rows:,} rows; {turns} turns",
        rows,
        (
            (
                f"Ids are drawn by Zipf's law with exponent {_EXPONENT} and spread over the table; every row exists. "
                "wire: beyond the server's own work."
            ),
            *missing(),
        ),
    )


def batches(rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids and gradients, over and over."""
    random = np.random.default_rng(SEED)
    made = [(_ids(random, rows), random.standard_normal((BATCH, WIDTH), np.float32)) for _ in range(_BATCHES)]
    while True:
        yield from made


def _ids(random: np.random.Generator, rows: int) -> NDArray[np.int64]:
    """The law's continuous form, inverted; ranks are spread by a multiplication modulo a prime beyond the rows."""
    power = 1.0 - _EXPONENT
    ranks = (1.0 + random.random(BATCH) * ((rows + 1.0) ** power - 1.0)) ** (1.0 / power)
    ids: NDArray[np.int64] = np.minimum(ranks.astype(np.int64) - 1, rows - 1) * 7_368_787 % rows
    return ids


def _timed(turns: int, turn: Callable[[], object]) -> list[float]:
    seconds = []
    for number in range(_WARMUP + turns):
        begin = time.perf_counter()
        turn()
        if number >= _WARMUP:
            seconds.append(time.perf_counter() - begin)
    return seconds


def _served(transport: str, rows: int, turns: int) -> list[float]:
    memory = str(max(4 << 30, _MEMORY_BYTES_PER_ROW * rows))
    kind: Any = transport
    with (
        start_stepwell("--max-memory", memory) as server,
        stepwell.connect(server.address, transport=kind) as client,
        client.create_run("rows", {}, optimizer="sgd", tables=[_TABLE]) as run,
    ):
        for first in range(0, rows, _FILL):
            ids = np.arange(first, min(first + _FILL, rows))
            run.push_rows("rows", ids, np.zeros((len(ids), WIDTH), np.float32))
        given = batches(rows)
        out = np.empty((BATCH, WIDTH), np.float32)

        def turn() -> None:
            run.push_rows("rows", *next(given))
            run.pull_rows("rows", next(given)[0], out=out)

        return _timed(turns, turn)


def _side(key: str, rows: int, turns: int) -> list[float]:
    """A side in a process of its own, which prints its seconds."""
    command = [sys.executable, "-m", "stepwell_server.benchmarks.peers", "rows", key, str(rows), str(turns)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def serve(key: str, rows: str, turns: str) -> None:
    """Measure a side, and print the seconds of each turn."""
    announce(key)
    measure = {"torch": _torch, "core": _core}[key]
    print(json.dumps(measure(int(rows), int(turns))), flush=True)


def _torch(rows: int, turns: int) -> list[float]:
    import torch  # may be missing

    torch.manual_seed(SEED)
    bag = torch.nn.EmbeddingBag(rows, WIDTH, mode="sum", sparse=True)
    optimizer = torch.optim.SparseAdam(bag.parameters())
    offsets = torch.arange(BATCH)
    seconds = []
    given = batches(rows)
    for number in range(_WARMUP + turns):
        ids, grads = next(given)
        out = bag(torch.from_numpy(ids), offsets)
        grad = torch.from_numpy(grads)
        begin = time.perf_counter()
        out.backward(grad)
        optimizer.step()
        optimizer.zero_grad()
        if number >= _WARMUP:
            seconds.append(time.perf_counter() - begin)
    return seconds


def _core(rows: int, turns: int) -> list[float]:
    from stepwell_server.core.devices.cpu import CpuDevice
    from stepwell_server.core.memory import Memory
    from stepwell_server.core.settings import Moment
    from stepwell_server.core.tables import TableSpec, make_tables, table_sizes

    device = CpuDevice(len(os.sched_getaffinity(0)))
    memory = Memory(device, max(4 << 30, _MEMORY_BYTES_PER_ROW * rows))
    spec, moment = TableSpec.from_data(_TABLE), Moment(0, 0.0, None)
    settings = [spec.settings(moment)]
    vectors = [memory.allocate(sizes, "table") for sizes in table_sizes([spec], settings)]
    (table,) = make_tables([spec], settings, device, vectors, moment, SEED)

    def push(ids: NDArray[np.int64], grads: NDArray[np.float32]) -> None:
        commit = table.prepare(ids, grads, moment, checks_finite=True)
        while commit.sizes:
            commit.take(memory.allocate(commit.sizes, "rows"))
        commit.apply()
        memory.free(table.finish(commit))

    for first in range(0, rows, _FILL):
        ids = np.arange(first, min(first + _FILL, rows))
        push(ids, np.zeros((len(ids), WIDTH), np.float32))
    given = batches(rows)
    out = np.empty((BATCH, WIDTH), np.float32)

    def turn() -> None:
        ids, grads = next(given)
        assert device.is_finite(grads.reshape(-1).view(np.uint8), grads.dtype)
        push(ids, grads)
        table.pull(next(given)[0], out)

    return _timed(turns, turn)
