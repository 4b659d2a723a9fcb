"""What a forked child gets of a client that it inherited, and that its parent goes on as if nothing had been."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import stepwell
from tests.end_to_end.server import Server

SECONDS_MAX = 300

# The programs run in processes of their own: this one has threads that must not be forked.
PREAMBLE = """
import asyncio, contextlib, gc, multiprocessing, os, sys, threading
import numpy as np
import stepwell
import stepwell.aio

address, name, transport = sys.argv[1:]
START, GRADS = {"w": np.zeros(1000), "b": np.zeros(3, np.float32)}, {"w": np.ones(1000), "b": np.ones(3, np.float32)}
SGD = {"optimizer": "sgd", "hyperparameters": {"lr": 1.0}}

def refused(call, connected=None):
    connected = connected or os.getppid()
    try:
        call()
    except stepwell.ServerUnavailable as error:
        assert error.details == {"forked_from": str(connected)}, error.details
        forked = f"process {os.getpid()}, which was forked after process {connected} had connected"
        for part in (forked, "'spawn'", "fork before"):
            assert part in str(error), str(error)
    else:
        raise AssertionError("the call was made")

def ends_well(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the child ended with {status}"

def forked(work, ending=os._exit):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        ending(0)
    ends_well(pid)
"""


def run_program(text: str, address: str, name: str, transport: str = "stream") -> None:
    # Newer Pythons warn of a fork beside threads, which is what is tested.
    options = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    command = [sys.executable, *options, "-c", PREAMBLE + text, address, name, transport]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert (done.returncode, done.stderr) == (0, "")


EVERY_CALL = """
client = stepwell.connect(address, worker="trainer", transport=transport)
run = client.create_run(name, START, **SGD)
other = client.get_run(name)  # has not joined
never = stepwell.connect(address)
run.step(GRADS)
run.step_async(GRADS).result()  # its thread does not live in the child
gradients = run.gradients()
assert run.transport == transport

def in_child():
    with contextlib.suppress(stepwell.ServerUnavailable), run.update() as update:
        raise AssertionError("the block was entered")
    for call in (
        lambda: run.step(GRADS), lambda: run.push(GRADS), run.pull, run.gradients, run.parameters, run.refresh,
        run.barrier, run.get_state, lambda: run.report({"loss": 1.0}), lambda: run.change(hyperparameters={"lr": 0.5}),
        lambda: run.step_async(GRADS), run.pull_async, lambda: other.push(GRADS), other.pull,
        client.ping, client.list_runs, lambda: client.create_run(name, START, **SGD),
        never.ping, stepwell.connect(address).ping,
        lambda: asyncio.run(stepwell.aio.connect(address).ping()),
    ):
        refused(call)
    run.close()
    client.close()

for ending in (os._exit, sys.exit):
    forked(in_child, ending)
    versions = run.version
    assert (run.step(GRADS)["w"] == -(versions + 1)).all()
    assert (run.worker, run.transport) == ("trainer", transport)
    assert all(run.gradients()[key] is value for key, value in gradients.items())
(worker,) = run.refresh().workers
assert (worker.name, worker.epoch, worker.last_sequence) == ("trainer", 1, run.version), worker
with run.update() as update:
    update.add("w", GRADS["w"])
    forked(lambda: refused(lambda: update.add("b", GRADS["b"])))
    update.add("b", GRADS["b"])
assert run.version == 5, run.version
run.close()
assert not client.get_run(name).refresh().workers
client.close()
"""


@pytest.mark.parametrize("transport", ["stream", "shared_memory"])
def test_every_call_is_refused_at_once_and_the_parent_goes_on(server: Server, name: str, transport: str) -> None:
    run_program(EVERY_CALL, server.address, name, transport)


BLOCKS = """
with stepwell.connect(address, worker="trainer", transport=transport) as client:
    with client.create_run(name, START, **SGD) as run:
        run.step(GRADS)
        with run.update() as update:
            update.add("w", GRADS["w"])
            pid = os.fork()
            if pid == 0:
                sys.exit(0)  # through the ends of all the blocks, and through atexit
            ends_well(pid)
            update.add("b", GRADS["b"])
        pid = os.fork()
        if pid == 0:
            del run, client, update
            gc.collect()
            os._exit(0)
        ends_well(pid)
        assert (run.step(GRADS)["b"] == -3).all()
        (worker,) = run.refresh().workers
        assert (worker.name, worker.epoch, worker.last_sequence) == ("trainer", 1, 3), worker
"""


@pytest.mark.parametrize("transport", ["stream", "shared_memory"])
def test_a_child_that_leaves_the_blocks_leaves_nothing_for_its_parent(
    server: Server, name: str, transport: str
) -> None:
    run_program(BLOCKS, server.address, name, transport)


BUSY = """
import stepwell._membership

# Heartbeats every 0.1 s, so that forks fall into them, on a lease that no stall makes run out.
LEASE_SECONDS = 1000
stepwell._membership.HEARTBEATS_PER_LEASE = 10 * LEASE_SECONDS

stopped = threading.Event()
client = stepwell.connect(address, worker="trainer", transport=transport, lease_seconds=LEASE_SECONDS)
run = client.create_run(name, START, **SGD)

def keep_on(number):
    with stepwell.connect(address) as client, client.create_run(f"{name}-{number}", START, **SGD) as run:
        while not stopped.is_set():
            run.step(GRADS)

threads = [threading.Thread(target=keep_on, args=(number,)) for number in range(2)]
for thread in threads:
    thread.start()
try:
    for version in range(30):
        forked(lambda: refused(lambda: run.step(GRADS)), sys.exit if version % 2 else os._exit)
        assert (run.step(GRADS)["w"] == -(version + 1)).all()
finally:
    stopped.set()
    for thread in threads:
        thread.join()
run.close()
client.close()
"""


@pytest.mark.parametrize("transport", ["stream", "shared_memory"])
def test_whatever_other_threads_of_the_parent_do(server: Server, name: str, transport: str) -> None:
    run_program(BUSY, server.address, name, transport)


CLOSED = """
with stepwell.connect(address) as client:
    client.ping()
forked(lambda: refused(stepwell.connect(address).ping))  # the threads of gRPC are older than a closed client

"""


def test_a_child_of_a_process_that_has_closed_its_client(server: Server, name: str) -> None:
    run_program(CLOSED, server.address, name)


GRANDCHILD = """
with stepwell.connect(address) as client:
    client.ping()
connected = os.getpid()

def child():
    refused(stepwell.connect(address).ping)
    forked(grandchild)

def grandchild():
    refused(stepwell.connect(address).ping, connected)

forked(lambda: forked(grandchild))
forked(child)
"""


def test_a_grandchild_hears_of_the_process_that_connected_and_not_of_a_child_that_was_refused(
    server: Server, name: str
) -> None:
    run_program(GRANDCHILD, server.address, name)


FORK_FIRST = """
client = stepwell.connect(address)  # which sends nothing before the first call

def work():
    with client:
        run = client.create_run(name, START, **SGD)
        run.step(GRADS)

context = multiprocessing.get_context("fork")
children = [context.Process(target=work) for _ in range(2)]
for child in children:
    child.start()
for child in children:
    child.join()
assert [child.exitcode for child in children] == [0, 0]
run = client.create_run(name, START, **SGD)
assert (run.pull()["w"] == -2).all()
client.close()
"""


def test_who_forks_before_the_first_call_may_call_on_both_sides(server: Server, name: str) -> None:
    run_program(FORK_FIRST, server.address, name)


WITH_AWAIT = """
async def main():
    client = stepwell.aio.connect(address, worker="trainer", transport=transport)
    run = await client.create_run(name, START, **SGD)
    await run.step(GRADS)
    return client, run

async def in_child():
    for call in (lambda: run.step(GRADS), run.pull, lambda: run.step_async(GRADS), client.ping):
        try:
            await call()
        except stepwell.ServerUnavailable as error:
            assert "'spawn'" in str(error)
        else:
            raise AssertionError("the call was made")
    await run.close()
    await client.close()

with asyncio.Runner() as runner:
    client, run = runner.run(main())
    for number in range(3):
        forked(lambda: asyncio.run(in_child()))
        assert (runner.run(run.step(GRADS))["w"] == -(number + 2)).all()
    (worker,) = runner.run(run.refresh()).workers
    assert (worker.name, worker.epoch, worker.last_sequence) == ("trainer", 1, 4), worker
    runner.run(run.close())
    runner.run(client.close())
"""


@pytest.mark.parametrize("transport", ["stream", "shared_memory"])
def test_with_await(server: Server, name: str, transport: str) -> None:
    run_program(WITH_AWAIT, server.address, name, transport)


def test_what_a_spawned_process_cannot_be_given_says_so(client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(1)}, optimizer="sgd")
    for item in (client, run):
        with pytest.raises(TypeError, match="cannot be copied or pickled: connect in each process"):
            pickle.dumps(item)
