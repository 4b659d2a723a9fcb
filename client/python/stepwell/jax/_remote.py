"""The gradient transformation that a JAX program uses in place of optax's."""

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import io_callback

import stepwell
from stepwell._leaving import close_at_exit
from stepwell.errors import InvalidValue, RunRewound
from stepwell.jax._parameters import Parameters

FLAVOR: Final = "optax"


class RemoteState(NamedTuple):
    """What `update` takes and returns. version: the run's, as of the last step; int32."""

    version: Any


class Remote(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # JAX is not there when types are checked
    """A GradientTransformation whose update is one step of a run on a Stepwell server; made by `remote`.

    init(params): create the run, or join it where it exists; returns a RemoteState.
    update(grads, state, params, value=None, samples=None): push the gradients; returns updates and the next state.
    value: the loss, for optimizers that need it. samples: over how many samples the gradients were taken, for schedules
    on that clock. None in place of a gradient: the parameter stays as it is, where the optimizer's flavor allows it.

    Both work under jit and scan, as ordered host callbacks, and outside of jit; not under vmap and grad. A step is one
    callback, on however many devices the program runs.

    Updates are `run's parameters - params`, rounded to the parameters' dtype, so `optax.apply_updates(params, updates)`
    gives the run's parameters: exactly, where they lie between half and twice the old ones, and else within a rounding
    of the difference. This does not add up, as the next updates start from what params are then. `pull` gives exactly
    the run's. So do not scale or mask what update returns: to change gradients, chain transformations before it, or
    give the run transforms.

    Outside of jit, errors are those of `run.step`, and InvalidValue where a parameter or gradient has another name,
    shape or dtype than in init. So is what is found while jit traces. From within a compiled program JAX raises its own
    JaxRuntimeError: `error` has the one that caused it, and a `with` block of this object raises that instead.
    """

    _worker: "Worker"

    def __new__(cls, worker: "Worker") -> Self:
        made: Self = super().__new__(cls, worker.init, worker.update)
        made._worker = worker
        return made

    @property
    def run(self) -> stepwell.Run:
        """The run, after the steps under way. Raises InvalidValue before init."""
        jax.effects_barrier()
        return self._worker.present_run()

    @property
    def error(self) -> Exception | None:
        """What the last init or update raised; None if nothing."""
        return self._worker.error

    def pull(self) -> Any:
        """The run's present parameters, as a tree like that of init's."""
        jax.effects_barrier()
        return self._worker.pull()

    def close(self) -> None:
        """Wait for the steps under way and leave the run, which goes on; nothing happens the second time."""
        self._worker.close()

    def __repr__(self) -> str:
        return f"<stepwell.jax.Remote of run '{self._worker.name}'>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        cause = self.error
        if isinstance(error, jax.errors.JaxRuntimeError) and cause is not None and str(cause) in str(error):
            raise cause from error


def remote(
    optimizer: str = "adamw",
    *,
    run: str,
    lr: Any = None,
    address: str | None = None,
    policy: str | Mapping[str, Any] | None = None,
    run_options: Mapping[str, Any] | None = None,
    connect_options: Mapping[str, Any] | None = None,
    **hyperparameters: Any,
) -> Remote:
    """An optax GradientTransformation whose state and arithmetic are those of a run on a Stepwell server.

        optimizer = stepwell.jax.remote("adamw", lr=1e-3, address="127.0.0.1:50051", run="digits")
        state = optimizer.init(params)
        params = optimizer.pull()  # the run's, which may have existed

    optimizer: any name of `stepwell optimizer list`; in optax's flavor, where it has one. lr, hyperparameters: by the
    catalogue's names (beta1, not b1). A function of the count, as optax's schedules are, is called with the run's
    version before every update, and its value travels with that; `run_options={"schedules": ...}` leaves it to the
    server.
    address: HOST:PORT; by default what STEPWELL_ADDRESS says. run: its name. Whoever finds it there joins it.
    policy, run_options, connect_options: what else `create_run` and `connect` take; policy="sync" averages the
    gradients of all workers.

    Parameters are named by their paths in the tree, as "layers/0/w" (one array alone is "params"); groups take globs
    of that. They are float16, bfloat16, float32 or float64; beside 16 bits the server keeps float32.
    """
    given = hyperparameters if lr is None else {"lr": lr, **hyperparameters}
    client = stepwell.connect(address, **(connect_options or {}))
    worker = Worker(run, optimizer, given, policy, run_options or {}, client)
    close_at_exit(worker)
    return Remote(worker)


class Worker:
    """One worker of the run. `init` and `update` are traced by jit; what they hand to `_on_host` is not."""

    def __init__(
        self,
        name: str,
        optimizer: str,
        hyperparameters: Mapping[str, Any],
        policy: str | Mapping[str, Any] | None,
        run_options: Mapping[str, Any],
        client: stepwell.Client,
    ) -> None:
        self.name, self.error = name, None
        self._optimizer, self._policy, self._run_options, self._client = optimizer, policy, run_options, client
        self._schedules = {name: value for name, value in hyperparameters.items() if callable(value)}
        first = {name: float(schedule(0)) for name, schedule in self._schedules.items()}
        self._hyperparameters = {**hyperparameters, **first}
        self._parameters: Parameters | None = None
        self._run: stepwell.Run | None = None

    error: Exception | None

    def init(self, params: Any) -> RemoteState:
        """Create or join the run."""
        if self._parameters is None:
            self._parameters = Parameters.of(params)
        leaves = self._parameters.check(params)
        return RemoteState(self._on_host(self._create, _VERSION, leaves))

    def update(
        self, updates: Any, state: RemoteState, params: Any = None, *, value: Any = None, samples: Any = None, **_: Any
    ) -> tuple[Any, RemoteState]:
        """Push gradients; the way from params to the run's parameters."""
        if self._parameters is None:
            raise InvalidValue(f"run '{self.name}': got update before init; call init(params) in this process first")
        if params is None:
            raise InvalidValue(
                f"run '{self.name}': got no params, expected those at which the gradients were taken; call "
                "update(grads, state, params)"
            )
        present = self._parameters.check(params)
        gradients = self._parameters.gradients(updates)
        numbers = {name: schedule(state.version) for name, schedule in self._schedules.items()}
        results = (_VERSION, dict(self._parameters.leaves))
        version, new = self._on_host(self._step, results, gradients, state.version, numbers, value, samples)
        differences = [new[name] - leaf for name, leaf in present.items()]
        return jax.tree.unflatten(jax.tree.structure(params), differences), RemoteState(version)

    def present_run(self) -> stepwell.Run:
        if self._run is None:
            raise InvalidValue(f"run '{self.name}': got no init yet, expected init(params) first")
        return self._run

    def pull(self) -> Any:
        self._views = self.present_run().parameters()
        assert self._parameters is not None
        # Views are of memory that changes with the next step.
        return self._parameters.unflatten({name: jnp.array(view) for name, view in self._views.items()})

    def close(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.effects_barrier()
        if self._run is not None:
            self._run.close()
        self._client.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a stepwell.jax.remote cannot be copied or pickled: make one in each process")

    def _on_host(self, function: Callable[..., Any], results: Any, *arguments: Any) -> Any:
        """Outside of jit a plain call; within it a callback, in the program's order. Arrays are NumPy's there."""

        def call(*given: Any) -> Any:
            self.error = None
            try:
                return function(*jax.tree.map(np.asarray, given))
            except Exception as error:
                self.error = error  # JAX makes text of it
                raise

        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
            return io_callback(call, results, *arguments, ordered=True)
        return jax.tree.map(jnp.array, call(*arguments))

    def _create(self, arrays: Mapping[str, Any]) -> Any:
        if self._run is None:
            options = {"flavor": self._flavor(), **self._run_options}
            self._run = self._client.create_run(
                self.name,
                arrays,
                optimizer=self._optimizer,
                hyperparameters=self._hyperparameters,
                policy=self._policy,
                **options,
            )
            self._views = self._run.parameters()
        return np.int32(self._run.version)

    def _flavor(self) -> str | None:
        if "flavor" in self._run_options:
            return None
        for optimizer in self._client.list_optimizers():
            if optimizer.name == self._optimizer:
                return FLAVOR if any(flavor.name == FLAVOR for flavor in optimizer.flavors) else None
        return None

    def _step(self, gradients: Any, version: Any, numbers: Any, value: Any, samples: Any) -> Any:
        run = self.present_run()
        try:
            self._views = run.step(
                gradients,
                samples=None if samples is None else float(samples),
                loss=None if value is None else float(value),
                hyperparameters={name: float(number) for name, number in numbers.items()} or None,
                out=self._views,
            )
        except RunRewound:
            self._views = run.parameters()
            raise
        return np.int32(run.version), dict(self._views)


_VERSION: Final = jax.ShapeDtypeStruct((), np.int32)
