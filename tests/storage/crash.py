"""A server that dies by SIGKILL at a chosen place: python -m tests.storage.crash DIRECTORY OPERATION FUNCTION CALL.

FUNCTION is where to die, at its CALL-th call from 1 in the operation, before it does anything.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from stepwell_server.storage.directory import DataDirectory
from stepwell_server.storage.state_file import _HashedFile
from tests.storage.states import make_state

FUNCTIONS = {
    "sync": (os, "fsync"),
    "write": (_HashedFile, "_put"),
    "rename": (Path, "rename"),
    "replace": (Path, "replace"),
    "remove": (shutil, "rmtree"),
    "unlink": (Path, "unlink"),
}


def large_state(version):
    """More than one piece of the writer, so that there is a middle."""
    return make_state({"w": ((1_500_000,), "float64")}, "adam", version=version)


def save(store, version):
    state = large_state(version)
    store.save_snapshot("mnist", *state.stored)


def save_checkpoint(store, version):
    state = large_state(version)
    store.save_checkpoint("mnist", f"at-{version}", *state.stored)


OPERATIONS = {
    "save": lambda store: save(store, 2),
    "save_checkpoint": lambda store: save_checkpoint(store, 2),
    "delete": lambda store: store.delete_run("mnist"),
    "enter_generation": lambda store: store.enter_generation("mnist", 5),
    "mark_clean": lambda store: store.mark_clean(),
    "take_clean_mark": lambda store: store.take_clean_mark(),
}


def die_in(function, call):
    owner, name = FUNCTIONS[function]
    original = getattr(owner, name)
    calls = 0

    def dying(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, dying)


if __name__ == "__main__":
    directory, operation, function, call = sys.argv[1:]
    store = DataDirectory(Path(directory), keep=1)
    die_in(function, int(call))
    OPERATIONS[operation](store)
