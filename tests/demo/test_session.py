"""The demo as a user starts it: processes, signals, what is left of them."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress

import matplotlib.image
import psutil
import pytest

from tests.end_to_end.server import Server

# Bounds for a machine that hangs; nothing here waits so long.
END_SECONDS_MAX = 120
GONE_SECONDS_MAX = 60
ENDLESS = ["--steps", "50000"]


class Command:
    """`stepwell ...` in a session of its own, as a terminal would start it; a context manager. Reads its output."""

    def __init__(self, *arguments, cwd, environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stepwell_server", *map(str, arguments)],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self.children = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        for child in self.children.values():
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.communicate()

    def read_until(self, text):
        """Read up to the line with this text, and remember the processes that have been started by then."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                break
        else:
            raise AssertionError(f"{text!r} did not come:\n{self.output}")
        for child in psutil.Process(self.process.pid).children(recursive=True):
            command = child.cmdline()
            index = command[command.index("--index") + 1] if "--index" in command else ""
            self.children["server" if "serve" in command else f"worker {index}"] = child

    def end(self):
        """Read to the end; return the exit code. Fails if a process that it had started is left."""
        out, _ = self.process.communicate(timeout=END_SECONDS_MAX)
        self.output += out
        _, alive = psutil.wait_procs(self.children.values(), timeout=GONE_SECONDS_MAX)
        assert not alive, f"left behind: {[process.cmdline() for process in alive]}\n{self.output}"
        return self.process.returncode


@pytest.fixture
def start(tmp_path):
    """Starts `stepwell` with arguments, in an empty directory."""
    # One directory of kernels for the whole run of the tests: they are compiled once.
    kernels = tmp_path.parent / "kernels"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    environment |= {"STEPWELL_KERNEL_CACHE": str(kernels), "PYTHONUNBUFFERED": "1"}
    with ExitStack() as commands:
        yield lambda *arguments: commands.enter_context(Command(*arguments, cwd=tmp_path, environment=environment))


def test_trains_to_the_target_and_leaves_a_picture_and_no_process(start, tmp_path):
    demo = start("demo")
    demo.read_until("adam, warmup_cosine")
    assert set(demo.children) == {"server", "worker 0", "worker 1"}
    assert demo.end() == 0, demo.output
    accuracy = re.search(r"Test accuracy: (\S+)%", demo.output)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert "1,600 versions by 2 workers" in demo.output
    assert f"Picture: {tmp_path / 'stepwell-demo.png'}" in demo.output
    assert matplotlib.image.imread(tmp_path / "stepwell-demo.png").shape[:2] == (900, 1320)
    assert [path.name for path in tmp_path.iterdir()] == ["stepwell-demo.png"]


def test_says_that_the_target_was_missed(start, tmp_path):
    demo = start("demo", "--optimizer", "sgd", "--schedule", "step", "--workers", 3, "--steps", 4, "--picture", "x.png")
    assert demo.end() == 1
    assert "12 versions by 3 workers" in demo.output
    assert "expected 97.00% or better; allow more --steps" in demo.output
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["Starting the server", "starting 2 workers", "version "])
def test_an_interrupted_demo_leaves_no_process(start, tmp_path, number, moment):
    demo = start("demo", *ENDLESS)
    demo.read_until(moment)
    assert demo.children or moment == "Starting the server"
    os.killpg(demo.process.pid, number)  # as Ctrl-C does: to all in the terminal's foreground group
    assert demo.end() == (-number if number == signal.SIGKILL else 128 + number), demo.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("victim", ["server", "worker 1"])
def test_a_process_that_dies_ends_the_demo(start, victim):
    demo = start("demo", *ENDLESS)
    demo.read_until("version ")
    demo.children[victim].kill()
    assert demo.end() == 1
    assert f"stepwell: {victim} was ended by SIGKILL" in demo.output


def test_what_the_server_refuses_is_told(start):
    demo = start("demo", "--optimizer", "adamm")
    assert demo.end() == 1
    assert "optimizer 'adamm' is not known" in demo.output
    assert "did you mean 'adam'?" in demo.output


def test_bad_options_start_nothing(start):
    demo = start("demo", "--picture", "nowhere/x.png")
    assert demo.end() == 2
    assert "got picture 'nowhere/x.png', expected a file in a directory that can be written to" in demo.output
    assert "Starting" not in demo.output


def test_workers_on_their_own_finish_a_run_together(start, tmp_path):
    with Server(tmp_path.parent / "kernels") as server:
        workers = [start("demo-worker", "--address", server.address, "--steps", 150) for _ in range(2)]
        for worker in workers:
            assert worker.end() == 0, worker.output
            assert re.search(r"finished at version 30[01]: test accuracy \d+\.\d% on 449 images", worker.output)
        assert sum("created run 'digits' at version 0" in worker.output for worker in workers) == 1

        late = start("demo-worker", "--address", server.address, "--steps", 150)
        assert late.end() == 0
        assert "step" not in late.output.replace("stepwell", "")

        demo = start("demo", "--address", server.address)
        assert demo.end() == 1
        assert "got run 'digits', which is already there" in demo.output

        demo = start("demo", "--address", server.address, "--run", "other", "--steps", 5, "--target", 0)
        assert demo.end() == 0, demo.output


def test_a_worker_on_its_own_stops_at_sigterm(start, tmp_path):
    with Server(tmp_path.parent / "kernels") as server:
        worker = start("demo-worker", "--address", server.address, *ENDLESS)
        worker.read_until("step 1 ")
        worker.process.terminate()
        assert worker.end() == 128 + signal.SIGTERM
        assert "Traceback" not in worker.output


def test_a_worker_waits_for_its_server(start, tmp_path):
    with Server(tmp_path.parent / "kernels") as server:
        address = server.address
    worker = start("demo-worker", "--address", address, "--steps", 1, "--workers", 1)
    worker.read_until("trying again")
    again = Server(tmp_path.parent / "kernels")
    again.address = address
    with again:
        assert worker.end() == 0, worker.output
