"""What happens to a commit's gradients before the optimizer sees them, and how large they and the parameters are."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.compiler.definition import GIVEN_NUMBERS, read_rule
from stepwell_server.core.compiler.program import Program, specialise
from stepwell_server.core.devices.device import Device
from stepwell_server.core.group import GroupCommit, Launch, reduce_together
from stepwell_server.core.layout import LayoutGroup
from stepwell_server.core.memory import Vector
from stepwell_server.core.transforms import Transforming


def _norms(grad: Any, l1: float, l2: float, maximum_norm: float) -> Any:
    """The norms of a vector for p = 1, 2 and infinity."""
    return grad, sum_all(abs(grad)), norm(grad), max_abs(grad)  # type: ignore[name-defined]  # noqa: F821


NORMS: Program = specialise(
    read_rule(
        _norms,
        reference="",
        flavors={"": {}},
        arrays=("grad",),
        target="grad",
        scope="group",
        scalars={"l1": 0.0, "l2": 0.0, "maximum_norm": 0.0},
    ),
    {},
)


def transform_program(transforming: Transforming) -> Program:
    """The compiled form of a transform that is not array code."""
    return _transform_program(transforming.definition, tuple(sorted(transforming.values.items())))


@lru_cache(maxsize=256)
def _transform_program(definition: Any, values: tuple[tuple[str, Any], ...]) -> Program:
    return specialise(definition, dict(values))


def transform_gradients(
    device: Device, groups: Sequence[GroupCommit], transforming: Transforming, given: Mapping[str, float]
) -> None:
    """Run one transform on the gradients of all groups, in place. Its slots are the commit's copies."""
    if transforming.definition.arrays is not None:
        for group in groups:
            _transform_arrays(device, group, transforming, given)
        return
    program = transform_program(transforming)
    launches = [
        (
            Launch(
                device, group.group.layout.state, program, transforming.values, group.steps, {}, group.present, given
            ),
            _arrays(group, transforming),
        )
        for group in groups
    ]
    if program.scope:
        for together in [launches] if program.scope == "group" else [[launch] for launch in launches]:
            reduce_together(together, program.scope)
    for launch, arrays in launches:
        launch.finish()
        launch.run(arrays)


def measure(
    device: Device, vectors: Sequence[tuple[LayoutGroup, Vector, NDArray[np.bool_] | None]]
) -> tuple[float, ...]:
    """The norms, for p = 1, 2 and infinity, of vectors laid out as groups, all together.

    Each with which of its parameters count, None for all.
    """
    launches = []
    for layout, vector, present in vectors:
        count = len(layout.indices)
        scalars = dict.fromkeys(NORMS.scalars, np.zeros(count))
        launch = Launch(device, layout, NORMS, {}, np.zeros(count, np.int64), scalars, present, {})
        launches.append((launch, {"param": vector, "grad": vector}))
    reduce_together(launches, "group")
    return next((row.reductions for launch, _ in launches for row in launch.rows), (0.0, 0.0, 0.0))


def _transform_arrays(
    device: Device, group: GroupCommit, transforming: Transforming, given: Mapping[str, float]
) -> None:
    definition, layout = transforming.definition, group.group.layout
    assert definition.arrays is not None
    arguments = {name: transforming.values[name] for name in definition.arguments}
    for place in group.places:
        told = dict.fromkeys(GIVEN_NUMBERS, math.nan) | dict(given)
        told |= {"step": int(group.steps[place]), "index": layout.indices[place]}
        grad = layout.state.view(group.inputs["grad"], place)
        param = layout.state.view(group.group.vectors[""].vector, place)
        grad[...] = definition.arrays.function(
            device.xp, grad, param, **arguments, **{name: told[name] for name in definition.given}
        )


def _arrays(group: GroupCommit, transforming: Transforming) -> dict[str, Vector]:
    slots = {name: group.copies[transforming.prefix + name] for name in transforming.definition.state}
    return {"param": group.group.vectors[""].vector, "grad": group.inputs["grad"], **slots}
