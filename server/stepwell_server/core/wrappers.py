"""Wrappers: state and a rule around an optimizer, whichever it is.

A wrapper's body follows the optimizer's in the same pass: `param` is what the optimizer made, `before` what it started
from. Its slots and arguments bear its name: `ema_average`, `ema_decay`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, FRACTION, NON_NEGATIVE, Range, Value, unknown
from stepwell_server.core.compiler.definition import Definition, read_rule, register
from stepwell_server.core.compiler.functions import maximum
from stepwell_server.core.errors import InvalidSpec, UnknownWrapper

WRAPPERS: dict[str, Definition] = {}


@dataclass(frozen=True)
class Wrapping:
    """A wrapper with its values."""

    definition: Definition
    values: Mapping[str, Value]

    @property
    def prefix(self) -> str:
        return f"{self.definition.name}_"

    @property
    def prefixed_values(self) -> dict[str, Value]:
        return {self.prefix + name: value for name, value in self.values.items()}

    @property
    def spec(self) -> dict[str, Value]:
        return {"name": self.definition.name, **self.values}


def parse_wrappers(specs: Iterable[Mapping[str, Any]]) -> tuple[Wrapping, ...]:
    """Wrappers from plain data, [{"name": ..., arguments}].

    Raises UnknownWrapper, InvalidSpec and what values raise.
    """
    parsed: list[Wrapping] = []
    for spec in specs:
        name = str(spec.get("name", ""))
        if name not in WRAPPERS:
            raise unknown(UnknownWrapper, "wrapper", name, WRAPPERS)
        if any(other.definition.name == name for other in parsed):
            raise InvalidSpec(f"wrapper '{name}' is given twice, expected each at most once; leave one out")
        given = {key: value for key, value in spec.items() if key != "name"}
        parsed.append(Wrapping(WRAPPERS[name], WRAPPERS[name].resolve("", given)))
    return tuple(parsed)


def wrapper(
    *,
    reference: str,
    matches: str = "",
    scalars: Mapping[str, float] | None = None,
    init: Mapping[str, str] | None = None,
    ranges: Mapping[str, Range] | None = None,
    points: Mapping[str, Callable[..., Any]],
) -> Callable[[Callable[..., Any]], Definition]:
    """Make the decorated function a wrapper; a keyword lr without a default is the optimizer's."""

    def define(function: Callable[..., Any]) -> Definition:
        definition = read_rule(
            function,
            reference=reference,
            matches=matches,
            flavors={"": {}},
            scalars=scalars,
            init=init,
            ranges=ranges,
            integers=["sync_period", "overwrite_every", "start"],
            points=points,
            given=("step", "lr"),
            arrays=("param", "before"),
            kind="wrapper",
        )
        return register(definition, WRAPPERS)

    return define


def _slow(param: Any, slow: Any) -> Any:
    return slow


@wrapper(
    reference="Zhang, Lucas, Hinton & Ba 2019, Algorithm 1, https://arxiv.org/abs/1907.08610",
    matches="optax.lookahead",
    init={"slow": "param"},
    ranges={"sync_period": Range(1.0), "slow_step_size": FRACTION},
    points={"lookahead": _slow},
)
def lookahead(
    param: Any, before: Any, slow: Any, *, step: int, sync_period: int = 6, slow_step_size: float = 0.5
) -> Any:
    """Lookahead: every sync_period steps slow weights follow the fast ones, which then start anew from them."""
    slow = slow + slow_step_size * (param - slow) if step % sync_period == 0 else slow
    return slow if step % sync_period == 0 else param, slow


def _ema_average(param: Any, average: Any, *, step: int) -> Any:
    return param if step == 0 else average


@wrapper(
    reference="Polyak & Juditsky 1992; torch.optim.swa_utils.get_ema_avg_fn",
    matches="torch.optim.swa_utils.AveragedModel",
    ranges={"decay": DECAY_RATE, "overwrite_every": NON_NEGATIVE},
    points={"average": _ema_average},
)
def ema(param: Any, before: Any, average: Any, *, step: int, decay: float = 0.999, overwrite_every: int = 0) -> Any:
    """A running mean of the parameters; the first step copies them.

    overwrite_every: after so many steps the parameters become the mean (Keras); 0 never.
    """
    average = param if step == 1 else decay * average + (1 - decay) * param
    if overwrite_every:
        param = average if step % overwrite_every == 0 else param
    return param, average


@wrapper(
    reference="Izmailov et al. 2018, https://arxiv.org/abs/1803.05407",
    matches="torch.optim.swa_utils.AveragedModel",
    ranges={"start": NON_NEGATIVE},
    points={"average": _ema_average},
)
def swa(param: Any, before: Any, average: Any, *, step: int, start: int = 0) -> Any:
    """Stochastic weight averaging: the plain mean of the parameters after each step beyond start."""
    average = param if step <= start + 1 else average + (param - average) / maximum(step - start, 1)
    return param, average


def _schedule_free_evaluation(param: Any, z: Any, *, beta1: float) -> Any:
    return (param - (1 - beta1) * z) / beta1


@wrapper(
    reference="Defazio et al. 2024, https://arxiv.org/abs/2405.15682",
    matches="optax.contrib.schedule_free",
    scalars={"lr_max": 0.0, "weight_sum": 0.0},
    init={"z": "param"},
    ranges={"beta1": Range(0.0, 1.0, minimum_open=True), "weight_lr_power": NON_NEGATIVE},
    points={"evaluation": _schedule_free_evaluation},
)
def schedule_free(
    param: Any,
    before: Any,
    z: Any,
    lr_max: float,
    weight_sum: float,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    weight_lr_power: float = 2.0,
) -> Any:
    """Schedule-free: the optimizer moves z; gradients are taken between z and the mean of all z.

    The mean is the point to evaluate: pull it as "evaluation". The optimizer's own momentum is best off.
    """
    lr_max = maximum(lr_max, lr)
    weight_sum = weight_sum + lr_max**weight_lr_power
    share = lr_max**weight_lr_power / weight_sum if weight_sum > 0 else 0.0
    mean = (before - (1 - beta1) * z) / beta1
    z = z + (param - before)
    mean = mean + share * (z - mean)
    return beta1 * mean + (1 - beta1) * z, z, lr_max, weight_sum
