"""Two trainers with half of each batch, and one that has all of it by itself."""

import subprocess
import sys
from pathlib import Path

SECONDS_MAX = 300


def train_halves(program: str, address: str, directory: Path) -> list[Path]:
    """Where the two and the one have saved what they got.

    program: takes an address ("local" for the one by itself), "0" or "1" for its half, and where to save; says a line
    when it has joined, and begins when it is told to.
    """
    arguments = [(address, "0"), (address, "1"), ("local", "")]
    results = [directory / f"{number}.npz" for number in range(3)]
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", program, where, half, str(result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for (where, half), result in zip(arguments, results, strict=True)
    ]
    for trainer in trainers[:2]:
        assert trainer.stdout is not None
        trainer.stdout.readline()  # rounds are those of whoever is there: nobody begins before both are
    for trainer in trainers[:2]:
        assert trainer.stdin is not None
        trainer.stdin.write("begin\n")
        trainer.stdin.flush()
    errors = [trainer.communicate(timeout=SECONDS_MAX)[1] for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [0, 0, 0], errors
    return results
