"""Which versions are installed of what numerics depend on."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

PACKAGES = (
    "numpy",
    "numba",
    "torch",
    "jax",
    "optax",
    "keras",
    "transformers",
    "schedulefree",
    "prodigyopt",
    "cupy",
)


@cache
def version(package: str) -> str:
    return metadata.version(package)


def versions() -> dict[str, str]:
    """By package, those that are installed; Python first."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
