"""The optimizer that a PyTorch script uses in place of torch.optim's."""

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import torch

import stepwell
from stepwell._descriptions import Outcome
from stepwell._leaving import close_at_exit
from stepwell._state import State
from stepwell.errors import InvalidValue, RunRewound
from stepwell.torch._backward import Backward
from stepwell.torch._hyperparameters import CLASSES, changes, defaults_of, hyperparameters_of
from stepwell.torch._parameters import Place, as_array, as_tensor, pattern, resolve
from stepwell.torch._state_dict import export, fingerprint, imported, values_of

_REMEMBERED_VECTORS_MAX: Final = 8


class RemoteOptimizer(torch.optim.Optimizer):  # type: ignore[misc]  # PyTorch is not there when types are checked
    """A torch.optim.Optimizer whose step is one update of a run on a Stepwell server.

        optimizer = RemoteOptimizer(model, "adamw", lr=1e-3, address="127.0.0.1:50051", run="docstrings")

    params: a module, tensors, (name, tensor) pairs, or groups, as torch.optim takes them; a tensor that comes twice
    counts once. Parameters that need no gradient now stay out of the run. float16, bfloat16, float32 or float64; beside
    16 bits the server keeps float32, so the trainer needs no master weights. CUDA tensors go over the CPU: gradients
    are copied there, parameters back.
    optimizer: any name of `stepwell optimizer list`. hyperparameters, lr: by PyTorch's names and defaults for adadelta,
    adagrad, adam, adamax, adamw, asgd, nadam, radam, rmsprop and sgd, else by the catalogue's.
    address: HOST:PORT; by default what STEPWELL_ADDRESS says. run: its name. Whoever finds it there joins it: the model
    gets the run's values, the hyperparameters stay what the run has until this worker's own change.
    policy, run_options, connect_options: what else `create_run` and `connect` take; policy="sync" averages the
    gradients of all workers. `optimizer.run` is the run.
    overlap: without shared memory, send each gradient while backward still computes the next. For loops with one
    backward for each step and nothing between the two that changes gradients, and for optimizers that do without the
    loss; `zero_grad` gives up what has gone.

    In param_groups a number may change at any time, as torch.optim.lr_scheduler does: it travels with the next update
    and is the run's from then on. Raises what `create_run` raises; InvalidValue for parameters that it cannot take.
    """

    param_groups: list[dict[str, Any]]
    run: stepwell.Run

    def __init__(
        self,
        params: Any,
        optimizer: str = "adamw",
        *,
        run: str,
        lr: Any = None,
        address: str | None = None,
        policy: str | Mapping[str, Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
        connect_options: Mapping[str, Any] | None = None,
        overlap: bool = False,
        **hyperparameters: Any,
    ) -> None:
        self._optimizer = optimizer
        self._places: list[Place] = []
        self._frozen: list[tuple[str, Any]] = []
        self._client: stepwell.Client | None = None
        # What state_dict gave last, and the version that this worker knew then.
        self._exported: tuple[bytes, int] | None = None
        self._backward = Backward(weakref.WeakMethod(self._begin))
        groups, names = resolve(params)
        given = hyperparameters if lr is None else {"lr": lr, **hyperparameters}
        super().__init__(groups, defaults_of(optimizer, given))
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self._places.append(Place(names[parameter], parameter, index))
                else:
                    self._frozen.append((names[parameter], parameter))
        if not self._places:
            raise InvalidValue("got no parameter that needs a gradient, expected one; set requires_grad before")
        self._client = stepwell.connect(address, **(connect_options or {}))
        try:
            self.run = self._create(run, policy, run_options or {})
            self._complete_groups()
            self._sent = [hyperparameters_of(optimizer, group) for group in self.param_groups]
            self._tensors: dict[int, Any] = {}
            self._show(self.run.parameters())
            self._lay_out()
        except BaseException:
            self.close()
            raise
        for place in self._places if overlap else ():
            place.announce = weakref.WeakMethod(self._send)
        weakref.finalize(self, _release, self._places).atexit = False
        _alive.add(self)
        close_at_exit(self)

    def step(self, closure: Callable[[], Any] | None = None, *, samples: float | None = None) -> Any:
        """Push the gradients, and copy the parameters after the update into the model. Returns what `closure` returns.

        closure: evaluates the model anew and returns the loss; called once, before anything is sent. samples: over how
        many samples the gradients were taken, for schedules on that clock. A parameter without a gradient stays as it
        is, with its moments and its step.
        Raises InvalidValue, which names the parameter, where its shape, dtype, device or values were changed since the
        last step; ServerUnavailable after the client's patience, and others as `run.step` does. The model is then as
        it was, but for RunRewound: then it has the run's present parameters.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check()
        try:
            if self._backward.begun:
                if samples is not None:
                    self._backward.abandon()
                    raise InvalidValue("got samples after the gradients had gone, expected none with overlap=True")
                views = self._backward.finish(self._places)
            else:
                self._lay_out()  # another memory after the connection was lost
                self._changed = self._changes()
                views = self.run.step(
                    {place.name: place.outgoing() for place in self._places},
                    samples=samples,
                    # Those of torch.optim take none, and asking for the number waits for the device.
                    loss=None if loss is None or self._optimizer in CLASSES else float(loss),
                    hyperparameters=self._named(self._changed),
                    out=self._views,
                )
        except RunRewound:
            self.pull()
            raise
        answer = self.run.last_answer
        if answer is not None and answer.outcome in (Outcome.COMMITTED, Outcome.FOLDED):
            for group, numbers in self._changed.items():
                self._sent[group] |= numbers
        self._show(views)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's; what has gone of an update that no step ended is given up.

        set_to_none: False leaves gradients of zeros.
        """
        self._backward.abandon()
        super().zero_grad(set_to_none)

    def pull(self) -> int:
        """Copy the run's present parameters into the model; returns their version."""
        self._show(self.run.parameters())
        return self.run.version

    def send_parameters(self) -> None:
        """Give the run the model's values; moments and steps stay. Other workers get RunRewound."""
        state = self.run.get_state()
        parameters = {place.name: values_of(place, state) for place in self._places}
        self._replace(State(parameters, state.slots, state.scalars, state.steps, state.version, state.samples))

    def state_dict(self) -> dict[str, Any]:
        """The run's moments and steps as the same optimizer of torch.optim has them, which takes them from here.

        Moments of 16-bit parameters are float32. Of optimizers that torch.optim lacks or keeps otherwise it holds what
        the run keeps, by the run's names.
        """
        state = self.run.get_state()
        try:
            for place in self._places:
                exported = export(self._optimizer, state, place, self.param_groups[place.group])
                if exported:
                    self.state[place.parameter] = exported
            found: dict[str, Any] = super().state_dict()
            self._exported = fingerprint(found["state"]), self.run.version
            return found
        finally:
            self.state.clear()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take param_groups, moments and steps from a state_dict of the same optimizer; the run's parameters become the
        model's own, so load the model first. Other workers get RunRewound; but where `state_dict` has just given this
        state, as frameworks do that move it to a device, the run stays as it is. Raises InvalidValue, ValueError, and
        leaves the run as it was, where the state does not fit."""
        before = self.param_groups
        try:
            super().load_state_dict({**state_dict, "state": {}})
            self._changes()
            if self._has(state_dict["state"]):
                return
            indices = [index for group in state_dict["param_groups"] for index in group["params"]]
            own = [parameter for group in self.param_groups for parameter in group["params"]]
            entries = {parameter: state_dict["state"].get(index) for index, parameter in zip(indices, own, strict=True)}
            given = {place.name: entries[place.parameter] or {} for place in self._places}
            state = imported(self._optimizer, self.run.get_state(), self._places, given, self.param_groups)
            self._replace(state)
        except BaseException:
            self.param_groups = before
            raise

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while the optimizer is made: a run's parameters stay the same.

        param_group: as torch.optim takes it. Raises InvalidValue once the run is joined.
        """
        if self._client is not None:
            raise InvalidValue("got another group, expected those of the run; make another optimizer")
        super().add_param_group(param_group)

    def close(self) -> None:
        """Leave the run, which goes on; nothing happens the second time."""
        _release(self._places)
        self._backward.abandon()
        if self._client is not None:
            if hasattr(self, "run"):
                self.run.close()
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a RemoteOptimizer cannot be copied or pickled: make one in each process, or use state_dict()")

    def _create(self, name: str, policy: str | Mapping[str, Any] | None, options: Mapping[str, Any]) -> stepwell.Run:
        assert self._client is not None
        hyperparameters = [hyperparameters_of(self._optimizer, group) for group in self.param_groups]
        groups = []
        if len(self.param_groups) > 1:
            for index in range(len(self.param_groups)):
                members = [pattern(place.name) for place in self._places if place.group == index]
                if members:
                    groups.append(
                        {
                            "name": self._group_name(index),
                            "parameters": members,
                            "hyperparameters": hyperparameters[index],
                        }
                    )
        return self._client.create_run(
            name,
            {place.name: as_array(place.parameter) for place in self._places},
            optimizer=self._optimizer,
            hyperparameters=hyperparameters_of(self._optimizer, self.defaults) if groups else hyperparameters[0],
            groups=groups,
            policy=policy,
            **{"flavor": "torch" if self._optimizer in CLASSES else None, **options},
        )

    def _group_name(self, index: int) -> str:
        return f"group_{index}" if len(self.param_groups) > 1 else "default"

    def _complete_groups(self) -> None:
        """Show in param_groups the defaults that only the server knows."""
        if self._optimizer in CLASSES:
            return
        described = {group.name: group.hyperparameters for group in self.run.refresh().groups}
        for index, group in enumerate(self.param_groups):
            for name, value in described.get(self._group_name(index), {}).items():
                group.setdefault(name, value)

    def _check(self) -> None:
        for place in self._places:
            place.check()
        for name, parameter in self._frozen:
            if parameter.grad is not None:
                raise InvalidValue(
                    f"parameter '{name}' has a gradient, expected none, since it needed none when the optimizer was "
                    "made; make another one, with a run of its own, after requires_grad has changed"
                )

    def _changes(self) -> dict[int, dict[str, float]]:
        """The numbers by group that have changed since they were sent."""
        with_parameters = {place.group for place in self._places}
        found = {}
        for index, group in enumerate(self.param_groups):
            now = hyperparameters_of(self._optimizer, group)
            if index in with_parameters and now != self._sent[index]:
                found[index] = changes(self._sent[index], now, index)
        return {index: numbers for index, numbers in found.items() if numbers}

    def _named(self, changed: Mapping[int, dict[str, float]]) -> dict[str, dict[str, float]] | None:
        return {self._group_name(group): numbers for group, numbers in changed.items()} or None

    def _send(self, place: Place) -> None:
        """Called by backward. With shared memory the gradient is where the server reads it already."""
        if self._backward.begun or self.run.transport == "stream":
            self._backward.send(place)

    def _begin(self) -> stepwell.Update:
        self._check()
        self._changed = self._changes()
        return self.run.update(hyperparameters=self._named(self._changed), out=self._views)

    def _lay_out(self) -> None:
        arrays = self.run.gradients()
        for place in self._places:
            place.lie_at(arrays[place.name])

    def _show(self, views: dict[str, Any]) -> None:
        """Copy parameters into the model.

        views: of memory that the server writes at the next commit. The model has its own, because such views are
        read-only, and whoever writes to one (load_state_dict, clamp_) would end the process.
        """
        self._views, self._exported = views, None
        for place in self._places:
            place.show(self._tensor(views[place.name]))

    def _tensor(self, view: Any) -> Any:
        """The view as a tensor; made once for each of the few vectors that take turns."""
        address = view.__array_interface__["data"][0] if view.size else 0
        found = self._tensors.get(address)
        if found is None or not view.size:
            if len(self._tensors) >= _REMEMBERED_VECTORS_MAX * len(self._places):
                self._tensors.clear()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                found = self._tensors[address] = as_tensor(view)
        return found

    def _has(self, entries: Mapping[Any, Any]) -> bool:
        """Whether this is what state_dict has given, and nothing that this worker did has come in between."""
        if self._exported is None or any(map(Place.written, self._places)):
            return False
        return self._exported == (fingerprint(entries), self.run.version)

    def _replace(self, state: State) -> None:
        """Set the run's whole state, if nobody was faster."""
        self.run.set_state(state, expected_version=state.version)
        self._show(self.run.parameters())


def _release(places: Iterable[Place]) -> None:
    for place in places:
        place.release()


_alive: Final[weakref.WeakSet[RemoteOptimizer]] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for optimizer in list(_alive):
        for place in optimizer._places:
            place.forget_memory()


# What a forked child's backward would write to is the memory that the server reads for its parent.
os.register_at_fork(after_in_child=_let_go_in_child)
