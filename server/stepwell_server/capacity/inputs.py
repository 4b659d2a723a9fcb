"""What the capacity model is told: the workers, the server, and what an update costs it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stepwell_server.core.errors import InvalidValue

STATE_ITEM_BYTES = 4  # the state is float32
# What is beyond is a slip of the pen, and would leave too few digits to add seconds up.
WORKERS_MAX = 1_000_000
SERVERS_MAX = 1_000_000
NUMBER_MAX = 1e9
PARAMETERS_MAX = 1e15
ITEM_BYTES_MAX = 1000
SPREAD_MAX = 100
# Work that keeps no core busy would never be slowed down by other work.
BUSY_CORES_MIN = 0.01


@dataclass(frozen=True)
class Workload:
    """What the workers ask for.

    parameters: elements of the run. gradient_bytes, parameter_bytes: what one element takes on its way in and out.
    compute_seconds: of one gradient, on average; spread: its standard deviation as a share of that (gamma distributed).
    local_steps: gradients for each update. slow_workers: how many take slow_factor times as long. policy: as in a spec.
    """

    workers: int = 8
    parameters: int = 1_000_000
    compute_seconds: float = 0.05
    spread: float = 0.25
    local_steps: int = 1
    slow_workers: int = 0
    slow_factor: float = 10.0
    gradient_bytes: float = 4.0
    parameter_bytes: float = 4.0
    policy: Mapping[str, Any] = field(default_factory=lambda: {"name": "async"})

    def __post_init__(self) -> None:
        """Raise InvalidValue for a number out of its range."""
        _check("workers", self.workers, 1, WORKERS_MAX)
        _check("parameters", self.parameters, 1, PARAMETERS_MAX)
        _check("compute_seconds", self.compute_seconds, 0, NUMBER_MAX)
        _check("spread", self.spread, 0, SPREAD_MAX)
        _check("local_steps", self.local_steps, 1, NUMBER_MAX)
        _check("slow_workers", self.slow_workers, 0, WORKERS_MAX)
        _check("slow_factor", self.slow_factor, 1, NUMBER_MAX)
        _check("gradient_bytes", self.gradient_bytes, 0.01, ITEM_BYTES_MAX)
        _check("parameter_bytes", self.parameter_bytes, 0.01, ITEM_BYTES_MAX)


@dataclass(frozen=True)
class Machine:
    """A server and its network; shards: so many such servers, each with an equal part of the run.

    link_bytes_per_second: each way, what all workers share at one server; worker_link_bytes_per_second: each worker's
    own. memory_bytes_per_second: what kernels reach on all cores. local: whether the workers run on the server's cores.
    """

    cores: int = 2
    link_bytes_per_second: float = math.inf
    worker_link_bytes_per_second: float = math.inf
    memory_bytes_per_second: float = 37e9
    shards: int = 1
    local: bool = False

    def __post_init__(self) -> None:
        """Raise InvalidValue for a number out of its range."""
        _check("cores", self.cores, 1, NUMBER_MAX)
        _check("link_bytes_per_second", self.link_bytes_per_second, 1, math.inf)
        _check("worker_link_bytes_per_second", self.worker_link_bytes_per_second, 1, math.inf)
        _check("memory_bytes_per_second", self.memory_bytes_per_second, 1, math.inf)
        _check("shards", self.shards, 1, SERVERS_MAX)


@dataclass(frozen=True)
class Costs:
    """What an update costs, in seconds, and in seconds for each byte that travels.

    exchange_seconds: of the event loop, whatever the size. receive, send: of the loop, for each byte of gradients in
    and of parameters out. loop_cores: cores that are busy while the loop is, its own and those of gRPC's threads.
    commit: of a commit beside what its kernels read and write, which is `kernel_arrays` arrays of the state; fold: of
    each further update in it, beside the `fold_arrays` that adding it reads and writes. worker: of the worker itself,
    as it prepares an update and takes the parameters; worker_cores: how many of its cores are busy then.

    connection_bytes: what a worker takes of the server's memory beside its staged gradients. slots: arrays that the
    optimizer keeps for each parameter; two, and seven arrays read or written, are Adam's. The defaults were measured
    on two cores in 2026, see docs/scaling.md.
    """

    exchange_seconds: float = 1.5e-3
    receive_seconds_per_byte: float = 0.74e-9
    send_seconds_per_byte: float = 0.65e-9
    loop_cores: float = 1.4
    commit_seconds: float = 0.1e-3
    fold_seconds: float = 0.03e-3
    kernel_arrays: int = 7
    fold_arrays: int = 3
    worker_seconds: float = 1.3e-3
    worker_seconds_per_byte: float = 0.65e-9
    worker_cores: float = 1.45
    connection_bytes: int = 100_000
    slots: int = 2

    def __post_init__(self) -> None:
        """Raise InvalidValue for a number out of its range."""
        for each in fields(self):
            _check(each.name, getattr(self, each.name), BUSY_CORES_MIN * each.name.endswith("_cores"), NUMBER_MAX)


@dataclass(frozen=True)
class Sizes:
    """What there is of a run at one server, in bytes. state: one copy of the parameters as they are computed with."""

    gradients: float
    parameters: float
    state: float

    @staticmethod
    def of(workload: Workload, machine: Machine) -> "Sizes":
        elements = workload.parameters / machine.shards
        return Sizes(
            elements * workload.gradient_bytes, elements * workload.parameter_bytes, elements * STATE_ITEM_BYTES
        )


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so that what is not a number is refused, too
        raise InvalidValue(
            f"{name} is {value!r}, expected a number from {low:g} to {high:g}; give one, or leave it out", argument=name
        )
