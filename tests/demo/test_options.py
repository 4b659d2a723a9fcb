from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepwell_server.commands import app
from stepwell_server.demo import session, worker
from stepwell_server.demo.options import DemoOptions, WorkerOptions


@pytest.fixture
def called(monkeypatch):
    """With which options the command line calls the demo and its workers."""
    calls = []

    def call(options):
        calls.append(options)
        return 0

    monkeypatch.setattr(session, "run_demo", call)
    monkeypatch.setattr(worker, "run_worker", call)
    monkeypatch.delenv("STEPWELL_ADDRESS", raising=False)
    return calls


@pytest.mark.parametrize(
    "options",
    [
        WorkerOptions(),
        WorkerOptions(
            optimizer="adagrad",
            flavor="keras",
            lr=1e-05,
            schedule="step",
            workers=5,
            steps=7,
            policy="bounded",
            bound=9,
            slow=2.5,
            batch_size=3,
            seed=11,
            run="other",
            address="[::1]:50052",
            index=0,
            supervised=True,
        ),
    ],
)
def test_a_worker_is_started_with_the_options_that_it_shall_have(called, options):
    result = CliRunner().invoke(app, ["demo-worker", *options.arguments()])
    assert result.exit_code == 0, result.output
    assert called == [options]


def test_the_command_line_has_the_same_defaults(called):
    assert CliRunner().invoke(app, ["demo"]).exit_code == 0
    assert called == [DemoOptions()]


def test_the_command_line_has_every_option_of_the_demo(called):
    line = (
        "demo --optimizer sgd --flavor torch --lr 0.5 --schedule linear --workers 3 --steps 4 --batch-size 5 --seed 6 "
        "--policy bounded --bound 2 --slow 10 --run other --target 0.5 --picture other.png --address localhost:1 "
        "--plain"
    )
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    assert called == [
        DemoOptions(
            optimizer="sgd",
            flavor="torch",
            lr=0.5,
            schedule="linear",
            workers=3,
            steps=4,
            policy="bounded",
            bound=2,
            slow=10.0,
            batch_size=5,
            seed=6,
            run="other",
            target=0.5,
            picture=Path("other.png"),
            address="localhost:1",
            plain=True,
        )
    ]
