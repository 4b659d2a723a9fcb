"""What bad input gets: its own error, which says what was got, what was expected and what to do, and nothing else.

One table for what the SDK can be made to send, one for what only a hand-made message can. After each row the run is
what it was, to the last bit, and a good update goes in.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import stepwell
from stepwell.v1 import control_pb2, data_pb2, run_pb2, values_pb2
from tests.end_to_end.raw import Raw, RawWorker, Refusal, WorkStream, spec, stage
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_state

PARAMETERS: Arrays = {
    "a": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "b": np.array(0.5, np.float32),
    "c": np.linspace(0, 1, 4),
    "cold": np.ones(3, np.float32),
    "leer": np.zeros((0, 2), np.float32),
}
SPEC: dict[str, Any] = {
    "optimizer": "adam",
    "flavor": "torch",
    "hyperparameters": {"lr": 0.01},
    "schedules": {"beta1": {"name": "linear", "start_factor": 0.5, "end_factor": 1.0, "total_iters": 10}},
    "groups": [{"name": "frozen", "parameters": ["cold"], "frozen": True}],
}
GRADIENTS: dict[str, Any] = {
    name: np.full_like(array, 0.25) for name, array in PARAMETERS.items() if name not in ("cold", "leer")
} | {"leer": np.zeros((0, 2), np.float32)}


@dataclass
class Scene:
    """A run with some history, and everything that a row of a table may want."""

    client: stepwell.Client
    run: stepwell.Run
    raw: Raw
    worker: RawWorker
    again: RawWorker

    def with_gradient(self, **changes: Any) -> dict[str, Any]:
        return GRADIENTS | changes

    def without(self, name: str) -> dict[str, Any]:
        return {key: value for key, value in GRADIENTS.items() if key != name}

    def create(self, name: str | None = None, parameters: Arrays | None = None, **changes: Any) -> stepwell.Run:
        return self.client.create_run(name or self.run.name + "-2", parameters or PARAMETERS, **(SPEC | changes))

    def group(self, dtype: str) -> int:
        code = {"f4": run_pb2.D_TYPE_FLOAT32, "f8": run_pb2.D_TYPE_FLOAT64}[dtype]
        return next(n for n, group in enumerate(self.worker.groups) if group.dtype == code and not group.frozen)

    @property
    def frozen(self) -> int:
        return next(n for n, group in enumerate(self.worker.groups) if group.frozen)

    def changed(self, change: Callable[[list[tuple[int, int, bytes]]], Any]) -> list[tuple[int, int, bytes]]:
        """The ranges of a good update after a change."""
        ranges = self.worker.ranges(0.25)
        change(ranges)
        return ranges


@pytest.fixture
def scene(server: Server, client: stepwell.Client, name: str) -> Iterator[Scene]:
    run = client.create_run(name, PARAMETERS, **SPEC)
    run.step(GRADIENTS)
    with Raw(server.address) as raw:
        worker = raw.join(name, "raw")
        for _ in range(2):
            worker.push()
        yield Scene(client, run, raw, worker, raw.join(name, "again"))
        for used in (worker.via,):
            if isinstance(used, WorkStream):
                used.close()


@dataclass(frozen=True)
class Row:
    """A bad deed, the reason of its error, and what the error must say."""

    id: str
    reason: str
    deed: Callable[[Scene], object]
    says: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


NAN, INFINITY = float("nan"), float("inf")


def nan_in(name: str, value: float = NAN) -> dict[str, Any]:
    broken = GRADIENTS[name].copy()
    broken[...] = value
    return {name: broken}


def nested(depth: int) -> dict[str, Any]:
    schedule: dict[str, Any] = {"name": "constant"}
    for _ in range(depth):
        schedule = {"name": "sequential", "milestones": [], "schedules": [schedule]}
    return schedule


BAD_NAMES = ("../etc/passwd", "a/b", ".hidden", "a\\b", "a b", "naïve", "x" * 129, "-a", "a\n")


def creating(name: str) -> Callable[[Scene], object]:
    return lambda scene: scene.create(name)


SDK = [
    # What is not known.
    Row("optimizer", "UNKNOWN_OPTIMIZER", lambda s: s.create(optimizer="addam"), ("'addam'", "did you mean 'adam'")),
    Row("optimizer of a group", "UNKNOWN_OPTIMIZER", lambda s: s.create(
        groups=[{"name": "g", "parameters": ["a"], "optimizer": "nope"}]), ("'nope'",)),
    Row("flavor", "UNKNOWN_FLAVOR", lambda s: s.create(flavor="torhc"), ("'torhc'", "'torch'")),
    Row("schedule", "UNKNOWN_SCHEDULE", lambda s: s.create(schedules={"lr": {"name": "cosin"}}), ("'cosin'", "cosine")),
    Row("schedule within", "UNKNOWN_SCHEDULE", lambda s: s.create(schedules={"lr": {
        "name": "sequential", "milestones": [5], "schedules": [{"name": "nope"}, {"name": "constant"}]}}), ("'nope'",)),
    Row("argument", "UNKNOWN_ARGUMENT", lambda s: s.create(hyperparameters={"learning_rate": 1.0}),
        ("'learning_rate'", "lr")),
    Row("argument of a schedule", "UNKNOWN_ARGUMENT", lambda s: s.create(
        schedules={"lr": {"name": "cosine", "tmax": 5}}), ("'tmax'", "t_max")),
    Row("scheduled argument", "UNKNOWN_ARGUMENT", lambda s: s.create(schedules={"beta9": {"name": "constant"}}),
        ("'beta9'",)),
    Row("argument in a change", "UNKNOWN_ARGUMENT", lambda s: s.run.change(hyperparameters={"beta9": 1.0}),
        ("'beta9'",)),
    Row("argument in an update", "UNKNOWN_ARGUMENT", lambda s: s.run.push(GRADIENTS, hyperparameters={"beta9": 1.0}),
        ("'beta9'",)),
    Row("schedule in a change", "UNKNOWN_SCHEDULE", lambda s: s.run.change(schedules={"lr": {"name": "cosin"}}),
        ("'cosin'",)),
    Row("schedule in a preview", "UNKNOWN_SCHEDULE", lambda s: s.client.preview_schedule(
        {"name": "cosin"}, initial=1.0, steps=3), ("'cosin'",)),
    Row("run", "UNKNOWN_RUN", lambda s: s.client.get_run("no-such-run"), ("'no-such-run'",)),
    Row("run to delete", "UNKNOWN_RUN", lambda s: s.client.delete_run("no-such-run"), ("'no-such-run'",)),
    Row("group in a change", "UNKNOWN_GROUP", lambda s: s.run.change(hyperparameters={"lr": 1.0}, group="nope"),
        ("'nope'", "default")),
    Row("frozen group in a change", "UNKNOWN_GROUP", lambda s: s.run.change(
        hyperparameters={"lr": 1.0}, group="frozen"), ("'frozen'", "default")),
    Row("group in an update", "UNKNOWN_GROUP", lambda s: s.run.push(
        GRADIENTS, hyperparameters={"nope": {"lr": 1.0}}), ("'nope'",)),
    Row("parameter to pull", "UNKNOWN_PARAMETER", lambda s: s.run.pull(names=["d"]), ("'d'", "'a'")),
    # Values.
    Row("out of range", "INVALID_VALUE", lambda s: s.create(hyperparameters={"beta1": 1.0}),
        ("beta1", "1.0", "[0, 1)"), {"argument": "beta1"}),
    Row("negative", "INVALID_VALUE", lambda s: s.create(hyperparameters={"lr": -1e-9}), ("lr", "-1e-09")),
    Row("NaN", "INVALID_VALUE", lambda s: s.create(hyperparameters={"lr": NAN}), ("lr", "nan", "finite")),
    Row("infinity", "INVALID_VALUE", lambda s: s.create(hyperparameters={"eps": INFINITY}), ("eps", "inf", "finite")),
    Row("kind", "INVALID_VALUE", lambda s: s.create(hyperparameters={"amsgrad": 1.0}), ("amsgrad", "flag")),
    Row("text for a number", "INVALID_VALUE", lambda s: s.create(hyperparameters={"lr": "0.1"}), ("lr", "'0.1'")),
    Row("none for a number", "INVALID_VALUE", lambda s: s.create(hyperparameters={"lr": None}), ("lr", "None")),
    Row("NaN in a schedule", "INVALID_VALUE", lambda s: s.create(
        schedules={"lr": {"name": "cosine", "t_max": 5, "eta_min": NAN}}), ("eta_min", "nan")),
    Row("range in a schedule", "INVALID_VALUE", lambda s: s.create(schedules={"lr": {"name": "cosine", "t_max": -5}}),
        ("t_max", "-5")),
    Row("a schedule that leads out of range", "INVALID_VALUE", lambda s: s.create(
        schedules={"beta1": {"name": "table", "values": [1.5, 0.5]}}), ("beta1", "1.5")),
    Row("required and missing", "INVALID_VALUE", lambda s: s.create(
        optimizer="sgd", flavor="optax", hyperparameters={}, schedules={}), ("lr", "missing")),
    Row("range in a change", "INVALID_VALUE", lambda s: s.run.change(hyperparameters={"beta2": 7.0}), ("beta2", "7.0")),
    Row("NaN in a change", "INVALID_VALUE", lambda s: s.run.change(hyperparameters={"lr": NAN}), ("lr", "nan")),
    Row("range in an update", "INVALID_VALUE", lambda s: s.run.push(GRADIENTS, hyperparameters={"lr": -1.0}),
        ("lr", "-1.0")),
    Row("NaN in an update", "INVALID_VALUE", lambda s: s.run.push(GRADIENTS, hyperparameters={"lr": NAN}),
        ("lr", "nan")),
    Row("samples below 0", "INVALID_VALUE", lambda s: s.run.push(GRADIENTS, samples=-1.0), ("samples", "-1.0")),
    Row("samples NaN", "INVALID_VALUE", lambda s: s.run.push(GRADIENTS, samples=NAN), ("samples", "nan")),
    Row("samples_per_epoch 0", "INVALID_VALUE", lambda s: s.create(samples_per_epoch=0.0), ("samples_per_epoch", "0")),
    Row("nonfinite", "INVALID_VALUE", lambda s: s.create(nonfinite="ignore"), ("'ignore'", "reject")),
    Row("initial NaN in a preview", "INVALID_VALUE", lambda s: s.client.preview_schedule(
        {"name": "constant"}, initial=NAN, steps=3), ("nan",)),
    # Gradients.
    Row("gradient's name", "INVALID_GRADIENT", lambda s: s.run.push(s.with_gradient(d=np.zeros(1))), ("'d'", "'a'")),
    Row("no name", "INVALID_GRADIENT", lambda s: s.run.push(s.without("b")), ("'b'", "None")),
    Row("gradient of a frozen one", "INVALID_GRADIENT", lambda s: s.run.push(
        s.with_gradient(cold=np.zeros(3, np.float32))), ("'cold'", "frozen")),
    Row("gradient's shape", "INVALID_GRADIENT", lambda s: s.run.push(s.with_gradient(a=np.zeros((3, 2), np.float32))),
        ("'a'", "(3, 2)", "(2, 3)")),
    Row("gradient's dimensions", "INVALID_GRADIENT", lambda s: s.run.push(s.with_gradient(b=np.zeros(1, np.float32))),
        ("'b'", "(1,)", "()")),
    Row("gradient's dtype", "INVALID_GRADIENT", lambda s: s.run.push(s.with_gradient(a=np.zeros((2, 3)))),
        ("'a'", "float64", "float32")),
    Row("NaN gradient", "NONFINITE_GRADIENT", lambda s: s.run.push(GRADIENTS | nan_in("a")), ("'a'", "finite")),
    Row("infinite gradient", "NONFINITE_GRADIENT", lambda s: s.run.step(GRADIENTS | nan_in("c", INFINITY)), ("'c'",)),
    Row("minus infinity in a 0-d gradient", "NONFINITE_GRADIENT", lambda s: s.run.step(
        GRADIENTS | nan_in("b", -INFINITY)), ("'b'",)),
    # Names.
    *(Row(f"run named {name!r}", "INVALID_NAME", creating(name), ("expected", "choose")) for name in BAD_NAMES),
    Row("run without a name", "INVALID_NAME", lambda s: s.client.create_run("", PARAMETERS, **SPEC), ("choose",)),
    Row("parameter's name", "INVALID_NAME", lambda s: s.create(parameters={"a\0b": np.zeros(1)}, groups=[]), ("NUL",)),
    Row("parameter without a name", "INVALID_NAME", lambda s: s.create(parameters={"": np.zeros(1)}, groups=[]),
        ("1 to 1024",)),
    Row("parameter's long name", "INVALID_NAME", lambda s: s.create(parameters={"ä" * 513: np.zeros(1)}, groups=[]),
        ("1 to 1024",)),
    Row("group's name", "INVALID_NAME", lambda s: s.create(groups=[{"name": "a/b", "parameters": ["a"]}]), ("'a/b'",)),
    # Specs.
    Row("no parameters", "INVALID_SPEC", lambda s: s.client.create_run(s.run.name + "-2", {}, **SPEC), ("parameter",)),
    Row("group that matches nothing", "INVALID_SPEC", lambda s: s.create(
        groups=[{"name": "g", "parameters": ["x*"]}]), ("'g'", "x*")),
    Row("group twice", "INVALID_SPEC", lambda s: s.create(
        groups=[{"name": "g", "parameters": ["a"]}, {"name": "g", "parameters": ["b"]}]), ("'g'", "twice")),
    Row("group default", "INVALID_SPEC", lambda s: s.create(groups=[{"name": "default", "parameters": ["a"]}]),
        ("'default'",)),
    Row("all frozen", "INVALID_SPEC", lambda s: s.create(
        groups=[{"name": "g", "parameters": ["*"], "frozen": True}]), ("frozen",)),
    Row("frozen with a hyperparameter", "INVALID_SPEC", lambda s: s.create(
        groups=[{"name": "g", "parameters": ["a"], "frozen": True, "hyperparameters": {"lr": 1.0}}]), ("'g'",)),
    Row("schedule of a flag", "INVALID_SPEC", lambda s: s.create(schedules={"amsgrad": {"name": "constant"}}),
        ("amsgrad", "number")),
    Row("epochs without samples", "INVALID_SPEC", lambda s: s.create(
        schedules={"lr": {"name": "constant", "clock": "epochs"}}), ("samples_per_epoch",)),
    Row("beta1 twice", "INVALID_VALUE", lambda s: s.create(hyperparameters={"beta1": 0.5, "betas": [0.5, 0.5]}),
        ("betas and beta1",)),
    Row("nesterov without momentum", "INVALID_SPEC", lambda s: s.create(
        optimizer="sgd", hyperparameters={"nesterov": True}, schedules={}), ("nesterov", "momentum")),
    Row("dtype", "INVALID_SPEC", lambda s: s.create(parameters={"a": np.zeros(3, np.int32)}), ("int32", "float32")),
    # What differs from the run that is there.
    Row("another lr", "RUN_DIFFERS", lambda s: s.create(s.run.name, hyperparameters={"lr": 0.02}),
        ("lr is 0.02", "has 0.01")),
    Row("another shape", "RUN_DIFFERS", lambda s: s.create(s.run.name, PARAMETERS | {"a": np.zeros(6, np.float32)}),
        ("'a'", "(6,)", "(2, 3)")),
    Row("another parameter", "RUN_DIFFERS", lambda s: s.create(s.run.name, PARAMETERS | {"d": np.zeros(1)}), ("'d'",)),
    Row("another schedule", "RUN_DIFFERS", lambda s: s.create(s.run.name, schedules={}), ("schedule of beta1",)),
    Row("other groups", "RUN_DIFFERS", lambda s: s.create(s.run.name, groups=[]), ("'cold'", "frozen")),
    Row("another policy for NaN", "RUN_DIFFERS", lambda s: s.create(s.run.name, nonfinite="skip"), ("nonfinite",)),
    # Changes.
    Row("a change that adds a slot", "CHANGE_REFUSED", lambda s: s.run.change(hyperparameters={"amsgrad": True}),
        ("max_exp_avg_sq", "change only", "lr")),
    Row("an etag of before", "ETAG_MISMATCH", lambda s: s.run.change(hyperparameters={"lr": 1.0}, etag="0-99"),
        ("0-99", "0-0")),
    Row("a state at another version", "VERSION_MISMATCH", lambda s: s.run.set_state(
        s.run.get_state(), expected_version=99), ("99", "3")),
    # Limits.
    Row("too deep", "INVALID_VALUE", lambda s: s.create(schedules={"lr": nested(20)}), ("16",)),
    Row("too many dimensions", "LIMIT_EXCEEDED", lambda s: s.create(
        parameters={"a": np.zeros((1,) * 33)}, groups=[]), ("32",)),
    Row("no data directory", "STORAGE_DISABLED", lambda s: s.run.save_checkpoint("c"), ("--data-dir",)),
    Row("nothing to restore from", "STORAGE_DISABLED", lambda s: s.run.restore_checkpoint("c"), ("--data-dir",)),
]  # fmt: skip


def check_message(message: str, says: tuple[str, ...]) -> None:
    """What was got, what was expected, and after a semicolon what to do."""
    for words in says:
        assert words in message
    # A spec that differs is told with both sides of each difference instead.
    assert "expected" in message or "exists with another spec" in message, message
    assert ";" in message, message


@pytest.mark.parametrize("row", SDK, ids=lambda row: row.id)
def test_sdk(scene: Scene, row: Row) -> None:
    before, description = scene.run.get_state(), scene.run.refresh()
    with pytest.raises(stepwell.StepwellError) as refused:
        row.deed(scene)
    check_untouched(scene, before, description)
    assert (refused.value.reason, type(refused.value)) == (row.reason, reason_class(row.reason)), str(refused.value)
    check_message(str(refused.value), row.says)
    assert row.details.items() <= refused.value.details.items()


def reason_class(reason: str) -> type[stepwell.StepwellError]:
    found: type[stepwell.StepwellError] = getattr(stepwell, reason.title().replace("_", ""))
    return found


def check_untouched(scene: Scene, before: stepwell.State, description: stepwell.RunDescription) -> None:
    """The run is what it was; nothing was made beside it; good updates go in, by SDK and by hand."""
    same_state(scene.run.get_state(), before)
    after = scene.run.refresh()
    assert after.groups == description.groups
    assert (after.version, after.etag, after.generation) == (
        description.version,
        description.etag,
        description.generation,
    )
    with pytest.raises(stepwell.UnknownRun):
        scene.client.get_run(scene.run.name + "-2")
    assert scene.run.push(GRADIENTS) == before.version + 1
    assert scene.again.push().committed_version == before.version + 2


def shift(number: int, offset: int) -> Callable[[list[tuple[int, int, bytes]]], None]:
    def change(ranges: list[tuple[int, int, bytes]]) -> None:
        group, _, data = ranges[number]
        ranges[number] = (group, offset, data)

    return change


def cut(number: int, size: int) -> Callable[[list[tuple[int, int, bytes]]], None]:
    def change(ranges: list[tuple[int, int, bytes]]) -> None:
        group, begin, data = ranges[number]
        ranges[number] = (group, begin, data[:size])

    return change


def value(**kind: Any) -> dict[str, values_pb2.Value]:
    return {"lr": values_pb2.Value(**kind)}


def deep(depth: int) -> values_pb2.Schedule:
    schedule = values_pb2.Schedule(name="constant")
    for _ in range(depth):
        schedule = values_pb2.Schedule(name="sequential", schedules=[schedule])
    return schedule


def fenced(scene: Scene) -> None:
    scene.raw.join(scene.run.name, "raw")
    scene.worker.push()


UPDATES = [
    Row("nothing", "INCOMPLETE_UPDATE", lambda s: s.worker.push(ranges=[]), ("missing", "send")),
    Row("a group missing", "INCOMPLETE_UPDATE", lambda s: s.worker.push(ranges=s.worker.ranges()[:1]), ("missing",)),
    Row("the end missing", "INCOMPLETE_UPDATE", lambda s: s.worker.push(ranges=s.changed(cut(0, 24))), ("4 bytes",)),
    Row("the start missing", "INCOMPLETE_UPDATE", lambda s: s.worker.push(ranges=s.changed(
        lambda r: r.__setitem__(0, (r[0][0], 4, r[0][2][4:])))), ("4 bytes", "at 0")),
    Row("overlap", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(
        lambda r: r.append((r[0][0], 8, bytes(4))))), ("overlap", "once")),
    Row("the same twice", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(lambda r: r.append(r[0]))),
        ("overlap",)),
    Row("offset between elements", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(
        lambda r: r.__setitem__(0, (r[0][0], 2, bytes(4))))), ("whole elements of 4",)),
    Row("half an element", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(cut(0, 6))), ("whole elements",)),
    Row("half a float64", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(cut(1, 12))), ("elements of 8",)),
    Row("beyond the group", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(shift(0, 4))), ("within 28",)),
    Row("far beyond", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(shift(0, 2**64 - 4))), ("within 28",)),
    Row("too many bytes", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(
        lambda r: r.__setitem__(0, (r[0][0], 0, r[0][2] + bytes(4))))), ("32 bytes", "28")),
    Row("an empty range", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(
        lambda r: r.append((r[0][0], 0, b"")))), ("0 bytes",)),
    Row("a group that is not", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(
        lambda r: r.append((99, 0, bytes(4))))), ("99",)),
    Row("a frozen group", "INVALID_RANGE", lambda s: s.worker.push(ranges=s.changed(
        lambda r: r.append((s.frozen, 0, bytes(4))))), ("frozen",)),
    Row("one declared without", "INVALID_RANGE", lambda s: s.worker.push(s.worker.header(without_gradient=[0])),
        ("without a gradient",)),
    Row("one declared and missing", "INCOMPLETE_UPDATE", lambda s: s.worker.push(
        s.worker.header(without_gradient=[1]), s.changed(cut(0, 20))), ("4 bytes",)),
    Row("a parameter that is not", "UNKNOWN_PARAMETER", lambda s: s.worker.push(s.worker.header(without_gradient=[9])),
        ("9", "0 to 4")),
    Row("NaN", "NONFINITE_GRADIENT", lambda s: s.worker.push(ranges=s.worker.ranges(NAN)), ("finite",)),
    Row("NaN only at the end", "NONFINITE_GRADIENT", lambda s: s.worker.push(ranges=s.changed(lambda r: r.__setitem__(
        1, (r[1][0], 0, r[1][2][:-8] + np.array([INFINITY]).tobytes())))), ("'c'",)),
    # Who, and which update.
    Row("sequence reused", "SEQUENCE_REUSED", lambda s: s.worker.push(s.worker.header(sequence=2)),
        ("sequence 2", "expected 3")),
    Row("a gap", "SEQUENCE_GAP", lambda s: s.worker.push(s.worker.header(sequence=4)), ("sequence 4", "expected 3"),
        {"got": "4", "expected": "3"}),
    Row("sequence 0", "INVALID_VALUE", lambda s: s.worker.push(s.worker.header(sequence=0)), ("sequence 0",)),
    Row("fingerprint too short", "INVALID_VALUE", lambda s: s.worker.push(s.worker.header(fingerprint=b"x")),
        ("16 random bytes",)),
    Row("fenced", "WORKER_FENCED", fenced, ("epoch", "taken over")),
    Row("an epoch to come", "WORKER_FENCED", lambda s: s.worker.push(s.worker.header(epoch=99)), ("99",)),
    Row("generation to come", "RUN_REWOUND", lambda s: s.worker.push(s.worker.header(generation=7)), ("generation 7",)),
    Row("no such worker", "UNKNOWN_WORKER", lambda s: s.worker.push(s.worker.header(worker="nobody")), ("'nobody'",)),
    Row("another uid", "RUN_REPLACED", lambda s: s.worker.push(s.worker.header(run_uid=bytes(16))), ("join",)),
    Row("no uid", "RUN_REPLACED", lambda s: s.worker.push(s.worker.header(run_uid=b"")), ("join",)),
    Row("update of no run", "UNKNOWN_RUN", lambda s: s.worker.push(s.worker.header(run="nope")), ("'nope'",)),
    Row("no identity", "MALFORMED_REQUEST", lambda s: s.worker.push(data_pb2.UpdateHeader()), ("identity",)),
]  # fmt: skip

CALLS = [
    Row("worker's name", "INVALID_NAME", lambda s: s.raw.join(s.run.name, "../x"), ("'../x'",)),
    Row("worker without a name", "INVALID_NAME", lambda s: s.raw.join(s.run.name, ""), ("worker",)),
    Row("ranges before a header", "MALFORMED_REQUEST", lambda s: s.raw.data_call("Push", iter(
        [data_pb2.PushRequest(stage=stage([(0, 0, bytes(4))]))])), ("header",)),
    Row("commit of nothing", "MALFORMED_REQUEST", lambda s: s.raw.data_call("Push", iter(
        [data_pb2.PushRequest(commit=data_pb2.Commit())])), ("stage",)),
    Row("no commit", "MALFORMED_REQUEST", lambda s: s.raw.data_call("Push", iter(
        s.worker.push_requests(s.worker.header(), commit=False))), ("commit",)),
    Row("an empty push", "MALFORMED_REQUEST", lambda s: s.raw.data_call("Push", iter([])), ("commit",)),
    Row("an empty step", "MALFORMED_REQUEST", lambda s: s.raw.data_call("Step", iter([])), ("commit",)),
    Row("commit of another", "MALFORMED_REQUEST", lambda s: s.raw.data_call("Push", iter(
        [*s.worker.push_requests(s.worker.header(), commit=False),
         data_pb2.PushRequest(commit=data_pb2.Commit(identity=s.worker.header().identity))])), ("another update",)),
    Row("selection of no parameter", "UNKNOWN_PARAMETER", lambda s: s.raw.data_call("Pull", data_pb2.PullRequest(
        selection=data_pb2.Selection(run=s.run.name, parameters=[7]))), ("7", "0 to 4")),
    Row("selection of no run", "UNKNOWN_RUN", lambda s: s.raw.data_call("Pull", data_pb2.PullRequest()), ()),
    Row("selection by an old layout", "RUN_REPLACED", lambda s: s.raw.data_call("Pull", data_pb2.PullRequest(
        selection=data_pb2.Selection(run=s.run.name, run_uid=bytes(16)))), ()),
    Row("a value without a kind", "MALFORMED_REQUEST", lambda s: s.raw.control_call(
        "UpdateRun", control_pb2.UpdateRunRequest(run=s.run.name, hyperparameters=value())), ("kind",)),
    Row("a list for a number", "INVALID_VALUE", lambda s: s.raw.control_call(
        "UpdateRun", control_pb2.UpdateRunRequest(run=s.run.name, hyperparameters=value(
            numbers=values_pb2.NumberList(numbers=[1.0])))), ("lr",)),
    Row("schedules too deep", "MALFORMED_REQUEST", lambda s: s.raw.create(
        s.run.name + "-2", spec({"w": (3,)}, schedules={"lr": deep(20)})), ("16",)),
    Row("an empty creation", "MALFORMED_REQUEST", lambda s: s.raw.control_call("CreateRun", iter([])), ("spec",)),
    Row("a creation without values", "MALFORMED_REQUEST", lambda s: s.raw.create(
        s.run.name + "-2", spec({"w": (3,)})), ("values",)),
    Row("a creation with too few", "INCOMPLETE_UPDATE", lambda s: s.raw.create(
        s.run.name + "-2", spec({"w": (3,)}), [(0, 0, bytes(8))]), ("4 bytes",)),
    Row("a creation with too many", "INVALID_RANGE", lambda s: s.raw.create(
        s.run.name + "-2", spec({"w": (3,)}), [(0, 0, bytes(16))]), ("16 bytes", "12")),
    Row("a creation of another group", "MALFORMED_REQUEST", lambda s: s.raw.create(
        s.run.name + "-2", spec({"w": (3,)}), [(4, 0, bytes(12))]), ("group 4",)),
    Row("a dtype that is not", "MALFORMED_REQUEST", lambda s: s.raw.create(s.run.name + "-2", run_pb2.Spec(
        parameters=[run_pb2.ParameterSpec(name="w", shape=[1], dtype=9)], optimizer="sgd")), ("9",)),  # type: ignore[arg-type]
    Row("a parameter twice", "INVALID_SPEC", lambda s: s.raw.create(s.run.name + "-2", run_pb2.Spec(
        parameters=[run_pb2.ParameterSpec(name="w", shape=[1], dtype=run_pb2.D_TYPE_FLOAT32)] * 2, optimizer="sgd")),
        ("'w'", "twice")),
    Row("an absurd shape", "LIMIT_EXCEEDED", lambda s: s.raw.create(s.run.name + "-2", spec({"w": (2**63, 2**63)})),
        ("'w'",)),
    Row("a large shape", "MEMORY_EXHAUSTED", lambda s: s.raw.create(s.run.name + "-2", spec({"w": (2**40,)})),
        ("--max-memory",)),
    Row("a state without a header", "MALFORMED_REQUEST", lambda s: s.raw.control_call("SetState", iter(
        [control_pb2.SetStateRequest(run=s.run.name)])), ("header",)),
    Row("an empty state", "INCOMPLETE_UPDATE", lambda s: set_state(s, []), ("missing",)),
    Row("a state with an unknown slot", "INVALID_RANGE", lambda s: set_state(s, [control_pb2.StateRange(
        kind=control_pb2.STATE_KIND_SLOT, name="nope", range=run_pb2.Range(data=bytes(4)))]), ("'nope'",)),
    Row("a state with NaN samples", "INVALID_VALUE", lambda s: set_state(s, [], samples=NAN), ("samples", "nan")),
    Row("too many steps in a preview", "LIMIT_EXCEEDED", lambda s: s.raw.control_call(
        "PreviewSchedule", control_pb2.PreviewScheduleRequest(schedule={"name": "constant"}, initial=1, steps=10**6)),
        ("100000",)),
    Row("another contract", "CONTRACT_MISMATCH", lambda s: s.raw.control_call(
        "GetServer", control_pb2.GetServerRequest(), metadata=[("stepwell-contract", "2.0")]), ("'2.0'", "1.0")),
    Row("another contract for an update", "CONTRACT_MISMATCH", lambda s: s.raw.data_call(
        "Push", iter(s.worker.push_requests(s.worker.header())), metadata=[("stepwell-contract", "2.0")]), ("'2.0'",)),
    Row("another contract for a pull", "CONTRACT_MISMATCH", lambda s: s.raw.data_call(
        "Pull", data_pb2.PullRequest(), metadata=[("stepwell-contract", "nonsense")]), ("'nonsense'",)),
]  # fmt: skip


def set_state(scene: Scene, ranges: list[control_pb2.StateRange], **header: Any) -> None:
    request = control_pb2.SetStateRequest(
        run=scene.run.name, header=control_pb2.StateHeader(version=1, **header), ranges=ranges
    )
    scene.raw.control_call("SetState", iter([request]))


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row.id)
def test_call(scene: Scene, row: Row) -> None:
    check_by_hand(scene, row)


@pytest.mark.parametrize("via", ["Push", "Step", "Work"])
@pytest.mark.parametrize("row", UPDATES, ids=lambda row: row.id)
def test_update(scene: Scene, row: Row, via: str) -> None:
    """As a call of its own, and as an exchange on a worker's stream, which goes on after it."""
    scene.worker.via = scene.again.via = WorkStream(scene.raw) if via == "Work" else via
    check_by_hand(scene, row)


def check_by_hand(scene: Scene, row: Row) -> None:
    before, description = scene.run.get_state(), scene.run.refresh()
    with pytest.raises(Refusal) as refused:
        row.deed(scene)
    check_untouched(scene, before, description)
    assert refused.value.reason == row.reason, refused.value.message
    check_message(refused.value.message, row.says)
    assert row.details.items() <= refused.value.details.items()


@pytest.mark.parametrize("via", ["Push", "Step", "Work"])
def test_answers_are_kept_for_a_while(scene: Scene, via: str) -> None:
    """The latest 16 are given again, to the letter; an older one is refused and never applied anew."""
    worker = scene.again
    worker.via = WorkStream(scene.raw) if via == "Work" else via
    headers = []
    for _ in range(20):
        headers.append(worker.header())
        worker.push(headers[-1])
    before = scene.run.get_state()
    assert before.version == 23
    for header in headers[-16:]:
        assert worker.push(header, worker.ranges(NAN)).committed_version == 3 + header.identity.sequence
    with pytest.raises(Refusal, match=r"sequence 4, expected 5 or newer.*;") as refused:
        worker.push(headers[3])
    assert refused.value.reason == "SEQUENCE_TOO_OLD"
    same_state(scene.run.get_state(), before)
    assert scene.run.refresh().duplicates_count == 16


@pytest.mark.parametrize("nonfinite", ["skip", "allow"])
def test_nonfinite_gradients_otherwise(client: stepwell.Client, name: str, nonfinite: Any) -> None:
    run = client.create_run(name, PARAMETERS, **SPEC, nonfinite=nonfinite)
    run.step(GRADIENTS)
    before = run.get_state()
    version = run.push(GRADIENTS | nan_in("a") | nan_in("c", INFINITY), samples=5.0)
    assert run.last_answer is not None
    after = run.get_state()
    if nonfinite == "skip":
        assert (version, run.last_answer.outcome) == (1, stepwell.Outcome.SKIPPED_NONFINITE)
        assert run.last_answer.committed_version == 1
        same_state(after, before)
        assert run.refresh().skipped_count == 1
        assert run.push(GRADIENTS) == 2
        with pytest.raises(stepwell.InvalidGradient):
            run.push(GRADIENTS | {"a": np.full((3, 2), NAN, np.float32)})
    else:
        assert (version, run.last_answer.outcome) == (2, stepwell.Outcome.COMMITTED)
        assert np.isnan(after.parameters["a"]).all()
        assert np.isnan(after.parameters["c"]).all()
        assert np.isfinite(after.parameters["b"]).all()
        assert run.refresh().skipped_count == 0


def test_a_skipped_update_is_answered_again_as_skipped(client: stepwell.Client, scene: Scene, name: str) -> None:
    client.create_run(name + "-skip", PARAMETERS, **SPEC, nonfinite="skip")
    worker = scene.raw.join(name + "-skip", "raw")
    header = worker.header()
    first = worker.push(header, worker.ranges(NAN))
    assert (first.outcome, first.committed_version) == (data_pb2.OUTCOME_SKIPPED_NONFINITE, 0)
    assert worker.push().committed_version == 1
    assert worker.push(header, worker.ranges(NAN)) == first


def test_every_gradient_is_required_where_the_run_counts_steps(client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, PARAMETERS, **(SPEC | {"flavor": "optax"}))
    run.step(GRADIENTS)
    before = run.get_state()
    with pytest.raises(stepwell.GradientRequired, match=r"\['b'\], expected .*'default'.*optax.*; send zeros"):
        run.step(GRADIENTS | {"b": None})
    same_state(run.get_state(), before)
    assert run.push(GRADIENTS) == 2


def test_a_message_over_the_limit(scene: Scene) -> None:
    """gRPC refuses it before it is read: no reason of ours, but the SDK's error is typed all the same."""
    before = scene.run.get_state()
    limit = scene.client.ping().message_bytes_max
    with pytest.raises(grpc.RpcError) as refused:
        scene.worker.push(ranges=[(0, 0, bytes(limit + 1))])
    failed: Any = refused.value
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    same_state(scene.run.get_state(), before)
    assert scene.worker.push().committed_version == 4


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_that_unpacks_beyond_the_limit(scene: Scene, compression: grpc.Compression) -> None:
    before = scene.run.get_state()
    requests = scene.worker.push_requests(scene.worker.header(), [(0, 0, bytes(64 << 20))])
    with pytest.raises(grpc.RpcError) as refused:
        scene.raw.data.Push(iter(requests), compression=compression, timeout=60)
    failed: Any = refused.value
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    same_state(scene.run.get_state(), before)


@pytest.fixture(scope="module")
def small(kernel_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(kernel_cache, "--max-memory", "8MiB", data_dir=tmp_path_factory.mktemp("data")) as server:
        yield server


def test_more_memory_than_there_is(small: Server, connect: Callable[..., stepwell.Client]) -> None:
    """Refused before it is taken: a run that does not fit, and one that fits with no room for an update."""
    client = connect(small)
    mebi = {"w": np.zeros(1 << 18, np.float32)}
    with pytest.raises(stepwell.MemoryExhausted, match=r"needs .*expected at most .*--max-memory"):
        client.create_run("large", {"w": np.zeros(9 << 18, np.float32)}, optimizer="sgd")
    with pytest.raises(stepwell.MemoryExhausted):
        client.create_run("slots", {"w": np.zeros(3 << 18, np.float32)}, optimizer="adam")
    client.create_run("tight", {"w": np.zeros(5 << 18, np.float32)}, optimizer="sgd")
    tight = client.get_run("tight")
    for _ in range(2):
        before = tight.get_state()
        with pytest.raises(stepwell.MemoryExhausted, match=r"update needs .*expected at most .*--max-memory"):
            tight.push({"w": np.zeros(5 << 18, np.float32)})
        same_state(tight.get_state(), before)
        with pytest.raises(stepwell.MemoryExhausted):
            tight.set_state(before)
        same_state(tight.get_state(), before)
    small_run = client.create_run("small", mebi, optimizer="sgd", hyperparameters={"lr": 1.0})
    assert [small_run.push(mebi) for _ in range(3)] == [1, 2, 3]
    client.delete_run("tight")
    again = client.create_run("again", {"w": np.zeros(3 << 18, np.float32)}, optimizer="sgd")
    assert again.push({"w": np.ones(3 << 18, np.float32)}) == 1
    for name in ("small", "again"):
        client.delete_run(name)


def test_an_update_that_just_does_not_fit(small: Server, connect: Callable[..., stepwell.Client]) -> None:
    """However little is missing, it is an error and no endless wait."""
    client = connect(small)
    for spare in (0, 32, 64, 96, 128, 160, 192):
        elements = ((8 << 20) // 2 - spare) // 4
        parameters = {"w": np.zeros(elements, np.float32)}
        run = client.create_run("just", parameters, optimizer="sgd")
        with suppress(stepwell.MemoryExhausted):
            assert run.push(parameters, timeout=10) == 1
        client.delete_run("just")


def test_an_update_beside_other_runs_that_does_not_fit(small: Server, connect: Callable[..., stepwell.Client]) -> None:
    """What other runs hold does not go away by waiting: an error, too."""
    client = connect(small)
    parameters = {"w": np.zeros(3 << 18, np.float32)}
    runs = [client.create_run(name, parameters, optimizer="sgd") for name in ("one", "two")]
    try:
        with pytest.raises(stepwell.MemoryExhausted):
            runs[0].push(parameters, timeout=10)
    finally:
        for name in ("one", "two"):
            client.delete_run(name)
