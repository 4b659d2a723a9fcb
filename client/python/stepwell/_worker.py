"""A worker's place in a run: its membership, the identity of its updates, and the stream that carries them."""

import contextlib
import os
import re
import secrets
import socket
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np

from stepwell import payload
from stepwell._calls import END_SECONDS, Patience, Settings, again, ask, collect, end, logger
from stepwell._descriptions import Answer, Outcome, Place, describe_place
from stepwell._encoding import EncodedUpdate, Encoder
from stepwell._exchange import Exchange, Update, WorkRequest
from stepwell._forks import make_immortal
from stepwell._layout import Layout, LayoutPieces, listed
from stepwell._methods import BARRIER, GET_LAYOUT, HEARTBEAT, JOIN, LEAVE, SHARE_MEMORY, WORK
from stepwell._packing import Gradients, Part, Piece, check_array, pack
from stepwell._progress import Transfer
from stepwell._receiving import Received
from stepwell._requests import Do, Lost, Open, Receive, Repeat, Send, Silent, Steps, Stream
from stepwell._shared import SHARED_BYTES_MIN, SharedMemory
from stepwell.errors import (
    ContractMismatch,
    InvalidGradient,
    InvalidName,
    RunReplaced,
    RunRewound,
    SequenceGap,
    SequenceReused,
    SequenceTooOld,
    ServerUnavailable,
    SharedMemoryUnavailable,
    StepwellError,
    TimedOut,
    UnknownWorker,
)
from stepwell.v1 import control_pb2, data_pb2
from stepwell.wire import RANGE_BYTES

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
FINGERPRINT_BYTES: Final = 16
HEARTBEATS_PER_LEASE: Final = 3

Hook = Callable[[list[data_pb2.WorkRequest]], object]
Select = Callable[[Layout], tuple[data_pb2.Selection, Received]]


@dataclass
class Membership:
    """What Join gave, the last sequence that was answered in this epoch, and how many barriers were passed in it."""

    generation: int
    epoch: int
    sequence: int = 0
    barriers: int = 0


class Worker:
    """One worker of one run.

    name: under which it joins. uid and layout: of the run, once known. version: the newest that it was told of.
    before_answer, after_answer: for tests of exactly-once. They get all messages of each update when the last one has
    been sent, and when the answer has come; a test may send them again over a second connection.
    """

    def __init__(self, settings: Settings, run: str, uid: bytes = b"", version: int = 0) -> None:
        self.run, self.uid, self.version = run, uid, version
        self.name = settings.worker or default_name()
        self.layout: Layout | None = None
        self.last_answer: Answer | None = None
        self.loss_scale: float | None = None
        self.encoder: Encoder | None = None
        self.before_answer: Hook | None = None
        self.after_answer: Hook | None = None
        self.stream: Stream | None = None
        self.shared: SharedMemory | None = None
        self._may_share = settings.transport != "stream"
        self._settings = settings
        self._membership: Membership | None = None
        # The last update with an answer under this name, as the last join told: its epoch and sequence.
        self._last_answered = (0, 0)
        # Of the parameters that came last.
        self._base_version: int | None = None
        self._heartbeat: Stream | None = None
        self.place: Place | None = None
        self._exchanges = 0
        self._pid = os.getpid()

    def update(
        self,
        grads: Mapping[str, Any],
        inputs: Mapping[str, Mapping[str, Any]] | None,
        header: data_pb2.UpdateHeader,
        select: Select | None,
        what: str,
        timeout: float | None,
    ) -> Steps[Exchange]:
        """Carry out one update, and with `select` fetch parameters after it; joins where that is due.

        header: still without identity and names.
        """
        patience = Patience(self._settings, what, timeout)
        if self._membership is None or self.layout is None:
            yield from self.join(timeout)
        assert self.layout is not None
        gradients = Gradients(self.layout, grads, what, inputs)
        header.without_gradient.extend(gradients.without_gradient)
        header.inputs.extend(gradients.inputs)
        update = Update(header, gradients, self._encoded(self.layout))
        if self._base_version is not None:
            header.base_version = self._base_version
        while True:
            yield from self.share(tuple(gradients.inputs))
            membership = self._membership
            assert membership is not None
            selection, received = select(self.layout) if select else (None, None)
            header.identity.CopyFrom(self._identity(membership))
            exchange = Exchange(update, selection, received, self._token)
            if self.shared is not None:
                shared = self.shared
                yield Do(lambda: shared.fill(gradients))  # noqa: B023  # done before the next round
            try:
                return (yield from self._conclude(exchange, membership, self._carry_out(exchange, patience)))
            except UnknownWorker as error:
                answer = yield from self._come_back(header.identity, patience, error)
            if answer is not None:
                self.last_answer = exchange.answer = answer
                if select is not None:
                    yield from self._carry_out(exchange, patience)
                return exchange

    def _come_back(
        self, identity: data_pb2.UpdateIdentity, patience: Patience, error: UnknownWorker
    ) -> Steps[Answer | None]:
        """Join again, as the lease has run out; None where the update has had no effect, and can be sent again.

        A gradient that was computed before counts as what it is: the policy looks at the version that it was taken at.
        """
        patience.check()
        logger.warning("%s: joins again: %s", patience.what, error)
        yield from self.join()
        if self._last_answered < (identity.epoch, identity.sequence):
            return None
        return Answer(Outcome.COMMITTED, self.version, None, None, None)

    def _conclude(self, exchange: Exchange, membership: Membership, work: Steps[None]) -> Steps[Exchange]:
        """Do the work of an update's exchange, and draw the conclusions for this worker."""
        try:
            yield from work
        except RunRewound as rewound:
            self.rewound(rewound.version)
            yield from self._rejoin()
            raise
        except (UnknownWorker, SequenceGap, SequenceReused, SequenceTooOld):
            self._membership = None  # the server and this worker do not mean the same epoch: begin another
            raise
        finally:
            self._settle(exchange, membership)
        if exchange.received is not None and exchange.version < self.version:
            # The answer came, then the server went down and came back from an older snapshot.
            raise self._went_back(exchange.version)
        return exchange

    def begin(
        self, header: data_pb2.UpdateHeader, select: Select | None, what: str, timeout: float | None
    ) -> Steps["Layered"]:
        """Begin an update whose gradients come one after another; `add` them, then `finish` or `abandon` it."""
        patience = Patience(self._settings, what, timeout)
        layout = yield from self.have_place()
        assert self._membership is not None
        selection, received = select(layout) if select else (None, None)
        header.identity.CopyFrom(self._identity(self._membership))
        encoded = self._encoded(layout)
        return Layered(header, selection, received, what, patience, self._membership, encoded)

    def add(self, layered: "Layered", name: str, gradient: Any) -> Steps[None]:
        """Take a gradient, or None for a parameter that has none; it is sent while the caller goes on to the next."""
        assert self.layout is not None
        array = layered.take(self.layout, name, gradient)
        if array is None:
            return
        if self.shared is not None:
            shared, parameter = self.shared, self.layout.by_name[name]
            yield Do(lambda: shared.put(parameter.index, array))
        elif not layered.broken and layered.waiting_bytes >= RANGE_BYTES:
            yield from self._send_layers(layered)

    def finish(self, layered: "Layered") -> Steps[Exchange]:
        """Commit it. Raises InvalidGradient where a parameter was not named."""
        assert self.layout is not None
        layered.over = True
        try:
            gradients = Gradients(self.layout, layered.gradients, layered.what)
        except BaseException:
            self.abandon(layered)
            raise
        exchange = layered.exchange
        if exchange is None:  # nothing was sent
            layered.header.without_gradient.extend(gradients.without_gradient)
            update = Update(layered.header, gradients, layered.encoded)
            exchange = Exchange(update, layered.selection, layered.received, self._token)
            work = self._carry_out(exchange, layered.patience)
        else:
            work = self._finish_layers(layered, exchange, gradients)
        return (yield from self._conclude(exchange, layered.membership, work))

    def abandon(self, layered: "Layered") -> None:
        """Give it up: the server drops what it has of it, and the sequence is not used up."""
        layered.over = True
        if layered.exchange is not None and not layered.broken and self.stream is not None:
            self.stream.cancel()
            self.stream = None

    def _send_layers(self, layered: "Layered") -> Steps[None]:
        """Send what waits. A broken connection is for `finish` to mend, which sends everything again."""
        if layered.exchange is None:
            if self.stream is None:
                self.stream, self._exchanges, self._pid = (yield Open(WORK)), 0, os.getpid()
            self._exchanges += 1
            layered.exchange = Exchange(None, layered.selection, layered.received)
            layered.exchange.begin(self._exchanges)
            header: data_pb2.UpdateHeader | None = layered.header
        else:
            header = None
        stream = self.stream
        assert stream is not None
        try:
            for pieces in layered.messages():
                yield from self._send(layered.exchange, stream, layered.exchange.part(header, pieces), layered.patience)
                header = None
        except (Lost, Silent):
            stream.cancel()
            self.stream, layered.broken = None, True

    def _finish_layers(self, layered: "Layered", exchange: Exchange, gradients: Gradients) -> Steps[None]:
        exchange.update = Update(layered.header, gradients, layered.encoded)
        if layered.broken:
            layered.messages()
        else:
            yield from self._send_layers(layered)
        if not layered.broken:
            stream = self.stream
            assert stream is not None
            exchange.late = gradients.without_gradient
            try:
                yield from self._send(exchange, stream, exchange.closing(), layered.patience)
                while not exchange.done:
                    yield from self._receive(exchange, stream, layered.patience)
                return
            except (Lost, Silent):
                stream.cancel()
                self.stream = None
        exchange.late = []
        layered.header.without_gradient.extend(gradients.without_gradient)
        yield from self._carry_out(exchange, layered.patience)

    def fetch(self, select: Select, what: str, timeout: float | None) -> Steps[Exchange]:
        """Fetch parameters. A reader does this without ever joining."""
        patience = Patience(self._settings, what, timeout)
        layout = yield from self.have_layout()
        selection, received = select(layout)
        shared = self._token if selection.point in ("", "parameters") else b""
        exchange = Exchange(None, selection, received, shared)
        yield from self._carry_out(exchange, patience)
        if exchange.version < self.version:
            raise self._went_back(exchange.version)
        self.version = self._base_version = exchange.version
        return exchange

    def join(self, timeout: float | None = None) -> Steps[None]:
        """Become a worker of the run, in a new epoch.

        Raises RunRewound where the run is at an older version than this worker has been told of: what it is about to
        push belongs to a state that is gone.
        """
        request = control_pb2.JoinRequest(run=self.run, worker=self.name, lease_seconds=self._settings.lease_seconds)
        joined = yield from collect(self._settings, JOIN, request, JoinPieces, self._what("join"), timeout)
        self._know(joined.membership.run_uid, joined.layout)
        self._membership = Membership(joined.membership.generation, joined.membership.epoch)
        self._last_answered = joined.membership.last_epoch, joined.membership.last_sequence
        self.place = describe_place(joined.membership.place)
        yield from self._keep_lease(joined.membership)
        if joined.membership.version < self.version:
            raise self._went_back(joined.membership.version, joined=True)
        self.version = joined.membership.version
        self._may_share = self._settings.transport != "stream"

    def _keep_lease(self, membership: control_pb2.Membership) -> Steps[None]:
        """Give signs of life in the background, as long as this object lives; what comes back tells its place."""
        self._stop_heartbeat()
        if not membership.lease_seconds:
            return
        this = weakref.ref(self)

        def heard(response: control_pb2.HeartbeatResponse) -> None:
            worker = this()
            if worker is not None:
                worker.place = describe_place(response.place)

        request = control_pb2.HeartbeatRequest(run=self.run, worker=self.name, epoch=membership.epoch)
        self._heartbeat = yield Repeat(HEARTBEAT, request, membership.lease_seconds / HEARTBEATS_PER_LEASE, heard)

    def look_around(self) -> Steps[Place]:
        """Where this worker stands now; joins where that is due."""
        if self._membership is None:
            yield from self.join()
        assert self._membership is not None
        request = control_pb2.HeartbeatRequest(run=self.run, worker=self.name, epoch=self._membership.epoch)
        try:
            response = yield from ask(self._settings, HEARTBEAT, request, self._what("place"))
            self.place = describe_place(response.place)
        except UnknownWorker:
            yield from self.join()
        assert self.place is not None
        return self.place

    def barrier(self, name: str, timeout: float | None) -> Steps[None]:
        """Wait until all live workers wait at this barrier."""
        while True:
            if self._membership is None:
                yield from self.join(timeout)
            membership = self._membership
            assert membership is not None
            request = control_pb2.BarrierRequest(
                run=self.run,
                worker=self.name,
                epoch=membership.epoch,
                barrier=name,
                call=membership.barriers + 1,
            )
            try:
                yield from collect(self._settings, BARRIER, request, Released, self._what(f"barrier '{name}'"), timeout)
            except UnknownWorker:
                self._membership = None  # the lease has run out
                continue
            membership.barriers += 1
            return

    def have_place(self) -> Steps[Layout]:
        """The layout, as a worker that has joined, and shares memory if it may."""
        if self._membership is None or self.layout is None:
            yield from self.join()
        assert self.layout is not None
        if self.shared is None:
            yield from self.share()
        return self.layout

    def share(self, inputs: tuple[str, ...] = ()) -> Steps[None]:
        """Share memory with the server, if that is wanted and has not failed since the last join.

        inputs: what updates carry beside gradients. Raises SharedMemoryUnavailable where nothing else will do.
        """
        assert self.layout is not None
        if self.shared is not None:
            if self.shared.inputs[: len(inputs)] == inputs:
                return
            self._stop_sharing()
        required = self._settings.transport == "shared_memory"
        large = self.layout.size_bytes >= SHARED_BYTES_MIN
        if not required and not (large and self._may_share and self._settings.local):
            return
        request = data_pb2.ShareMemoryRequest(run=self.run, run_uid=self.uid, inputs=inputs)
        try:
            response = yield from ask(self._settings, SHARE_MEMORY, request, self._what("share memory"))
            layout = self.layout
            self.shared = yield Do(lambda: SharedMemory(layout, inputs, response))
        except (OSError, SharedMemoryUnavailable, ContractMismatch) as error:
            if isinstance(error, ServerUnavailable | TimedOut):
                raise
            if required:
                raise SharedMemoryUnavailable(
                    f"{self._what('share memory')}: {error}; or connect with transport='auto'"
                ) from None
            self._may_share = False
            logger.info("%s: sends its updates over the stream: %s", self._what("share memory"), error)

    def have_layout(self) -> Steps[Layout]:
        """The layout, fetched when it is first needed."""
        if self.layout is None:
            request = control_pb2.GetLayoutRequest(run=self.run)
            pieces = yield from collect(self._settings, GET_LAYOUT, request, GetLayoutPieces, self._what("layout"))
            self._know(pieces.uid, pieces.layout)
        assert self.layout is not None
        return self.layout

    def rewound(self, version: int) -> None:
        """The run went back, by our own doing or not: join anew before the next update."""
        self.version = version
        self._membership = self._base_version = None

    def leave(self) -> Steps[None]:
        """End the stream, and the place in the run."""
        stream, self.stream = self.stream, None
        membership, self._membership = self._membership, None
        self._stop_sharing()
        self._stop_heartbeat()
        if stream is not None:
            yield from end(stream)
        if membership is not None:
            request = control_pb2.LeaveRequest(run=self.run, worker=self.name, epoch=membership.epoch)
            leaving = yield Open(LEAVE, request)
            try:
                yield Receive(leaving, END_SECONDS)
            except (Lost, Silent):
                pass  # the lease will run out
            finally:
                leaving.cancel()

    def drop(self) -> None:
        """End the stream at once, where nobody closed it."""
        self._stop_sharing()
        self._stop_heartbeat()
        if self.stream is not None and self._pid == os.getpid():
            self.stream.cancel()

    def start_over(self, *, forked: bool) -> None:
        """In another process or event loop: nothing that was opened there can be used here.

        A forked child must not share the parent's epoch and sequence, so it becomes a worker of its own.
        """
        make_immortal(self.stream)
        self.stream = self._heartbeat = None
        if forked:
            self._stop_sharing()
            self._membership = None
            if self.encoder is not None:
                self.encoder.reset()
            self.name = default_name(prefix=self._settings.worker)

    def _carry_out(self, exchange: Exchange, patience: Patience) -> Steps[None]:
        """Try until the exchange is done, refused, or the patience has run out."""
        with Transfer(self._settings.progress, patience.what, exchange.total_bytes) as transfer:
            while True:
                try:
                    if self.stream is None:
                        self.stream, self._exchanges, self._pid = (yield Open(WORK)), 0, os.getpid()
                    yield from self._try(exchange, self.stream, patience, transfer)
                    if exchange.vectors:
                        yield from self._take_shared(exchange, self.stream, patience)
                    return
                except (SharedMemoryUnavailable, ConnectionError, FileNotFoundError) as error:
                    if not exchange.shared or isinstance(error, ServerUnavailable | TimedOut):
                        raise
                    # What was shared is gone, with the server's life or the run's; the arrays are still here.
                    logger.warning("%s: sends what was shared over the stream: %s", patience.what, error)
                    self._stop_sharing()
                    exchange.shared = b""
                except (Lost, Silent) as failure:
                    stream, self.stream = self.stream, None
                    assert stream is not None
                    yield from again(stream, patience, failure)
                except StepwellError:
                    raise  # the exchange is over, the stream goes on
                except BaseException:
                    if self.stream is not None:
                        self.stream.cancel()
                        self.stream = None
                    raise

    def _try(self, exchange: Exchange, stream: Stream, patience: Patience, transfer: Transfer) -> Steps[None]:
        self._exchanges += 1
        requests: Iterable[WorkRequest] = exchange.requests(self._exchanges)
        hooked = exchange.update is not None and (self.before_answer or self.after_answer)
        if hooked:
            requests = list(requests)
            sent = [data_pb2.WorkRequest.FromString(payload.WORK_REQUEST.encode(request)) for request in requests]
        for request in requests:
            yield from self._send(exchange, stream, request, patience)
            transfer.done(exchange.moved_bytes)
            if exchange.done:
                break
            if exchange.answer and not request.message.last:
                # A retry of what was committed already: the server needs no more of it.
                yield from self._send(exchange, stream, exchange.closing(), patience)
                break
        if hooked and self.before_answer:
            self.before_answer(sent)
        meanwhile = exchange.meanwhile
        while not exchange.done:
            yield from self._receive(exchange, stream, patience, meanwhile)
            meanwhile = None
            transfer.done(exchange.moved_bytes)
        if hooked and self.after_answer:
            self.after_answer(sent)

    def _take_shared(self, exchange: Exchange, stream: Stream, patience: Patience) -> Steps[None]:
        """Take parameters that lie in shared memory; where they are copied, the server need not keep them so."""
        shared, received = self.shared, exchange.received
        assert shared is not None
        assert received is not None
        vectors = exchange.vectors

        def take() -> None:
            found = shared.parameters(vectors)
            received.take(found.views, found.flat)

        yield Do(take)
        if received.copies:
            yield Send(stream, payload.Outgoing(data_pb2.WorkRequest(release=shared.token)), patience.seconds())

    def _send(self, exchange: Exchange, stream: Stream, request: WorkRequest, patience: Patience) -> Steps[None]:
        """Send a message, unless the exchange is done before it is gone."""
        while not exchange.done and not (yield Send(stream, request, patience.seconds())):
            yield from self._receive(exchange, stream, patience)

    def _receive(
        self,
        exchange: Exchange,
        stream: Stream,
        patience: Patience,
        meanwhile: Callable[[], object] | None = None,
    ) -> Steps[None]:
        response: payload.Incoming[data_pb2.WorkResponse] | None = yield Receive(stream, patience.seconds(), meanwhile)
        if response is None:
            raise Lost(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
        patience.heard()
        exchange.take(response)

    def _settle(self, exchange: Exchange, membership: Membership) -> None:
        """Note what became of an update, however it ended."""
        if exchange.answer is not None:
            self.last_answer = exchange.answer
            self.loss_scale = exchange.answer.loss_scale
            self.version = max(self.version, exchange.answer.committed_version, exchange.version)
            if exchange.received is not None and exchange.version:
                self._base_version = exchange.version
            membership.sequence += 1
            update = exchange.update
            if update and update.encoded and exchange.answer.outcome in (Outcome.COMMITTED, Outcome.FOLDED):
                update.encoded.settle()
        elif not exchange.refused:
            # Given up, so its fate is not known. A new epoch fences whatever of it is still on its way.
            self._membership = None

    def _rejoin(self) -> Steps[None]:
        """Take the place in the run as it is now, so that its going back again would be heard of, too.

        Without success it is left to the next update: what has happened is to be raised, not this.
        """
        with contextlib.suppress(StepwellError):
            yield from self.join(self._settings.silence_seconds)

    def _encoded(self, layout: Layout) -> EncodedUpdate | None:
        return EncodedUpdate(self.encoder, layout) if self.encoder else None

    @property
    def _token(self) -> bytes:
        return self.shared.token if self.shared else b""

    def _stop_heartbeat(self) -> None:
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.cancel()

    def _stop_sharing(self) -> None:
        shared, self.shared = self.shared, None
        if shared is not None:
            shared.close()

    def _identity(self, membership: Membership) -> data_pb2.UpdateIdentity:
        return data_pb2.UpdateIdentity(
            run=self.run,
            run_uid=self.uid,
            generation=membership.generation,
            worker=self.name,
            epoch=membership.epoch,
            sequence=membership.sequence + 1,
            fingerprint=secrets.token_bytes(FINGERPRINT_BYTES),
            acknowledged_version=self.version,
        )

    def _know(self, uid: bytes, pieces: LayoutPieces) -> None:
        if self.uid and uid != self.uid:
            raise RunReplaced(
                f"{self._what('join')}: got a run with another uid, expected the one that this object was made for: it "
                "was deleted and made anew; get it again with client.get_run",
                {"run": self.run},
            )
        if self.layout is None:
            self.uid, self.layout = uid, pieces.layout()

    def _went_back(self, version: int, *, joined: bool = False) -> RunRewound:
        acknowledged_version, membership = self.version, self._membership
        self.rewound(version)
        if joined:
            self._membership = membership
        return RunRewound(
            f"run '{self.run}': got version {version}, expected {acknowledged_version} or newer: the run went back to "
            "an older state; go on from its present parameters, pull() returns them",
            {"acknowledged_version": str(acknowledged_version), "version": str(version)},
        )

    def _what(self, call: str) -> str:
        return f"run '{self.run}': {call}"


class Layered:
    """An update on its way while its gradients are still being made.

    exchange: once something was sent. broken: whether the connection was lost since. over: whether no more is taken.
    """

    def __init__(
        self,
        header: data_pb2.UpdateHeader,
        selection: data_pb2.Selection | None,
        received: Received | None,
        what: str,
        patience: Patience,
        membership: Membership,
        encoded: EncodedUpdate | None,
    ) -> None:
        self.header, self.selection, self.received = header, selection, received
        self.what, self.patience, self.membership, self.encoded = what, patience, membership, encoded
        self.gradients: dict[str, Any] = {}
        self.exchange: Exchange | None = None
        self.broken = self.over = False
        self.waiting_bytes = 0
        self._waiting: list[Part] = []

    def take(self, layout: Layout, name: str, gradient: Any) -> np.ndarray[Any, Any] | None:
        """Check a gradient and keep it; what is returned is to be sent. Raises InvalidGradient."""
        if self.over:
            raise InvalidGradient(f"{self.what}: got a gradient for {name!r:.200} after the end; begin another update")
        if name in self.gradients:
            raise InvalidGradient(f"{self.what}: got two gradients for '{name}', expected one; add them up first")
        parameter = layout.by_name.get(name)
        if parameter is None or parameter.frozen:
            known = listed(trained for trained, *_ in layout.trained)
            raise InvalidGradient(
                f"{self.what}: got a gradient for {name!r:.200}, expected one of {known}; leave it out"
            )
        array = None if gradient is None else check_array(parameter, gradient, self.what)
        self.gradients[name] = array
        if array is not None:
            other = array.dtype != parameter.dtype
            item_bytes = parameter.dtype.itemsize if other else 0
            self._waiting.append(Part(parameter.group, parameter.offset_bytes, array, item_bytes))
            self.waiting_bytes += array.nbytes
        return array

    def messages(self) -> list[list[Piece]]:
        """What is to be sent next, encoded where the run says so, whether or not the sending succeeds."""
        waiting, self._waiting, self.waiting_bytes = self._waiting, [], 0
        if self.encoded is None:
            return list(pack(waiting))
        return [self.encoded.add(pieces) for pieces in pack(waiting, self.encoded.piece_bytes)]


class Released:
    """A collector for Barrier: the call ends when all have arrived."""

    def add(self, message: control_pb2.BarrierResponse) -> None:
        pass


class JoinPieces:
    """A collector for Join."""

    def __init__(self) -> None:
        self.membership = control_pb2.Membership()
        self.layout = LayoutPieces()

    def add(self, message: control_pb2.JoinResponse) -> None:
        if message.HasField("membership"):
            self.membership = message.membership
        self.layout.add(message.layout)


class GetLayoutPieces:
    """A collector for GetLayout."""

    def __init__(self) -> None:
        self.uid = b""
        self.layout = LayoutPieces()

    def add(self, message: control_pb2.GetLayoutResponse) -> None:
        self.uid = self.uid or message.run_uid
        self.layout.add(message.layout)


def check_name(worker: str) -> str:
    """A worker's name as it is; raises InvalidName."""
    if not re.fullmatch(NAME_PATTERN, worker):
        raise InvalidName(f"got the worker name {worker!r:.200}, expected {NAME_PATTERN}; choose another")
    return worker


def default_name(prefix: str | None = None) -> str:
    """A name that no other worker has, of host and process; or of the given prefix and process."""
    place = re.sub(r"[^A-Za-z0-9._-]", "-", prefix or socket.gethostname()).lstrip("._-") or "worker"
    return f"{place[:80]}-{os.getpid()}-{secrets.token_hex(4)}"
