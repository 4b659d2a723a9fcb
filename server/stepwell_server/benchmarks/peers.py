"""The processes at the other end: `python -m stepwell_server.benchmarks.peers MODULE ...` runs a module's `serve`.

Everything listens on loopback, on a port that the system chooses, and ends with the benchmark.
"""

import importlib
import json
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

_LISTENING = "listening on "
_END_SECONDS = 20.0


class Peer:
    """`python` with some arguments, running from its first line, `listening on ADDRESS`, to the end of the block."""

    def __init__(self, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the peer
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith(_LISTENING):
            log = self._log_tail()
            self.close()
            raise RuntimeError(
                f"python {' '.join(arguments)}: got {line!r} as its first line, expected "
                f"'{_LISTENING}ADDRESS'; its log ends with:\n{log}"
            )
        self.address = line.removeprefix(_LISTENING).strip()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def tell(self, order: str) -> None:
        """Send a line to one that takes orders."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Its answer, a line of JSON; raises RuntimeError if it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended before it was told to; its log ends with:\n{self._log_tail()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process, first by asking."""
        with self._process, self._log:
            self._process.terminate()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:]


def start(module: str, *arguments: object) -> Peer:
    """A module of this folder in a process of its own; its `serve` gets the arguments as text."""
    return Peer("-m", "stepwell_server.benchmarks.peers", module, *map(str, arguments))


def start_stepwell(*arguments: str) -> Peer:
    """The real server, as its users start it."""
    return Peer("-m", "stepwell_server", "serve", "--address", "127.0.0.1:0", *arguments)


def announce(address: str) -> None:
    """Say that calls are answered from now on."""
    print(f"{_LISTENING}{address}", flush=True)


if __name__ == "__main__":
    importlib.import_module(f"stepwell_server.benchmarks.{sys.argv[1]}").serve(*sys.argv[2:])
