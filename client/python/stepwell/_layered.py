"""An update whose gradients are sent one after another, while the caller still computes the next."""

from typing import Any

import numpy as np

from stepwell._calls import Patience
from stepwell._carrier import Carrier
from stepwell._encoding import EncodedUpdate
from stepwell._exchange import Exchange, Update, Wanted, WorkRequest
from stepwell._forks import check_process
from stepwell._layout import Layout, listed
from stepwell._membership import Membership
from stepwell._packing import Gradients, Part, Piece, check_array, pack
from stepwell._requests import Do, Lost, Silent, Steps
from stepwell.errors import InvalidGradient, StepwellError
from stepwell.v1 import data_pb2
from stepwell.wire import RANGE_BYTES


class Layered:
    """An update on its way while its gradients are still being made.

    header: with its identity, which is of this membership. exchange: once something was sent. broken: whether the
    connection was lost since, or the server has refused it, so that nothing more is sent before the end. over: whether
    no more is taken.
    """

    def __init__(
        self,
        carrier: Carrier,
        header: data_pb2.UpdateHeader,
        wanted: Wanted | None,
        what: str,
        patience: Patience,
        membership: Membership,
        encoded: EncodedUpdate | None,
    ) -> None:
        assert carrier.layout is not None
        self._carrier, self._layout = carrier, carrier.layout
        self.header, self.membership = header, membership
        self.patience = patience
        self._wanted, self._what, self._encoded = wanted, what, encoded
        self.gradients: dict[str, Any] = {}
        self.exchange: Exchange | None = None
        self.broken = self.over = False
        self._refusal: StepwellError | None = None
        self._waiting_bytes = 0
        self._waiting: list[Part] = []

    def add(self, name: str, gradient: Any) -> Steps[None]:
        """Take a gradient, or None for a parameter that has none; it is sent while the caller goes on to the next.

        Raises InvalidGradient.
        """
        check_process()
        array = self._take(self._layout, name, gradient)
        if array is None:
            return
        shared = self._carrier.shared
        if shared is not None:
            parameter = self._layout.by_name[name]
            yield Do(lambda: shared.put(parameter.index, array))
        elif not self.broken and self._waiting_bytes >= RANGE_BYTES:
            yield from self._send()

    def end(self) -> tuple[Exchange, Steps[None]]:
        """The exchange, and the work that commits it. Raises InvalidGradient where a parameter was not named."""
        self.over = True
        check_process()
        try:
            gradients = Gradients(self._layout, self.gradients, self._what)
        except BaseException:
            self.abandon()
            raise
        if self.exchange is not None:
            return self.exchange, self._finish(self.exchange, gradients)
        # Nothing was sent.
        self.header.without_gradient.extend(gradients.without_gradient)
        shared = self._carrier.shared
        update = Update(self.header, gradients, self._encoded)
        exchange = Exchange(update, self._wanted, shared.token if shared else b"")
        return exchange, self._carrier.carry_out(exchange, self.patience)

    def abandon(self) -> None:
        """Give it up: the server drops what it has of it, and the sequence is not used up."""
        self.over = True
        carrier = self._carrier
        if self.exchange is not None and not self.broken and carrier.stream is not None:
            carrier.stream.cancel()
            carrier.stream = None

    def _take(self, layout: Layout, name: str, gradient: Any) -> np.ndarray[Any, Any] | None:
        """Check a gradient and keep it; what is returned is to be sent."""
        if self.over:
            raise InvalidGradient(f"{self._what}: got a gradient for {name!r:.200} after the end; begin another update")
        if name in self.gradients:
            raise InvalidGradient(f"{self._what}: got two gradients for '{name}', expected one; add them up first")
        parameter = layout.by_name.get(name)
        if parameter is None or parameter.frozen:
            known = listed(trained for trained, *_ in layout.trained)
            raise InvalidGradient(
                f"{self._what}: got a gradient for {name!r:.200}, expected one of {known}; leave it out"
            )
        array = None if gradient is None else check_array(parameter, gradient, self._what)
        self.gradients[name] = array
        if array is not None:
            other = array.dtype != parameter.dtype
            item_bytes = parameter.dtype.itemsize if other else 0
            self._waiting.append(Part(parameter.group, parameter.offset_bytes, array, item_bytes))
            self._waiting_bytes += array.nbytes
        return array

    def _messages(self) -> list[list[Piece]]:
        """What is to be sent next, encoded where the run says so, whether or not the sending succeeds."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self._encoded is None:
            return list(pack(waiting))
        return [self._encoded.add(pieces) for pieces in pack(waiting, self._encoded.piece_bytes)]

    def _send(self) -> Steps[None]:
        """Send what waits."""
        header: data_pb2.UpdateHeader | None = None
        if self.exchange is None:
            yield from self._carrier.open_stream()
            self.exchange = Exchange(None, self._wanted)
            self.exchange.begin(self._carrier.next_number())
            header = self.header
        parts = []
        for pieces in self._messages():
            parts.append(self.exchange.part(header, pieces))
            header = None
        yield from self._try(self.exchange, parts)

    def _finish(self, exchange: Exchange, gradients: Gradients) -> Steps[None]:
        exchange.update = Update(self.header, gradients, self._encoded)
        if self.broken:
            self._messages()
        else:
            yield from self._send()
        if not self.broken:
            exchange.late = gradients.without_gradient
            yield from self._try(exchange, [exchange.closing()], until_done=True)
        if exchange.done and self._refusal is None:
            return
        # Whoever sends it again sends it whole.
        exchange.late = []
        self.header.without_gradient.extend(gradients.without_gradient)
        if self._refusal is not None:
            raise self._refusal
        yield from self._carrier.carry_out(exchange, self.patience)

    def _try(self, exchange: Exchange, messages: list[WorkRequest], *, until_done: bool = False) -> Steps[None]:
        """Send messages. Where the connection breaks, or the server refuses, the rest is for `_finish`."""
        carrier = self._carrier
        stream = carrier.stream
        assert stream is not None
        try:
            for message in messages:
                yield from carrier.send(exchange, stream, message, self.patience)
            while until_done and not exchange.done:
                yield from carrier.receive(exchange, stream, self.patience)
        except (Lost, Silent):
            stream.cancel()
            carrier.stream, self.broken = None, True
        except StepwellError as error:
            self._refusal, self.broken = error, True
