"""One exchange on a worker's stream: an update, a selection of parameters or rows, or both, and what comes back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from stepwell import errors
from stepwell._descriptions import OUTCOMES, Answer, describe_answer
from stepwell._encoding import EncodedUpdate
from stepwell._packing import Gradients, Piece
from stepwell._receiving import Received
from stepwell._requests import Lost
from stepwell._rows import ReceivedRows, RowGradients, RowsPiece
from stepwell.payload import Incoming, Outgoing
from stepwell.v1 import data_pb2
from stepwell.wire import RANGE_BYTES

WorkRequest = Outgoing[data_pb2.WorkRequest]

# Arrays for fewer parameters are made sooner than a thread is woken for it.
_MEANWHILE_PARAMETERS_MIN = 32


class Pieces(NamedTuple):
    """What one message of an update carries."""

    ranges: list[Piece]
    rows: Sequence[RowsPiece] = ()

    @property
    def size_bytes(self) -> int:
        return sum([piece.size_bytes for piece in self.ranges]) + sum([piece.size_bytes for piece in self.rows])


@dataclass(frozen=True)
class Update:
    """An update: its header, whose identity is kept over all tries, and what it brings.

    gradients: None where it brings rows alone. encoded: where they are sent encoded.
    """

    header: data_pb2.UpdateHeader
    gradients: Gradients | None
    encoded: EncodedUpdate | None = None
    rows: RowGradients | None = None

    @property
    def data_bytes(self) -> int:
        return (self.gradients.data_bytes if self.gradients else 0) + (self.rows.data_bytes if self.rows else 0)

    def messages(self, *, shared: bool, rows_shared: bool) -> Iterator[Pieces]:
        """What goes out in messages, at least one; nothing of what lies in shared memory."""
        if self.gradients is None or shared:
            dense: Iterator[list[Piece]] = iter([[]])
        elif self.encoded is None:
            dense = self.gradients.messages()
        else:
            dense = self.encoded.messages(self.gradients)
        if self.rows is None or rows_shared:
            return map(Pieces, dense)
        return _with_rows(dense, self.rows.messages())


class Wanted(NamedTuple):
    """What an exchange shall return. received, rows: what takes the parameters, and the rows, where it asks for them.

    selection: without the rows' ids.
    """

    selection: data_pb2.Selection
    received: Received | None = None
    rows: ReceivedRows | None = None


class Exchange:
    """An exchange over all its tries.

    answer: what became of the update, once told. version: of the parameters or rows that came. unchanged: whether none
    came because the run is not beyond the version that was asked about. done: whether the present try is over. refused:
    whether the server has refused the exchange, so that the update surely left no trace. shared: the token of shared
    memory that holds the update and takes what comes, or b"". rows_shared: whether rows lie there, too. vectors: where
    the parameters lie there. late: indices of parameters without a gradient that the header does not name, as it was
    sent before they were known.
    """

    def __init__(
        self,
        update: Update | None = None,
        wanted: Wanted | None = None,
        shared: bytes = b"",
        rows_shared: bool = False,
    ) -> None:
        self.update = update
        self._selection = wanted.selection if wanted else None
        self.received = wanted.received if wanted else None
        self.rows = wanted.rows if wanted else None
        self.shared, self.rows_shared = shared, rows_shared
        self.vectors: list[data_pb2.SharedVector] = []
        self.answer: Answer | None = None
        self.version = 0
        self.unchanged = False
        self.done = False
        self.refused = False
        self.total_bytes = (
            (update.data_bytes if update else 0)
            + (self.received.size_bytes if self.received else 0)
            + (self.rows.size_bytes if self.rows else 0)
        )
        self.late: list[int] = []
        self._sent_bytes = 0
        self._number = 0
        self._staging = False

    def requests(self, number: int) -> Iterator[WorkRequest]:
        """The messages of one try, under this number. An update that has been answered is not sent again."""
        self._number, self.done, self._sent_bytes, self.refused, self.vectors = number, False, 0, False, []
        update = self.update
        self._staging = update is not None and self.answer is None
        if update is None or self.answer is not None:
            yield self.closing()
            return
        stage = data_pb2.Stage(header=update.header, shared_memory=self.shared)
        if self.shared and update.gradients is not None:
            self._sent_bytes += update.gradients.data_bytes
        if self.rows_shared and update.rows is not None:
            self._sent_bytes += update.rows.data_bytes
            stage.rows.extend(update.rows.shared())
        request = data_pb2.WorkRequest(exchange=number, stage=stage)
        messages = update.messages(shared=bool(self.shared), rows_shared=self.rows_shared)
        pieces = next(messages)
        for following in messages:
            yield self._with_data(request, pieces)
            request, pieces = data_pb2.WorkRequest(exchange=number), following
        request.MergeFrom(self.closing().message)
        yield self._with_data(request, pieces)

    def begin(self, number: int) -> None:
        """Begin a try whose messages are made one by one, with `part`, and `closing` at the end."""
        self._number, self._staging = number, True

    def part(self, header: data_pb2.UpdateHeader | None, pieces: list[Piece]) -> WorkRequest:
        """A message of such a try. header: in the first one."""
        request = data_pb2.WorkRequest(exchange=self._number, stage=data_pb2.Stage(header=header))
        return self._with_data(request, Pieces(pieces))

    def unshare(self) -> None:
        """From now on send what was shared: the arrays are still here."""
        self.shared, self.rows_shared = b"", False

    @property
    def meanwhile(self) -> Callable[[], object] | None:
        """What can be done while the server is at work on the update."""
        received = self.received
        if self.update is None or received is None or (self.shared and not received.copies):
            return None
        return received.prepare if received.parameters_count >= _MEANWHILE_PARAMETERS_MIN else None

    @property
    def moved_bytes(self) -> int:
        """How much data has gone out and come in, in this try."""
        received = (self.received.filled_bytes if self.received else 0) + (self.rows.filled_bytes if self.rows else 0)
        return self._sent_bytes + received

    def closing(self) -> WorkRequest:
        """What the last message says. It alone is still sent where the answer comes before the update has all gone."""
        commit = data_pb2.Commit(without_gradient=self.late) if self._staging else None
        closing = data_pb2.WorkRequest(exchange=self._number, commit=commit, selection=self._selection, last=True)
        if self._selection is not None:
            closing.selection.shared_memory = self.shared
            if self.rows is not None:
                closing.selection.rows.extend(self.rows.asked(shared=self.rows_shared))
        return Outgoing(closing)

    def take(self, incoming: Incoming[data_pb2.WorkResponse]) -> None:
        """Take the server's word; raises the typed error if the exchange has failed."""
        response = incoming.message
        if response.exchange != self._number:
            return  # late word on an exchange that has been given up
        if response.HasField("error"):
            error = errors.from_message(response.error)
            if isinstance(error, errors.ServerStopping):
                raise Lost(grpc.StatusCode.UNAVAILABLE, str(error), error)
            self.refused = True
            raise error
        if response.HasField("answer"):
            outcome = OUTCOMES.get(response.answer.outcome)
            if outcome is None:
                raise errors.Internal(f"got outcome {response.answer.outcome}, expected a known one; upgrade stepwell")
            self.answer = describe_answer(outcome, response.answer)
        if response.HasField("parameters"):
            self.version, self.unchanged = response.parameters.version, response.parameters.unchanged
            self.vectors = list(response.parameters.vectors)
            if self.received is not None and not self.unchanged and not self.vectors:
                self.received.begin()
            if self.rows is not None:
                self.rows.begin()
        if self.received is not None:
            for piece, data in zip(response.ranges, incoming.data, strict=True):
                self.received.put(piece, data)
        if self.rows is not None:
            for rows, data in zip(response.rows, incoming.rows, strict=True):
                self.rows.put(rows, data)
        self.done = response.done

    def _with_data(self, request: data_pb2.WorkRequest, pieces: Pieces) -> WorkRequest:
        self._sent_bytes += pieces.size_bytes
        ranges = [(piece.range(), piece.parts) for piece in pieces.ranges]
        return Outgoing(request, ranges, [(piece.message(), [piece.data]) for piece in pieces.rows])


def _with_rows(dense: Iterator[list[Piece]], rows: Iterator[list[RowsPiece]]) -> Iterator[Pieces]:
    """Messages of gradients, then those of rows; the last and the first share one where they fit."""
    pieces = Pieces(next(dense))
    for following in dense:
        yield pieces
        pieces = Pieces(following)
    first = Pieces([], next(rows))
    if pieces.size_bytes + first.size_bytes <= RANGE_BYTES:
        pieces = Pieces(pieces.ranges, first.rows)
    else:
        yield pieces
        pieces = first
    yield pieces
    for message in rows:
        yield Pieces([], message)
