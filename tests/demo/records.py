"""Records of trainings that never were."""

import numpy as np

from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Record, WorkerRecord
from stepwell_server.demo.report import Step


def make_record(options: DemoOptions, *, staleness_max: int = 3, learning_rates: bool = True) -> Record:
    """As a session leaves it: workers take turns, 100 steps a second."""
    rng = np.random.default_rng(0)
    record = Record([WorkerRecord() for _ in range(options.workers)])
    if learning_rates:
        record.learning_rates = np.linspace(0.01, 0, options.updates)
    for version in range(1, options.updates + 1):
        number, worker = divmod(version - 1, options.workers)
        loss = 2.3 * np.exp(-4 * version / options.updates) * rng.uniform(0.5, 1.5)
        record.add(worker, Step(number + 1, version, loss, int(rng.integers(staleness_max + 1))), version / 100)
    record.accuracies = [(0, 0.1), (options.updates // 2, 0.9), (options.updates, 0.98)]
    return record
