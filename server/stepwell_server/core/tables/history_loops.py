"""Loops over what the steps of a table were, which the CPU device compiles as they stand; see `history.py`."""

# The compiler fixes the types; annotations would only repeat the signatures below.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment"

RADIX_BITS = 6
RADIX = 1 << RADIX_BITS
LEVELS = 5

HELPERS = ("join",)
SIGNATURES = {
    "append": ["void(float64[:, ::1], float64[:, :, :, ::1], float64[::1], int64[::1], int64)"],
    "compose": [
        (
            "void(int64[::1], int64, int64, float64[:, :, :, ::1], float64[::1], int64[::1], float64[:, ::1], "
            "float64[:, :, ::1])"
        )
    ],
}


def join(first, factor, rate):
    """Extend a pair (product, sum) by a later one."""
    first[1] += first[0] * rate
    first[0] *= factor


def append(numbers, opened, closed, offsets, count):
    """Take the pairs of one more step; count: of those before it."""
    pairs = len(numbers)
    for level in range(LEVELS):
        unit = RADIX_BITS * level
        place = (count >> unit) & (RADIX - 1)
        if count & ((1 << unit) - 1) == 0:
            for pair in range(pairs):
                opened[level, place, pair, 0] = 1.0
                opened[level, place, pair, 1] = 0.0
        for element in range(place + 1):
            for pair in range(pairs):
                join(opened[level, element, pair], numbers[pair, 0], numbers[pair, 1])
        if (count + 1) & ((1 << (unit + RADIX_BITS)) - 1) == 0:
            at = offsets[level] + ((count >> (unit + RADIX_BITS)) << RADIX_BITS) * 2 * pairs
            for element in range(RADIX):
                for pair in range(pairs):
                    for word in range(2):
                        closed[at] = opened[level, element, pair, word]
                        at += 1


def compose(lasts, base, count, opened, closed, offsets, start, out):
    """For each row the pairs of the steps after `last`, up to now.

    base: the step before the first one that is known. start: the pairs of all steps ever, for a last of 0.
    """
    pairs = len(start)
    for number in range(len(lasts)):
        if lasts[number] == 0:
            for pair in range(pairs):
                out[number, pair, 0] = start[pair, 0]
                out[number, pair, 1] = start[pair, 1]
            continue
        for pair in range(pairs):
            out[number, pair, 0] = 1.0
            out[number, pair, 1] = 0.0
        element = max(lasts[number] - base, 0)
        for level in range(LEVELS):
            unit = RADIX_BITS * level
            if (element << unit) >= count:
                break
            block = element >> RADIX_BITS
            if block == count >> (unit + RADIX_BITS):
                for pair in range(pairs):
                    found = opened[level, element & (RADIX - 1), pair]
                    join(out[number, pair], found[0], found[1])
                break
            at = offsets[level] + element * 2 * pairs
            for pair in range(pairs):
                join(out[number, pair], closed[at + 2 * pair], closed[at + 2 * pair + 1])
            element = block + 1
