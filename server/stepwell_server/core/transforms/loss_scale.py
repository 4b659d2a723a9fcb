"""Loss scaling for half precision: clients multiply the loss, the run divides the gradients and steers the factor."""

from dataclasses import dataclass, replace
from typing import Any

from stepwell_server.core.arguments import COUNT, POSITIVE, Range
from stepwell_server.core.compiler.definition import Definition
from stepwell_server.core.transforms.definition import Transforming, transform


@transform(
    reference="Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740",
    matches="torch.amp.GradScaler",
    ranges={
        "init_scale": POSITIVE,
        "growth_factor": Range(1.0, minimum_open=True),
        "backoff_factor": Range(0.0, 1.0, minimum_open=True, maximum_open=True),
        "growth_interval": COUNT,
    },
)
def unscale(
    grad: Any,
    *,
    loss_scale: float,
    init_scale: float = 65536.0,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: float = 2000.0,
) -> Any:
    """Divide by the factor that the loss was multiplied by, and steer that factor.

    An update that is not finite is skipped and makes the factor smaller; growth_interval good ones in a row make it
    larger. Each answer tells the factor to use next.
    """
    return grad / loss_scale


@dataclass(frozen=True)
class LossScale:
    """Where a run's factor stands. good_count: commits in a row since it last changed."""

    scale: float
    good_count: int = 0

    @staticmethod
    def start(transforming: Transforming) -> "LossScale":
        return LossScale(float(transforming.values["init_scale"]))  # type: ignore[arg-type]

    def after(self, transforming: Transforming, finite: bool) -> "LossScale":
        """The factor after an update."""
        values: Any = transforming.values
        if not finite:
            return LossScale(self.scale * values["backoff_factor"])
        if self.good_count + 1 < values["growth_interval"]:
            return replace(self, good_count=self.good_count + 1)
        return LossScale(self.scale * values["growth_factor"])


def is_unscale(definition: Definition) -> bool:
    return definition is unscale
