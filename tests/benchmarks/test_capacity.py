"""The capacity model beside what it models; how fast either is depends on the machine and is not looked at."""

import json
import math
from typing import Any

import pytest
from typer.testing import CliRunner

from stepwell_server.benchmarks import commands
from stepwell_server.benchmarks.capacity import KINDS, POLICIES, SIZES, Measured, fit, work
from stepwell_server.capacity.inputs import Machine, Workload
from stepwell_server.capacity.model import predict
from stepwell_server.commands import app

commands.add_commands(app)

WORKERS = (1, 3)


def test_measured_and_predicted_agree_in_what_cannot_be_otherwise(tmp_path):
    figures = tmp_path / "bench.json"
    words = ["bench", "capacity", "--workers", "1,3", "--rounds", "1", "--seconds", "0.1", "--json", str(figures)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = {row["key"]: row for row in json.loads(figures.read_text())["tables"]["capacity"]["rows"]}
    assert rows.keys() == {f"{policy['name']} {count}" for policy in POLICIES for count in WORKERS}
    for row in rows.values():
        assert row["steps/s"] > 0
        assert row["predicted / measured"] == pytest.approx(row["predicted"] / row["steps/s"])
        # Alone nobody is stale, in rounds nobody is late, and under bounded the policy says by how much. How stale
        # async gets depends on who is let run.
        others = row["workers"] - 1
        most = {"async": others and math.inf, "bounded": others * 7, "sync": 0}[row["policy"]]
        for heading in ("staleness", "predicted mean", "p99", "predicted p99"):
            assert 0 <= row[heading] <= most
    # Simulated are equal workers, of whom each steps while another does, whatever a step costs.
    assert all(rows[f"{policy} 3"]["predicted mean"] > 0 for policy in ("async", "bounded"))


class FakeRun:
    """Answers at once."""

    version, last_answer = 0, None

    def step(self, grads, out):
        assert grads.keys() == out.keys()


def test_a_worker_goes_on_until_all_are_at_work_and_then_for_two_steps_at_least():
    said, told = [], iter([False, False, True])
    task = {"size": 10, "kind": "step", "seed": 0, "seconds": 0.0}
    run: Any = FakeRun()
    figures = work(run, task, lambda: said.append("begun"), lambda: next(told))
    assert said == ["begun"]
    assert {name: len(values) for name, values in figures.items()} == dict.fromkeys(figures, 3 + 2)


def test_the_costs_give_what_they_were_fitted_to():
    """One worker, the model, and the same exchange again, of both sizes."""
    machine = Machine(cores=2, local=True)
    kernels = {size: 7 * size * 4 / machine.memory_bytes_per_second for size in SIZES}
    measured = {
        ("step", size): Measured(
            exchange=2e-3 + 1e-8 * size, loop=0.8e-3 + 4e-9 * size, beside=1e-4 + kernels[size] * 2, worker=1e-3
        )
        for size in SIZES
    }
    measured |= {("push", size): Measured(0, 0.5e-3 + 1e-9 * size, 0, 0) for size in SIZES}
    measured |= {("pull", size): Measured(0, 0.3e-3 + 3e-9 * size, 0, 0) for size in SIZES}
    costs = fit(measured, machine.cores)
    assert costs.send_seconds_per_byte == pytest.approx(3 * costs.receive_seconds_per_byte)
    for size in SIZES:
        workload = Workload(workers=1, parameters=size, compute_seconds=0.02, spread=0.0)
        found = predict(workload, machine, costs, updates=50)
        assert found.exchange_percentile(50) == pytest.approx(measured["step", size].exchange)


def test_a_worker_that_no_clock_tick_has_seen_keeps_some_of_a_core_busy():
    measured = {(kind, size): Measured(2e-3, 1e-3, 0.0, 0.0) for kind in KINDS for size in SIZES}
    costs = fit(measured, cores=2)
    assert costs.worker_cores > 0
    found = predict(Workload(workers=1), Machine(local=True), costs, updates=50)
    assert found.updates_per_second > 0
