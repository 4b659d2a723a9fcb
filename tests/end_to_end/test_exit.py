"""A program that ends, whatever its threads are at."""

import subprocess
import sys

import pytest

from tests.end_to_end.server import Server

SECONDS_MAX = 60

PROGRAM = """
import sys
import numpy as np
import stepwell

address, name, ending, holder = sys.argv[1:]
client = stepwell.connect(address)
run = client.create_run(name, {"w": np.zeros(3)}, optimizer="sgd", hyperparameters={"lr": 1.0})
run.push({"w": np.ones(3)})
if ending == "closed":
    client.close()
# In a namespace of its own: the thread would keep this one alive, and with it the run.
exec(holder, {})
print("ends", flush=True)
"""

HOLDER = """
import gc, threading, time
from stepwell._blocking import BlockingRepeat, BlockingStream

found = {"_MultiThreadedRendezvous": 0, "BlockingStream": 0, "BlockingRepeat": 0}
locks = []
for each in gc.get_objects():
    kind = type(each).__name__
    if kind in found:
        found[kind] += 1
    if kind == "_MultiThreadedRendezvous":
        locks.append(each._state.condition)
    elif isinstance(each, BlockingStream):
        locks.append(each._lock)
    elif isinstance(each, BlockingRepeat):
        locks.append(each._stopped._cond)
del each
assert all(found.values()), found
held = threading.Event()

def hold():
    # As threads do that are stopped when the interpreter ends, wherever they are.
    for lock in locks:
        lock.acquire()
    held.set()
    time.sleep(1000)

threading.Thread(target=hold, daemon=True).start()
held.wait()
"""


@pytest.mark.parametrize("ending", ["closed", "open"])
def test_a_program_ends_although_a_thread_stopped_with_its_locks(server: Server, name: str, ending: str) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, server.address, name, ending, HOLDER]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ends\n", "")
