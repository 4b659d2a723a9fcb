"""The data directory of one server: every run's snapshots, checkpoints and generation.

    lock                                      held by the server, with its process id
    clean                                     the last stop was clean; taken at the next start
    runs/<run>/generation                     the highest generation ever entered
    runs/<run>/snapshots/<8-digit counter>/   the latest few; `<counter>.damaged` is set aside
    runs/<run>/checkpoints/<name>/

Every function may block on the disk and raises StorageFailed for what the system refuses. Calls for different runs may
overlap; for one run the caller makes one call at a time.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell_server.core.devices.device import Access
from stepwell_server.core.errors import (
    CheckpointDamaged,
    CheckpointExists,
    InvalidName,
    StorageFailed,
    UnknownCheckpoint,
)
from stepwell_server.core.layout import Layout, check_name
from stepwell_server.core.run import GroupArrays
from stepwell_server.core.tables import StoredArray
from stepwell_server.storage.files import (
    DELETED,
    WRITING,
    make_directory,
    remove,
    storage_failures,
    sync_directory,
    write_file,
)
from stepwell_server.storage.snapshot import SnapshotInfo, read_arrays, read_manifest, write_snapshot
from stepwell_server.storage.state_file import HOST, Allocate, TensorReader

# Gets a state's data, and what its file has beside the groups' arrays.
LoadExtras = Callable[[Mapping[str, Any], TensorReader], None]

_COUNTER = re.compile(r"(\d{8,})(\.damaged)?")


@dataclass(frozen=True)
class CheckpointInfo:
    """created_seconds: since 1970. size_bytes: of the state file."""

    name: str
    version: int
    created_seconds: float
    size_bytes: int


class DataDirectory:
    """Owns a directory until `close`; creates it, for the server's user only, if it is missing.

    keep: how many snapshots of a run stay. on_damaged: told where a damaged snapshot lies now, and what is wrong.
    access: how vectors are read and written.
    Raises StorageFailed if another server has it.
    """

    def __init__(
        self,
        path: Path,
        keep: int = 3,
        on_damaged: Callable[[Path, CheckpointDamaged], None] = lambda path, error: None,
        access: Access = HOST,
    ) -> None:
        assert keep >= 1
        self.path = path.absolute()
        self._keep = keep
        self._on_damaged = on_damaged
        self._access = access
        self._runs = self.path / "runs"
        self._clean = self.path / "clean"
        # Guards the two below against other threads.
        self._guard = threading.Lock()
        self._counters: dict[str, int] = {}
        with storage_failures(f"opening the data directory '{self.path}'"):
            make_directory(self._runs)
            self._lock = self._acquire()
            try:
                self._remove_leftovers()
            except OSError:
                os.close(self._lock)
                raise

    def close(self) -> None:
        """Let another server have the directory."""
        os.close(self._lock)

    def run_names(self) -> list[str]:
        """The runs that have snapshots, be they damaged."""
        with storage_failures("listing the runs"):
            return sorted(
                path.name for path in self._runs.iterdir() if _is_name(path.name) and _counters(path / "snapshots")
            )

    # Snapshots.

    def save_snapshot(
        self,
        run: str,
        data: Mapping[str, Any],
        layout: Layout,
        groups: Sequence[GroupArrays],
        created_seconds: float,
        extras: Sequence[StoredArray] = (),
    ) -> SnapshotInfo:
        """Store a snapshot, durable when this returns; then remove the oldest. extras: arrays beside the groups'."""
        snapshots = self._run(run) / "snapshots"
        with storage_failures(f"saving a snapshot of run '{run}'"):
            make_directory(snapshots)
            directory = snapshots / f"{self._next(run):08}"
            info = write_snapshot(directory, data, layout, groups, created_seconds, self._access, extras)
            self._prune(snapshots)
        return info

    def load_newest(
        self, run: str, allocate: Allocate, load: LoadExtras | None = None
    ) -> tuple[dict[str, Any], list[GroupArrays], SnapshotInfo]:
        """The newest snapshot that is whole; damaged ones are set aside and reported.

        Raises CheckpointDamaged if there is none, and what `allocate` and `load` raise. allocate: called once, unless a
        disk fails in the middle of a read. load: gets what a snapshot has beside the groups' arrays.
        """
        snapshots = self._run(run) / "snapshots"
        for counter in sorted(_sound(snapshots), reverse=True):
            directory = snapshots / f"{counter:08}"
            try:
                return _load(run, directory, allocate, self._access, load)
            except CheckpointDamaged as error:
                aside = snapshots / f"{counter:08}.damaged"
                with storage_failures(f"setting aside a damaged snapshot of run '{run}'"):
                    directory.rename(aside)
                    sync_directory(snapshots)
                self._on_damaged(aside, error)
        raise CheckpointDamaged(
            f"run '{run}' has no snapshot that is whole ({len(_counters(snapshots))} damaged), expected one; restore "
            "the data directory from a backup, or delete the run and create it anew",
            run=run,
        )

    # Checkpoints.

    def save_checkpoint(
        self,
        run: str,
        name: str,
        data: Mapping[str, Any],
        layout: Layout,
        groups: Sequence[GroupArrays],
        created_seconds: float,
        extras: Sequence[StoredArray] = (),
    ) -> CheckpointInfo:
        """Store a checkpoint, durable when this returns; raises CheckpointExists."""
        directory = self._checkpoint(run, name)
        with storage_failures(f"saving checkpoint '{name}' of run '{run}'"):
            if directory.exists():
                raise CheckpointExists(
                    f"run '{run}' has a checkpoint '{name}' already, expected a new name; choose another one", name=name
                )
            make_directory(directory.parent)
            info = write_snapshot(directory, data, layout, groups, created_seconds, self._access, extras)
            return _checkpoint_info(info)

    def list_checkpoints(self, run: str) -> list[CheckpointInfo]:
        """The checkpoints, oldest first, without those whose damage shows at a glance."""
        found = []
        for directory in self._checkpoints(run):
            try:
                found.append(_checkpoint_info(read_manifest(directory).info(directory)))
            except CheckpointDamaged:
                continue
        return sorted(found, key=lambda checkpoint: (checkpoint.created_seconds, checkpoint.name))

    def load_checkpoint(
        self, run: str, name: str, allocate: Allocate, load: LoadExtras | None = None
    ) -> tuple[dict[str, Any], list[GroupArrays], SnapshotInfo]:
        """A checkpoint's state; raises UnknownCheckpoint, CheckpointDamaged, and what `allocate` and `load` raise."""
        directory = self._checkpoint(run, name)
        known = sorted(path.name for path in self._checkpoints(run))
        if name not in known:
            listed = ", ".join(known) or "(none)"
            raise UnknownCheckpoint(
                f"run '{run}' has no checkpoint '{name}', expected one of {listed}; choose one of them",
                got=name,
            )
        return _load(run, directory, allocate, self._access, load)

    # Generations.

    def enter_generation(self, run: str, generation: int) -> None:
        """Remember that the run has been in `generation`, durable when this returns."""
        with self._guard, storage_failures(f"storing the generation of run '{run}'"):
            if generation > self._generation(run):
                make_directory(self._run(run))
                write_file(self._run(run) / "generation", b"%d\n" % generation)

    def generation(self, run: str) -> int:
        """The highest generation ever entered, 0 if none was; raises CheckpointDamaged."""
        with storage_failures(f"reading the generation of run '{run}'"):
            return self._generation(run)

    # The whole.

    def delete_run(self, run: str) -> None:
        """Remove everything of a run; nothing happens if there is nothing."""
        directory = self._run(run)
        with self._guard, storage_failures(f"deleting run '{run}'"):
            self._counters.pop(run, None)
            if directory.exists():
                remove(directory)

    def mark_clean(self) -> None:
        """Say that every run's newest snapshot is exactly what was acknowledged."""
        with storage_failures("marking the stop as clean"):
            write_file(self._clean, b"")

    def take_clean_mark(self) -> bool:
        """Whether the last stop was clean; asked once, at start, since from then on the mark would be wrong."""
        with storage_failures("taking the mark of a clean stop"):
            if not self._clean.exists():
                return False
            self._clean.unlink()
            sync_directory(self.path)
            return True

    def _acquire(self) -> int:
        """Lock the directory for the life of the process, however it ends."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            owner = os.pread(lock, 20, 0).decode(errors="replace").strip() or "(not known)"
            os.close(lock)
            raise StorageFailed(
                f"data directory '{self.path}' is in use by process {owner}, expected no other server on it; stop that "
                "one, or use another --data-dir",
                owner=owner,
            ) from error
        except OSError:
            os.close(lock)
            raise
        return lock

    def _remove_leftovers(self) -> None:
        for folder in (self.path, self._runs, *self._runs.glob("*/"), *self._runs.glob("*/*/")):
            for prefix in (WRITING, DELETED):
                for path in folder.glob(f"{prefix}*"):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()

    def _run(self, run: str) -> Path:
        return self._runs / check_name("run", run)

    def _checkpoint(self, run: str, name: str) -> Path:
        return self._run(run) / "checkpoints" / check_name("checkpoint", name)

    def _checkpoints(self, run: str) -> list[Path]:
        directory = self._run(run) / "checkpoints"
        with storage_failures(f"listing the checkpoints of run '{run}'"):
            return [path for path in directory.glob("*") if not path.name.startswith(".")]

    def _generation(self, run: str) -> int:
        path = self._run(run) / "generation"
        if not path.exists():
            return 0
        content = path.read_bytes()
        if not re.fullmatch(rb"\d{1,18}\n", content):
            raise CheckpointDamaged(
                f"'{run}/generation' holds {content[:20]!r}, expected a number; write into it a number higher than any "
                "generation that the run's workers have seen",
                path=f"{run}/generation",
            )
        return int(content)

    def _next(self, run: str) -> int:
        """A counter higher than any before, also than those of failed tries."""
        with self._guard:
            self._counters[run] = 1 + max(
                [self._counters.get(run, 0), *(counter for counter, _ in _counters(self._run(run) / "snapshots"))]
            )
            return self._counters[run]

    def _prune(self, snapshots: Path) -> None:
        """Keep the latest; a damaged one goes when a sound one of its age would."""
        oldest = sorted(_sound(snapshots))[-self._keep :][0]
        for counter, name in _counters(snapshots):
            if counter < oldest:
                remove(snapshots / name)


def _counters(snapshots: Path) -> list[tuple[int, str]]:
    """The snapshots there are, damaged ones too: counter and name."""
    matches = [_COUNTER.fullmatch(path.name) for path in snapshots.glob("*")]
    return [(int(match[1]), match[0]) for match in matches if match]


def _is_name(name: str) -> bool:
    """Whether a run can have the name; an operator's own copies lie beside the runs and are none."""
    try:
        check_name("run", name)
    except InvalidName:
        return False
    return True


def _sound(snapshots: Path) -> list[int]:
    """The counters of those not known to be damaged."""
    return [counter for counter, name in _counters(snapshots) if not name.endswith(".damaged")]


def _load(
    run: str, directory: Path, allocate: Allocate, access: Access, load: LoadExtras | None
) -> tuple[dict[str, Any], list[GroupArrays], SnapshotInfo]:
    manifest = read_manifest(directory)
    if manifest.data.get("name") != run:
        name = f"{run}/{directory.parent.name}/{directory.name}"
        raise CheckpointDamaged(
            f"'{name}' is of run '{manifest.data.get('name')}', expected '{run}'; move it back", path=name
        )

    def load_extras(reader: TensorReader) -> None:
        if load is not None:
            load(manifest.data, reader)

    arrays = read_arrays(directory, manifest, allocate, access, load_extras)
    return manifest.data, arrays, manifest.info(directory)


def _checkpoint_info(info: SnapshotInfo) -> CheckpointInfo:
    return CheckpointInfo(info.directory.name, info.version, info.created_seconds, info.size_bytes)
