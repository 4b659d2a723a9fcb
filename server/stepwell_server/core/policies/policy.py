"""What a policy is: a state machine without I/O and without a clock. Events in, decisions out.

Events: a worker joined, a worker left (by itself, or because its lease ran out), an update was staged, a commit has
ended. Decisions: commit these together, answer that one late, refuse this one. A worker has at most one update staged.
What is neither decided on nor withdrawn waits.

A caller carries decisions out in order, and reports each commit's end before the next event that it causes. So the
same code runs in the server, and in a simulator that drives it through random histories.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stepwell_server.core.arguments import REQUIRED, Argument, Value, check_arguments, unknown
from stepwell_server.core.errors import UnknownPolicy


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
    """Make the next version of these, folded in this order. damping: what the learning rate is multiplied by."""

    contributions: tuple[Contribution, ...]
    damping: float = 1.0


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


class Policy(ABC):
    """workers: the live ones, in the order in which they joined. version: the run's."""

    name: ClassVar[str]
    arguments: ClassVar[Mapping[str, Argument]]

    def __init__(self, values: Mapping[str, Value], version: int = 0, workers: Iterable[str] = ()) -> None:
        self.values = dict(values)
        self.version = version
        self.workers = dict.fromkeys(workers)

    @property
    def spec(self) -> dict[str, Value]:
        return {"name": self.name, **self.values}

    def joined(self, worker: str) -> list[Decision]:
        """A worker is live from now on. One that joins again has left before."""
        self.workers[worker] = None
        return []

    def left(self, worker: str) -> list[Decision]:
        """A worker is not live any more; an update of it that waits is withdrawn and has no effect."""
        self.workers.pop(worker, None)
        return []

    @abstractmethod
    def staged(self, contribution: Contribution) -> list[Decision]:
        """An update is whole. Its worker is live."""

    @abstractmethod
    def ended(self, commit: Commit, version: int) -> list[Decision]:
        """A commit has ended, and the run is at this version; one that failed has left the version as it was."""

    @property
    @abstractmethod
    def waiting(self) -> list[Contribution]:
        """The updates that wait."""

    def staleness(self, contribution: Contribution) -> int:
        """How many commits lie between the parameters that it was taken at and the present ones."""
        return max(0, self.version - contribution.base_version)


POLICIES: dict[str, type[Policy]] = {}


def register(policy: type[Policy]) -> type[Policy]:
    """Enter a policy under its name."""
    POLICIES[policy.name] = policy
    return policy


def parse_policy(spec: Mapping[str, Any] | None, version: int = 0, workers: Iterable[str] = ()) -> Policy:
    """A policy from plain data, {"name": ..., arguments}; async for None.

    Raises UnknownPolicy, UnknownArgument, InvalidValue.
    """
    spec = spec or {"name": "async"}
    name = str(spec.get("name", ""))
    if name not in POLICIES:
        raise unknown(UnknownPolicy, "policy", name, POLICIES)
    kind = POLICIES[name]
    given = {key: value for key, value in spec.items() if key != "name"}
    defaults = {key: each.default for key, each in kind.arguments.items() if each.default is not REQUIRED}
    return kind(defaults | check_arguments(kind.arguments, given, f"policy '{name}'"), version, workers)


def table(*arguments: Argument) -> Mapping[str, Argument]:
    """A policy's arguments by name."""
    return {argument.name: argument for argument in arguments}
