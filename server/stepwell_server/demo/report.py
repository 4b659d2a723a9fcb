"""What a worker tells about each of its steps, as one line of JSON."""

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One update that was committed.

    number: of this worker's steps, from 1. version: what the commit made of the run.
    loss: of the mini-batch, in nats, at the parameters that the gradients were taken at.
    staleness: how many commits of others came between those parameters and this commit.
    """

    number: int
    version: int
    loss: float
    staleness: int

    def to_line(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_line(line: str) -> "Step":
        """Raises ValueError or TypeError where the line is none of ours."""
        return Step(**json.loads(line))
