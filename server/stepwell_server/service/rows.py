"""Rows of tables on their way in and out of an exchange: in messages, or in a worker's shared memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.payload import Buffer, Outgoing
from stepwell.v1 import data_pb2, run_pb2
from stepwell.wire import RANGE_BYTES
from stepwell_server.core.errors import InvalidRows, LimitExceeded, MalformedRequest
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.core.tables import IDS_MAX, Table, Tables
from stepwell_server.core.tables.staged import rounded
from stepwell_server.core.update import Staging
from stepwell_server.service.hosted import ArrivedRows
from stepwell_server.service.machine import Machine
from stepwell_server.service.sharing import Session


@dataclass
class WantedTable:
    """Rows of one table that are asked for. ids: shape (n,). out: shape (n, width), where they are written.

    vector: what `out` lies in, to be freed; None in shared memory.
    """

    number: int
    ids: NDArray[np.int64]
    out: NDArray[Any]
    vector: Vector | None


def admit(
    staging: Staging, messages: Sequence[run_pb2.Rows], datas: Sequence[Buffer], session: Session | None
) -> list[ArrivedRows]:
    """Count rows of an update before they are copied. session: of the update. Raises InvalidRows."""
    arrived = []
    for message, data in zip(messages, datas, strict=True):
        ids: Buffer = message.ids
        if staging.rows is None:
            raise InvalidRows(
                f"rows of table {message.table}, expected none: the update's header announces none; announce them"
            )
        if message.HasField("shared"):
            ids, data = _shared(message, staging.rows.find(message.table), session)
        begin, end = staging.rows.admit(message.table, len(ids), len(data))
        arrived.append((message.table, begin, end, ids, data))
    return arrived


async def want(
    machine: Machine, tables: Tables, messages: Sequence[run_pb2.Rows], session: Session | None
) -> list[WantedTable]:
    """Make room for rows that a selection asks for; `free` gives it back. Raises UnknownTable, InvalidRows."""
    asked: dict[int, tuple[Table, NDArray[np.int64], Buffer | None]] = {}
    for message in messages:
        table = tables.find(message.table)
        if message.table in asked:
            raise MalformedRequest(
                f"a selection asks for rows of table '{table.spec.name}' twice, expected once; join the ids"
            )
        given: Buffer = message.ids
        target: Buffer | None = None
        if message.HasField("shared"):
            given, target = _shared(message, table, session)
        if len(given) % 8:
            raise InvalidRows(
                f"table '{table.spec.name}': {len(given)} bytes of ids, expected 8 for each; send them as int64"
            )
        # The worker may write to its own at any time.
        ids = np.frombuffer(given, np.int64).copy() if target is not None else np.frombuffer(given, np.int64)
        if len(ids) > IDS_MAX:
            raise LimitExceeded(
                f"table '{table.spec.name}': {len(ids)} ids at once, expected at most {IDS_MAX}; ask for fewer",
                limit=IDS_MAX,
            )
        asked[message.table] = table, ids, target
    sizes = [
        Size(rounded(len(ids)) * table.width, table.dtype) for table, ids, target in asked.values() if target is None
    ]
    vectors = iter(await machine.allocate(sizes, "rows of tables") if sizes else ())
    wanted = []
    for number, (table, ids, target) in asked.items():
        vector = None
        if target is None:
            vector = next(vectors)
            elements = vector[: len(ids) * table.width]
        else:
            elements = np.frombuffer(target, table.dtype)
        wanted.append(WantedTable(number, ids, elements.reshape(len(ids), table.width), vector))
    return wanted


def free(memory: Memory, wanted: Sequence[WantedTable]) -> None:
    """Give back what `want` took."""
    vectors = [each.vector for each in wanted if each.vector is not None]
    if vectors:
        memory.free(vectors)


def messages(response: type[Any], wanted: Sequence[WantedTable]) -> Iterator[Outgoing[Any]]:
    """The rows that do not lie in shared memory, cut into messages."""
    for each in wanted:
        if each.vector is None:
            continue
        count, width = each.out.shape
        step = max(1, RANGE_BYTES // (width * each.out.itemsize))
        for first in range(0, count, step):
            data = each.out[first : first + step].reshape(-1).view(np.uint8)
            yield Outgoing(response(), rows=[(run_pb2.Rows(table=each.number, first=first), [data])])


def lies_shared(selection: data_pb2.Selection) -> bool:
    """Whether some of the rows that are asked for lie in shared memory."""
    return any(message.HasField("shared") for message in selection.rows)


def _shared(message: run_pb2.Rows, table: Table, session: Session | None) -> tuple[Buffer, Buffer]:
    """Ids and rows in a worker's memory, as bytes. Raises MalformedRequest, InvalidRows."""
    if session is None or session.rows is None:
        raise MalformedRequest(
            "rows lie in shared memory, expected the token of a session with a vector for rows; share memory with "
            "rows_bytes"
        )
    place = message.shared
    parts = []
    for begin, size in (
        (place.ids_offset_bytes, 8 * place.count),
        (place.data_offset_bytes, place.count * table.width * table.dtype.itemsize),
    ):
        if begin % 64 or begin + size > session.rows.nbytes:
            raise InvalidRows(
                f"table '{table.spec.name}': {size} bytes at {begin} of the shared vector for rows, expected a "
                f"multiple of 64 and an end within {session.rows.nbytes}; share memory with larger rows_bytes",
                table=table.spec.name,
            )
        parts.append(session.rows[begin : begin + size])
    return parts[0], parts[1]
