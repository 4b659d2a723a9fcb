"""Records of trainings that never were."""

import itertools

import numpy as np

from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Accuracy, Record, WorkerRecord
from stepwell_server.demo.report import Histogram, Step


def make_record(options: DemoOptions, *, staleness_max: int = 3, learning_rates: bool = True) -> Record:
    """As a session leaves it: workers take turns, 100 steps a second."""
    rng = np.random.default_rng(0)
    record = Record([WorkerRecord() for _ in range(options.workers)])
    if learning_rates:
        record.learning_rates = np.linspace(0.01, 0, options.versions)
    for version in range(1, options.updates + 1):
        number, worker = divmod(version - 1, options.workers)
        loss = 2.3 * np.exp(-4 * version / options.updates) * rng.uniform(0.5, 1.5)
        record.add(worker, Step(number + 1, version, loss, int(rng.integers(staleness_max + 1))), version / 100)
    last = options.updates
    record.accuracies = [Accuracy(0, 0.1, 0), Accuracy(last // 2, 0.9, last / 200), Accuracy(last, 0.98, last / 100)]
    record.histogram = histogram(record.steps)
    for index, own in enumerate(record.workers):
        own.histogram = histogram(record.steps[index :: options.workers])
    return record


def histogram(steps: list[Step]) -> Histogram:
    """Counted anew, with other means than the server."""
    edges = [0, *(1 << number for number in range(40))]
    counts = [sum(low <= step.staleness < high for step in steps) for low, high in itertools.pairwise(edges)]
    while counts and not counts[-1]:
        counts.pop()
    return Histogram(tuple(counts), max(step.staleness for step in steps))
