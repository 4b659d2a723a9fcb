"""What every operation on a run rests on: its worker, how updates and pulls are made, and what they go back to."""

from collections.abc import Mapping
from typing import Any, Literal

from stepwell._calls import Settings
from stepwell._descriptions import Answer, Outcome, Place
from stepwell._encoding import Decoder, Encoder
from stepwell._exchange import Exchange, Wanted
from stepwell._forks import check_process
from stepwell._layered import Layered
from stepwell._layout import Layout
from stepwell._operation import Connection, Driven
from stepwell._receiving import BufferPool, Received, Views
from stepwell._requests import Steps
from stepwell._spec import encode_update_hyperparameters
from stepwell._state import Array
from stepwell._worker import Select, Worker
from stepwell.errors import InvalidValue, RunRewound
from stepwell.v1 import data_pb2, run_pb2

Arrays = dict[str, Array]


class RunBase(Driven):
    """A run on the server, without its operations."""

    def __init__(
        self, connection: Connection, settings: Settings, pool: BufferPool, run: run_pb2.Run, *, created: bool
    ) -> None:
        super().__init__(connection)
        self._settings = settings
        self._pool = pool
        self._worker = Worker(settings, run.name, run.uid, run.version)
        spec = run.spec
        self._worker.encoder = Encoder(spec.gradient_encoding) if spec.HasField("gradient_encoding") else None
        self._decoder = Decoder(spec.parameter_encoding) if spec.HasField("parameter_encoding") else None
        self._worker.loss_scale = run.loss_scale if run.HasField("loss_scale") else None
        self._created = created
        self._closed = False
        self._own_gradients: Arrays | None = None
        self._layered: Layered | None = None

    def __del__(self) -> None:
        self._worker.drop()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} '{self.name}' at version {self.version}>"

    @property
    def name(self) -> str:
        """The run's name."""
        return self._worker.run

    @property
    def worker(self) -> str:
        """The name under which this object joins, or has joined."""
        return self._worker.name

    @property
    def created(self) -> bool:
        """Whether the create_run that gave this object made the run; False where it existed."""
        return self._created

    @property
    def version(self) -> int:
        """The newest version of the run that this object was told of."""
        return self._worker.version

    @property
    def last_answer(self) -> Answer | None:
        """What became of the last update that was answered: committed or skipped, and at which version."""
        return self._worker.last_answer

    @property
    def transport(self) -> Literal["shared_memory", "stream"]:
        """How the last update went, and the next ones go: once this object has joined."""
        return "stream" if self._worker.shared is None else "shared_memory"

    @property
    def place(self) -> Place | None:
        """Where this worker stands among the live ones, as the server told last; None before it has joined."""
        return self._worker.place

    @property
    def loss_scale(self) -> float | None:
        """What to multiply the next loss by, as the last answer told; None without the transform `unscale`."""
        return self._worker.loss_scale

    def _moved(self, forked: bool) -> None:
        self._worker.start_over(forked=forked)

    def _join(self) -> Steps[None]:
        yield from self._worker.join()

    def _have_place(self) -> Steps[Layout]:
        try:
            return (yield from self._worker.have_place())
        except RunRewound as rewound:
            self._go_on(rewound)
            return (yield from self._worker.have_place())

    def _update(
        self,
        grads: Mapping[str, Any] | None,
        inputs: Mapping[str, Mapping[str, Any]] | None,
        header: data_pb2.UpdateHeader,
        select: Select | None,
        call: str,
        timeout: float | None,
        rows: Mapping[str, Any] | None = None,
    ) -> Steps[Exchange]:
        self._check_open()
        return (yield from self._worker.update(grads, inputs, header, select, self._what(call), timeout, rows))

    def _push(
        self,
        grads: Mapping[str, Any] | None,
        inputs: Mapping[str, Mapping[str, Any]] | None,
        header: data_pb2.UpdateHeader,
        call: str,
        timeout: float | None,
        rows: Mapping[str, Any] | None,
    ) -> Steps[int]:
        """An update that returns no parameters; the version that holds it."""
        try:
            exchange = yield from self._update(grads, inputs, header, None, call, timeout, rows)
        except RunRewound as rewound:
            self._go_on(rewound)
            return self.version
        assert exchange.answer is not None
        return exchange.answer.committed_version

    def _header(
        self,
        samples: float | None,
        loss: float | None,
        hyperparameters: Mapping[str, Any] | None,
        loss_scale: float | None,
        sparsity_factor: float | None,
    ) -> data_pb2.UpdateHeader:
        """What an update carries, but for its identity and names."""
        return data_pb2.UpdateHeader(
            samples=samples or 0.0,
            hyperparameters=encode_update_hyperparameters(hyperparameters),
            loss=loss,
            loss_scale=self.loss_scale if loss_scale is None else loss_scale,
            sparsity_factor=sparsity_factor,
        )

    def _fetch(
        self,
        names: list[str] | None,
        if_newer_than: int | None,
        out: Arrays | None,
        timeout: float | None,
        of: str = "parameters",
        exact: bool = False,
    ) -> Steps[Arrays | None]:
        self._check_open()
        received: list[Received] = []
        select = self._selecting(received, names=names, out=out, if_newer_than=if_newer_than, of=of, exact=exact)
        exchange = yield from self._worker.fetch(select, self._what("pull"), timeout)
        return None if exchange.unchanged else received[-1].arrays()

    def _selecting(
        self,
        received: list[Received],
        *,
        names: list[str] | None,
        out: Arrays | None,
        if_newer_than: int | None = None,
        of: str = "parameters",
        exact: bool = False,
    ) -> Select:
        """Make the selection and what receives it once the layout is known; the latter is also put into `received`."""

        def select(layout: Layout) -> Wanted:
            wanted = names if names is not None else list(out) if out is not None and type(out) is not Views else None
            parameters = layout.parameters if wanted is None else layout.select(dict.fromkeys(wanted))
            if not parameters and layout.parameters:
                raise InvalidValue("got an empty choice of parameters, expected names, or None for all of them")
            everything = len(parameters) == len(layout.parameters)
            decoder = None if exact else self._decoder
            received.append(Received(layout, parameters, self._pool, out, decoder))
            selection = data_pb2.Selection(
                run=self.name,
                parameters=() if everything else sorted(parameter.index for parameter in parameters),
                if_newer_than=if_newer_than,
                run_uid=self._worker.uid,
                point=of,
                encoded=decoder is not None,
            )
            return Wanted(selection, received[-1])

        return select

    def _go_on(self, rewound: RunRewound) -> None:
        """With on_rewind="continue" note that the update was dropped; else raise."""
        if self._settings.on_rewind == "raise":
            raise rewound
        self._worker.last_answer = Answer(Outcome.REWOUND, rewound.version)

    def _check_open(self) -> None:
        check_process()
        if self._closed:
            raise RuntimeError(f"run '{self.name}': got a call on a closed run; get it again with client.get_run")
        if self._layered is not None:
            raise RuntimeError(f"run '{self.name}': got a call within an update; leave the block of update() first")

    def _what(self, call: str) -> str:
        return f"run '{self.name}': {call}"
