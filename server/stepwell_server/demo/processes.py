"""Subprocesses that cannot outlive this one.

They run in sessions of their own, so that Ctrl-C in the terminal reaches only this process, which then decides. Should
it be killed without a chance to decide, a worker notices that its standard input ends, and the server, which has no
reason to read its own, is killed by the kernel (on Linux).
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

END_SECONDS: Final = 5.0
"""How long a process may take to end by itself once it was asked to."""

TAIL_LINES: Final = 20
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


@dataclass(frozen=True)
class Line:
    """A process wrote a line on its standard output."""

    process: "Subprocess"
    text: str


@dataclass(frozen=True)
class Ended:
    """A process has ended, and everything that it wrote has been read."""

    process: "Subprocess"
    code: int


class Subprocess:
    """`python -m stepwell_server` with some arguments; its lines and its end arrive on a queue.

    tied: have the kernel kill it when the calling thread ends. It runs Python between fork and exec, so it is for the
    first process only, before this one has threads.
    """

    def __init__(self, name: str, arguments: Sequence[str], events: "SimpleQueue[Any]", *, tied: bool = False) -> None:
        self.name = name
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "stepwell_server", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
            start_new_session=True,
            preexec_fn=_tie() if tied else None,  # noqa: PLW1509 (see `tied`)
        )
        self.pid = self._popen.pid
        errors = threading.Thread(target=self._keep_tail, daemon=True)
        errors.start()
        threading.Thread(target=self._forward, args=(events, errors), daemon=True).start()

    def tail(self) -> list[str]:
        """The last lines of its standard error."""
        return list(self._tail)

    def ask_to_end(self) -> None:
        """Send SIGTERM, if it still runs."""
        self._popen.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for its end; kill it when the seconds are over."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _forward(self, events: "SimpleQueue[Any]", errors: threading.Thread) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            events.put(Line(self, line.rstrip("\n")))
        code = self._popen.wait()
        errors.join(END_SECONDS)
        events.put(Ended(self, code))

    def _keep_tail(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self._tail.append(line.rstrip("\n"))


def end_all(processes: Iterable[Subprocess]) -> None:
    """End them one after another: workers are named before the server that they talk to."""
    processes = list(processes)
    deadline = time.monotonic() + END_SECONDS
    for process in processes:
        process.ask_to_end()
    for process in processes:
        process.wait(max(0.0, deadline - time.monotonic()))


def describe_code(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _environment() -> dict[str, str]:
    """This process's, without what would send the server's data or the workers elsewhere."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STEPWELL_") or name == "STEPWELL_KERNEL_CACHE"
    }


def _tie() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def die_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)

    return die_with_parent
