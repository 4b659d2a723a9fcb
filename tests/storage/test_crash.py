"""kill -9 at every step of every operation: the next start finds the old or the new, and nothing left over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepwell_server.storage.directory import DataDirectory
from tests.storage import crash
from tests.storage.states import allocate, assert_same

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store_after(tmp_path):
    """Prepares a directory, lets another process die in it, and opens it again."""
    opened = []

    def run(prepare, operation, function, call):
        with_old = DataDirectory(tmp_path / "data", keep=1)
        prepare(with_old)
        with_old.close()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        died = subprocess.run(
            [sys.executable, "-m", "tests.storage.crash", tmp_path / "data", operation, function, str(call)],
            env=environment,
            cwd=ROOT,
            check=False,
            timeout=120,
        )
        assert died.returncode == -signal.SIGKILL
        store = DataDirectory(tmp_path / "data", keep=1, on_damaged=_never)
        opened.append(store)
        left = list(store.path.rglob(".*"))
        assert not left, left
        return store

    yield run
    for store in opened:
        store.close()


def _never(path, error):
    raise AssertionError(f"{path}: {error}")


@pytest.mark.parametrize(
    ("function", "call", "version"),
    [
        ("write", 1, 1),
        ("write", 4, 1),  # in the middle of the arrays
        ("sync", 1, 1),  # the state file
        ("sync", 2, 1),  # the manifest
        ("sync", 3, 1),  # their names
        ("rename", 1, 1),  # the snapshot's name
        ("sync", 4, 2),
        ("rename", 2, 2),  # the old one on its way out
        ("remove", 1, 2),
    ],
)
def test_saving_a_snapshot(store_after, function, call, version):
    store = store_after(lambda store: crash.save(store, 1), "save", function, call)
    data, arrays, info = store.load_newest("mnist", allocate)
    assert info.version == version
    assert_same(crash.large_state(version), data, arrays)


@pytest.mark.parametrize(("function", "call", "versions"), [("write", 4, [1]), ("rename", 1, [1]), ("sync", 4, [1, 2])])
def test_saving_a_checkpoint(store_after, function, call, versions):
    store = store_after(lambda store: crash.save_checkpoint(store, 1), "save_checkpoint", function, call)
    assert [checkpoint.version for checkpoint in store.list_checkpoints("mnist")] == versions
    for version in versions:
        data, arrays, _ = store.load_checkpoint("mnist", f"at-{version}", allocate)
        assert_same(crash.large_state(version), data, arrays)


@pytest.mark.parametrize(("function", "names"), [("rename", ["mnist"]), ("sync", []), ("remove", [])])
def test_deleting_a_run(store_after, function, names):
    store = store_after(lambda store: crash.save(store, 1), "delete", function, 1)
    assert store.run_names() == names
    if names:
        store.load_newest("mnist", allocate)
    else:
        assert not (store.path / "runs" / "mnist").exists()


@pytest.mark.parametrize(("function", "call", "generation"), [("sync", 1, 3), ("replace", 1, 3), ("sync", 2, 5)])
def test_entering_a_generation(store_after, function, call, generation):
    store = store_after(lambda store: store.enter_generation("mnist", 3), "enter_generation", function, call)
    assert store.generation("mnist") == generation


@pytest.mark.parametrize(("function", "call", "clean"), [("sync", 1, False), ("replace", 1, False), ("sync", 2, True)])
def test_marking_a_clean_stop(store_after, function, call, clean):
    store = store_after(lambda store: None, "mark_clean", function, call)
    assert store.take_clean_mark() == clean


@pytest.mark.parametrize(("function", "clean"), [("unlink", True), ("sync", False)])
def test_taking_the_mark(store_after, function, clean):
    store = store_after(lambda store: store.mark_clean(), "take_clean_mark", function, 1)
    assert store.take_clean_mark() == clean
