"""One part of a divided data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Inputs = npt.NDArray[Any]
"""Features float32 [rows, *row_shape], or tokens int64 or bytes uint8 [rows, length]."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows and what is to be predicted for them.

    Attributes:
        inputs: Features, float32 [rows, *row_shape], tokens, int64 [rows, length], bytes, uint8
            [rows, length], or pixels, uint8 [rows, *row_shape].
        targets: Class numbers, int64 [rows], values, float32 [rows, 1], or the byte after each
            byte, uint8 [rows, length].
    """

    inputs: Inputs
    targets: Array

    def __len__(self) -> int:
        return len(self.inputs)
