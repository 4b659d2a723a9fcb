"""Which learning rate and schedule a run of the demo has."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from stepwell_server.demo.options import TrainingOptions

ScheduleSpec: TypeAlias = dict[str, Any]

LEARNING_RATES: Final[Mapping[str, float | None]] = MappingProxyType(
    {
        "adadelta": 3.0,
        "adadelta_ratio": None,  # it takes none
        "adagrad": 0.1,
        "adam": 5e-3,
        "adamax": 1e-2,
        "adamw": 5e-3,
        "amsgrad": 5e-3,
        "nadam": 5e-3,
        "nag": 0.1,
        "rmsprop": 3e-3,
        "sgd": 0.5,
    }
)
"""By optimizer: what reaches 98% of the test images with the other defaults."""

LEARNING_RATE: Final = 1e-3
"""For an optimizer that is not listed above."""

WORKERS_MAX: Final = 64
UPDATES_MAX: Final = 100_000
"""As far as a schedule can be previewed."""

POLICIES: Final = ("async", "bounded", "sync")
SLOW_MAX: Final = 1000.0

WARMUP_SHARE: Final = 0.1
LOW_SHARE: Final = 0.1
"""The lowest value of the schedules that cycle, as a share of the highest."""


def _warmup(updates: int, inner: Callable[[int], ScheduleSpec]) -> ScheduleSpec:
    ramp = round(WARMUP_SHARE * updates)
    return {"name": "warmup", "num_warmup_steps": ramp, "schedules": [inner(updates - ramp)]}


def _cosine(updates: int) -> ScheduleSpec:
    # hold: workers that are a step late stay at the end of the wave instead of climbing the next one.
    return {"name": "cosine", "t_max": updates, "hold": True}


def _linear(updates: int) -> ScheduleSpec:
    return {"name": "linear", "start_factor": 1.0, "end_factor": 0.0, "total_iters": updates}


SCHEDULES: Final[Mapping[str, Callable[[float, int], ScheduleSpec]]] = MappingProxyType(
    {
        "warmup_cosine": lambda lr, updates: _warmup(updates, _cosine),
        "warmup_linear": lambda lr, updates: _warmup(updates, _linear),
        "constant": lambda lr, updates: {"name": "constant"},
        "cosine": lambda lr, updates: _cosine(updates),
        # Waves of 1, 2 and 4 parts.
        "cosine_restarts": lambda lr, updates: {"name": "cosine_restarts", "t_0": updates / 7, "t_mult": 2},
        "cyclic": lambda lr, updates: {
            "name": "cyclic",
            "base_lr": LOW_SHARE * lr,
            "max_lr": lr,
            "step_size_up": updates / 8,
            "mode": "triangular2",
        },
        "exponential": lambda lr, updates: {"name": "exponential", "gamma": 0.01 ** (1 / updates)},
        "linear": lambda lr, updates: _linear(updates),
        "multistep": lambda lr, updates: {"name": "multistep", "milestones": [updates / 2, 3 * updates / 4]},
        "step": lambda lr, updates: {"name": "step", "step_size": updates / 3},
        "triangular": lambda lr, updates: {
            "name": "triangular",
            "period": updates / 4,
            "eta_min": LOW_SHARE * lr,
            "eta_max": lr,
        },
    }
)
"""By name: the spec for a learning rate and a number of updates, which it spans."""


def learning_rate(options: TrainingOptions) -> float | None:
    """The one that was asked for, or the optimizer's; None where it has none."""
    return LEARNING_RATES.get(options.optimizer, LEARNING_RATE) if options.lr is None else options.lr


def schedule(options: TrainingOptions) -> ScheduleSpec | None:
    """The learning rate's schedule; None where there is no learning rate."""
    lr = learning_rate(options)
    return None if lr is None else SCHEDULES[options.schedule](lr, options.versions)


def policy(options: TrainingOptions) -> dict[str, Any]:
    """As the run has it."""
    return {"name": options.policy, **({"lead_max": options.bound} if options.policy == "bounded" else {})}


def create_run_arguments(options: TrainingOptions) -> dict[str, Any]:
    """What `client.create_run` is given beside the name and the parameters."""
    lr, scheduled = learning_rate(options), schedule(options)
    return {
        "optimizer": options.optimizer,
        "flavor": options.flavor,
        "hyperparameters": {} if lr is None else {"lr": lr},
        "schedules": {} if scheduled is None else {"lr": scheduled},
        "policy": policy(options),
        "encodings": {
            direction: encoding(text)
            for direction, text in (
                ("gradients", options.gradient_encoding),
                ("parameters", options.parameter_encoding),
            )
            if text is not None
        },
    }


def encoding(text: str) -> dict[str, Any]:
    """An encoding as it is written on the command line, NAME or NAME:KEY=NUMBER,KEY=NUMBER. Raises ValueError."""
    name, _, rest = text.partition(":")
    arguments = [part.partition("=") for part in rest.split(",") if part]
    return {"name": name, **{key: float(value) for key, _, value in arguments}}


def find_objection(options: TrainingOptions) -> str | None:
    """What is wrong with options that the server never sees; the rest is for the server to say."""
    if options.schedule not in SCHEDULES:
        return f"got schedule '{options.schedule}', expected one of {', '.join(SCHEDULES)}"
    if options.policy not in POLICIES:
        return f"got policy '{options.policy}', expected one of {', '.join(POLICIES)}"
    if not 1 <= options.slow <= SLOW_MAX:
        return f"got slow {options.slow:g}, expected 1 to {SLOW_MAX:g}: how many times as long a step takes"
    for name in ("workers", "steps", "batch_size", "bound"):
        if (value := getattr(options, name)) < 1:
            return f"got {name} {value}, expected 1 or more"
    if options.workers > WORKERS_MAX:
        return f"got workers {options.workers}, expected {WORKERS_MAX} or fewer: each has a process"
    if options.updates > UPDATES_MAX:
        return f"got {options.workers} workers with {options.steps:,} steps, expected {UPDATES_MAX:,} in all or fewer"
    for text in (options.gradient_encoding, options.parameter_encoding):
        try:
            encoding(text or "")
        except ValueError:
            return f"got encoding '{text}', expected a name, or one with numbers such as top_k:density=0.05"
    return None
