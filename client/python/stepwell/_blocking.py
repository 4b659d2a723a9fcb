"""Fulfils requests over a grpc channel, in the calling thread.

grpc reads requests from an iterator in a thread of its own, and gives responses from an iterator that cannot be asked
whether one is there. So every stream has two short queues: an outbox that the iterator empties, and an inbox that is
filled where grpc decodes a response, which is the earliest that it can be had. A reader thread asks grpc for the next
one while the inbox has room. It always hears the end of the call and wakes everybody, so neither grpc's thread nor the
caller can wait for ever on a call that has died.
"""

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import grpc

from stepwell._forks import check_process, is_forked, make_immortal
from stepwell._methods import Method
from stepwell._requests import (
    OUTBOX_MESSAGES_MAX,
    Disconnect,
    Do,
    Finish,
    Lost,
    Open,
    Receive,
    Reconnect,
    Repeat,
    Request,
    Send,
    Silent,
    Sleep,
    lost,
)
from stepwell.wire import CONTRACT, CONTRACT_METADATA

METADATA: Final = ((CONTRACT_METADATA, CONTRACT),)

CHANNEL_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.enable_retries", 0),  # the SDK repeats calls itself, with the update's identity
    ("grpc.enable_http_proxy", 0),  # http_proxy is for the web; grpc would take it for loopback, too
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel shares the dead connection of the old one
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 4 << 20),
)


class BlockingConnection:
    """The channel of a client. It is made when it is first needed."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.Channel | None = None
        self._lock = threading.Lock()
        self._closed = False

    def perform(self, request: Request) -> Any:
        match request:
            case Send(stream, message, seconds):
                return stream.send(message, seconds)  # type: ignore[attr-defined]
            case Receive(stream, seconds, meanwhile):
                if meanwhile is not None:
                    stream.wait_until_sent(seconds)  # type: ignore[attr-defined]
                    meanwhile()
                return stream.receive(seconds)  # type: ignore[attr-defined]
            case Open(method, message):
                return self._open(method, message)
            case Finish(stream):
                return stream.finish()  # type: ignore[attr-defined]
            case Sleep(seconds):
                return time.sleep(seconds)
            case Do(work):
                return work()
            case Repeat():
                return BlockingRepeat(self, request)
            case Reconnect(stream):
                return self._drop(stream.channel)  # type: ignore[attr-defined]
            case Disconnect():
                self._closed = True
                return self._drop(self._channel)

    def _open(self, method: Method[Any, Any], message: Any) -> "BlockingCall | BlockingStream":
        while True:
            channel = self._present_channel()
            try:
                return (
                    BlockingCall(channel, method, message) if method.unary else BlockingStream(channel, method, message)
                )
            except ValueError:
                if self._channel is channel:
                    raise
                # Another thread has just closed this channel; take the next one.

    def _present_channel(self) -> grpc.Channel:
        check_process()
        with self._lock:
            if self._closed:
                raise RuntimeError("got a call on a closed client, expected an open one; connect again")
            if self._channel is None:
                self._channel = grpc.insecure_channel(self._address, options=CHANNEL_OPTIONS)
            return self._channel

    def _drop(self, channel: grpc.Channel | None) -> None:
        if is_forked():
            make_immortal(channel)
            return
        with self._lock:
            if self._channel is channel:
                self._channel = None
        if channel is not None:
            channel.close()  # ends its calls; whoever waits on one tries again over the next channel


class BlockingCall:
    """A call with one request and one response."""

    def __init__(self, channel: grpc.Channel, method: Method[Any, Any], message: Any) -> None:
        self.channel = channel
        call = channel.unary_unary(method.path, method.encode, method.decode)
        self._future = call.future(message, metadata=METADATA)
        _remember(self._future)

    def receive(self, seconds: float) -> Any:
        try:
            response = self._future.result(timeout=seconds)
        except grpc.FutureTimeoutError:
            raise Silent from None
        except grpc.FutureCancelledError:
            raise Lost(grpc.StatusCode.CANCELLED, "the call was cancelled") from None
        except grpc.RpcError as error:
            raise broken(error) from None
        return response

    def cancel(self) -> None:
        if not _ending.is_set():
            self._future.cancel()


class BlockingRepeat:
    """A call that is made again and again, in a thread of its own."""

    def __init__(self, connection: BlockingConnection, repeat: Repeat) -> None:
        self._stopped = threading.Event()
        arguments = (connection, repeat, self._stopped)
        threading.Thread(target=_repeat, args=arguments, name="stepwell-heartbeat", daemon=True).start()

    def cancel(self) -> None:
        if not _ending.is_set():
            self._stopped.set()


def _repeat(connection: BlockingConnection, repeat: Repeat, stopped: threading.Event) -> None:
    while not stopped.wait(repeat.seconds):
        try:
            call: Any = connection.perform(Open(repeat.method, repeat.request))
        except RuntimeError:
            return  # the client is closed
        try:
            response = call.receive(repeat.seconds)
        except (Lost, Silent):
            call.cancel()
        else:
            if not stopped.is_set():
                repeat.heard(response)


class BlockingStream:
    """A call that streams in at least one direction."""

    def __init__(self, channel: grpc.Channel, method: Method[Any, Any], message: Any) -> None:
        self.channel = channel
        # One lock, and a condition for each who waits: waking a thread that has nothing to do costs the others time.
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # for the caller
        self._orders = threading.Condition(self._lock)  # for grpc's thread, which sends
        self._room = threading.Condition(self._lock)  # for the reader
        self._decode = method.decode
        self._outbox: deque[Any] = deque()
        self._inbox: deque[Any] = deque()
        self._asked = False  # grpc has sent everything and asks for more
        self._finished = False  # no more requests
        self._cancelled = False  # nobody will receive
        self._ended = False  # no more responses
        self._failure: Lost | None = None
        if message is not None:
            self._outbox.append(message)
            self._finished = True
        # On the wire all calls look the same, so one kind serves all that stream.
        call = channel.stream_stream(method.path, method.encode, self._take)
        self._call: Any = call(Outbox(self), metadata=METADATA)
        _remember(self._call)
        threading.Thread(target=self._read, name="stepwell-reader", daemon=True).start()

    def send(self, message: Any, seconds: float) -> bool:
        with self._lock:
            moved = self._news.wait_for(
                lambda: self._inbox or self._ended or len(self._outbox) < OUTBOX_MESSAGES_MAX, seconds
            )
            if not moved:
                raise Silent
            if self._inbox or self._ended:
                return False
            self._outbox.append(message)
            self._asked = False
            self._orders.notify()
            return True

    def wait_until_sent(self, seconds: float) -> None:
        with self._lock:
            self._news.wait_for(lambda: self._asked or self._inbox or self._ended, seconds)

    def finish(self) -> None:
        with self._lock:
            self._finished = True
            self._orders.notify()

    def receive(self, seconds: float) -> Any:
        with self._lock:
            if not self._news.wait_for(lambda: self._inbox or self._ended, seconds):
                raise Silent
            if self._inbox:
                message = self._inbox.popleft()
                self._room.notify()
                return message
            if self._failure is not None:
                raise self._failure
            return None

    def cancel(self) -> None:
        if _ending.is_set():
            return
        with self._lock:
            self._cancelled = self._finished = True
            self._outbox.clear()
            self._wake_all()
        self._call.cancel()

    def next_request(self) -> Any:
        """The next message to go out; None when there will be none. Called in grpc's thread."""
        with self._lock:
            if not self._outbox:
                self._asked = True
                self._news.notify_all()
            self._orders.wait_for(lambda: self._outbox or self._finished or self._ended)
            if self._ended or not self._outbox:
                return None
            message = self._outbox.popleft()
            self._news.notify_all()
            return message

    def _take(self, serialized: bytes) -> Any:
        """Decode a response, and hand it to the caller at once. Called in grpc's thread, in the order of responses."""
        message = self._decode(serialized)
        with self._lock:
            self._inbox.append(message)
            self._news.notify_all()
        return message

    def _read(self) -> None:
        failure = None
        try:
            for _ in self._call:
                with self._lock:
                    self._room.wait_for(lambda: self._cancelled or len(self._inbox) < OUTBOX_MESSAGES_MAX)
        except grpc.RpcError as error:
            failure = broken(error)
        finally:
            with self._lock:
                self._failure, self._ended = failure, True
                self._wake_all()

    def _wake_all(self) -> None:
        for condition in (self._news, self._orders, self._room):
            condition.notify_all()


def broken(error: grpc.RpcError) -> Lost:
    """What to throw for an error of grpc's, which is always a grpc.Call, too."""
    call: Any = error
    return lost(call.code(), call.details(), call.trailing_metadata())


class Outbox(Iterator[Any]):
    """What grpc's thread reads requests from."""

    def __init__(self, stream: BlockingStream) -> None:
        self._stream = stream

    def __next__(self) -> Any:
        message = self._stream.next_request()
        if message is None:
            raise StopIteration
        return message


_calls: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
"""grpc's objects for the calls that were made."""
_calls_lock: Final = threading.Lock()
_ending: Final = threading.Event()
"""Set when the program ends: from then on no lock is taken that a thread may have stopped with."""


def _remember(call: Any) -> None:
    with _calls_lock:
        _calls.add(call)
    if _ending.is_set():
        make_immortal(call)


def _keep() -> None:
    """At the end of the program, let no call be cancelled or destroyed.

    Threads of grpc's and of our own stop where they are when the interpreter ends, perhaps with the lock of a call or
    of a stream. Whoever takes it then waits for ever, as grpc's finalisers do, and runs that were not closed: one in
    some hundred programs hung on a busy machine. The server hears of the end when the connection breaks.
    """
    _ending.set()
    with _calls_lock:
        calls = list(_calls)
    for call in calls:
        make_immortal(call)


atexit.register(_keep)
