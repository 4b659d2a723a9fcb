"""async: each update becomes a commit as it arrives."""

from collections.abc import Mapping
from typing import ClassVar

from stepwell_server.core.arguments import Argument, Kind, Range
from stepwell_server.core.policies.policy import Commit, Contribution, Decision, Policy, Refuse, register, table

# Of an update that is s versions stale, s of 1 or more.
DAMPINGS = ("none", "inverse", "inverse_root")


@register
class Asynchronous(Policy):
    """Nobody waits. What is staler than `staleness_max` is refused; `damping` lowers the rate of what is stale.

    damping "inverse": by 1 / (1 + staleness), as in Zhang et al. 2016, https://arxiv.org/abs/1511.05950, with the 1 so
    that a fresh update keeps its rate; "inverse_root": by its root.
    """

    name = "async"
    arguments: ClassVar[Mapping[str, Argument]] = table(
        Argument("staleness_max", Kind.INTEGER, None, optional=True, range=Range(0)),
        Argument("damping", Kind.TEXT, "none", choices=DAMPINGS),
    )

    def staged(self, contribution: Contribution) -> list[Decision]:
        staleness = self.staleness(contribution)
        bound = self.values["staleness_max"]
        if isinstance(bound, float) and staleness > bound:
            return [Refuse(contribution, staleness, int(bound))]
        power = {"none": 0.0, "inverse": 1.0, "inverse_root": 0.5}[str(self.values["damping"])]
        return [Commit((contribution,), (1.0 + staleness) ** -power)]

    def ended(self, commit: Commit, version: int) -> list[Decision]:
        self.version = version
        return []

    @property
    def waiting(self) -> list[Contribution]:
        return []
