"""The page that is committed: its commands run, its pictures are pictures, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from stepwell_server.experiments.claims import CLAIMS
from stepwell_server.experiments.commands import add_commands
from stepwell_server.experiments.page import number
from tests.experiments.pixels import count_colours

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "experiments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"((?:^    .*\n)+)", PAGE, re.MULTILINE)
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))[1:] for block in BLOCKS if block.lstrip().startswith("stepwell compare")
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_commands_run_as_they_stand(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = list(words)
    words[words.index("--steps") + 1] = "30"  # only shorter
    app = typer.Typer(pretty_exceptions_enable=False)
    add_commands(app)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert matplotlib.image.imread(tmp_path / words[-1]).ndim == 3


def test_there_is_a_command_and_a_picture_for_each_claim():
    names = [claim.name for claim in CLAIMS]
    assert [words[-1] for words in COMMANDS] == [f"{name}.png" for name in names]
    assert re.findall(r"!\[[^]]+\]\(pictures/(\w+)\.png\)", PAGE) == names
    shown = [re.findall(r"\]\(pictures/(\w+)\.png\)", page.read_text("utf-8")) for page in DOCS.glob("*.md")]
    assert {path.stem for path in (DOCS / "pictures").glob("*.png")} == {name for names in shown for name in names}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_pictures_are_of_modest_size_and_not_empty(claim):
    path = DOCS / "pictures" / f"{claim.name}.png"
    assert path.stat().st_size < 120_000
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (800, 1100)
    for quarter in (part for half in np.array_split(pixels, 2) for part in np.array_split(half, 2, axis=1)):
        assert count_colours(quarter) > 10


def test_links_lead_to_sections():
    titles = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    headings = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert links == headings
    assert "{{" not in PAGE


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (62, "62"), (1.24e10, "1.24e+10"), (-0.0341, "-0.0341"), (99.99999, "100")]
)
def test_numbers(value, text):
    assert number(value) == text
