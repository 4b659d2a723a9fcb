"""What the README says works: its Python is run against a real server, its names are those that the product has."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import stepwell
from tests.end_to_end.server import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^    (stepwell .*)$", README, re.MULTILINE)


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


def test_names_are_those_of_the_server(server: Server):
    with stepwell.connect(server.address) as client:
        optimizers = {entry.name for entry in client.list_optimizers()}
        schedules = {entry.name for entry in client.list_schedules()}
    named_optimizers = _names("Among the optimizers are", "among the schedules")
    named_schedules = _names("among the schedules", "A schedule drives")
    assert named_optimizers
    assert named_optimizers <= optimizers
    assert named_schedules
    assert named_schedules <= schedules
    # The README sends readers to these commands for the rest, so they have to have it.
    assert _listed("optimizer") == optimizers
    assert _listed("schedule") == schedules


@pytest.mark.parametrize("command", [line for line in COMMANDS if "--output" in line])
def test_pictures_are_drawn(command: str, tmp_path: Path):
    done = _stepwell(*shlex.split(command)[1:], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.iterdir()
    assert picture.name == command.split()[-1]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\S+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def _names(begin: str, end: str) -> set[str]:
    start = README.index(begin)
    return set(re.findall(r"`(\w+)`", README[start : README.index(end, start)]))


def _listed(what: str) -> set[str]:
    """The first column of `stepwell optimizer list` or `stepwell schedule list`, below its header."""
    assert f"`stepwell {what} list`" in README
    done = _stepwell(what, "list")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if re.match(r" \w", line)]
    return {row.split()[0] for row in rows[1:]}


def _stepwell(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "stepwell_server", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=folder)
