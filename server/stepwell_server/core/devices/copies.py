"""Loops over bytes that the CPU device compiles as they stand; called without compiling they are merely slow.

Ranges travel without padding, flat vectors have it. `packed_offsets` says where each parameter begins without padding,
and the end; `vector_offsets` where in the vector. Indices are unsigned: no wrap-around test, so loops vectorise.
"""

# The compiler fixes the types; annotations would only repeat the signatures in cpu.py.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"


def place_of(offsets, begin):
    """The place of the parameter in which `begin` lies."""
    low, high = 0, len(offsets) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if offsets[middle] <= begin:
            low = middle
        else:
            high = middle
    return low


def place(vector, packed, begin, packed_offsets, vector_offsets):
    """Copy packed bytes, which begin at packed offset `begin`, to their places in a vector."""
    end = begin + len(packed)
    low = place_of(packed_offsets, begin)
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
    low = place_of(packed_offsets, begin)
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


def fold(target, base, source, begins, ends, kept, share):
    """kept * base + share * source, from each begin to its end; 0 times anything is 0. They may be one array."""
    zero = target.dtype.type(0)
    for piece in range(len(begins)):
        if kept == zero and share == zero:
            for i in range(begins[piece], ends[piece]):
                target[i] = zero
        elif share == zero:
            for i in range(begins[piece], ends[piece]):
                target[i] = kept * base[i]
        elif kept == zero:
            for i in range(begins[piece], ends[piece]):
                target[i] = share * source[i]
        else:
            for i in range(begins[piece], ends[piece]):
                target[i] = kept * base[i] + share * source[i]


def place_bfloat16(words, halves, begin, packed_offsets, vector_offsets):
    """As `place`, for bfloat16 that becomes float32: `words` and `halves` are the bits, offsets are in words."""
    end = begin + len(halves)
    low = place_of(packed_offsets, begin)
    at = begin
    while at < end:
        stop = min(end, packed_offsets[low + 1])
        source = halves[at - begin : stop - begin]
        start = vector_offsets[low] + at - packed_offsets[low]
        target = words[start : start + stop - at]
        for i in range(len(source)):
            target[i] = words.dtype.type(source[i]) << words.dtype.type(16)
        at = stop
        low += 1


def gather_bfloat16(words, halves, begin, packed_offsets, vector_offsets):
    """The way back: rounded to nearest, half way to even; a NaN stays one."""
    word = words.dtype.type
    end = begin + len(halves)
    low = place_of(packed_offsets, begin)
    at = begin
    while at < end:
        stop = min(end, packed_offsets[low + 1])
        start = vector_offsets[low] + at - packed_offsets[low]
        source = words[start : start + stop - at]
        target = halves[at - begin : stop - begin]
        for i in range(len(source)):
            bits = source[i]
            rounded = word(bits + word(0x7FFF) + ((bits >> word(16)) & word(1))) >> word(16)
            nan = (bits >> word(16)) | word(0x40)
            target[i] = nan if bits & word(0x7FFFFFFF) > word(0x7F800000) else rounded
        at = stop
        low += 1


def finite(bits, exponent):
    """Whether no element has all exponent bits set, as a NaN or an infinity has. Both signed: that vectorises best."""
    kind = bits.dtype.type  # without it numbers would be widened to 64 bits
    # Blocks keep the inner loop free of exits, and still stop early.
    for block in range(0, len(bits), 4096):
        chunk = bits[block : min(block + 4096, len(bits))]
        top = kind(0)
        for i in range(len(chunk)):
            top = max(top, kind(chunk[i] & exponent))
        if top == exponent:
            return False
    return True


def finite_pieces(bits, begins, ends, exponent):
    """The same for parts of a vector, each from a begin to its end."""
    kind = bits.dtype.type
    for piece in range(len(begins)):
        begin, quarter = begins[piece], (ends[piece] - begins[piece]) // 4
        # Four streams at once: a processor fetches one ahead at three quarters of the rate of several.
        for block in range(0, quarter, 4096):
            size = min(4096, quarter - block)
            start = begin + block
            first = bits[start : start + size]
            second = bits[start + quarter : start + quarter + size]
            third = bits[start + 2 * quarter : start + 2 * quarter + size]
            fourth = bits[start + 3 * quarter : start + 3 * quarter + size]
            top = kind(0)
            for i in range(size):
                low = max(kind(first[i] & exponent), kind(second[i] & exponent))
                high = max(kind(third[i] & exponent), kind(fourth[i] & exponent))
                top = max(top, low, high)
            if top == exponent:
                return False
        for i in range(begin + 4 * quarter, ends[piece]):
            if kind(bits[i] & exponent) == exponent:
                return False
    return True
