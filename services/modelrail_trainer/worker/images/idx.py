"""Images in files of the idx format (LeCun, 1998), plain or compressed with gzip.

A file is two zero bytes, a byte for the type of its values (8: unsigned bytes), a byte for the
number of dimensions, each of them as 4 bytes with the highest first, and the values.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from modelrail_trainer.failure import DataError
from modelrail_trainer.spec import IdxFiles
from modelrail_trainer.worker.images.decoding import MAX_PIXELS, MAX_RAW_SIDE
from modelrail_trainer.worker.images.source import UNDIVIDED, Found
from modelrail_trainer.worker.part import PartOfRow
from modelrail_trainer.worker.progress import made_progress

MAX_IMAGES = 100_000_000
_UNSIGNED_BYTES = 8
_GZIP = b"\x1f\x8b"


class IdxSource:
    """The images of one or two pairs of files, in the order of the files.

    Args:
        files: The files, with links followed.

    Raises:
        DataError: A file is not there or damaged, or the two of a pair do not fit each other.
    """

    def __init__(self, files: IdxFiles) -> None:
        pairs = [(files.images, files.labels, UNDIVIDED)]
        if files.test_images:
            pairs.append((files.test_images, files.test_labels, int(PartOfRow.TEST)))
        self._states = {path: _state(path) for pair in pairs for path in pair[:2]}
        self._pairs: list[tuple[str, npt.NDArray[np.uint8]]] = []
        parts = []
        for images, labels, part in pairs:
            values = _read_labels(labels)  # [N]
            with _opened(images) as file:
                count, height, width = _dimensions(file, images, 3)
            if count != len(values):
                raise DataError(
                    f"expected as many images in {Path(images).name!r} as labels in "
                    f"{Path(labels).name!r}, which are {len(values)}; got {count}"
                )
            if not 1 <= height * width <= MAX_PIXELS or max(height, width) > MAX_RAW_SIDE:
                raise DataError(
                    f"file {Path(images).name!r}: expected images of 1 to {MAX_PIXELS} pixels and "
                    f"no side of more than {MAX_RAW_SIDE}, got {height} by {width}"
                )
            self._pairs.append((images, values))
            parts.append(np.full(count, part, np.int8))
        self.parts: npt.NDArray[np.int8] = np.concatenate(parts)
        labels_found = np.concatenate([values for _, values in self._pairs])  # [N]
        self.classes, self.targets = _classes(labels_found, files.class_names)

    def images(self, wanted: npt.NDArray[np.bool_]) -> Iterator[Found]:
        """Yields the wanted images in order.

        Raises:
            DataError: A file is damaged, or gone.
        """
        first = 0
        for path, labels in self._pairs:
            with _opened(path) as file:
                _, height, width = _dimensions(file, path, 3)
                for number in range(len(labels)):
                    content = file.read(height * width)
                    if len(content) < height * width:
                        raise DataError(_ends_early(path))
                    if not wanted[first + number]:
                        continue
                    made_progress()
                    yield Found(
                        index=first + number,
                        name=f"number {number} of {Path(path).name}",
                        identity=bytes([labels[number]]) + content,
                        pixels=np.frombuffer(content, np.uint8).reshape(height, width),
                    )
                _check_end(file, path)
            first += len(labels)

    def check_unchanged(self) -> None:
        """Says whether the files are still those that were read first.

        Raises:
            DataError: One is gone or was changed.
        """
        for path, before in self._states.items():
            if _state(path) != before:
                raise DataError(
                    f"file {Path(path).name!r} was changed while it was read; clone the job when "
                    "nobody writes it any more"
                )

    def remarks(self) -> Iterator[str]:
        """Yields nothing: every byte of the files is used."""
        return iter(())


def _classes(
    labels: npt.NDArray[np.uint8], names: tuple[str, ...]
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Returns the names of the classes, and the class number of each label, [N]."""
    found, places = np.unique(labels, return_inverse=True)
    if not names:
        return tuple(str(label) for label in found), places.astype(np.int64)
    if len(found) and found[-1] >= len(names):
        raise DataError(
            f"expected labels below {len(names)}, as many as dataset.images.idx.class_names has "
            f"names; got {found[-1]}"
        )
    return names, labels.astype(np.int64)


def _read_labels(path: str) -> npt.NDArray[np.uint8]:
    with _opened(path) as file:
        (count,) = _dimensions(file, path, 1)
        content = file.read(count)
        if len(content) < count:
            raise DataError(_ends_early(path))
        _check_end(file, path)
    return np.frombuffer(content, np.uint8)


def _dimensions(file: BinaryIO, path: str, dimensions: int) -> tuple[int, ...]:
    header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]) or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"file {Path(path).name!r}: expected the idx format with unsigned bytes and "
            f"{dimensions} dimensions, got a file whose first bytes are "
            f"{header[:4].hex(' ') or 'none'}"
        )
    sizes = tuple(int(size) for size in np.frombuffer(header[4:], ">u4"))
    if sizes[0] > MAX_IMAGES:
        raise DataError(
            f"file {Path(path).name!r}: expected at most {MAX_IMAGES} images, got {sizes[0]}"
        )
    return sizes


def _check_end(file: BinaryIO, path: str) -> None:
    if file.read(1):
        raise DataError(f"file {Path(path).name!r} goes on after what its header tells of")


def _ends_early(path: str) -> str:
    return f"file {Path(path).name!r} ends before what its header tells of"


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Opens a file, decompressed; what goes wrong becomes the job's failure, without its folder."""
    name = Path(path).name
    try:
        with Path(path).open("rb") as plain:
            compressed = plain.read(2) == _GZIP
            plain.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=plain) as file:
                    yield file  # type: ignore[misc]  # it has all of BinaryIO that is used
            else:
                yield plain
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"file {name!r} is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"file {name!r} cannot be read: {error.strerror}") from error


def _state(path: str) -> tuple[int, int, int]:
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DataError(f"file {Path(path).name!r} cannot be read: {error.strerror}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns
