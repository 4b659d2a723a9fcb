"""What a picture holds."""

import numpy as np
import numpy.typing as npt


def count_colours(pixels: npt.NDArray[np.float32]) -> int:
    """How many different colours there are among pixels of shape (..., 3 or 4), 0 to 1."""
    levels = np.rint(255 * pixels[..., :3]).astype(np.int64)
    return len(np.unique(levels @ [1 << 16, 1 << 8, 1]))
