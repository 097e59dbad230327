"""Numbers that differ, and numbers that were only rounded differently."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_NEIGHBOURS = 8
"""A calculation of a few steps ends so many floats beside where another order of them does."""


def vary(
    lowest: npt.ArrayLike, highest: npt.ArrayLike, *, least: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Returns whether numbers differ by more than a few calculations round, each [...].

    A deviation says less: the mean of equal numbers is rounded, so that theirs is not 0, and what
    is divided by it becomes as large as floats can be.

    Args:
        lowest: Of some numbers, or of some columns of them, in the type that they are taken with.
        highest: Likewise.
        least: Of this size at least are the numbers whose rounding counts.
    """
    lowest, highest = np.asarray(lowest), np.asarray(highest)
    size = np.maximum(np.maximum(np.abs(lowest), np.abs(highest)), lowest.dtype.type(least))
    differ: npt.NDArray[np.bool_] = highest - lowest > _NEIGHBOURS * np.spacing(size)
    return differ
