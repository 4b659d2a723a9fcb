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


@dataclass(frozen=True)
class Options:
    """size: parameters of the large run. rounds, small_rounds: timed turns of every row."""

    size: int
    rounds: int
    small_rounds: int

    @property
    def size_bytes(self) -> int:
        """One copy of the large run's parameters."""
        return self.size * ITEM_BYTES

    @property
    def threads(self) -> int:
        """Kernel threads: one per core that the process may use, as the server takes them."""
        return len(os.sched_getaffinity(0))

    def server_memory(self) -> str:
        """--max-memory of the server: the default, or more where the large run needs it."""
        return str(max(4 << 30, 16 * self.size_bytes))


def has_torch() -> bool:
    """Whether the rows that compare with PyTorch can be had."""
    return importlib.util.find_spec("torch") is not None


def random_vector(size: int) -> Floats:
    """Values as gradients and parameters have them: around zero, none of them special."""
    return np.random.default_rng(SEED).standard_normal(size, np.float32)


def as_bytes(array: Floats) -> memoryview:
    """The array's own memory, as bytes."""
    return array.view(np.uint8).data


def as_tensors(vector: Floats, count: int = _TENSORS) -> dict[str, Floats]:
    """A vector cut into named tensors of equal size; views."""
    return {f"layer{number}/weight": part for number, part in enumerate(np.array_split(vector, count))}
