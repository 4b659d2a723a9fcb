"""The block in which an update is made gradient by gradient; what both clients have of it."""

from collections.abc import Mapping
from typing import Any

from stepwell._exchange import Exchange
from stepwell._layered import Layered
from stepwell._receiving import Received
from stepwell._run import RunOperations
from stepwell._run_base import Arrays
from stepwell.v1 import data_pb2


class LayersBase:
    """parameters: after the block, as a step returns them; None without `pull`. version: after it, the run's."""

    def __init__(
        self,
        run: RunOperations,
        samples: float | None = None,
        loss: float | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        loss_scale: float | None = None,
        sparsity_factor: float | None = None,
        pull: bool = True,
        out: Arrays | None = None,
        timeout: float | None = None,
    ) -> None:
        self.parameters: Arrays | None = None
        self.version = run.version
        self._header: data_pb2.UpdateHeader = run._header(samples, loss, hyperparameters, loss_scale, sparsity_factor)
        self._received: list[Received] | None = [] if pull else None
        self._out, self._timeout = out, timeout
        self._begun: Layered | None = None

    def _end(self, exchange: Exchange, version: int) -> None:
        self.version = version
        self.parameters = self._received[-1].arrays() if self._received and not exchange.unchanged else None
