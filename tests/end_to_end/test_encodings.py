"""Gradients and parameters that travel encoded, through a real server: what is applied, owed, refused and kept."""

import asyncio
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import stepwell
import stepwell.aio
from stepwell.v1 import control_pb2, data_pb2, run_pb2, values_pb2
from tests.end_to_end.proxy import Proxy
from tests.end_to_end.raw import Raw, RawWorker, Refusal, WorkStream, spec
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits, same_state

Connect = Callable[..., stepwell.Client]
Start = Callable[..., Server]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# Small ones with padding between them, one of several messages, and one of several whose elements are larger and which
# begins in the middle of a message.
SHAPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "small.0": ((3,), "f4"),
    "none": ((0, 4), "f4"),
    "scale": ((), "f4"),
    "large": ((550, 1001), "f4"),
    "small.1": ((5, 7), "f4"),
    "double": ((140_001,), "f8"),
    "half": ((41,), "f2"),
    "brain": ((13,), BFLOAT16),
}
FROZEN = {"groups": [{"name": "fixed", "parameters": ["fixed"], "frozen": True}]}
SGD: dict[str, Any] = {"optimizer": "sgd", "hyperparameters": {"lr": 1.0}, **FROZEN}

GRADIENTS = ["float32", "bfloat16", "float16", "int8", "top_k", "sign"]
PARAMETERS = ["float32", "bfloat16", "float16", "int8"]


def draw(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.standard_normal(shape)).astype(dtype) for name, (shape, dtype) in SHAPES.items()}


def start_values() -> Arrays:
    return draw(0) | {"fixed": np.ones(9, np.float32)}


def gradients(seed: int, **changes: Any) -> dict[str, Any]:
    return draw(seed) | changes


def create(client: stepwell.Client, name: str, encoding: str | dict[str, Any] | None, **more: Any) -> stepwell.Run:
    encodings = {} if encoding is None else {"gradients": encoding}
    return client.create_run(name, start_values(), encodings=encodings, **(SGD | more))


def owed(run: stepwell.Run) -> Arrays:
    """What the worker has not sent yet; zeros where it keeps nothing."""
    encoder, layout = run._worker.encoder, run._worker.layout
    assert encoder is not None
    assert layout is not None
    found = {}
    for number, members in enumerate(layout.by_group):
        for each in members:
            begin = each.offset_bytes // each.dtype.itemsize
            row = encoder.owed.get(number)
            count = int(np.prod(each.shape))
            part = np.zeros(count) if row is None else row[begin : begin + count].astype(np.float64)
            found[each.name] = part.reshape(each.shape)
    return found


def exact(run: stepwell.Run) -> Arrays:
    got = run.pull(exact=True)
    assert got is not None
    state = run.get_state().parameters  # which has 32 bits for 16
    same_bits(got, {name: array.astype(got[name].dtype) for name, array in state.items()})
    return got


def check_applied(run: stepwell.Run, summed: Arrays, lost: float = 0.0) -> None:
    """That the parameters are what they were, less the gradients, but for what is owed. lost: per size of a sum."""
    left, got = owed(run), exact(run)
    for name, array in got.items():
        if name == "fixed":
            np.testing.assert_array_equal(array, 1.0)
            continue
        expected = start_values()[name].astype(np.float64) - (summed[name] - left[name])
        rounding = {"float16": 2e-3, "bfloat16": 2e-2}.get(array.dtype.name, 1e-5)  # these travel in their own type
        np.testing.assert_allclose(
            array.astype(np.float64), expected, rtol=rounding, atol=rounding + 20 * lost, err_msg=name
        )


@pytest.fixture
def near(server: Server, connect: Connect) -> stepwell.Client:
    """A client whose updates travel, though the server is on this machine."""
    return connect(server, transport="stream")


# What is applied.


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("encoding", GRADIENTS)
def test_gradients_arrive_but_for_what_is_owed(near: stepwell.Client, name: str, encoding: str, feedback: bool) -> None:
    lost = {"float32": 1e-7, "bfloat16": 2**-8, "float16": 2**-11, "int8": 4 / 254}
    if not feedback and encoding not in lost:
        pytest.skip("top_k and sign lose most of a gradient without feedback")
    run = create(near, name, {"name": encoding, "error_feedback": feedback})
    summed = {each: np.zeros(shape) for each, (shape, _) in SHAPES.items()}
    for seed in range(1, 5):
        grads = gradients(seed, **({"small.1": None, "large": None} if seed == 3 else {}))
        if seed % 2:
            run.push(grads)
        else:
            run.step(grads)
        for each, array in grads.items():
            summed[each] += 0 if array is None else array
    assert run.version == 4
    assert run.transport == "stream"
    check_applied(run, summed, lost=0.0 if feedback else lost[encoding])
    assert feedback == any(array.any() for array in owed(run).values())


@pytest.mark.parametrize("encoding", GRADIENTS)
def test_all_that_is_owed_is_sent_in_the_end(near: stepwell.Client, name: str, encoding: str) -> None:
    """After one gradient and many of zero, sums are near the gradient: nothing is lost for good."""
    values = {"w": np.zeros(40, np.float32)}
    run = near.create_run(
        name, values, encodings={"gradients": {"name": encoding, "error_feedback": True}}, optimizer="sgd",
        hyperparameters={"lr": 1.0},
    )  # fmt: skip
    grads = {"w": np.linspace(-3, 2, 40, dtype=np.float32)}
    run.push(grads)
    for _ in range(60):
        run.push({"w": np.zeros(40, np.float32)})
    tolerance = 0.3 if encoding == "sign" else 1e-5  # the mean of 40 sizes goes down slowly
    np.testing.assert_allclose(exact(run)["w"], -grads["w"], atol=tolerance)


@pytest.mark.parametrize("encoding", PARAMETERS)
def test_parameters_arrive_as_good_as_their_encoding(
    near: stepwell.Client, connect: Connect, server: Server, name: str, encoding: str
) -> None:
    values = start_values()
    run = near.create_run(name, values, encodings={"parameters": encoding}, **SGD)
    plain = near.create_run(f"{name}-plain", values, **SGD)
    out = {each: np.empty_like(array) for each, array in values.items()}
    for seed in range(1, 4):
        expected = plain.step(gradients(seed))
        got = run.step(gradients(seed), out=out if seed == 2 else None)
        check_near(got, expected, encoding)
        pulled = run.pull()
        assert pulled is not None
        same_bits(pulled, got)
        same_bits(exact(run), expected)
    some = ["small.1", "double", "half"]
    pulled = run.pull(names=some)
    assert pulled is not None
    check_near(pulled, {each: expected[each] for each in some}, encoding)
    pulled = run.pull(names=some, exact=True)
    assert pulled is not None
    same_bits(pulled, {each: expected[each] for each in some})
    reader = connect(server).get_run(name).pull()
    assert reader is not None
    check_near(reader, expected, encoding)
    same_state(run.get_state(), plain.get_state())


def check_near(got: Arrays, expected: Arrays, encoding: str) -> None:
    cast = {"float32": np.float32, "float16": np.float16, "bfloat16": BFLOAT16}.get(encoding)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        if cast is not None:
            narrower = np.dtype(cast).itemsize < array.dtype.itemsize
            np.testing.assert_array_equal(got[name], array.astype(cast).astype(array.dtype) if narrower else array)
            continue
        # Half a step of a block's largest number; blocks may reach over several parameters.
        largest = max(np.abs(each.astype(np.float64)).max(initial=0) for each in expected.values())
        bound = 1.001 * largest / 254 + (2**-8 if array.dtype.itemsize == 2 else 0) * largest
        np.testing.assert_allclose(got[name].astype(np.float64), array.astype(np.float64), rtol=0, atol=bound)
    assert cast is not None or any(not np.array_equal(got[name], array) for name, array in expected.items())


def test_both_directions(near: stepwell.Client, name: str) -> None:
    run = near.create_run(name, start_values(), encodings={"gradients": "int8", "parameters": "bfloat16"}, **SGD)
    summed = {each: np.zeros(shape) for each, (shape, _) in SHAPES.items()}
    for seed in range(1, 4):
        run.step(gradients(seed))
        for each, array in gradients(seed).items():
            summed[each] += array
    check_applied(run, summed)


# Retries, refusals, and what is owed then.


@pytest.mark.parametrize("encoding", ["float16", "int8", "top_k", "sign"])
def test_a_bad_network_applies_each_update_once(
    server: Server, connect: Connect, near: stepwell.Client, name: str, encoding: str
) -> None:
    whole = create(near, f"{name}-whole", {"name": encoding, "error_feedback": True})
    create(near, name, {"name": encoding, "error_feedback": True})
    mean = {"float16": 1_000_000, "int8": 500_000, "top_k": 30_000, "sign": 70_000}[encoding]
    with Proxy(server.address, 11, delay_seconds_max=0.0005, bytes_mean=mean) as proxy:
        run = connect(proxy.address, transport="stream", silence_seconds=10).get_run(name)
        for seed in range(1, 9):
            grads = gradients(seed, **({"small.0": None} if seed % 3 == 0 else {}))
            run.push(grads)
            whole.push(grads)
            same_bits(owed(run), owed(whole))
        assert proxy.cuts_count > 1
    same_bits(exact(connect(server).get_run(name)), exact(whole))
    assert run.version == 8


@pytest.mark.parametrize("encoding", GRADIENTS)
def test_a_cut_in_the_middle_of_layers(
    server: Server, connect: Connect, near: stepwell.Client, name: str, encoding: str
) -> None:
    specified = {"name": encoding, "error_feedback": True}
    whole = create(near, f"{name}-whole", specified)
    create(near, name, specified)
    order = ["large", "small.0", "double", "half", "brain", "none", "scale", "small.1"]
    with Proxy(server.address) as proxy:
        run = connect(proxy.address, transport="stream", silence_seconds=10).get_run(name)
        for seed in range(1, 4):
            with run.update() as update, whole.update() as other:
                for number, each in enumerate(order):
                    update.add(each, gradients(seed)[each])
                    other.add(each, gradients(seed)[each])
                    if number == 1 + seed:
                        proxy.cut()
            assert update.parameters is not None
            assert other.parameters is not None
            same_bits(update.parameters, other.parameters)
            same_bits(owed(run), owed(whole))
        described = run.refresh()
        assert described.version == 3
        assert described.workers[0].epoch == 1


@pytest.mark.parametrize("nonfinite", ["reject", "skip"])
@pytest.mark.parametrize("encoding", GRADIENTS)
def test_what_is_not_finite_leaves_no_trace(near: stepwell.Client, name: str, encoding: str, nonfinite: str) -> None:
    specified = {"name": encoding, "error_feedback": True}
    run = create(near, name, specified, nonfinite=nonfinite)
    other = create(near, f"{name}-other", specified)
    for seed in range(1, 4):
        for bad in (np.nan, np.inf):
            before = owed(run)
            grads = gradients(100 + seed)
            grads["double" if seed == 2 else "small.1"].flat[7] = bad
            if nonfinite == "skip":
                run.step(grads)
                assert run.last_answer is not None
                assert run.last_answer.outcome is stepwell.Outcome.SKIPPED_NONFINITE
            else:
                with pytest.raises(stepwell.NonfiniteGradient, match=r"double|small\.1|scale|large"):
                    run.step(grads)
            same_bits(owed(run), before)
        run.step(gradients(seed))
        other.step(gradients(seed))
        same_bits(owed(run), owed(other))
    same_bits(exact(run), exact(other))
    assert run.version == 3
    assert run.refresh().skipped_count == (6 if nonfinite == "skip" else 0)


def test_an_update_that_is_given_up_leaves_what_is_owed(near: stepwell.Client, name: str) -> None:
    run, other = create(near, name, "int8"), create(near, f"{name}-other", "int8")
    for each in (run, other):
        each.push(gradients(1))
    before = owed(run)
    with pytest.raises(stepwell.InvalidGradient, match="no gradient for"), run.update() as update:
        update.add("large", gradients(2)["large"])
    with pytest.raises(stepwell.InvalidGradient):
        run.push(gradients(2, large=np.zeros(3, np.float32)))
    same_bits(owed(run), before)
    same_bits(run.step(gradients(3)), other.step(gradients(3)))


def test_a_run_that_goes_back_still_owes(start: Start, connect: Connect, tmp_path: Path, name: str) -> None:
    """What was sent before the checkpoint's time is gone with it; what is owed was never sent, and still is."""
    server = start(data_dir=tmp_path / "data")
    run = create(connect(server, transport="stream"), name, "top_k")
    run.push(gradients(1))
    run.save_checkpoint("early")
    early = exact(run)
    run.push(gradients(2))
    left = owed(run)
    run.restore_checkpoint("early")
    run.push({each: np.zeros(shape, dtype) for each, (shape, dtype) in SHAPES.items()})
    got = exact(run)
    for each in ("large", "small.1"):
        expected = early[each] - (left[each] - owed(run)[each])
        np.testing.assert_allclose(got[each], expected, atol=1e-5)


# Layers, shared memory, restarts, the awaited client, descriptions.


@pytest.mark.parametrize("encoding", GRADIENTS)
def test_layers(near: stepwell.Client, name: str, encoding: str) -> None:
    run = create(near, name, {"name": encoding, "error_feedback": True})
    summed = {each: np.zeros(shape) for each, (shape, _) in SHAPES.items()}
    for seed in range(1, 4):
        grads = gradients(seed, **({"scale": None, "double": None} if seed == 2 else {}))
        with run.update(pull=seed == 3) as update:
            for each, array in reversed(grads.items()):
                update.add(each, array)
                summed[each] += 0 if array is None else array
    assert run.version == 3
    check_applied(run, summed)


def test_shared_memory_needs_no_encoding(server: Server, connect: Connect, name: str) -> None:
    encodings = {"gradients": "sign", "parameters": "int8"}
    values, *grads = [{each: draw(seed)[each] for each in ("large", "small.0", "double")} for seed in range(5)]
    sgd: dict[str, Any] = {"optimizer": "sgd", "hyperparameters": {"lr": 1.0}}
    run = connect(server, transport="shared_memory").create_run(name, values, encodings=encodings, **sgd)
    plain = connect(server, transport="stream").create_run(f"{name}-plain", values, **sgd)
    for update in grads[:2]:
        same_bits(run.step(update), plain.step(update))
    with run.update() as layered:
        for each, array in grads[2].items():
            layered.add(each, array)
    assert run.transport == "shared_memory"
    assert layered.parameters is not None
    same_bits(layered.parameters, plain.step(grads[2]))
    same_bits(run.pull() or {}, exact(plain))
    assert not any(array.any() for array in owed(run).values())
    # Beside it one whose updates travel: what that one owes is its own.
    other = connect(server, transport="stream").get_run(name)
    other.push(grads[3])
    same_bits(run.pull() or {}, exact(other))
    assert owed(other)["large"].any()
    assert not owed(run)["large"].any()


def test_a_stop_keeps_encodings(start: Start, connect: Connect, tmp_path: Path, name: str) -> None:
    server = start("--snapshot-seconds", 0, data_dir=tmp_path / "data")
    encodings = {"gradients": {"name": "top_k", "density": 0.05}, "parameters": {"name": "int8", "block": 32}}
    run = connect(server, transport="stream").create_run(name, start_values(), encodings=encodings, **SGD)
    run.push(gradients(1))
    described = run.refresh().encodings
    server.stop()
    server.start()
    assert run.refresh().encodings == described
    assert described["gradients"] == {"name": "top_k", "density": 0.05, "error_feedback": True}
    assert described["parameters"] == {"name": "int8", "block": 32}
    run.push(gradients(2))  # with what the worker owed before
    summed = {each: gradients(1)[each].astype(np.float64) + gradients(2)[each] for each in SHAPES}
    check_applied(run, summed)
    got = connect(server, transport="stream").get_run(name).pull()
    assert got is not None
    check_near(got, exact(run), "int8")


def test_the_awaited_client(server: Server, near: stepwell.Client, name: str) -> None:
    encodings = {"gradients": "int8", "parameters": "float16"}
    whole = near.create_run(f"{name}-whole", start_values(), encodings=encodings, **SGD)

    async def main() -> list[Arrays]:
        async with stepwell.aio.connect(server.address, transport="stream") as client:
            run = await client.create_run(name, start_values(), encodings=encodings, **SGD)
            found = [await run.step(gradients(1))]
            async with run.update() as update:
                for each, array in gradients(2).items():
                    await update.add(each, array)
            assert update.parameters is not None
            found.append(update.parameters)
            pulled, exactly = await run.pull(), await run.pull(exact=True)
            assert pulled is not None
            assert exactly is not None
            await run.close()
            assert (await client.list_encodings()).keys() == {"gradients", "parameters"}
            return [*found, pulled, exactly]

    stepped, layered, pulled, exactly = asyncio.run(main())
    same_bits(stepped, whole.step(gradients(1)))
    with whole.update() as update:
        for each, array in gradients(2).items():
            update.add(each, array)
    assert update.parameters is not None
    same_bits(layered, update.parameters)
    same_bits(pulled, layered)
    same_bits(exactly, exact(whole))


def test_the_catalogue(client: stepwell.Client) -> None:
    found = client.list_encodings()
    assert {direction: [part.name for part in parts] for direction, parts in found.items()} == {
        "gradients": GRADIENTS,
        "parameters": PARAMETERS,
    }
    defaults = {part.name: {each.name: each.default for each in part.arguments} for part in found["gradients"]}
    assert defaults["int8"] == {"block": 256, "error_feedback": True}
    assert defaults["top_k"] == {"density": 0.01, "error_feedback": True}
    assert defaults["bfloat16"] == {"error_feedback": False}
    assert all(part.summary for parts in found.values() for part in parts)


def test_a_run_says_its_encodings_with_all_arguments(client: stepwell.Client, name: str) -> None:
    run = create(client, name, "sign")
    assert run.refresh().encodings == {"gradients": {"name": "sign", "block": 1024, "error_feedback": True}}
    assert create(client, f"{name}-none", None).refresh().encodings == {}
    same = create(client, name, {"name": "sign", "error_feedback": True, "block": 1024})
    assert not same.created


@pytest.mark.parametrize(
    ("encodings", "says"),
    [
        ({}, "encoding of gradients"),
        ({"gradients": "sign"}, "encoding of gradients"),
        ({"gradients": {"name": "int8", "block": 8}}, "encoding of gradients"),
        ({"gradients": {"name": "int8", "error_feedback": False}}, "encoding of gradients"),
        ({"gradients": "int8", "parameters": "int8"}, "encoding of parameters"),
    ],
)
def test_a_run_with_other_encodings_differs(
    client: stepwell.Client, name: str, encodings: dict[str, Any], says: str
) -> None:
    create(client, name, "int8")
    with pytest.raises(stepwell.RunDiffers, match=says):
        client.create_run(name, start_values(), encodings=encodings, **SGD)


@pytest.mark.parametrize(
    ("encodings", "error", "says"),
    [
        ({"gradients": "int7"}, stepwell.UnknownEncoding, "gradients 'int7' is not known.* 'int8'"),
        ({"parameters": "top_k"}, stepwell.UnknownEncoding, "parameters 'top_k' is not known"),
        ({"gradients": ""}, stepwell.StepwellError, "name|''"),
        ({"gradients": {"name": "int8", "blocks": 9}}, stepwell.UnknownArgument, "'blocks'"),
        ({"gradients": {"name": "int8", "block": 7}}, stepwell.InvalidValue, "block"),
        ({"gradients": {"name": "top_k", "density": 0}}, stepwell.InvalidValue, "density"),
        ({"gradients": {"name": "top_k", "density": "few"}}, stepwell.InvalidValue, "density"),
        ({"gradients": {"density": 0.1}}, stepwell.InvalidValue, "'name'"),
        ({"gradient": "int8"}, stepwell.InvalidSpec, r"\['gradient'\], expected some of gradients, parameters"),
        ({"gradients": None}, stepwell.InvalidValue, "None"),
        ({"gradients": 8}, stepwell.InvalidValue, "8"),
    ],
)
def test_encodings_that_make_no_sense(
    client: stepwell.Client, name: str, encodings: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        client.create_run(name, start_values(), encodings=encodings, **SGD)
    with pytest.raises(stepwell.UnknownRun):
        client.get_run(name)


# By hand: what another client, or an attacker, may send. One group of 20 elements in two padded parameters.


def wire(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


GOOD: dict[str, dict[str, Any]] = {
    "float16": {"elements": 20, "data": struct.pack("<20e", *range(20)), "scales": wire(8)},
    "int8": {"elements": 20, "data": bytes(range(20)), "scales": wire(1, 0.5, 2)},
    "sign": {"elements": 20, "data": b"\x0f\xf0\x05", "scales": wire(1, 0.5, 2)},
    "top_k": {"elements": 20, "data": wire(1, -2, 3), "indices": bytes([0, 3, 14])},
}
ARGUMENTS: dict[str, dict[str, float]] = {
    "float16": {"scale": 8},
    "int8": {"block": 8},
    "sign": {"block": 8},
    "top_k": {},
}
APPLIED: dict[str, list[float]] = {
    "float16": [-number / 8 for number in range(20)],
    "int8": [-number * (1, 0.5, 2)[number // 8] for number in range(20)],
    "sign": [1] * 4 + [-1] * 4 + [-0.5] * 4 + [0.5] * 4 + [2, -2, 2, -2],
    "top_k": [-1, 0, 0, 0, 2, *[0] * 14, -3],
}

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("int8", {"encoding": "sign"}, "ENCODING_NOT_ALLOWED"),
    ("int8", {"encoding": "top_k"}, "ENCODING_NOT_ALLOWED"),
    ("int8", {"encoding": "int7"}, "ENCODING_NOT_ALLOWED"),
    ("int8", {"encoding": "INT8"}, "ENCODING_NOT_ALLOWED"),
    ("int8", {"encoding": "\0"}, "ENCODING_NOT_ALLOWED"),
    ("int8", {"encoding": "x" * 100_000}, "ENCODING_NOT_ALLOWED"),
    ("int8", {"input": 1}, "INVALID_RANGE"),
    ("int8", {"group": 1}, "INVALID_RANGE"),
    ("int8", {"packed_offset_bytes": 4}, "INVALID_RANGE"),
    ("int8", {"packed_offset_bytes": 2}, "INVALID_RANGE"),
    ("int8", {"packed_offset_bytes": 2**64 - 4}, "INVALID_RANGE"),
    ("int8", {"elements": 0}, "INVALID_ENCODING"),
    ("int8", {"elements": 19}, "INVALID_ENCODING"),
    ("int8", {"elements": 2**64 - 1}, "INVALID_ENCODING"),
    ("int8", {"data": b""}, "INVALID_ENCODING"),
    ("int8", {"data": bytes(21)}, "INVALID_ENCODING"),
    ("int8", {"scales": b""}, "INVALID_ENCODING"),
    ("int8", {"scales": wire(1, 2)}, "INVALID_ENCODING"),
    ("int8", {"scales": wire(1, -2, 1)}, "INVALID_ENCODING"),
    ("int8", {"indices": b"\0"}, "INVALID_ENCODING"),
    ("int8", {"scales": wire(1, np.nan, 1)}, "NONFINITE_GRADIENT"),
    ("int8", {"scales": wire(1, np.inf, 1)}, "NONFINITE_GRADIENT"),
    ("float16", {"scales": wire(4)}, "INVALID_ENCODING"),
    ("float16", {"scales": wire(np.nan)}, "INVALID_ENCODING"),
    ("float16", {"scales": b""}, "INVALID_ENCODING"),
    ("float16", {"data": bytes(39)}, "INVALID_ENCODING"),
    ("float16", {"data": b"\x00\x7c" * 20}, "NONFINITE_GRADIENT"),
    ("sign", {"data": bytes(2)}, "INVALID_ENCODING"),
    ("sign", {"data": bytes(4)}, "INVALID_ENCODING"),
    ("sign", {"scales": wire(1, 1, 1, 1)}, "INVALID_ENCODING"),
    ("sign", {"scales": wire(1, 1, np.nan)}, "NONFINITE_GRADIENT"),
    ("top_k", {"data": wire(1, 2)}, "INVALID_ENCODING"),
    ("top_k", {"data": bytes(11)}, "INVALID_ENCODING"),
    ("top_k", {"data": b""}, "INVALID_ENCODING"),
    ("top_k", {"indices": b""}, "INVALID_ENCODING"),
    ("top_k", {"indices": bytes([0, 3, 15])}, "INVALID_ENCODING"),
    ("top_k", {"indices": bytes([0, 3, 255])}, "INVALID_ENCODING"),
    ("top_k", {"indices": bytes([0, 3, 14, 255])}, "INVALID_ENCODING"),
    ("top_k", {"indices": b"\xff" * 1_000_000 + b"\0\0\0"}, "INVALID_ENCODING"),
    ("top_k", {"scales": wire(1)}, "INVALID_ENCODING"),
    ("top_k", {"elements": 19}, "INVALID_ENCODING"),
    ("top_k", {"elements": 21}, "INVALID_RANGE"),
    ("top_k", {"elements": 2**62, "data": b"", "indices": b""}, "INVALID_ENCODING"),
    ("top_k", {"elements": 10, "data": b"", "indices": b""}, "INCOMPLETE_UPDATE"),
    ("top_k", {"data": wire(1, np.nan, 3)}, "NONFINITE_GRADIENT"),
]


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    with Raw(server.address) as raw:
        yield raw


def encoding_of(name: str, arguments: dict[str, float]) -> values_pb2.Encoding:
    return values_pb2.Encoding(
        name=name, arguments={each: values_pb2.Value(number=value) for each, value in arguments.items()}
    )


def by_hand(raw: Raw, name: str, encoding: str | None, via: str = "Work") -> RawWorker:
    made = spec({"a": (3, 5), "b": (5,)}, hyperparameters={"lr": values_pb2.Value(number=1)})
    if encoding is not None:
        made.gradient_encoding.CopyFrom(encoding_of(encoding, ARGUMENTS[encoding]))
    raw.create(name, made, [(0, 0, bytes(80))])
    worker = raw.join(name, "w")
    worker.via = WorkStream(raw) if via == "Work" else via
    return worker


def send(worker: RawWorker, *ranges: run_pb2.Range, **header: Any) -> data_pb2.Answer:
    requests = [data_pb2.PushRequest(stage=data_pb2.Stage(header=worker.header(**header)))]
    requests += [data_pb2.PushRequest(stage=data_pb2.Stage(ranges=[each])) for each in ranges]
    answer = worker.send([*requests, data_pb2.PushRequest(commit=data_pb2.Commit())])
    worker.sequence += 1
    return answer


def values_of(run: stepwell.Run) -> list[float]:
    got = exact(run)
    return [*got["a"].ravel(), *got["b"]]


@pytest.mark.parametrize("via", ["Push", "Step", "Work"])
@pytest.mark.parametrize(("encoding", "change", "reason"), WRONG, ids=[f"{row[0]}, {row[1]!s:.50}" for row in WRONG])
def test_a_bad_range_changes_nothing(
    raw: Raw, client: stepwell.Client, name: str, encoding: str, change: dict[str, Any], reason: str, via: str
) -> None:
    worker = by_hand(raw, name, encoding, via)
    run = client.get_run(name)
    before = run.get_state()
    with pytest.raises(Refusal) as refused:
        send(worker, run_pb2.Range(**({"encoding": encoding} | GOOD[encoding] | change)))
    assert refused.value.reason == reason, refused.value.message
    assert len(refused.value.message) < 500
    same_state(run.get_state(), before)
    assert send(worker, run_pb2.Range(encoding=encoding, **GOOD[encoding])).committed_version == 1
    assert values_of(run) == APPLIED[encoding]


@pytest.mark.parametrize("encoding", GOOD)
def test_a_run_without_encodings_takes_none(raw: Raw, client: stepwell.Client, name: str, encoding: str) -> None:
    worker = by_hand(raw, name, None)
    with pytest.raises(Refusal, match="the run's is none; send plain elements") as refused:
        send(worker, run_pb2.Range(encoding=encoding, **GOOD[encoding]))
    assert refused.value.reason == "ENCODING_NOT_ALLOWED"
    assert client.get_run(name).refresh().version == 0
    assert worker.push().committed_version == 1


@pytest.mark.parametrize("encoding", GOOD)
def test_pieces_of_both_kinds_in_any_order(raw: Raw, client: stepwell.Client, name: str, encoding: str) -> None:
    """A range may begin and end anywhere, over padding and not; plain ones go beside encoded ones."""
    worker = by_hand(raw, name, encoding)
    one = {"float16": b"\0\x48", "int8": b"\x08", "sign": b"\0", "top_k": wire(8)}[encoding]
    more: dict[str, Any] = {"top_k": {"indices": b"\0"}, "float16": {"scales": wire(8)}}.get(encoding, {})
    if encoding in ("int8", "sign"):
        more = {"scales": wire(1)}
    ranges = [
        run_pb2.Range(encoding=encoding, elements=1, data=one, packed_offset_bytes=4 * place, **more)
        for place in range(19, 9, -1)
    ]
    ranges.append(run_pb2.Range(data=wire(*range(10))))
    send(worker, *ranges)
    size = {"float16": 1, "sign": 1}.get(encoding, 8)
    assert values_of(client.get_run(name)) == [-number for number in range(10)] + [-size] * 10
    with pytest.raises(Refusal) as refused:
        send(worker, *ranges, ranges[0])
    assert refused.value.reason == "INVALID_RANGE"


def test_values_and_states_come_plain(raw: Raw, client: stepwell.Client, name: str) -> None:
    by_hand(raw, name, "int8")
    run = client.get_run(name)
    before = run.get_state()
    encoded = run_pb2.Range(encoding="int8", **GOOD["int8"])
    cast = run_pb2.Range(data=bytes(40), dtype=run_pb2.D_TYPE_BFLOAT16)
    for piece in (encoded, cast):
        header = control_pb2.StateHeader(version=1)
        piece_of_state = control_pb2.StateRange(kind=control_pb2.STATE_KIND_PARAMETERS, range=piece)
        request = control_pb2.SetStateRequest(run=name, header=header, ranges=[piece_of_state])
        with pytest.raises(Refusal) as refused:
            raw.control_call("SetState", iter([request]))
        assert refused.value.reason == "ENCODING_NOT_ALLOWED"
        same_state(run.get_state(), before)

        made = spec({"w": (20,)}, hyperparameters={"lr": values_pb2.Value(number=1)})
        made.gradient_encoding.CopyFrom(encoding_of("int8", ARGUMENTS["int8"]))
        other = f"{name}-other"
        requests = [
            control_pb2.CreateRunRequest(run=other, spec=made, spec_complete=True),
            control_pb2.CreateRunRequest(values=[piece]),
            control_pb2.CreateRunRequest(values_complete=True),
        ]
        with pytest.raises(Refusal) as refused:
            raw.control_call("CreateRun", iter(requests))
        assert refused.value.reason == "ENCODING_NOT_ALLOWED"
        with pytest.raises(stepwell.UnknownRun):
            client.get_run(other)


def test_only_who_asks_gets_encoded_parameters(raw: Raw, client: stepwell.Client, name: str) -> None:
    """A client that knows nothing of encodings reads and trains as ever."""
    values = {"w": np.linspace(-1, 1, 100)}
    client.create_run(
        name,
        values,
        optimizer="sgd",
        hyperparameters={"lr": 1.0},
        encodings={"gradients": "sign", "parameters": "int8"},
    )
    worker = raw.join(name, "plain")
    worker.push(ranges=[(0, 0, np.ones(100).tobytes())])
    for encoded in (False, True):
        selection = data_pb2.Selection(run=name, encoded=encoded)
        answers = raw.data_call("Pull", data_pb2.PullRequest(selection=selection))
        assert answers[0].parameters.data_bytes == 800
        ((piece,),) = [answer.ranges for answer in answers]
        if encoded:
            assert (piece.encoding, piece.elements, len(piece.data), len(piece.scales)) == ("int8", 100, 100, 8)
            codes = np.frombuffer(piece.data, np.int8) * np.frombuffer(piece.scales, "<f4").repeat(64)[:100]
            np.testing.assert_allclose(codes, values["w"] - 1, atol=2 / 254)
        else:
            assert piece.encoding == ""
            np.testing.assert_array_equal(np.frombuffer(piece.data), values["w"] - 1)


@pytest.mark.parametrize("then", ["another update", "the end", "the rest", "nothing"])
def test_a_large_bad_range_is_nobody_elses(start: Start, then: str) -> None:
    """It is decoded beside the reading of what follows; whatever follows, the server stays clean and goes on."""
    server = start()
    elements = 1_000_000
    with Raw(server.address) as raw, stepwell.connect(server.address) as client:
        made = spec({"w": (elements,)}, hyperparameters={"lr": values_pb2.Value(number=1)})
        made.gradient_encoding.CopyFrom(encoding_of("top_k", {}))
        raw.create("r", made, [(0, at, bytes(1_000_000)) for at in range(0, 4 * elements, 1_000_000)])
        worker = raw.join("r", "w")
        for _ in range(5):
            stream = WorkStream(raw)
            worker.via = stream
            bad = run_pb2.Range(encoding="top_k", elements=elements, data=wire(1), indices=b"\xff\0\xff")
            stream.send(data_pb2.WorkRequest(stage=data_pb2.Stage(header=worker.header(), ranges=[bad])))
            if then == "another update":
                send(worker, run_pb2.Range(encoding="top_k", elements=elements, data=wire(1), indices=b"\xff\0"))
                stream.close()
            elif then == "the end":
                stream.close()
                list(stream.answers())
            elif then == "the rest":
                stream.send(data_pb2.WorkRequest(commit=data_pb2.Commit(), last=True))
                stream.close()
                reasons = [answer.error.reason for answer in stream.answers() if answer.HasField("error")]
                assert len(reasons) >= 1
            else:
                stream.cancel()
        run = client.get_run("r")
        assert run.refresh().version == (5 if then == "another update" else 0)
        assert run.step({"w": np.zeros(elements, np.float32)})["w"][255] == (-5 if then == "another update" else 0)
    server.stop()
