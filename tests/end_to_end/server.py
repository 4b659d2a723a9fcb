"""The real server in a process of its own, as a user starts it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 60.0

# What gRPC's C core says on stderr when a peer misbehaves; it knows no JSON.
CORE_LOG = re.compile(r"[IWEF]\d{4} |WARNING: All log messages before absl::InitializeLog")

Event = dict[str, Any]


class Server:
    """A server process. `start` again after `stop` or `kill` listens on the same port.

    options: of `stepwell serve`, as on its command line. The log, one line of JSON per event, is read as it comes.
    failures_expected: the events with an exception that a test provokes; any other fails the test.
    """

    def __init__(self, kernel_cache: Path, *options: object, data_dir: Path | None = None) -> None:
        self.address = "127.0.0.1:0"
        self.failures_expected: set[str] = set()
        self._options = ["--kernel-cache", kernel_cache, *(("--data-dir", data_dir) if data_dir else ()), *options]
        self._process: subprocess.Popen[str] | None = None
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._running.pid)

    def start(self) -> Self:
        """Start and wait until it listens."""
        assert self._process is None
        command = [sys.executable, "-m", "stepwell_server", "serve", "--address", self.address, *self._options]
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A stepwell that the person running the tests has set up is not the one that is tested.
            env={name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")},
        )
        self._process = process
        self._readers = [threading.Thread(target=self._read_log, args=[process], daemon=True)]
        self._readers[0].start()
        first: list[str] = []
        assert process.stdout is not None
        output = process.stdout

        def read() -> None:
            first.append(output.readline())
            for _ in output:
                pass

        self._readers.append(threading.Thread(target=read, daemon=True))
        self._readers[1].start()
        # The line comes or the process ends; either closes the wait. The bound is for a server that hangs.
        waiter = threading.Timer(START_SECONDS_MAX, process.kill)
        waiter.start()
        try:
            self.wait_for(lambda: bool(first), "say where it listens")
        finally:
            waiter.cancel()
        match = re.fullmatch(r"listening on (\S+:\d+)\n", first[0])
        if match is None:
            self._process = None
            self._end(process)
            raise AssertionError(f"the server did not start: {first[0]!r}\n{self.log_text()}")
        self.address = match[1]
        return self

    def stop(self) -> None:
        """SIGTERM; it must end with 0, and its log must be clean."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        status = self._end(process)
        assert status == 0, f"the server ended with {status} after SIGTERM\n{self.log_text()}"
        self.check_log()

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        process, self._process = self._running, None
        process.kill()
        assert self._end(process) == -signal.SIGKILL
        self.check_log()

    def check_log(self) -> None:
        """That the log holds events only, none of them a fault of the server's."""
        for event in self.events():
            failed = event["event"] == "internal error" or "exception" in event
            assert not failed or event["event"] in self.failures_expected, f"the server failed:\n{event!s:.3000}"

    def events(self, name: str | None = None) -> list[Event]:
        """The log's events so far, those of one name or all."""
        with self._changed:
            lines = list(self._lines)
        events = []
        for line in lines:
            if CORE_LOG.match(line) or not line.strip():
                continue
            assert line.startswith("{"), f"the log has a line that is no event:\n{''.join(lines)}"
            events.append(json.loads(line))
        return [event for event in events if name is None or event["event"] == name]

    def wait_for_event(self, name: str, holds: Callable[[Event], bool] = lambda event: True) -> Event:
        """The first event of this name for which `holds`, now or later."""
        self.wait_for(lambda: any(holds(event) for event in self.events(name)), f"log {name!r}")
        return next(event for event in self.events(name) if holds(event))

    def wait_for(self, holds: Callable[[], bool], what: str) -> None:
        with self._changed:
            # Woken by each line of the log; the short bound is for conditions that the log does not announce.
            for _ in range(int(START_SECONDS_MAX / 0.05)):
                if holds():
                    return
                self._changed.wait(0.05)
        raise AssertionError(f"the server did not {what} in {START_SECONDS_MAX} s\n{self.log_text()}")

    def log_text(self) -> str:
        with self._changed:
            return "".join(self._lines)

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the server does not run"
        return self._process

    def _end(self, process: subprocess.Popen[str]) -> int:
        try:
            status = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not end in {STOP_SECONDS_MAX} s\n{self.log_text()}") from None
        finally:
            for reader in self._readers:
                reader.join(STOP_SECONDS_MAX)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
        return status

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
