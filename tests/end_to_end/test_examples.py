"""The programs in examples/, as a user runs them."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stepwell
from tests.end_to_end.server import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS_MAX = 300
POLLS_MAX = 100_000


def start_example(name: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(name: str, *arguments: str) -> str:
    with start_example(name, *arguments) as example:
        output, errors = example.communicate(timeout=SECONDS_MAX)
    assert example.returncode == 0, errors
    return output


# The four that every client has: client/typescript/samples and client/cpp/samples say the same.


def test_quickstart(server: Server) -> None:
    assert output_of("quickstart.py", server.address) == "version 500: w 1.000 -2.000 3.000 0.500, b 1.000\n"


def test_two_workers(server: Server) -> None:
    first, second, last = output_of("two_workers.py", server.address).splitlines()
    line = re.compile(r"(one|two) had (0 to 500|500 to 1000); version 300: 3\.000 x -1\.000")
    found = [line.fullmatch(first), line.fullmatch(second)]
    assert all(found), (first, second)
    assert len({match[1] for match in found if match}) == len({match[2] for match in found if match}) == 2
    assert last == "both have the same parameters"


def test_resume(start: Callable[..., Server], connect: Callable[..., stepwell.Client], tmp_path: Path) -> None:
    """The server is stopped while the example trains, and killed: a kill without a snapshot loses what there was.

    The example itself is killed when it has gone back, and called again with some more steps.
    """
    server = start("--snapshot-seconds", "0", data_dir=tmp_path)
    with start_example("resume.py", server.address, str(10**9)) as example:
        assert example.stdout is not None
        assert example.stdout.readline() == "a new run\n"
        run = connect(server).get_run("resume")
        two_more_steps(run)
        server.stop()
        server.start()
        acknowledged_version_min = two_more_steps(run) - 1
        server.kill()
        server.start()
        line = example.stdout.readline()
        example.kill()
        output, _ = example.communicate(timeout=SECONDS_MAX)
    back = re.fullmatch(r"went back from version (\d+) to (\d+)\n", line)
    assert back, line
    assert int(back[1]) >= acknowledged_version_min > int(back[2]) >= 1
    assert output == ""
    version = run.refresh().version
    first, last = output_of("resume.py", server.address, str(version + 3000)).splitlines()
    goes_on = re.fullmatch(r"goes on at version (\d+)", first)
    assert goes_on, first
    assert int(goes_on[1]) in (version, version + 1)  # the killed example's last update may just have come
    assert re.fullmatch(rf"version {version + 3000}: x -?0\.\d{{4}}", last), last
    assert output_of("resume.py", server.address, "1").startswith(f"goes on at version {version + 3000}\n")


def two_more_steps(run: stepwell.Run) -> int:
    """Wait until the one worker has made them, and return the version: it was told of at least the one before."""
    version = run.refresh().version
    for _ in range(POLLS_MAX):
        now = run.refresh().version
        if now >= version + 2:
            return now
    raise AssertionError(f"the run stays at version {version}")


def test_table(server: Server) -> None:
    printed = output_of("table.py", server.address)
    match = re.fullmatch(r"version 200: (\d+) rows; a user who likes 0\.7 scores (\d\.\d\d)\n", printed)
    assert match, printed
    assert 90 < int(match[1]) <= 100
    assert float(match[2]) == pytest.approx(0.7, abs=0.2)


def test_two_towers_learn_from_sparse_data(server: Server) -> None:
    """Two trainers on one run come close to the best log loss that the recipe of the data allows."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "two_towers.py"), "--address", server.address]
    trainers = [
        subprocess.Popen(
            [*command, "--steps", "200", "--seed", seed], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for seed in ("2", "3")
    ]
    done = [trainer.communicate(timeout=300) for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [0, 0], done
    for printed, _ in done:
        *_, last = printed.splitlines()
        model, best, mean = (float(number) for number in re.findall(r"\d\.\d+", last))
        assert best < model < best + 0.15 * (mean - best), last
    # What was seen once only has no row.
    users, items = (int(count) for count in re.findall(r"(\d+) rows", last))
    assert 1000 < users <= 3000
    assert 500 < items <= 1000
