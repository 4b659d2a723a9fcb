"""One run that workers in Python, TypeScript and C++ train at once, each with a share of the data of another size."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

pytestmark = pytest.mark.languages

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
ROUNDS, SECONDS_MAX = 150, 300
SHARES = ((0, 10), (10, 30), (30, 60))

PYTHON = [sys.executable, "-W", "error", str(HERE / "worker.py")]
TYPESCRIPT = ["node", str(HERE / "worker.mjs")]
CPP = [str(ROOT / "build" / "cpp" / "tests" / "languages_worker")]

Parameters = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(kept_kernels()) as server:
        yield server


def train(server: Server, run: str, commands: list[list[str]]) -> list[Parameters]:
    """What each worker ends with. Their names, and so the order in which a round adds them up, are always the same."""
    workers = []
    for number, (command, (begin, end)) in enumerate(zip(commands, SHARES, strict=True)):
        arguments = [server.address, run, f"worker-{number}", str(begin), str(end), str(ROUNDS)]
        workers.append(
            subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        done = [worker.communicate(timeout=SECONDS_MAX) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0, 0], done
    answers = [json.loads(output) for output, _ in done]
    assert [answer["version"] for answer in answers] == [ROUNDS] * 3
    return [{"w": np.array(answer["w"]), "b": np.array(answer["b"])} for answer in answers]


def in_numpy() -> Parameters:
    """The same by Adam as Kingma and Ba write it, on the gradient of each share, weighed by its samples."""
    sample = np.arange(SHARES[-1][1])
    x = (sample[:, None] * np.array([7, 11, 15]) % 17 - 8) / 8
    y = x @ np.array([2.0, -3.0, 0.5]) + 1 + (sample % 5 - 2) / 8
    inputs = np.column_stack([x, np.ones(len(x))])
    theta, mean, square = np.zeros(4), np.zeros(4), np.zeros(4)
    for step in range(1, ROUNDS + 1):
        gradient = np.zeros(4)
        for begin, end in SHARES:
            share = inputs[begin:end].T @ (inputs[begin:end] @ theta - y[begin:end]) / (end - begin)
            gradient += (end - begin) * share / len(y)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        rate = 0.1 * 0.99 ** (step - 1)
        theta = theta - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return {"w": theta[:3], "b": theta[3]}


def test_three_languages_train_one_run(server: Server) -> None:
    for command in (TYPESCRIPT, CPP):
        assert shutil.which(command[0]), f"{command[0]} is missing: make test-languages builds what this needs"
    mixed = train(server, "three-languages", [PYTHON, TYPESCRIPT, CPP])
    python = train(server, "one-language", [PYTHON, PYTHON, PYTHON])
    turned = train(server, "three-languages-turned", [CPP, PYTHON, TYPESCRIPT])
    expected = in_numpy()
    for name in ("w", "b"):
        # Every worker was given the same, and it is no matter which language computed which share: to the last bit.
        for other in (*mixed[1:], *python, *turned):
            np.testing.assert_array_equal(other[name], mixed[0][name])
        np.testing.assert_allclose(mixed[0][name], expected[name], rtol=1e-10)
    # It has learned: this is nearly the least squares fit, which no start or accident gives.
    assert np.abs(mixed[0]["w"] - [2, -3, 0.5]).max() < 0.2
