"""The model against closed forms, which know nothing of events, queues and policies."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from stepwell_server.capacity.inputs import Costs, Machine, Workload
from stepwell_server.capacity.limits import memory_bytes, servers_needed, updates_max
from stepwell_server.capacity.model import Prediction, predict
from stepwell_server.core.errors import InvalidValue, UnknownPolicy
from stepwell_server.core.layout import ParameterSpec
from stepwell_server.core.run import Run
from stepwell_server.core.spec import RunSpec

FREE = Costs(
    exchange_seconds=0.0,
    receive_seconds_per_byte=0.0,
    send_seconds_per_byte=0.0,
    commit_seconds=0.0,
    fold_seconds=0.0,
    kernel_arrays=0,
    fold_arrays=0,
    worker_seconds=0.0,
    worker_seconds_per_byte=0.0,
)
MEGABYTE = Workload(parameters=250_000, spread=0.0)  # each way
SYNC = {"name": "sync"}
POLICIES = [{"name": "async"}, {"name": "bounded", "lead_max": 3}, SYNC]


def change(what, **changes):
    return type(what)(**{**vars(what), **changes})


def test_one_worker_computes_and_waits_for_its_exchange():
    """1 / (t_c + t_s), where t_s is everything one after another."""
    costs = Costs()
    found = predict(change(MEGABYTE, workers=1, compute_seconds=0.02), Machine(), costs, updates=100)
    moved = 1e6
    kernels = costs.kernel_arrays * moved / Machine().memory_bytes_per_second
    exchange = (
        costs.exchange_seconds
        + (costs.receive_seconds_per_byte + costs.send_seconds_per_byte) * moved
        + (costs.commit_seconds + kernels)
        + (costs.worker_seconds + costs.worker_seconds_per_byte * 2 * moved)
    )
    assert found.updates_per_second == pytest.approx(1 / (0.02 + exchange))
    assert found.exchange_percentile(50) == pytest.approx(exchange)
    assert found.computing == pytest.approx(0.02 / (0.02 + exchange))
    assert found.staleness.keys() == {0}


@pytest.mark.parametrize(
    ("costs", "machine", "rate"),
    [
        (change(FREE, exchange_seconds=0.004, loop_cores=1.0), Machine(cores=8), 1 / 0.004),
        (FREE, Machine(link_bytes_per_second=5e7), 50.0),
        (change(FREE, commit_seconds=0.01), Machine(cores=8), 100.0),
        # Each commit finds the version before it on its way out, and leaves it alone: an eighth array.
        (change(FREE, kernel_arrays=7), Machine(memory_bytes_per_second=8e8), 100.0),
        (change(FREE, worker_seconds=0.01, worker_cores=1.0), Machine(cores=2, local=True), 200.0),
        (change(FREE, exchange_seconds=0.004, loop_cores=1.5), Machine(cores=1), 1 / 0.006),
    ],
    ids=["event loop", "link", "commits", "memory", "cores of workers", "cores of the loop"],
)
def test_many_workers_get_what_the_fullest_part_lets_through(costs, machine, rate):
    workload = change(MEGABYTE, workers=50, compute_seconds=0.05, spread=0.5)
    found = predict(workload, machine, costs, updates=3000)
    assert found.updates_per_second == pytest.approx(rate, rel=0.01)
    assert max(found.use.values()) <= 1 + 1e-9


def test_cores_that_are_shared_are_the_textbook_s_machine_repair_model():
    """M/M/c//N: N machines that break after an exponential time, c repairmen. With one core, shared by all, the queue
    is as long whatever the distribution of the repair is (BCMP 1975); two cores are compared within their error."""
    workers, think, work = 6, 0.1, 0.03
    costs = change(FREE, worker_seconds=work, worker_cores=1.0)
    workload = change(MEGABYTE, workers=workers, compute_seconds=think, spread=1.0)
    for cores, tolerance in ((1, 0.04), (2, 0.04)):
        found = predict(workload, Machine(cores=cores, local=True), costs, updates=10_000)
        weights = [
            math.comb(workers, at)
            * math.factorial(at)
            * (work / think) ** at
            / (math.factorial(min(at, cores)) * cores ** max(0, at - cores))
            for at in range(workers + 1)
        ]
        working = sum(weight * (workers - at) for at, weight in enumerate(weights)) / sum(weights)
        assert found.updates_per_second == pytest.approx(working / think, rel=tolerance)
        assert found.computing == pytest.approx(working / workers, rel=tolerance)


def test_a_round_takes_as_long_as_the_slowest():
    workload = change(MEGABYTE, workers=5, compute_seconds=0.01, slow_workers=1, slow_factor=7.0, policy=SYNC)
    found = predict(workload, Machine(), FREE, updates=200)
    assert found.versions_per_second == pytest.approx(1 / 0.07)
    assert found.updates_per_second == pytest.approx(5 / 0.07)
    assert found.staged_max == 5
    quorum = predict(change(workload, policy={**SYNC, "quorum": 4}), Machine(), FREE, updates=200)
    assert quorum.versions_per_second == pytest.approx(1 / 0.01, rel=0.1)
    assert 0 < quorum.refused < 0.2  # what the slow one brings is late


def test_an_update_is_as_stale_as_there_are_others():
    """Equal workers that get their parameters at once: N - 1 commits between two of one's own."""
    costs = change(FREE, commit_seconds=1e-4)
    found = predict(change(MEGABYTE, workers=9, compute_seconds=0.02), Machine(cores=64), costs, updates=2000)
    assert found.staleness_mean == pytest.approx(8, abs=0.05)
    assert found.staleness_percentile(99) == 8


@pytest.mark.parametrize("lead", [1, 3])
def test_nobody_runs_away_from_a_slow_worker(lead):
    workload = change(MEGABYTE, workers=4, spread=0.3, slow_workers=1, policy={"name": "bounded", "lead_max": lead})
    found = predict(workload, Machine(), Costs(), updates=2000)
    # While one takes a step the others, from lead behind to lead ahead of it, take twice that at most, and one more.
    assert max(found.staleness) <= 3 * (2 * lead + 1)
    slowest = 1 / (workload.compute_seconds * workload.slow_factor)
    assert found.updates_per_second == pytest.approx(4 * slowest, rel=0.2)
    free = predict(change(workload, policy={"name": "async"}), Machine(), Costs(), updates=2000)
    assert free.updates_per_second > 2 * found.updates_per_second
    assert max(free.staleness) > max(found.staleness)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["name"])
def test_more_workers_get_more_until_something_is_full(policy):
    machine = Machine(link_bytes_per_second=2.5e8)
    rates = []
    for workers in (1, 2, 4, 8, 16, 64):
        workload = change(MEGABYTE, workers=workers, spread=0.25, compute_seconds=0.04, policy=policy)
        found = predict(workload, machine, Costs(), updates=1500)
        assert found.updates_per_second <= 1.05 * min(updates_max(workload, machine, Costs()).values())
        rates.append(found.updates_per_second)
    assert all(after > 0.98 * before for before, after in itertools.pairwise(rates))
    assert rates[1] > 1.5 * rates[0]
    assert rates[-1] / 64 < 0.5 * rates[0]


def test_what_makes_updates_fewer_or_smaller():
    workload = change(MEGABYTE, workers=20, compute_seconds=0.01)
    machine = Machine(link_bytes_per_second=1e8)
    plain = predict(workload, machine, FREE)
    assert plain.updates_per_second == pytest.approx(100, rel=0.01)
    halved = predict(change(workload, gradient_bytes=2.0, parameter_bytes=2.0), machine, FREE)
    assert halved.updates_per_second == pytest.approx(200, rel=0.01)
    sharded = predict(workload, change(machine, shards=4), FREE)
    assert sharded.updates_per_second == pytest.approx(400, rel=0.01)
    local = predict(change(workload, local_steps=100), machine, FREE)
    assert local.updates_per_second == pytest.approx(20 / (100 * 0.01 + 0.02), rel=0.02)
    own = predict(change(workload, workers=1), change(machine, worker_link_bytes_per_second=2e7), FREE, updates=50)
    assert own.updates_per_second == pytest.approx(1 / (0.01 + 2 * 0.05))


def test_accumulated_updates_make_fewer_versions():
    workload = change(MEGABYTE, workers=6, policy={"name": "async", "accumulate": 3})
    found = predict(workload, Machine(), Costs(), updates=600)
    assert found.versions_per_second == pytest.approx(found.updates_per_second / 3, rel=0.02)


@pytest.mark.parametrize("policy", [*POLICIES, {"name": "async", "accumulate": 3}, {**SYNC, "accumulate": 2}], ids=str)
def test_the_state_takes_what_a_run_takes(policy):
    parameter = ParameterSpec("w", (MEGABYTE.parameters,), np.dtype(np.float32))
    spec = RunSpec((parameter,), "adam", policy=policy)
    layout = spec.layout()
    (vectors,) = Run.state_sizes(layout, spec.settings(layout))
    kept = memory_bytes(change(MEGABYTE, policy=policy), Machine(), Costs(), 2, 1)
    assert kept["state"] == sum(size.elements * size.dtype.itemsize for size in vectors.values())


def test_what_is_too_stale_is_refused():
    workload = change(MEGABYTE, workers=6, spread=0.5, policy={"name": "async", "staleness_max": 2})
    found = predict(workload, Machine(), Costs(), updates=1000)
    assert 0.2 < found.refused < 1
    assert max(found.staleness) <= 2


def test_the_same_seed_gives_the_same():
    workload = change(MEGABYTE, spread=1.0)
    first, again, other = (predict(workload, Machine(), Costs(), updates=300, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("policy", [*POLICIES, {**SYNC, "quorum": 60}, {"name": "async", "staleness_max": 0}], ids=str)
@pytest.mark.parametrize("workers", [1, 100])
def test_the_fewest_updates_that_are_simulated_are_enough(policy, workers):
    workload = change(MEGABYTE, workers=workers, policy=policy)
    found = predict(workload, Machine(), Costs(), updates=5 * workers)
    assert found.updates_per_second > 0
    assert found.exchange_percentile(50) > 0
    assert found.staleness.total() > 0
    with pytest.raises(InvalidValue, match=rf"{5 * workers - 1} updates of .*expected {5 * workers} or more"):
        predict(workload, Machine(), Costs(), updates=5 * workers - 1)


def test_as_many_updates_as_it_takes():
    found = predict(change(MEGABYTE, workers=500, policy=SYNC), Machine(), FREE)
    assert found.updates_per_second == pytest.approx(500 / 0.05)


def test_where_nothing_takes_any_time():
    with pytest.raises(InvalidValue, match="took no time"):
        predict(change(MEGABYTE, compute_seconds=0.0), Machine(memory_bytes_per_second=math.inf), FREE)


def test_where_all_were_refused():
    found = Prediction(1.0, 0.0, 1.0, {}, 0.0, Counter(), [1.0], 1, 0)
    assert (found.staleness_max, found.staleness_mean, found.staleness_percentile(99)) == (0, 0, 0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["name"])
@pytest.mark.parametrize(
    "machine",
    [
        Machine(link_bytes_per_second=1.25e8),
        Machine(worker_link_bytes_per_second=1.25e8),
        Machine(cores=1),
        Machine(cores=1, local=True),
        Machine(link_bytes_per_second=1e9, worker_link_bytes_per_second=5e8, shards=4),
    ],
    ids=["link", "own link", "one core", "one core for all", "shards"],
)
def test_one_worker_gets_what_the_closed_form_says(policy, machine):
    workload = Workload(workers=1, parameters=25_000_000, spread=0.0, policy=policy)
    found = predict(workload, machine, Costs(), updates=50)
    most = updates_max(workload, machine, Costs())
    assert found.updates_per_second == pytest.approx(most["workers"])
    assert min(most, key=lambda part: most[part]) == "workers"


@pytest.mark.parametrize(
    "policy", [{"name": "async"}, {"name": "async", "accumulate": 4}, {**SYNC, "deterministic": False}], ids=str
)
def test_commits_are_made_one_at_a_time(policy):
    costs = change(FREE, commit_seconds=0.01, fold_seconds=0.004, kernel_arrays=7, fold_arrays=3)
    workload = change(MEGABYTE, workers=50, compute_seconds=0.0, policy=policy)
    machine = Machine(cores=8, memory_bytes_per_second=1e9)
    found = predict(workload, machine, costs, updates=2000)
    most = updates_max(workload, machine, costs)
    assert min(most, key=lambda part: most[part]) == "commits"
    # Simulated are copies for readers, and the first of a round folded before the others come, too.
    assert 0.8 * most["commits"] < found.updates_per_second <= 1.001 * most["commits"]
    assert found.use["commits"] == pytest.approx(1.0)
    if policy["name"] == "async":
        asks = change(workload, compute_seconds=1.0, workers=int(0.7 * most["commits"]))
        assert servers_needed(asks, machine, costs) == 1
        assert servers_needed(change(asks, workers=3 * asks.workers), machine, costs) is None


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        (Costs, {"exchange_seconds": math.nan}),
        (Costs, {"commit_seconds": math.inf}),
        (Costs, {"worker_seconds": -1e-9}),
        (Costs, {"loop_cores": 0.0}),
        (Costs, {"worker_cores": 0}),
        (Machine, {"link_bytes_per_second": 0.0}),
        (Machine, {"memory_bytes_per_second": math.nan}),
        (Machine, {"shards": 0}),
        (Workload, {"workers": 0}),
        (Workload, {"compute_seconds": math.inf}),
        (Workload, {"spread": math.nan}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_numbers_that_make_no_sense_are_refused(what, changes):
    ((name, value),) = changes.items()
    with pytest.raises(InvalidValue, match=rf"{name} is {value}, expected a number from"):
        what(**changes)


def test_workers_that_would_wait_for_ever():
    with pytest.raises(InvalidValue, match="wait for ever"):
        predict(change(MEGABYTE, workers=2, policy={**SYNC, "workers_min": 3}), Machine(), Costs())
    with pytest.raises(UnknownPolicy):
        predict(change(MEGABYTE, policy={"name": "chaos"}), Machine(), Costs())


def test_how_many_servers_leave_the_workers_their_time():
    """Sharding divides the bytes, and nothing else."""
    costs = change(FREE, receive_seconds_per_byte=1e-9)
    workload = change(MEGABYTE, workers=1000, compute_seconds=1.0)
    assert servers_needed(workload, Machine(cores=8), costs) == 2  # 1000 times 1 MB are a second of one event loop
    assert servers_needed(change(workload, local_steps=2), Machine(cores=8), costs) == 1
    costs = change(FREE, exchange_seconds=1e-3)
    assert servers_needed(workload, Machine(cores=8), costs) is None
    assert servers_needed(change(workload, local_steps=2), Machine(cores=8), costs) == 1
    by_link = servers_needed(workload, Machine(link_bytes_per_second=1e8), FREE)
    assert by_link == 13  # 1 GB/s, and no link more than four fifths full
