"""A pytree's leaves as the run's named parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import jax

from stepwell._packing import WIDENED
from stepwell.errors import InvalidValue

ALONE: Final = "params"
"""The name of a pytree that is one array."""


@dataclass(frozen=True)
class Parameters:
    """What a run was created with: the tree, and each leaf's shape and dtype by name, in the tree's order."""

    tree: Any
    leaves: Mapping[str, jax.ShapeDtypeStruct]

    @classmethod
    def of(cls, params: Any) -> Self:
        """Raises InvalidValue where two leaves get the same name, or one is no array of floats."""
        found = named(params)
        if not found:
            raise InvalidValue("got params without an array, expected one at least")
        for name, leaf in found.items():
            if leaf.dtype.name not in WIDENED:
                raise InvalidValue(
                    f"parameter '{name}' is {leaf.dtype.name}, expected one of {', '.join(WIDENED)}; leave it out of "
                    "params, or use optax.masked"
                )
        leaves = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in found.items()}
        return cls(jax.tree.structure(params), leaves)

    def check(self, params: Any) -> dict[str, Any]:
        """The leaves by name. Raises InvalidValue where one is no longer what it was."""
        found = named(params)
        self._check_names(found, "parameter")
        for name, leaf in found.items():
            expected = self.leaves[name]
            _check(f"parameter '{name}' has shape", leaf.shape, expected.shape)
            _check(f"parameter '{name}' has dtype", leaf.dtype.name, expected.dtype.name)
        return found

    def gradients(self, grads: Any) -> dict[str, Any]:
        """The gradients by name, None where there is none. Raises InvalidValue where one does not fit."""
        found = named(grads, keep_none=True)
        # What is None in params, too, is no parameter.
        found = {name: leaf for name, leaf in found.items() if leaf is not None or name in self.leaves}
        self._check_names(found, "gradient")
        for name, leaf in found.items():
            if leaf is not None:
                shape, dtype = self.leaves[name].shape, self.leaves[name].dtype.name
                _check(f"gradient of '{name}' has shape", leaf.shape, shape)
                _check(f"gradient of '{name}' has dtype", leaf.dtype.name, dtype, *WIDENED[dtype])
        return found

    def unflatten(self, leaves: Mapping[str, Any]) -> Any:
        """The tree of these leaves."""
        return jax.tree.unflatten(self.tree, [leaves[name] for name in self.leaves])

    def _check_names(self, found: Mapping[str, Any], what: str) -> None:
        missing, more = self.leaves.keys() - found.keys(), found.keys() - self.leaves.keys()
        if missing or more:
            got = f"no {what} '{min(missing)}'" if missing else f"a {what} '{min(more)}'"
            wanted = "one" if missing else "none"
            raise InvalidValue(
                f"got {got}, expected {wanted}, as when init was called; "
                + ("give None where there is no gradient" if what == "gradient" else _ANOTHER)
            )


_ANOTHER: Final = "make another one with stepwell.jax.remote, with a run of its own"


def _check(what: str, now: Any, *expected: Any) -> None:
    if now not in expected:
        raise InvalidValue(f"{what} {now}, expected {expected[0]}, as when init was called; {_ANOTHER}")


def named(tree: Any, *, keep_none: bool = False) -> dict[str, Any]:
    """The leaves, as arrays, by their paths: {"layers": [{"w": x}]} gives layers/0/w."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=(lambda leaf: leaf is None) if keep_none else None)
    found: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for path, leaf in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/") if path else ALONE
        if name in found:
            both = f"{jax.tree_util.keystr(paths[name])} and {jax.tree_util.keystr(path)}"
            raise InvalidValue(
                f"got two parameters named '{name}', {both}, expected a name for each; rename one of them"
            )
        found[name] = leaf if leaf is None else jax.numpy.asarray(leaf)
        paths[name] = path
    return found
