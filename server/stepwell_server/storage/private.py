"""Directories that belong to the server's user alone."""

import errno
import os
import stat
from pathlib import Path

from stepwell_server.core.errors import StorageFailed


def private(path: Path, purpose: str) -> Path:
    """The directory, made if it is missing, with its parents. purpose: "for ...".

    Raises StorageFailed for one that is not the user's own or not closed to everybody else, OSError where it cannot be
    made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.mkdir(0o700, exist_ok=True)
    _check(path, purpose)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return path


def _check(path: Path, purpose: str) -> None:
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
        f"the directory {purpose} '{path}' {got}, expected a directory of user {os.geteuid()} with mode 0700, since "
        "who can write there runs code as the server; remove it or name another one",
        path=path,
    )
