"""What an operation asks of the outside world.

Operations are generators that do no I/O. Each yields the requests below and is sent their results, or has Lost or
Silent thrown in; `_blocking` and `_awaiting` fulfil the same few requests over a grpc channel and a grpc.aio channel.
So every operation is written once, and the two clients differ only in how they wait.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import grpc

from stepwell import errors
from stepwell._methods import Method

OUTBOX_MESSAGES_MAX: Final = 4
"""How many messages wait to be sent or to be read on one stream: the memory that a transfer takes beside its arrays."""

R = TypeVar("R")


class Stream(Protocol):
    """A call that has been opened, whatever the driver."""

    def cancel(self) -> None:
        """End the call at once, without waiting. May be called more than once."""


@dataclass(frozen=True, slots=True)
class Open:
    """Start a call; gives its Stream. A call with one request is given it here, others are sent theirs."""

    method: Method[Any, Any]
    request: Any = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; gives True once it is on its way, False if instead a response, or the end, wants to be received.

    So a long upload hears an early answer, and the server's word while it cannot take more. Raises Silent when
    nothing moves for `seconds`.
    """

    stream: Stream
    message: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Say that no more messages will be sent."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Receive:
    """Give the next response, or None at the end. Raises Silent after `seconds`, and Lost when the call has failed.

    meanwhile: work for the time until it comes, begun only when all that was to be sent has been: before that it
    would keep the sending thread waiting for Python's lock.
    """

    stream: Stream
    seconds: float
    meanwhile: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Do:
    """Do something that blocks, but not for long: a large copy, a word with a socket. Gives its result."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Make a call with one request and one response in the background, every so many seconds; gives its Stream.

    heard: gets each response, perhaps in another thread. It goes on until it is cancelled, whatever becomes of a call.
    """

    method: Method[Any, Any]
    request: Any
    seconds: float
    heard: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Give up the connection that carried this stream; whatever is opened next goes over a new one."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection; nothing is opened any more."""


Request = Open | Send | Finish | Receive | Sleep | Do | Repeat | Reconnect | Disconnect
Steps = Generator[Request, Any, R]


class Silent(Exception):
    """No word came within the seconds of a Send or Receive."""


class Lost(Exception):
    """A call failed. error: what the server said; None where the connection broke, or what answered is no Stepwell."""

    def __init__(self, code: grpc.StatusCode, text: str, error: errors.StepwellError | None = None) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text
        self.error = error

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed a little later, or over another connection."""
        if self.error:
            return isinstance(self.error, errors.ServerStopping)
        if self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return True
        # What a connection cut at an unlucky moment looks like.
        return any(text in self.text for text in ("RST_STREAM", "GOAWAY", "Stream removed", "Internal error from Core"))

    @property
    def never_executed(self) -> bool:
        """Whether the server surely did nothing: it was not reached, or refused because it stops."""
        if self.error:
            return isinstance(self.error, errors.ServerStopping)
        return self.code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in self.text

    def as_error(self) -> errors.StepwellError:
        """The typed error for a call that is not tried again."""
        if self.error:
            return self.error
        kind, remedy = {
            grpc.StatusCode.UNAVAILABLE: (errors.ServerUnavailable, "see that the server runs at this address"),
            grpc.StatusCode.CANCELLED: (errors.ServerUnavailable, "see that the server runs at this address"),
            grpc.StatusCode.DEADLINE_EXCEEDED: (errors.TimedOut, "try again with a longer limit"),
            grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.LimitExceeded, "see the server's limits"),
            grpc.StatusCode.UNIMPLEMENTED: (errors.ContractMismatch, "see that a Stepwell server of 1.x listens there"),
        }.get(self.code, (errors.Internal, "see the server's log"))
        return kind(f"got {self.code.name} ({self.text}) from the server, expected an answer; {remedy}")


def lost(code: grpc.StatusCode, text: str | None, metadata: Iterable[tuple[str, Any]] | None) -> Lost:
    """What a driver throws for the status of a call; the trailing metadata may hold a typed error."""
    status = next((value for key, value in metadata or () if key == errors.STATUS_METADATA), None)
    return Lost(code, text or "", errors.from_status(status, text or "") if status else None)
