"""Text files as one stream of bytes, divided by position or by file, and read in windows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelrail_trainer.failure import DataError
from modelrail_trainer.spec import LinesDataset, Split
from modelrail_trainer.worker.part import Part

Bytes = npt.NDArray[np.uint8]
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A divided stream.

    Attributes:
        sha256: Digest over the files, those of the split too, as that of a table.
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
        OSError: The disk does not take the stream.
    """
    path = folder / "stream"
    own_files = {"validation": split.validation_paths, "test": split.test_paths}
    paths = [*dataset.paths, *split.own_paths]
    sha256, file_sizes = _put_together(paths, path)
    size_bytes = sum(file_sizes)
    sizes = _sizes(split, file_sizes, own_files)
    window = dataset.context_length + 1  # the last byte is only predicted
    for name, size in sizes.items():
        if size < window:
            where = f" of split.{name}_paths" if own_files.get(name) else ""
            raise DataError(
                f"the files have {size_bytes} bytes, {size} of them for the {name} part{where}: "
                f"expected at least {window} there, context_length + 1"
            )
    # Shared with the file, so that it counts for no limit of the process's memory.
    stream = np.memmap(path, np.uint8, "r+")
    pieces = np.split(stream, np.cumsum(list(sizes.values()))[:-1])
    parts = {name: _windows(piece, dataset) for name, piece in zip(sizes, pieces, strict=True)}
    return Stream(
        sha256=sha256,
        size_bytes=size_bytes,
        parts=(parts["training"], parts["validation"], parts["test"]),
    )


def _sizes(
    split: Split, file_sizes: Sequence[int], own_files: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Returns the bytes of each part, in the order in which the parts lie in the stream.

    Parts that fractions take come from the files of the data set, whose beginning is the training
    part; the files of the other parts follow.
    """
    fractions = {"validation": split.validation_fraction, "test": split.test_fraction}
    divided = len(file_sizes) - sum(map(len, own_files.values()))
    whole = sum(file_sizes[:divided])
    taken = {
        name: math.floor(whole * fraction)
        for name, fraction in fractions.items()
        if not own_files[name]
    }
    sizes = {"training": whole - sum(taken.values()), **taken}
    for name, paths in own_files.items():
        if paths:
            sizes[name] = sum(file_sizes[divided : divided + len(paths)])
            divided += len(paths)
    return sizes


def _put_together(paths: Sequence[str], target: Path) -> tuple[str, list[int]]:
    """Writes the files one after the other; returns their digest, and the bytes of each."""
    whole = hashlib.sha256()
    sizes = []
    with target.open("wb") as stream:
        for path in paths:
            digest = hashlib.sha256()
            before = stream.tell()
            for piece in _pieces(Path(path)):
                digest.update(piece)
                stream.write(piece)
            whole.update(digest.digest())
            sizes.append(stream.tell() - before)
    return whole.hexdigest(), sizes


def _pieces(path: Path) -> Iterator[bytes]:
    """Yields a file bit by bit.

    Raises:
        DataError: It cannot be read. What fails where the pieces go is no fault of the file.
    """
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except OSError as error:
        raise DataError(f"file {path.name!r}: {error.strerror}") from error


def _windows(part: Bytes, dataset: LinesDataset) -> Part:
    """Returns windows one after the other; what is left at the end is no whole one."""
    length = dataset.context_length
    windows = np.lib.stride_tricks.sliding_window_view(part, length + 1, writeable=True)[::length]
    # The byte after each byte, for all of them at once: views into the same file.
    return Part(windows[:, :-1], windows[:, 1:])
