"""A table in this process, without a server: the core driven directly."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell_server.core.devices.device import Device
from stepwell_server.core.errors import DomainError
from stepwell_server.core.memory import Memory
from stepwell_server.core.settings import Moment, Settings, settings_from_data
from stepwell_server.core.tables import Loading, Table, TableCommit, TableHold, TableSpec

START = Moment(0, 0.0, None)
KEY = 0x5EED


class LocalTable:
    """memory_bytes: of a budget of its own, unless a memory is given."""

    def __init__(
        self,
        device: Device,
        *,
        memory_bytes: int = 1 << 30,
        memory: Memory | None = None,
        hash_key: int = KEY,
        settings: Settings | None = None,
        width: int = 4,
        **spec: Any,
    ) -> None:
        self.memory = memory or Memory(device, memory_bytes)
        self.spec = TableSpec.from_data({"name": "user", "width": width, **spec})
        self.settings = settings or self.spec.settings(START)
        vectors = self.memory.allocate(Table.sizes(self.spec, self.settings), "test")
        for vector in vectors:
            vector.view(np.uint8).fill(0xAB)  # what an earlier taker left
        self.table = Table(self.spec, self.settings, device, vectors, START, hash_key)
        self.commits = 0

    @property
    def moment(self) -> Moment:
        return Moment(self.commits, 0.0, None)

    def prepare(
        self, ids: Iterable[int], grads: Any, settings: Settings | None = None, grow: bool = True, **given: float
    ) -> TableCommit:
        """A commit that is ready to be applied."""
        wanted = np.array(list(ids) if not isinstance(ids, np.ndarray) else ids, np.int64)
        values = np.ascontiguousarray(np.broadcast_to(grads, (len(wanted), self.spec.width)), self.table.dtype)
        commit = self.table.prepare(wanted, values, self.moment, settings, given, grow)
        try:
            while commit.sizes:
                commit.take(self.memory.allocate(commit.sizes, "test"))
        except DomainError:
            self.memory.free(self.table.discard(commit))
            raise
        return commit

    def finish(self, commit: TableCommit) -> None:
        commit.apply()
        self.memory.free(self.table.finish(commit))
        self.commits += 1

    def push(self, ids: Iterable[int], grads: Any, **options: Any) -> None:
        self.finish(self.prepare(ids, grads, **options))

    def pull(self, ids: Iterable[int]) -> NDArray[Any]:
        wanted = np.array(list(ids) if not isinstance(ids, np.ndarray) else ids, np.int64)
        out = np.full((len(wanted), self.spec.width), np.nan, self.table.dtype)
        self.table.pull(wanted, out)
        return out

    def release(self, hold: TableHold) -> None:
        self.memory.free(self.table.release(hold))


def state_of(table: LocalTable) -> dict[str, NDArray[Any]]:
    """All arrays of the present state, ordered by id."""
    hold = table.table.hold()
    state = arrays_of(hold)
    table.release(hold)
    return state


def arrays_of(hold: TableHold) -> dict[str, NDArray[Any]]:
    parts = list(hold.parts())
    if not parts:
        return {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in hold.array_types.items()}
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["ids"])
    return {name: array[order] for name, array in joined.items()}


def load(source: LocalTable, hold: TableHold, device: Device, **options: Any) -> LocalTable:
    """A new table with a held state, by way of JSON as in a file."""
    data = json.loads(json.dumps(hold.to_data()))
    made = LocalTable(device, settings=settings_from_data(data["settings"]), **{**source.spec.to_data(), **options})
    loading = Loading(made.table, data)
    for part in hold.parts():
        vectors = made.memory.allocate(loading.sizes(len(part["ids"])), "test")
        for size in loading.take(part, vectors):
            loading.add_block(*made.memory.allocate([size], "test"))
    if hold.counts is not None:
        loading.load_counts(hold.counts)
    made.commits = source.commits
    return made
