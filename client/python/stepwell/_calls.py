"""How a call waits, and how it is tried again.

Two limits hold for every call. `silence_seconds`: how long the server may say nothing; then the connection is given up
and the call is made again over a new one. `patience_seconds`: how long that goes on without any word from the server;
then ServerUnavailable or TimedOut is raised. While the server gives word a call waits as long as it takes, unless the
caller set a limit with `timeout`.

Reads, CreateRun, Join and updates are made again: a second CreateRun finds the run, a second Join fences the first, and
an update keeps its identity, so that it is applied once. Calls that change something else (UpdateRun, DeleteRun,
SetState, SaveCheckpoint, RestoreCheckpoint) are made again only if the server surely did nothing.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from stepwell._methods import GET_SERVER, Method
from stepwell._progress import Progress
from stepwell._requests import Finish, Lost, Open, Receive, Reconnect, Send, Silent, Sleep, Steps, Stream
from stepwell.errors import ServerUnavailable, StepwellError, TimedOut
from stepwell.v1 import control_pb2

END_SECONDS: Final = 1.0

logger = logging.getLogger("stepwell")

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
A_contra = TypeVar("A_contra", bound=Message, contravariant=True)
C = TypeVar("C", bound="Collector[Any]")


Transport = Literal["auto", "shared_memory", "stream"]


@dataclass(frozen=True)
class Settings:
    """What `connect` was given."""

    address: str
    worker: str | None = None
    silence_seconds: float = 30.0
    patience_seconds: float = 120.0
    retry_seconds: float = 0.05
    retry_seconds_max: float = 2.0
    on_rewind: Literal["raise", "continue"] = "raise"
    progress: Progress = False
    transport: Transport = "auto"
    outstanding_updates_max: int = 4
    lease_seconds: float = 30.0

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        host = self.address.rpartition(":")[0].strip("[]")
        return self.address.startswith("unix:") or host in ("localhost", "::1") or host.startswith("127.")


class Collector(Protocol[A_contra]):
    """Takes the messages of a streamed response in order."""

    def add(self, message: A_contra) -> None: ...


class Patience:
    """The limits of one call over all its tries.

    what: the call in words, for messages. timeout: the seconds that it may take in all; None is no limit.
    """

    def __init__(self, settings: Settings, what: str, timeout: float | None = None) -> None:
        self.what = what
        self._settings = settings
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failing_since: float | None = None
        self._tries = 0

    def seconds(self) -> float:
        """How long to wait for the next word."""
        if self._deadline is None:
            return self._settings.silence_seconds
        return max(0.0, min(self._settings.silence_seconds, self._deadline - time.monotonic()))

    def heard(self) -> None:
        """The server gave word."""
        self._failing_since, self._tries = None, 0

    def check(self) -> None:
        """Raise TimedOut if the call has taken longer in all than it may."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimedOut(
                f"{self.what}: got no end within {self._timeout:g} s, expected one; allow more with timeout=, "
                "or None for no limit",
                {"timeout_seconds": f"{self._timeout:g}"},
            )

    def wait(self, failure: Lost | Silent) -> Steps[None]:
        """Back off before the next try, or raise what it means that there is none."""
        if isinstance(failure, Lost) and not failure.passing:
            raise failure.as_error() from None
        self.check()
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now - (self._settings.silence_seconds if isinstance(failure, Silent) else 0.0)
            logger.warning(
                "%s: %s from %s; trying again for %g s",
                self.what,
                "no word" if isinstance(failure, Silent) else str(failure),
                self._settings.address,
                self._settings.patience_seconds,
            )
        if now - self._failing_since >= self._settings.patience_seconds:
            raise self._run_out(failure) from None
        # Full jitter: workers that lost the same server do not come back in step.
        longest = min(self._settings.retry_seconds_max, self._settings.retry_seconds * 2.0**self._tries)
        self._tries += 1
        remaining = self._failing_since + self._settings.patience_seconds - now
        if self._deadline is not None:
            remaining = min(remaining, self._deadline - now)
        yield Sleep(min(random.uniform(0.0, longest), remaining))

    def _run_out(self, failure: Lost | Silent) -> StepwellError:
        error, got = (TimedOut, "no word") if isinstance(failure, Silent) else (ServerUnavailable, str(failure))
        return error(
            f"{self.what}: got {got} from {self._settings.address} for {self._settings.patience_seconds:g} s, expected "
            "an answer; see that the server runs at this address, or raise patience_seconds",
            {"address": self._settings.address, "patience_seconds": f"{self._settings.patience_seconds:g}"},
        )


def ask(settings: Settings, method: Method[Q, A], request: Q, what: str, *, repeat: bool = True) -> Steps[A]:
    """Make a call with one request and one response. repeat: whether it may be made twice."""
    patience = Patience(settings, what)
    while True:
        stream = yield Open(method, request)
        try:
            response: A = yield from receive_answer(stream, patience)
            return response
        except (Lost, Silent) as failure:
            yield from again(stream, patience, failure, repeat=repeat)
        except BaseException:
            stream.cancel()
            raise


def collect(
    settings: Settings,
    method: Method[Q, A],
    request: Q,
    start: Callable[[], C],
    what: str,
    timeout: float | None = None,
) -> Steps[C]:
    """Make a call with a streamed response, and put the response into the collector that `start` makes for each try."""
    patience = Patience(settings, what, timeout)
    while True:
        collector = start()
        stream = yield Open(method, request)
        try:
            while (message := (yield Receive(stream, patience.seconds()))) is not None:
                patience.heard()
                collector.add(message)
            return collector
        except (Lost, Silent) as failure:
            yield from again(stream, patience, failure)
        except BaseException:
            stream.cancel()
            raise


def deliver(settings: Settings, method: Method[Q, A], requests: Iterable[Q], what: str) -> Steps[A]:
    """Make a call with streamed requests and one response, once unless the server surely did nothing.

    requests: iterated over once per try.
    """
    patience = Patience(settings, what)
    while True:
        stream = yield Open(method)
        try:
            for request in requests:
                if not (yield Send(stream, request, patience.seconds())):
                    break  # the server has an answer, or an error, before it has everything
            else:
                yield Finish(stream)
            response: A = yield from receive_answer(stream, patience)
            return response
        except (Lost, Silent) as failure:
            yield from again(stream, patience, failure, repeat=False)
        except BaseException:
            stream.cancel()
            raise


def receive_answer(stream: Stream, patience: Patience) -> Steps[A]:
    """Wait for the one response of a call that gives no word on the way.

    A server that is only slow still answers GetServer on the same connection, and that counts as its word.
    """
    while True:
        try:
            response = yield Receive(stream, patience.seconds())
        except Silent:
            patience.check()
            yield from _ping(patience)
            continue
        if response is None:
            raise Lost(grpc.StatusCode.UNAVAILABLE, "the call ended without an answer")
        answer: A = response
        return answer


def again(stream: Stream, patience: Patience, failure: Lost | Silent, *, repeat: bool = True) -> Steps[None]:
    """Clean up after a failed try, and wait for the next; raise where there shall be none."""
    stream.cancel()
    if not repeat and not (isinstance(failure, Lost) and (failure.never_executed or not failure.passing)):
        error = TimedOut if isinstance(failure, Silent) else ServerUnavailable
        raise error(
            f"{patience.what}: got {str(failure) or 'no word'} before the answer, expected an answer; it may have been "
            "done or not: look before you call it again"
        ) from None
    yield from patience.wait(failure)
    if isinstance(failure, Silent):
        yield Reconnect(stream)  # the connection looks alive and is dead


def end(stream: Stream) -> Steps[None]:
    """Leave politely: say that nothing follows and let the server end the call; after a second, cut it off."""
    try:
        yield Finish(stream)
        while (yield Receive(stream, END_SECONDS)) is not None:
            pass
    except (Lost, Silent):
        pass
    finally:
        stream.cancel()


def _ping(patience: Patience) -> Steps[None]:
    stream = yield Open(GET_SERVER, control_pb2.GetServerRequest())
    try:
        yield Receive(stream, patience.seconds())
    except Lost:
        raise Silent from None  # the call that waits may still be at work, so this must not speak for it
    finally:
        stream.cancel()
    patience.heard()
