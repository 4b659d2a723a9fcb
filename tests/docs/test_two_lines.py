"""The two lines that README.md changes in a PyTorch script: applied to a local one, they give the same parameters."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docs.pages import ADDRESS, ROOT, blocks_of
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.references, pytest.mark.xdist_group("torch_remote")]

EXAMPLE: Final = ROOT / "examples" / "pytorch_train.py"
STEPS: Final = 10

# Trains as the script's own main does, and stores the model, which train() keeps to itself.
DRIVER: Final = f"""
import importlib.util, sys
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
models = []
class Kept(script.Transformer):
    def __init__(self):
        super().__init__()
        models.append(self)
        self.before = [parameter.detach().clone() for parameter in self.parameters()]
script.Transformer = Kept
script.train(None, None, {STEPS})
(model,) = models
assert not any(torch.equal(*pair) for pair in zip(model.before, model.parameters(), strict=True)), "nothing was trained"
torch.save(model.state_dict(), sys.argv[2])
"""


def changes() -> list[tuple[str, str]]:
    """What the page's diff takes away and puts in its place, line for line."""
    (block,) = blocks_of("README.md", "diff")
    lines = block.text.splitlines()
    removed, added = ([line[1:] for line in lines if line[0] == sign] for sign in "-+")
    assert len(removed) + len(added) == len(lines)
    return list(zip(removed, added, strict=True))


def with_lines(script: str, lines: list[tuple[str, str]]) -> str:
    """The script with some of its lines replaced, each of which it has once; indentation stays."""
    for before, after in lines:
        found = [line for line in script.splitlines() if line.strip() == before]
        assert len(found) == 1, f"{before!r} is there {len(found)} times"
        script = script.replace(found[0], found[0].replace(before, after))
    return script


def local_script() -> str:
    """The example before the change. Address and run, which it is given as arguments, are those that the page names."""
    remote = EXAMPLE.read_text(encoding="utf-8")
    remote = remote[remote.index("import argparse") :]  # its docstring shows the same lines
    remote = remote.replace("address=address, run=run", f'address="{ADDRESS}", run="docstrings"')
    return with_lines(remote, [(added, removed) for removed, added in changes()])


def trained(script: str, folder: Path, name: str) -> dict[str, Any]:
    path, result = folder / f"{name}.py", folder / f"{name}.pt"
    path.write_text(script, encoding="utf-8")
    command = [sys.executable, "-W", "error", "-c", DRIVER, str(path), str(result)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = torch.load(result)
    return loaded


def test_two_changed_lines_give_the_same_parameters(tmp_path: Path):
    local = local_script()
    assert "RemoteOptimizer" not in local
    remote = with_lines(local, changes())
    assert sum(one != other for one, other in zip(local.splitlines(), remote.splitlines(), strict=True)) == 2
    expected = trained(local, tmp_path, "local")
    with Server(kept_kernels()) as server:
        found = trained(remote.replace(ADDRESS, server.address), tmp_path, "remote")
    assert found.keys() == expected.keys()
    difference = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    norm = sum(float(value.double().square().sum()) for value in expected.values())
    assert (difference / norm) ** 0.5 < 1e-5
