"""Every update is applied once, whatever happens to the connections."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np

import stepwell
from stepwell_server.core.optimizers import adam
from tests.core.local import LocalRun
from tests.end_to_end.proxy import Proxy
from tests.end_to_end.pushing import Pushed, gradients, new_seed, parameters, push_updates
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits

WORKERS = 4
UPDATES = 1000
HYPERPARAMETERS = {"lr": 1e-2, "beta1": 0.8, "weight_decay": 1e-3}

Order = list[tuple[int, int]]


def test_four_workers_through_a_bad_network(
    server: Server, client: stepwell.Client, name: str, kernel_cache: Path
) -> None:
    seed = int(os.environ.get("STEPWELL_TEST_SEED") or new_seed())
    print(f"seed {seed}; repeat with STEPWELL_TEST_SEED={seed}")  # noqa: T201
    run = client.create_run(name, parameters(seed), optimizer="adam", flavor="torch", hyperparameters=HYPERPARAMETERS)

    with Proxy(server.address, seed, delay_seconds_max=0.001, bytes_mean=60_000) as proxy:
        pushed = push_from_processes(proxy.address, server.address, name, seed)
        assert proxy.cuts_count > 10

    assert [worker.failures for worker in pushed] == [[]] * WORKERS
    present = run.refresh()
    assert present.version == WORKERS * UPDATES
    assert present.samples == WORKERS * UPDATES
    for worker in pushed:
        assert worker.concurrent_count > UPDATES / 20
        assert worker.later_count > UPDATES / 20
        assert len(worker.repeated) == worker.concurrent_count + worker.later_count
        for sequence, version in worker.repeated:
            assert worker.versions[sequence - 1] == version
    assert present.duplicates_count >= sum(worker.later_count for worker in pushed)

    order = order_of(pushed)
    got = run.pull()
    assert got is not None
    same_bits(got, replay_in_process(seed, order, kernel_cache))
    for name, expected in replay_with_numpy(seed, order).items():
        rtol, atol = (1e-3, 1e-5) if expected.dtype == np.float32 else (1e-9, 1e-12)
        np.testing.assert_allclose(got[name], expected, rtol=rtol, atol=atol, err_msg=name)


def push_from_processes(proxy: str, server: str, run: str, seed: int) -> list[Pushed]:
    # Not forked: this process has threads of gRPC's.
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe(duplex=False) for _ in range(WORKERS)]
    processes = [
        spawn.Process(target=push_updates, args=(sender, proxy, server, run, seed, worker, UPDATES))
        for worker, (_, sender) in enumerate(pipes)
    ]
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for process, (receiver, _) in zip(processes, pipes, strict=True):
            process.join(60)
            process.kill()
            process.join()
            receiver.close()


def order_of(pushed: list[Pushed]) -> Order:
    """(worker, sequence) in the order in which they were committed, from the answers alone."""
    by_version = {
        version: (worker, sequence)
        for worker, told in enumerate(pushed)
        for sequence, version in enumerate(told.versions, 1)
    }
    assert sorted(by_version) == list(range(1, WORKERS * UPDATES + 1))
    for told in pushed:
        assert told.versions == sorted(told.versions)
    return [by_version[version] for version in sorted(by_version)]


def replay_in_process(seed: int, order: Order, kernel_cache: Path) -> Arrays:
    """The same updates in the same order through a second core."""
    local = LocalRun(
        parameters(seed), "adam", flavor="torch", hyperparameters=HYPERPARAMETERS, kernel_directory=kernel_cache
    )
    for worker, sequence in order:
        local.step(gradients(seed, worker, sequence))
    return local.parameters()


def replay_with_numpy(seed: int, order: Order) -> Arrays:
    """The same with the plain NumPy reference."""
    state: dict[str, tuple[Any, ...]] = {
        name: (value, np.zeros_like(value), np.zeros_like(value)) for name, value in parameters(seed).items()
    }
    for step, (worker, sequence) in enumerate(order, 1):
        for name, gradient in gradients(seed, worker, sequence).items():
            param, *slots = state[name]
            state[name] = adam(param, gradient, *slots, step=step, flavor="torch", **HYPERPARAMETERS)
    return {name: np.asarray(values[0], parameters(seed)[name].dtype) for name, values in state.items()}
