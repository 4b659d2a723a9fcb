"""The demo as a user starts it: processes, signals, what is left of them."""

import os
import re
import signal
import subprocess
import sys
import uuid
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
        self.mark = uuid.uuid4().hex  # all that it starts inherit it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stepwell_server", *map(str, arguments)],
            cwd=cwd,
            env=environment | {"DEMO_TEST": self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes().values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.communicate()

    def processes(self):
        """All that run now, by name."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("DEMO_TEST") == self.mark:
                    command = process.cmdline()
                    index = command[command.index("--index") + 1] if "--index" in command else ""
                    found["server" if "serve" in command else f"worker {index}" if index else "command"] = process
        return found

    def read_until(self, text):
        """Read up to the line with this text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} did not come:\n{self.output}")

    def end(self):
        """Read to the end; return the exit code. Fails if a process that it had started is left."""
        out, _ = self.process.communicate(timeout=END_SECONDS_MAX)
        self.output += out
        _, alive = psutil.wait_procs(self.processes().values(), timeout=GONE_SECONDS_MAX)
        assert not alive, f"left behind: {alive}\n{self.output}"
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
    assert set(demo.processes()) == {"command", "server", "worker 0", "worker 1"}
    assert demo.end() == 0, demo.output
    accuracy = re.search(r"Test accuracy: (\S+)%", demo.output)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert "1,600 versions by 2 workers" in demo.output
    assert f"Picture: {tmp_path / 'stepwell-demo.png'}" in demo.output
    assert matplotlib.image.imread(tmp_path / "stepwell-demo.png").shape[:2] == (900, 1320)
    assert [path.name for path in tmp_path.iterdir()] == ["stepwell-demo.png"]


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(signal.SIGINT, "Starting the server", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "starting 2 workers", marks=pytest.mark.long),
        (signal.SIGINT, "version "),
        pytest.param(signal.SIGTERM, "version ", marks=pytest.mark.long),
        (signal.SIGKILL, "version "),
    ],
)
def test_an_interrupted_demo_leaves_no_process(start, tmp_path, number, moment):
    demo = start("demo", *ENDLESS)
    demo.read_until(moment)
    os.killpg(demo.process.pid, number)  # as Ctrl-C does: to all in the terminal's foreground group
    assert demo.end() == (-number if number == signal.SIGKILL else 128 + number), demo.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("victim", ["server", "worker 1"])
def test_a_process_that_dies_ends_the_demo(start, victim):
    demo = start("demo", *ENDLESS)
    demo.read_until("version ")
    demo.processes()[victim].kill()
    assert demo.end() == 1
    assert f"stepwell: {victim} was ended by SIGKILL" in demo.output


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


def test_uses_a_running_server(start, tmp_path):
    with Server(tmp_path.parent / "kernels") as server:
        options = ["--address", server.address, "--workers", 3, "--steps", 4]

        demo = start("demo", *options, "--optimizer", "sgd", "--schedule", "step", "--picture", "x.png")
        demo.read_until("sgd, step")
        assert "server" not in demo.processes()
        assert demo.end() == 1
        assert "12 versions by 3 workers" in demo.output
        assert "expected 97.00% or better; allow more --steps" in demo.output
        assert (tmp_path / "x.png").exists()

        demo = start("demo", *options)
        assert demo.end() == 1
        assert "got run 'digits', which is already there, at version 12" in demo.output

        demo = start("demo", *options, "--run", "other", "--optimizer", "adamm")
        assert demo.end() == 1
        assert "optimizer 'adamm' is not known" in demo.output
        assert "did you mean 'adam'?" in demo.output


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


ENCODINGS = [
    ("adam", "gradient", "bfloat16"),
    ("adam", "gradient", "float16"),
    ("adam", "gradient", "int8"),
    ("adam", "parameter", "bfloat16"),
    ("adam", "parameter", "float16"),
    ("adam", "parameter", "int8"),
    # What error feedback owes arrives in lumps. Where the update is linear in the gradients that changes nothing; Adam
    # divides by the size of the lumps, and reaches up to 1.6 points less (README.md says so).
    ("nag", "gradient", "top_k"),
    ("nag", "gradient", "sign"),
]


@pytest.mark.long
def test_it_reaches_its_accuracy_with_every_encoding(start):
    """One worker, so that nothing but the encoding differs; within half a point of the run without one."""

    def accuracy(*options):
        demo = start("demo", "--workers", "1", "--steps", "1600", *options)
        assert demo.end() == 0, demo.output
        found = re.search(r"Test accuracy: (\S+)%", demo.output)
        assert found is not None
        return float(found[1])

    plain = {optimizer: accuracy("--optimizer", optimizer) for optimizer in ("adam", "nag")}
    for optimizer, direction, encoding in ENCODINGS:
        reached = accuracy("--optimizer", optimizer, f"--{direction}-encoding", encoding)
        assert reached >= plain[optimizer] - 0.5, (optimizer, direction, encoding, reached, plain)
