"""The hash index against a dict: growth, deletion, and ids that somebody chose to collide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell_server.core.errors import LimitExceeded
from stepwell_server.core.tables.hashing import hash_of
from stepwell_server.core.tables.index import HashIndex
from stepwell_server.core.tables.index_loops import FILL_MAX, SLOTS

LEAST, MOST = -(1 << 63), (1 << 63) - 1
ODD_IDS = [LEAST, LEAST + 1, -1, 0, 1, MOST - 1, MOST]


class Indexed:
    """An index that gets the memory that it asks for."""

    def __init__(self, device, key=7):
        self.index = HashIndex(device, key, self.allocate(HashIndex.block_size(0)))
        self.model = {}

    def allocate(self, size):
        return np.full(size.elements, 0x5A5A5A5A5A5A5A5A, size.dtype)

    def reserve(self, ids):
        done = 0
        while (done := self.index.reserve(ids, done)) < len(ids):
            self.index.add_block(self.allocate(self.index.next_block))

    def put(self, ids, rows):
        ids = np.array(ids, np.int64)
        self.reserve(ids)
        self.index.assign(ids, np.array(rows, np.int64))
        self.model.update(zip(ids.tolist(), rows, strict=True))

    def remove(self, ids):
        self.index.remove(np.array(ids, np.int64))
        for number in ids:
            self.model.pop(number, None)

    def check(self, others=()):
        asked = np.array([*self.model, *others], np.int64)
        rows = np.empty(len(asked), np.int64)
        missing = self.index.lookup(asked, rows)
        assert rows.tolist() == [self.model.get(number, -1) for number in asked.tolist()]
        assert missing == sum(number not in self.model for number in asked.tolist())
        assert self.index.entries == len(self.model)


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from(ODD_IDS) | st.integers(-40, 40), max_size=60, unique=True)),
        max_size=20,
    )
)
@settings(max_examples=60)
def test_it_does_as_a_dict(device, history):
    indexed = Indexed(device)
    for number, (puts, ids) in enumerate(history):
        if puts:
            indexed.put(ids, range(1000 * number, 1000 * number + len(ids)))
        else:
            indexed.remove(ids)
        indexed.check([*range(-45, 45), *ODD_IDS])


@pytest.mark.parametrize("step", [1, -1, 1 << 20, 1 << 52, 0x9E3779B97F4A7C15])
def test_it_grows_and_shrinks_with_patterns_of_ids(step, device):
    indexed, random = Indexed(device), np.random.default_rng(1)
    ids = (np.arange(40_000, dtype=np.uint64) * np.uint64(step % (1 << 64))).view(np.int64)
    for begin in range(0, len(ids), 3000):
        indexed.put(ids[begin : begin + 3000], range(begin, min(begin + 3000, len(ids))))
    indexed.check(ODD_IDS)
    # It is half full or more, and its segments came a few at a time.
    assert len(ids) / (indexed.index.segments_count * SLOTS) > 0.35
    indexed.remove(random.permutation(ids)[:30_000].tolist())
    indexed.check(ids.tolist())
    indexed.put(ids, range(len(ids)))
    indexed.check()


def test_no_call_moves_more_than_its_segments(device):
    """A split moves one segment's ids: nothing is ever hashed anew as a whole."""
    indexed = Indexed(device)
    before = 0
    for begin in range(0, 200_000, 1000):
        indexed.put(range(begin, begin + 1000), range(begin, begin + 1000))
        segments = indexed.index.segments_count
        assert segments - before <= max(16, segments // 4)
        before = segments


def test_room_that_is_kept_is_not_seen_and_can_be_given_back(device):
    indexed = Indexed(device)
    indexed.put([1, 2], [10, 20])
    indexed.reserve(np.arange(1, 5000))
    indexed.index.release(np.arange(1, 5000))
    indexed.check(range(100))
    indexed.reserve(np.arange(3, 900))
    indexed.model = {1: 10, 2: 20}
    rows = np.empty(898, np.int64)
    assert indexed.index.lookup(np.arange(2, 900), rows) == 897
    indexed.index.release(np.arange(3, 900))
    indexed.check(range(100))


def test_ids_that_begin_in_one_place_are_all_found(device):
    """Somebody who knows the key: all ids of a segment want the same place."""
    key, wanted = np.uint64(7), []
    with np.errstate(over="ignore"):
        candidates = np.arange(1 << 21, dtype=np.int64)
        hashes = hash_of(candidates.astype(np.uint64), key)
    wanted = candidates[(hashes & np.uint64(SLOTS - 1)) == 5][: 2 * FILL_MAX].tolist()
    indexed = Indexed(device)
    indexed.put(wanted, range(len(wanted)))
    indexed.remove(wanted[::3])
    indexed.check(wanted)


def unmixed(hashed):
    """The id of a hash; multiplications are undone by inverses modulo 2^64."""
    for _ in range(2):
        hashed ^= hashed >> 33
        hashed = hashed * pow(0xC4CEB9FE1A85EC53, -1, 1 << 64) % (1 << 64)
        hashed ^= hashed >> 33
        hashed = hashed * pow(0xFF51AFD7ED558CCD, -1, 1 << 64) % (1 << 64)
        hashed ^= hashed >> 33
        yield hashed


def id_of(hashed, key):
    inner, _ = unmixed(hashed)
    outer, _ = unmixed((inner - key) % (1 << 64))
    number = outer ^ key
    return number - (1 << 64) if number >> 63 else number


def test_ids_whose_hashes_agree_are_refused_before_the_directory_grows_without_bound(device):
    key = 7
    ids = np.array([id_of((0xABCDEF << 40) | low, key) for low in range(FILL_MAX + 1)], np.int64)
    indexed = Indexed(device, key)
    indexed.put([3], [4])
    with pytest.raises(LimitExceeded, match="do not collide"):
        indexed.reserve(ids)
    indexed.index.release(ids)
    indexed.check(ids.tolist())
    # The same ids under another key, which is a server's secret, are ids like any others.
    other = Indexed(device, 8)
    other.put(ids.tolist(), range(len(ids)))
    other.check()
