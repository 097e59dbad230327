"""One part of a divided data set, in memory or in files that are mapped into it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Inputs = npt.NDArray[Any]
"""Features float32 [rows, *row_shape], or tokens int64 or bytes uint8 [rows, length]."""

_MAPPED_BYTES = 16 << 20
"""Of a file that is read from its beginning to its end, about so much stays mapped."""


class PartOfRow(IntEnum):
    """The parts of a data set."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


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

    @property
    def is_mapped(self) -> bool:
        """Whether the inputs lie in a file, one row after the other."""
        # Others are sent to the processes of a job as arrays, and all have to say the same.
        return self.inputs.flags.c_contiguous and file_of(self.inputs) is not None

    def slices(self, rows: int) -> Iterator[slice]:
        """Yields all rows in their order, so many at once, and gives their pages back behind it."""
        read = 0
        for start in range(0, len(self), rows):
            yield slice(start, start + rows)
            read += rows * self.inputs.strides[0]
            if read >= _MAPPED_BYTES:
                self.release()
                read = 0
        self.release()

    def release(self) -> None:
        """Gives the pages of files back that reading brought into the process.

        The system would take them when it needs them, but until then they count as memory of the
        process. What is read again comes from the system's cache, or from the disk.
        """
        for file in (file_of(self.inputs), file_of(self.targets)):
            if file is not None:
                pages: Any = file.base
                pages.madvise(mmap.MADV_DONTNEED)


def file_of(array: Array) -> np.memmap[Any, Any] | None:
    """Returns the whole of the mapped file that an array is a view of; None: it lies in memory."""
    root: Any = array
    # Windows that overlap have a base that is no array.
    while not isinstance(base := getattr(root, "base", None), mmap.mmap):
        if base is None:
            return None
        root = base
    return root if isinstance(root, np.memmap) else None
