"""What the README says works: its Python is run against a real server, its names are those that the product has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stepwell
from tests.end_to_end.server import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_python():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block: str, server: Server):
    assert "127.0.0.1:50051" in block
    source = block.replace("127.0.0.1:50051", server.address)
    command = [sys.executable, "-W", "error", "-c", source]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # The regression in the README has converged: weights 1, -2, 3, 0.5 and bias 1.
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*", done.stdout)]
    assert numbers[-5:] == pytest.approx([1.0, -2.0, 3.0, 0.5, 1.0], abs=0.05), done.stdout


def test_lists_of_names_are_those_of_the_server(server: Server):
    # The last names stand in prose: `warmup` and `sequential`.
    with stepwell.connect(server.address) as client:
        optimizers = {entry.name for entry in client.list_optimizers()}
        schedules = {entry.name for entry in client.list_schedules()}
    assert _names("Optimizers today: ", "Schedules: ") == optimizers
    assert _names("Schedules: ", "A schedule drives") == schedules


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\S+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def _names(begin: str, end: str) -> set[str]:
    text = README[README.index(begin) : README.index(end)]
    return set(re.findall(r"`(\w+)`", text))
