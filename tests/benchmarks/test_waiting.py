"""What a worker that waits for others costs the real server, as the benchmark's table says; not how long it takes."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from stepwell_server.benchmarks import commands, waiting
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


class FakeCrew:
    """Workers whose messages a slow server has only at the second look."""

    def __init__(self, count):
        self.count, self.sending, self.arrived, self.most = count, [], [], 0

    def begin(self, order, begin, end):
        assert order == "send"
        self.sending += range(begin, end)
        self.most = max(self.most, len(self.sending))

    def end(self):
        pass

    def look(self):
        before = len(self.arrived)
        self.arrived += self.sending
        self.sending.clear()
        return before


@pytest.mark.parametrize("missing", [0, -1])
@pytest.mark.parametrize("count", [4, 400])
def test_hardly_anybody_sends_before_the_server_has_what_was_sent(missing, count):
    crews: list[Any] = [FakeCrew(count), FakeCrew(count - 1)]
    workers = sum(crew.count for crew in crews)
    waiting._few_at_a_time(crews, lambda: sum(crew.look() for crew in crews), workers, missing)
    assert all(crew.most <= max(1, workers // 200 + 1) for crew in crews)
    everybody = [list(range(crew.count)) for crew in crews]
    del everybody[missing][missing]
    assert [crew.arrived for crew in crews] == everybody


def test_pages_of_files_are_nobody_s_memory(tmp_path, monkeypatch):
    """Whether such a page is private depends on what other processes have mapped."""
    (tmp_path / "fd").mkdir()
    (tmp_path / "status").write_text("Threads:\t3\nVmRSS:\t400 kB\n")
    (tmp_path / "smaps_rollup").write_text("Private_Clean: 100 kB\nPrivate_Dirty: 200 kB\n")
    monkeypatch.setattr(waiting, "Path", lambda _: tmp_path)
    server: Any = SimpleNamespace(pid=1)
    assert waiting._look(server) == {"threads": 3, "descriptors": 0, "resident": 400 << 10, "private": 200 << 10}
