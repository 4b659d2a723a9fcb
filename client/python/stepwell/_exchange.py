"""One exchange on a worker's stream: an update, a selection of parameters, or both, and what comes back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from stepwell import errors
from stepwell._descriptions import OUTCOMES, Answer, describe_answer
from stepwell._encoding import EncodedUpdate
from stepwell._packing import Gradients, Piece
from stepwell._receiving import Received
from stepwell._requests import Lost
from stepwell.payload import Incoming, Outgoing
from stepwell.v1 import data_pb2

WorkRequest = Outgoing[data_pb2.WorkRequest]

# Arrays for fewer parameters are made sooner than a thread is woken for it.
_MEANWHILE_PARAMETERS_MIN = 32


@dataclass(frozen=True)
class Update:
    """An update: its header, whose identity is kept over all tries, and its gradients, perhaps to be encoded."""

    header: data_pb2.UpdateHeader
    gradients: Gradients
    encoded: EncodedUpdate | None = None

    def messages(self) -> Iterator[list[Piece]]:
        """The ranges, grouped into messages."""
        return self.gradients.messages() if self.encoded is None else self.encoded.messages(self.gradients)


class Exchange:
    """An exchange over all its tries.

    answer: what became of the update, once told. version: of the parameters that came. unchanged: whether none came
    because the run is not beyond the version that was asked about. done: whether the present try is over. refused:
    whether the server has refused the exchange, so that the update surely left no trace. shared: the token of shared
    memory that holds the update and takes the parameters, or b"". vectors: where the parameters lie there. late:
    indices of parameters without a gradient that the header does not name, as it was sent before they were known.
    """

    def __init__(
        self,
        update: Update | None = None,
        selection: data_pb2.Selection | None = None,
        received: Received | None = None,
        shared: bytes = b"",
    ) -> None:
        self.update, self._selection, self.received = update, selection, received
        self.shared = shared
        self.vectors: list[data_pb2.SharedVector] = []
        self.answer: Answer | None = None
        self.version = 0
        self.unchanged = False
        self.done = False
        self.refused = False
        self.total_bytes = (update.gradients.data_bytes if update else 0) + (received.size_bytes if received else 0)
        self.late: list[int] = []
        self._sent_bytes = 0
        self._number = 0
        self._staging = False

    def requests(self, number: int) -> Iterator[WorkRequest]:
        """The messages of one try, under this number. An update that has been answered is not sent again."""
        self._number, self.done, self._sent_bytes, self.refused, self.vectors = number, False, 0, False, []
        self._staging = self.update is not None and self.answer is None
        if self.update is None or self.answer is not None:
            yield self.closing()
            return
        stage = data_pb2.Stage(header=self.update.header, shared_memory=self.shared)
        request = data_pb2.WorkRequest(exchange=number, stage=stage)
        if self.shared:
            self._sent_bytes = self.update.gradients.data_bytes
            request.MergeFrom(self.closing().message)
            yield Outgoing(request)
            return
        messages = self.update.messages()
        pieces = next(messages)
        for following in messages:
            yield self._with_ranges(request, pieces)
            request, pieces = data_pb2.WorkRequest(exchange=number), following
        request.MergeFrom(self.closing().message)
        yield self._with_ranges(request, pieces)

    def begin(self, number: int) -> None:
        """Begin a try whose messages are made one by one, with `part`, and `closing` at the end."""
        self._number, self._staging = number, True

    def part(self, header: data_pb2.UpdateHeader | None, pieces: list[Piece]) -> WorkRequest:
        """A message of such a try. header: in the first one."""
        return self._with_ranges(
            data_pb2.WorkRequest(exchange=self._number, stage=data_pb2.Stage(header=header)), pieces
        )

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
        return self._sent_bytes + (self.received.filled_bytes if self.received else 0)

    def closing(self) -> WorkRequest:
        """What the last message says. It alone is still sent where the answer comes before the update has all gone."""
        commit = data_pb2.Commit(without_gradient=self.late) if self._staging else None
        closing = data_pb2.WorkRequest(exchange=self._number, commit=commit, selection=self._selection, last=True)
        if self._selection is not None:
            closing.selection.shared_memory = self.shared
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
        if self.received is not None:
            for piece, data in zip(response.ranges, incoming.data, strict=True):
                self.received.put(piece, data)
        self.done = response.done

    def _with_ranges(self, request: data_pb2.WorkRequest, pieces: list[Piece]) -> WorkRequest:
        self._sent_bytes += sum(piece.size_bytes for piece in pieces)
        return Outgoing(request, [(piece.range(), piece.parts) for piece in pieces])
