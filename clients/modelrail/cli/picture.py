"""Small grey images as text: two rows of pixels in a line of half blocks or shades."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHADES = " ░▒▓█"


def shaded(image: NDArray[Any], maximum: float) -> list[str]:
    """Returns an image as lines of shades, two pixel rows in a line.

    Args:
        image: [height, width], from 0 (empty) to `maximum` (full).
        maximum: Value of a full pixel.
    """
    height, width = image.shape
    even = np.zeros((height + height % 2, width))
    even[:height] = image
    # A character is about twice as high as it is wide.
    rows = even.reshape(-1, 2, width).mean(axis=1)
    levels = np.clip(rows / maximum * len(_SHADES), 0, len(_SHADES) - 1).astype(int)
    return ["".join(_SHADES[level] for level in row) for row in levels]
