"""What carries a worker's exchanges: its stream, and memory that it shares with a server of its own machine."""

import math
from collections.abc import Callable, Iterable

import grpc

from stepwell import payload
from stepwell._calls import Patience, Settings, again, ask, end, logger
from stepwell._exchange import Exchange, WorkRequest
from stepwell._forks import is_forked, make_immortal
from stepwell._layout import Layout
from stepwell._membership import Member
from stepwell._methods import SHARE_MEMORY, WORK
from stepwell._progress import Transfer
from stepwell._requests import Do, Lost, Open, Receive, Send, Silent, Steps, Stream
from stepwell._shared import SHARED_BYTES_MIN, SharedMemory, rows_vector_bytes
from stepwell.errors import (
    ContractMismatch,
    LimitExceeded,
    ServerUnavailable,
    SharedMemoryUnavailable,
    StepwellError,
    TimedOut,
)
from stepwell.v1 import data_pb2

Hook = Callable[[list[data_pb2.WorkRequest]], object]


class Carrier(Member):
    """A member with a stream of its own, and perhaps shared memory.

    before_answer, after_answer: for tests of exactly-once. They get all messages of each update when the last one has
    been sent, and when the answer has come; a test may send them again over a second connection.
    """

    def __init__(self, settings: Settings, run: str, uid: bytes = b"", version: int = 0) -> None:
        super().__init__(settings, run, uid, version)
        self.before_answer: Hook | None = None
        self.after_answer: Hook | None = None
        self.stream: Stream | None = None
        self.shared: SharedMemory | None = None
        self._may_share = settings.transport != "stream"
        # A vector for rows of this size was refused since the last join; larger ones need not be asked for.
        self._refused_rows_bytes: float = math.inf
        self._exchanges = 0

    def join(self, timeout: float | None = None) -> Steps[None]:
        """See Member; after it sharing memory is tried again."""
        yield from super().join(timeout)
        self._may_share = self._settings.transport != "stream"
        self._refused_rows_bytes = math.inf

    def have_place(self) -> Steps[Layout]:
        """The layout, as a worker that has joined, and shares memory if it may."""
        if self._membership is None or self.layout is None:
            yield from self.join()
        assert self.layout is not None
        if self.shared is None:
            yield from self.share()
        return self.layout

    def share(self, inputs: tuple[str, ...] = (), rows_bytes: int = 0) -> Steps[None]:
        """Share memory with the server, if that is wanted and has not failed since the last join.

        inputs: what updates carry beside gradients. rows_bytes: for how much of rows there should be room. What is
        shared already and does not do is given back first. Raises SharedMemoryUnavailable where nothing else will do.
        """
        assert self.layout is not None
        if rows_vector_bytes(rows_bytes) >= self._refused_rows_bytes:
            rows_bytes = 0
        if self.shared is not None:
            inputs_do = self.shared.inputs[: len(inputs)] == inputs
            if inputs_do and self.shared.rows.nbytes >= rows_bytes:
                return
            inputs = self.shared.inputs if inputs_do else inputs
            rows_bytes = max(rows_bytes, self.shared.rows.nbytes)
            self._stop_sharing()
        large = max(self.layout.size_bytes, rows_bytes) >= SHARED_BYTES_MIN
        if not self._must_share and not (large and self._may_share and self._settings.local):
            return
        rows_bytes = rows_vector_bytes(rows_bytes) if self.layout.tables else 0
        request = data_pb2.ShareMemoryRequest(run=self.run, run_uid=self.uid, inputs=inputs, rows_bytes=rows_bytes)
        what = self._what("share memory")
        try:
            response = yield from ask(self._settings, SHARE_MEMORY, request, what)
            layout = self.layout
            self.shared = yield Do(lambda: SharedMemory(layout, inputs, response))
        except (OSError, SharedMemoryUnavailable, LimitExceeded, ContractMismatch) as error:
            if isinstance(error, ServerUnavailable | TimedOut):
                raise
            if rows_bytes > rows_vector_bytes(0):
                logger.info("%s: sends its rows over the stream: %s", what, error)
                self._refused_rows_bytes = rows_bytes
                yield from self.share(inputs)
                return
            if self._must_share:
                raise SharedMemoryUnavailable(f"{what}: {error}; or connect with transport='auto'") from None
            self._may_share = False
            logger.info("%s: sends its updates over the stream: %s", what, error)

    def leave(self) -> Steps[None]:
        """End the stream, and the place in the run."""
        stream, self.stream = self.stream, None
        self._stop_sharing()
        self._stop_heartbeat()
        if stream is not None:
            yield from end(stream)
        yield from super().leave()

    def drop(self) -> None:
        """End the stream at once, where nobody closed it."""
        self._stop_sharing()
        if not is_forked():
            super().drop()
            if self.stream is not None:
                self.stream.cancel()

    def start_over(self, *, forked: bool) -> None:
        make_immortal(self.stream)
        self.stream = None
        if forked:
            self._stop_sharing()
        super().start_over(forked=forked)

    def carry_out(self, exchange: Exchange, patience: Patience) -> Steps[None]:
        """Try until the exchange is done, refused, or the patience has run out."""
        with Transfer(self._settings.progress, patience.what, exchange.total_bytes) as transfer:
            while True:
                try:
                    stream = yield from self.open_stream()
                    yield from self._try(exchange, stream, patience, transfer)
                    yield from self._take_shared(exchange, stream, patience)
                    return
                except (SharedMemoryUnavailable, ConnectionError, FileNotFoundError) as error:
                    if not exchange.shared or isinstance(error, ServerUnavailable | TimedOut):
                        raise
                    # What was shared is gone, with the server's life or the run's; the arrays are still here.
                    logger.warning("%s: sends what was shared over the stream: %s", patience.what, error)
                    self._stop_sharing()
                    exchange.unshare()
                except (Lost, Silent) as failure:
                    lost, self.stream = self.stream, None
                    assert lost is not None
                    self._forsake_rows(exchange)
                    yield from again(lost, patience, failure)
                    yield from self.lend_rows(exchange)
                except StepwellError:
                    raise  # the exchange is over, the stream goes on
                except BaseException:
                    self._forsake_rows(exchange)
                    if self.stream is not None:
                        self.stream.cancel()
                        self.stream = None
                    raise

    def share_rows(self, size_bytes: int) -> Steps[bool]:
        """Whether rows of this size go by shared memory: where it pays, and there is room or more can be had."""
        if size_bytes < SHARED_BYTES_MIN:
            return False
        if self._membership is not None:
            yield from self.share(rows_bytes=size_bytes)
        return self.shared is not None and self.shared.rows.nbytes >= size_bytes

    def lend_rows(self, exchange: Exchange) -> Steps[None]:
        """Have the rows that an exchange asks for come by shared memory, where they shall."""
        rows = exchange.rows
        if rows is not None and (yield from self.share_rows(rows.shared_bytes)):
            shared = self.shared
            assert shared is not None
            yield Do(lambda: rows.put_ids(shared.rows))
            exchange.shared, exchange.rows_shared = shared.token, True

    def open_stream(self) -> Steps[Stream]:
        """The stream, opened where there is none."""
        if self.stream is None:
            self.stream, self._exchanges = (yield Open(WORK)), 0
        return self.stream

    def next_number(self) -> int:
        """The number of the next exchange on the stream."""
        self._exchanges += 1
        return self._exchanges

    def send(self, exchange: Exchange, stream: Stream, request: WorkRequest, patience: Patience) -> Steps[None]:
        """Send a message, unless the exchange is done before it is gone."""
        while not exchange.done and not (yield Send(stream, request, patience.seconds())):
            yield from self.receive(exchange, stream, patience)

    def receive(
        self,
        exchange: Exchange,
        stream: Stream,
        patience: Patience,
        meanwhile: Callable[[], object] | None = None,
    ) -> Steps[None]:
        """Take the server's next message."""
        response: payload.Incoming[data_pb2.WorkResponse] | None = yield Receive(stream, patience.seconds(), meanwhile)
        if response is None:
            raise Lost(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
        patience.heard()
        exchange.take(response)

    def _try(self, exchange: Exchange, stream: Stream, patience: Patience, transfer: Transfer) -> Steps[None]:
        requests: Iterable[WorkRequest] = exchange.requests(self.next_number())
        hooked = exchange.update is not None and (self.before_answer or self.after_answer)
        if hooked:
            requests = list(requests)
            sent = [data_pb2.WorkRequest.FromString(payload.WORK_REQUEST.encode(request)) for request in requests]
        for request in requests:
            yield from self.send(exchange, stream, request, patience)
            transfer.done(exchange.moved_bytes)
            if exchange.done:
                break
            if exchange.answer and not request.message.last:
                # A retry of what was committed already: the server needs no more of it.
                yield from self.send(exchange, stream, exchange.closing(), patience)
                break
        if hooked and self.before_answer:
            self.before_answer(sent)
        meanwhile = exchange.meanwhile
        while not exchange.done:
            yield from self.receive(exchange, stream, patience, meanwhile)
            meanwhile = None
            transfer.done(exchange.moved_bytes)
        if hooked and self.after_answer:
            self.after_answer(sent)

    def _take_shared(self, exchange: Exchange, stream: Stream, patience: Patience) -> Steps[None]:
        """Take what came by shared memory; where parameters are copied, the server need not keep them so."""
        shared, received, rows = self.shared, exchange.received, exchange.rows
        if rows is not None and exchange.rows_shared:
            assert shared is not None
            memory = shared.rows
            yield Do(lambda: rows.take(memory))
        if not exchange.vectors:
            return
        assert shared is not None
        assert received is not None
        vectors = exchange.vectors

        def take() -> None:
            found = shared.parameters(vectors)
            received.take(found.views, found.flat)

        yield Do(take)
        if received.copies:
            yield Send(stream, payload.Outgoing(data_pb2.WorkRequest(release=shared.token)), patience.seconds())

    def _forsake_rows(self, exchange: Exchange) -> None:
        """Let go of shared memory that rows were to come by: the server may still write there when others do."""
        if exchange.rows is not None and exchange.rows_shared:
            self._stop_sharing()
            exchange.unshare()

    def _stop_sharing(self) -> None:
        shared, self.shared = self.shared, None
        if shared is not None:
            shared.close()

    @property
    def _must_share(self) -> bool:
        return self._settings.transport == "shared_memory"

    @property
    def _token(self) -> bytes:
        return self.shared.token if self.shared else b""
