"""Making, describing, changing, storing and deleting runs."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import stepwell
from stepwell.v1 import control_pb2
from tests.end_to_end.pushing import gradients, parameters
from tests.end_to_end.raw import Raw, spec, stage
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits, same_state

Connect = Callable[..., stepwell.Client]

W = {"w": np.zeros(3)}
ONES = {"w": np.ones(3)}


def values(run: stepwell.Run, name: str = "w") -> np.ndarray[Any, Any]:
    got = run.pull([name])
    assert got is not None
    return got[name]


# Finding and deleting.


def test_listing_in_pages(server: Server, client: stepwell.Client, name: str) -> None:
    names = [f"{name}-{number:03}" for number in range(7)]
    for made in reversed(names):
        client.create_run(made, W, optimizer="sgd")
    assert [run.name for run in client.list_runs() if run.name.startswith(name)] == names
    with Raw(server.address) as raw:
        seen, token, pages = [], "", 0
        while True:
            page = raw.control_call("ListRuns", control_pb2.ListRunsRequest(page_size=2, page_token=token))
            assert len(page.runs) <= 2
            seen += [run.name for run in page.runs]
            pages += 1
            # What is deleted and made between pages neither hides nor repeats others.
            if names[3] in [run.name for run in page.runs]:
                client.delete_run(names[3])
                client.delete_run(names[5])
            token = page.next_page_token
            if not token:
                break
        assert seen == sorted(set(seen))
        assert [found for found in seen if found.startswith(name)] == [*names[:5], names[6]]
        assert pages >= 3
        assert not raw.control_call("ListRuns", control_pb2.ListRunsRequest(page_token="~")).runs
        everything = raw.control_call("ListRuns", control_pb2.ListRunsRequest(page_size=2**32 - 1)).runs
        assert set(names[:3]) <= {run.name for run in everything}


def test_a_deleted_run(server: Server, client: stepwell.Client, connect: Connect, name: str) -> None:
    run = client.create_run(name, W, optimizer="sgd", hyperparameters={"lr": 1.0})
    run.push(ONES)
    other = connect(server).get_run(name)
    other.pull()
    client.delete_run(name)
    for call in (run.pull, run.refresh, run.get_state, lambda: run.push(ONES), lambda: other.push(ONES)):
        with pytest.raises(stepwell.UnknownRun):
            call()
    with pytest.raises(stepwell.UnknownRun):
        client.delete_run(name)
    # A new one of the same name is another: who knew the old one is told, and changes nothing.
    again = client.create_run(name, {"w": np.full(3, 5.0)}, optimizer="sgd", hyperparameters={"lr": 1.0})
    assert again.created
    for call in (run.pull, run.refresh, lambda: run.push(ONES), lambda: other.push(ONES), other.pull):
        with pytest.raises(stepwell.RunReplaced):
            call()
    np.testing.assert_array_equal(values(again), 5.0)
    assert again.push(ONES) == 1


def test_a_run_deleted_in_the_middle_of_an_update(client: stepwell.Client, server: Server, name: str) -> None:
    with Raw(server.address) as raw:
        raw.create(name, spec({"w": (3,)}), [(0, 0, bytes(12))])
        worker = raw.join(name, "worker")
        requests = worker.push_requests(worker.header())

        def deleted_half_way() -> Iterator[Any]:
            yield requests[0]
            # Staged is what is answered by the worker's own next call: this one comes after it on the connection.
            client.delete_run(name)
            yield from requests[1:]

        with pytest.raises(Exception, match=r"deleted|not known"):
            raw.data_call("Push", deleted_half_way())
    with pytest.raises(stepwell.UnknownRun):
        client.get_run(name)


# Creating together.


def create(channel: "Connection[Any, Any]", address: str, name: str, number: int) -> None:
    with stepwell.connect(address) as client:
        channel.recv()
        run = client.create_run(name, {"w": np.full(100_000, float(number))}, optimizer="sgd", flavor="torch")
        params = run.pull()
        assert params is not None
        channel.send((run.created, params["w"][0], params["w"][-1]))


def test_a_race_to_create(server: Server, name: str) -> None:
    """One process creates, the others join and get its values."""
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(4)]
    processes = [
        spawn.Process(target=create, args=(far, server.address, name, number)) for number, (_, far) in enumerate(pipes)
    ]
    for process, (_, far) in zip(processes, pipes, strict=True):
        process.start()
        far.close()
    try:
        for near, _ in pipes:
            near.send("go")
        told = [near.recv() for near, _ in pipes]
    finally:
        for process, (near, _) in zip(processes, pipes, strict=True):
            process.join(60)
            process.kill()
            process.join()
            near.close()
    (creator,) = [number for number, (created, _, _) in enumerate(told) if created]
    assert {(first, last) for _, first, last in told} == {(creator, creator)}


def test_a_creator_that_dies_half_way(server: Server, connect: Connect, name: str) -> None:
    """Those who wait are told to, and when it is gone the next one is asked for its values."""
    description = spec({"w": (1000,)})
    ended = threading.Event()
    with Raw(server.address) as raw:

        def half() -> Iterator[control_pb2.CreateRunRequest]:
            yield control_pb2.CreateRunRequest(run=name, spec=description, spec_complete=True)
            yield control_pb2.CreateRunRequest(values=stage([(0, 0, bytes(400))]).ranges)
            ended.wait(30)

        first = raw.control.CreateRun(half(), timeout=30)
        assert next(first).creation == control_pb2.CREATION_SEND_VALUES

        with Raw(server.address) as other:
            requests = [control_pb2.CreateRunRequest(run=name, spec=description, spec_complete=True)]
            second = other.control.CreateRun(iter(requests), timeout=30)
            assert next(second).creation == control_pb2.CREATION_WAIT
            with pytest.raises(stepwell.UnknownRun):
                connect(server).get_run(name)
            first.cancel()
            ended.set()
            for response in second:
                if response.creation != control_pb2.CREATION_WAIT:
                    break
            assert response.creation == control_pb2.CREATION_SEND_VALUES
            second.cancel()
    run = connect(server).create_run(name, {"w": np.full(1000, 3, np.float32)}, optimizer="sgd")
    assert run.created
    np.testing.assert_array_equal(values(run), 3.0)


def test_joining_does_not_depend_on_order(client: stepwell.Client, connect: Connect, server: Server, name: str) -> None:
    """Specs are compared by name, and a default is the same as its value."""
    arrays: Arrays = {"a": np.zeros(2, np.float32), "b": np.ones((2, 2)), "c": np.zeros(())}
    groups: list[dict[str, Any]] = [
        {"name": "x", "parameters": ["a"], "hyperparameters": {"lr": 0.5}},
        {"name": "y", "parameters": ["b"]},
    ]
    run = client.create_run(name, arrays, optimizer="adam", flavor="torch", groups=groups)
    assert run.created
    run.push({key: np.ones_like(value) for key, value in arrays.items()})
    again = connect(server).create_run(
        name,
        {key: arrays[key] + 7 for key in ("c", "a", "b")},
        optimizer="adam",
        hyperparameters={"eps": 1e-8, "betas": [0.9, 0.999]},
        groups=groups[::-1],
    )
    assert not again.created
    assert again.version == 1
    got, expected = again.pull(), run.pull()
    assert got is not None
    assert expected is not None
    same_bits(got, expected)
    assert again.push({key: np.ones_like(value) for key, value in arrays.items()}) == 2


# Changing.


def test_hyperparameters_of_a_live_run(client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, W, optimizer="sgd", hyperparameters={"lr": 1.0})
    assert values(run)[0] == 0
    run.push(ONES)
    described = run.change(hyperparameters={"lr": 10.0})
    assert described.groups[0].hyperparameters["lr"] == 10.0
    assert described.version == 1
    run.push(ONES)
    np.testing.assert_array_equal(values(run), -11.0)
    run.push(ONES, hyperparameters={"lr": 100.0})  # with this commit, and for good
    run.push(ONES)
    np.testing.assert_array_equal(values(run), -211.0)
    assert run.refresh().groups[0].hyperparameters["lr"] == 100.0


def test_compare_and_set(client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, W, optimizer="sgd", hyperparameters={"lr": 1.0})
    first = run.refresh()
    run.push(ONES)
    assert run.refresh().etag == first.etag  # training is no change
    second = run.change(hyperparameters={"lr": 2.0}, etag=first.etag)
    assert second.etag != first.etag
    with pytest.raises(stepwell.EtagMismatch):
        run.change(hyperparameters={"lr": 3.0}, etag=first.etag)
    assert run.refresh().groups[0].hyperparameters["lr"] == 2.0
    with ThreadPoolExecutor(8) as threads:
        tries = [threads.submit(run.change, hyperparameters={"lr": 5.0 + n}, etag=second.etag) for n in range(8)]
        failures = [type(attempt.exception()) for attempt in tries if attempt.exception() is not None]
    assert failures == [stepwell.EtagMismatch] * 7


def test_schedules_of_a_live_run(client: stepwell.Client, name: str) -> None:
    """A new schedule counts from 0 at the change, or goes on with the run's clock; a change of the number moves it."""
    run = client.create_run(name, W, optimizer="sgd", hyperparameters={"lr": 1.0})

    def lrs(count: int) -> list[float]:
        found = []
        for _ in range(count):
            before = values(run)[0]
            run.push(ONES)
            found.append(before - values(run)[0])
        return found

    halving = {"name": "step", "step_size": 2, "gamma": 0.5}
    assert lrs(3) == [1.0, 1.0, 1.0]
    run.change(schedules={"lr": halving})
    assert lrs(5) == [1.0, 1.0, 0.5, 0.5, 0.25]
    run.change(hyperparameters={"lr": 8.0})  # the value that it starts from; its clock runs on
    assert lrs(2) == [2.0, 1.0]
    run.change(schedules={"lr": halving}, keep_clock=True)
    assert lrs(1) == [1.0]
    run.change(schedules={"lr": None})
    assert lrs(2) == [8.0, 8.0]
    run.change(schedules={"lr": halving})
    assert lrs(3) == [8.0, 8.0, 4.0]
    assert run.refresh().groups[0].schedules["lr"]["name"] == "step"


def test_clocks(client: stepwell.Client, name: str) -> None:
    halving = {"name": "step", "step_size": 1, "gamma": 0.5, "clock": "epochs"}
    run = client.create_run(
        name, W, optimizer="sgd", hyperparameters={"lr": 16.0}, schedules={"lr": halving}, samples_per_epoch=10.0
    )
    applied = []
    for samples in (4, 4, 4, 18, 1, 1):
        applied.append(run.refresh().groups[0].hyperparameters["lr"])
        run.push(ONES, samples=samples)
    assert applied == [16.0, 16.0, 16.0, 8.0, 2.0, 2.0]
    assert run.refresh().samples == 32.0


def test_changes_while_training(server: Server, client: stepwell.Client, connect: Connect, name: str) -> None:
    """Each update is made with one set of numbers, the old or the new."""
    run = client.create_run(name, {"w": np.zeros(100_000), "v": np.zeros(5)}, optimizer="sgd")
    run.change(hyperparameters={"lr": 1.0})
    ones = {"w": np.ones(100_000), "v": np.ones(5)}

    def push() -> None:
        worker = connect(server).get_run(name)
        for _ in range(100):
            worker.push(ones)

    with ThreadPoolExecutor(1) as threads:
        pushing = threads.submit(push)
        changes = 0
        while not pushing.done():
            run.change(hyperparameters={"lr": float(1 + changes % 2)})
            changes += 1
        pushing.result()
    assert changes > 3
    got = run.pull()
    assert got is not None
    assert len(np.unique(np.concatenate([got["w"], got["v"]]))) == 1
    assert -200 <= got["v"][0] <= -100


# Groups.


def test_groups(client: stepwell.Client, name: str) -> None:
    """Each group has its own optimizer, numbers and schedules; frozen ones stay as they are."""
    arrays: Arrays = {
        "body.weight": np.zeros(3),
        "body.bias": np.zeros(2),
        "head.weight": np.zeros(4, np.float32),
        "embedding": np.full(2, 9.0),
    }
    run = client.create_run(
        name,
        arrays,
        optimizer="sgd",
        hyperparameters={"lr": 1.0},
        groups=[
            {"name": "frozen", "parameters": ["embed*"], "frozen": True},
            {"name": "bias", "parameters": ["*.bias"], "hyperparameters": {"lr": 2.0}},
            {"name": "head", "parameters": ["head.*", "*.bias"], "optimizer": "adagrad", "flavor": "torch",
             "hyperparameters": {"lr": 3.0, "eps": 0.0}},
        ],
    )  # fmt: skip
    trained = {key: np.full_like(array, 2) for key, array in arrays.items() if key != "embedding"}
    got = run.step(trained)
    np.testing.assert_array_equal(got["body.weight"], -2.0)
    np.testing.assert_array_equal(got["body.bias"], -4.0)
    np.testing.assert_array_equal(got["head.weight"], -3.0)
    np.testing.assert_array_equal(got["embedding"], 9.0)
    run.change(hyperparameters={"lr": 5.0}, group="bias")
    run.push(trained, hyperparameters={"default": {"lr": 10.0}})
    np.testing.assert_array_equal(values(run, "body.weight"), -22.0)
    np.testing.assert_array_equal(values(run, "body.bias"), -14.0)
    assert set(run.slots()["head.weight"]) == {"sum"}
    assert run.slots()["embedding"] == {}
    described = {group.name: group for group in run.refresh().groups}
    assert described["frozen"].optimizer == ""
    assert described["head"].optimizer == "adagrad"


def test_no_gradient(client: stepwell.Client, name: str) -> None:
    """Under the torch flavor a parameter without a gradient stays as it is, with its slots and its step."""
    seed = 1
    run = client.create_run(name, parameters(seed), optimizer="adam", flavor="torch")
    twin = client.create_run(name + "-twin", parameters(seed), optimizer="adam", flavor="torch")
    run.push(gradients(seed, 0, 1))
    twin.push(gradients(seed, 0, 1))
    absent = {"scale", "größe"}
    before = run.get_state()
    run.push({key: None if key in absent else value for key, value in gradients(seed, 0, 2).items()})
    twin.push(gradients(seed, 0, 2))
    after, full = run.get_state(), twin.get_state()
    for key in after.parameters:
        expected = before if key in absent else full
        same_bits({key: after.parameters[key]}, {key: expected.parameters[key]})
        same_bits(after.slots[key], expected.slots[key])
        assert after.steps[key] == (1 if key in absent else 2)
    assert run.push(dict.fromkeys(after.parameters)) == 3  # nobody has one: a commit all the same
    state = run.get_state()
    same_bits(state.parameters, after.parameters)
    assert state.steps == after.steps


# Whole states.


def test_a_state_goes_from_run_to_run(client: stepwell.Client, server: Server, connect: Connect, name: str) -> None:
    seed = 2
    first = client.create_run(name, parameters(seed), optimizer="nadam", flavor="torch")
    for sequence in range(1, 4):
        first.push(gradients(seed, 0, sequence), samples=2.0)
    first.push({**gradients(seed, 0, 4), "scale": None}, samples=2.0)
    state = first.get_state()
    assert state.scalars["scale"] != state.scalars["größe"]

    second = client.create_run(name + "-2", parameters(seed + 1), optimizer="nadam", flavor="torch")
    other = connect(server).get_run(name + "-2")
    other.push(gradients(seed, 0, 1))
    described = second.set_state(state, expected_version=1)
    assert (described.version, described.generation, described.samples) == (4, 1, 8.0)
    same_state(second.get_state(), state)
    with pytest.raises(stepwell.RunRewound) as rewound:
        other.push(gradients(seed, 0, 1))
    assert (rewound.value.acknowledged_version, rewound.value.version) == (1, 4)
    for run in (first, second):
        run.push(gradients(seed, 0, 5))
    same_state(second.get_state(), first.get_state())
    assert other.push(gradients(seed, 0, 6)) == 6


def test_a_state_that_does_not_fit(client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(3), "v": np.zeros(2)}, optimizer="adam")
    for number, other_spec in enumerate(
        (
            {"parameters": {"w": np.zeros(3)}, "optimizer": "adam"},
            {"parameters": {"w": np.zeros(4), "v": np.zeros(2)}, "optimizer": "adam"},
            {"parameters": {"w": np.zeros(3, np.float32), "v": np.zeros(2)}, "optimizer": "adam"},
            {"parameters": {"w": np.zeros(3), "v": np.zeros(2)}, "optimizer": "sgd"},
            {"parameters": {"w": np.zeros(3), "v": np.zeros(2)}, "optimizer": "adagrad"},
        )
    ):
        other = client.create_run(f"{name}-{number}", **other_spec)  # type: ignore[arg-type]
        before = run.get_state()
        with pytest.raises(stepwell.StepwellError) as refused:
            run.set_state(other.get_state())
        assert type(refused.value) in (stepwell.InvalidValue, stepwell.InvalidRange, stepwell.IncompleteUpdate)
        same_state(run.get_state(), before)
        assert run.refresh().generation == 0
    assert run.push({"w": np.ones(3), "v": np.ones(2)}) == 1


# Checkpoints.


@pytest.fixture(scope="module")
def stored(kernel_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(kernel_cache, data_dir=tmp_path_factory.mktemp("data")) as server:
        yield server


def test_checkpoints(stored: Server, connect: Connect, name: str) -> None:
    seed = 3
    client = connect(stored)
    run = client.create_run(name, parameters(seed), optimizer="adam")
    other = connect(stored).get_run(name)
    saved = {}
    for sequence, checkpoint in enumerate(("b", None, "a"), 1):
        run.push(gradients(seed, 0, sequence))
        info = run.save_checkpoint(checkpoint)
        saved[info.name] = run.get_state()
        assert info.version == sequence
        assert info.size_bytes > 0
    assert [info.name for info in run.list_checkpoints()] == ["b", "version-2", "a"]
    with Raw(stored.address) as raw:
        token, seen = "", []
        for _ in range(3):
            page = raw.control_call(
                "ListCheckpoints", control_pb2.ListCheckpointsRequest(run=name, page_size=1, page_token=token)
            )
            seen += [info.name for info in page.checkpoints]
            token = page.next_page_token
        assert (seen, token) == (["b", "version-2", "a"], "")
    with pytest.raises(stepwell.CheckpointExists, match="'b'"):
        run.save_checkpoint("b")
    with pytest.raises(stepwell.UnknownCheckpoint, match="'c'"):
        run.restore_checkpoint("c")
    for bad in ("../../etc", ".x", "a/b"):
        with pytest.raises(stepwell.InvalidName, match="choose"):
            run.save_checkpoint(bad)
        with pytest.raises(stepwell.InvalidName, match="choose"):
            run.restore_checkpoint(bad)

    other.push(gradients(seed, 0, 9))
    run.change(hyperparameters={"lr": 0.5})
    described = run.restore_checkpoint("version-2")
    assert (described.version, described.generation) == (2, 1)
    same_state(run.get_state(), saved["version-2"])
    with pytest.raises(stepwell.RunRewound) as rewound:
        other.push(gradients(seed, 0, 10))
    assert (rewound.value.acknowledged_version, rewound.value.version) == (4, 2)
    assert run.push(gradients(seed, 0, 3)) == 3  # who asked for it joins anew by itself
    assert other.push(gradients(seed, 0, 4)) == 4
    assert run.restore_checkpoint("a").generation == 2
    same_state(run.get_state(), saved["a"])


def test_checkpoints_outlive_the_server_and_not_the_run(stored: Server, connect: Connect, name: str) -> None:
    seed = 4
    client = connect(stored)
    run = client.create_run(name, parameters(seed), optimizer="adam")
    run.push(gradients(seed, 0, 1))
    run.save_checkpoint("kept")
    state = run.get_state()
    run.push(gradients(seed, 0, 2))
    stored.stop()
    stored.start()
    run.restore_checkpoint("kept")
    same_state(run.get_state(), state)
    client.delete_run(name)
    again = client.create_run(name, parameters(seed), optimizer="adam")
    assert again.list_checkpoints() == []
    assert again.refresh().generation == 0


def test_a_checkpoint_does_not_stop_training(stored: Server, connect: Connect, name: str) -> None:
    """What is stored is one version, also while updates commit."""
    client = connect(stored)
    arrays = {"w": np.zeros(300_000), "v": np.zeros(300_000, np.float32)}
    ones = {key: -np.ones_like(array) for key, array in arrays.items()}
    run = client.create_run(name, arrays, optimizer="sgd", hyperparameters={"lr": 1.0})

    def push() -> int:
        worker = connect(stored).get_run(name)
        for _ in range(60):
            worker.push(ones)
        return worker.version

    with ThreadPoolExecutor(1) as threads:
        pushing = threads.submit(push)
        saved = [run.save_checkpoint(f"c{number}") for number in range(3)]
        assert pushing.result() == 60
    for info in saved:
        run.restore_checkpoint(info.name)
        got = run.pull()
        assert got is not None
        for array in got.values():
            assert (array == info.version).all()


# Describing.


def test_the_catalogue(client: stepwell.Client) -> None:
    optimizers = {optimizer.name: optimizer for optimizer in client.list_optimizers()}
    assert {"sgd", "nag", "adam", "adamw", "nadam", "adagrad", "rmsprop", "adadelta", "adamax"} <= set(optimizers)
    adam = optimizers["adam"]
    assert adam.summary
    assert adam.reference
    assert adam.matches == "torch.optim.Adam"
    flavors = {flavor.name: flavor for flavor in adam.flavors}
    arguments = {argument.name: argument for argument in flavors["torch"].arguments}
    assert (arguments["lr"].default, arguments["lr"].minimum, arguments["beta1"].maximum_open) == (1e-3, 0.0, True)
    assert flavors["torch"].slots == ("exp_avg", "exp_avg_sq")
    assert flavors["torch"].step_per_parameter
    assert not flavors["optax"].step_per_parameter
    schedules = {schedule.name for schedule in client.list_schedules()}
    assert {"constant", "step", "multistep", "exponential", "triangular", "cyclic", "cosine", "linear"} <= schedules
    values = client.preview_schedule({"name": "step", "step_size": 2, "gamma": 0.5}, initial=1.0, steps=5)
    np.testing.assert_array_equal(values, [1.0, 1.0, 0.5, 0.5, 0.25])


@pytest.mark.long
def test_every_optimizer_of_the_catalogue_runs(client: stepwell.Client, name: str) -> None:
    """With what list_optimizers says, and no more, a run can be made: a form could."""
    for optimizer in client.list_optimizers():
        for flavor in optimizer.flavors:
            given = {argument.name: 0.1 for argument in flavor.arguments if argument.required}
            made = f"{name}-{optimizer.name}-{flavor.name}"
            start = {"w": np.ones((3, 2), np.float32)}
            run = client.create_run(made, start, optimizer=optimizer.name, flavor=flavor.name, hyperparameters=given)
            inputs = {name: start for name in optimizer.inputs if name in optimizer.required}
            run.step(start, loss=1.0, inputs=inputs)
            assert set(run.slots()["w"]) == set(flavor.slots)
            assert run.refresh().groups[0].scalars == flavor.scalars
            client.delete_run(made)


def test_health(server: Server, kernel_cache: Path) -> None:
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        for service in ("", "stepwell.v1.ControlService", "stepwell.v1.DataService"):
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=30)
        services = {service.name for service in answer.list_services_response.service}
        assert {"stepwell.v1.ControlService", "stepwell.v1.DataService", "grpc.health.v1.Health"} <= services
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="stepwell.v1.DataService")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=30)
        assert answer.file_descriptor_response.file_descriptor_proto


def test_no_reflection_unless_asked_for(stored: Server) -> None:
    with grpc.insecure_channel(stored.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
        failed: Any = refused.value
        assert failed.code() is grpc.StatusCode.UNIMPLEMENTED
