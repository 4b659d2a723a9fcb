"""One worker: it takes gradients and pushes them, and is given the parameters that come of it.

Shaped as a trainer of your own would be: connect, create or join the run, step.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final, Literal, NoReturn, Protocol, TextIO

import numpy as np

import stepwell
from stepwell_server.demo import data, perceptron, recipe
from stepwell_server.demo.options import WorkerOptions
from stepwell_server.demo.report import Histogram, Step

PIXEL_NOISE: Final = 0.2
"""Standard deviation of what is added to the training pixels, fresh each time; it gains some tenths of a percent."""

TEXT_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 1.0
LINE_UP_SECONDS: Final = 0.05
INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM


class Reporter(Protocol):
    """Where a worker's progress goes."""

    def joined(self, run: stepwell.Run) -> None: ...
    def stepped(self, step: Step, parameters: perceptron.Parameters) -> None: ...
    def rewound(self, rewound: stepwell.RunRewound) -> None: ...
    def finished(self, run: stepwell.Run, parameters: perceptron.Parameters) -> None: ...


def run_worker(options: WorkerOptions) -> int:
    """Train until the options' end; return the exit code."""
    if objection := recipe.find_objection(options) or _find_objection(options):
        _say(f"stepwell: {objection}", sys.stderr)
        return 2
    # The default action of SIGTERM is none at all in a container's first process.
    signal.signal(signal.SIGTERM, _terminate)
    if options.supervised:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    perceptron.limit_threads()
    try:
        digits = data.load()
        reporter = JsonLines() if options.supervised else TextLines(digits.test)
        # Encodings are for what travels; with shared memory nothing does.
        encoded = options.gradient_encoding is not None or options.parameter_encoding is not None
        transport: Literal["stream", "auto"] = "stream" if encoded else "auto"
        with stepwell.connect(options.address, transport=transport) as client, _join(client, options) as run:
            _train(run, digits, options, reporter)
    except stepwell.StepwellError as error:
        _say(f"stepwell: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 1  # whoever read the reports is gone
    return 0


def _train(run: stepwell.Run, digits: data.Digits, options: WorkerOptions, reporter: Reporter) -> None:
    batches = _draw_batches(digits, options)
    # What only the first time takes long is over before the first step, which a slow worker would make longer still.
    perceptron.accuracy(_pull(run), digits.test)
    _line_up(run, options)
    parameters = _pull(run)
    reporter.joined(run)
    number = 0
    while _goes_on(number, run.version, options):
        began_at = time.monotonic()
        batch = next(batches)
        taken_at = run.version
        loss, gradients = perceptron.loss_and_gradients(parameters, batch)
        try:
            parameters = run.step(gradients, samples=len(batch))
        except stepwell.RunRewound as rewound:
            # The server came back without its latest versions. Go on from what it has.
            reporter.rewound(rewound)
            parameters = _pull(run)
            continue
        assert run.last_answer is not None
        committed = run.last_answer.committed_version
        number += 1
        # What came too late has no version of its own.
        reporter.stepped(Step(number, committed, loss, max(0, committed - taken_at - 1)), parameters)
        if options.slow > 1 and options.index == options.workers - 1:
            time.sleep((options.slow - 1) * (time.monotonic() - began_at))
    reporter.finished(run, parameters)


def _goes_on(number: int, version: int, options: WorkerOptions) -> bool:
    together = options.index is None or options.slow > 1
    return version < options.versions if together else number < options.steps


def _line_up(run: stepwell.Run, options: WorkerOptions) -> None:
    """Begin when all are there: whoever is early would train alone, and time to an accuracy would depend on that."""
    if options.index is None:
        return
    while len(run.refresh().workers) < options.workers:
        time.sleep(LINE_UP_SECONDS)
    run.barrier("start")


def _draw_batches(digits: data.Digits, options: WorkerOptions) -> Iterator[data.Images]:
    """Mini-batches without end, drawn anew each time. Without an index no seed: two workers would draw the same."""
    if options.index is None:
        images, rng = digits.training, np.random.default_rng()
    else:
        images, rng = digits.shard(options.index, options.workers), np.random.default_rng([options.seed, options.index])
    while True:
        batch = images.select(rng.integers(len(images), size=options.batch_size))
        noise = PIXEL_NOISE * rng.standard_normal(batch.pixels.shape, dtype=np.float32)
        yield data.Images(batch.pixels + noise, batch.labels)


def _join(client: stepwell.Client, options: WorkerOptions) -> stepwell.Run:
    while True:
        try:
            return client.create_run(options.run, perceptron.init(options.seed), **recipe.create_run_arguments(options))
        except (stepwell.ServerUnavailable, stepwell.TimedOut) as error:
            _say(f"waiting for the server: {error}", sys.stderr)
            time.sleep(RETRY_SECONDS)


def _pull(run: stepwell.Run) -> perceptron.Parameters:
    parameters = run.pull()
    assert parameters is not None, "it asked for any version"
    return parameters


def _find_objection(options: WorkerOptions) -> str | None:
    if options.index is not None and not 0 <= options.index < options.workers:
        return f"got index {options.index}, expected 0 to {options.workers - 1}, or more workers"
    return None


class JsonLines:
    """Every step, for the program that started this one."""

    def joined(self, run: stepwell.Run) -> None:
        pass

    def stepped(self, step: Step, parameters: perceptron.Parameters) -> None:
        _say(step.to_line())

    def rewound(self, rewound: stepwell.RunRewound) -> None:
        _say(f"stepwell: {rewound}", sys.stderr)

    def finished(self, run: stepwell.Run, parameters: perceptron.Parameters) -> None:
        for worker in run.refresh().workers:
            if worker.name == run.worker:
                _say(Histogram.of(worker.tally).to_line())


class TextLines:
    """A line now and then, for a person or a log."""

    def __init__(self, test: data.Images) -> None:
        self._test = test
        self._spoke_at = -TEXT_SECONDS

    def joined(self, run: stepwell.Run) -> None:
        _say(f"{'created' if run.created else 'joined'} run '{run.name}' at version {run.version} as {run.worker}")

    def stepped(self, step: Step, parameters: perceptron.Parameters) -> None:
        now = time.monotonic()
        if now - self._spoke_at < TEXT_SECONDS:
            return
        self._spoke_at = now
        accuracy = perceptron.accuracy(parameters, self._test)
        _say(
            f"step {step.number}  version {step.version}  loss {step.loss:.4f}  staleness {step.staleness}  "
            f"test accuracy {accuracy:.1%}"
        )

    def rewound(self, rewound: stepwell.RunRewound) -> None:
        _say(f"the run went back from version {rewound.acknowledged_version} to {rewound.version}; going on from there")

    def finished(self, run: stepwell.Run, parameters: perceptron.Parameters) -> None:
        accuracy = perceptron.accuracy(parameters, self._test)
        _say(f"finished at version {run.version}: test accuracy {accuracy:.1%} on {len(self._test)} images")


def _say(line: str, stream: TextIO | None = None) -> None:
    out = stream or sys.stdout  # looked up now: tests replace it
    out.write(line + "\n")
    out.flush()


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(TERMINATED)


def _end_with_stdin() -> None:
    """The other end of standard input is held by the process that started this one, and closes when it dies."""
    # Not sys.stdin: a thread that waits in its lock spoils the interpreter's exit.
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 10):
            pass
    os._exit(1)
