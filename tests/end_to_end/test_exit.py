"""A program that ends, whatever its threads are at."""

import subprocess
import sys

import pytest

from tests.end_to_end.server import Server

SECONDS_MAX = 60

PROGRAM = """
import gc, sys, threading, time
import numpy as np
import stepwell

address, name, ending = sys.argv[1:]
client = stepwell.connect(address)
run = client.create_run(name, {"w": np.zeros(3)}, optimizer="sgd", hyperparameters={"lr": 1.0})
run.push({"w": np.ones(3)})
if ending == "closed":
    client.close()
calls = [found for found in gc.get_objects() if type(found).__name__ == "_MultiThreadedRendezvous"]
assert len(calls) > 1
locks = [call._state.condition for call in calls]
del calls
held = threading.Event()

def hold():
    # As a thread of grpc's does that is stopped with the lock of its call.
    for lock in locks:
        lock.acquire()
    held.set()
    time.sleep(1000)

threading.Thread(target=hold, daemon=True).start()
held.wait()
print("ends", flush=True)
"""


@pytest.mark.parametrize("ending", ["closed", "open"])
def test_a_program_ends_although_a_thread_stopped_with_a_calls_lock(server: Server, name: str, ending: str) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, server.address, name, ending]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ends\n", "")
