import json

import pytest
from typer.testing import CliRunner

from stepwell_server.benchmarks import commands
from stepwell_server.commands import app

commands.add_commands(app)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_every_table_that_serves_is_measured_written_and_drawn(tmp_path, capfd):
    """Whether it works, not how fast; each row's samples are as many as were asked for."""
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    options = ["--size", "4_000", "--rounds", "2", "--small-rounds", "3", "--steps", "20", "--sizes", "1e3,4e3"]
    result = run(
        "step", "small", "encodings", "growth", "steady", *options, "--json", str(figures), "--plot", str(picture)
    )
    assert result.exit_code == 0, result.output
    data = json.loads(figures.read_text())
    assert {"date", "machine", "versions"} <= data["machine"].keys()
    rows = {name: table["rows"] for name, table in data["tables"].items()}
    assert list(rows) == ["step", "encodings", "growth", "small", "steady"]
    assert {"tcp", "grpc", "stepwell", "stepwell-out", "shared", "resident"} <= {row["key"] for row in rows["step"]}
    assert all(len(row["samples"]) == 2 for row in rows["step"] + rows["encodings"])
    assert all(len(row["samples"]) == 3 for row in rows["small"])
    tcp = next(row for row in rows["step"] if row["key"] == "tcp")
    for row in rows["step"]:
        assert row["x raw TCP"] == pytest.approx(row["median ms"] / tcp["median ms"])
    # 4 bytes each way a parameter, or 2; the frame and the headers around them are less than a kilobyte.
    megabytes = {row["key"]: row["MB"] for row in rows["encodings"]}
    assert megabytes["float32/float32"] == pytest.approx(0.032, abs=0.004)
    assert megabytes["bfloat16/bfloat16"] == pytest.approx(0.016, abs=0.004)
    assert [row["parameters"] for row in rows["growth"]] == [1000, 4000] * 2
    assert [row["steps"] for row in rows["steady"]] == [2 * part for part in range(1, 11)] * 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_several_workers_at_once(tmp_path):
    figures = tmp_path / "bench.json"
    result = run("workers", "--workers", "1,3", "--rounds", "1", "--transports", "stream", "--json", str(figures))
    assert result.exit_code == 0, result.output
    one, three = json.loads(figures.read_text())["tables"]["workers"]["rows"]
    assert (one["workers"], three["workers"]) == (1, 3)
    assert three["of the best with fewer"] == pytest.approx(three["steps/s"] / one["steps/s"])
    assert one["p50 ms"] <= one["p99 ms"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["setp"], "'setp' is no table"),
        (["step", "--size", "many"], "'many' is no count"),
        (["step", "--size", "0"], "'0' is no count"),
        (["step", "--transports", "pigeon"], "'pigeon' is no transport"),
        (["encodings", "--encodings", "int8"], "'int8' is no row of encodings"),
        (["workers", "--workers", "1,two"], "'two' is no count"),
        (["step", "--rounds", "0"], "Invalid value for '--rounds'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output
