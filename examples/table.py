"""An embedding table: rows by 64-bit id, created when they are first touched, beside dense parameters.

stepwell serve                             # in another terminal
python examples/table.py 127.0.0.1:50051   # or set STEPWELL_ADDRESS
"""

import sys

import numpy as np

import stepwell

WIDTH = 4


def likes(users):
    """Each user likes what their number's last digit says; the score is the sum of the user's row, and a bias."""
    return users % 10 / 10


with stepwell.connect(sys.argv[1] if sys.argv[1:] else None) as client:
    run = client.create_run(
        "table",
        {"bias": np.zeros(1, np.float32)},
        optimizer="sgd",
        hyperparameters={"lr": 0.1},
        tables=[{"name": "user", "width": WIDTH, "optimizer": "adagrad", "hyperparameters": {"lr": 0.5}}],
    )
    rng = np.random.default_rng()
    bias = run.pull()["bias"]
    for _ in range(200):
        users = 10**15 + rng.integers(100, size=32)
        rows = run.pull_rows("user", users)  # (32, WIDTH); who is new has what a row begins with
        error = ((rows.sum(axis=1) + bias - likes(users)) / 32).astype(np.float32)
        gradients = np.repeat(error[:, None], WIDTH, axis=1)
        # One update: the rows and the bias change together. Who occurs twice has both gradients summed.
        bias = run.step({"bias": error.sum(keepdims=True)}, rows={"user": (users, gradients)})["bias"]

    score = run.pull_rows("user", np.array([10**15 + 7])).sum() + bias[0]
    rows = run.refresh().tables["user"].rows
    print(f"version {run.version}: {rows} rows; a user who likes 0.7 scores {score:.2f}")
    run.close()
