"""A worker process that takes part in rounds until it is told to stop, and the numbers that it pushes."""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import stepwell
from tests.end_to_end.states import Arrays

# Eight messages: while the first of them are on the stream the last ones are still to be sent.
LARGE = 1 << 20
SAMPLES = 1000

PATTERNS: Arrays = {"large": np.linspace(-1.0, 1.0, LARGE), "small": np.array([1.0, -2.0, 0.5])}

HALF = "half of an update is sent"


@dataclass(frozen=True)
class Told:
    """What a worker was told of its update of this number, and the small parameter that came back."""

    number: int
    outcome: str
    committed_version: int
    version: int
    small: np.ndarray[Any, Any]


def parameters() -> Arrays:
    return {name: np.zeros_like(pattern) for name, pattern in PATTERNS.items()}


def factor(seed: int, worker: str, number: int) -> float:
    """What this worker multiplies the patterns with in its update of this number: anybody can draw it again."""
    return float(np.random.default_rng([seed, *worker.encode(), number]).standard_normal())


def samples(number: int) -> int:
    """What an update of this number names as its samples, so that the server's log tells which one it was."""
    return SAMPLES + number


def take_part(
    channel: "Connection[Any, Any]", address: str, run: str, seed: int, worker: str, lease_seconds: float, half_at: int
) -> None:
    """The process: step until something comes through the channel, and report every answer, then None.

    half_at: of which number only half is sent, and HALF reported; 0 for none.
    """
    with stepwell.connect(
        address, worker=worker, lease_seconds=lease_seconds, transport="stream", retry_seconds=0.01
    ) as client:
        joined = client.get_run(run)
        joined.parameters()
        number = 0
        while not channel.poll():
            number += 1
            drawn = factor(seed, worker, number)
            gradients = {name: drawn * pattern for name, pattern in PATTERNS.items()}
            if number == half_at:
                with joined.update(samples=samples(number)) as update:
                    update.add("large", gradients["large"])
                    channel.send(HALF)
                    channel.recv()  # nothing comes, but the end of this process
            got = joined.step(gradients, samples=samples(number))
            answer = joined.last_answer
            assert answer is not None
            channel.send(Told(number, answer.outcome, answer.committed_version, joined.version, got["small"]))
        joined.close()
    channel.send(None)
    channel.close()
