"""Loops over bytes that the CPU device compiles as they stand; called without compiling they are merely slow.

Ranges travel without padding, flat vectors have it. `packed_offsets` says where each parameter begins without padding,
and the end; `vector_offsets` where in the vector. Indices are unsigned: no wrap-around test, so loops vectorise.
"""

# The compiler fixes the types; annotations would only repeat the signatures in cpu.py.
# mypy: disable-error-code="no-untyped-def"


def place(vector, packed, begin, packed_offsets, vector_offsets):
    """Copy packed bytes, which begin at packed offset `begin`, to their places in a vector."""
    end = begin + len(packed)
    low, high = 0, len(packed_offsets) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if packed_offsets[middle] <= begin:
            low = middle
        else:
            high = middle
    at = begin
    while at < end:
        stop = min(end, packed_offsets[low + 1])
        source = packed[at - begin : stop - begin]
        start = vector_offsets[low] + at - packed_offsets[low]
        target = vector[start : start + stop - at]
        for i in range(len(source)):
            target[i] = source[i]
        at = stop
        low += 1


def gather(vector, packed, begin, packed_offsets, vector_offsets):
    """The way back: fill `packed` with the bytes that begin at packed offset `begin`."""
    end = begin + len(packed)
    low, high = 0, len(packed_offsets) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if packed_offsets[middle] <= begin:
            low = middle
        else:
            high = middle
    at = begin
    while at < end:
        stop = min(end, packed_offsets[low + 1])
        start = vector_offsets[low] + at - packed_offsets[low]
        source = vector[start : start + stop - at]
        target = packed[at - begin : stop - begin]
        for i in range(len(source)):
            target[i] = source[i]
        at = stop
        low += 1


def finite(bits, exponent):
    """Whether no element has all exponent bits set, as a NaN or an infinity has."""
    # Blocks keep the inner loop free of exits, so that it vectorises, and still stop early.
    for block in range(0, len(bits), 4096):
        chunk = bits[block : min(block + 4096, len(bits))]
        bad = False
        for i in range(len(chunk)):
            bad |= (chunk[i] & exponent) == exponent
        if bad:
            return False
    return True


def finite_pieces(bits, begins, ends, exponent):
    """The same for parts of a vector, each from a begin to its end."""
    for piece in range(len(begins)):
        for block in range(begins[piece], ends[piece], 4096):
            chunk = bits[block : min(block + 4096, ends[piece])]
            bad = False
            for i in range(len(chunk)):
                bad |= (chunk[i] & exponent) == exponent
            if bad:
                return False
    return True
