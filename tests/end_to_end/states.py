"""What tests compare: whole states, bit for bit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import stepwell

Arrays = dict[str, np.ndarray[Any, Any]]


def same_bits(got: Mapping[str, np.ndarray[Any, Any]], expected: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Assert that the arrays have the same names, shapes, dtypes and bits."""
    assert set(got) == set(expected)
    for name, array in got.items():
        assert array.shape == expected[name].shape, name
        assert array.dtype == expected[name].dtype, name
        assert array.tobytes() == expected[name].tobytes(), name


def same_state(got: stepwell.State, expected: stepwell.State) -> None:
    """Assert that two states are the same to the last bit."""
    same_bits(got.parameters, expected.parameters)
    assert set(got.slots) == set(expected.slots)
    for name, slots in got.slots.items():
        same_bits(slots, expected.slots[name])
    assert got.scalars == expected.scalars
    assert got.steps == expected.steps
    assert (got.version, got.samples) == (expected.version, expected.samples)
