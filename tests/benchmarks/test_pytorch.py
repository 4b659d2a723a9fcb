"""A trainer's memory, as the benchmark's tables say; and that its table of steps can be had."""

import json

import pytest
from typer.testing import CliRunner

from stepwell_server.benchmarks import commands
from stepwell_server.commands import app

pytest.importorskip("torch")
pytestmark = pytest.mark.references

commands.add_commands(app)

SIZE = 8_000_000


def test_moments_and_master_weights_are_not_the_trainers(tmp_path):
    figures = tmp_path / "bench.json"
    words = ["bench", "pytorch", "trainer", "--size", str(SIZE), "--rounds", "1", "--json", str(figures)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    tables = json.loads(figures.read_text())["tables"]
    assert len(tables["pytorch"]["rows"]) == 6
    assert all(row["samples"] for row in tables["pytorch"]["rows"])
    own = {row["key"]: row["own bytes each"] for row in tables["trainer"]["rows"]}
    # Weights, gradients and two moments of 4 bytes; or of 2, 2 and 4 bytes, and a copy of 4.
    assert own["float32 - True"] == pytest.approx(16, rel=0.1)
    assert own["bfloat16 master True"] == pytest.approx(16, rel=0.1)
    # Weights; the gradients are the server's memory.
    assert own["float32 - shared_memory"] < 8
    # Weights, gradients, the run's values; and messages on the way, which do not grow with the size.
    assert own["bfloat16 - stream"] < 12
