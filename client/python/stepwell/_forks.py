"""What a forked child does with what it inherited: it calls nothing, and it leaves alone what is its parent's.

gRPC's threads do not live in the child, and its locks are as they were. Of the children that opened a channel of their
own, 1 in 10 aborted while other threads of the parent made calls, and 1 in 20 hung although the parent had closed its
channels. So no call is made in a process whose parent had connected, over whichever client.

gRPC's own support for forks is switched off, unless the environment says something else: its handlers run in children
that have no use for gRPC, too, and there they abort now and then (https://github.com/grpc/grpc/issues/32992). Who
imports grpc before stepwell has them all the same.
"""

import ctypes
import os
from typing import Final

from stepwell.errors import ServerUnavailable

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # gRPC reads it when it is imported

_connected: Final[set[int]] = set()
"""The process that has connected: this one, or the one that it was forked from, maybe by way of others."""


def check_process() -> None:
    """Raise ServerUnavailable where this process was forked from one that had connected; else note that it connects."""
    if is_forked():
        (parent,) = _connected
        raise ServerUnavailable(
            f"got a call in process {os.getpid()}, which was forked after process {parent} had connected, expected it "
            "there: gRPC does not work on this side of a fork; start processes with multiprocessing's method 'spawn' "
            "(a DataLoader with multiprocessing_context='spawn'), or fork before the first call",
            {"forked_from": str(parent)},
        )
    _connected.add(os.getpid())


def is_forked() -> bool:
    """Whether this process was forked from one that had connected."""
    return not _connected <= {os.getpid()}


def make_immortal(inherited: object) -> None:
    """Keep an object from ever being finalised in this process.

    grpc's finalisers take locks that threads of the parent may have held, and those threads do not live in the child.
    It is lost memory, once per fork.
    """
    if inherited is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
