"""Where compiled kernels are kept between starts.

Numba's cache is pickle, so whoever can write there runs code as the server: the directory must be the server user's own
and closed to everybody else.
"""

import errno
import os
import stat
from pathlib import Path

from stepwell_server.core.errors import StorageFailed
from stepwell_server.storage.files import storage_failures


def private_directory(path: Path | None) -> Path | None:
    """A directory for compiled kernels, created if missing, or None: then they are compiled anew in memory.

    path: None for `$XDG_CACHE_HOME/stepwell/kernels` or `~/.cache/stepwell/kernels`, and None comes back if that cannot
    be had, as in a read-only home. Raises StorageFailed for a given path that cannot be used, and for either that is
    not private.
    """
    if path is not None:
        with storage_failures(f"using '{path}' for compiled kernels"):
            return _private(path.absolute())
    try:
        return _private(_default())
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None


def _default() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore a relative path.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "stepwell" / "kernels"


def _private(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.mkdir(0o700, exist_ok=True)
    _check(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return path


def _check(path: Path) -> None:
    found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        got = "is a symbolic link"
    elif found.st_uid != os.geteuid():
        got = f"belongs to user {found.st_uid}"
    elif mode & 0o077:
        got = f"has mode {mode:04o}"
    else:
        return
    raise StorageFailed(
        f"the directory for compiled kernels '{path}' {got}, expected a directory of user {os.geteuid()} with mode "
        "0700, since its content is run; remove it or name another one",
        path=path,
    )
