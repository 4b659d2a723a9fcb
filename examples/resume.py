"""A worker that outlives its server: it goes on after a restart, from where the run is then.

    stepwell serve --data-dir runs                     # in another terminal
    python examples/resume.py 127.0.0.1:50051 [STEPS]

Stop the server with Ctrl-C or kill it while this runs, and start it again. Or call this again with more steps.
"""

import sys

import numpy as np

import stepwell

STEPS = int(sys.argv[2]) if sys.argv[2:] else 1000

with stepwell.connect(sys.argv[1] if sys.argv[1:] else None) as client:
    # The first time this creates the run; later it finds it with its parameters, its optimizer's state and its clock.
    run = client.create_run("resume", {"x": np.full(1, 5, np.float32)}, optimizer="adam", hyperparameters={"lr": 0.01})
    print("a new run" if run.created else f"goes on at version {run.version}", flush=True)

    params = run.pull()
    while run.version < STEPS:
        try:
            # While the server is away this call tries again, for patience_seconds. The update is applied once.
            params = run.step({"x": 2 * params["x"]})  # of x squared
        except stepwell.RunRewound as error:
            # A kill loses what was not stored yet. The update was dropped; go on from the present parameters.
            print(f"went back from version {error.acknowledged_version} to {error.version}", flush=True)
            params = run.pull()

    print(f"version {run.version}: x {params['x'][0]:.4f}")
    run.close()
