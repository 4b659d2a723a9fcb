"""Measures the test accuracy while others train: a reader, who pulls parameters and never joins the run."""

import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import stepwell
from stepwell_server.demo import data, perceptron, recipe
from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Accuracy
from stepwell_server.demo.report import Histogram

MEASUREMENTS: Final = 100
POLL_SECONDS: Final = 0.05
PATIENCE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Ready:
    """The server answers and has no run of this name yet. learning_rates: one for each update."""

    learning_rates: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Measured:
    """histogram: of the staleness of all updates, once they were in; None before."""

    accuracy: Accuracy
    histogram: Histogram | None


@dataclass(frozen=True)
class ObserverFailed:
    message: str


class Observer(threading.Thread):
    """A thread of its own, so that whoever reads its events never waits for the network.

    It puts Ready, then Measured up to 100 times, the last one once `finish` was called; or ObserverFailed.
    """

    def __init__(self, address: str, options: DemoOptions, events: "SimpleQueue[Any]") -> None:
        super().__init__(name="observer", daemon=True)
        self._address, self._options, self._events = address, options, events
        self._finishing, self._abandoned = threading.Event(), threading.Event()

    def finish(self) -> None:
        """Measure once more and end."""
        self._finishing.set()

    def abandon(self, seconds: float) -> None:
        """End without another measurement; wait so long for it."""
        self._abandoned.set()
        self._finishing.set()
        self.join(seconds)

    def run(self) -> None:
        failure = "the observer failed, as the traceback says"  # should it be anything but a StepwellError
        try:
            with stepwell.connect(self._address, patience_seconds=PATIENCE_SECONDS) as client:
                self._events.put(Ready(self._preview(client)))
                self._observe(client)
            failure = ""
        except stepwell.StepwellError as error:
            failure = str(error)
        finally:
            if failure:
                self._events.put(ObserverFailed(failure))

    def _preview(self, client: stepwell.Client) -> npt.NDArray[np.float64] | None:
        options = self._options
        for run in client.list_runs():
            if run.name == options.run:
                raise stepwell.InvalidName(
                    f"got run '{run.name}', which is already there, at version {run.version}, expected a new one; "
                    "give another name with --run"
                )
        lr, schedule = recipe.learning_rate(options), recipe.schedule(options)
        if lr is None or schedule is None:
            return None
        return client.preview_schedule(schedule, initial=lr, steps=options.versions)

    def _observe(self, client: stepwell.Client) -> None:
        test = data.load().test
        run = self._await_run(client)
        every = max(1, self._options.versions // MEASUREMENTS)
        measured_at: int | None = None
        while run is not None and not self._abandoned.is_set():
            # Asked before the pull: what was committed until then is in what it gives.
            final = self._finishing.is_set()
            newer_than = None if final or measured_at is None else measured_at + every - 1
            parameters = run.pull(if_newer_than=newer_than)
            if parameters is not None:
                measured_at, now = run.version, time.monotonic()
                accuracy = Accuracy(measured_at, perceptron.accuracy(parameters, test), now)
                self._events.put(Measured(accuracy, Histogram.of(run.refresh().tally) if final else None))
            if final:
                return
            self._finishing.wait(POLL_SECONDS)

    def _await_run(self, client: stepwell.Client) -> stepwell.Run | None:
        while not self._abandoned.is_set():
            try:
                return client.get_run(self._options.run)
            except stepwell.UnknownRun:
                time.sleep(POLL_SECONDS)
        return None
