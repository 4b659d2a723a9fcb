"""The budget: never more than the limit, and freed vectors used again."""

import random

import numpy as np
import pytest

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.devices.shared import SharedVectors
from stepwell_server.core.errors import MemoryExhausted
from stepwell_server.core.memory import Memory, Size

SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


class Counting(CpuDevice):
    """A device that compiles nothing and counts what it allocates."""

    def __init__(self) -> None:
        self.made = 0
        self.shared = SharedVectors()

    def allocate(self, elements, dtype):
        self.made += 1
        return np.full(elements, 99, dtype)


def made(memory):
    """How many vectors are not those of an earlier taker."""
    return memory.device.made


@pytest.fixture
def memory():
    return Memory(Counting(), 10_000)


def cost(*sizes):
    """A vector costs its bytes, and 64 for its alignment."""
    return sum(size.elements * size.dtype.itemsize + 64 for size in sizes)


def test_what_is_taken_counts_until_it_is_free(memory):
    sizes = [Size(100, SINGLE), Size(100, DOUBLE), Size(0, SINGLE)]
    vectors = memory.allocate(sizes, "a test")
    assert [Size(len(vector), vector.dtype) for vector in vectors] == sizes
    assert memory.used_bytes == cost(*sizes) == 1392
    memory.free(vectors[:1])
    memory.drop_kept()
    assert memory.used_bytes == cost(*sizes[1:])
    memory.free(vectors[1:])
    memory.drop_kept()
    assert memory.used_bytes == 0


def test_the_limit_itself_can_be_had_and_nothing_beyond_it(memory):
    whole = Size((10_000 - 64) // 4, SINGLE)
    assert cost(whole) == 10_000
    assert memory.try_allocate([Size(whole[0] + 1, SINGLE)]) is None
    vectors = memory.try_allocate([whole])
    assert vectors is not None
    assert memory.try_allocate([Size(0, SINGLE)]) is None
    memory.free(vectors)
    # All or nothing: the first of these alone would fit.
    assert memory.try_allocate([Size(1000, SINGLE), Size(2000, SINGLE)]) is None
    assert memory.used_bytes == 10_000  # kept, and still counted
    assert memory.try_allocate([Size(1000, SINGLE), Size(1000, DOUBLE)]) is None
    assert memory.try_allocate([Size(500, SINGLE), Size(500, DOUBLE)]) is not None
    assert memory.used_bytes == cost(Size(500, SINGLE), Size(500, DOUBLE))


def test_a_freed_vector_is_the_next_of_its_size(memory):
    (first,) = memory.allocate([Size(100, SINGLE)], "a test")
    memory.free([first])
    (other,) = memory.allocate([Size(100, DOUBLE)], "a test")
    (shorter,) = memory.allocate([Size(99, SINGLE)], "a test")
    (again,) = memory.allocate([Size(100, SINGLE)], "a test")
    assert again is first
    assert other is not first
    assert shorter is not first
    (fresh,) = memory.allocate([Size(100, SINGLE)], "a test")
    assert fresh is not first
    assert made(memory) == 4


@pytest.mark.parametrize(("elements", "kept"), [(9 << 20, 2), (4 << 20, 3)], ids=["large", "of 64 MiB"])
def test_a_few_vectors_of_each_size_are_kept(elements, kept):
    """Two large ones; of small ones as many as 64 MiB hold."""
    memory = Memory(Counting(), 1 << 40)
    size = Size(elements, SINGLE)
    memory.free(memory.allocate([size] * 4, "a test"))
    assert memory.used_bytes == cost(*[size] * kept)
    memory.allocate([size] * 4, "a test")
    assert made(memory) == 8 - kept


def test_kept_vectors_go_when_the_budget_is_short(memory):
    (large,) = memory.allocate([Size(2000, SINGLE)], "a test")
    memory.free([large])
    assert memory.used_bytes == cost(Size(2000, SINGLE))
    memory.allocate([Size(400, SINGLE)], "a test")
    assert memory.used_bytes == cost(Size(2000, SINGLE), Size(400, SINGLE))
    memory.allocate([Size(400, DOUBLE)], "a test")
    assert memory.used_bytes == cost(Size(400, SINGLE), Size(400, DOUBLE))


def test_a_kept_vector_is_reused_once(memory):
    for size in (Size(400, DOUBLE), Size(600, DOUBLE)):
        memory.free(memory.allocate([size], "a test"))
    memory.allocate([Size(400, DOUBLE), Size(400, DOUBLE)], "a test")
    assert memory.used_bytes <= memory.bytes_max


@pytest.mark.parametrize("seed", range(20))
def test_random_takers_never_exceed_the_limit(memory, seed):
    dice = random.Random(seed)
    taken: list[tuple[list[Size], list[np.ndarray]]] = []
    for _ in range(300):
        if dice.random() < 0.55:
            sizes = dice.sample(
                [Size(elements, dtype) for elements in (0, 50, 200, 700) for dtype in (SINGLE, DOUBLE)], 2
            )
            vectors = memory.try_allocate(sizes)
            fits = sum(cost(*sizes) for sizes, _ in taken) + cost(*sizes) <= memory.bytes_max
            assert (vectors is not None) == fits
            if vectors is not None:
                assert [Size(len(vector), vector.dtype) for vector in vectors] == sizes
                taken.append((sizes, vectors))
        elif taken:
            memory.free(taken.pop(dice.randrange(len(taken)))[1])
        alive = [vector for _, vectors in taken for vector in vectors]
        assert len({id(vector) for vector in alive}) == len(alive), "a vector has two takers"
        assert sum(cost(*sizes) for sizes, _ in taken) <= memory.used_bytes <= memory.bytes_max
    for _, vectors in taken:
        memory.free(vectors)
    memory.drop_kept()
    assert memory.used_bytes == 0


def test_whoever_waits_is_told_when_memory_is_free(memory):
    told = []
    memory.on_free = lambda: told.append(memory.used_bytes)
    (large,) = memory.allocate([Size(2000, SINGLE)], "a test")
    assert told == []
    memory.free([large])
    assert len(told) == 1
    memory.on_free = lambda: told.append(memory.try_allocate([Size(2400, SINGLE)]) is not None)
    memory.free(memory.allocate([Size(2000, SINGLE)], "a test"))
    assert told[-1] is True


def test_a_refusal_says_what_is_needed_and_what_is_left(memory):
    memory.allocate([Size(1000, SINGLE)], "a test")
    with pytest.raises(MemoryExhausted) as caught:
        memory.allocate([Size(2000, SINGLE)], "run 'mnist': its state")
    assert str(caught.value) == (
        "run 'mnist': its state needs 8064 bytes, expected at most 5936, which is what is left of the server's 10000; "
        "delete runs, or start the server with a larger --max-memory"
    )
    assert caught.value.details == {"needed_bytes": "8064", "free_bytes": "5936", "limit_bytes": "10000"}
    assert memory.used_bytes == cost(Size(1000, SINGLE))


def test_what_can_never_fit_is_refused_at_once(memory):
    size = Size((10_000 - 64 - 1000) // 8, DOUBLE)
    memory.check_fits([size], "an update", 1000)
    memory.check_fits([size, Size(0, SINGLE)], "an update", 936)
    with pytest.raises(MemoryExhausted, match="an update needs 9000 bytes, expected at most 8996 of the"):
        memory.check_fits([size], "an update", 1004)
    with pytest.raises(MemoryExhausted) as caught:
        memory.check_fits([size, Size(0, SINGLE)], "an update", 1000)
    assert caught.value.details == {"needed_bytes": "9064", "limit_bytes": "10000"}
    assert memory.used_bytes == 0


OWN = Size(100, SINGLE, "worker")


def test_an_owner_gets_its_own_memory_again_and_nobody_else_does(memory):
    assert memory.try_set_quota(OWN, 1)
    (mine,) = memory.allocate([OWN], "a test")
    mine.fill(7)
    address = mine.ctypes.data
    memory.free([mine])
    others = memory.allocate([Size(100, SINGLE), Size(100, SINGLE, "another")], "a test")
    assert not {address} & {vector.ctypes.data for vector in others}
    (again,) = memory.allocate([OWN], "a test")
    assert again.ctypes.data == address
    np.testing.assert_array_equal(again, np.full(100, 7))


def test_without_a_quota_nothing_is_kept_for_an_owner(memory):
    (mine,) = memory.allocate([OWN], "a test")
    memory.free([mine])
    assert memory.used_bytes == 0
    del mine
    assert not memory.device.shared._open


def test_a_quota_counts_whether_it_is_used_or_not(memory):
    assert memory.try_set_quota(OWN, 3)
    assert memory.used_bytes == 3 * cost(OWN)
    vectors = memory.allocate([OWN] * 2, "a test")
    assert memory.used_bytes == 3 * cost(OWN)
    vectors += memory.allocate([OWN] * 2, "a test")
    assert memory.used_bytes == 4 * cost(OWN)
    memory.free(vectors)
    assert memory.used_bytes == 3 * cost(OWN)
    assert memory.try_set_quota(OWN, 0)
    assert memory.used_bytes == 0


def test_what_is_owed_can_be_had_in_a_full_memory(memory):
    assert memory.try_set_quota(OWN, 2)
    rest = Size((10_000 - memory.used_bytes - 64) // 4, SINGLE)
    memory.allocate([rest], "a test")
    assert memory.try_allocate([Size(0, SINGLE)]) is None
    assert not memory.try_set_quota(OWN, 3)
    memory.check_fits([OWN], "a commit", 10_000)
    assert memory.try_allocate([OWN, OWN]) is not None
    assert memory.try_allocate([OWN]) is None


@pytest.mark.parametrize("seed", range(5))
def test_quotas_and_takers_never_pass_the_limit(memory, seed):
    dice = random.Random(seed)
    sizes = [Size(elements, SINGLE, owner) for elements in (10, 300) for owner in ("", "a", "b")]
    taken: list[tuple[Size, np.ndarray]] = []
    quotas = dict.fromkeys([size for size in sizes if size.owner], 0)
    for _ in range(2000):
        size = dice.choice(sizes)
        if size.owner and dice.random() < 0.2:
            quota = dice.randrange(4)
            if memory.try_set_quota(size, quota):
                quotas[size] = quota
        elif dice.random() < 0.5:
            counts = sum(each == size for each, _ in taken)
            vectors = memory.try_allocate([size])
            assert vectors is not None or counts >= quotas.get(size, 0), "what is owed was refused"
            taken += [(size, vector) for vector in vectors or ()]
        elif taken:
            memory.free([taken.pop(dice.randrange(len(taken)))[1]])
        expected = sum(cost(size) for size, _ in taken if not size.owner)
        expected += sum(
            max(quota, sum(each == size for each, _ in taken)) * cost(size) for size, quota in quotas.items()
        )
        memory.drop_kept()
        assert memory.used_bytes == expected <= 10_000
    addresses = [vector.ctypes.data for _, vector in taken]
    assert len(set(addresses)) == len(addresses)
