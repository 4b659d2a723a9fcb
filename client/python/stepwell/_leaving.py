"""A program that ends without `close` shall not hold up the other workers for a lease."""

import atexit
import contextlib
import os
import weakref
from typing import Final, Protocol


class Closable(Protocol):
    """What leaves its run when it is closed, as often as one likes."""

    def close(self) -> None:
        """Leave the run."""


_open: Final[weakref.WeakKeyDictionary[Closable, int]] = weakref.WeakKeyDictionary()
"""What is to be closed, and the process that made it: a forked child leaves nothing that is its parent's."""


def close_at_exit(closable: Closable) -> None:
    """Close it when this process ends, if it is still there."""
    _open[closable] = os.getpid()


def _close() -> None:
    for closable, pid in list(_open.items()):
        if pid == os.getpid():
            with contextlib.suppress(Exception):
                closable.close()


atexit.register(_close)
