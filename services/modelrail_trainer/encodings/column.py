"""Values of a column as NumPy has them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]
"""Numbers as float64 [N], NaN where missing; texts as objects [N], "" where missing."""
Features = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


class ColumnType(StrEnum):
    """What the values of a column are."""

    NUMBER = "number"
    TEXT = "text"


UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER} no text of the training rows"
