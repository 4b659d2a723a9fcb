"""What PyTorch calls an optimizer's hyperparameters, and what the run does."""

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch

from stepwell.errors import InvalidValue

CLASSES: Final[Mapping[str, str]] = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "asgd": "ASGD",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}
"""The optimizers whose groups and state are those of a class in torch.optim."""

# How and where torch.optim computes, and what its schedulers note in a group: nothing that a run has.
_LOCAL: Final = frozenset(
    {"capturable", "differentiable", "foreach", "fused", "params", "param_names", "initial_lr", "max_lr", "min_lr"}
    | {"max_momentum", "base_momentum", "swa_lr", "name"}
)


def defaults_of(optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A group's defaults, with every key that the class in torch.optim has; other optimizers have what is given."""
    if optimizer not in CLASSES:
        return dict(given)
    make = getattr(torch.optim, CLASSES[optimizer])
    named = dict(given)
    if "beta1" in named or "beta2" in named:
        named["betas"] = (named.pop("beta1", 0.9), named.pop("beta2", 0.999))
    known = inspect.signature(make).parameters
    own = {name: value for name, value in named.items() if name in known}
    more = {name: value for name, value in named.items() if name not in known}
    defaults: dict[str, Any] = make([torch.zeros(1, requires_grad=True)], **own).defaults
    return defaults | more


def hyperparameters_of(optimizer: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's hyperparameters by the run's names; tensors become numbers."""
    found: dict[str, Any] = {}
    for name, value in group.items():
        if name in _LOCAL or (name == "decoupled_weight_decay" and optimizer == "adamw"):
            continue
        if name == "betas":
            found["beta1"], found["beta2"] = (_plain(beta) for beta in value)
        else:
            found[name] = _plain(value)
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any], group: int) -> dict[str, float]:
    """The numbers that are no longer what they were. Raises InvalidValue where something else has changed."""
    changed = {name: value for name, value in now.items() if name not in before or before[name] != value}
    for name, value in changed.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidValue(
                f"param_groups[{group}]['{name}'] is {value!r:.100}, expected {before.get(name)!r:.100}, as when the "
                "run was created; only numbers can change in a live run"
            )
    return changed


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
