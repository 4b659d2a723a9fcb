"""Memory that workers of this machine share with the server: who has what, and the socket that hands it over.

A worker asks for it over gRPC and gets a token; over a Unix socket the token fetches descriptors. Its connection there
stands for the worker's life: when it ends, however that comes, everything is given back. Runs on the event loop.
"""

import asyncio
import contextlib
import os
import resource
import secrets
import socket
import struct
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from stepwell.v1 import data_pb2
from stepwell_server.core.devices.shared import SharedVectors
from stepwell_server.core.errors import InvalidValue, LimitExceeded, SharedMemoryUnavailable
from stepwell_server.core.memory import Memory, Size, Vector
from stepwell_server.core.run import Hold
from stepwell_server.core.update import Key
from stepwell_server.service.hosted import HostedRun, WantedRows
from stepwell_server.storage.private import private

log = structlog.get_logger()

TOKEN_BYTES = 16
_HANDLE = struct.Struct("<Q")
_PEER = struct.Struct("iII")  # pid, uid, gid
# How long a worker may take to connect once it has its token.
_CONNECT_SECONDS = 10.0
_SESSIONS_MAX = 256
_ROWS_BYTES_MAX = 1 << 30
# A vector's own, and its mapping's.
_DESCRIPTORS_PER_VECTOR = 2
# How long to wait until a connection may be accepted again, when there was no descriptor for it.
_ACCEPT_AGAIN_SECONDS = 0.1
# Of a Unix socket's address, on Linux.
_PATH_BYTES_MAX = 107


class Session:
    """What one worker shares with the server. vectors: those that it writes, by group and number of the input.

    inputs: the names of these, from number 1 on.
    """

    def __init__(
        self,
        hosted: HostedRun,
        memory: Memory,
        shared: SharedVectors,
        inputs: Sequence[str],
        vectors: Mapping[Key, Vector],
        rows: Vector | None,
    ) -> None:
        """rows: bytes for rows of tables and their ids, which both sides write."""
        self.hosted = hosted
        self.vectors = vectors
        self.rows = rows
        self.inputs = tuple(inputs)
        self.connected = False
        self.closed = False
        self._memory = memory
        self._shared = shared
        self._hold: Hold | None = None

    @property
    def own(self) -> list[data_pb2.SharedVector]:
        """Where the worker finds the vectors that it writes."""
        return [self._describe(group, vector, number) for (group, number), vector in self.vectors.items()]

    @property
    def own_rows(self) -> data_pb2.SharedVector | None:
        """Where the worker finds the vector for rows."""
        return None if self.rows is None else self._describe(0, self.rows)

    @property
    def size_bytes(self) -> int:
        """Of its vectors, and of a version of the parameters."""
        held = sum(size.size_bytes for size in self.hosted.run.shared_sizes())
        return held + sum(vector.nbytes for vector in self._written)

    def let_go(self) -> None:
        """The worker reads the parameters no more: commits may overwrite them."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    async def hold(
        self, newer_than: int | None = None, rows: Sequence[WantedRows] = ()
    ) -> tuple[int, list[data_pb2.SharedVector] | None]:
        """Hold the present version for the worker in place of the one before; None: there is no newer one.

        rows: as of `HostedRun.hold`.
        """
        self.let_go()
        hold = await self.hosted.hold_shared(newer_than, rows)
        if hold is None:
            return self.hosted.run.version, None
        if self.closed:
            hold.release()
            raise lost()
        self.let_go()  # of what another exchange with this token has held meanwhile
        self._hold = hold
        return hold.version, [self._describe(number, vector) for number, vector in enumerate(self._held())]

    def descriptor(self, handle: int) -> tuple[int, int]:
        """A descriptor, and the size behind it, of what the worker has now; raises KeyError for anything else."""
        for writable, vectors in ((True, self._written), (False, self._held())):
            for vector in vectors:
                if self._shared.number(vector) == handle:
                    return self._shared.descriptor(vector, writable=writable), vector.nbytes
        raise KeyError(handle)

    def close(self) -> None:
        """Give everything back. What a commit still reads stays with the commit."""
        if not self.closed:
            self.closed = True
            self.let_go()
            self._memory.free(self._written)
            self.vectors, self.rows = {}, None  # the connection may last longer, and hands nothing over any more

    @property
    def _written(self) -> list[Vector]:
        """What the worker writes to."""
        return [*self.vectors.values(), *([] if self.rows is None else [self.rows])]

    def _held(self) -> list[Vector]:
        return [group[""].vector for group in self._hold.groups] if self._hold else []

    def _describe(self, group: int, vector: Vector, number: int = 0) -> data_pb2.SharedVector:
        return data_pb2.SharedVector(
            group=group, input=number, handle=self._shared.number(vector), size_bytes=vector.nbytes
        )


class Sharing:
    """directory: where the socket lies; None for one of the user's own. Not open: every worker is refused."""

    def __init__(self, memory: Memory, directory: Path | None) -> None:
        self._memory = memory
        self._directory = directory
        self._listener: socket.socket | None = None
        self._path = ""
        self._refusal = "the server shares no memory"
        self._sessions: dict[bytes, Session] = {}
        # How many workers of each run have a session, or are about to.
        self._sharers: dict[HostedRun, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listen, if this can be had here; without it workers use ranges."""
        if self._memory.device.shared is None:
            self._refusal = "the server's device has no memory that could be shared"
            return
        try:
            directory = private(self._directory or Path("/tmp") / f"stepwell-{os.geteuid()}", "for shared memory")
            _remove_dead(directory)
            path = str(directory / f"{secrets.token_hex(8)}.socket")
            if len(os.fsencode(f"{path}.new")) > _PATH_BYTES_MAX:
                raise OSError(f"the path is longer than {_PATH_BYTES_MAX} bytes")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                # Another server that starts now would take one that does not listen yet for dead.
                listener.bind(f"{path}.new")
                listener.listen()
                Path(f"{path}.new").rename(path)
            except BaseException:
                listener.close()
                _remove(f"{path}.new")
                raise
        except Exception as error:  # noqa: BLE001  # the stream serves as well
            self._refusal = f"the server could not make its socket ({error})"
            log.warning("no shared memory", error=str(error))
            return
        self._path, self._listener = path, listener
        self._start(self._accept(listener))

    async def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            _remove(self._path)

    async def share(self, hosted: HostedRun, inputs: Sequence[str], rows_bytes: int = 0) -> tuple[bytes, str, Session]:
        """A session for a worker of the run: its token, and the path to connect to.

        rows_bytes: of the vector for rows, 0 for none. Raises SharedMemoryUnavailable, LimitExceeded.
        """
        shared = self._memory.device.shared
        if self._listener is None or shared is None:
            raise SharedMemoryUnavailable(f"{self._refusal}, expected it to; send updates in ranges")
        if len(self._sessions) >= _SESSIONS_MAX:
            raise SharedMemoryUnavailable(
                f"{len(self._sessions)} workers share memory with the server, expected at most {_SESSIONS_MAX}; send "
                "updates in ranges"
            )
        if any(group.dtype != group.state.dtype for group in hosted.run.layout.groups):
            raise SharedMemoryUnavailable(
                f"run '{hosted.run.name}' has parameters of 16 bits, and their state has 32, expected a state that "
                "can be read as it is; send updates in ranges"
            )
        if len(set(inputs)) < len(inputs):
            raise InvalidValue(f"run '{hosted.run.name}': an input is named twice, expected each once; name it once")
        token = secrets.token_bytes(TOKEN_BYTES)
        # Nobody else ever gets these again: whoever once mapped them could still write to them.
        sizes = hosted.run.worker_sizes(inputs, owner=token.hex())
        if rows_bytes > _ROWS_BYTES_MAX:
            raise LimitExceeded(
                f"run '{hosted.run.name}': {rows_bytes} bytes for rows, expected at most {_ROWS_BYTES_MAX}; ask for "
                "less, and send what does not fit in messages",
                limit=_ROWS_BYTES_MAX,
            )
        for_rows = [Size(rows_bytes, np.dtype(np.uint8), token.hex())] if rows_bytes else []
        self._check_descriptors(hosted, shared, len(sizes) + len(for_rows))
        self._sharers[hosted] = self._sharers.get(hosted, 0) + 1
        try:
            if not self._set_quota(hosted):
                raise self._no_memory(hosted)
            await hosted.share()
            vectors = self._memory.try_allocate([*sizes.values(), *for_rows])
            if vectors is None:
                raise self._no_memory(hosted)
        except OSError as error:
            self._leave(hosted)
            raise SharedMemoryUnavailable(
                f"run '{hosted.run.name}': the system gives no memory to share ({error}), expected some; send updates "
                "in ranges"
            ) from error
        except BaseException:
            self._leave(hosted)
            raise
        taken = dict(zip(sizes, vectors[: len(sizes)], strict=True))
        rows = vectors[-1] if for_rows else None
        session = self._sessions[token] = Session(hosted, self._memory, shared, inputs, taken, rows)
        asyncio.get_running_loop().call_later(_CONNECT_SECONDS, self._expire, token)
        return token, self._path, session

    def find(self, token: bytes, hosted: HostedRun) -> Session:
        """The session of a token; raises SharedMemoryUnavailable."""
        session = self._sessions.get(token)
        if session is None or session.hosted is not hosted:
            raise lost()
        return session

    def release(self, token: bytes) -> None:
        """A worker reads its parameters no more. Nothing happens for a token that is not known any more."""
        if token in self._sessions:
            self._sessions[token].let_go()

    def forget(self, hosted: HostedRun) -> None:
        """The run is gone."""
        for token in [token for token, session in self._sessions.items() if session.hosted is hosted]:
            self._end(token)

    def workers_bytes(self) -> int:
        """What workers take beside the runs' states: their vectors, and the version that each may hold."""
        return sum(session.size_bytes for session in self._sessions.values())

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:  # no descriptor is free, or the peer is gone already
                log.warning("a connection for shared memory was not accepted", error=str(error))
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            self._start(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        """Hand descriptors over until the worker goes away."""
        token = b""
        with connection, contextlib.suppress(OSError, TimeoutError, EOFError):
            connection.setblocking(False)
            peer = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if peer[1] != os.geteuid():
                log.warning("another user asked for shared memory", pid=peer[0], uid=peer[1])
                return
            asked = await asyncio.wait_for(_receive(connection, TOKEN_BYTES), _CONNECT_SECONDS)
            session = self._sessions.get(asked)
            if session is None or session.connected:
                return
            token, session.connected = asked, True
            try:
                while True:
                    (handle,) = _HANDLE.unpack(await _receive(connection, _HANDLE.size))
                    try:
                        descriptor, size = session.descriptor(handle)
                    except KeyError:
                        connection.send(_HANDLE.pack(0))
                    else:
                        socket.send_fds(connection, [_HANDLE.pack(size)], [descriptor])
            finally:
                self._end(token)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _expire(self, token: bytes) -> None:
        if token in self._sessions and not self._sessions[token].connected:
            self._end(token)

    def _end(self, token: bytes) -> None:
        session = self._sessions.pop(token, None)
        if session is not None:
            session.close()
            self._leave(session.hosted)

    def _leave(self, hosted: HostedRun) -> None:
        self._sharers[hosted] -= 1
        self._set_quota(hosted)
        if not self._sharers[hosted]:
            del self._sharers[hosted]

    def _set_quota(self, hosted: HostedRun) -> bool:
        """Memory for the present parameters, and for a version that each worker may hold; False if it is not there."""
        sharers = self._sharers[hosted]
        quota = sharers + 1 if sharers else 0
        sizes = hosted.run.shared_sizes()
        for number, size in enumerate(sizes):
            if not self._memory.try_set_quota(size, quota):
                for each in sizes[:number]:
                    self._memory.try_set_quota(each, quota - 1)
                return False
        return True

    def _check_descriptors(self, hosted: HostedRun, shared: SharedVectors, vectors: int) -> None:
        """Raise SharedMemoryUnavailable unless another worker's vectors leave half of all descriptors for the rest."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # What may still be made: a version for every worker, and what this one and its run bring.
        owed = sum(count * len(each.run.layout.groups) for each, count in self._sharers.items())
        most = shared.count + owed + vectors + 2 * len(hosted.run.layout.groups)
        if limit != resource.RLIM_INFINITY and _DESCRIPTORS_PER_VECTOR * most > limit // 2:
            raise SharedMemoryUnavailable(
                f"run '{hosted.run.name}': another worker's vectors could take {_DESCRIPTORS_PER_VECTOR * most} "
                f"descriptors with those of the others, expected at most half of the {limit} that the server may have; "
                "send updates in ranges, or raise the server's limit (ulimit -n)"
            )

    def _no_memory(self, hosted: HostedRun) -> SharedMemoryUnavailable:
        return SharedMemoryUnavailable(
            f"run '{hosted.run.name}': no memory is left for another worker's vectors, expected some; send updates in "
            "ranges, or start the server with a larger --max-memory"
        )


def lost() -> SharedMemoryUnavailable:
    return SharedMemoryUnavailable(
        "the token stands for no memory that is shared now, expected one of ShareMemory whose connection lasts; share "
        "memory again, or send the update in ranges"
    )


async def _receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes; raises EOFError at the end."""
    received = b""
    while len(received) < size:
        part = await asyncio.get_running_loop().sock_recv(connection, size - len(received))
        if not part:
            raise EOFError
        received += part
    return received


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _remove_dead(directory: Path) -> None:
    """Remove the sockets of servers that were killed: nobody listens there any more."""
    for path in directory.glob("*.socket"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                pass
