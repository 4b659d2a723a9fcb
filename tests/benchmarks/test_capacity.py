"""The capacity model beside what it models; how fast either is depends on the machine and is not looked at."""

import json

import pytest
from typer.testing import CliRunner

from stepwell_server.benchmarks import commands
from stepwell_server.benchmarks.capacity import POLICIES, SIZES, Measured, fit
from stepwell_server.capacity.inputs import Machine, Workload
from stepwell_server.capacity.model import predict
from stepwell_server.commands import app

commands.add_commands(app)

WORKERS = (1, 3)


def test_measured_and_predicted_agree_in_what_cannot_be_otherwise(tmp_path):
    figures = tmp_path / "bench.json"
    words = ["bench", "capacity", "--workers", "1,3", "--rounds", "1", "--seconds", "0.3", "--json", str(figures)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = {row["key"]: row for row in json.loads(figures.read_text())["tables"]["capacity"]["rows"]}
    assert rows.keys() == {f"{policy['name']} {count}" for policy in POLICIES for count in WORKERS}
    for row in rows.values():
        assert row["steps/s"] > 0
        assert row["predicted / measured"] == pytest.approx(row["predicted"] / row["steps/s"])
        # Nobody's parameters are older than what the others have made since; in rounds nobody is late.
        others = row["workers"] - 1
        most = {"async": others * 10, "bounded": others * 7, "sync": 0}[row["policy"]] if others else 0
        for heading in ("staleness", "predicted mean", "p99", "predicted p99"):
            assert 0 <= row[heading] <= most
    for policy in ("async", "bounded"):
        assert rows[f"{policy} 3"]["staleness"] > 0
        assert rows[f"{policy} 3"]["predicted mean"] > 0
        assert rows[f"{policy} 3"]["predicted"] > rows[f"{policy} 1"]["predicted"]


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
