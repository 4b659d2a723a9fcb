"""What each part of a server allows at most, in closed form, and the memory that it takes."""

import bisect
from dataclasses import replace
from math import inf

from stepwell_server.capacity.inputs import SERVERS_MAX, Costs, Machine, Sizes, Workload
from stepwell_server.core.policies import parse_policy

_BUSY_MAX = 0.8


def updates_max(workload: Workload, machine: Machine, costs: Costs) -> dict[str, float]:
    """Updates per second of all workers that each part alone would let through; the smallest is what they get at most.

    The workers' own is what they would ask for if each were there alone, and as fast as those that are not slow: an
    exchange then takes the time of everything that it passes. A run's commits are made one at a time.
    """
    sizes = Sizes.of(workload, machine)
    loop = _loop_seconds(sizes, costs)
    beside, kernels = _commit_seconds(workload, machine, costs)
    core = loop * costs.loop_cores + beside + kernels * machine.cores
    core += _worker_seconds(sizes, machine, costs) * costs.worker_cores if machine.local else 0.0
    asks = workload.compute_seconds * workload.local_steps + _exchange_seconds(workload, machine, costs)
    return {
        "workers": workload.workers * _rate(asks),
        "link in": machine.link_bytes_per_second / sizes.gradients,
        "link out": machine.link_bytes_per_second / sizes.parameters,
        "event loop": _rate(loop),
        "commits": _rate(beside + kernels),
        "cores": _rate(core / machine.cores),
        "memory": _rate(kernels),
    }


def servers_needed(workload: Workload, machine: Machine, costs: Costs) -> int | None:
    """How many such servers, each with an equal part of the run, leave the workers all their time to compute.

    Each is busy for four fifths of its time at most. None if no number is enough: an exchange with every server, and
    its commit there, take their time however small its part is.
    """
    asked = workload.workers / max(1e-9, workload.compute_seconds * workload.local_steps)

    def enough(servers: int) -> bool:
        most = updates_max(workload, replace(machine, shards=servers, local=False), costs)
        return asked <= _BUSY_MAX * min(rate for part, rate in most.items() if part != "workers")

    if not enough(SERVERS_MAX):
        return None
    return bisect.bisect_left(range(SERVERS_MAX + 1), True, lo=1, key=enough)


def memory_bytes(workload: Workload, machine: Machine, costs: Costs, staged: int, versions: int) -> dict[str, float]:
    """What one server keeps in memory. staged: updates at a time. versions: beside the present one."""
    sizes = Sizes.of(workload, machine)
    policy = parse_policy(workload.policy)
    # Updates are added up in an array of their own, also those of a round.
    arrays = 1 + costs.slots + (policy.accumulates or policy.has_rounds)
    return {
        "state": arrays * sizes.state,
        "staged": staged * sizes.state,
        "versions": versions * sizes.state,
        "connections": workload.workers * float(costs.connection_bytes),
    }


def _rate(seconds: float) -> float:
    return 1.0 / seconds if seconds else inf


def _loop_seconds(sizes: Sizes, costs: Costs) -> float:
    return (
        costs.exchange_seconds
        + costs.receive_seconds_per_byte * sizes.gradients
        + costs.send_seconds_per_byte * sizes.parameters
    )


def _worker_seconds(sizes: Sizes, machine: Machine, costs: Costs) -> float:
    moved = machine.shards * (sizes.gradients + sizes.parameters)
    return costs.worker_seconds + costs.worker_seconds_per_byte * moved


def _exchange_seconds(workload: Workload, machine: Machine, costs: Costs) -> float:
    """What an exchange takes a worker for whom everything is free."""
    sizes = Sizes.of(workload, machine)

    def stretched(seconds: float, cores: float) -> float:
        return seconds * max(1.0, cores / machine.cores)

    def transfer(size_bytes: float, loop_seconds_per_byte: float) -> float:
        loop = costs.exchange_seconds / 2 + loop_seconds_per_byte * size_bytes
        return max(
            stretched(loop, costs.loop_cores),
            size_bytes / machine.link_bytes_per_second,
            machine.shards * size_bytes / machine.worker_link_bytes_per_second,
        )

    worker = _worker_seconds(sizes, machine, costs)
    return (
        (stretched(worker, costs.worker_cores) if machine.local else worker)
        + transfer(sizes.gradients, costs.receive_seconds_per_byte)
        + sum(_commit_seconds(replace(workload, workers=1), machine, costs))
        + transfer(sizes.parameters, costs.send_seconds_per_byte)
    )


def _commit_seconds(workload: Workload, machine: Machine, costs: Costs) -> tuple[float, float]:
    """An update's share of the commits when all workers take part: beside the kernels, and of the kernels.

    A round is taken to be folded at once. What is accumulated is folded update by update or round by round, each in a
    commit of its own.
    """
    policy = parse_policy(workload.policy)

    def number(name: str, default: float) -> float:
        value = policy.values.get(name)
        return value if isinstance(value, float) else default

    together = min(workload.workers, number("quorum", workload.workers)) if policy.has_rounds else 1.0
    # The first of those that make a version need not be added to anything.
    folds = 1.0 if policy.accumulates else (together - 1) / together
    beside = costs.commit_seconds / together + costs.fold_seconds * folds
    arrays = costs.kernel_arrays / (together * number("accumulate", 1.0)) + costs.fold_arrays * folds
    state_bytes = Sizes.of(workload, machine).state
    return beside, arrays * state_bytes / machine.memory_bytes_per_second
