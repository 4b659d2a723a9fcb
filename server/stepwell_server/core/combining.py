"""Several updates as one: their gradients are averaged, each weighed by its samples, or by 1 where it names none.

An average is summed in order, each gradient times its weight, in the state's own type, and then divided by the
weights' sum; so the same updates in the same order give the same bits, whether they were summed at once or as they
came. A parameter that an update has no gradient for counts as zeros there, as in data-parallel training, and is left
alone only where none of the updates has one. Gradients of a loss that was scaled are unscaled one by one, since each
may have another scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.device import Device, Vector
from stepwell_server.core.errors import InvalidValue, NonfiniteGradient
from stepwell_server.core.layout import LayoutGroup
from stepwell_server.core.tables.stored import accumulated_data
from stepwell_server.core.tables.tables import Brought
from stepwell_server.core.update import Key, Staging, UpdateHeader

_LOSS_SCALE = "loss_scale"


@dataclass
class Accumulated:
    """What was folded into the accumulator since the last version; the gradients themselves lie in a slot.

    weight: the sum of their weights, 0 while the accumulator is empty. without_gradient: indices of parameters that
    none of them has a gradient for. given: the numbers that came with them, times their weights. rows: what they bring
    to tables, each with its weight as its factor. rows_only: whether that is all.
    """

    weight: float = 0.0
    samples: float = 0.0
    without_gradient: frozenset[int] = frozenset()
    hyperparameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[Brought, ...] = ()
    rows_only: bool = False

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
                self.rows,
                header.rows_only,
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
            "rows": accumulated_data(self.rows),
            "rows_only": self.rows_only,
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "Accumulated":
        return Accumulated(
            float(data["weight"]),
            float(data["samples"]),
            frozenset(map(int, data["without_gradient"])),
            {str(group): dict(values) for group, values in data["hyperparameters"].items()},
            {str(name): float(value) for name, value in data["given"].items()},
            rows_only=bool(data["rows_only"]),
        )


def weigh(header: UpdateHeader) -> float:
    """How much an update counts beside others."""
    return header.samples or 1.0


def check_alike(run: str, first: UpdateHeader, other: UpdateHeader) -> None:
    """Raise InvalidValue for updates that cannot be combined."""
    if first.rows_only != other.rows_only:
        whole, rows = (other, first) if first.rows_only else (first, other)
        raise InvalidValue(
            f"run '{run}': worker '{rows.identity.worker}' sends rows of tables and nothing else, worker "
            f"'{whole.identity.worker}' gradients, too, expected the same of all whose updates are combined; send rows "
            "and gradients in one update"
        )
    if first.inputs != other.inputs or first.given.keys() != other.given.keys():
        raise InvalidValue(
            f"run '{run}': worker '{other.identity.worker}' sends the inputs {list(other.inputs)} and numbers "
            f"{sorted(other.given)}, worker '{first.identity.worker}' {list(first.inputs)} and {sorted(first.given)}, "
            "expected the same of all whose updates are combined; send the same"
        )


def check_fits(run: str, accumulated: Accumulated, header: UpdateHeader) -> None:
    """Raise InvalidValue for an update that cannot be combined with what is accumulated."""
    numbers = header.given.keys() - {_LOSS_SCALE}
    if accumulated.weight and (accumulated.rows_only != header.rows_only or accumulated.given.keys() != numbers):
        raise InvalidValue(
            f"run '{run}': worker '{header.identity.worker}' sends the numbers {sorted(numbers)} and "
            f"{'rows alone' if header.rows_only else 'gradients'}, those before it {sorted(accumulated.given)} and "
            f"{'rows alone' if accumulated.rows_only else 'gradients'}, expected the same of all whose updates are "
            "combined; send the same"
        )


def combine(
    device: Device,
    stagings: Sequence[Staging],
    scales: Sequence[float],
    accumulator: Mapping[int, Vector],
    accumulated: Accumulated,
) -> Accumulated:
    """Make the first staged update the average of what the accumulator holds and of all, in order; what that is.

    scales: what each one's loss was multiplied by. accumulator: by group, left as it is; empty where it holds nothing.
    The rows of what is returned have their shares as factors.
    Raises NonfiniteGradient where finite gradients have a sum that is not.
    """
    whole = accumulated.add([staging.header for staging in stagings])
    shares = [weigh(staging.header) / scale for staging, scale in zip(stagings, scales, strict=True)]
    first = stagings[0]
    for (group, number), transfer in first.transfers.items():
        layout, target = transfer.layout.state, transfer.vector
        _add(device, first, (group, number), shares[0], None if number else accumulator.get(group))
        for staging, share in zip(stagings[1:], shares[1:], strict=True):
            source, present = staging.transfers[group, number].vector, staging.present_in(group)
            device.fold(target, source, *_pieces(layout, present), 1.0, share)
        if whole.weight != 1.0:
            device.fold(target, target, *_pieces(layout, None), 1.0 / whole.weight, 0.0)
    _check_finite(device, first, len(stagings))
    rows = (*accumulated.rows, *_rows(stagings, scales))
    return replace(whole, rows=tuple(Brought(each.rows, each.factor / whole.weight) for each in rows))


def fold(
    device: Device, staging: Staging, scale: float, accumulator: Mapping[int, Vector], accumulated: Accumulated
) -> Accumulated:
    """Make a staged update the sum of what the accumulator holds and of itself; returns what that is.

    accumulator: as of `combine`. The sum takes its place: then whatever is folded later, the bits are those of one sum
    in the same order. Raises as `combine`.
    """
    for group, number in staging.transfers:
        assert number == 0, "what has further inputs is not folded"
        _add(device, staging, (group, number), weigh(staging.header) / scale, accumulator.get(group))
    _check_finite(device, staging, 1)
    added = accumulated.add([staging.header])
    return replace(added, rows=(*accumulated.rows, *_rows([staging], [scale])))


def _add(device: Device, staging: Staging, key: Key, share: float, before: Vector | None) -> None:
    """Make a staged vector itself times its share, and the sum before."""
    transfer = staging.transfers[key]
    layout, target = transfer.layout.state, transfer.vector
    _clear_absent(device, staging, key[0], layout, target)
    if before is not None:
        device.fold(target, target, *_pieces(layout, None), 1.0, share, base=before)
    elif share != 1.0:
        device.fold(target, target, *_pieces(layout, None), share, 0.0)


def _rows(stagings: Sequence[Staging], scales: Sequence[float]) -> list[Brought]:
    return [
        Brought(staging.rows, weigh(staging.header) / scale)
        for staging, scale in zip(stagings, scales, strict=True)
        if staging.rows is not None
    ]


def _check_finite(device: Device, staging: Staging, count: int) -> None:
    for transfer in staging.transfers.values():
        # What lies on a device is seen by its kernels alone.
        if not staging.checks_finite or not isinstance(transfer.vector, np.ndarray):
            continue
        layout = transfer.layout.state
        if not device.finite_pieces(transfer.vector, *layout.pieces([(0, layout.packed_bytes)])):
            raise NonfiniteGradient(
                f"the sum of the gradients of {count} updates and of what was accumulated is beyond what "
                f"{transfer.vector.dtype} holds, expected a finite one; scale them down"
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
