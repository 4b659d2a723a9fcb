"""One stored state of a run: a directory with `state.safetensors`, which holds the arrays, and `manifest.json`.

The manifest holds everything else and the digest of the state file; it begins with the digest of its own body, so
that any damaged byte is found, before anything is parsed. The form `{"blake2b": ..., "body": {"format": ...}}` stays in
later versions, so that an older server can say that it is too old.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell_server.core.combining import Accumulated
from stepwell_server.core.coordinator import Coordinator
from stepwell_server.core.devices.device import Access
from stepwell_server.core.errors import CheckpointDamaged, DomainError, StorageFailed
from stepwell_server.core.group import vector_layouts
from stepwell_server.core.layout import Layout
from stepwell_server.core.policies import parse_policy
from stepwell_server.core.run import GroupArrays
from stepwell_server.core.settings import Settings, settings_from_data
from stepwell_server.core.spec import RunSpec
from stepwell_server.core.tables import StoredArray
from stepwell_server.core.workers import Workers
from stepwell_server.storage.files import WRITING, storage_failures, sync_directory
from stepwell_server.storage.state_file import (
    DIGEST_BYTES,
    HOST,
    Allocate,
    Declared,
    GroupPlan,
    Load,
    StateMismatch,
    hash_state,
    read_state,
    write_state,
)

FORMAT = 3
STATE_FILE = "state.safetensors"
MANIFEST_FILE = "manifest.json"

_ENVELOPE = re.compile(rb'\{"blake2b":"([0-9a-f]{64})","body":(.*)\}\n', re.DOTALL)
# What the system says when a file is gone or cannot be read back; anything else says nothing about the snapshot.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}
# What malformed plain data raises in code that expects it well formed.
_MALFORMED = (DomainError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class SnapshotInfo:
    """What a stored state is. created_seconds: since 1970. size_bytes: of the state file."""

    directory: Path
    version: int
    created_seconds: float
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """A verified manifest. data: what `Run.to_data` gave, tuples as lists. state_blake2b: in hexadecimal.

    extras: the arrays beside those of the groups, each with name, dtype and shape.
    """

    data: dict[str, Any]
    version: int
    created_seconds: float
    state_bytes: int
    state_blake2b: str
    extras: list[Declared]

    def info(self, directory: Path) -> SnapshotInfo:
        return SnapshotInfo(directory, self.version, self.created_seconds, self.state_bytes)


def write_snapshot(
    directory: Path,
    data: Mapping[str, Any],
    layout: Layout,
    groups: Sequence[GroupArrays],
    created_seconds: float,
    access: Access = HOST,
    extras: Sequence[StoredArray] = (),
) -> SnapshotInfo:
    """Store a state as `directory`, which does not exist; the directory above it does.

    data: `Run.to_data`. extras: arrays beside those of the groups. The arrays are not copied and must not change. When
    this returns the state is durable; when it raises StorageFailed nothing is left of it.
    """
    with storage_failures(f"writing '{_name(directory)}'"), ExitStack() as undo:
        unfinished = Path(tempfile.mkdtemp(prefix=WRITING, dir=directory.parent))
        undo.callback(shutil.rmtree, unfinished, ignore_errors=True)
        plans = _group_plans(layout, _settings(data))
        state_bytes, state_blake2b = write_state(unfinished / STATE_FILE, layout, plans, groups, access, extras)
        declared: list[Declared] = [(each.name, each.dtype.name, each.shape) for each in extras]
        manifest = Manifest(dict(data), int(data["version"]), created_seconds, state_bytes, state_blake2b, declared)
        with (unfinished / MANIFEST_FILE).open("xb") as file:
            file.write(_render(manifest))
            file.flush()
            os.fsync(file.fileno())
        sync_directory(unfinished)
        unfinished.rename(directory)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        sync_directory(directory.parent)
        undo.pop_all()
    return manifest.info(directory)


def read_manifest(directory: Path) -> Manifest:
    """Read and verify the manifest, and the size but not the content of the state file.

    Raises CheckpointDamaged, or StorageFailed where the files may be sound but cannot be read now.
    """
    path = directory / MANIFEST_FILE
    with _reading(path):
        content = path.read_bytes()
    envelope = _ENVELOPE.fullmatch(content)
    if envelope is None:
        raise _damaged(path, "it is not a whole manifest, expected a body and its digest")
    expected, body = envelope[1].decode(), envelope[2]
    if _digest(body) != expected:
        raise _damaged(path, f"its body has digest {_digest(body)}, expected {expected}")
    manifest = _parse(path, body)
    state = directory / STATE_FILE
    with _reading(state):
        size_bytes = state.stat().st_size
    if size_bytes != manifest.state_bytes:
        raise _damaged(state, f"it has {size_bytes} bytes, expected {manifest.state_bytes}")
    return manifest


def read_snapshot(directory: Path, allocate: Allocate) -> tuple[dict[str, Any], list[GroupArrays]]:
    """A stored state, for `Run.from_data` and `Run.take_arrays`; raises as `read_manifest` and `read_arrays`."""
    manifest = read_manifest(directory)
    return manifest.data, read_arrays(directory, manifest, allocate)


def read_arrays(
    directory: Path, manifest: Manifest, allocate: Allocate, access: Access = HOST, load: Load | None = None
) -> list[GroupArrays]:
    """Verify the state file whole, then read it into vectors from `allocate`, which is called at most once.

    load: gets what the file holds beside the groups. Takes a few MiB beside the vectors. Raises CheckpointDamaged,
    before it allocates, and what `allocate` raises. If the disk fails later, the vectors are the caller's to free.
    """
    path = directory / STATE_FILE
    with _reading(path):
        found = hash_state(path)
    if found != manifest.state_blake2b:
        raise _damaged(path, f"its content has digest {found}, expected {manifest.state_blake2b}")
    layout, plans = _plan(directory, manifest.data)
    try:
        with _reading(path):
            return read_state(path, layout, plans, allocate, access, manifest.extras, load)
    except StateMismatch as error:
        raise _damaged(path, str(error)) from error


def _render(manifest: Manifest) -> bytes:
    body = json.dumps({"format": FORMAT, **vars(manifest)}, ensure_ascii=False, separators=(",", ":")).encode()
    return b'{"blake2b":"%s","body":%s}\n' % (_digest(body).encode(), body)


def _parse(path: Path, body: bytes) -> Manifest:
    try:
        fields = json.loads(body)
        version = fields.pop("format")
        if version == FORMAT:
            return Manifest(**fields)
    except _MALFORMED as error:
        raise _damaged(path, f"its body is not what a manifest holds ({error!r})") from error
    raise CheckpointDamaged(
        f"'{_name(path)}' has format version {version}, expected {FORMAT}; read it with the server that wrote it, or a "
        "newer one",
        path=_name(path),
    )


def _plan(directory: Path, data: Mapping[str, Any]) -> tuple[Layout, list[GroupPlan]]:
    """What the state file must hold; raises CheckpointDamaged where `Run.from_data` could not make a run."""
    try:
        spec = RunSpec.from_data(data["spec"])
        layout = spec.layout()
        settings = _settings(data)
        if len(spec.parsed_tables) != len(data["tables"]):
            raise ValueError("tables and their states differ")
        if [chosen is None for chosen in settings] != [group.frozen for group in layout.groups]:
            raise ValueError("settings and groups differ")
        counts = [int(data[name]) for name in ("generation", "version", "changes", "skipped_count")]
        if min(counts) < 0 or not isinstance(data["name"], str) or not 0 <= float(data["samples"]) < math.inf:
            raise ValueError("name, counts or samples are out of range")
        workers = Workers(data["name"], bytes.fromhex(data["uid"]), 0, 1, 1)
        workers.restore(data["workers"])
        Coordinator(workers, parse_policy(None)).restore(data["coordinator"], int(data["version"]), 0.0, 1.0)
        Accumulated.from_data(data["accumulated"])
        for table in data["tables"]:
            settings_from_data(table["settings"])
        return layout, _group_plans(layout, settings)
    except _MALFORMED as error:
        raise _damaged(directory / MANIFEST_FILE, f"its data does not make a run ({error!r})") from error


def _settings(data: Mapping[str, Any]) -> list[Settings | None]:
    return [None if chosen is None else settings_from_data(chosen) for chosen in data["settings"]]


def _group_plans(layout: Layout, settings: Sequence[Settings | None]) -> list[GroupPlan]:
    return [
        GroupPlan(vector_layouts(group, chosen), chosen.scalars if chosen else ())
        for group, chosen in zip(layout.groups, settings, strict=True)
    ]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with storage_failures(f"reading '{_name(path)}'"):
            yield
    except StorageFailed as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and (cause.errno in _DAMAGE or isinstance(cause, FileNotFoundError)):
            raise _damaged(path, f"it cannot be read ({cause.strerror or cause})") from cause
        raise


def _damaged(path: Path, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(
        f"'{_name(path)}' is damaged: {what}; use an older snapshot or another checkpoint, and check the disk",
        path=_name(path),
    )


def _name(path: Path) -> str:
    """The path from the run on: where the data directory lies is not the client's business."""
    depth = 4 if path.name in (STATE_FILE, MANIFEST_FILE) else 3
    return "/".join(path.parts[-depth:])
