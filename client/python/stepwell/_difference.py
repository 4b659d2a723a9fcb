"""What local steps have changed, as something to push."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stepwell._layout import listed
from stepwell.errors import InvalidGradient


def difference(start: Mapping[str, Any], end: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """{name: start - end} for the names of `end`: what a worker sends after steps of its own.

    The policy sync with `local_steps` averages what the workers send, and the optimizer takes it as it takes gradients:
    sgd with lr 1 makes the workers' mean of it, momentum and adam go on from there (FedOpt, Reddi et al. 2021). Between
    two rounds a worker makes so many steps with an optimizer of its own, on copies:

        start = run.pull()
        while training:
            end = local_steps(start)
            start = run.step(stepwell.difference(start, end))

    start: parameters as they came; end: the same ones afterwards, or some of them, such as those that are not frozen.
    Raises InvalidGradient where `start` lacks a name of `end` or has it in another shape.
    """
    missing = [str(name) for name in end if name not in start]
    if missing:
        raise InvalidGradient(
            f"difference: got {listed(missing)} at the end alone, expected names of the start, "
            f"{listed(map(str, start))}; leave them out"
        )
    differences = {}
    for name, value in end.items():
        before, after = np.asarray(start[name]), np.asarray(value)
        if before.shape != after.shape:
            raise InvalidGradient(
                f"difference: '{name}' has shape {after.shape} at the end, expected {before.shape} as at the start; "
                "give it in the parameter's own shape"
            )
        differences[name] = np.asarray(before - after)
    return differences
