"""The exact median of a column that need not fit into memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt


class Values:
    """Numbers that are kept in a file, 8 bytes each, until their median is asked for.

    The file has no name, so that nothing is left of it, however its process ends.

    Args:
        folder: Where the file is; None: where the system keeps such files.
    """

    def __init__(self, folder: Path | None) -> None:
        # Kept open for as long as there are values to come.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._count = 0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Keeps some more, [N], none of them NaN."""
        self._file.write(np.ascontiguousarray(values).data)
        self._count += len(values)

    def median(self) -> float:
        """Returns the number in the middle, or the mean of the two there; gives the file up.

        At least one number is kept.
        """
        # Selection (Hoare, 1961) in the file itself, whose pages the system takes in and out: it
        # needs no memory of the process, and no order but that around the middle.
        with self._file:
            self._file.flush()
            values = np.memmap(self._file, np.float64, "r+", shape=(self._count,))
        middle = self._count // 2
        values.partition([max(0, middle - 1), middle])
        if self._count % 2:
            return float(values[middle])
        return float(values[middle - 1] + values[middle]) / 2
