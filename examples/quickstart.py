"""Linear regression by a server's Adam: this program computes gradients, the server keeps the parameters.

stepwell serve                                  # in another terminal
python examples/quickstart.py 127.0.0.1:50051   # or set STEPWELL_ADDRESS
"""

import sys

import numpy as np

import stepwell

TRUTH = np.array([[1], [-2], [3], [0.5]], np.float32)

with stepwell.connect(sys.argv[1] if sys.argv[1:] else None) as client:
    # Creates the run, or joins the one that exists with the same spec.
    run = client.create_run(
        "quickstart",
        {"w": np.zeros((4, 1), np.float32), "b": np.zeros(1, np.float32)},
        optimizer="adam",
        hyperparameters={"lr": 0.05},
        schedules={"lr": {"name": "cosine", "t_max": 500, "eta_min": 1e-3}},
    )
    rng = np.random.default_rng()
    params = run.pull()
    for _ in range(500):
        x = rng.uniform(-2, 2, size=(32, 4)).astype(np.float32)
        error = x @ (params["w"] - TRUTH) + params["b"] - 1
        params = run.step({"w": x.T @ error / 32, "b": error.mean(axis=0)}, samples=32)

    w = " ".join(f"{value:.3f}" for value in params["w"].ravel())
    print(f"version {run.version}: w {w}, b {params['b'][0]:.3f}")
    run.close()  # leaves the run, which goes on
