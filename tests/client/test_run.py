import numpy as np
import pytest

import stepwell
from stepwell.v1 import values_pb2

LR = 0.25


def gradients_like(parameters, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(value.shape).astype(value.dtype) for name, value in parameters.items()}


def descend(parameters, grads, lr=LR):
    return {
        name: value if grads[name] is None else value - (lr * grads[name]).astype(value.dtype)
        for name, value in parameters.items()
    }


def assert_equal(got, wanted):
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype
        assert got[name].shape == value.shape
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture
def run(connect, parameters):
    return connect().create_run("mnist", parameters, optimizer="sgd", hyperparameters={"lr": LR})


def test_step_returns_the_parameters_after_the_update(run, parameters):
    wanted = parameters
    for seed in range(3):
        grads = gradients_like(parameters, seed)
        wanted = descend(wanted, grads)
        assert_equal(run.step(grads), wanted)
        assert run.version == seed + 1


def test_arrays_belong_to_the_caller(run, parameters):
    grads = gradients_like(parameters, 0)
    first = run.step(grads)
    kept = {name: value.copy() for name, value in first.items()}
    run.step(grads)
    run.step(grads)
    assert_equal(first, kept)
    first["embedding"][:] = 0.0


def test_push_then_pull(run, parameters):
    grads = gradients_like(parameters, 1)
    assert run.push(grads) == 1
    assert run.push(grads) == 2
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.COMMITTED, 2)
    assert_equal(run.pull(), descend(descend(parameters, grads), grads))


def test_none_leaves_a_parameter_as_it_is(run, server, parameters):
    grads = gradients_like(parameters, 2) | {"embedding": None, "scale": None}
    assert_equal(run.step(grads), descend(parameters, grads))
    assert run.get_state().steps["embedding"] == 0


def test_all_none_is_an_update_without_ranges(run, parameters):
    assert_equal(run.step(dict.fromkeys(parameters)), parameters)
    assert run.version == 1


def test_what_numpy_takes_is_taken(run, parameters):
    grads = gradients_like(parameters, 3)
    odd = dict(grads)
    odd["embedding"] = np.asfortranarray(grads["embedding"])
    odd["größe.bias"] = grads["größe.bias"].astype(">f8")
    odd["scale"] = float(grads["scale"])
    odd["layers/0.weight"] = np.concatenate([grads["layers/0.weight"]] * 2, axis=1)[:, 3:]
    assert_equal(run.step(odd), descend(parameters, grads))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"more": np.zeros(3)}, "which the run does not train"),
        ({"scale": ...}, "no gradient for 'scale'"),
        ({"b": np.zeros(1)}, "dtype float64, expected float32"),
        ({"b": np.zeros(1, np.int32)}, "dtype int32, expected float32"),
        ({"b": [0.5]}, "dtype float64, expected float32"),
        ({"b": np.zeros((1, 1), np.float32)}, r"shape \(1, 1\), expected \(1,\)"),
    ],
)
def test_a_wrong_gradient_is_refused_before_anything_is_sent(run, server, parameters, change, text):
    grads = gradients_like(parameters, 4) | change
    grads = {name: value for name, value in grads.items() if value is not ...}
    with pytest.raises(stepwell.InvalidGradient, match=text):
        run.step(grads)
    assert not server.requests
    run.step(gradients_like(parameters, 4))
    assert server.requests[0].stage.header.identity.sequence == 1


def test_frozen_parameters_take_no_gradients_and_are_pulled(connect, parameters):
    groups = [{"name": "fixed", "parameters": ["b", "scale"], "frozen": True}]
    run = connect().create_run("frozen", parameters, optimizer="sgd", hyperparameters={"lr": LR}, groups=groups)
    grads = gradients_like(parameters, 5)
    with pytest.raises(stepwell.InvalidGradient, match="frozen"):
        run.step(grads)
    trained = {name: value for name, value in grads.items() if name not in ("b", "scale")}
    assert_equal(run.step(trained), descend(parameters, trained | {"b": None, "scale": None}))


def test_a_small_update_is_one_message(connect, server):
    run = connect().create_run("small", {"w": np.ones(4), "b": np.ones(2)}, optimizer="sgd")
    run.step({"w": np.ones(4), "b": None}, samples=8, hyperparameters={"lr": 0.5})
    (request,) = server.requests
    assert request.exchange == 1
    assert request.last
    assert request.HasField("commit")
    assert request.HasField("selection")
    header = request.stage.header
    assert list(header.without_gradient) == [1]
    assert header.samples == 8
    assert header.hyperparameters[0].group == ""
    assert dict(header.hyperparameters[0].values) == {"lr": 0.5}
    assert len(header.identity.fingerprint) == 16
    (piece,) = request.stage.ranges
    assert (piece.group, piece.packed_offset_bytes, piece.data) == (0, 0, np.ones(4).tobytes())


def test_identities_follow_without_a_gap(run, server, parameters):
    grads = gradients_like(parameters, 6)
    for _ in range(3):
        run.push(grads)
        run.pull(["b"])
    identities = [request.stage.header.identity for request in server.requests if request.stage.HasField("header")]
    assert [identity.sequence for identity in identities] == [1, 2, 3]
    assert [identity.acknowledged_version for identity in identities] == [0, 1, 2]
    assert len({identity.fingerprint for identity in identities}) == 3
    assert {identity.epoch for identity in identities} == {1}
    assert {identity.worker for identity in identities} == {run.worker}
    numbers = list(dict.fromkeys(request.exchange for request in server.requests))
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert server.streams == 1


def test_hyperparameters_of_an_update(run, server, parameters):
    grads = gradients_like(parameters, 7)
    assert_equal(run.step(grads, hyperparameters={"lr": 0.5}), descend(parameters, grads, lr=0.5))
    run.push(grads, hyperparameters={"lr": 1.0, "other": {"betas": [0.5, 0.75]}})
    carried = server.requests[-1].stage.header.hyperparameters or server.requests[-2].stage.header.hyperparameters
    assert [(change.group, dict(change.values)) for change in carried] == [
        ("", {"lr": 1.0}),
        ("other", {"beta1": 0.5, "beta2": 0.75}),
    ]
    with pytest.raises(stepwell.InvalidValue, match="expected a number"):
        run.push(grads, hyperparameters={"lr": None})


def test_pull_if_newer_than(run, parameters):
    assert run.pull(if_newer_than=0) is None
    run.push(gradients_like(parameters, 8))
    pulled = run.pull(if_newer_than=0)
    assert pulled is not None
    assert run.pull(if_newer_than=run.version) is None


def test_pull_some(run, server, parameters):
    names = ["b", "scale", "layers/0.weight", "b"]
    assert_equal(run.pull(names), {name: parameters[name] for name in ("b", "scale", "layers/0.weight")})
    assert list(server.requests[-1].selection.parameters) == [0, 1, 5]
    assert_equal(run.pull(["leer"]), {"leer": parameters["leer"]})
    with pytest.raises(stepwell.UnknownParameter, match="'w'"):
        run.pull(["w"])
    with pytest.raises(stepwell.InvalidValue, match="empty choice"):
        run.pull([])


def test_out_is_filled_in_place(run, parameters):
    out = {name: np.full_like(value, 9.0) for name, value in parameters.items()}
    arrays = dict(out)
    assert_equal(run.pull(out=out), parameters)
    grads = gradients_like(parameters, 9)
    stepped = run.step(grads, out={"b": out["b"], "embedding": out["embedding"]})
    assert list(stepped) == ["b", "embedding"]
    assert all(out[name] is arrays[name] for name in out)
    np.testing.assert_array_equal(out["embedding"], descend(parameters, grads)["embedding"])


@pytest.mark.parametrize(
    "out",
    [
        {"b": np.zeros(1)},
        {"b": np.zeros(2, np.float32)},
        {"embedding": np.asfortranarray(np.zeros((700, 501), np.float32))},
        {"b": [0.0]},
        {"b": np.frombuffer(b"1234", np.float32)},
    ],
)
def test_out_that_does_not_fit(run, out):
    with pytest.raises(stepwell.InvalidValue, match="C-contiguous"):
        run.pull(out=out)


def test_out_and_names_must_agree(run):
    with pytest.raises(stepwell.InvalidValue, match="exactly these"):
        run.pull(["scale"], out={"b": np.zeros(1, np.float32)})


def test_skipped_updates(connect, parameters):
    run = connect().create_run("skip", parameters, optimizer="sgd", nonfinite="skip")
    grads = gradients_like(parameters, 10) | {"b": np.array([np.nan], np.float32)}
    assert run.push(grads) == 0
    assert run.last_answer == stepwell.Answer(stepwell.Outcome.SKIPPED_NONFINITE, 0)
    assert_equal(run.step(gradients_like(parameters, 10) | {"b": None}), run.pull())
    assert run.version == 1


def test_a_refused_update_leaves_no_gap(run, server, parameters):
    grads = gradients_like(parameters, 11)
    run.push(grads)
    with pytest.raises(stepwell.NonfiniteGradient):
        run.push(grads | {"b": np.array([np.inf], np.float32)})
    assert run.push(grads) == 2
    sequences = [r.stage.header.identity.sequence for r in server.requests if r.stage.HasField("header")]
    assert sequences == [1, 2, 2]
    assert len(server.joins) == 1
    assert server.streams == 1


def test_create_run_joins_one_that_exists(connect, parameters, server):
    server.creation_words = 3
    with connect() as first, first.create_run("mnist", parameters, optimizer="sgd") as run:
        assert run.created
        grads = gradients_like(parameters, 12)
        present = run.step(grads)
    others = {name: np.zeros_like(value) for name, value in parameters.items()}
    second = connect().create_run("mnist", others, optimizer="sgd")
    assert not second.created
    assert second.version == 1
    assert_equal(second.pull(), present)
    with pytest.raises(stepwell.RunDiffers):
        connect().create_run("mnist", others, optimizer="adam")


def test_the_spec_on_the_wire(connect, server):
    connect().create_run(
        "spec",
        {"w": np.ones((2, 3), np.float32), "b": np.ones(2)},
        optimizer="sgd",
        flavor="torch",
        hyperparameters={"lr": 1, "betas": [0.5, 0.25], "nesterov": True, "mode": "x", "none": None},
        schedules={"lr": {"name": "step", "gamma": 0.5, "clock": "epochs"}},
        groups=[{"name": "g", "parameters": ["*.bias"], "hyperparameters": {"lr": 0.5}, "optimizer": "adam"}],
        nonfinite="skip",
        samples_per_epoch=100,
    )
    spec = server.creations[0].spec
    assert [(p.name, list(p.shape), p.dtype) for p in spec.parameters] == [("w", [2, 3], 1), ("b", [2], 2)]
    assert spec.hyperparameters["beta1"].number == 0.5
    assert spec.hyperparameters["beta2"].number == 0.25
    assert "betas" not in spec.hyperparameters
    assert spec.hyperparameters["nesterov"].flag
    assert spec.hyperparameters["none"].WhichOneof("kind") == "none"
    assert spec.schedules["lr"].clock == values_pb2.CLOCK_EPOCHS
    assert spec.groups[0].hyperparameters["lr"].number == 0.5
    assert spec.samples_per_epoch == 100


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"parameters": {"w": np.ones(3, np.int64)}}, stepwell.InvalidSpec),
        ({"parameters": {"\ud800": np.ones(3)}}, stepwell.InvalidName),
        ({"hyperparameters": {"lr": {1, 2}}}, stepwell.InvalidValue),
        ({"hyperparameters": {"betas": 0.9}}, stepwell.InvalidValue),
        ({"hyperparameters": {"betas": [0.9], "beta1": 0.9}}, stepwell.InvalidValue),
        ({"schedules": {"lr": "cosine"}}, stepwell.InvalidValue),
        ({"nonfinite": "ignore"}, stepwell.InvalidValue),
        ({"groups": [{"parameters": ["*"]}]}, stepwell.InvalidSpec),
        ({"groups": [{"name": "g", "parameters": "*"}]}, stepwell.InvalidSpec),
        ({"groups": [{"name": "g", "lr": 0.1}]}, stepwell.InvalidSpec),
        ({"optimizer": "sdg"}, stepwell.UnknownOptimizer),
    ],
)
def test_a_spec_that_cannot_be_sent(connect, arguments, error):
    with pytest.raises(error):
        connect().create_run("bad", **({"parameters": {"w": np.ones(3)}, "optimizer": "sgd"} | arguments))


def test_many_small_parameters(connect, server):
    rng = np.random.default_rng(0)
    parameters = {f"block.{i}/w": rng.standard_normal(i % 5).astype(np.float32) for i in range(10_000)}
    parameters |= {f"{i}." + "n" * 1000: np.ones((), np.float32) for i in range(1100)}
    run = connect().create_run("many", parameters, optimizer="sgd", hyperparameters={"lr": LR})
    assert len([c for c in server.creations if c.spec.parameters]) > 1
    grads = gradients_like(parameters, 13)
    assert_equal(run.step(grads), descend(parameters, grads))
    assert len(server.requests) == 1


def test_a_reader_never_joins(connect, run, server, parameters):
    reader = connect().get_run("mnist")
    assert not reader.created
    assert_equal(reader.pull(), parameters)
    assert reader.refresh().version == 0
    reader.get_state()
    assert len(server.joins) == 1
    reader.push(gradients_like(parameters, 14))
    assert len(server.joins) == 2
    assert reader.worker != run.worker


def test_an_explicit_worker_name(connect, server, parameters):
    run = connect(worker="trainer-7").create_run("named", parameters, optimizer="sgd")
    assert run.worker == server.joins[0].worker == "trainer-7"
    for name in ("", "-x", "a/b", "x" * 129):
        with pytest.raises(stepwell.InvalidName):
            connect(worker=name)


def test_get_and_set_state(run, connect, server, parameters):
    grads = gradients_like(parameters, 15)
    run.push(grads, samples=32)
    state = run.get_state()
    assert_equal(state.parameters, descend(parameters, grads))
    assert state.version == 1
    assert state.samples == 32
    assert state.steps == dict.fromkeys(parameters, 1)
    assert_equal(state.slots["embedding"], {"momentum": np.zeros((700, 501), np.float32)})
    assert state.scalars["größe.bias"] == {"mu": 1.0}
    assert_equal(run.slots()["b"], {"momentum": np.zeros(1, np.float32)})
    run.push(grads)
    other = connect().get_run("mnist")
    other.push(grads)
    described = run.set_state(state)
    assert described.version == run.version == 1
    assert described.generation == 1
    assert_equal(run.pull(), state.parameters)
    assert run.push(grads) == 2, "it has joined anew by itself"
    with pytest.raises(stepwell.RunRewound):
        other.push(grads)
    with pytest.raises(stepwell.VersionMismatch):
        run.set_state(state, expected_version=77)
    assert run.push(grads) == 3


def test_a_state_that_does_not_fit(run, parameters):
    state = run.get_state()
    short = {name: value for name, value in state.parameters.items() if name != "b"}
    wrong = dict(state.parameters) | {"b": np.zeros(2, np.float32)}
    for broken in (short, wrong):
        with pytest.raises(stepwell.InvalidValue, match="'b'"):
            run.set_state(stepwell.State(broken, state.slots, state.scalars, state.steps, 0, 0.0))
    slots = {**state.slots, "b": {}}
    with pytest.raises(stepwell.InvalidValue, match="different slots"):
        run.set_state(stepwell.State(state.parameters, slots, state.scalars, state.steps, 0, 0.0))


def test_checkpoints(run, parameters):
    grads = gradients_like(parameters, 16)
    run.push(grads)
    assert run.save_checkpoint() == stepwell.Checkpoint("version-1", 1, 0.0, 0)
    run.push(grads)
    run.save_checkpoint("mine")
    run.save_checkpoint("third")
    assert [checkpoint.name for checkpoint in run.list_checkpoints()] == ["version-1", "mine", "third"]
    assert run.restore_checkpoint("version-1").version == 1
    assert run.version == 1
    assert_equal(run.step(grads), descend(descend(parameters, grads), grads))
    with pytest.raises(stepwell.UnknownCheckpoint):
        run.restore_checkpoint("none")


def test_change(run, server):
    etag = run.refresh().etag
    described = run.change(hyperparameters={"lr": 0.5}, schedules={"lr": {"name": "step", "gamma": 0.5}}, etag=etag)
    assert described.groups[0].hyperparameters == {"lr": 0.5}
    assert server.runs["mnist"].spec.schedules["lr"].name == "step"
    run.change(schedules={"lr": None})
    assert not server.runs["mnist"].spec.schedules
    with pytest.raises(stepwell.EtagMismatch):
        run.change(hyperparameters={"lr": 0.5}, etag=etag)


def test_the_catalogue_and_the_list(connect, server):
    client = connect()
    for name in ("a", "b", "c", "d", "e"):
        client.create_run(name, {"w": np.ones(3)}, optimizer="sgd").close()
    assert [run.name for run in client.list_runs()] == ["a", "b", "c", "d", "e"]
    client.delete_run("c")
    assert len(client.list_runs()) == 4
    with pytest.raises(stepwell.UnknownRun) as raised:
        client.get_run("c")
    assert raised.value.reason == "UNKNOWN_RUN"
    assert raised.value.details == {"run": "c"}
    (optimizer,) = client.list_optimizers()
    (lr,) = optimizer.flavors[0].arguments
    assert (lr.name, lr.kind, lr.default, lr.required, lr.minimum, lr.maximum) == (
        "lr",
        "number",
        1e-3,
        False,
        0.0,
        None,
    )
    (schedule,) = client.list_schedules()
    assert schedule.arguments[0].required
    preview = client.preview_schedule({"name": "step", "gamma": 0.5}, initial=2.0, steps=3)
    assert preview.dtype == np.float64
    np.testing.assert_array_equal(preview, [2.0, 1.0, 0.5])
    with pytest.raises(stepwell.InvalidValue):
        client.preview_schedule({"name": "step"}, initial=2.0, steps=-1)
    assert client.ping().version == "fake"
    assert {metadata["stepwell-contract"] for metadata in server.metadata} == {"1.0"}


def test_close(connect, server, parameters):
    client = connect()
    with client.create_run("closing", parameters, optimizer="sgd") as run:
        run.pull()
    run.close()
    with pytest.raises(RuntimeError, match="closed run"):
        run.pull()
    with client:
        client.ping()
    client.close()
    with pytest.raises(RuntimeError, match="closed client"):
        client.ping()


def test_addresses(connect, server, monkeypatch):
    with pytest.raises(stepwell.InvalidValue, match="add the port"):
        connect("localhost")
    monkeypatch.setenv("STEPWELL_ADDRESS", server.address)
    assert stepwell.connect().ping().version == "fake"
    monkeypatch.delenv("STEPWELL_ADDRESS")
    with pytest.raises(stepwell.InvalidValue, match="STEPWELL_ADDRESS"):
        stepwell.connect()
    with pytest.raises(stepwell.InvalidValue):
        connect(on_rewind="ignore")
    with pytest.raises(stepwell.InvalidValue):
        connect(silence_seconds=0)


def test_progress_of_long_transfers(connect, server):
    reports = []
    run = connect(progress=lambda done, total: reports.append((done, total))).create_run(
        "long", {"w": np.zeros(5 << 20, np.float32)}, optimizer="sgd"
    )
    assert reports[-1] == (20 << 20, 20 << 20)
    reports.clear()
    run.step({"w": np.zeros(5 << 20, np.float32)})
    assert reports[0] == (1 << 20, 40 << 20)
    assert reports[-1] == (40 << 20, 40 << 20)
    assert reports == sorted(reports)
    reports.clear()
    connect(progress=lambda done, total: reports.append(done)).create_run("short", {"w": np.zeros(5)}, optimizer="sgd")
    assert not reports
