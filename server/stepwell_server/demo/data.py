"""The handwritten digits that come with scikit-learn, split once and for all into training and test images."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

PIXELS: Final = 64
CLASSES: Final = 10
TEST_SHARE: Final = 0.25
SPLIT_SEED: Final = 0
"""Fixed, whatever the seed of a run: every run of the demo is measured on the same images."""

_INTENSITY_MAX: Final = 16.0


@dataclass(frozen=True)
class Images:
    """pixels: (count, 64) float32 between 0 and 1. labels: (count,) int64, 0 to 9."""

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: npt.NDArray[np.int64] | slice) -> "Images":
        return Images(self.pixels[rows], self.labels[rows])


@dataclass(frozen=True)
class Digits:
    """Images to train on, and others that no worker ever sees."""

    training: Images
    test: Images

    def shard(self, index: int, workers: int) -> Images:
        """The training images of one worker out of several: no image belongs to two of them."""
        return self.training.select(slice(index, None, workers))


def load() -> Digits:
    """Read the 1,797 images from scikit-learn's own files; nothing is downloaded."""
    # Takes two seconds to import: the demo uses them to start its processes.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    bundled = load_digits()
    images = Images((bundled.data / _INTENSITY_MAX).astype(np.float32), bundled.target.astype(np.int64))
    # The set is sorted by writer in places, so it is shuffled before it is cut.
    images = images.select(np.random.default_rng(SPLIT_SEED).permutation(len(images)))
    tested = round(TEST_SHARE * len(images))
    return Digits(training=images.select(slice(tested, None)), test=images.select(slice(tested)))
