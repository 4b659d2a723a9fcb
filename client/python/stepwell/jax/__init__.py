"""JAX's side of Stepwell: an optax GradientTransformation whose state and arithmetic are a server's.

    import stepwell.jax

    optimizer = stepwell.jax.remote("adamw", lr=1e-3, address="127.0.0.1:50051", run="digits")

Needs JAX and optax (`pip install 'stepwell[jax]'`); the rest of the client does not.
"""

try:
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name not in ("jax", "jaxlib", "optax"):
        raise
    raise ImportError(
        f"got no module '{_error.name}', expected JAX and optax for stepwell.jax; pip install 'stepwell[jax]'",
        name=_error.name,
    ) from None

from stepwell.jax._remote import Remote as Remote
from stepwell.jax._remote import RemoteState as RemoteState
from stepwell.jax._remote import remote as remote

__all__ = ["Remote", "RemoteState", "remote"]
