"""Several updates as one: their gradients are averaged, each weighed by its samples, or by 1 where it names none.

An average is summed in order, each gradient times its share of the weights, in the state's own type; so the same
updates in the same order give the same bits. A parameter that an update has no gradient for counts as zeros there, as
in data-parallel training, and is left alone only where none of the updates has one. Gradients of a loss that was scaled
are unscaled one by one, since each may have another scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.device import Device, Vector
from stepwell_server.core.errors import InvalidValue, NonfiniteGradient
from stepwell_server.core.layout import LayoutGroup
from stepwell_server.core.update import Staging, UpdateHeader

_LOSS_SCALE = "loss_scale"


@dataclass
class Accumulated:
    """What was folded into the accumulator since the last version; the gradients themselves lie in a slot.

    weight: the sum of their weights, 0 while the accumulator is empty. without_gradient: indices of parameters that
    none of them has a gradient for. given: the numbers that came with them, times their weights.
    """

    weight: float = 0.0
    samples: float = 0.0
    without_gradient: frozenset[int] = frozenset()
    hyperparameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)

    def add(self, headers: Sequence[UpdateHeader]) -> "Accumulated":
        """With further updates."""
        result = self
        for header in headers:
            weight, without = weigh(header), frozenset(header.without_gradient)
            given = {name: value * weight for name, value in header.given.items() if name != _LOSS_SCALE}
            result = Accumulated(
                result.weight + weight,
                result.samples + header.samples,
                result.without_gradient & without if result.weight else without,
                _merge(result.hyperparameters, header.hyperparameters),
                {name: result.given.get(name, 0.0) + value for name, value in given.items()},
            )
        return result

    def header(self, like: UpdateHeader, unscaled: bool) -> UpdateHeader:
        """As the header of one update. like: for its identity and inputs. unscaled: whether the gradients are."""
        given = {name: value / self.weight for name, value in self.given.items()}
        return replace(
            like,
            without_gradient=tuple(sorted(self.without_gradient)),
            samples=self.samples,
            hyperparameters=self.hyperparameters,
            given=given | ({_LOSS_SCALE: 1.0} if unscaled else {}),
        )

    def to_data(self) -> dict[str, Any]:
        """Plain data, for a snapshot."""
        return {
            "weight": self.weight,
            "samples": self.samples,
            "without_gradient": sorted(self.without_gradient),
            "hyperparameters": {group: dict(values) for group, values in self.hyperparameters.items()},
            "given": dict(self.given),
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "Accumulated":
        return Accumulated(
            float(data["weight"]),
            float(data["samples"]),
            frozenset(map(int, data["without_gradient"])),
            {str(group): dict(values) for group, values in data["hyperparameters"].items()},
            {str(name): float(value) for name, value in data["given"].items()},
        )


def weigh(header: UpdateHeader) -> float:
    """How much an update counts beside others."""
    return header.samples or 1.0


def check_alike(run: str, first: UpdateHeader, other: UpdateHeader) -> None:
    """Raise InvalidValue for updates that cannot be combined."""
    if first.inputs != other.inputs or first.given.keys() != other.given.keys():
        raise InvalidValue(
            f"run '{run}': worker '{other.identity.worker}' sends the inputs {list(other.inputs)} and numbers "
            f"{sorted(other.given)}, worker '{first.identity.worker}' {list(first.inputs)} and {sorted(first.given)}, "
            "expected the same of all whose updates are combined; send the same"
        )


def combine(
    device: Device,
    stagings: Sequence[Staging],
    scales: Sequence[float],
    accumulator: Mapping[int, Vector],
    accumulated: Accumulated,
) -> Accumulated:
    """Make the first staged update the average of all, and of what the accumulator holds; returns what that is.

    scales: what each one's loss was multiplied by. accumulator: by group, left as it is; empty where it holds nothing.
    Raises NonfiniteGradient where finite gradients have a sum that is not.
    """
    whole = accumulated.add([staging.header for staging in stagings])
    _sum(device, stagings, scales, accumulator, 1.0 / whole.weight)
    _check_finite(device, stagings)
    return whole


def fold(
    device: Device,
    stagings: Sequence[Staging],
    scales: Sequence[float],
    accumulator: Mapping[int, Vector],
    accumulated: Accumulated,
) -> Accumulated:
    """Add staged updates to the accumulator; returns what it then holds. The first one's vectors are used up.

    Raises as `combine`; the accumulator is then as it was.
    """
    _sum(device, stagings, scales, {}, 1.0)
    _check_finite(device, stagings)
    for (group, _), transfer in stagings[0].transfers.items():
        layout, target = transfer.layout.state, accumulator[group]
        device.fold(target, transfer.vector, *_pieces(layout, None), 1.0 if accumulated.weight else 0.0, 1.0)
    return accumulated.add([staging.header for staging in stagings])


def _sum(
    device: Device,
    stagings: Sequence[Staging],
    scales: Sequence[float],
    accumulator: Mapping[int, Vector],
    factor: float,
) -> None:
    """Sum everything into the first one's vectors, each times its weight and the factor."""
    shares = [weigh(staging.header) / scale * factor for staging, scale in zip(stagings, scales, strict=True)]
    first = stagings[0]
    for (group, number), transfer in first.transfers.items():
        layout, target = transfer.layout.state, transfer.vector
        _clear_absent(device, first, group, layout, target)
        sources = [
            (staging.transfers[group, number].vector, staging.present_in(group), share)
            for staging, share in zip(stagings[1:], shares[1:], strict=True)
        ]
        if number == 0 and group in accumulator:
            sources.append((accumulator[group], None, factor))
        kept = shares[0]
        if kept != 1.0 and not (sources and sources[0][1] is None):
            # The next one does not pass over everything.
            device.fold(target, target, *_pieces(layout, None), kept, 0.0)
            kept = 1.0
        for source, present, share in sources:
            device.fold(target, source, *_pieces(layout, present), kept, share)
            kept = 1.0


def _check_finite(device: Device, stagings: Sequence[Staging]) -> None:
    first = stagings[0]
    for transfer in first.transfers.values():
        # What lies on a device is seen by its kernels alone.
        if not first.checks_finite or not isinstance(transfer.vector, np.ndarray):
            continue
        layout = transfer.layout.state
        if not device.finite_pieces(transfer.vector, *layout.pieces([(0, layout.packed_bytes)])):
            raise NonfiniteGradient(
                f"the sum of the gradients of {len(stagings)} updates is beyond what {transfer.vector.dtype} holds, "
                "expected a finite one; scale them down"
            )


def _clear_absent(device: Device, staging: Staging, group: int, layout: LayoutGroup, vector: Vector) -> None:
    """Nothing has arrived there: the vector holds whatever an earlier taker left."""
    present = staging.present_in(group)
    if present is not None:
        device.fold(vector, vector, *_pieces(layout, ~present), 0.0, 0.0)


def _pieces(layout: LayoutGroup, present: NDArray[np.bool_] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the present parameters begin and end; the whole vector for None."""
    if present is None:
        return np.zeros(1, np.int64), np.array([layout.elements], np.int64)
    return layout.begins[present], layout.begins[present] + layout.sizes[present]


def _merge(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> Mapping[str, Mapping[str, float]]:
    return {group: {**before.get(group, {}), **after.get(group, {})} for group in {**before, **after}}
