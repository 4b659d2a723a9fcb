import errno
import os
from pathlib import Path

import pytest

from stepwell_server.core.errors import (
    CheckpointDamaged,
    CheckpointExists,
    InvalidName,
    MemoryExhausted,
    StorageFailed,
    UnknownCheckpoint,
)
from stepwell_server.storage.directory import CheckpointInfo, DataDirectory
from tests.storage.states import allocate, assert_same, make_state


@pytest.fixture
def reported():
    return []


@pytest.fixture
def store(tmp_path, reported):
    store = DataDirectory(tmp_path / "data", on_damaged=lambda path, error: reported.append((path.name, str(error))))
    yield store
    store.close()


def save(store, *versions, name="mnist"):
    for version in versions:
        store.save_snapshot(name, *make_state(name=name, version=version).stored)


def snapshots(store):
    return sorted(path.name for path in (store.path / "runs" / "mnist" / "snapshots").iterdir())


def damage(directory):
    state = directory / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)


def test_everything_is_closed_to_others(store):
    save(store, 1)
    for path in [store.path, *store.path.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0 or not path.is_dir(), path


def test_a_second_server_is_refused(store):
    with pytest.raises(StorageFailed, match=rf"in use by process {os.getpid()}, .*another --data-dir"):
        DataDirectory(store.path)
    save(store, 1)


def test_the_lock_ends_with_its_owner(tmp_path):
    DataDirectory(tmp_path / "data").close()
    DataDirectory(tmp_path / "data").close()


def test_a_path_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="opening the data directory"):
        DataDirectory(tmp_path / "file" / "data")
    with pytest.raises(StorageFailed, match="opening the data directory"):
        DataDirectory(Path("/proc/stepwell"))


def test_the_last_snapshots_are_kept(store):
    save(store, 1, 2, 3, 4, 5)
    assert snapshots(store) == ["00000003", "00000004", "00000005"]
    data, arrays, info = store.load_newest("mnist", allocate)
    assert (info.version, info.created_seconds) == (5, 1005.0)
    assert_same(make_state(version=5), data, arrays)


def test_counters_go_on_after_a_restart(tmp_path):
    for version in range(1, 4):
        store = DataDirectory(tmp_path / "data", keep=2)
        save(store, version)
        store.close()
    assert snapshots(store) == ["00000002", "00000003"]


def test_counters_grow_past_eight_digits(store):
    save(store, 1)
    (store.path / "runs/mnist/snapshots/00000001").rename(store.path / "runs/mnist/snapshots/99999999")
    save(store, 2, 3)
    assert snapshots(store) == ["100000000", "100000001", "99999999"]
    assert store.load_newest("mnist", allocate)[2].version == 3


def test_the_one_before_a_damaged_snapshot_is_used(store, reported):
    save(store, 1, 2, 3)
    damage(store.path / "runs/mnist/snapshots/00000003")
    (store.path / "runs/mnist/snapshots/00000002/manifest.json").unlink()
    data, arrays, info = store.load_newest("mnist", allocate)
    assert info.version == 1
    assert_same(make_state(version=1), data, arrays)
    assert [name for name, _ in reported] == ["00000003.damaged", "00000002.damaged"]
    assert "mnist/snapshots/00000003/state.safetensors' is damaged: its content has digest" in reported[0][1]
    assert snapshots(store) == ["00000001", "00000002.damaged", "00000003.damaged"]
    save(store, 4, 5, 6)
    assert snapshots(store) == ["00000004", "00000005", "00000006"]


def test_a_run_without_a_whole_snapshot_stays_known(store, reported):
    save(store, 1, 2)
    for directory in (store.path / "runs/mnist/snapshots").iterdir():
        damage(directory)
    for _ in range(2):
        with pytest.raises(CheckpointDamaged, match=r"no snapshot that is whole \(2 damaged\)"):
            store.load_newest("mnist", allocate)
        assert store.run_names() == ["mnist"]
    assert len(reported) == 2


def test_a_trouble_of_the_moment_sets_nothing_aside(store, monkeypatch, reported):
    save(store, 1, 2)

    def refuse(sizes):
        raise MemoryExhausted("none")

    with pytest.raises(MemoryExhausted):
        store.load_newest("mnist", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", _raise(OSError(errno.EMFILE, "Too many open files")))
        with pytest.raises(StorageFailed, match="limit of open files"):
            store.load_newest("mnist", allocate)
    assert store.load_newest("mnist", allocate)[2].version == 2
    assert not reported


def test_a_disk_that_cannot_read_is_damage(store, monkeypatch, reported):
    save(store, 1)
    monkeypatch.setattr(Path, "read_bytes", _raise(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(CheckpointDamaged):
        store.load_newest("mnist", allocate)
    assert "Input/output error" in reported[0][1]


def test_a_disk_that_cannot_sync_leaves_the_snapshots_as_they_were(store, monkeypatch):
    save(store, 1)
    real = os.fsync
    for working in range(4):  # the state, the manifest, their names, the snapshot's name
        calls = [*[real] * working, _raise(OSError(errno.EIO, "Input/output error"))]
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor, calls=calls: calls.pop(0)(descriptor))
            with pytest.raises(StorageFailed, match="Input/output error"):
                save(store, 2)
        assert calls == []
        assert snapshots(store) == ["00000001"]


def test_another_runs_snapshot_is_refused(store, reported):
    save(store, 1)
    save(store, 2, name="other")
    (store.path / "runs/other/snapshots/00000001").rename(store.path / "runs/mnist/snapshots/00000002")
    assert store.load_newest("mnist", allocate)[2].version == 1
    assert "is of run 'other', expected 'mnist'" in reported[0][1]


def test_run_names(store):
    save(store, 1, name="b")
    save(store, 1, name="a.1")
    store.enter_generation("no-snapshot", 1)
    (store.path / "runs" / "a copy" / "snapshots" / "00000001").mkdir(parents=True)
    (store.path / "runs" / "notes.txt").write_text("")
    assert store.run_names() == ["a.1", "b"]


def test_checkpoints(store):
    assert store.list_checkpoints("mnist") == []
    for name, version in [("z", 1), ("best-1.0", 2), ("a", 3)]:
        store.save_checkpoint("mnist", name, *make_state(version=version).stored)
    listed = store.list_checkpoints("mnist")
    assert [checkpoint.name for checkpoint in listed] == ["z", "best-1.0", "a"]
    size_bytes = (store.path / "runs/mnist/checkpoints/a/state.safetensors").stat().st_size
    assert listed[2] == CheckpointInfo("a", 3, 1003.0, size_bytes)
    data, arrays, info = store.load_checkpoint("mnist", "best-1.0", allocate)
    assert info.version == 2
    assert_same(make_state(version=2), data, arrays)


def test_a_checkpoint_is_never_replaced(store):
    store.save_checkpoint("mnist", "best", *make_state(version=1).stored)
    with pytest.raises(CheckpointExists, match="'best' already"):
        store.save_checkpoint("mnist", "best", *make_state(version=2).stored)
    assert store.load_checkpoint("mnist", "best", allocate)[2].version == 1


def test_an_unknown_checkpoint_is_refused_with_the_known_ones(store):
    with pytest.raises(UnknownCheckpoint, match=r"one of \(none\)"):
        store.load_checkpoint("mnist", "best", allocate)
    for name in ("b", "a"):
        store.save_checkpoint("mnist", name, *make_state().stored)
    with pytest.raises(UnknownCheckpoint, match="one of a, b;"):
        store.load_checkpoint("mnist", "best", allocate)


def test_a_damaged_checkpoint_is_refused(store):
    for name in ("flipped", "torn", "whole"):
        store.save_checkpoint("mnist", name, *make_state().stored)
    damage(store.path / "runs/mnist/checkpoints/flipped")
    (store.path / "runs/mnist/checkpoints/torn/manifest.json").write_text("{")
    for name in ("flipped", "torn"):
        with pytest.raises(CheckpointDamaged, match=f"mnist/checkpoints/{name}/"):
            store.load_checkpoint("mnist", name, allocate)
    # What takes reading the whole state is found when it is loaded, not when it is listed.
    assert [checkpoint.name for checkpoint in store.list_checkpoints("mnist")] == ["flipped", "whole"]


def test_generations_only_rise(tmp_path):
    store = DataDirectory(tmp_path / "data")
    assert store.generation("mnist") == 0
    store.enter_generation("mnist", 12)
    store.enter_generation("mnist", 9)
    store.close()
    store = DataDirectory(tmp_path / "data")
    assert store.generation("mnist") == 12
    (store.path / "runs/mnist/generation").write_text("twelve")
    with pytest.raises(CheckpointDamaged, match="mnist/generation"):
        store.generation("mnist")
    store.close()


def test_a_deleted_run_is_gone(store):
    save(store, 1)
    store.save_checkpoint("mnist", "best", *make_state().stored)
    store.enter_generation("mnist", 3)
    store.delete_run("mnist")
    store.delete_run("mnist")
    assert store.run_names() == []
    assert store.list_checkpoints("mnist") == []
    assert store.generation("mnist") == 0
    assert list((store.path / "runs").iterdir()) == []
    save(store, 2)
    assert snapshots(store) == ["00000001"]


def test_a_clean_mark_is_taken_once(tmp_path):
    store = DataDirectory(tmp_path / "data")
    assert not store.take_clean_mark()
    store.mark_clean()
    store.close()
    store = DataDirectory(tmp_path / "data")
    assert store.take_clean_mark()
    assert not store.take_clean_mark()
    store.close()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "a\0", ".hidden", "x" * 129, "ü"])
def test_a_name_with_a_path_in_it_is_refused(store, name):
    stored = make_state().stored
    for call in (
        lambda: store.save_snapshot(name, *stored),
        lambda: store.load_newest(name, allocate),
        lambda: store.save_checkpoint(name, "best", *stored),
        lambda: store.save_checkpoint("mnist", name, *stored),
        lambda: store.load_checkpoint(name, "best", allocate),
        lambda: store.load_checkpoint("mnist", name, allocate),
        lambda: store.list_checkpoints(name),
        lambda: store.enter_generation(name, 1),
        lambda: store.generation(name),
        lambda: store.delete_run(name),
    ):
        with pytest.raises(InvalidName):
            call()
    assert list((store.path / "runs").iterdir()) == []


def _raise(error):
    def function(*arguments):
        raise error

    return function
