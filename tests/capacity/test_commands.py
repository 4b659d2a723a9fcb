import re
from collections import Counter

import pytest
import typer
from typer.testing import CliRunner

from stepwell_server.capacity import model
from stepwell_server.capacity.commands import add_commands
from stepwell_server.capacity.model import Prediction

app = typer.Typer(pretty_exceptions_enable=False)
add_commands(app)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})


def number(text, name):
    match = re.search(rf"^{name} +([\d,.]+)", text, re.MULTILINE)
    assert match, text
    return float(match[1].replace(",", ""))


def test_what_so_many_workers_get():
    result = run("--workers", 4, "--compute-seconds", 0.1, "--spread", 0, "--link", 0, "--updates", 400)
    assert result.exit_code == 0, result.output
    rate = number(result.output, "updates per second")
    assert 30 < rate < 40  # somewhat less than 4 / 0.1
    assert number(result.output, "versions per second") == rate
    for part in (
        "workers",
        "link in",
        "link out",
        "event loop",
        "commits",
        "cores",
        "memory",
        "staged updates",
        "staleness",
    ):
        assert part in result.output


def test_a_policy_with_arguments_and_costs_that_were_measured():
    policy = '{"name": "sync", "accumulate": 2}'
    result = run("--policy", policy, "--costs", '{"exchange_seconds": 0.001}', "--local-steps", 10, "--updates", 200)
    assert result.exit_code == 0, result.output
    assert number(result.output, "gradients per second") == pytest.approx(
        10 * number(result.output, "updates per second"), rel=0.01
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--updates", "40"],
        ["--policy", "sync", "--workers", "100", "--updates", "500"],
        ["--policy", '{"name": "async", "staleness_max": 0}', "--workers", "100", "--updates", "500"],
        ["--policy", "{}"],
        ["--spread", "1e-200"],
        ["--memory", "inf", "--compute-seconds", "0", "--workers", "1"],
    ],
    ids=" ".join,
)
def test_what_is_at_the_edge_is_predicted(words):
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert number(result.output, "updates per second") > 0


def test_where_all_were_refused_no_staleness_is_drawn(monkeypatch):
    def refused(*_args, **_words):
        parts = ("link in", "link out", "event loop", "commits", "cores", "memory")
        return Prediction(1.0, 0.0, 1.0, dict.fromkeys(parts, 0.0), 0.0, Counter(), [1.0], 1, 0)

    monkeypatch.setattr(model, "predict", refused)
    result = run()
    assert result.exit_code == 0, result.output
    assert "largest 0" in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "some"], "'some' is no count"),
        (["--policy", "chaos"], "chaos"),
        (["--policy", '{"name": "sync"'], "is no policy, expected a JSON object"),
        (["--policy", '{"name": "sync", "workers_min": 99}'], "wait for ever"),
        (["--costs", '{"luck": 1}'], "luck 1 is no cost"),
        (["--costs", '{"luck": true}'], "luck True is no cost"),
        (["--costs", '{"exchange_seconds": -1}'], "exchange_seconds is -1, expected a number from 0 to"),
        (["--costs", '{"exchange_seconds": NaN}'], "exchange_seconds is nan, expected"),
        (["--costs", '{"loop_cores": 0}'], "loop_cores is 0, expected a number from 0.01 to"),
        (["--costs", '{"worker_cores": 0}', "--local"], "worker_cores is 0, expected a number from 0.01 to"),
        (["--compute-seconds", "inf"], "compute_seconds is inf, expected"),
        (["--spread", "inf"], "spread is inf, expected"),
        (["--link", "1e-10"], "link_bytes_per_second is 0.0125, expected a number from 1 to inf"),
        (["--updates", "1"], "1 updates of 8 workers, expected 40 or more"),
        (
            ["--policy", "sync", "--workers", "100", "--updates", "50"],
            "50 updates of 100 workers, expected 500 or more",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(words, said):
    result = run(*words)
    assert result.exit_code == 2
    assert said in re.sub(r"[\s│]+", " ", result.output)
