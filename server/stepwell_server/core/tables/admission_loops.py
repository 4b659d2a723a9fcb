"""Loops over the counts of ids without a row, which the CPU device compiles as they stand; see `admission.py`."""

import numpy as np

from stepwell_server.core.tables.hashing import hash_of

# The compiler fixes the types; annotations would only repeat the signatures below.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment"

LINES = 4
COUNT_MAX = 255

HELPERS = ("mix", "hash_of", "cell_of")
SIGNATURES = {
    "estimate": ["void(int64[::1], uint8[:, ::1], uint64, int64[::1])"],
    "count": ["int64(int64[::1], uint8[:, ::1], uint64)"],
}


def cell_of(hashed, line, cells):
    """Where in a line an id is counted: two halves of a hash make as many as one wants (Kirsch & Mitzenmacher 2006)."""
    step = (hashed >> np.uint64(32)) | np.uint64(1)
    return (hashed + np.uint64(line) * step) & np.uint64(cells.shape[1] - 1)


def estimate(ids, cells, key, counts):
    """How often each id has been counted, or more."""
    for number in range(len(ids)):
        hashed = hash_of(ids[number], key)
        least = COUNT_MAX
        for line in range(LINES):
            least = min(least, np.int64(cells[line, cell_of(hashed, line, cells)]))
        counts[number] = least


def count(ids, cells, key):
    """Count each id once more; how many cells of the first line came into use.

    Only the cells that are the smallest grow, so that few are too large (Estan & Varghese 2002, conservative update).
    """
    used = 0
    for number in range(len(ids)):
        hashed = hash_of(ids[number], key)
        least = COUNT_MAX
        for line in range(LINES):
            least = min(least, np.int64(cells[line, cell_of(hashed, line, cells)]))
        if least == COUNT_MAX:
            continue
        for line in range(LINES):
            cell = cell_of(hashed, line, cells)
            if cells[line, cell] == least:
                used += np.int64(line == 0 and least == 0)
                cells[line, cell] = np.uint8(least + 1)
    return used
