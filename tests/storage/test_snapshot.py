import hashlib
import json
import random
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from stepwell_server.core.errors import CheckpointDamaged, MemoryExhausted, StorageFailed
from stepwell_server.core.run import GroupArrays, Run, RunLimits
from stepwell_server.storage import state_file
from stepwell_server.storage.snapshot import read_manifest, read_snapshot, write_snapshot
from tests.core.local import LocalRun
from tests.storage.states import MIXED, allocate, assert_same, make_state, parameter

MIB = 1 << 20

STATES = {
    "no slots": lambda: make_state(optimizer="sgd", hyperparameters={"lr": 0.1}),
    "one slot": lambda: make_state(optimizer="sgd", hyperparameters={"lr": 0.1, "momentum": 0.9}),
    "scalars": lambda: make_state(optimizer="nadam"),
    "schedules": lambda: make_state(schedules={"lr": {"name": "step", "step_size": 10, "gamma": 0.1}}),
    "10,000 small": lambda: make_state({f"w{index}": ((index % 7,), "float32") for index in range(10_000)}, "adam"),
    "abutting": lambda: make_state({f"w{index}": ((16 * (index % 3),), "float32") for index in range(50)}, "adam"),
    "only empty": lambda: make_state({"w": ((0,), "float32"), "v": ((3, 0), "float64")}, "adam"),
    "several MiB": lambda: make_state({"w": ((3, 700_001), "float32"), "v": ((1,), "float32")}, "adam"),
}


@pytest.mark.parametrize("name", STATES)
def test_round_trip(tmp_path, name):
    state = STATES[name]()
    info = write_snapshot(tmp_path / "one", *state.stored)
    assert (info.version, info.created_seconds) == (7, 1007.0)
    assert info.size_bytes == (tmp_path / "one" / "state.safetensors").stat().st_size
    data, arrays = read_snapshot(tmp_path / "one", allocate)
    assert_same(state, data, arrays)
    run, settings = Run.from_data(data, state.run.memory, RunLimits())
    run.take_arrays(settings, arrays)
    assert run.to_data() == state.data


def test_the_library_reads_the_file(tmp_path):
    state = make_state()
    write_snapshot(tmp_path / "one", *state.stored)
    tensors = load_file(tmp_path / "one" / "state.safetensors")
    expected = {}
    for number, (group, arrays) in enumerate(zip(state.layout.groups, state.arrays, strict=True)):
        for slot, vector in arrays.vectors.items():
            for index in group.indices:
                name = state.layout.parameters[index].spec.name
                expected[f"slots/{slot}/{name}" if slot else f"parameters/{name}"] = parameter(
                    state.layout, number, vector, index
                )
        expected[f"steps/{number}"] = arrays.steps
        expected |= {f"scalars/{scalar}/{number}": values for scalar, values in arrays.scalars.items()}
    assert {f"parameters/{name}" for name in MIXED} <= tensors.keys()
    assert any(name.startswith("scalars/mu_product/") for name in tensors)
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert (tensors[name].dtype, tensors[name].shape) == (values.dtype, values.shape), name
        assert tensors[name].tobytes() == values.tobytes(), name


def test_tensors_lie_aligned(tmp_path):
    write_snapshot(tmp_path / "one", *make_state().stored)
    content = (tmp_path / "one" / "state.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    sizes = {"F32": 4, "F64": 8, "I64": 8}
    assert all((8 + length + t["data_offsets"][0]) % sizes[t["dtype"]] == 0 for t in header.values())


@pytest.mark.parametrize("shape", [(50,), (1, 50), (50, 1), (5, 7, 3), (2, 1, 40), (3, 4, 5, 6)])
def test_a_large_tensor_is_read_in_pieces(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(state_file, "_PIECE_BYTES", 64)
    monkeypatch.setattr(state_file, "_SMALL_BYTES", 32)
    state = make_state({"w": (shape, "float64"), "v": (shape, "float32")}, "adam")
    write_snapshot(tmp_path / "one", *state.stored)
    assert_same(state, *read_snapshot(tmp_path / "one", allocate))


def test_a_run_goes_on_with_the_same_bits(tmp_path):
    values = np.random.default_rng(1)
    draws: list[dict[str, NDArray[Any]]] = [
        {"a": values.standard_normal((3, 4)).astype(np.float32), "b": np.asarray(values.standard_normal(5))}
        for _ in range(7)
    ]
    parameters, gradients = draws[0], draws[1:]
    before = LocalRun(parameters, "nadam", schedules={"lr": {"name": "exponential", "gamma": 0.9}})
    for gradient in gradients[:3]:
        before.step(gradient)
    arrays = [
        GroupArrays({slot: held.vector for slot, held in group.vectors.items()}, group.steps, group.scalars)
        for group in before.run.groups
    ]
    write_snapshot(tmp_path / "one", before.run.to_data(), before.run.layout, arrays, 0.0)

    after = LocalRun(parameters, "nadam", device=before.memory.device)
    data, arrays = read_snapshot(tmp_path / "one", lambda sizes: after.memory.allocate(sizes, "test"))
    after.run, settings = Run.from_data(data, after.memory, RunLimits())
    after.run.take_arrays(settings, arrays)
    after.membership, after.sequence = before.membership, before.sequence
    for gradient in gradients[3:]:
        expected, found = before.step(gradient), after.step(gradient)
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in expected.items()
        }
    assert after.run.to_data() == before.run.to_data()


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
def test_any_damaged_byte_is_found(tmp_path, file):
    write_snapshot(tmp_path / "one", *make_state().stored)
    path = tmp_path / "one" / file
    sound = path.read_bytes()
    generator = random.Random(file)
    damaged = [sound[: generator.randrange(len(sound))] for _ in range(100)] + [b"", sound[:-1], sound + b"\0"]
    for _ in range(400):
        flipped = bytearray(sound)
        flipped[generator.randrange(len(sound))] ^= 1 << generator.randrange(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointDamaged, match=rf"one/{file}' is damaged"):
            read_snapshot(tmp_path / "one", _never)
    path.write_bytes(sound)
    read_snapshot(tmp_path / "one", allocate)
    path.unlink()
    with pytest.raises(CheckpointDamaged, match="cannot be read"):
        read_snapshot(tmp_path / "one", _never)


def _set(*keys):
    """A change of the manifest's body: the value at the path of all but the last key, or its removal."""

    def change(body, tensors):
        target = body
        for key in keys[:-2]:
            target = target[key]
        if keys[-1] is None:
            del target[keys[-2]]
        else:
            target[keys[-2]] = keys[-1]

    return change


def _tensor(name, value):
    def change(body, tensors):
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value

    return change


# Whole files with right digests that make no run: a newer server's, or somebody's own.
MISFITS = {
    "a newer format": (_set("format", 4), "format version 4, expected 3"),
    "no format": (_set("format", None), "'format'"),
    "no version": (_set("version", None), "not what a manifest holds"),
    "a field too many": (_set("extra", 1), "not what a manifest holds"),
    "no spec": (_set("data", "spec", None), "does not make a run"),
    "no parameters": (_set("data", "spec", "parameters", []), "no parameters"),
    "an unknown optimizer": (_set("data", "settings", 2, "optimizer", "magic"), "magic"),
    "another flag": (_set("data", "settings", 2, "own", "lr", "fast"), "does not make a run"),
    "too few settings": (_set("data", "settings", []), "settings and groups differ"),
    "no group with settings": (_set("data", "settings", [None] * 4), "settings and groups differ"),
    "no workers": (_set("data", "workers", {}), "does not make a run"),
    "no policy": (_set("data", "coordinator", "policy", {}), "does not make a run"),
    "an unknown policy": (_set("data", "coordinator", "policy", "spec", {"name": "magic"}), "magic"),
    "an accumulator without a weight": (_set("data", "accumulated", {}), "does not make a run"),
    "a negative version": (_set("data", "version", -1), "out of range"),
    "a name that is none": (_set("data", "name", 3), "out of range"),
    "infinite samples": (_set("data", "samples", float("inf")), "out of range"),
    "a missing tensor": (_tensor("parameters/scalar", None), "tensor 'parameters/scalar' is missing"),
    "missing steps": (_tensor("steps/0", None), "tensor 'steps/0' is missing"),
    "a tensor too many": (_tensor("zzz", np.zeros(3)), "tensor 'zzz' is not expected"),
    "another shape": (_tensor("parameters/layers/0.bias", np.zeros((4, 4), np.float32)), r"\[4, 4\], expected F32"),
    "another dtype": (_tensor("parameters/layers/0.bias", np.zeros(16)), "F64 .*expected F32"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_sound_file_that_makes_no_run_is_refused(tmp_path, name):
    change, message = MISFITS[name]
    write_snapshot(tmp_path / "one", *make_state().stored)
    state, manifest = tmp_path / "one" / "state.safetensors", tmp_path / "one" / "manifest.json"
    body, tensors = json.loads(manifest.read_bytes())["body"], load_file(state)
    change(body, tensors)
    save_file(tensors, state)
    if "state_bytes" in body:
        body["state_bytes"] = state.stat().st_size
        body["state_blake2b"] = hashlib.blake2b(state.read_bytes(), digest_size=32).hexdigest()
    _write_manifest(manifest, json.dumps(body).encode())
    with pytest.raises(CheckpointDamaged, match=message):
        read_snapshot(tmp_path / "one", _never)


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b"[" * 100_000, b"\xff", b'{"format":1}'])
def test_a_body_that_is_no_manifest_is_refused(tmp_path, body):
    write_snapshot(tmp_path / "one", *make_state().stored)
    _write_manifest(tmp_path / "one" / "manifest.json", body)
    with pytest.raises(CheckpointDamaged):
        read_manifest(tmp_path / "one")


def test_a_state_that_is_no_safetensors_is_refused(tmp_path):
    write_snapshot(tmp_path / "one", *make_state().stored)
    state, manifest = tmp_path / "one" / "state.safetensors", tmp_path / "one" / "manifest.json"
    state.write_bytes(b"\x80\x04")  # the beginning of a pickle
    body = json.loads(manifest.read_bytes())["body"]
    body |= {"state_bytes": 2, "state_blake2b": hashlib.blake2b(b"\x80\x04", digest_size=32).hexdigest()}
    _write_manifest(manifest, json.dumps(body).encode())
    with pytest.raises(CheckpointDamaged, match="safetensors says"):
        read_snapshot(tmp_path / "one", _never)


def test_what_allocate_raises_comes_through(tmp_path):
    write_snapshot(tmp_path / "one", *make_state().stored)

    def refuse(sizes):
        raise MemoryExhausted("none")

    with pytest.raises(MemoryExhausted):
        read_snapshot(tmp_path / "one", refuse)


@pytest.mark.parametrize("limit_bytes", [0, 1000, 5 * MIB])
def test_a_full_disk_leaves_no_trace(tmp_path, limit_bytes):
    state = make_state({"w": ((1_000_000,), "float64")}, "adam")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(StorageFailed, match=r"writing '.*one' failed: File too large.*free space"):
            write_snapshot(tmp_path / "one", *state.stored)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    write_snapshot(tmp_path / "one", *state.stored)
    assert_same(state, *read_snapshot(tmp_path / "one", allocate))


def test_a_directory_that_exists_is_left_alone(tmp_path):
    write_snapshot(tmp_path / "one", *make_state().stored)
    with pytest.raises(StorageFailed, match="one' failed"):
        write_snapshot(tmp_path / "one", *make_state(version=8).stored)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert read_manifest(tmp_path / "one").version == 7


def test_a_header_that_no_reader_takes_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "_HEADER_BYTES_MAX", 1000)
    with pytest.raises(StorageFailed, match="shorter names"):
        write_snapshot(tmp_path / "one", *make_state().stored)
    assert list(tmp_path.iterdir()) == []


def test_memory_besides_the_state_is_bounded(tmp_path):
    state = make_state({"w": ((5, 5_000_000), "float64"), "v": ((3,), "float64")}, "sgd", hyperparameters={"lr": 0.1})
    state_bytes = state.run.state_bytes
    assert state_bytes > 190 * MIB
    stored = state.stored
    tracemalloc.start()
    try:
        write_snapshot(tmp_path / "one", *stored)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
        tracemalloc.reset_peak()
        arrays = read_snapshot(tmp_path / "one", allocate)[1]
        assert state_bytes <= tracemalloc.get_traced_memory()[1] < state_bytes + 32 * MIB
    finally:
        tracemalloc.stop()
    assert (arrays[0].vectors[""] == state.arrays[0].vectors[""])[:25_000_000].all()


@pytest.mark.long
@pytest.mark.xdist_group("gigabytes")
def test_a_tensor_of_over_2_to_the_31_bytes(tmp_path):
    elements = (1 << 29) + 3
    state = make_state({"w": ((elements,), "float32")}, "sgd", hyperparameters={"lr": 0.1})
    write_snapshot(tmp_path / "one", *state.stored)
    found = read_snapshot(tmp_path / "one", allocate)[1][0].vectors[""]
    assert (found[:elements] == state.arrays[0].vectors[""][:elements]).all()


def _never(sizes):
    raise AssertionError("memory was taken before the snapshot was verified")


def _write_manifest(path: Path, body: bytes) -> None:
    digest = hashlib.blake2b(body, digest_size=32).hexdigest().encode()
    path.write_bytes(b'{"blake2b":"' + digest + b'","body":' + body + b"}\n")
