"""A package as CONTRIBUTING.md has it: built, installed beside the server, found by it, and trained with."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import stepwell
from tests.end_to_end.server import Server

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### In a package of your own")[2]
BROKEN = """
from stepwell_server.plugin import optimizer

@optimizer(reference="a test", flavors={"torch": {}})
def adam(param, grad, *, step, lr=0.5):
    return param - lr * grad
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the server's path that holds the documented package, and a broken one."""
    pyproject, module = (re.search(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL) for kind in ("toml", "python"))
    assert pyproject
    assert module
    target = tmp_path / "site"
    for name, project, source in (
        ("stepwell_powersign", pyproject[1], module[1]),
        ("stepwell_broken", pyproject[1].replace("powersign", "broken"), BROKEN),
    ):
        package = tmp_path / name
        package.mkdir()
        (package / "pyproject.toml").write_text(project)
        (package / f"{name}.py").write_text(source)
        # Without isolation and index: hatchling is here, and nothing is fetched.
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(package)], check=True, timeout=300)
    paths = [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return target


def test_a_documented_plugin_is_picked_up_and_a_broken_one_is_said(
    installed: Path, start: Callable[..., Server], connect: Callable[..., stepwell.Client], name: str
):
    server = start()
    client = connect(server)
    (found,) = [entry for entry in client.list_optimizers() if entry.name == "powersign"]
    assert found.summary.startswith("PowerSign: steps grow")
    run = client.create_run(name, {"w": np.zeros(2)}, optimizer="powersign", hyperparameters={"lr": 0.5})
    after = run.step({"w": np.array([1.0, -2.0])})
    np.testing.assert_allclose(after["w"], [-0.5 * np.e, np.e])
    (loaded,) = server.events("plug-in loaded")
    assert loaded["package"] == "stepwell-powersign"
    (refused,) = server.events("plug-in refused")
    assert refused["package"] == "stepwell-broken"
    assert refused["entry_point"] == "stepwell.optimizers: broken = stepwell_broken"
    assert "two optimizers are called 'adam'" in refused["reason"]
