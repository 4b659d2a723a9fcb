"""A run's state in the layout of torch.optim's state_dict, and back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from stepwell._state import State
from stepwell.errors import InvalidValue
from stepwell.torch._parameters import Array, Place


@dataclass(frozen=True)
class Entry:
    """What one class of torch.optim keeps for a parameter. Slots and scalars bear the same names on both sides.

    optional: slots that are there with some hyperparameters only. scalars: the names of one-element tensors, with what
    they begin with: a number, or the hyperparameter of that name. counts: whether there is a "step". from_start:
    whether PyTorch has the entry before the first step. own: whether torch.optim has no such class; then it is
    everything that the run keeps.
    """

    slots: tuple[str, ...]
    optional: tuple[str, ...] = ()
    scalars: Mapping[str, float | str] = field(default_factory=dict)
    counts: bool = True
    from_start: bool = False
    own: bool = False


_ADAM: Final = Entry(("exp_avg", "exp_avg_sq"), ("max_exp_avg_sq",))

ENTRIES: Final[Mapping[str, Entry]] = {
    "adadelta": Entry(("square_avg", "acc_delta")),
    "adagrad": Entry(("sum",), from_start=True),
    "adam": _ADAM,
    "adamax": Entry(("exp_avg", "exp_inf")),
    "adamw": _ADAM,
    "asgd": Entry(("ax",), scalars={"eta": "lr", "mu": 1.0}),
    "nadam": Entry(("exp_avg", "exp_avg_sq"), scalars={"mu_product": 1.0}),
    "radam": Entry(("exp_avg", "exp_avg_sq")),
    "rmsprop": Entry(("square_avg",), ("momentum_buffer", "grad_avg")),
    "sgd": Entry((), ("momentum_buffer",), counts=False),
}


def entry_of(optimizer: str, state: State, name: str) -> Entry:
    """What there is of one parameter."""
    if optimizer in ENTRIES:
        return ENTRIES[optimizer]
    scalars = dict.fromkeys(state.scalars[name], 0.0)
    return Entry(tuple(state.slots[name]), scalars=scalars, from_start=True, own=True)


def export(optimizer: str, state: State, place: Place, group: Mapping[str, Any]) -> dict[str, Any]:
    """One parameter's state as torch.optim has it; empty before its first step. Slots of 16 bits are float32."""
    entry = entry_of(optimizer, state, place.name)
    steps = state.steps[place.name]
    if not steps and not entry.from_start:
        return {}
    slots, scalars = state.slots[place.name], state.scalars[place.name]
    exported: dict[str, Any] = {"step": _scalar(steps)} if entry.counts else {}
    for name in (*entry.slots, *entry.optional):
        if name in slots and (entry.own or name != "momentum_buffer" or group["momentum"]):
            exported[name] = torch.from_numpy(slots[name]).to(place.device)
    make = torch.tensor if entry.own else _scalar
    exported |= {name: make(np.float64(scalars[name])) for name in entry.scalars}
    return exported


def imported(
    optimizer: str, state: State, places: list[Place], given: Mapping[str, Mapping[str, Any]], groups: list[Any]
) -> State:
    """The run's state with each parameter's moments, steps and values as they are given; values are the model's own.

    given: entries of torch.optim by parameter's name; one without begins anew. Raises InvalidValue where something
    is missing or has another shape.
    """
    parameters, slots = dict(state.parameters), {name: dict(found) for name, found in state.slots.items()}
    scalars, steps = {name: dict(found) for name, found in state.scalars.items()}, dict(state.steps)
    for place in places:
        name, known = place.name, given.get(place.name) or {}
        entry = entry_of(optimizer, state, name)
        missing = {"step", *entry.slots, *entry.scalars} - known.keys() if entry.own else None
        if missing:
            raise InvalidValue(
                f"state of '{name}' has no '{min(missing)}', expected one; load the state of the same optimizer with "
                "the same hyperparameters"
            )
        parameters[name] = values_of(place, state)
        has_momentum = known.get("momentum_buffer") is not None
        steps[name] = int(known.get("step", 0)) if entry.counts else int(has_momentum)
        for slot in (*entry.slots, *entry.optional):
            if slot in slots[name]:
                start = groups[place.group].get("initial_accumulator_value", 0.0) if slot == "sum" else 0.0
                slots[name][slot] = _slot(known, place, slot, slots[name][slot], start)
        for scalar, start in entry.scalars.items():
            begin = float(groups[place.group][start]) if isinstance(start, str) else start
            scalars[name][scalar] = float(known.get(scalar, begin))
    return State(parameters, slots, scalars, steps, state.version, state.samples)


def fingerprint(entries: Mapping[Any, Mapping[str, Any]]) -> bytes:
    """Tells whether a state_dict's state is still what it was."""
    made = hashlib.blake2b(digest_size=16)
    for index, entry in entries.items():
        for name, value in entry.items():
            made.update(repr((index, name)).encode())
            if torch.is_tensor(value):
                made.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
            else:
                made.update(repr(value).encode())
    return made.digest()


def values_of(place: Place, state: State) -> Array:
    """The model's own values as the run's state has them."""
    dtype = state.parameters[place.name].dtype
    wide = torch.float64 if dtype == np.float64 else torch.float32
    array: Array = place.parameter.detach().to("cpu", wide).contiguous().numpy()
    return array


def _slot(known: Mapping[str, Any], place: Place, slot: str, present: Array, start: float) -> Array:
    value = known.get(slot)
    if value is None:
        if known and slot != "momentum_buffer":
            raise InvalidValue(
                f"state of '{place.name}' has {', '.join(known)}, expected '{slot}', too; load the state of the same "
                "optimizer with the same hyperparameters"
            )
        return np.full_like(present, start)
    wide = torch.float64 if present.dtype == np.float64 else torch.float32
    array: Array = value.detach().to("cpu", wide).contiguous().numpy()
    if array.shape != present.shape:
        raise InvalidValue(
            f"state '{slot}' of '{place.name}' has shape {array.shape}, expected {present.shape}; load the state of "
            "the same model"
        )
    return array


def _scalar(number: float) -> Any:
    """A number as torch.optim keeps it."""
    wide = torch.get_default_dtype() is torch.float64
    return torch.tensor(float(number), dtype=torch.float64 if wide else torch.float32)
