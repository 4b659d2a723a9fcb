"""JAX as optax and Keras run on it here."""

from typing import Any

import pytest


def import_jax() -> Any:
    """JAX in float64, with little optimisation: compiling it takes most of these tests' time. Skips without JAX."""
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    return jax
