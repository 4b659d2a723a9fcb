import gc

import numpy as np
import pytest

from stepwell._receiving import POOLED_BUFFERS_MAX, BufferPool, Received
from stepwell.errors import Internal
from stepwell.v1 import run_pb2
from tests.client.test_packing import lay_out

LAYOUT = lay_out([("a", (3,), 0), ("e", (0, 2), 0), ("b", (2, 2), 0), ("c", (), 0), ("d", (5,), 1)])
SIZE = 4 << 20


def vectors():
    return [np.arange(8, dtype="<f4").tobytes(), np.arange(5, dtype="<f8").tobytes()]


def put_all(received, spans):
    received.begin()
    for group, start, end in spans:
        data = vectors()[group][start:end]
        received.put(run_pb2.Range(group=group, packed_offset_bytes=start), data)


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("cut", [4, 8, 12, 32])
def test_all_parameters_in_ranges_of_any_cut(cut, out):
    parameters = LAYOUT.parameters
    into = {p.name: np.full(p.shape, 9, p.dtype) for p in parameters} if out else None
    received = Received(LAYOUT, parameters, BufferPool(), into)
    spans = [(0, at, at + cut) for at in range(0, 32, cut)] + [(1, at, at + 8) for at in range(0, 40, 8)]
    put_all(received, reversed(spans))
    arrays = received.arrays()
    assert list(arrays) == ["a", "e", "b", "c", "d"]
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    np.testing.assert_array_equal(arrays["b"], [[3, 4], [5, 6]])
    assert arrays["c"].shape == ()
    assert arrays["c"] == 7
    np.testing.assert_array_equal(arrays["d"], np.arange(5.0))
    assert all(array.flags.writeable for array in arrays.values())
    if into:
        assert all(arrays[name] is into[name] for name in into)


def test_some_parameters():
    received = Received(LAYOUT, LAYOUT.select(["c", "a"]), BufferPool())
    put_all(received, [(0, 28, 32), (0, 0, 4), (0, 4, 12)])
    arrays = received.arrays()
    assert list(arrays) == ["c", "a"]
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    assert arrays["c"] == 7


@pytest.mark.parametrize("span", [(0, 12, 16), (0, 8, 16), (0, 24, 32), (1, 0, 8)])
def test_bytes_that_were_not_asked_for(span):
    received = Received(LAYOUT, LAYOUT.select(["c", "a"]), BufferPool())
    with pytest.raises(Internal):
        put_all(received, [span])


def test_missing_bytes():
    received = Received(LAYOUT, LAYOUT.parameters, BufferPool())
    put_all(received, [(0, 0, 32)])
    with pytest.raises(Internal, match="expected 72"):
        received.arrays()


def test_a_second_try_starts_over():
    received = Received(LAYOUT, LAYOUT.parameters, BufferPool())
    put_all(received, [(0, 0, 32)])
    put_all(received, [(0, 0, 32), (1, 0, 40)])
    assert len(received.arrays()) == 5


def test_the_pool_gives_memory_again_once_every_view_is_gone():
    pool = BufferPool()
    buffer = pool.take(SIZE)
    address = buffer.ctypes.data
    view = np.ndarray((1000,), np.float32, buffer, 64)
    part = view[10:].reshape(10, -1)[1:]
    exported = part.data
    del buffer, view, part
    gc.collect()
    other = pool.take(SIZE)
    assert other.ctypes.data != address, "a memoryview still shows the memory"
    del exported
    again = pool.take(SIZE)
    assert again.ctypes.data == address
    assert again.flags.writeable


def test_the_pool_is_bounded():
    pool = BufferPool()
    buffers = [pool.take(SIZE) for _ in range(10)]
    addresses = {buffer.ctypes.data for buffer in buffers}
    buffers.clear()
    kept = [pool.take(SIZE) for _ in range(POOLED_BUFFERS_MAX)]
    assert all(buffer.ctypes.data in addresses for buffer in kept)
    assert len(pool._free) == 0
    assert pool.take(SIZE // 2).nbytes == SIZE // 2
