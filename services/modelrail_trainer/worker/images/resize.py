"""Resizing by the triangular filter, in arithmetic that comes out the same everywhere.

Each pixel of the result is a mean of pixels, weighted by a triangle that is as wide as the scale
(bilinear with antialiasing; what Pillow and torch call so differs by one grey level at most). The
weights are whole numbers, found by whole-number arithmetic, and every sum of theirs with pixels is
below 2^24: 32-bit floats hold it exactly, in whatever order it is added up. ONNX's own Resize is
not used, because its runtimes do not agree on what antialiasing is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from modelrail_trainer.worker.images.source import Pixels

WEIGHT_SUM = 1 << 15
"""Of the weights of a pixel, but for their rounding."""


@lru_cache(maxsize=64)
def weights(before: int, after: int) -> npt.NDArray[np.float32]:
    """Returns how much each of `before` pixels weighs in each of `after`, [after, before].

    With both centres in units of 1 / (2 · after) pixels, everything is a whole number.
    """
    centre_before = (2 * np.arange(before, dtype=np.int64) + 1) * after  # [before]
    centre_after = (2 * np.arange(after, dtype=np.int64)[:, None] + 1) * before  # [after, 1]
    distance = np.abs(centre_before - centre_after)  # [after, before]
    triangle = np.maximum(2 * max(before, after) - distance, 0)  # [after, before]
    total = triangle.sum(axis=1, keepdims=True)  # [after, 1]
    rounded = (2 * WEIGHT_SUM * triangle + total) // (2 * total)  # [after, before]
    return np.asarray(rounded, np.float32)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Returns an image [H, W] or [H, W, 3] in another size, the sides one after the other."""
    rows, columns = image.shape[:2]
    if columns != width:
        image = _along(weights(columns, width), image, axis=1)
    if rows != height:
        image = _along(weights(rows, height), image, axis=0)
    return image


def _along(weighted: npt.NDArray[np.float32], image: Pixels, axis: int) -> Pixels:
    moved = np.moveaxis(image, axis, 0)  # [before, …]
    flat = moved.reshape(len(moved), -1).astype(np.float32)  # [before, M]
    sums = weighted @ flat  # [after, M]
    means = np.floor((sums + WEIGHT_SUM / 2) / WEIGHT_SUM)  # [after, M], rounded half up
    resized = np.minimum(means, 255).astype(np.uint8).reshape(-1, *moved.shape[1:])
    return np.ascontiguousarray(np.moveaxis(resized, 0, axis))
