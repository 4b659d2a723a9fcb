"""The GPU's device, also without a GPU: on a stand-in for CuPy whose streams are as late as they may be, and which says
what it does not show; and what a machine without CuPy or without a GPU is told.
"""

import itertools
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import structlog
from typer.testing import CliRunner

from stepwell_server.benchmarks.gpu import benchmark
from stepwell_server.commands import app
from stepwell_server.core.devices import cuda, cuda_copies
from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.devices.cuda import CudaDevice
from stepwell_server.core.devices.device import DeviceUnavailable, open_device
from stepwell_server.core.layout import ParameterSpec, build_layout
from stepwell_server.core.spec import GroupSpec
from tests.core.devices import fake_cupy
from tests.core.local import LocalRun
from tests.core.test_optimizers import compare, hash_of
from tests.references import implementation
from tests.textbook.cases import CASES, draw_run, run_textbook

HALF, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


@pytest.fixture(scope="module", params=["stand-in", pytest.param("device", marks=pytest.mark.gpu)])
def gpu(request, tmp_path_factory):
    if request.param == "device":
        try:
            made = open_device("cuda", 2, tmp_path_factory.mktemp("kernels"))
        except DeviceUnavailable as error:
            pytest.skip(str(error))
        yield made
        made.close()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", fake_cupy.make())
        patch.setenv("CUPY_CACHE_DIR", "")
        # A message of three parts, and few buffers: so that they are used again and waited for.
        patch.setattr(cuda, "_BUFFER_BYTES", 1000)
        patch.setattr(cuda, "_BUFFERS", 3)
        made = open_device("cuda:0", 2, tmp_path_factory.mktemp("kernels"))
        yield made
        made.close()


def some(shape, dtype="float32", seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def content(device, vector):
    return np.frombuffer(device.read(vector, 0, vector.nbytes), vector.dtype)


# Ways in and out.


def test_a_vector_holds_what_was_written(gpu):
    vector = gpu.allocate(5000, FLOAT32)
    assert not content(gpu, vector).any()
    values = some(4000)
    gpu.write(vector, 100, values)
    assert (content(gpu, vector) == np.concatenate([np.zeros(100), values, np.zeros(900)])).all()
    assert bytes(gpu.read(vector, 402, 4021)) == values.tobytes()[2 : 4021 - 400]
    gpu.fill(vector, 2.5)
    assert (content(gpu, vector) == 2.5).all()
    other = gpu.allocate(5000, FLOAT32)
    gpu.copy(vector, other)
    gpu.fill(vector, 1.0)
    assert (content(gpu, other) == 2.5).all()


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_ranges_find_their_places_and_come_back(gpu, device, dtype):
    shapes = [(7,), (0,), (300, 3), (), (16,), (1,), (1000,)]
    layout = build_layout([ParameterSpec(f"p{n}", shape, dtype) for n, shape in enumerate(shapes)], []).groups[0]
    packed = some(layout.packed_bytes // dtype.itemsize, dtype).view(np.uint8)
    vectors = [each.allocate(layout.elements, dtype) for each in (gpu, device)]
    random = np.random.default_rng(3)
    cuts = sorted({0, layout.packed_bytes, *(random.integers(0, len(packed), 9) // dtype.itemsize * dtype.itemsize)})
    offsets = (layout.packed_offsets, layout.vector_offsets)
    for begin, end in itertools.pairwise(cuts):
        for each, vector in zip((gpu, device), vectors, strict=True):
            each.place(vector, packed[begin:end], int(begin), *offsets)
    assert content(gpu, vectors[0]).tobytes() == content(device, vectors[1]).tobytes()
    for begin, end in itertools.pairwise(cuts):
        back = np.empty(end - begin, np.uint8)
        gpu.gather(vectors[0], back, int(begin), *offsets)
        assert back.tobytes() == packed[begin:end].tobytes()


@pytest.mark.parametrize("state", cuda_copies.STATES)
@pytest.mark.parametrize("arriving", [HALF, BFLOAT16, FLOAT32, FLOAT64], ids=lambda dtype: dtype.name)
def test_what_arrives_is_converted_as_numpy_does(gpu, device, arriving, state):
    """Every number of 16 bits; of the others some, those that overflow among them."""
    if arriving.itemsize == 2:
        values = np.arange(1 << 16, dtype=np.uint16).view(arriving)
    else:
        limits = np.finfo(arriving)
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, limits.max, limits.tiny, limits.smallest_subnormal, 1 / 3]
        values = np.concatenate([some(2000, arriving), np.array(special, arriving)])
    layout = build_layout(
        [ParameterSpec("w", (10,), np.dtype(state)), ParameterSpec("v", values.shape, np.dtype(state))], []
    )
    (group,) = layout.groups
    found = []
    for each in (gpu, device):
        vector = each.allocate(group.elements, group.dtype)
        offsets = (group.packed_offsets, group.vector_offsets)
        each.place(vector, values.view(np.uint8), int(group.packed_offsets[1]), *offsets, arriving)
        found.append(content(each, vector))
    np.testing.assert_array_equal(*found)
    assert (np.signbit(found[0]) == np.signbit(found[1]))[~np.isnan(found[1])].all()


def test_arrays_of_the_host_are_served_too(gpu):
    """Steps and scalars travel like vectors, and stay on the host."""
    steps = np.arange(10)
    offsets = np.zeros(1, np.int64), np.array([0, 80], np.int64)
    gpu.place(steps, np.full(3, 9).view(np.uint8), 16, offsets[1], offsets[0])
    assert steps.tolist() == [0, 1, 9, 9, 9, 5, 6, 7, 8, 9]
    back = np.empty(16, np.uint8)
    gpu.gather(steps, back, 8, offsets[1], offsets[0])
    assert back.view(np.int64).tolist() == [1, 9]
    assert bytes(gpu.read(steps, 8, 16)) == np.int64(1).tobytes()
    gpu.write(steps, 9, np.array([4]))
    assert steps[9] == 4


def test_finiteness_is_tested_on_the_host(gpu):
    assert gpu.is_finite(np.ones(10, "float32").view(np.uint8), FLOAT32)
    assert not gpu.is_finite(np.array([1, np.inf], "float32").view(np.uint8), FLOAT32)


# Runs, side by side with the CPU's.

RUNS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": "adam", "hyperparameters": {"weight_decay": 0.01}},
    "clipped": {"optimizer": "sgd", "transforms": ({"name": "clip_by_global_norm", "max_norm": 0.5},)},
    "each tensor clipped": {"optimizer": "sgd", "transforms": ({"name": "clip_by_norm", "max_norm": 0.5},)},
    "array code": {"optimizer": "sgd", "transforms": ({"name": "centralize"}, {"name": "add_noise"})},
    "averaged": {"optimizer": "adam", "wrappers": ({"name": "ema", "decay": 0.9},)},
    "measured": {"optimizer": "adagrad", "report_norms": True},
    "slots begin as parameters": {"optimizer": "sgd", "wrappers": ({"name": "lookahead", "sync_period": 2},)},
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in RUNS), ("each tensor clipped", "float64"), ("plain", "float16")]
)
def test_a_run_goes_where_it_goes_on_the_cpu(gpu, device, name, dtype):
    parameters = {"matrix": some((40, 30), dtype), "scalar": some((), dtype, 2), "vector": some(700, dtype, 3)}
    runs = [LocalRun(parameters, device=each, **RUNS[name]) for each in (gpu, device)]
    for step in range(4):
        gradients = {key: some(value.shape, dtype, 10 + step) for key, value in parameters.items()}
        if step == 2:
            gradients["vector"] = None
        # A reader holds the version before a commit, now and then.
        holds = [each.run.hold(whole=True) for each in runs] if step == 1 else []
        answers = [each.commit(each.stage(gradients)) for each in runs]
        for each in runs:
            each.sequence += 1
        np.testing.assert_allclose(np.ravel(answers[0].norms), np.ravel(answers[1].norms), rtol=1e-6)
        assert_same(runs[0].parameters(), runs[1].parameters(), dtype)
        for hold in holds:
            hold.release()
    for slot in runs[0].run.groups[0].vectors:
        assert_same(runs[0].arrays(slot), runs[1].arrays(slot), dtype)
    settings = runs[0].run.groups[0].settings
    assert settings is not None
    for point in settings.points:
        assert_same(runs[0].point(point), runs[1].point(point), dtype)


def assert_same(ours, theirs, dtype="float32"):
    tolerance = 1e-12 if dtype == "float64" else 2e-6
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_two_dtypes_and_two_groups_share_a_norm_and_one_wait(gpu, device, monkeypatch):
    parameters = {"a": some(900), "b": some(50, "float64", 2), "c": some(70, "float32", 3)}
    groups = (GroupSpec("last", ("c",), hyperparameters={"lr": 0.5}),)
    spec: dict[str, Any] = {
        "optimizer": "sgd",
        "groups": groups,
        "transforms": ({"name": "clip_by_global_norm", "max_norm": 0.5},),
    }
    runs = [LocalRun(parameters, device=each, **spec) for each in (gpu, device)]
    gradients = {name: value * 2 for name, value in parameters.items()}
    assert_same(*(each.step(gradients) for each in runs))
    staging = runs[0].stage(gradients)
    waits: list[str] = []
    fetch = gpu.fetch

    def noting_fetch(vector):
        waits.append("launched")
        return noting(waits, fetch(vector))

    monkeypatch.setattr(gpu, "fetch", noting_fetch)
    runs[0].commit(staging)
    # The first wait waits for all of them: the others find what they want.
    assert waits == ["launched"] * 3 + ["waited"] * 3


def noting(waits, wait):
    def noted():
        waits.append("waited")
        return wait()

    return noted


def test_a_version_that_is_held_stays_as_it_is(gpu):
    run = LocalRun({"w": some(3000)}, "adam", device=gpu)
    before = run.parameters()["w"]
    hold = run.run.hold()
    for step in range(3):
        run.step({"w": some(3000, seed=step)})
    held = content(gpu, hold.groups[0][""].vector)[:3000]
    assert (held == before).all()
    assert (run.parameters()["w"] != before).all()
    hold.release()


def test_pieces_of_any_number_are_one_launch(gpu, device):
    """Parameters at steps of their own, which share no coefficients."""
    names = [f"p{n}" for n in range(40)]
    runs = [
        LocalRun({name: some(20 + n, seed=n) for n, name in enumerate(names)}, "adam", device=each)
        for each in (gpu, device)
    ]
    for step in range(3):
        gradients = {name: some(20 + n, seed=n + step) if n % (step + 1) == 0 else None for n, name in enumerate(names)}
        for each in runs:
            each.step(gradients)
    assert_same(*(each.parameters() for each in runs))


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if not case.variant], ids=lambda case: case.id)
def test_every_optimizer_goes_where_the_textbook_goes(gpu, case, monkeypatch):
    """Array code, too: it must not call NumPy on a device's arrays."""
    monkeypatch.setattr(implementation, "_device", lambda: gpu)
    run = draw_run(case, hash_of(case.id, "float32"), "float32", 12)
    ours = implementation.step_through(case.name, case.flavor, run.hyper, run.params, run.grads, run.lrs, run.losses)
    theirs = run_textbook(case, run.hyper, run.params, run.grads, run.lrs, run.losses)
    compare(ours, theirs, case, "float32", f"{run.hyper}")


# The benchmark.


def test_the_benchmark_has_a_row_for_every_elementwise_optimizer_asked_for(gpu, monkeypatch):
    """Its rows, not its figures: the stand-in has no clock, and PyTorch cannot use it."""
    monkeypatch.setattr("stepwell_server.benchmarks.gpu.has_torch", lambda: False)
    table = benchmark(gpu, 5000, 1, ["adam", "sgd", "rprop"])
    assert [row["optimizer"] for row in table.rows] == ["a copy of one array", "adam", "rprop", "sgd"]
    assert all(row["GB/s"] > 0 for row in table.rows)


# What is missing.


def test_without_cupy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceUnavailable, match=r"stepwell\[server,cuda12\] or stepwell\[server,cuda13\]"):
        CudaDevice()


@pytest.mark.parametrize(("gpus", "number", "message"), [(0, 0, "finds no GPU"), (2, 2, "expected cuda:0 to cuda:1")])
def test_a_gpu_that_is_not_there(monkeypatch, gpus, number, message):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.make(gpus))
    with pytest.raises(DeviceUnavailable, match=message):
        CudaDevice(number)


def test_a_driver_that_is_not_there(monkeypatch):
    module = fake_cupy.make()

    def fail() -> int:
        raise fake_cupy.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    module.cuda.runtime.getDeviceCount = fail
    monkeypatch.setitem(sys.modules, "cupy", module)
    with pytest.raises(DeviceUnavailable, match=r"finds no GPU \(cudaErrorNoDevice.*--device cpu"):
        CudaDevice()


def test_memory_that_the_gpu_has_not(gpu):
    gpu.check_holds(1 << 20)
    with pytest.raises(DeviceUnavailable, match=r"cuda:0 \(.+\) has \d+ bytes free, expected 1099511627777"):
        gpu.check_holds((1 << 40) + 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_a_name_that_is_no_device(name):
    with pytest.raises(DeviceUnavailable, match="expected cpu, cuda or cuda:N"):
        open_device(name, 1)


def test_the_cpu_is_a_device_like_the_other():
    opened = open_device("cpu", 1)
    assert isinstance(opened, CpuDevice)
    opened.check_holds(1 << 60)
    opened.close()


@pytest.fixture
def logs():
    """What a command sets for its own process, and what others in this one must not find."""
    yield
    structlog.reset_defaults()


def test_serve_says_in_one_line_what_is_missing(monkeypatch, tmp_path, logs):
    monkeypatch.setitem(sys.modules, "cupy", None)
    result = CliRunner().invoke(app, ["serve", "--device", "cuda", "--kernel-cache", str(tmp_path / "kernels")])
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("stepwell: device cuda needs CuPy")
