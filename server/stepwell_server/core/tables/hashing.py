"""The hash of ids, for loops that the CPU device compiles as they stand."""

import numpy as np

# The compiler fixes the types; annotations would only repeat the signatures.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"


def mix(x):
    """A bijection of 64-bit numbers that no pattern survives: the finaliser of MurmurHash3 (Appleby)."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def hash_of(number, key):
    """The hash of an int64 id under a key."""
    return mix(mix(np.uint64(number) ^ key) + key)
