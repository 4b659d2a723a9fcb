"""Kernels on the CPU: the same bits however a launch is cut, and machine code that is kept and never mistaken."""

import itertools
import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

from stepwell_server.core.compiler.program import specialise
from stepwell_server.core.devices import cpu
from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.optimizers import find_optimizer
from stepwell_server.core.pieces import Pieces

DTYPES = ("float32", "float64")
# Enough for three pieces, and not a whole number of cache lines or vector registers.
ELEMENTS = 3 * (1 << 16) + 1237

KERNELS = [
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("adam", {"amsgrad": True, "weight_decay": 0.01}),
    ("rmsprop", {"centered": True, "momentum": 0.5}),
    ("adamax", {"maximize": True}),
]


class Launch:
    """An optimizer's program with random state: what a launch takes."""

    def __init__(self, name, given, dtype, elements=ELEMENTS, step=3):
        definition = find_optimizer(name)
        self.values = definition.resolve("torch", given)
        self.program = specialise(definition, self.values)
        self.dtype = np.dtype(dtype)
        self.step = step
        self.table = np.array([self.program.host(step, self.values, ())[0]], self.dtype)
        random = np.random.default_rng(7)
        arrays = random.normal(size=(2 + len(self.program.slots), elements)).astype(dtype)
        self.param, self.grad, *slots = arrays
        self.slots = [abs(slot) for slot in slots]  # second moments are not negative

    def run(self, device, cuts=None, in_place=True):
        """The new param and slots, by one launch or one per pair of neighbours in `cuts`."""
        kernel = device.compile(self.program, self.dtype)
        param, slots = self.param.copy(), [slot.copy() for slot in self.slots]
        out = param if in_place else np.full_like(param, 99)
        cuts = cuts or [0, len(param)]
        arrays = {"param": param, "grad": self.grad, **dict(zip(self.program.slots, slots, strict=True))}
        for begin, end in itertools.pairwise(cuts):
            kernel.update(pieces([(begin, end)]), self.table, arrays, out)
        if not in_place:
            np.testing.assert_array_equal(param, self.param)
        return [out, *slots]


def pieces(spans):
    begins, ends = np.array(spans, np.int64).reshape(-1, 2).T
    return Pieces(begins.copy(), ends.copy(), np.zeros(len(begins), np.int64))


@pytest.fixture(scope="module")
def devices(kernel_directory):
    made = [CpuDevice(threads, kernel_directory) for threads in (1, 2, 3)]
    yield made
    for each in made:
        each.close()


def assert_same_bits(here, there):
    for one, other in zip(here, there, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "given"), KERNELS, ids=[name for name, _ in KERNELS])
def test_a_launch_gives_the_same_bits_however_it_is_cut(devices, name, given, dtype):
    launch = Launch(name, given, dtype)
    expected = launch.run(devices[0])
    assert not np.array_equal(expected[0], launch.param)
    for device in devices:
        assert_same_bits(launch.run(device), expected)
        assert_same_bits(launch.run(device, in_place=False), expected)
    cuts = sorted({0, 1, 16, 17, 80, ELEMENTS, *np.random.default_rng(5).integers(0, ELEMENTS, 50).tolist()})
    assert_same_bits(launch.run(devices[0], cuts), expected)
    assert_same_bits(launch.run(devices[2], cuts, in_place=False), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "given"), KERNELS, ids=[name for name, _ in KERNELS])
def test_the_kernel_agrees_with_the_numpy_reference(device, name, given, dtype):
    launch = Launch(name, given, dtype, elements=5000)
    got = launch.run(device)
    expected = launch.program.reference(
        launch.param, launch.grad, *launch.slots, step=launch.step, values=launch.values
    )
    for here, there in zip(got, expected, strict=True):
        assert here.dtype == there.dtype == dtype
        # A fused multiply-add rounds once where NumPy rounds twice; centered rmsprop subtracts near equals.
        rtol, atol = (1e-9, 1e-12) if dtype == "float64" else (2e-4, 2e-5)
        np.testing.assert_allclose(here, there, rtol=rtol, atol=atol)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_launch_writes_nothing_outside_its_range(device, in_place):
    launch = Launch("adam", {"amsgrad": True, "weight_decay": 0.01}, "float32", elements=1000)
    inside = slice(128, 777)
    after = launch.run(device, [128, 777], in_place)
    expected = launch.run(device)
    before = [launch.param if in_place else np.full(1000, 99, "float32"), *launch.slots]
    for got, whole, old in zip(after, expected, before, strict=True):
        np.testing.assert_array_equal(got[inside], whole[inside])
        np.testing.assert_array_equal(got[:128], old[:128])
        np.testing.assert_array_equal(got[777:], old[777:])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pieces_of_a_range_cover_it_once_and_begin_on_cache_lines(devices, threads):
    random = np.random.default_rng(threads)
    sizes = [0, 1, (1 << 16) - 1, 1 << 17, 1 << 18, *random.integers(0, 1 << 20, 30).tolist()]
    for size in sizes:
        begin = int(random.integers(0, 1000)) * 64
        noted: list[tuple[int, int]] = []
        lock = threading.Lock()

        def note(part, noted=noted, lock=lock):
            with lock:
                noted.append((int(part.begins[0]), int(part.ends[-1])))

        devices[threads - 1].spread(pieces([(begin, begin + size)]), note)
        noted.sort()
        assert len(noted) <= threads
        assert [noted[0][0], *(b for _, b in noted)] == [*(a for a, _ in noted), begin + size]
        assert all(a % 64 == 0 for a, _ in noted)
        assert size < 1 << 18 or len(noted) == threads


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_shares_of_many_pieces_cover_every_element_once_with_its_row(threads):
    random = np.random.default_rng(threads)
    for count in (1, 2, 5, 1000):
        sizes = random.integers(1, 20_000, count)
        gaps = random.integers(0, 5, count) * 64
        begins = np.cumsum(sizes + gaps) - sizes
        whole = Pieces(begins, begins + sizes, random.integers(0, 9, count))
        covered = np.full(int(whole.ends[-1]), -1)
        expected = covered.copy()
        for begin, end, row in zip(whole.begins, whole.ends, whole.rows, strict=True):
            expected[begin:end] = row
        shares = whole.shares(threads, 64)
        assert len(shares) <= threads
        for share in shares:
            for begin, end, row in zip(share.begins, share.ends, share.rows, strict=True):
                assert begin < end
                assert (covered[begin:end] == -1).all()
                covered[begin:end] = row
        np.testing.assert_array_equal(covered, expected)
        largest = max(share.elements for share in shares)
        assert largest <= -(-whole.elements // threads) + 64


@pytest.mark.parametrize("grain", [1, 100, 1 << 16])
def test_cut_pieces_cover_every_element_once(grain):
    whole = Pieces(np.array([0, 500, 600]), np.array([450, 500, 1001]), np.array([0, 1, 2]))
    cut = whole.cut(grain)
    assert cut.elements == whole.elements
    assert (cut.ends - cut.begins).max() <= grain
    for row in (0, 2):
        own = cut.rows == row
        assert cut.begins[own][0] == whole.begins[row]
        assert cut.ends[own][-1] == whole.ends[row]
        np.testing.assert_array_equal(cut.begins[own][1:], cut.ends[own][:-1])


def test_a_failure_in_a_piece_is_raised_after_the_other_pieces(devices):
    ended = threading.Semaphore(0)

    def fail_last(part):
        if part.ends[-1] == 1 << 20:
            raise ZeroDivisionError
        ended.release()

    with pytest.raises(ZeroDivisionError):
        devices[2].spread(pieces([(0, 1 << 20)]), fail_last)
    assert ended.acquire(blocking=False)
    assert ended.acquire(blocking=False)


@pytest.mark.parametrize("elements", [0, 1, 7, 100_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_begin_on_cache_lines_and_are_zero(device, dtype, elements):
    for _ in range(5):
        vector = device.allocate(elements, np.dtype(dtype))
        assert (vector.shape, vector.dtype) == ((elements,), dtype)
        assert vector.ctypes.data % 64 == 0 or elements == 0
        assert not vector.any()
        assert vector.flags.writeable
        vector.fill(1)


@pytest.mark.parametrize("elements", [1, 3, 4095, 4096, 4097, 10_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_nonfinite_element_is_found_wherever_it_is(device, dtype, elements):
    limits = np.finfo(dtype)
    harmless = np.resize(np.array([limits.max, limits.min, limits.smallest_subnormal, -0.0], dtype), elements)
    assert device.is_finite(harmless.view(np.uint8), np.dtype(dtype))
    for at in {0, 1, 4094, 4095, 4096, elements // 2, elements - 1} & set(range(elements)):
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            values = harmless.copy()
            values[at] = bad
            assert not device.is_finite(np.frombuffer(values.tobytes(), np.uint8), np.dtype(dtype))


def test_a_nan_of_any_payload_is_found(device):
    for bits in (0x7F800001, 0xFFC00000, 0x7FFFFFFF):
        assert not device.is_finite(np.array([0, bits], np.uint32).view(np.uint8), np.dtype("float32"))
    for bits in (0x7FF0000000000001, 0xFFF8000000000000):
        assert not device.is_finite(np.array([0, bits], np.uint64).view(np.uint8), np.dtype("float64"))


# Kernels on disk.


def files(directory):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in directory.rglob("*") if path.is_file()}


def test_a_second_device_compiles_nothing_again(tmp_path):
    launch = Launch("sgd", {}, "float32", elements=100)
    expected = launch.run(CpuDevice(1, tmp_path))
    before = files(tmp_path)
    # Python may keep its own compiled form (.pyc) beside Numba's.
    assert {path.suffix for path in before} - {".pyc"} == {".py", ".nbi", ".nbc"}
    assert_same_bits(launch.run(CpuDevice(1, tmp_path)), expected)
    # Numba writes its index (.nbi) again whenever it has compiled.
    assert files(tmp_path) == before
    # Another dtype is another machine code of the same source.
    Launch("sgd", {}, "float64", elements=100).run(CpuDevice(1, tmp_path))
    assert len(files(tmp_path)) == len(before) + 2


def test_another_process_compiles_nothing_again(tmp_path):
    """Strings hash differently in every process, and nothing that is kept may be named by it."""
    script = (
        "import pathlib, sys; from stepwell_server.core.devices.cpu import CpuDevice\n"
        "CpuDevice(1, pathlib.Path(sys.argv[1]))"
    )
    for seed in "123":
        command = [sys.executable, "-c", script, str(tmp_path)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    assert len(list(tmp_path.glob("copies_*.py"))) == 1


def test_a_changed_source_is_not_mistaken(tmp_path):
    launch = Launch("sgd", {}, "float32", elements=100)
    expected = launch.run(CpuDevice(1, tmp_path))
    (source,) = tmp_path.glob("sgd_*.py")
    stamp = source.stat()
    text = source.read_text()
    source.write_text(text.replace("v_param - _c0", "v_param + _c0"))
    assert source.read_text() != text
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert source.stat().st_size == stamp.st_size
    assert_same_bits(launch.run(CpuDevice(1, tmp_path)), expected)
    assert source.read_text() == text


def test_variants_of_one_optimizer_do_not_share_a_source(tmp_path):
    one = CpuDevice(1, tmp_path)
    for given in ({}, {"maximize": True}, {"weight_decay": 0.5}):
        Launch("sgd", given, "float32", elements=100).run(one)
    assert len(list(tmp_path.glob("sgd_*.py"))) == 3
    for given in ({}, {"maximize": True}, {"weight_decay": 0.5}):
        launch = Launch("sgd", given, "float32", elements=100)
        lr, decay = np.float32(1e-3), np.float32(given.get("weight_decay", 0))
        gradient = (-launch.grad if given.get("maximize") else launch.grad) + decay * launch.param
        np.testing.assert_allclose(
            launch.run(CpuDevice(1, tmp_path))[0], launch.param - lr * gradient, rtol=1e-6, atol=1e-6
        )


def test_other_compiler_options_are_other_machine_code(tmp_path, monkeypatch):
    Launch("sgd", {}, "float32", elements=100).run(CpuDevice(1, tmp_path))
    before = files(tmp_path)
    monkeypatch.setattr(cpu, "_OPTIONS", {**cpu._OPTIONS, "fastmath": True})
    Launch("sgd", {}, "float32", elements=100).run(CpuDevice(1, tmp_path))
    assert files(tmp_path) != before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 3, 5, 2), (70_000,), (16_385, 4, 100_003)])
def test_a_nonfinite_element_is_found_wherever_it_is_and_nothing_between_pieces(device, dtype, sizes):
    random = np.random.default_rng(len(sizes))
    gaps = [7] * len(sizes)
    begins = np.cumsum([0, *[size + gap for size, gap in zip(sizes, gaps, strict=True)]])[:-1]
    ends = begins + np.array(sizes)
    numbers = np.full(int(ends[-1]) + 7, np.nan)
    for begin, end in zip(begins, ends, strict=True):
        numbers[begin:end] = random.standard_normal(end - begin)
    vector = device.allocate(len(numbers), np.dtype(getattr(ml_dtypes, dtype, dtype)))
    vector[:] = numbers
    assert device.finite_pieces(vector, begins, ends)
    places = {int(begin) for begin in begins} | {int(end) - 1 for end in ends}
    places |= {int(random.integers(begin, end)) for begin, end in zip(begins, ends, strict=True) for _ in range(5)}
    for place in places:
        for bad in (np.nan, np.inf, -np.inf):
            before, vector[place] = vector[place], bad
            assert not device.finite_pieces(vector, begins, ends), place
            vector[place] = before
    largest = ml_dtypes.finfo(vector.dtype).max
    vector[begins[0]] = -largest
    assert device.finite_pieces(vector, begins, ends)


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def padded(sizes):
    """Parameters of these sizes in float32: where each begins packed, and the end; and where in the vector."""
    packed = np.concatenate([[0], np.cumsum(sizes)]) * 4
    vector = np.concatenate([[0], np.cumsum([-(-4 * size // 64) * 64 for size in sizes])])
    return packed.astype(np.int64), vector.astype(np.int64)


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16), np.dtype(np.float64)], ids=str)
def test_elements_of_another_type_are_converted_on_their_way_in_and_out(device, dtype):
    """Against NumPy's own conversions, over padding, from any element to any other; nothing else is touched."""
    sizes = [5, 16, 0, 1, 40]
    packed_offsets, vector_offsets = padded(sizes)
    random = np.random.default_rng(3)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42, 3.4e38, 1.0 + 2**-8, 1.0 + 3 * 2**-8, 2.0**-133])
    sent = np.concatenate([special, random.standard_normal(sum(sizes) - len(special))]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = sent.astype(dtype)
        back = converted.astype(np.float32)
    where = np.concatenate(
        [np.arange(size) + begin // 4 for size, begin in zip(sizes, vector_offsets, strict=False)]
    ).astype(int)
    for begin, end in [(0, 62), (3, 7), (5, 21), (20, 23), (61, 62)]:
        vector = np.full(vector_offsets[-1] // 4, 77, np.float32)
        data = converted[begin:end].view(np.uint8)
        device.place(vector, data, 4 * begin, packed_offsets, vector_offsets, dtype)
        expected = np.full_like(vector, 77)
        expected[where[begin:end]] = back[begin:end]
        np.testing.assert_array_equal(vector, expected)
        vector[where] = sent
        out = np.zeros((end - begin) * dtype.itemsize, np.uint8)
        device.gather(vector, out, 4 * begin, packed_offsets, vector_offsets, dtype)
        np.testing.assert_array_equal(out.view(dtype).astype(np.float64), converted[begin:end].astype(np.float64))
