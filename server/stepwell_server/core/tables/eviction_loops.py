"""Loops over the marks of all rows, for eviction, which the CPU device compiles as they stand; see `eviction.py`."""

import numpy as np

from stepwell_server.core.tables.hashing import hash_of
from stepwell_server.core.tables.row_loops import FREE, ID, TOUCHED, marks_of

# The compiler fixes the types; annotations would only repeat the signatures below.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, name-defined, assignment"

DIGIT_BITS = 12
DIGITS = 1 << DIGIT_BITS

HELPERS = ("mix", "hash_of", "marks_of", "fetch_marks", "ordered")
SIGNATURES = {
    "count_digits": ["void(uint64[::1], int64, int64, int64, uint64, int64, int64, int64[::1])"],
    "collect": ["int64(uint64[::1], int64, int64, int64, uint64, int64[::1], int64[::1], int64[::1])"],
    "pick": [
        (
            "int64(int64[::1], int64[::1], int64, int64, uint64[::1], int64, int64[::1], int64[::1], uint64, "
            "int64[::1], int64[::1])"
        )
    ],
}


def ordered(number):
    """An int64 as a uint64 of the same order."""
    return np.uint64(number) ^ np.uint64(1 << 63)


def count_digits(marks, used, shift, stamp, prefix, prefix_bits, digit_bits, counts):
    """How many rows there are by a digit of a key, among those whose key begins with a prefix.

    The key is the last commit's number where `stamp` is below 0, and else the id, of the rows of that commit.
    """
    rest = np.uint64(64 - prefix_bits - digit_bits)
    mask = np.uint64((1 << digit_bits) - 1)
    for row in range(used):
        own = marks_of(row, marks, shift, counts)
        if own[TOUCHED] == FREE or (stamp >= 0 and own[TOUCHED] != stamp):
            continue
        key = np.uint64(own[TOUCHED]) if stamp < 0 else ordered(own[ID])
        if prefix_bits == 0 or key >> np.uint64(64 - prefix_bits) == prefix:
            counts[(key >> rest) & mask] += 1


def collect(marks, used, shift, stamp, id_max, rows, stamps, ids):
    """The rows that were touched last before the commit `stamp`, or in it if their ids, `ordered`, go up to id_max."""
    found = 0
    for row in range(used):
        own = marks_of(row, marks, shift, rows)
        touched = own[TOUCHED]
        if touched != FREE and (touched < stamp or (touched == stamp and ordered(own[ID]) <= id_max)):
            rows[found] = row
            stamps[found] = touched
            ids[found] = own[ID]
            found += 1
    return found


def pick(rows, stamps, begin, before, marks, shift, places, distinct, key, ids, picked):
    """Choose rows from a queue whose last commit is still what it was and lies before `before`, but none of the batch.

    places, distinct: of the batch, see `distinguish`. ids, picked: the ids and rows chosen, at most as many as they
    take. Returns how far in the queue it came, and in the last place of `picked` how many they are.
    """
    mask = np.uint64(len(places) - 1)
    found = 0
    position = begin
    while position < len(rows) and found < len(ids) and stamps[position] < before:
        own = marks_of(rows[position], marks, shift, rows)
        if own[TOUCHED] == stamps[position]:
            slot = hash_of(own[ID], key) & mask
            while places[slot] != 0 and distinct[places[slot] - 1] != own[ID]:
                slot = (slot + np.uint64(1)) & mask
            if places[slot] == 0:
                ids[found] = own[ID]
                picked[found] = rows[position]
                found += 1
        position += 1
    picked[len(picked) - 1] = found
    return position
