"""The capacity model against what it models: workers that sleep in place of computing, and the real server.

What an update costs is measured with one worker, of two sizes; with that the model predicts what more workers get under
each policy. Everything runs on one machine, so the workers' own work is on the server's cores, in the model, too.
"""

import json
import math
import os
import random
import select
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import stepwell
from stepwell_server.benchmarks.options import ITEM_BYTES, SEED, Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import Peer, announce, start, start_stepwell
from stepwell_server.benchmarks.report import Table
from stepwell_server.capacity.inputs import BUSY_CORES_MIN, Costs, Machine, Workload
from stepwell_server.capacity.model import UPDATES_PER_WORKER_MIN, Prediction, predict

SIZES = (10_000, 1_000_000)
POLICIES: tuple[dict[str, Any], ...] = (
    {"name": "async"},
    {"name": "bounded", "lead_max": 3},
    {"name": "sync"},
)
# What the worker that is alone does.
KINDS = ("step", "push", "pull")

_COMPUTE_SECONDS = 0.02
_SPREAD = 0.25
_TENSORS = 10
_UPDATES = 5_000
# Of each worker, once all are at work, however long they take.
_STEPS_MIN = 2


@dataclass(frozen=True)
class Measured:
    """Of one kind of exchange with one worker, in seconds each: by the clock, and of processors.

    loop: of the server's main thread. beside: of its other threads. worker: of the worker's process.
    """

    exchange: float
    loop: float
    beside: float
    worker: float


@dataclass
class Case:
    """What was measured, a number for each time: steps per second, and staleness of single updates."""

    policy: dict[str, Any]
    workers: int
    rates: list[float]
    staleness: list[int]
    slept: list[float]


def benchmark(options: Options) -> Table:
    """A row for each policy and number of workers; a round has all of them, and one worker alone, in another order."""
    cases = [Case(policy, count, [], [], []) for policy in POLICIES for count in options.workers]
    alone: dict[tuple[str, int], list[Measured]] = {(kind, size): [] for size in SIZES for kind in KINDS}
    rounds = max(1, options.rounds // 3)
    with ExitStack() as stack:
        server = stack.enter_context(start_stepwell("--max-memory", options.server_memory()))
        client = stack.enter_context(stepwell.connect(server.address))
        crew = [stack.enter_context(start("capacity", server.address)) for _ in range(max(options.workers))]
        for number in range(rounds + 1):
            turns: list[Case | tuple[str, int]] = [*cases, *alone]
            random.Random(SEED + number).shuffle(turns)
            if not number:  # kernels are loaded, pools are filled
                turns = [("step", size) for size in SIZES]
            for turn in turns:
                if isinstance(turn, Case):
                    _together(client, crew, turn, number, options.seconds)
                else:
                    measured = _alone(server, client, crew[0], *turn, options.seconds)
                    if number:
                        alone[turn].append(measured)
    costs = fit({turn: _median(measured) for turn, measured in alone.items()}, options.threads)
    rows = [_row(case, costs, options) for case in cases]
    return Table(
        f"Measured and predicted: {SIZES[1]:,} float32 parameters under Adam over loopback, workers that sleep "
        f"{_COMPUTE_SECONDS * 1e3:.0f} ms (standard deviation {_SPREAD:.0%}) for each gradient; "
        f"{rounds} rounds of {options.seconds:g} s",
        rows,
        (
            "Staleness in versions. The costs, measured with one worker: "
            + ", ".join(f"{name} {value:.3g}" for name, value in vars(costs).items())
            + ".",
        ),
    )


def fit(measured: dict[tuple[str, int], Measured], cores: int) -> Costs:
    """The costs that give what was measured: a line through both sizes for each part."""
    plain = Costs()
    small, large = SIZES
    step = {size: measured["step", size] for size in SIZES}

    def slope(low: float, high: float) -> float:
        return max(0.0, high - low) / ((large - small) * ITEM_BYTES)

    receive = slope(measured["push", small].loop, measured["push", large].loop)
    send = slope(measured["pull", small].loop, measured["pull", large].loop)
    both = slope(step[small].loop, step[large].loop)
    share = receive / (receive + send) if receive + send else 0.5
    kernels = {size: plain.kernel_arrays * size * ITEM_BYTES / Machine().memory_bytes_per_second for size in SIZES}
    # What is neither the loop nor a kernel is the worker's.
    own = {
        size: max(1e-5, step[size].exchange - step[size].loop - plain.commit_seconds - kernels[size]) for size in SIZES
    }
    worker = slope(own[small], own[large]) / 2
    beside = max(0.0, step[large].beside - plain.commit_seconds - kernels[large] * cores)
    return Costs(
        exchange_seconds=max(0.0, step[small].loop - both * small * ITEM_BYTES),
        receive_seconds_per_byte=both * share,
        send_seconds_per_byte=both * (1 - share),
        loop_cores=1.0 + beside / step[large].loop,
        worker_seconds=max(0.0, own[small] - 2 * worker * small * ITEM_BYTES),
        worker_seconds_per_byte=worker,
        # The processors' clock ticks 100 times a second, and may not have.
        worker_cores=max(BUSY_CORES_MIN, step[large].worker / own[large]),
    )


def _median(measured: Sequence[Measured]) -> Measured:
    return Measured(*(statistics.median(getattr(each, field.name) for each in measured) for field in fields(Measured)))


def _alone(server: Peer, client: stepwell.Client, worker: Peer, kind: str, size: int, seconds: float) -> Measured:
    run = f"alone-{size}-{kind}"
    client.create_run(run, as_tensors(random_vector(size), _TENSORS), optimizer="adam").close()
    worker.tell(json.dumps({"run": run, "size": size, "kind": kind, "seed": SEED, "seconds": seconds}))
    worker.hear()
    before = _processor_seconds(server), _processor_seconds(worker)
    (done,) = _at_work([worker])
    after = _processor_seconds(server), _processor_seconds(worker)
    client.delete_run(run)
    count = len(done["seconds"])
    (loop, others), (own, more) = (
        (end[0] - begin[0], end[1] - begin[1]) for begin, end in zip(before, after, strict=True)
    )
    return Measured(statistics.median(done["seconds"]), loop / count, others / count, (own + more) / count)


def _at_work(chosen: Sequence[Peer]) -> list[dict[str, Any]]:
    """Let workers that have joined step, and tell them when all have done so; what each has measured."""
    for order in ("go", "all have begun"):
        for worker in chosen:
            worker.tell(order)
        done = [worker.hear() for worker in chosen]
    return done


def _processor_seconds(peer: Peer) -> tuple[float, float]:
    """Of the process's main thread and of its other threads, so far, those that have ended with them."""
    process = Path(f"/proc/{peer.pid}")
    main = int((process / "schedstat").read_text().split()[0]) / 1e9
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return main, (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") - main


def _together(client: stepwell.Client, crew: Sequence[Peer], case: Case, number: int, seconds: float) -> None:
    run = f"{case.policy['name']}-{case.workers}-{number}"
    parameters = as_tensors(random_vector(SIZES[1]), _TENSORS)
    client.create_run(run, parameters, optimizer="adam", policy=case.policy).close()
    chosen = crew[: case.workers]
    for place, worker in enumerate(chosen):
        seed = 1000 * number + place
        worker.tell(json.dumps({"run": run, "size": SIZES[1], "kind": "step", "seed": seed, "seconds": seconds}))
    for worker in chosen:
        worker.hear()
    done = _at_work(chosen)
    client.delete_run(run)
    # Between the last to begin and the first to end all were at work; none ends before all have begun.
    begin, end = max(each["at"][0] for each in done), min(each["at"][-1] for each in done)
    steps = [
        (staleness, slept)
        for each in done
        for at, staleness, slept in zip(each["at"], each["staleness"], each["slept"], strict=True)
        if begin < at <= end
    ]
    case.rates.append(len(steps) / (end - begin))
    case.staleness += [staleness for staleness, _ in steps]
    case.slept += [slept for _, slept in steps]


def _row(case: Case, costs: Costs, options: Options) -> dict[str, Any]:
    found = _predicted(case, costs, options)
    measured = statistics.median(case.rates)
    return {
        "policy": case.policy["name"],
        "workers": case.workers,
        "steps/s": measured,
        "predicted": found.updates_per_second,
        "predicted / measured": found.updates_per_second / measured,
        "staleness": statistics.fmean(case.staleness),
        "predicted mean": found.staleness_mean,
        "p99": int(np.percentile(case.staleness, 99)),
        "predicted p99": found.staleness_percentile(99),
        "key": f"{case.policy['name']} {case.workers}",
        "samples": case.rates,
    }


def _predicted(case: Case, costs: Costs, options: Options) -> Prediction:
    workload = Workload(
        workers=case.workers,
        parameters=SIZES[1],
        # A sleep is never shorter than it should be, and often longer.
        compute_seconds=statistics.fmean(case.slept),
        spread=_SPREAD,
        policy=case.policy,
    )
    updates = max(_UPDATES, UPDATES_PER_WORKER_MIN * case.workers)
    return predict(workload, Machine(cores=options.threads, local=True), costs, updates=updates, seed=SEED)


def serve(address: str) -> None:
    """Be a worker, each task in three lines on stdin: what it is, when to go, and that all others are at work, too.

    Each is answered with a line: null when it has joined, null after its first step, and its figures.
    """
    announce(address)
    while line := sys.stdin.readline():
        task = json.loads(line)
        with stepwell.connect(address, transport="stream") as client, client.get_run(task["run"]) as run:
            run.gradients()  # joins
            print("null", flush=True)
            sys.stdin.readline()
            print(json.dumps(work(run, task, lambda: print("null", flush=True), _is_told)), flush=True)


def _is_told() -> bool:
    """Whether the next line has come, and if so take it; no more than one is ever sent without an answer."""
    told, _, _ = select.select([sys.stdin], [], [], 0)
    if told:
        sys.stdin.readline()
    return bool(told)


def work(
    run: stepwell.Run, task: dict[str, Any], begun: Callable[[], object], all_have_begun: Callable[[], bool]
) -> dict[str, list[float]]:
    """Step until all are at work, from then on for the task's seconds, and twice at least.

    begun: is told of the first step. all_have_begun: is asked after each until it holds.
    """
    grads = as_tensors(random_vector(task["size"]), _TENSORS)
    out = {name: np.empty_like(grad) for name, grad in grads.items()}
    chosen = random.Random(task["seed"])
    at: list[float] = []
    seconds: list[float] = []
    slept: list[float] = []
    staleness: list[float] = []
    end, steps_min = math.inf, 0
    while (begin := time.monotonic()) < end or len(at) < steps_min:
        time.sleep(chosen.gammavariate(1 / _SPREAD**2, _COMPUTE_SECONDS * _SPREAD**2))
        woken = time.monotonic()
        base = run.version
        if task["kind"] == "push":
            run.push(grads)
        elif task["kind"] == "pull":
            run.pull(out=out)
        else:
            run.step(grads, out=out)
        done = time.monotonic()
        answer = run.last_answer
        at.append(done)
        seconds.append(done - woken)
        slept.append(woken - begin)
        staleness.append(0 if answer is None else answer.committed_version - 1 - base)
        if len(at) == 1:
            begun()
        if end == math.inf and all_have_begun():
            end, steps_min = time.monotonic() + task["seconds"], len(at) + _STEPS_MIN
    return {"at": at, "seconds": seconds, "slept": slept, "staleness": staleness}
