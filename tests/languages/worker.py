"""One of the workers that train one run at once; worker.mjs and worker.cpp are the same program.

    worker.py ADDRESS RUN NAME BEGIN END ROUNDS

It has the samples from BEGIN to END, and ends with a line of JSON. The data are multiples of 1/8, the sums go sample by
sample in float64: so all three compute the same bits.
"""

import json
import sys

import numpy as np

import stepwell

FEATURES = 3


def features(sample: int) -> list[float]:
    return [(sample * (7 + 4 * feature) % 17 - 8) / 8 for feature in range(FEATURES)]


def target(sample: int) -> float:
    x = features(sample)
    return 2 * x[0] - 3 * x[1] + 0.5 * x[2] + 1 + (sample % 5 - 2) / 8  # the last part is what no line explains


def gradients(params: dict[str, np.ndarray], begin: int, end: int) -> dict[str, np.ndarray]:
    """Of half the mean squared error."""
    w, b = params["w"].tolist(), float(params["b"])
    w_gradient, b_gradient = [0.0] * FEATURES, 0.0
    for sample in range(begin, end):
        x = features(sample)
        error = b - target(sample)
        for feature in range(FEATURES):
            error += w[feature] * x[feature]
        for feature in range(FEATURES):
            w_gradient[feature] += error * x[feature]
        b_gradient += error
    count = end - begin
    return {"w": np.array(w_gradient) / count, "b": np.array(b_gradient / count)}


def main() -> None:
    address, name, worker = sys.argv[1:4]
    begin, end, rounds = map(int, sys.argv[4:])
    with stepwell.connect(address, worker=worker) as client:
        run = client.create_run(
            name,
            {"w": np.zeros(FEATURES), "b": np.zeros(())},
            optimizer="adam",
            hyperparameters={"lr": 0.1},
            schedules={"lr": {"name": "exponential", "gamma": 0.99}},
            policy={"name": "sync", "workers_min": 3},
        )
        params = run.pull()
        assert params is not None
        for _ in range(rounds):
            params = run.step(gradients(params, begin, end), samples=end - begin)
        result = {"version": run.version, "w": params["w"].tolist(), "b": float(params["b"])}
        sys.stdout.write(json.dumps(result) + "\n")
        run.close()


if __name__ == "__main__":
    main()
