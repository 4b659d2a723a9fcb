"""A worker of a run: the identity of its updates, how each one ends, and what it reads."""

import contextlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from stepwell._calls import Patience, Settings, logger
from stepwell._carrier import Carrier
from stepwell._descriptions import Answer, Outcome
from stepwell._encoding import EncodedUpdate, Encoder
from stepwell._exchange import Exchange, Update, Wanted
from stepwell._layered import Layered
from stepwell._layout import Layout
from stepwell._membership import Membership
from stepwell._packing import Gradients
from stepwell._requests import Do, Steps
from stepwell._rows import RowGradients
from stepwell._shared import SHARED_BYTES_MIN
from stepwell.errors import RunRewound, SequenceGap, SequenceReused, SequenceTooOld, StepwellError, UnknownWorker
from stepwell.v1 import data_pb2

FINGERPRINT_BYTES: Final = 16

Select = Callable[[Layout], Wanted]


class Worker(Carrier):
    """One worker of one run.

    last_answer, loss_scale: of its last update that was answered. encoder: where the run has an encoding of gradients.
    """

    def __init__(self, settings: Settings, run: str, uid: bytes = b"", version: int = 0) -> None:
        super().__init__(settings, run, uid, version)
        self.last_answer: Answer | None = None
        self.loss_scale: float | None = None
        self.encoder: Encoder | None = None
        # Of the parameters that came last, and of the rows.
        self._base_version: int | None = None
        self._rows_version: int | None = None

    def update(
        self,
        grads: Mapping[str, Any] | None,
        inputs: Mapping[str, Mapping[str, Any]] | None,
        header: data_pb2.UpdateHeader,
        select: Select | None,
        what: str,
        timeout: float | None,
        rows: Mapping[str, Any] | None = None,
    ) -> Steps[Exchange]:
        """Carry out one update, and with `select` fetch parameters after it; joins where that is due.

        grads: None for an update that brings rows alone. header: still without identity and names. rows: (ids,
        gradients) by the table's name.
        """
        patience = Patience(self._settings, what, timeout)
        if self._membership is None or self.layout is None:
            yield from self.join(timeout)
        assert self.layout is not None
        update = self._make_update(self.layout, grads, inputs, header, rows, what)
        exchange = Exchange(update, select(self.layout) if select else None)
        yield from self._share_update(exchange, update)
        membership = self._membership
        assert membership is not None
        header.identity.CopyFrom(self._identity(membership))
        return (yield from self._complete(exchange, membership, patience, self.carry_out(exchange, patience)))

    def begin(
        self, header: data_pb2.UpdateHeader, select: Select | None, what: str, timeout: float | None
    ) -> Steps[Layered]:
        """Begin an update whose gradients come one after another; `add` them, then `finish` or `abandon` it."""
        patience = Patience(self._settings, what, timeout)
        layout = yield from self.have_place()
        assert self._membership is not None
        wanted = select(layout) if select else None
        header.identity.CopyFrom(self._identity(self._membership))
        if self._base_version is not None:
            header.base_version = self._base_version
        return Layered(self, header, wanted, what, patience, self._membership, self._encoded(layout))

    def finish(self, layered: Layered) -> Steps[Exchange]:
        """Commit it. Raises InvalidGradient where a parameter was not named."""
        exchange, work = layered.end()
        return (yield from self._complete(exchange, layered.membership, layered.patience, work))

    def fetch(self, select: Select, what: str, timeout: float | None) -> Steps[Exchange]:
        """Fetch parameters, or rows. A reader does this without ever joining."""
        patience = Patience(self._settings, what, timeout)
        layout = yield from self.have_layout()
        wanted = select(layout)
        shares = wanted.received is not None and wanted.selection.point in ("", "parameters")
        exchange = Exchange(None, wanted, self._token if shares else b"")
        yield from self.lend_rows(exchange)
        yield from self.carry_out(exchange, patience)
        if exchange.version < self.version:
            raise self._went_back(exchange.version)
        self.version = exchange.version
        if wanted.received is not None:
            self._base_version = exchange.version
        if wanted.rows is not None:
            self._rows_version = exchange.version
        return exchange

    def rewound(self, version: int) -> None:
        super().rewound(version)
        self._base_version = self._rows_version = None

    def _make_update(
        self,
        layout: Layout,
        grads: Mapping[str, Any] | None,
        inputs: Mapping[str, Mapping[str, Any]] | None,
        header: data_pb2.UpdateHeader,
        rows: Mapping[str, Any] | None,
        what: str,
    ) -> Update:
        """The checked update; its header says what it brings and at which version that was computed."""
        gradients = None if grads is None else Gradients(layout, grads, what, inputs)
        row_gradients = RowGradients(layout, rows, what) if rows else None
        versions = []
        if gradients is None:
            header.rows_only = True
        else:
            header.without_gradient.extend(gradients.without_gradient)
            header.inputs.extend(gradients.inputs)
            versions.append(self._base_version)
        if row_gradients is not None:
            header.rows.extend(
                data_pb2.RowsCount(table=table, count=count) for table, count in row_gradients.counts.items()
            )
            versions.append(self._rows_version)
        known = [version for version in versions if version is not None]
        if known:
            header.base_version = min(known)
        encoded = None if gradients is None else self._encoded(layout)
        return Update(header, gradients, encoded, row_gradients)

    def _share_update(self, exchange: Exchange, update: Update) -> Steps[None]:
        """Put what the update brings into shared memory, where it goes that way."""
        gradients, rows = update.gradients, update.rows
        rows_bytes = rows.shared_bytes if rows is not None and rows.shared_bytes >= SHARED_BYTES_MIN else 0
        if gradients is not None or rows_bytes or self._must_share:
            yield from self.share(tuple(gradients.inputs) if gradients is not None else (), rows_bytes)
        shared = self.shared
        if shared is None:
            return
        exchange.rows_shared = 0 < rows_bytes <= shared.rows.nbytes
        if gradients is None and not exchange.rows_shared:
            return

        def fill() -> None:
            if gradients is not None:
                shared.fill(gradients)
            if rows is not None and exchange.rows_shared:
                rows.fill(shared.rows)

        exchange.shared = shared.token
        yield Do(fill)

    def _complete(
        self, exchange: Exchange, membership: Membership, patience: Patience, work: Steps[None]
    ) -> Steps[Exchange]:
        """Do the work of an update's exchange; where the lease had run out, join again, and send the update anew."""
        while True:
            try:
                return (yield from self._conclude(exchange, membership, work))
            except UnknownWorker as error:
                update = exchange.update
                assert update is not None
                answer = yield from self._come_back(update.header.identity, patience, error)
            if answer is not None:
                self.last_answer = exchange.answer = answer
                if exchange.received is not None or exchange.rows is not None:
                    yield from self.carry_out(exchange, patience)
                return exchange
            exchange.unshare()
            yield from self._share_update(exchange, update)
            assert self._membership is not None
            membership = self._membership
            update.header.identity.CopyFrom(self._identity(membership))
            work = self.carry_out(exchange, patience)

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
