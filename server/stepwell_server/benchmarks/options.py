"""What the command line decides, and the data that the tables share."""

import importlib.util
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ITEM_BYTES = 4  # float32
SEED = 0
_TENSORS = 25

TABLES = (
    "step",
    "encodings",
    "workers",
    "waiting",
    "capacity",
    "growth",
    "small",
    "memory",
    "steady",
    "start",
    "kernel",
    "kernels",
    "rows",
    "pytorch",
    "trainer",
)
TRANSPORTS = ("stream", "shared_memory")
# Of gradients and of parameters.
ENCODINGS = (
    "float32/float32",
    "bfloat16/bfloat16",
    "float16/float16",
    "int8/bfloat16",
    "int8/int8",
    "top_k/bfloat16",
    "sign/bfloat16",
)


@dataclass(frozen=True)
class Options:
    """size: parameters of the large run. rounds, small_rounds: timed turns of every row.

    workers: how many at once. waiting: how many in a round. seconds: of a turn of workers that sleep in place of
    computing. sizes: of the runs whose growth is measured. steps: over which memory is watched. table_rows: of the
    embedding table.
    """

    size: int
    rounds: int
    small_rounds: int
    workers: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    waiting: int = 1000
    seconds: float = 3.0
    transports: tuple[str, ...] = TRANSPORTS
    encodings: tuple[str, ...] = ENCODINGS
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    steps: int = 10_000
    table_rows: int = 10_000_000

    @property
    def size_bytes(self) -> int:
        """One copy of the large run's parameters."""
        return self.size * ITEM_BYTES

    @property
    def threads(self) -> int:
        """Kernel threads: one per core that the process may use, as the server takes them."""
        return len(os.sched_getaffinity(0))

    def server_memory(self, size: int = 0) -> str:
        """--max-memory of the server: the default, or more where the largest run needs it."""
        return str(max(4 << 30, 24 * ITEM_BYTES * max(size, self.size)))


def has_torch() -> bool:
    """Whether the rows that compare with PyTorch can be had."""
    return importlib.util.find_spec("torch") is not None


def has_ray() -> bool:
    """Whether the row that compares with Ray can be had; its actor runs PyTorch's Adam."""
    return has_torch() and importlib.util.find_spec("ray") is not None


def missing() -> tuple[str, ...]:
    """A note on the rows that are missing."""
    absent = [name for name, found in (("PyTorch", has_torch()), ("Ray", has_ray())) if not found]
    return (f"{' and '.join(absent)} not installed: rows are missing; see docs/benchmarks.md.",) if absent else ()


def random_vector(size: int) -> Floats:
    """Values as gradients and parameters have them: around zero, none of them special."""
    return np.random.default_rng(SEED).standard_normal(size, np.float32)


def as_bytes(array: Floats) -> memoryview:
    """The array's own memory, as bytes."""
    return array.view(np.uint8).data


def as_tensors(vector: Floats, count: int = _TENSORS) -> dict[str, Floats]:
    """A vector cut into named tensors of equal size; views."""
    return {f"layer{number}/weight": part for number, part in enumerate(np.array_split(vector, count))}
