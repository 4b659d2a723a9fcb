import re

import pytest
import typer
from typer.testing import CliRunner

from stepwell_server.capacity.commands import add_commands

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
    for part in ("workers", "link in", "link out", "event loop", "cores", "memory", "staged updates", "staleness"):
        assert part in result.output


def test_a_policy_with_arguments_and_costs_that_were_measured():
    policy = '{"name": "sync", "accumulate": 2}'
    result = run("--policy", policy, "--costs", '{"exchange_seconds": 0.001}', "--local-steps", 10, "--updates", 200)
    assert result.exit_code == 0, result.output
    assert number(result.output, "gradients per second") == pytest.approx(
        10 * number(result.output, "updates per second"), rel=0.01
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "some"], "'some' is no count"),
        (["--policy", "chaos"], "chaos"),
        (["--policy", '{"name": "sync"'], "is no policy, expected a JSON object"),
        (["--policy", '{"name": "sync", "workers_min": 99}'], "wait for ever"),
        (["--costs", '{"luck": 1}'], "luck 1 is no cost"),
        (["--costs", '{"exchange_seconds": -1}'], "exchange_seconds -1 is no cost"),
    ],
)
def test_what_makes_no_sense_is_refused(words, said):
    result = run(*words)
    assert result.exit_code == 2
    assert said in re.sub(r"[\s│]+", " ", result.output)
