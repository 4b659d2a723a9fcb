"""Where compiled kernels are kept between starts.

Numba's cache is pickle, so whoever can write there runs code as the server: the directory must be the server user's own
and closed to everybody else.
"""

import os
from pathlib import Path

from stepwell_server.storage.files import storage_failures
from stepwell_server.storage.private import private

_PURPOSE = "for compiled kernels"


def private_directory(path: Path | None) -> Path | None:
    """A directory for compiled kernels, created if missing, or None: then they are compiled anew in memory.

    path: None for `$XDG_CACHE_HOME/stepwell/kernels` or `~/.cache/stepwell/kernels`, and None comes back if that cannot
    be had, as in a read-only home. Raises StorageFailed for a given path that cannot be used, and for either that is
    not private.
    """
    if path is not None:
        with storage_failures(f"using '{path}' for compiled kernels"):
            return private(path.absolute(), _PURPOSE)
    try:
        return private(_default(), _PURPOSE)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None


def _default() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore a relative path.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "stepwell" / "kernels"
