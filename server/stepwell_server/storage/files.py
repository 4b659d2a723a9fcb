"""Writing so that a crash leaves the old or the new, never a half: fsync, rename, and the errors in between."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stepwell_server.core.errors import StorageFailed

# Whatever begins so is unfinished or unwanted: a crash may leave it, the next start removes it.
WRITING = ".writing-"
DELETED = ".deleted-"

_FULL = "free space there or use a larger disk, then try again"
_FORBIDDEN = "make it readable and writable for the server's user, or name another directory"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.EMFILE: "raise the limit of open files",
}


@contextmanager
def storage_failures(doing: str) -> Iterator[None]:
    """Turn a refusal of the system into StorageFailed: what failed, why, and what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "see the system's log for the disk and try again")
        raise StorageFailed(
            f"{doing} failed: {error.strerror or error}, expected it to succeed; {remedy}", errno=error.errno
        ) from error


def make_directory(path: Path) -> None:
    """Create a directory and those above it, for the server's user only, durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(0o700, exist_ok=True)
    sync_directory(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, durably: a reader finds the old content or the new."""
    with ExitStack() as undo:
        descriptor, name = tempfile.mkstemp(prefix=WRITING, dir=path.parent)
        unfinished = Path(name)
        undo.callback(unfinished.unlink, missing_ok=True)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        undo.pop_all()
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a directory and what is in it; a crash in between leaves it whole or out of sight."""
    trash = Path(tempfile.mkdtemp(prefix=DELETED, dir=path.parent))
    path.rename(trash / path.name)
    sync_directory(path.parent)
    shutil.rmtree(trash)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
