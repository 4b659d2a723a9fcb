"""Updates that are sent gradient by gradient, while the trainer still computes the next."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import stepwell
import stepwell.aio
from stepwell._blocking import BlockingStream
from tests.end_to_end.proxy import Proxy
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits

Connect = Callable[..., stepwell.Client]

# For a machine that hangs; nothing here waits so long.
WAIT_SECONDS = 60

# Some fill messages of their own, some share one; two groups by dtype, and one that takes no gradients.
SHAPES = {
    "embedding": (700, 1000),
    "small.0": (3,),
    "small.1": (5, 7),
    "head": (1100, 500),
    "scale": (),
    "none": (0, 4),
}
SPEC: dict[str, Any] = {
    "optimizer": "adam",
    "flavor": "torch",
    "groups": [{"name": "frozen", "parameters": ["fixed"], "frozen": True}],
}


def start() -> Arrays:
    random = np.random.default_rng(1)
    arrays: Arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return arrays | {"double": random.standard_normal(60_000), "scale": np.array(2.0), "fixed": np.ones(9, np.float32)}


def gradients(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    trained = {name: array for name, array in start().items() if name != "fixed"}
    return {name: np.asarray(random.standard_normal(array.shape), array.dtype) for name, array in trained.items()}


def update_by(run: stepwell.Run, layers: Iterable[tuple[str, Any]], **options: Any) -> stepwell.Update:
    """An update of these layers; one that is an error is raised in the block."""
    with run.update(**options) as update:
        for layer, gradient in layers:
            if isinstance(gradient, Exception):
                raise gradient
            update.add(layer, gradient)
    return update


@pytest.fixture(params=["stream", "shared_memory"])
def run(request: pytest.FixtureRequest, server: Server, connect: Connect, name: str) -> stepwell.Run:
    return connect(server, transport=request.param).create_run(name, start(), **SPEC)


@pytest.fixture
def whole(server: Server, connect: Connect, name: str) -> stepwell.Run:
    """The same run, stepped as a whole."""
    return connect(server, transport="stream").create_run(f"{name}-whole", start(), **SPEC)


def test_layers_give_the_bits_of_a_step(run: stepwell.Run, whole: stepwell.Run) -> None:
    for seed in range(4):
        grads = gradients(seed)
        # As backward passes give them: the last layer first, and in the third step two without a gradient.
        if seed == 2:
            grads["head"] = grads["small.0"] = None
        update = update_by(run, reversed(grads.items()), samples=3)
        expected = whole.step(grads, samples=3)
        assert update.parameters is not None
        same_bits(update.parameters, expected)
        assert update.version == run.version == seed + 1
    assert run.refresh().samples == 12
    assert run.get_state().steps == whole.get_state().steps


def test_without_parameters_and_into_arrays_of_the_caller(run: stepwell.Run, whole: stepwell.Run) -> None:
    update = update_by(run, gradients(0).items(), pull=False)
    assert update.parameters is None
    assert update.version == 1
    out = {name: np.empty_like(array) for name, array in start().items()}
    update_by(run, gradients(1).items(), out=out, hyperparameters={"lr": 0.5})
    whole.push(gradients(0))
    same_bits(out, whole.step(gradients(1), hyperparameters={"lr": 0.5}))


@pytest.mark.parametrize("layer", ["head", "small.0"])
def test_an_error_in_the_block_leaves_no_trace(run: stepwell.Run, whole: stepwell.Run, layer: str) -> None:
    grads = gradients(0)
    with pytest.raises(ZeroDivisionError):
        update_by(run, [(each, grads[each]) for each in ("embedding", layer)] + [("", ZeroDivisionError())])
    assert run.refresh().version == 0
    same_bits(run.step(grads), whole.step(grads))
    assert run.refresh().workers[0].epoch == 1, "giving up used no sequence, so no new epoch was needed"


def test_what_is_wrong_is_said_at_once_or_at_the_end(run: stepwell.Run) -> None:
    grads = gradients(0)
    wrong: list[tuple[str, Any, str]] = [
        ("heads", grads["head"], "'heads', expected one of 'embedding'"),
        ("fixed", np.ones(9, np.float32), "'fixed', expected one of"),
        ("head", np.ones((2, 2), np.float32), r"shape \(2, 2\), expected \(1100, 500\)"),
        ("embedding", grads["embedding"], "two gradients for 'embedding'"),
    ]
    for layer, gradient, message in wrong:
        with pytest.raises(stepwell.InvalidGradient, match=message):
            update_by(run, [("embedding", grads["embedding"]), (layer, gradient)])
    with pytest.raises(stepwell.InvalidGradient, match=r"no gradient for 'small\.0'"):
        update_by(run, [each for each in grads.items() if each[0] != "small.0"])
    with pytest.raises(stepwell.NonfiniteGradient, match=r"small\.1"):
        update_by(run, (grads | {"small.1": np.full((5, 7), np.nan, np.float32)}).items())
    assert run.refresh().version == 0
    ended = update_by(run, grads.items())
    with pytest.raises(stepwell.InvalidGradient, match="after the end"):
        ended.add("embedding", grads["embedding"])


def refused_midway(run: stepwell.Run, layers: Iterable[tuple[str, Any]]) -> stepwell.Update:
    """An update that goes on being made after the server's refusal is there."""
    with run.update() as update:
        for layer, gradient in layers:
            update.add(layer, gradient)
            begun, stream = update._begun, run._worker.stream
            if begun is not None and begun.exchange is not None and not begun.broken:
                assert isinstance(stream, BlockingStream)
                hears(stream)
    return update


def hears(stream: BlockingStream) -> None:
    with stream._lock:
        assert stream._news.wait_for(lambda: stream._inbox, WAIT_SECONDS)


def test_a_run_that_went_back_is_heard_of_once_and_at_the_end(server: Server, connect: Connect, name: str) -> None:
    run = connect(server, transport="stream").create_run(name, start(), **SPEC)
    other = connect(server).get_run(name)
    for seed in range(2):
        run.step(gradients(seed))
    state = other.get_state()
    run.step(gradients(2))
    other.set_state(state)
    taken = []

    def layers() -> Iterable[tuple[str, Any]]:
        for layer, gradient in gradients(3).items():
            taken.append(layer)
            yield layer, gradient

    with pytest.raises(stepwell.RunRewound):
        refused_midway(run, layers())
    assert taken == list(gradients(3)), "the block goes on to its end"
    assert run.version == other.refresh().version == state.version
    update_by(run, gradients(3).items())
    assert run.version == other.refresh().version == state.version + 1


def test_a_lease_that_has_run_out_costs_nothing(server: Server, connect: Connect, name: str) -> None:
    """As with `step`: the worker joins again, and its gradients count as what they are."""
    run = connect(server, transport="stream", worker="sleeper", lease_seconds=0.5).create_run(name, start(), **SPEC)
    twin = connect(server).create_run(f"{name}-twin", start(), **SPEC)
    other = connect(server, worker="other").get_run(name)
    for each in (run, twin):
        each.step(gradients(0))
    run._worker._stop_heartbeat()
    pause = threading.Event()
    for _ in range(WAIT_SECONDS * 50):
        if "sleeper" not in {worker.name for worker in other.refresh().workers}:
            break
        pause.wait(0.02)
    grads = gradients(1) | {"small.1": None}
    for each in (other, twin):
        each.step(gradients(2))
    update = refused_midway(run, grads.items())
    assert update.parameters is not None
    same_bits(update.parameters, twin.step(grads))
    described = {worker.name: worker for worker in other.refresh().workers}
    assert described["sleeper"].epoch == 2
    assert described["sleeper"].tally.staleness_last == 1


def test_the_run_takes_no_other_call_within_the_block(run: stepwell.Run) -> None:
    with pytest.raises(RuntimeError, match="within an update"), run.update():
        run.pull()
    assert run.step(gradients(0)) is not None


def test_a_bad_network_applies_each_update_once(
    server: Server, connect: Connect, name: str, whole: stepwell.Run
) -> None:
    connect(server).create_run(name, start(), **SPEC)
    with Proxy(server.address, 7, delay_seconds_max=0.001, bytes_mean=4_000_000) as proxy:
        run = connect(proxy.address, transport="stream", silence_seconds=10).get_run(name)
        for seed in range(12):
            grads = gradients(seed)
            if seed % 3 == 2:
                grads["small.1"] = None
            update = update_by(run, reversed(grads.items()))
            expected = whole.step(grads)
            assert update.parameters is not None
            same_bits(update.parameters, expected)
        assert proxy.cuts_count > 3
    assert run.version == 12


def test_the_awaited_client(server: Server, name: str, whole: stepwell.Run) -> None:
    async def main() -> stepwell.aio.Update:
        async with stepwell.aio.connect(server.address) as client:
            run = await client.create_run(name, start(), **SPEC)
            async with run.update() as update:
                for layer, gradient in gradients(0).items():
                    await update.add(layer, gradient)
            await run.close()
            return update

    update = asyncio.run(main())
    assert update.version == 1
    assert update.parameters is not None
    same_bits(update.parameters, whole.step(gradients(0)))
