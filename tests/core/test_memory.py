"""The budget: never more than the limit, and freed vectors used again."""

import random

import numpy as np
import pytest

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.errors import MemoryExhausted
from stepwell_server.core.memory import Memory

SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


class Counting(CpuDevice):
    """A device that compiles nothing and counts what it allocates."""

    def __init__(self) -> None:
        self.made = 0

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
    return sum(elements * dtype.itemsize + 64 for elements, dtype in sizes)


def test_what_is_taken_counts_until_it_is_free(memory):
    sizes = [(100, SINGLE), (100, DOUBLE), (0, SINGLE)]
    vectors = memory.allocate(sizes, "a test")
    assert [(len(vector), vector.dtype) for vector in vectors] == sizes
    assert memory.used_bytes == cost(*sizes) == 1392
    memory.free(vectors[:1])
    memory.drop_kept()
    assert memory.used_bytes == cost(*sizes[1:])
    memory.free(vectors[1:])
    memory.drop_kept()
    assert memory.used_bytes == 0


def test_the_limit_itself_can_be_had_and_nothing_beyond_it(memory):
    whole = ((10_000 - 64) // 4, SINGLE)
    assert cost(whole) == 10_000
    assert memory.try_allocate([(whole[0] + 1, SINGLE)]) is None
    vectors = memory.try_allocate([whole])
    assert vectors is not None
    assert memory.try_allocate([(0, SINGLE)]) is None
    memory.free(vectors)
    # All or nothing: the first of these alone would fit.
    assert memory.try_allocate([(1000, SINGLE), (2000, SINGLE)]) is None
    assert memory.used_bytes == 10_000  # kept, and still counted
    assert memory.try_allocate([(1000, SINGLE), (1000, DOUBLE)]) is None
    assert memory.try_allocate([(500, SINGLE), (500, DOUBLE)]) is not None
    assert memory.used_bytes == cost((500, SINGLE), (500, DOUBLE))


def test_a_freed_vector_is_the_next_of_its_size(memory):
    (first,) = memory.allocate([(100, SINGLE)], "a test")
    memory.free([first])
    (other,) = memory.allocate([(100, DOUBLE)], "a test")
    (shorter,) = memory.allocate([(99, SINGLE)], "a test")
    (again,) = memory.allocate([(100, SINGLE)], "a test")
    assert again is first
    assert other is not first
    assert shorter is not first
    (fresh,) = memory.allocate([(100, SINGLE)], "a test")
    assert fresh is not first
    assert made(memory) == 4


def test_two_vectors_of_each_size_are_kept(memory):
    vectors = memory.allocate([(100, SINGLE)] * 3, "a test")
    memory.free(vectors)
    assert memory.used_bytes == cost(*[(100, SINGLE)] * 2)
    memory.allocate([(100, SINGLE)] * 3, "a test")
    assert made(memory) == 4


def test_kept_vectors_go_when_the_budget_is_short(memory):
    (large,) = memory.allocate([(2000, SINGLE)], "a test")
    memory.free([large])
    assert memory.used_bytes == cost((2000, SINGLE))
    memory.allocate([(400, SINGLE)], "a test")
    assert memory.used_bytes == cost((2000, SINGLE), (400, SINGLE))
    memory.allocate([(400, DOUBLE)], "a test")
    assert memory.used_bytes == cost((400, SINGLE), (400, DOUBLE))


def test_a_kept_vector_is_reused_once(memory):
    for size in ((400, DOUBLE), (600, DOUBLE)):
        memory.free(memory.allocate([size], "a test"))
    memory.allocate([(400, DOUBLE), (400, DOUBLE)], "a test")
    assert memory.used_bytes <= memory.bytes_max


@pytest.mark.parametrize("seed", range(20))
def test_random_takers_never_exceed_the_limit(memory, seed):
    dice = random.Random(seed)
    taken: list[tuple[list[tuple[int, np.dtype]], list[np.ndarray]]] = []
    for _ in range(300):
        if dice.random() < 0.55:
            sizes = dice.sample([(elements, dtype) for elements in (0, 50, 200, 700) for dtype in (SINGLE, DOUBLE)], 2)
            vectors = memory.try_allocate(sizes)
            fits = sum(cost(*sizes) for sizes, _ in taken) + cost(*sizes) <= memory.bytes_max
            assert (vectors is not None) == fits
            if vectors is not None:
                assert [(len(vector), vector.dtype) for vector in vectors] == sizes
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
    (large,) = memory.allocate([(2000, SINGLE)], "a test")
    assert told == []
    memory.free([large])
    assert len(told) == 1
    memory.on_free = lambda: told.append(memory.try_allocate([(2400, SINGLE)]) is not None)
    memory.free(memory.allocate([(2000, SINGLE)], "a test"))
    assert told[-1] is True


def test_a_refusal_says_what_is_needed_and_what_is_left(memory):
    memory.allocate([(1000, SINGLE)], "a test")
    with pytest.raises(MemoryExhausted) as caught:
        memory.allocate([(2000, SINGLE)], "run 'mnist': its state")
    assert str(caught.value) == (
        "run 'mnist': its state needs 8064 bytes, expected at most 5936, which is what is left of the server's 10000; "
        "delete runs, or start the server with a larger --max-memory"
    )
    assert caught.value.details == {"needed_bytes": "8064", "free_bytes": "5936", "limit_bytes": "10000"}
    assert memory.used_bytes == cost((1000, SINGLE))


def test_what_can_never_fit_is_refused_at_once(memory):
    size = ((10_000 - 64 - 1000) // 8, DOUBLE)
    memory.check_fits([size], "an update", 1000)
    memory.check_fits([size, (0, SINGLE)], "an update", 936)
    with pytest.raises(MemoryExhausted, match="an update needs 9000 bytes, expected at most 8996 of the"):
        memory.check_fits([size], "an update", 1004)
    with pytest.raises(MemoryExhausted) as caught:
        memory.check_fits([size, (0, SINGLE)], "an update", 1000)
    assert caught.value.details == {"needed_bytes": "9064", "limit_bytes": "10000"}
    assert memory.used_bytes == 0
