"""One part of a divided data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]
Inputs = npt.NDArray[np.float32] | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows and what is to be predicted for them.

    Attributes:
        inputs: Features, float32, or pixels, uint8, [rows, *row_shape].
        targets: Class numbers, int64 [rows], or values, float32 [rows, 1].
    """

    inputs: Inputs
    targets: Array

    def __len__(self) -> int:
        return len(self.inputs)
