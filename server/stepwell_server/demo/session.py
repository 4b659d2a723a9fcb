"""`stepwell demo`: starts the server and the workers, watches them, and sees to it that they are gone at the end."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from rich.console import Console

from stepwell_server.demo import perceptron, picture, recipe
from stepwell_server.demo.display import Display, make_display, percent, say, staleness_lines
from stepwell_server.demo.observer import Measured, Observer, ObserverFailed, Ready
from stepwell_server.demo.options import DemoOptions, TrainingOptions, WorkerOptions
from stepwell_server.demo.processes import Ended, Line, Subprocess, describe_code, end_all
from stepwell_server.demo.record import Record, WorkerRecord
from stepwell_server.demo.report import Step, read_line

ADDRESS: Final = "127.0.0.1:0"
LISTENING: Final = "listening on "
ERROR_LEVEL: Final = '"level": "error"'
START_SECONDS: Final = 60.0
"""How long a server may take to listen, and workers to their first step: a cold, busy machine included."""

SILENCE_SECONDS: Final = 60.0
"""How long nothing at all may be heard of anybody later on."""

DRAIN_SECONDS: Final = 1.0
ABANDON_SECONDS: Final = 1.0

EventT = TypeVar("EventT")


class Interrupted(Exception):
    """A signal says that it is enough."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


class Failed(Exception):
    """The demo cannot go on; the message says why."""


def run_demo(options: DemoOptions) -> int:
    """Train, draw, judge; return the exit code. To be called in the main thread.

    0: the target was reached. 1: it was not, or something failed. 2: the options make no sense. 128 + the signal's
    number: interrupted.
    """
    console, errors = Console(), Console(stderr=True)

    def train_and_draw() -> int:
        with make_display(console, options) as display:
            record = train(options, display)
        picture.draw(record, options, options.picture)
        return _judge(console, errors, record, options)

    return supervise(train_and_draw, options, errors)


def train(options: DemoOptions, display: Display, update_log: Path | None = None) -> Record:
    """One training from the first process to the last. update_log: of a server that is started for it.

    Raises Failed or Interrupted. However it ends, no process is left.
    """
    return _Session(options, display, update_log).run()


def supervise(work: Callable[[], int], options: DemoOptions, errors: Console) -> int:
    """Check the options, then do what trains; return its exit code, or as `run_demo` where it has none."""
    if objection := recipe.find_objection(options) or _find_objection(options):
        say(errors, f"stepwell: {objection}")
        return 2
    perceptron.limit_threads()
    try:
        return work()
    except Interrupted as interrupted:
        say(errors, f"stepwell: stopped by {interrupted.signal.name}; what it had started is gone")
        return 128 + interrupted.signal
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (Failed, OSError) as error:
        say(errors, f"stepwell: {error}")
        return 1


def _judge(console: Console, errors: Console, record: Record, options: DemoOptions) -> int:
    accuracy = record.accuracy
    assert accuracy is not None, "a finished session has measured"
    say(
        console,
        f"\n{record.version:,} versions by {options.workers} workers in {record.seconds:.1f} s: "
        f"{len(record.steps):,} steps, {record.steps_per_second:,.0f} per second, "
        f"mean staleness {record.staleness:.2f}\n",
    )
    for line in staleness_lines(record):
        say(console, line)
    reached = record.seconds_to(options.target)
    say(console, f"\nTime to {options.target:.0%}: " + ("not reached" if reached is None else f"{reached:.2f} s"))
    say(console, f"Test accuracy: {percent(accuracy)}")
    say(console, f"Picture: {options.picture.resolve()}")
    if accuracy < options.target:
        say(
            errors,
            f"stepwell: got a test accuracy of {accuracy:.2%}, expected {options.target:.2%} or better; "
            "allow more --steps, try another --lr or --schedule, or lower --target",
        )
        return 1
    return 0


class _Session:
    """From the first process to the last. Everything that happens arrives on one queue, signals included.

    So nothing interrupts a half-done start or end, and only this thread decides.
    """

    def __init__(self, options: DemoOptions, display: Display, update_log: Path | None) -> None:
        self._options, self._display, self._update_log = options, display, update_log
        self._events: SimpleQueue[Any] = SimpleQueue()
        self._record = Record([WorkerRecord() for _ in range(options.workers)])
        self._server: Subprocess | None = None
        self._workers: list[Subprocess] = []
        self._observer: Observer | None = None

    def run(self) -> Record:
        """Raises Failed or Interrupted. However it ends, no process is left."""
        with _signals_as_events(self._events):
            try:
                self._train()
            finally:
                end_all(self._workers)  # before the server: it would wait for them
                if self._observer is not None:
                    self._observer.abandon(ABANDON_SECONDS)
                if self._server is not None:
                    end_all([self._server])
        return self._record

    def _train(self) -> None:
        options = self._options
        address = options.address or self._start_server()
        self._observer = Observer(address, options, self._events)
        self._observer.start()
        self._record.learning_rates = self._await(Ready).learning_rates
        self._display.stage(f"Run '{options.run}' at {address}: starting {options.workers} workers")
        self._start_workers(address)
        self._watch_workers(address)
        self._observer.finish()
        while self._record.histogram is None:
            self._await(Measured)
        self._display.finish(self._record)

    def _start_server(self) -> str:
        self._display.stage("Starting the server")
        arguments = ["serve", "--address", ADDRESS, "--drain-seconds", str(DRAIN_SECONDS)]
        if self._update_log is not None:
            arguments += ["--update-log", str(self._update_log)]
        self._server = Subprocess("server", arguments, self._events, tied=True)
        line = self._await(Line).text
        if not line.startswith(LISTENING):
            raise Failed(f"the server said {line!r}, expected {LISTENING!r} and its address")
        return line.removeprefix(LISTENING)

    def _start_workers(self, address: str) -> None:
        shared = {field.name: getattr(self._options, field.name) for field in fields(TrainingOptions)}
        for index in range(self._options.workers):
            worker = WorkerOptions(**shared, address=address, index=index, supervised=True)
            arguments = ["demo-worker", *worker.arguments()]
            self._workers.append(Subprocess(f"worker {index}", arguments, self._events))

    def _watch_workers(self, address: str) -> None:
        running = set(self._workers)
        while running:
            event = self._next(SILENCE_SECONDS if self._record.steps else START_SECONDS)
            match event:
                case Line(process, text) if process in running:
                    if not self._record.steps:
                        options = self._options
                        what = f"{options.optimizer}, {options.schedule}, {options.policy}"
                        self._display.stage(f"Run '{options.run}' at {address}: {what}")
                    self._take(self._workers.index(process), text)
                case Ended(process, 0):
                    running.discard(process)
            if self._record.steps:
                self._display.show(self._record)

    def _take(self, worker: int, text: str) -> None:
        line = read_line(text)
        if isinstance(line, Step):
            self._record.add(worker, line, time.monotonic())
        else:
            self._record.workers[worker].histogram = line

    def _await(self, kind: type[EventT]) -> EventT:
        """The next event of a kind; those of other kinds are not expected to need anybody."""
        while True:
            event = self._next(START_SECONDS)
            if isinstance(event, kind):
                return event

    def _next(self, seconds: float) -> object:
        """The next event, if it is none that ends the session."""
        try:
            event = self._events.get(timeout=seconds)
        except Empty:
            raise Failed(f"heard nothing for {seconds:g} s, expected progress; is the machine overloaded?") from None
        match event:
            case signal.Signals():
                raise Interrupted(event)
            case ObserverFailed(message):
                raise Failed(message)
            case Ended(process, code) if code != 0 or process is self._server:
                raise Failed(self._describe_end(process, code))
            case Measured(accuracy, histogram):
                self._record.accuracies.append(accuracy)
                self._record.histogram = histogram
        return event

    def _describe_end(self, process: Subprocess, code: int) -> str:
        last_words = process.tail()
        if self._server is not None and process is not self._server:
            # What the server has against a worker it tells the worker. Its log is for what is its own fault.
            last_words += [line for line in self._server.tail() if ERROR_LEVEL in line]
        return "\n".join(
            [f"{process.name} {describe_code(code)}" + ("; last words:" if last_words else ""), *last_words]
        )


def _find_objection(options: DemoOptions) -> str | None:
    if not 0 <= options.target <= 1:
        return f"got target {options.target}, expected a share between 0 and 1, such as 0.97"
    directory = options.picture.resolve().parent
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        return f"got picture '{options.picture}', expected a file in a directory that can be written to"
    if options.picture.is_dir():
        return f"got picture '{options.picture}', which is a directory, expected the name of a file"
    return None


@contextmanager
def _signals_as_events(events: "SimpleQueue[Any]") -> Iterator[None]:
    """Ctrl-C, SIGTERM and the end of the terminal become events. What is ignored (nohup) stays ignored."""
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            # SimpleQueue.put may be interrupted by itself; Queue.put may not.
            before[number] = signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
