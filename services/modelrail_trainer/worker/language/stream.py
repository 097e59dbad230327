"""Text files as one stream of bytes, divided by position and read in windows."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelrail_trainer.spec import LinesDataset, Split
from modelrail_trainer.worker.failure import DataError
from modelrail_trainer.worker.part import Part

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A divided stream.

    Attributes:
        sha256: Digest over the files, as that of a table.
        size_bytes: Of the whole stream.
        parts: The training, validation and test windows.
    """

    sha256: str
    size_bytes: int
    parts: tuple[Part, Part, Part]


def load_stream(dataset: LinesDataset, split: Split, folder: Path) -> Stream:
    """Puts the files together in a file of the folder, which stays there while it is used.

    Raises:
        DataError: A file cannot be read, or a part has no window.
    """
    path = folder / "stream"
    sha256 = _put_together(dataset.paths, path)
    size_bytes = path.stat().st_size
    tests = math.floor(size_bytes * split.test_fraction)
    validations = math.floor(size_bytes * split.validation_fraction)
    sizes = {
        "training": size_bytes - validations - tests,
        "validation": validations,
        "test": tests,
    }
    window = dataset.context_length + 1  # the last byte is only predicted
    for name, size in sizes.items():
        if size < window:
            raise DataError(
                f"the files have {size_bytes} bytes, {size} of them for the {name} part: expected "
                f"at least {window} there, context_length + 1"
            )
    # Shared with the file, so that it counts for no limit of the process's memory.
    stream = np.memmap(path, np.uint8, "r+")
    train, validation, test = np.split(stream, np.cumsum(list(sizes.values()))[:-1])
    first, second, third = (_windows(part, dataset) for part in (train, validation, test))
    return Stream(sha256=sha256, size_bytes=size_bytes, parts=(first, second, third))


def _put_together(paths: Sequence[str], target: Path) -> str:
    whole = hashlib.sha256()
    with target.open("wb") as stream:
        for path in paths:
            try:
                with Path(path).open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
                    file.seek(0)
                    shutil.copyfileobj(file, stream)
            except OSError as error:
                raise DataError(f"file {Path(path).name!r}: {error.strerror}") from error
    return whole.hexdigest()


def _windows(part: Bytes, dataset: LinesDataset) -> Part:
    """Returns windows one after the other; what is left at the end is no whole one."""
    length = dataset.context_length
    windows = np.lib.stride_tricks.sliding_window_view(part, length + 1, writeable=True)[::length]
    # The byte after each byte, for all of them at once: views into the same file.
    return Part(windows[:, :-1], windows[:, 1:])
