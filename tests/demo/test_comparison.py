import dataclasses
import json
import re

import matplotlib.image
import numpy as np
import pytest

from stepwell_server.demo import comparison, comparison_picture
from stepwell_server.demo.comparison import Contest, largest_lead
from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.report import Histogram
from stepwell_server.demo.session import Failed
from tests.demo.records import make_record
from tests.demo.test_session import start  # noqa: F401  # a fixture

OPTIONS = DemoOptions(workers=3, steps=20, slow=10.0)


def lines(*events):
    """As the update log has them: (kind, worker or workers)."""
    for kind, who in events:
        rows = [[worker, 1, 1, "committed", 0, 0.0] for worker in who] if kind in ("commit", "early") else []
        yield json.dumps({"run": "it", "kind": kind, "worker": who, "contributions": rows})


def test_a_lead_is_counted_over_the_live_ones():
    history = [("open", ""), ("join", "a"), ("join", "b"), ("commit", "a"), ("commit", "a"), ("commit", "b")]
    assert largest_lead(lines(*history), "it") == 2
    assert largest_lead(lines(*history), "other") == 0
    # A newcomer begins where the slowest is, and who goes is waited for no longer.
    assert largest_lead(lines(*history, ("join", "c"), ("commit", "a")), "it") == 2
    assert largest_lead(lines(*history, ("join", "c"), ("commit", "a"), ("commit", "a")), "it") == 3
    assert largest_lead(lines(*history, ("leave", "b"), *[("commit", "a")] * 9), "it") == 2


def test_what_is_folded_early_is_a_step_when_its_round_ends():
    joined = [("join", "a"), ("join", "b"), ("join", "c")]
    assert largest_lead(lines(*joined, *[("early", "ab"), ("commit", "c")] * 5), "it") == 0
    assert largest_lead(lines(*joined, ("early", "a"), ("leave", "a"), ("commit", "bc")), "it") == 0


@pytest.mark.parametrize(
    ("policy", "lead", "stale", "kept"),
    [
        ("async", 500, 500, True),
        ("bounded", 3, 12, True),
        ("bounded", 4, 0, False),
        ("bounded", 3, 13, False),
        ("sync", 0, 0, True),
        ("sync", 0, 1, False),
    ],
)
def test_a_bound_that_is_not_kept_fails(policy, lead, stale, kept):
    options = dataclasses.replace(OPTIONS, policy=policy)
    record = make_record(options)
    record.histogram = Histogram((1,), stale)
    contest = Contest(options, record, lead)
    if kept:
        comparison._check_bound(contest)
        return
    with pytest.raises(Failed, match="expected at most"):
        comparison._check_bound(contest)


@pytest.mark.parametrize("staleness_max", [0, 300])
def test_draws_a_png_with_something_in_every_part(tmp_path, staleness_max):
    trainings = [
        (options, make_record(options, staleness_max=0 if policy == "sync" else staleness_max))
        for policy in ("async", "bounded", "sync")
        for options in [dataclasses.replace(OPTIONS, policy=policy)]
    ]
    path = tmp_path / "policies.png"
    comparison_picture.draw(trainings, path)
    pixels = matplotlib.image.imread(path)
    upper, lower = np.array_split(pixels, 2)
    for part in (upper, *np.array_split(lower, 3, axis=1)):
        colours = (255 * part).astype(np.uint8).view(np.uint32)
        assert len(np.unique(colours)) > 10


def test_the_command_shows_all_three(start, tmp_path):  # noqa: F811
    command = start("demo-policies", "--plain", "--workers", 2, "--steps", 8, "--slow", 2, "--picture", "x.png")
    assert command.end() == 0, command.output
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in command.output.splitlines() if line.startswith("| ")]
    heading, _, *rows = rows
    found = {row[0]: dict(zip(heading, row, strict=False)) for row in rows}
    assert list(found) == ["async", "bounded, 3", "sync"]
    assert int(found["bounded, 3"]["largest lead"]) <= 3
    assert (found["sync"]["largest staleness"], found["sync"]["0"]) == ("0", "100.0%")
    assert "machine: " in command.output
    assert (tmp_path / "x.png").exists()
