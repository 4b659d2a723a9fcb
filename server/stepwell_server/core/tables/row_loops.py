"""Loops over the rows of a table, which the CPU device compiles as they stand.

A row's record is its parameters and then its slots, `width` elements each; its marks are MARKS int64 numbers: the id,
the commit of the table that touched it last (FREE for a row without an id, whose "id" is then the next such row), and
how many commits have. Records and marks lie in chunks of 2^`shift` rows, and `records`, `marks` are the chunks'
addresses.
"""

import math

import numpy as np

from stepwell_server.core.tables.hashing import hash_of, mix

# The compiler fixes the types; annotations would only repeat the signatures below.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, name-defined, assignment"
# ruff: noqa: F821

MARKS = 3
ID, TOUCHED, COUNT = 0, 1, 2
FREE = -1

CONSTANT, UNIFORM, NORMAL = 0, 1, 2

HELPERS = ("mix", "hash_of", "quantile", "first_value", "marks_of", "fetch_marks")
# {real} is the type of the elements.
SIGNATURES = {
    "locate": ["void(int64[::1], uint64[::1], int64, int64, uint64[::1])"],
    "initialise": ["void(int64[::1], uint64[::1], {real}[::1], int64, float64, float64, uint64, uint64[::1])"],
    "begin_slots": ["void(uint64[::1], {real}[::1], int64[::1], int64)"],
    "gather": ["void(uint64[::1], {real}[:, ::1])"],
    "add_up": ["int64(int64[::1], int64[::1], int64, uint64, {real}[:, ::1], uint64[::1])"],
    "begin_marks": ["void(int64[::1], int64[::1], uint64[::1], int64)"],
    "touch": ["void(int64[::1], uint64[::1], int64, int64)"],
    "read_marks": ["void(int64[::1], uint64[::1], int64, int64, int64[::1])"],
    "write_marks": ["void(int64[::1], uint64[::1], int64, int64, int64[::1])"],
    "free": ["int64(int64[::1], uint64[::1], int64, int64)"],
    "list_free": ["int64(int64[::1], uint64[::1], int64, int64)"],
    "mark_chunks": ["void(int64[::1], int64, uint8[::1])"],
    "live_rows": ["int64(uint64, int64, int64[::1], int64[::1])"],
    "unpack": ["void(uint64, int64[::1], int64, uint64, uint64, {real}[:, ::1])"],
    "pack": ["void(uint64[::1], uint64, {real}[:, ::1])"],
}


def locate(rows, bases, shift, size, addresses):
    """The address of each row, or of its marks; size: of one, in bytes."""
    mask = (np.int64(1) << shift) - 1
    for number in range(len(rows)):
        row = rows[number]
        addresses[number] = bases[row >> shift] + np.uint64((row & mask) * size)


def quantile(p):
    """The standard normal distribution's quantile, to 16 digits: Wichura 1988, Algorithm AS 241 (PPND16)."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        upper = 2.5090809287301226727e3
        upper = upper * r + 3.3430575583588128105e4
        upper = upper * r + 6.7265770927008700853e4
        upper = upper * r + 4.5921953931549871457e4
        upper = upper * r + 1.3731693765509461125e4
        upper = upper * r + 1.9715909503065514427e3
        upper = upper * r + 1.3314166789178437745e2
        upper = upper * r + 3.3871328727963666080e0
        lower = 5.2264952788528545610e3
        lower = lower * r + 2.8729085735721942674e4
        lower = lower * r + 3.9307895800092710610e4
        lower = lower * r + 2.1213794301586595867e4
        lower = lower * r + 5.3941960214247511077e3
        lower = lower * r + 6.8718700749205790830e2
        lower = lower * r + 4.2313330701600911252e1
        return q * upper / (lower * r + 1.0)
    r = math.sqrt(-math.log(min(p, 1.0 - p)))
    if r <= 5.0:
        r -= 1.6
        upper = 7.74545014278341407640e-4
        upper = upper * r + 2.27238449892691845833e-2
        upper = upper * r + 2.41780725177450611770e-1
        upper = upper * r + 1.27045825245236838258e0
        upper = upper * r + 3.64784832476320460504e0
        upper = upper * r + 5.76949722146069140550e0
        upper = upper * r + 4.63033784615654529590e0
        upper = upper * r + 1.42343711074968357734e0
        lower = 1.05075007164441684324e-9
        lower = lower * r + 5.47593808499534494600e-4
        lower = lower * r + 1.51986665636164571966e-2
        lower = lower * r + 1.48103976427480074590e-1
        lower = lower * r + 6.89767334985100004550e-1
        lower = lower * r + 1.67638483018380384940e0
        lower = lower * r + 2.05319162663775882187e0
    else:
        r -= 5.0
        upper = 2.01033439929228813265e-7
        upper = upper * r + 2.71155556874348757815e-5
        upper = upper * r + 1.24266094738807843860e-3
        upper = upper * r + 2.65321895265761230930e-2
        upper = upper * r + 2.96560571828504891230e-1
        upper = upper * r + 1.78482653991729133580e0
        upper = upper * r + 5.46378491116411436990e0
        upper = upper * r + 6.65790464350110377720e0
        lower = 2.04426310338993978564e-15
        lower = lower * r + 1.42151175831644588870e-7
        lower = lower * r + 1.84631831751005468180e-5
        lower = lower * r + 7.86869131145613259100e-4
        lower = lower * r + 1.48753612908506148525e-2
        lower = lower * r + 1.36929880922735805310e-1
        lower = lower * r + 5.99832206555887937690e-1
    size = upper / (lower * r + 1.0)
    return -size if q < 0.0 else size


def first_value(kind, first, second, bits):
    """An element's first value from 64 random bits: first; between first and second; or around first by second."""
    if kind == CONSTANT:
        return first
    fraction = np.float64(bits >> np.uint64(11)) * 2.0**-53
    if kind == UNIFORM:
        return first + fraction * (second - first)
    return first + second * quantile(fraction + 2.0**-54)


def initialise(ids, addresses, like, kind, first, second, key, columns):
    """Write the parameters that each id begins with. columns: random bits for each element of a row."""
    width = np.uint64(len(columns))
    for number in range(len(ids)):
        values = elements_at(addresses[number], width, like)
        own = hash_of(ids[number], key)
        for i in range(width):
            values[i] = first_value(kind, first, second, mix(own + columns[i]))


def begin_slots(addresses, constants, from_param, width):
    """Write the slots that new rows begin with: a constant each, or the parameters where `from_param` is not 0."""
    slots = len(constants)
    count = np.uint64(width * (slots + 1))
    for number in range(len(addresses)):
        record = elements_at(addresses[number], count, constants)
        for slot in range(slots):
            at = width * (slot + 1)
            for i in range(width):
                record[at + i] = record[i] if from_param[slot] else constants[slot]


def gather(addresses, out):
    """Copy the parameters at each address that is not 0 to the same row of `out`."""
    width = np.uint64(out.shape[1])
    size = np.uint64(out.shape[1] * out.itemsize)
    count = len(addresses)
    for number in range(count):
        if number + 8 < count and addresses[number + 8] != 0:
            fetch(addresses[number + 8], size)
        if addresses[number] != 0:
            values = elements_at(addresses[number], width, out)
            for i in range(width):
                out[number, i] = values[i]


def add_up(which, firsts, distinct, grads, sums, addresses):
    """The address of each distinct id's gradient; those that come several times are summed in order, in `sums`.

    grads: the address of the first gradient. Returns how many sums were made.
    """
    width = np.uint64(sums.shape[1])
    size = np.uint64(sums.shape[1] * sums.itemsize)
    for number in range(distinct):
        addresses[number] = grads + np.uint64(firsts[number]) * size
    used = 0
    if distinct == len(which):
        return used
    for position in range(len(which)):
        number = which[position]
        if firsts[number] == position:
            continue
        more = elements_at(grads + np.uint64(position) * size, width, sums)
        if addresses[number] == grads + np.uint64(firsts[number]) * size:
            before = elements_at(addresses[number], width, sums)
            for i in range(width):
                sums[used, i] = before[i] + more[i]
            addresses[number] = np.uint64(sums.ctypes.data) + np.uint64(used) * size
            used += 1
        else:
            total = elements_at(addresses[number], width, sums)
            for i in range(width):
                total[i] += more[i]
    return used


def marks_of(row, marks, shift, like):
    inner = row & ((np.int64(1) << shift) - 1)
    return elements_at(marks[row >> shift] + np.uint64(inner * MARKS * 8), np.uint64(MARKS), like)


def fetch_marks(row, marks, shift):
    inner = row & ((np.int64(1) << shift) - 1)
    fetch(marks[row >> shift] + np.uint64(inner * MARKS * 8), np.uint64(64))


def begin_marks(ids, rows, marks, shift):
    """Give rows their ids."""
    for number in range(len(rows)):
        own = marks_of(rows[number], marks, shift, ids)
        own[ID] = ids[number]
        own[TOUCHED] = 0
        own[COUNT] = 0


def touch(rows, marks, shift, commit):
    """Count a commit of rows."""
    count = len(rows)
    for number in range(count):
        if number + 8 < count:
            fetch_marks(rows[number + 8], marks, shift)
        own = marks_of(rows[number], marks, shift, rows)
        own[TOUCHED] = commit
        own[COUNT] += 1


def read_marks(rows, marks, shift, which, values):
    """One of the marks of each row, 0 for a row below 0."""
    count = len(rows)
    for number in range(count):
        if number + 8 < count and rows[number + 8] >= 0:
            fetch_marks(rows[number + 8], marks, shift)
        values[number] = 0 if rows[number] < 0 else marks_of(rows[number], marks, shift, rows)[which]


def write_marks(rows, marks, shift, which, values):
    for number in range(len(rows)):
        marks_of(rows[number], marks, shift, rows)[which] = values[number]


def free(rows, marks, shift, head):
    """Take the ids from rows and put them before the free rows, of which `head` is the first; the new first one."""
    for number in range(len(rows) - 1, -1, -1):
        own = marks_of(rows[number], marks, shift, rows)
        own[ID] = head
        own[TOUCHED] = FREE
        head = rows[number]
    return head


def list_free(rows, marks, shift, head):
    """The first free rows, as many as `rows` takes; the one after them. -1 ends the list."""
    for number in range(len(rows)):
        rows[number] = head
        if head >= 0:
            head = marks_of(head, marks, shift, rows)[ID]
    return head


def mark_chunks(rows, shift, flags):
    """Set the flag of each row's chunk."""
    for number in range(len(rows)):
        flags[rows[number] >> shift] = 1


def live_rows(marks, count, places, like):
    """Where in a chunk of so many rows those with an id are; how many."""
    found = 0
    every = elements_at(marks, np.uint64(count * MARKS), like)
    for place in range(count):
        if every[place * MARKS + TOUCHED] != FREE:
            places[found] = place
            found += 1
    return found


def unpack(records, places, size, offset, width, out):
    """Copy one array of some records of a chunk; size: of a record, offset: of the array, in bytes."""
    for number in range(len(places)):
        values = elements_at(records + np.uint64(places[number] * size) + offset, width, out)
        for i in range(width):
            out[number, i] = values[i]


def pack(addresses, offset, values):
    """The way back."""
    width = np.uint64(values.shape[1])
    for number in range(len(addresses)):
        target = elements_at(addresses[number] + offset, width, values)
        for i in range(width):
            target[i] = values[number, i]
