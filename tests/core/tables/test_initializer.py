"""What rows begin with: the same whoever asks in whatever order, and of the distribution that was asked for."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.tables import hashing, row_loops
from tests.core.tables.local import LocalTable, state_of

INITIALIZERS = [
    {"name": "constant", "value": 0.25},
    {"name": "uniform", "minimum": -0.5, "maximum": 1.5},
    {"name": "normal", "mean": 0.5, "std": 2.0},
]
IDS = np.concatenate([np.arange(-3000, 3000), [-(1 << 63), (1 << 63) - 1, 1 << 40]])

each = pytest.mark.parametrize("initializer", INITIALIZERS, ids=["constant", "uniform", "normal"])


def make(device, initializer, **more):
    return LocalTable(device, **{"width": 7, "optimizer": "adagrad", "initializer": initializer, "seed": 3, **more})


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_order_batches_and_threads_make_no_difference(initializer, dtype, device, kernel_directory):
    expected = make(device, initializer, dtype=dtype).pull(IDS)
    random = np.random.default_rng(0)
    order = random.permutation(len(IDS))
    other = CpuDevice(1, kernel_directory)
    pulled = make(other, initializer, dtype=dtype, hash_key=99)
    np.testing.assert_array_equal(pulled.pull(IDS[order]), expected[order])
    np.testing.assert_array_equal([pulled.pull([number])[0] for number in IDS[:50]], expected[:50])
    pushed = make(device, initializer, dtype=dtype)
    for part in np.array_split(order, 7):
        pushed.push(IDS[part], 0.0)
    np.testing.assert_array_equal(pushed.pull(IDS), expected)
    np.testing.assert_array_equal(state_of(pushed)["rows"], expected[np.argsort(IDS)])
    other.close()


def test_pulling_stores_nothing(device):
    table = make(device, INITIALIZERS[1])
    before = table.memory.used_bytes
    table.pull(IDS)
    assert table.table.statistics.rows == 0
    assert table.memory.used_bytes == before


@each
def test_seed_and_name_and_id_and_place_all_count(initializer, device):
    first = make(device, initializer).pull(IDS)
    if initializer["name"] == "constant":
        assert (first == 0.25).all()
        return
    assert len(np.unique(first)) > 0.99 * first.size
    for other in ({"seed": 4}, {"name": "item"}):
        assert (make(device, initializer, **other).pull(IDS) != first).mean() > 0.99
    # A row begins the same however wide the table is.
    np.testing.assert_array_equal(make(device, initializer, width=3).pull(IDS), first[:, :3])


def test_moments(device):
    """Mean, spread, skew and tails, each within five standard errors; neighbours and columns do not go together."""
    count = 60_000
    ids = np.arange(count)
    uniform = make(device, INITIALIZERS[1], dtype="float64").pull(ids)
    assert uniform.min() >= -0.5
    assert uniform.max() < 1.5
    expect_moments(uniform, 0.5, 2 / math.sqrt(12), 1.8)
    normal = make(device, INITIALIZERS[2], dtype="float64").pull(ids)
    expect_moments(normal, 0.5, 2.0, 3.0)
    for values in (uniform, normal):
        values = (values - values.mean()) / values.std()
        limit = 5 / math.sqrt(values.size)
        assert abs((values[1:] * values[:-1]).mean()) < limit
        assert abs((values[:, 1:] * values[:, :-1]).mean()) < limit
    # The share of each of 64 slices, against what chance allows.
    places = (64 * np.vectorize(NormalDist().cdf)((normal[:2000] - 0.5) / 2)).astype(int)
    counts = np.bincount(places.ravel(), minlength=64)
    expected = places.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 6 * math.sqrt(2 * 63)


def expect_moments(values, mean, std, fourth):
    centred = (values - mean) / std
    error = 1 / math.sqrt(values.size)
    assert abs(centred.mean()) < 5 * error
    assert abs((centred**2).mean() - 1) < 5 * error * math.sqrt(fourth - 1)
    assert abs((centred**3).mean()) < 5 * error * 4
    assert abs((centred**4).mean() - fourth) < 5 * error * 10


def test_quantile_is_the_normal_distributions(device):
    """Against the standard library, over the whole range that 53 bits can ask for."""
    values = [2.0**-54, 1e-12, 1e-5, 0.01, 0.07, 0.2, 0.5, 0.7, 0.93, 1 - 1e-6, 1 - 2.0**-53]
    for value in values:
        assert row_loops.quantile(value) == pytest.approx(NormalDist().inv_cdf(value), rel=1e-14, abs=1e-14)


def test_the_bits_are_those_of_the_formula(device):
    """The compiled loop, and the formula on Python's integers."""
    spec = make(device, INITIALIZERS[1], dtype="float64")
    key, columns = spec.table.initializer._key, spec.table.initializer._columns
    with np.errstate(over="ignore"):
        own = hashing.hash_of(np.int64(-5).astype(np.uint64), key)
        bits = [int(hashing.mix(own + column)) for column in columns]
    expected = [-0.5 + (each >> 11) * 2.0**-53 * 2.0 for each in bits]
    np.testing.assert_array_equal(spec.pull([-5])[0], expected)
