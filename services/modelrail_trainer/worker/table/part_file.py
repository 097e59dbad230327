"""The encoded rows of one part of a table, in files that the network's training reads from."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from modelrail_trainer.worker.part import Part


class PartFile:
    """The rows of one part, as they are encoded.

    Args:
        path: Of the files, whose endings are put to it.
        row: Type of a row: its numbers, and how many.
        target_dtype: Of a target.
        stack: Closes the files.
    """

    def __init__(
        self, path: Path, row: np.dtype[Any], target_dtype: npt.DTypeLike, stack: ExitStack
    ) -> None:
        self._paths = (path.with_suffix(".features"), path.with_suffix(".targets"))
        self._files: list[BinaryIO] = [stack.enter_context(p.open("wb")) for p in self._paths]
        self._row = row
        self._target_dtype = target_dtype
        self.rows = 0

    def write(self, features: npt.NDArray[Any], targets: npt.NDArray[np.generic]) -> None:
        """Adds rows, features [N, size] and targets [N] or [N, 1]."""
        for file, array in zip(self._files, (features, targets), strict=True):
            file.write(np.ascontiguousarray(array).data)
        self.rows += len(features)

    def part(self) -> Part:
        """Returns the rows as they lie on the disk.

        Shared with the file, so that they count for no limit of the process's memory.
        """
        target_shape = (self.rows,) if self._target_dtype is np.int64 else (self.rows, 1)
        row, shape = self._row.base, (self.rows, *self._row.shape)
        features = np.memmap(self._paths[0], row, "r+", shape=shape)
        targets = np.memmap(self._paths[1], self._target_dtype, "r+", shape=target_shape)
        return Part(features, targets)
