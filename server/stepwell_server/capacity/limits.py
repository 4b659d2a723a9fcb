"""What each part of a server allows at most, in closed form, and the memory that it takes."""

import bisect
import math
from dataclasses import replace

from stepwell_server.capacity.inputs import Costs, Machine, Sizes, Workload
from stepwell_server.core.policies import parse_policy

_SERVERS_MAX = 1_000_000
_BUSY_MAX = 0.8


def updates_max(workload: Workload, machine: Machine, costs: Costs) -> dict[str, float]:
    """Updates per second of all workers that each part alone would let through; the smallest is what they get at most.

    The workers' own is what they would ask for if nobody else were there. In rounds of all workers it is what they
    would ask for if all were equally fast.
    """
    sizes = Sizes.of(workload, machine)
    loop = _loop_seconds(sizes, costs)
    touched = _arrays_per_update(workload, costs) * sizes.state
    kernels = touched / machine.memory_bytes_per_second
    worker = costs.worker_seconds + costs.worker_seconds_per_byte * machine.shards * (
        sizes.gradients + sizes.parameters
    )
    own_link = machine.shards * (sizes.gradients + sizes.parameters) / machine.worker_link_bytes_per_second
    core = loop * costs.loop_cores + costs.commit_seconds / _updates_per_commit(workload) + kernels * machine.cores
    alone = max(loop, own_link) + worker + costs.commit_seconds + kernels
    core += worker * costs.worker_cores if machine.local else 0.0

    def rate(seconds: float) -> float:
        return 1.0 / seconds if seconds else math.inf

    return {
        "workers": workload.workers / (workload.compute_seconds * workload.local_steps + alone),
        "link in": machine.link_bytes_per_second / sizes.gradients,
        "link out": machine.link_bytes_per_second / sizes.parameters,
        "event loop": rate(loop),
        "cores": rate(core / machine.cores),
        "memory": rate(kernels),
    }


def servers_needed(workload: Workload, machine: Machine, costs: Costs) -> int | None:
    """How many such servers, each with an equal part of the run, leave the workers all their time to compute.

    Each is busy for four fifths of its time at most. None if no number is enough: an exchange with every server takes
    its time however small its part is.
    """
    asked = workload.workers / max(1e-9, workload.compute_seconds * workload.local_steps)

    def enough(servers: int) -> bool:
        most = updates_max(workload, replace(machine, shards=servers, local=False), costs)
        return asked <= _BUSY_MAX * min(rate for part, rate in most.items() if part != "workers")

    if not enough(_SERVERS_MAX):
        return None
    return bisect.bisect_left(range(_SERVERS_MAX + 1), True, lo=1, key=enough)


def memory_bytes(workload: Workload, machine: Machine, costs: Costs, staged: int, versions: int) -> dict[str, float]:
    """What one server keeps in memory. staged: updates at a time. versions: beside the present one."""
    sizes = Sizes.of(workload, machine)
    arrays = 1 + costs.slots + bool(parse_policy(workload.policy).accumulates)
    return {
        "state": arrays * sizes.state,
        "staged": staged * sizes.state,
        "versions": versions * sizes.state,
        "connections": workload.workers * float(costs.connection_bytes),
    }


def _loop_seconds(sizes: Sizes, costs: Costs) -> float:
    return (
        costs.exchange_seconds
        + costs.receive_seconds_per_byte * sizes.gradients
        + costs.send_seconds_per_byte * sizes.parameters
    )


def _updates_per_commit(workload: Workload) -> float:
    """How many updates are in a version, when all workers take part."""
    policy = parse_policy(workload.policy)

    def number(name: str, default: float) -> float:
        value = policy.values.get(name)
        return value if isinstance(value, float) else default

    together = min(workload.workers, number("quorum", workload.workers)) if policy.has_rounds else 1.0
    return together * number("accumulate", 1.0)


def _arrays_per_update(workload: Workload, costs: Costs) -> float:
    """Arrays of the state that are read or written for an update, its share of the commit with it."""
    together = _updates_per_commit(workload)
    folds = together - 1 if together > 1 else 0
    return (costs.kernel_arrays + costs.fold_arrays * folds) / together
