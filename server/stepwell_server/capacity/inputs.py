"""What the capacity model is told: the workers, the server, and what an update costs it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STATE_ITEM_BYTES = 4  # the state is float32


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
