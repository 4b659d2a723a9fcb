"""The server that a runner's cases are carried out against: `python -m tests.conformance.stand`, see README.md.

Commands come one to a line on stdin, answers go one to a line to stdout. It ends when stdin closes.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conformance.proxy import Proxy
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels


class Stand:
    """A server behind a proxy, whose address stays the same whatever becomes of the server."""

    def __init__(self, proxy: Proxy, directory: Path) -> None:
        self._proxy, self._directory = proxy, directory
        self._server: Server | None = None
        self._runs = False
        self._options: tuple[list[str], bool] | None = None

    def start(self, arguments: list[str] | None = None, data: bool = True) -> dict[str, Any]:
        """With arguments: another server, unless the one that runs has the same. Without: the last one again."""
        if arguments is not None:
            self._proxy.reset()
            if not self._runs or self._options != (arguments, data):
                self._replace(arguments, data)
        assert self._server is not None, "the first start must have arguments"
        if not self._runs:
            self._server.start()
            self._runs = True
            host, _, port = self._server.address.rpartition(":")
            self._proxy.target = (host, int(port))
        return {"address": self._proxy.address}

    def stop(self) -> dict[str, Any]:
        """SIGTERM: what is in flight ends, and runs are stored."""
        if self._server is not None and self._runs:
            self._runs = False
            self._server.stop()
        return {}

    def kill(self) -> dict[str, Any]:
        """SIGKILL."""
        assert self._server is not None, "no server was started"
        self._runs = False
        self._server.kill()
        return {}

    def lose_answer(self) -> dict[str, Any]:
        self._proxy.lose_answer()
        return {}

    def lost(self) -> dict[str, Any]:
        return {"count": self._proxy.lost_count}

    def damage(self, run: str, checkpoint: str) -> dict[str, Any]:
        """Change the last byte of a checkpoint's largest file."""
        files = [path for path in self._directory.rglob("*") if path.is_file() and {run, checkpoint} <= set(path.parts)]
        assert files, f"no files of checkpoint {checkpoint} of run {run}"
        largest = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[-1] ^= 0xFF
        largest.chmod(0o600)
        largest.write_bytes(content)
        return {}

    def break_storage(self, run: str) -> dict[str, Any]:
        """Put a file where the directory of a run's checkpoints should be."""
        directory = self._directory / "runs" / run / "checkpoints"
        shutil.rmtree(directory, ignore_errors=True)
        directory.touch()
        assert self._server is not None
        self._server.failures_expected.add("storage failed")
        return {}

    def _replace(self, arguments: list[str], data: bool) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        options = ["--silence-seconds", "20", "--word-seconds", "0.5", *arguments]
        self._server = Server(kept_kernels(), *options, data_dir=self._directory if data else None)
        self._options = (arguments, data)


COMMANDS = {"start", "stop", "kill", "lose_answer", "lost", "damage", "break_storage"}


def main() -> None:
    with Proxy() as proxy, tempfile.TemporaryDirectory() as directory:
        stand = Stand(proxy, Path(directory) / "data")
        try:
            for line in sys.stdin:
                command = json.loads(line)
                do = command.pop("do")
                try:
                    answer = getattr(stand, do)(**command) if do in COMMANDS else {"error": f"no command {do!r}"}
                except (AssertionError, TypeError) as error:
                    answer = {"error": str(error)}
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()
        finally:
            stand.stop()


if __name__ == "__main__":
    main()
