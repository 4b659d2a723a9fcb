"""Whether docs/protocol.md is enough to write a client: `from_the_page.py` is one, and trains as NumPy does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.end_to_end.raw import Raw
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "proto" / "stepwell" / "v1").glob("*.proto"))
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def test_a_client_from_the_page_trains(tmp_path: Path):
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"layer.weight": (3, 4), "layer.bias": (4,), "scale": ()}
    arrays = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(4)]
    parameters, *gradients = arrays
    given = json.dumps(
        {"parameters": parameters, "gradients": gradients, "hyperparameters": ADAM}, default=np.ndarray.tolist
    )
    with Server(kept_kernels()) as server:
        found = run_client(tmp_path, server.address, given)
        with Raw(server.address) as raw:
            workers = raw.join("page", "onlooker").membership
    assert found["stubs"].startswith(str(tmp_path))
    assert found["answers_lost"] == 1
    assert found["versions"] == [1, 2, 3]
    assert found["outcomes"] == ["OUTCOME_COMMITTED"] * 3
    assert found["version"] == workers.version == 3  # the repeated update counted once
    assert found["unchanged"]
    assert found["part"] == {"scale": found["pulled"]["scale"]}
    assert found["stepped"][-1] == found["pulled"]
    for got, expected in zip(found["stepped"], adam(parameters, gradients), strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert np.shape(got[name]) == shapes[name]
            np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-6)


def run_client(folder: Path, address: str, given: str) -> Any:
    """In a process that has fresh stubs of the contract and no other package of this name."""
    options = [f"--proto_path={ROOT / 'proto'}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *PROTOS], check=True)
    for package in (folder / "stepwell", folder / "stepwell" / "v1"):
        (package / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__).parent / "from_the_page.py"), address, "page"],
        input=given,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def adam(parameters: dict[str, Any], gradients: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kingma & Ba 2015, Algorithm 1, in float64: the parameters after each step."""
    found = []
    state = {name: (np.float64(value), 0.0, 0.0) for name, value in parameters.items()}
    for step, grads in enumerate(gradients, 1):
        for name, (value, first, second) in state.items():
            grad = np.float64(grads[name])
            first = ADAM["beta1"] * first + (1 - ADAM["beta1"]) * grad
            second = ADAM["beta2"] * second + (1 - ADAM["beta2"]) * grad**2
            size = np.sqrt(second / (1 - ADAM["beta2"] ** step)) + ADAM["eps"]
            state[name] = value - ADAM["lr"] * first / (1 - ADAM["beta1"] ** step) / size, first, second
        found.append({name: value for name, (value, _, _) in state.items()})
    return found
