"""One part of a divided data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]
Inputs = npt.NDArray[Any]
"""Features, float32 [rows, *row_shape], or tokens, int64 [rows, length]."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows and what is to be predicted for them.

    Attributes:
        inputs: Features, float32 [rows, *row_shape], or tokens, int64 [rows, length].
        targets: Class numbers, int64 [rows], or values, float32 [rows, 1].
    """

    inputs: Inputs
    targets: Array

    def __len__(self) -> int:
        return len(self.inputs)
