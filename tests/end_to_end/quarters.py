"""Worker processes that each take the gradients of a quarter of every batch of the digits, in a forced order."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import stepwell
from stepwell_server.demo import data, perceptron
from tests.end_to_end.states import Arrays

WORKERS = 4
BATCH = 256
STEPS = 200
SEED = 3
# For a machine that hangs; nothing here waits so long.
WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Case:
    """order: who sends first, second, ... in each round; one worker alone takes the whole batch."""

    run: str
    dtype: str
    optimizer: str
    lr: float
    order: tuple[int, ...] = (0,)

    @property
    def spec(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "hyperparameters": {"lr": self.lr}, "policy": "sync"}


def first_parameters(dtype: str) -> Arrays:
    return {name: value.astype(dtype) for name, value in perceptron.init(SEED).items()}


def batch(training: data.Images, dtype: str, step: int, part: slice) -> data.Images:
    """A part of the batch of a step, the same for everybody who asks."""
    rows = np.random.default_rng([SEED, step]).integers(len(training), size=BATCH)[part]
    return data.Images(training.pixels[rows].astype(dtype), training.labels[rows])


def train(run: stepwell.Run, training: data.Images, case: Case, part: slice, turns: "Turns | None" = None) -> Arrays:
    """All steps of a worker; returns its last parameters. turns: where it has to wait for its own."""
    params = run.pull()
    assert params is not None
    for step in range(STEPS):
        images = batch(training, case.dtype, step, part)
        gradients = perceptron.loss_and_gradients(params, images)[1]
        with turns if turns is not None else contextlib.nullcontext():
            params = run.step(gradients, samples=len(images))
    return params


class Turns:
    """Has a worker wait until the one before it in order has sent its update; the wait is over when that is sent.

    semaphores: one for each place in the order, free where it is that place's turn.
    """

    def __init__(self, run: stepwell.Run, semaphores: Sequence[Any], place: int) -> None:
        self._semaphores, self._place = semaphores, place
        run._worker.before_answer = self._sent

    def __enter__(self) -> None:
        assert self._semaphores[self._place].acquire(timeout=WAIT_SECONDS), "the one before has sent nothing"

    def __exit__(self, *_: object) -> None:
        """Its turn ended when its update was sent."""

    def _sent(self, _: object) -> None:
        self._semaphores[(self._place + 1) % len(self._semaphores)].release()


def take_quarters(channel: "Connection[Any, Any]", address: str, worker: int, semaphores: Sequence[Any]) -> None:
    """The process: for each case from the channel, send back the parameters that this worker ends with."""
    perceptron.limit_threads()
    training = data.load().training
    channel.send("ready")
    while (case := channel.recv()) is not None:
        with (
            stepwell.connect(address, worker=f"worker-{worker}", transport="stream") as client,
            client.create_run(case.run, first_parameters(case.dtype), **case.spec) as run,
        ):
            channel.send("joined")
            channel.recv()
            size = BATCH // WORKERS
            turns = Turns(run, semaphores, case.order.index(worker))
            channel.send(train(run, training, case, slice(worker * size, (worker + 1) * size), turns))
            channel.recv()  # whoever leaves early would let the others go on alone
    channel.close()
