"""What a policy is told of an update, and what it decides."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contribution:
    """A staged update, as far as a policy cares.

    key: names it among all of the run's. base_version: of the parameters that its gradients were taken at.
    """

    key: int
    worker: str
    base_version: int
    samples: float = 0.0


@dataclass(frozen=True)
class Commit:
    """Fold these in this order, and make the next version of the accumulator.

    damping: what the learning rate is multiplied by; where several commits were folded, the mean of theirs.
    applies: False where they are only folded and no version is made. answers: False where they get no answer yet.
    folded: how many of them, the first ones, are in the accumulator already.
    """

    contributions: tuple[Contribution, ...]
    damping: float = 1.0
    applies: bool = True
    answers: bool = True
    folded: int = 0


@dataclass(frozen=True)
class Drop:
    """It came too late; it is answered and has no effect."""

    contribution: Contribution


@dataclass(frozen=True)
class Refuse:
    """It is staler than the bound; its worker gets an error with the present version, and may send another."""

    contribution: Contribution
    staleness: int
    staleness_max: int


Decision = Commit | Drop | Refuse
