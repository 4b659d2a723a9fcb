"""The four samples of every language are the same program: each joins the run that the same one in another made."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

pytestmark = pytest.mark.languages

ROOT = Path(__file__).parents[2]
LANGUAGES = {
    "python": lambda sample: [sys.executable, "-W", "error", str(ROOT / "examples" / f"{sample}.py")],
    "typescript": lambda sample: ["node", str(ROOT / "client" / "typescript" / "samples" / f"{sample}.mjs")],
    "c++": lambda sample: [str(ROOT / "build" / "cpp" / "samples" / sample)],
}
SECONDS_MAX = 300


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(kept_kernels()) as server:
        yield server


def output_of(language: str, sample: str, *arguments: str) -> str:
    command = [*LANGUAGES[language](sample), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert done.returncode == 0, f"{language}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("sample", "lines"),
    [
        ("quickstart", [r"version {}: w 1\.000 -2\.000 3\.000 0\.500, b 1\.000"]),
        (
            "two_workers",
            [
                r"(one|two) had (0 to 500|500 to 1000); version {}: 3\.000 x -1\.000",
                r"(one|two) had (0 to 500|500 to 1000); version {}: 3\.000 x -1\.000",
                r"both have the same parameters",
            ],
        ),
        ("table", [r"version {}: \d+ rows; a user who likes 0\.7 scores 0\.\d\d"]),
    ],
)
def test_all_say_the_same_of_one_run(server: Server, sample: str, lines: list[str]) -> None:
    """A spec that differed in anything would be refused with RunDiffers."""
    updates = {"quickstart": 500, "two_workers": 300, "table": 200}[sample]
    for number, language in enumerate(LANGUAGES, start=1):
        expected = "\n".join(lines).replace("{}", str(number * updates)) + "\n"
        printed = output_of(language, sample, server.address)
        assert re.fullmatch(expected, printed), f"{language}: {printed}"


def test_each_goes_on_where_another_stopped(server: Server) -> None:
    for number, language in enumerate(LANGUAGES):
        printed = output_of(language, "resume", server.address, str(400 * (number + 1)))
        begins = f"goes on at version {400 * number}" if number else "a new run"
        assert re.fullmatch(rf"{begins}\nversion {400 * (number + 1)}: x -?\d\.\d{{4}}\n", printed), printed
