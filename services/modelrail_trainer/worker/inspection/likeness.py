"""Whether a column says what the target says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MAX_PAIRS = 1_000
_LEAST_ROWS = 10


class Likeness:
    """Compares a column with the target, batch by batch."""

    def __init__(self) -> None:
        self._rows = 0
        self._equal = True
        self._comparable = True
        self._target_of: dict[object, object] = {}
        self._value_of: dict[object, object] = {}
        self._one_to_one = True

    def add(self, values: npt.NDArray[np.generic], target: npt.NDArray[np.generic]) -> None:
        """Looks at the same rows of both, each [N]."""
        self._rows += len(values)
        if values.dtype != target.dtype:
            self._comparable = False
        elif self._equal and values.dtype == np.float64:
            self._equal = np.array_equal(values, target, equal_nan=True)
        elif self._equal:
            self._equal = bool((values == target).all())
        if self._one_to_one:
            self._one_to_one = self._pairs(values, target)

    def _pairs(self, values: npt.NDArray[np.generic], target: npt.NDArray[np.generic]) -> bool:
        for value, wanted in zip(values.tolist(), target.tolist(), strict=True):
            # NaN differs from itself; missing values must find each other.
            one, other = (None if item != item else item for item in (value, wanted))  # noqa: PLR0124
            if self._target_of.setdefault(one, other) != other:
                return False
            if self._value_of.setdefault(other, one) != one:
                return False
        return len(self._target_of) <= _MAX_PAIRS

    @property
    def is_equal(self) -> bool:
        """Whether all values were those of the target."""
        return self._comparable and self._equal and self._rows > 0

    @property
    def is_one_to_one(self) -> bool:
        """Whether each value went with one of the target and the other way round, repeatedly."""
        values = len(self._target_of)
        return self._one_to_one and values >= 2 and self._rows >= max(_LEAST_ROWS, 2 * values)
