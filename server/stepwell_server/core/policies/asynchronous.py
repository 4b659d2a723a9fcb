"""async: each update becomes a commit as it arrives."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from stepwell_server.core.arguments import Argument, Kind, Range, Value
from stepwell_server.core.errors import InvalidSpec
from stepwell_server.core.policies.decisions import Contribution, Refuse
from stepwell_server.core.policies.policy import Policy, register, table

# Of an update that is s versions stale: what 1 / (1 + s) is raised to.
DAMPINGS = {"none": 0.0, "inverse": 1.0, "inverse_root": 0.5}
STALENESS_MAX = 1e9
DELAY_COMPENSATION_MAX = 1e6
# Versions that are kept at most.
BASES_MAX = 64


@register
class Asynchronous(Policy):
    """Nobody waits for others. What is staler than `staleness_max` is refused.

    damping: "inverse" lowers the learning rate of what is stale by 1 / (1 + staleness), as in Zhang et al. 2016,
    https://arxiv.org/abs/1511.05950, with the 1 so that a fresh update keeps its rate; "inverse_root" by its root.

    delay_compensation: the λ of DC-ASGD, Zheng et al. 2017, https://arxiv.org/abs/1609.08326, equation 10: a gradient g
    that was taken at w' becomes g + λ g ⊙ g ⊙ (w - w'). 0 leaves it as it is. For w' the server keeps `staleness_max`
    versions of the parameters, which it then needs; rows of tables are left as they are.
    """

    name = "async"
    arguments: ClassVar[Mapping[str, Argument]] = table(
        Argument("staleness_max", Kind.INTEGER, None, optional=True, range=Range(0, STALENESS_MAX)),
        Argument("damping", Kind.TEXT, "none", choices=tuple(DAMPINGS)),
        Argument("delay_compensation", Kind.NUMBER, 0.0, range=Range(0, DELAY_COMPENSATION_MAX)),
    )

    @property
    def delay_compensation(self) -> float:
        return float(self.values["delay_compensation"])  # type: ignore[arg-type]

    @property
    def bases_count(self) -> int:
        return self._integer("staleness_max")

    @classmethod
    def check(cls, values: Mapping[str, Value]) -> None:
        super().check(values)
        bound = values["staleness_max"]
        if values["delay_compensation"] and not (isinstance(bound, float) and bound <= BASES_MAX):
            raise InvalidSpec(
                f"policy 'async': delay_compensation with staleness_max {bound}, expected one of at most {BASES_MAX}: "
                "the server keeps so many versions of the parameters; give staleness_max",
                argument="staleness_max",
            )
        if values["delay_compensation"] and values["accumulate"] != 1.0:
            raise InvalidSpec(
                "policy 'async': delay_compensation with accumulate, expected one of them: what is accumulated has no "
                "one version at which it was taken; leave accumulate at 1",
                argument="accumulate",
            )

    @property
    def damps(self) -> bool:
        return self.values["damping"] != "none"

    @property
    def needs_base(self) -> bool:
        return self.delay_compensation > 0

    def _together(self) -> list[Contribution]:
        """First come, first served."""
        return [next(iter(self._waiting.values()))] if self._waiting else []

    def _refusal(self, contribution: Contribution) -> Refuse | None:
        staleness, bound = self.staleness(contribution), self._optional_integer("staleness_max")
        return None if bound is None or staleness <= bound else Refuse(contribution, staleness, bound)

    def _damping(self, contributions: Iterable[Contribution]) -> float:
        (contribution,) = contributions
        return float((1 + self.staleness(contribution)) ** -DAMPINGS[str(self.values["damping"])])
