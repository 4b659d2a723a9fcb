"""The programs in examples/, as a user runs them."""

import re
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.server import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


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
