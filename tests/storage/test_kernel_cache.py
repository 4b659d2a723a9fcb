import os
import stat
from pathlib import Path

import pytest

from stepwell_server.core.errors import StorageFailed
from stepwell_server.storage.kernel_cache import private_directory


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "home"


def test_default(home, tmp_path, monkeypatch):
    assert private_directory(None) == home / ".cache" / "stepwell" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert private_directory(None) == home / ".cache" / "stepwell" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert private_directory(None) == tmp_path / "cache" / "stepwell" / "kernels"
    assert private_directory(None) == tmp_path / "cache" / "stepwell" / "kernels"


def test_it_is_created_private(tmp_path):
    before = os.umask(0)
    try:
        path = private_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert path == tmp_path / "a" / "b"
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_home_that_cannot_be_written_keeps_nothing(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/stepwell")
    assert private_directory(None) is None


def test_a_given_path_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (Path("/proc/stepwell/kernels"), tmp_path / "file", tmp_path / "file" / "kernels"):
        with pytest.raises(StorageFailed, match="for compiled kernels failed"):
            private_directory(path)


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o770, 0o755, 0o777, 0o1777])
@pytest.mark.parametrize("given", [True, False])
def test_a_wider_mode_is_refused(home, mode, given):
    path = home / ".cache" / "stepwell" / "kernels"
    path.mkdir(parents=True)
    path.chmod(mode)
    with pytest.raises(StorageFailed, match=rf"has mode {mode:04o}, expected .* mode 0700.*; remove it"):
        private_directory(path if given else None)


@pytest.mark.parametrize("given", [True, False])
def test_a_link_is_refused(home, tmp_path, given):
    path = home / ".cache" / "stepwell" / "kernels"
    path.parent.mkdir(parents=True)
    for target in (tmp_path / "elsewhere", tmp_path / "nowhere"):
        path.symlink_to(target)
        (tmp_path / "elsewhere").mkdir(0o700, exist_ok=True)
        with pytest.raises(StorageFailed, match="is a symbolic link"):
            private_directory(path if given else None)
        path.unlink()


@pytest.mark.parametrize("given", [True, False])
def test_another_owner_is_refused(home, monkeypatch, given):
    path = private_directory(None)
    owner = home.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StorageFailed, match=f"belongs to user {owner}, expected a directory of user {owner + 1}"):
        private_directory(path if given else None)
