"""What a worker that waits for others costs the real server, as the benchmark's table says; not how long it takes."""

import json

import pytest
from typer.testing import CliRunner

from stepwell_server.benchmarks import commands
from stepwell_server.commands import app

commands.add_commands(app)

WORKER_BYTES_MAX = 100_000
# What the pools of gRPC and of kernels may still start, however many workers there are.
THREADS_MORE_MAX = 8


@pytest.mark.parametrize("workers", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_a_worker_that_waits_costs_no_thread_and_little_memory(workers, tmp_path):
    figures = tmp_path / "bench.json"
    words = ["bench", "waiting", "--waiting", str(workers), "--rounds", "1", "--json", str(figures)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = {row["key"]: row for row in json.loads(figures.read_text())["tables"]["waiting"]["rows"]}
    before, joined = rows["before"], rows["joined"]
    assert joined["descriptors"] == before["descriptors"] + workers
    assert rows["staged"]["staged MB"] == pytest.approx((workers - 1) * 0.1)
    assert rows["staged"]["KB each"] * 1000 < WORKER_BYTES_MAX
    for key in ("staged", "folded", "staged again"):
        assert rows[key]["threads"] <= before["threads"] + THREADS_MORE_MAX
    for side in ("Stepwell", "bare gRPC"):
        assert 0 < rows[f"{side} 0 0"]["median ms"] <= rows[f"{side} 0 1"]["median ms"]
        assert rows[f"{side} None 1"]["samples"]
