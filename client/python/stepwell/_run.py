"""What can be done with a run. Written once; `stepwell.Run` blocks and `stepwell.aio.Run` is awaited."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stepwell._calls import ask, collect, deliver
from stepwell._descriptions import Checkpoint, RunDescription, describe_checkpoint, describe_run
from stepwell._exchange import Exchange
from stepwell._layered import Layered
from stepwell._methods import (
    GET_RUN,
    GET_STATE,
    LIST_CHECKPOINTS,
    REPORT,
    RESTORE_CHECKPOINT,
    SAVE_CHECKPOINT,
    SET_STATE,
    UPDATE_RUN,
)
from stepwell._operation import exclusive, operation
from stepwell._progress import Transfer
from stepwell._receiving import Received, Views
from stepwell._requests import Steps
from stepwell._row_operations import RowOperations
from stepwell._run_base import Arrays
from stepwell._spec import encode_hyperparameters, encode_policy, encode_schedules
from stepwell._state import Array, State, StatePieces, state_bytes, state_requests
from stepwell.errors import RunReplaced, RunRewound
from stepwell.v1 import control_pb2, data_pb2


class RunOperations(RowOperations):
    """A run on the server, as seen by one worker or reader. A context manager; made by create_run and get_run.

    A push or step makes the caller a worker of the run; whoever only reads never joins. Exchanges on one object follow
    one another, also from several threads: workers that shall push at the same time need a client each.
    """

    @exclusive
    def step(
        self,
        grads: Mapping[str, Any],
        *,
        samples: float | None = None,
        loss: float | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
        loss_scale: float | None = None,
        sparsity_factor: float | None = None,
        rows: Mapping[str, Any] | None = None,
        out: Arrays | None = None,
        timeout: float | None = None,
    ) -> Steps[Arrays]:
        """Push gradients and return the parameters after the update.

        grads: for every parameter that is not frozen an array of its shape, or None where it has no gradient in this
        update; such a parameter, its slots and its step stay as they are. The dtype is the parameter's, or one that
        the server's state holds exactly: a float16 gradient for a float32 parameter is widened there.
        samples: over how many samples the gradients were taken; advances the clock of samples.
        loss: for optimizers that need it (polyak_sgd, momo).
        inputs: what else an optimizer takes, as {"hessian": {name: array}}; see list_optimizers.
        loss_scale: what the loss was multiplied by, for the transform unscale; by default `run.loss_scale`.
        sparsity_factor: for the transform sparsity_lr with source "client".
        hyperparameters: new numbers, set for good with this update's commit: {"lr": 0.1} for every group that has it,
        {"no_decay": {"lr": 0.1}} for one group.
        rows: gradients of rows that go with the same commit, as {table: (ids, gradients)}; see push_rows.
        out: arrays to fill in place; only these parameters are returned. After an error their content is undefined.
        What `parameters()` gave stands for views like those.
        timeout: seconds for all of it. By default it waits while the server gives word. After TimedOut the update may
        have been applied or not; it cannot be any more once the next push has begun, unless it was folded into a round
        or an accumulator by then.

        The arrays belong to the caller. They have the version `run.version`: the update's own or a newer one.
        Raises InvalidGradient, InvalidRows before anything is sent; NonfiniteGradient and others, which leave the run
        as it was; RunRewound, see there. With on_rewind="continue" the update of a run that went back is dropped
        instead, the present parameters are returned, and last_answer says Outcome.REWOUND.
        """
        header = self._header(samples, loss, hyperparameters, loss_scale, sparsity_factor)
        received: list[Received] = []
        select = self._selecting(received, names=None, out=out)
        try:
            yield from self._update(grads, inputs, header, select, "step", timeout, rows)
        except RunRewound as rewound:
            self._go_on(rewound)
            present = yield from self._fetch(None, None, out, timeout)
            assert present is not None, "it did not ask for newer ones only"
            return present
        return received[-1].arrays()

    @exclusive
    def push(
        self,
        grads: Mapping[str, Any],
        *,
        samples: float | None = None,
        loss: float | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
        loss_scale: float | None = None,
        sparsity_factor: float | None = None,
        rows: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Steps[int]:
        """Push gradients, return no parameters. The arguments are step's.

        Returns the version that holds the update; where it was skipped, the version that it found (see last_answer).
        With on_rewind="continue", and an update dropped because the run went back, the present version.
        """
        header = self._header(samples, loss, hyperparameters, loss_scale, sparsity_factor)
        return (yield from self._push(grads, inputs, header, "push", timeout, rows))

    @exclusive
    def pull(
        self,
        names: Iterable[str] | None = None,
        *,
        if_newer_than: int | None = None,
        of: str = "parameters",
        exact: bool = False,
        out: Arrays | None = None,
        timeout: float | None = None,
    ) -> Steps[Arrays | None]:
        """Return parameters, all at one version: `run.version`.

        names: which ones; all by default, or those of `out`. of: which point: "parameters", where gradients are taken,
        or, where the optimizer or a wrapper has it, "evaluation", "average" or "lookahead". if_newer_than: return None
        if the run is not beyond this version. exact: as the server has them, even where the run encodes what it sends.
        out: arrays to fill in place. The arrays belong to the caller.
        Raises UnknownParameter, UnknownPoint; and RunRewound, once, where the run is at an older version than this
        object has been told of. With on_rewind="continue" the older parameters are returned.
        """
        names = list(names) if names is not None else None
        try:
            return (yield from self._fetch(names, if_newer_than, out, timeout, of, exact))
        except RunRewound as rewound:
            self._go_on(rewound)
            return (yield from self._fetch(names, None, out, timeout, of, exact))

    @exclusive
    def gradients(self) -> Steps[Arrays]:
        """Arrays to write the next gradients to, by name, for every parameter that is not frozen; joins the run.

        With shared memory the server reads them where they are: `step(run.gradients())` copies nothing. Do not write to
        them while a step or push is under way: what the server reads is what counts. The same arrays come back as
        long as `transport` stays the same and what is shared suffices; others do, when an update has brought inputs or
        more rows than before. Their content is the caller's alone, and undefined at first.
        """
        self._check_open()
        layout = yield from self._have_place()
        if self._worker.shared is not None:
            return self._worker.shared.gradients()
        if self._own_gradients is None:
            trained = [parameter for parameter in layout.parameters if not parameter.frozen]
            self._own_gradients = {each.name: np.empty(each.shape, each.dtype) for each in trained}
        return dict(self._own_gradients)

    @exclusive
    def parameters(self) -> Steps[Arrays]:
        """Read-only views of the present parameters, at version `run.version`; joins the run.

        They are valid until the next step, push or pull. Give them to a step or pull as `out`, and take what it returns
        in their place: with shared memory nothing is copied then.
        """
        self._check_open()
        yield from self._have_place()
        try:
            views = yield from self._fetch(None, None, Views({}, own=False), None)
        except RunRewound as rewound:
            self._go_on(rewound)
            views = yield from self._fetch(None, None, Views({}, own=False), None)
        assert isinstance(views, Views), "it asked for them"
        return views

    @operation
    def refresh(self) -> Steps[RunDescription]:
        """Ask for the run as it is now: its version, etag, hyperparameters, schedules, workers."""
        self._check_open()
        request = control_pb2.GetRunRequest(run=self.name)
        response = yield from ask(self._settings, GET_RUN, request, self._what("refresh"))
        if self._worker.uid != response.run.uid:
            raise RunReplaced(
                f"{self._what('refresh')}: got a run with another uid: it was deleted and made anew; get it again with "
                "client.get_run",
                {"run": self.name},
            )
        self._worker.version = max(self._worker.version, response.run.version)
        return describe_run(response.run)

    @exclusive
    def change(
        self,
        *,
        hyperparameters: Mapping[str, Any] | None = None,
        schedules: Mapping[str, Mapping[str, Any] | None] | None = None,
        keep_clock: bool = False,
        group: str | None = None,
        etag: str | None = None,
        policy: str | Mapping[str, Any] | None = None,
    ) -> Steps[RunDescription]:
        """Change the live run, from its next commit on; slots are kept.

        hyperparameters: new values; under a schedule, the value that it starts from. schedules: new ones by
        hyperparameter, counted from 0 at the change unless `keep_clock`; None takes one away. group: where; by default
        every group that has what changes. etag: the run must still be as this description of it said, else
        EtagMismatch. policy: another one, as for create_run; updates that wait are handed to it. Raises ChangeRefused
        where a slot would come or go, PolicyRefused where workers would wait for ever.
        """
        self._check_open()
        kept = {name: schedule for name, schedule in (schedules or {}).items() if schedule is not None}
        request = control_pb2.UpdateRunRequest(
            run=self.name,
            group=group or "",
            hyperparameters=encode_hyperparameters(hyperparameters),
            schedules=encode_schedules(kept),
            schedules_removed=[name for name in schedules or {} if name not in kept],
            keep_clock=keep_clock,
            etag=etag or "",
            policy=encode_policy(policy),
        )
        response = yield from ask(self._settings, UPDATE_RUN, request, self._what("change"), repeat=False)
        return describe_run(response.run)

    @exclusive
    def assignment(self, samples_count: int) -> Steps[range]:
        """Which of so many samples are this worker's: even, contiguous shares in the order of the live workers' places.

        Ask again after `place.membership_number` has changed: the shares follow whoever joins or leaves. Joins the run.
        """
        self._check_open()
        place = yield from self._worker.look_around()
        return range(samples_count * place.index // place.count, samples_count * (place.index + 1) // place.count)

    @exclusive
    def barrier(self, name: str = "barrier", timeout: float | None = None) -> Steps[None]:
        """Wait until every live worker of the run waits at the barrier of this name; joins the run.

        Workers that join meanwhile must come, too; those that leave, or whose lease runs out, count no longer.
        timeout: in seconds; then TimedOut is raised. By default it waits while the server gives word.
        """
        self._check_open()
        yield from self._worker.barrier(name, timeout)

    @operation
    def report(self, metrics: Mapping[str, float]) -> Steps[RunDescription]:
        """Report metrics, such as {"val_loss": 0.3}: schedules that wait for one (plateau) follow from the next commit.

        Not repeated if the connection breaks: the report may then have been taken or not.
        """
        self._check_open()
        request = control_pb2.ReportRequest(run=self.name, metrics=metrics)
        response = yield from ask(self._settings, REPORT, request, self._what("report"), repeat=False)
        return describe_run(response.run)

    @operation
    def save_checkpoint(self, name: str | None = None) -> Steps[Checkpoint]:
        """Store the run's state on the server while training goes on.

        name: [A-Za-z0-9][A-Za-z0-9._-]{0,127}; by default version-N. Raises StorageDisabled where the server has no
        data directory, CheckpointExists, StorageFailed, and ServerUnavailable where the connection broke: it is not
        repeated.
        """
        self._check_open()
        request = control_pb2.SaveCheckpointRequest(run=self.name, checkpoint=name or "")
        response = yield from ask(self._settings, SAVE_CHECKPOINT, request, self._what("save_checkpoint"), repeat=False)
        return describe_checkpoint(response.checkpoint)

    @operation
    def list_checkpoints(self) -> Steps[list[Checkpoint]]:
        """The run's checkpoints, oldest first."""
        self._check_open()
        checkpoints: list[Checkpoint] = []
        token = ""
        while True:
            request = control_pb2.ListCheckpointsRequest(run=self.name, page_token=token)
            page = yield from ask(self._settings, LIST_CHECKPOINTS, request, self._what("list_checkpoints"))
            checkpoints += map(describe_checkpoint, page.checkpoints)
            token = page.next_page_token
            if not token:
                return checkpoints

    @exclusive
    def restore_checkpoint(self, name: str) -> Steps[RunDescription]:
        """Take the run back to a checkpoint. Other workers get RunRewound; this object joins anew by itself.

        name: as list_checkpoints has it. Raises UnknownCheckpoint, CheckpointDamaged, StorageDisabled, StorageFailed.
        """
        self._check_open()
        request = control_pb2.RestoreCheckpointRequest(run=self.name, checkpoint=name)
        what = self._what("restore_checkpoint")
        response = yield from ask(self._settings, RESTORE_CHECKPOINT, request, what, repeat=False)
        self._worker.rewound(response.run.version)
        return describe_run(response.run)

    @operation
    def get_state(self) -> Steps[State]:
        """The run's whole state at one version. The arrays belong to the caller."""
        self._check_open()
        return (yield from self._get_state())

    @operation
    def slots(self) -> Steps[dict[str, dict[str, Array]]]:
        """What the optimizer keeps beside each parameter: arrays by parameter and slot."""
        self._check_open()
        state = yield from self._get_state()
        return {name: dict(slots) for name, slots in state.slots.items()}

    @exclusive
    def set_state(self, state: State, *, expected_version: int | None = None) -> Steps[RunDescription]:
        """Replace the run's whole state, all or nothing; the run takes the state's version and samples.

        state: as get_state gives it, also of another run with the same parameters and optimizer.
        expected_version: where the run must be, else VersionMismatch.
        Other workers get RunRewound; this object joins anew by itself.
        """
        self._check_open()
        layout = yield from self._worker.have_layout()
        what = self._what("set_state")
        with Transfer(self._settings.progress, what, state_bytes(state)) as transfer:
            requests = transfer.follow(
                state_requests(self.name, state, layout, expected_version),
                lambda request: sum(len(piece.range.data) for piece in request.ranges),
            )
            response = yield from deliver(self._settings, SET_STATE, requests, what)
        self._worker.rewound(response.run.version)
        return describe_run(response.run)

    @exclusive
    def close(self) -> Steps[None]:
        """Leave the run. The run itself goes on; nothing happens the second time."""
        self._closed = True
        yield from self._worker.leave()

    @exclusive
    def _begin(
        self, header: data_pb2.UpdateHeader, received: list[Received] | None, out: Arrays | None, timeout: float | None
    ) -> Steps[Layered]:
        """Begin an update that is sent gradient by gradient."""
        self._check_open()
        select = None if received is None else self._selecting(received, names=None, out=out)
        layered = yield from self._worker.begin(header, select, self._what("update"), timeout)
        self._layered = layered
        return layered

    @exclusive
    def _add(self, layered: Layered, name: str, gradient: Any) -> Steps[None]:
        """Take one of its gradients."""
        yield from layered.add(name, gradient)

    @exclusive
    def _finish(self, layered: Layered) -> Steps[Exchange]:
        """Commit it."""
        self._layered = None
        return (yield from self._worker.finish(layered))

    @exclusive
    def _abandon(self, layered: Layered) -> Steps[None]:
        """Give it up."""
        self._layered = None
        layered.abandon()
        return
        yield  # makes this a generator

    def _get_state(self) -> Steps[State]:
        layout = yield from self._worker.have_layout()
        request = control_pb2.GetStateRequest(run=self.name)
        pieces = yield from collect(
            self._settings, GET_STATE, request, lambda: StatePieces(layout, self._pool), self._what("get_state")
        )
        return pieces.state()
