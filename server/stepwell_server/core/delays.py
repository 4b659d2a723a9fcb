"""Gradients that were taken at older parameters, corrected for what has changed since (DC-ASGD)."""

from collections import deque
from typing import TYPE_CHECKING, Any

from stepwell_server.core.compiler.definition import read_rule
from stepwell_server.core.compiler.program import Program, specialise
from stepwell_server.core.devices.device import Device
from stepwell_server.core.group import GroupCommit, Launch
from stepwell_server.core.memory import Vector

if TYPE_CHECKING:
    from stepwell_server.core.run import Hold


def _compensated(grad: Any, param: Any, base: Any, *, delay_compensation: float = 0.0) -> Any:
    """The gradient, and its square times the way that the parameters have gone since it was taken."""
    return grad + delay_compensation * grad * grad * (param - base)


COMPENSATION: Program = specialise(
    read_rule(
        _compensated,
        reference="Zheng et al. 2017, https://arxiv.org/abs/1609.08326, equation 10",
        flavors={"": {}},
        arrays=("grad", "param"),
        inputs={"base": "required"},
        target="grad",
    ),
    {"delay_compensation": 1.0},
)


class Bases:
    """The latest versions' parameters, the present one among them. Each is held, so that commits leave it alone."""

    def __init__(self) -> None:
        self._kept: deque[Hold] = deque()

    def keep(self, hold: "Hold", count: int) -> None:
        """Keep one more version, and at most so many before it."""
        self._kept.append(hold)
        while len(self._kept) > count + 1:
            self._kept.popleft().release()

    def clear(self) -> None:
        """Let all go."""
        while self._kept:
            self._kept.popleft().release()

    @property
    def newest(self) -> int | None:
        """The version that was kept last."""
        return self._kept[-1].version if self._kept else None

    def find(self, version: int) -> list[Vector] | None:
        """The parameters of a version, by group; None if it is not kept, or the newest."""
        for hold in list(self._kept)[:-1]:
            if hold.version == version:
                return [group[""].vector for group in hold.groups]
        return None

    @property
    def size_bytes(self) -> int:
        """What the versions before the present one take."""
        vectors = {id(group[""]): group[""].vector for hold in list(self._kept)[:-1] for group in hold.groups}
        return sum(vector.nbytes for vector in vectors.values())


def compensate(device: Device, group: GroupCommit, base: Vector, factor: float) -> None:
    """Correct a commit's gradient, in place. base: the parameters at which it was taken."""
    values = {"delay_compensation": factor}
    launch = Launch(device, group.group.layout.state, COMPENSATION, values, group.steps, {}, group.present, {})
    launch.finish()
    launch.run({"param": group.group.vectors[""].vector, "grad": group.inputs["grad"], "base": base})
