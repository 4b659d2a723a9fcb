"""Four processes that each take a quarter of every batch of the digits, against one that takes the whole batch."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import stepwell
from stepwell_server.demo import data, perceptron
from tests.end_to_end.quarters import (
    BATCH,
    STEPS,
    WAIT_SECONDS,
    WORKERS,
    Case,
    batch,
    first_parameters,
    take_quarters,
    train,
)
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits

WHOLE = slice(0, BATCH)
ORDERS = ((0, 1, 2, 3), (3, 1, 0, 2))


class Crew:
    """The worker processes; each takes part in every case."""

    def __init__(self, address: str) -> None:
        # Not forked: this process has threads of gRPC's.
        spawn = multiprocessing.get_context("spawn")
        # One turn is free: that of the first in order.
        self._semaphores = [spawn.Semaphore(int(place == 0)) for place in range(WORKERS)]
        pipes = [spawn.Pipe() for _ in range(WORKERS)]
        self._channels = [here for here, _ in pipes]
        self._processes = [
            spawn.Process(target=take_quarters, args=(there, address, worker, self._semaphores))
            for worker, (_, there) in enumerate(pipes)
        ]
        for process, (_, there) in zip(self._processes, pipes, strict=True):
            process.start()
            there.close()

    def train(self, case: Case) -> list[Arrays]:
        """What each of them ends with."""
        self._tell(case)
        assert self._hear() == ["joined"] * WORKERS
        self._tell("all are here")
        ends = self._hear()
        self._tell("all are done")
        return ends

    def ready(self) -> None:
        assert self._hear() == ["ready"] * WORKERS

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for channel in self._channels:
            channel.close()

    def _tell(self, what: object) -> None:
        for channel in self._channels:
            channel.send(what)

    def _hear(self) -> list[Any]:
        heard = []
        for channel in self._channels:
            assert channel.poll(WAIT_SECONDS), "a worker says nothing"
            heard.append(channel.recv())
        return heard


@contextmanager
def crew_of(address: str) -> Iterator[Crew]:
    crew = Crew(address)
    try:
        crew.ready()
        yield crew
    finally:
        crew.end()


def test_four_quarters_make_the_whole_batch(server: Server, connect: Callable[..., stepwell.Client], name: str) -> None:
    training = data.load().training
    rows = (
        ("float64", "sgd", 0.5, 1e-12),
        ("float32", "sgd", 0.5, 1e-6),
        ("float32", "adam", 5e-3, None),
    )
    with crew_of(server.address) as crew:
        for dtype, optimizer, lr, tolerance in rows:
            run = f"{name}-{dtype}-{optimizer}"
            # What the optimizer is makes no difference to the order of folding.
            orders = ORDERS if optimizer == "sgd" else ORDERS[:1]
            ends = [
                end
                for number, order in enumerate(orders)
                for end in crew.train(Case(f"{run}-{number}", dtype, optimizer, lr, order))
            ]
            for end in ends:
                same_bits(end, ends[0])
            case = Case(f"{run}-whole", dtype, optimizer, lr)
            with connect(server).create_run(case.run, first_parameters(dtype), **case.spec) as alone:
                whole = train(alone, training, case, WHOLE)
                assert alone.version == STEPS
            difference = largest_difference(ends[0], whole)
            moved = largest_difference(whole, first_parameters(dtype))
            print(f"{dtype}, {optimizer}: the parameters differ by {difference:.2e}, having moved by {moved:.2e}")  # noqa: T201
            if tolerance is None:
                continue
            assert difference <= tolerance
            assert largest_difference(by_hand(training, dtype, lr), whole) <= tolerance


def by_hand(training: data.Images, dtype: str, lr: float) -> Arrays:
    """Gradient descent on the whole batch in plain NumPy."""
    params = first_parameters(dtype)
    for step in range(STEPS):
        gradients = perceptron.loss_and_gradients(params, batch(training, dtype, step, WHOLE))[1]
        params = {key: value - np.asarray(lr, dtype) * gradients[key] for key, value in params.items()}
    return params


def largest_difference(one: Arrays, other: Arrays) -> float:
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)
