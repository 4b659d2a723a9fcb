"""Loops over the hash index and over the ids of a batch, which the CPU device compiles as they stand.

A segment is int64 words: how many ids it holds, how many leading bits of the hash they share, six words that bring it
to a cache line, and then SLOTS pairs of an id and its row. The directory has a segment's address for each value of the
hash's leading `depth` bits; within a segment the hash's low bits say where to look first, and places follow one
another (linear probing). A full segment is divided into two by one more bit, and nothing else moves (Fagin, Nievergelt,
Pippenger & Strong 1979, extendible hashing).
"""

import numpy as np

from stepwell_server.core.tables.hashing import hash_of

# The compiler fixes the types; annotations would only repeat the signatures below.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, name-defined, assignment"
# ruff: noqa: F821

HEADER = 8
SLOTS = 1024
WORDS = HEADER + 2 * SLOTS
# At three quarters an id that is missing costs nine places, one that is there three.
FILL_MAX = 768

# In place of a row: no id here; an id for which room is kept, and which does not count as there yet.
EMPTY = -1
RESERVED = -2

# What `reserve` needs to go on: a word of its state.
DONE, NEEDS_SEGMENT, NEEDS_DIRECTORY = 0, 1, 2

HELPERS = ("mix", "hash_of", "seek", "segment_of", "clear", "take", "split", "remove_at")
SIGNATURES = {
    "clear_segments": ["void(uint64[::1], int64, int64[::1])"],
    "lookup": ["int64(int64[::1], int64[::1], uint64[::1], uint64, uint64)"],
    "reserve": ["int64(int64[::1], int64, uint64[::1], uint64, uint64, uint64[::1], int64[::1], int64[::1])"],
    "assign": ["int64(int64[::1], int64[::1], uint64[::1], uint64, uint64)"],
    "remove": ["int64(int64[::1], uint64[::1], uint64, uint64)"],
    "release": ["int64(int64[::1], uint64[::1], uint64, uint64)"],
    "distinguish": ["int64(int64[::1], uint64, int64[::1], int64[::1], int64[::1], int64[::1])"],
}


def segment_of(directory, depth, hashed, like):
    return elements_at(directory[hashed >> (np.uint64(64) - depth)], np.uint64(WORDS), like)


def seek(segment, number, hashed):
    """Where an id stands, or the empty place in which it would."""
    slot = hashed & np.uint64(SLOTS - 1)
    while True:
        at = np.uint64(HEADER) + np.uint64(2) * slot
        if segment[at + np.uint64(1)] == EMPTY or segment[at] == number:
            return at
        slot = (slot + np.uint64(1)) & np.uint64(SLOTS - 1)


def clear(segment):
    segment[0] = 0
    for word in range(HEADER + 1, WORDS, 2):
        segment[word] = EMPTY


def clear_segments(addresses, count, like):
    """Make fresh memory into empty segments."""
    for number in range(count):
        clear(elements_at(addresses[number], np.uint64(WORDS), like))


def lookup(ids, rows, directory, depth, key):
    """The row of each id, -1 where there is none; how many have none."""
    missing = 0
    shift = np.uint64(64) - depth
    count = len(ids)
    for number in range(count):
        if number + 8 < count:  # a miss of the cache takes as long as all else that is done for several ids
            ahead = hash_of(ids[number + 8], key)
            offset = np.uint64(8 * HEADER) + np.uint64(16) * (ahead & np.uint64(SLOTS - 1))
            fetch(directory[ahead >> shift] + offset, np.uint64(64))
        hashed = hash_of(ids[number], key)
        segment = segment_of(directory, depth, hashed, ids)
        row = max(segment[seek(segment, ids[number], hashed) + np.uint64(1)], np.int64(-1))
        rows[number] = row
        missing += np.int64(row < 0)
    return missing


def take(segment, number, row, hashed):
    """Set an id's row; True if the id is new."""
    at = seek(segment, number, hashed)
    new = segment[at + np.uint64(1)] == EMPTY
    segment[at] = number
    segment[at + np.uint64(1)] = row
    segment[0] += np.int64(new)
    return new


def split(directory, depth, hashed, fresh, scratch, key):
    """Divide the segment of a hash into itself and a fresh one; its shared bits are fewer than `depth`."""
    slot = hashed >> (np.uint64(64) - depth)
    old = elements_at(directory[slot], np.uint64(WORDS), scratch)
    new = elements_at(fresh, np.uint64(WORDS), scratch)
    for word in range(WORDS):
        scratch[word] = old[word]
    shared = np.uint64(scratch[1]) + np.uint64(1)
    clear(old)
    clear(new)
    old[1] = np.int64(shared)
    new[1] = np.int64(shared)
    for word in range(HEADER, WORDS, 2):
        if scratch[word + 1] != EMPTY:
            found = hash_of(scratch[word], key)
            half = new if (found >> (np.uint64(64) - shared)) & np.uint64(1) else old
            take(half, scratch[word], scratch[word + 1], found)
    # The slots that led to the old one are neighbours; the second half of them leads to the new one.
    half_count = np.uint64(1) << (depth - shared)
    first = ((slot >> (depth - shared + np.uint64(1))) << np.uint64(1) | np.uint64(1)) << (depth - shared)
    for other in range(first, first + half_count):
        directory[other] = fresh


def reserve(ids, begin, directory, depth, key, spare, state, scratch):
    """Keep room for ids from `begin` on that are not there; how far it came.

    spare: addresses of empty segments. state: how many of them are left; what is needed to go on; ids in all segments.
    """
    for number in range(begin, len(ids)):
        hashed = hash_of(ids[number], key)
        while True:
            segment = segment_of(directory, depth, hashed, ids)
            at = seek(segment, ids[number], hashed)
            if segment[at + np.uint64(1)] != EMPTY:
                break
            if segment[0] < FILL_MAX:
                segment[at] = ids[number]
                segment[at + np.uint64(1)] = RESERVED
                segment[0] += 1
                state[2] += 1
                break
            if np.uint64(segment[1]) == depth:
                state[1] = NEEDS_DIRECTORY
                return number
            if state[0] == 0:
                state[1] = NEEDS_SEGMENT
                return number
            state[0] -= 1
            split(directory, depth, hashed, spare[state[0]], scratch, key)
    state[1] = DONE
    return len(ids)


def assign(ids, rows, directory, depth, key):
    """Set the rows of ids for which room is kept; how many had none."""
    added = 0
    for number in range(len(ids)):
        hashed = hash_of(ids[number], key)
        added += np.int64(take(segment_of(directory, depth, hashed, ids), ids[number], rows[number], hashed))
    return added


def remove_at(segment, at, key):
    """Empty a place, and move up those that had to pass it, so that no search ends too early."""
    hole = (at - np.uint64(HEADER)) >> np.uint64(1)
    slot = hole
    last = np.uint64(SLOTS - 1)
    while True:
        slot = (slot + np.uint64(1)) & last
        place = np.uint64(HEADER) + np.uint64(2) * slot
        if segment[place + np.uint64(1)] == EMPTY:
            break
        home = hash_of(segment[place], key) & last
        if ((slot - home) & last) >= ((slot - hole) & last):
            target = np.uint64(HEADER) + np.uint64(2) * hole
            segment[target] = segment[place]
            segment[target + np.uint64(1)] = segment[place + np.uint64(1)]
            hole = slot
    segment[np.uint64(HEADER) + np.uint64(2) * hole + np.uint64(1)] = EMPTY
    segment[0] -= 1


def remove(ids, directory, depth, key):
    """Forget ids; how many were there."""
    removed = 0
    for number in range(len(ids)):
        hashed = hash_of(ids[number], key)
        segment = segment_of(directory, depth, hashed, ids)
        at = seek(segment, ids[number], hashed)
        if segment[at + np.uint64(1)] != EMPTY:
            remove_at(segment, at, key)
            removed += 1
    return removed


def release(ids, directory, depth, key):
    """Give up the room that is kept for ids; for how many."""
    released = 0
    for number in range(len(ids)):
        hashed = hash_of(ids[number], key)
        segment = segment_of(directory, depth, hashed, ids)
        at = seek(segment, ids[number], hashed)
        if segment[at + np.uint64(1)] == RESERVED:
            remove_at(segment, at, key)
            released += 1
    return released


def distinguish(ids, key, places, distinct, firsts, which):
    """The distinct ids in the order of their first appearance; how many there are.

    places: zeros, a power of two and at least twice as many as ids; afterwards one more than the number of the distinct
    id that lies there. firsts: where each distinct id appears first. which: the distinct id's number, by position.
    """
    mask = np.uint64(len(places) - 1)
    count = 0
    for position in range(len(ids)):
        slot = hash_of(ids[position], key) & mask
        while places[slot] != 0 and distinct[places[slot] - 1] != ids[position]:
            slot = (slot + np.uint64(1)) & mask
        if places[slot] == 0:
            distinct[count] = ids[position]
            firsts[count] = position
            count += 1
            places[slot] = count
        which[position] = places[slot] - 1
    return count
