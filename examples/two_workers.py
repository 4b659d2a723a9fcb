"""Two workers on one run: each computes gradients on its half of the data, and every round averages them.

stepwell serve                                   # in another terminal
python examples/two_workers.py 127.0.0.1:50051   # or set STEPWELL_ADDRESS
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import stepwell

ADDRESS = sys.argv[1] if sys.argv[1:] else None
X = np.arange(1000) / 1000
Y = 3 * X - 1


def work(worker):
    # Usually each worker is a process of its own, and more of them may come and go.
    with stepwell.connect(ADDRESS, worker=worker) as client:
        run = client.create_run(
            "two-workers",
            {"line": np.zeros(2)},
            optimizer="sgd",
            hyperparameters={"lr": 0.5},
            policy={"name": "sync", "workers_min": 2},
        )
        line = run.pull()["line"]
        for _ in range(300):
            mine = run.assignment(len(X))  # follows whoever joins and leaves
            x, y = X[mine.start : mine.stop], Y[mine.start : mine.stop]
            error = line[0] * x + line[1] - y
            gradient = np.array([np.mean(error * x), np.mean(error)])
            line = run.step({"line": gradient}, samples=len(mine))["line"]  # waits for the other one
        run.close()
    return line, f"{worker} had {mine.start} to {mine.stop}; version {run.version}: {line[0]:.3f} x {line[1]:+.3f}"


with ThreadPoolExecutor(2) as threads:
    (one, first), (other, second) = threads.map(work, ["one", "two"])
print(first, second, sep="\n")
print("both have the same parameters" if np.array_equal(one, other) else "they differ")
