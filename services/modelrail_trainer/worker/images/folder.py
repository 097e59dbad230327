"""Images in a folder for each class."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from modelrail_trainer.failure import DataError
from modelrail_trainer.rules.images import IMAGE_ENDINGS
from modelrail_trainer.spec import ImageFolder
from modelrail_trainer.worker.images.decoding import MAX_FILE_BYTES, Unusable, decode
from modelrail_trainer.worker.images.source import UNDIVIDED, Found
from modelrail_trainer.worker.part import PartOfRow
from modelrail_trainer.worker.progress import made_progress

_NO_FILE = (-1, -1, -1)


class _File(NamedTuple):
    path: str  # below the folder
    class_name: str
    part: int
    state: tuple[int, int, int]  # inode, bytes, nanoseconds; _NO_FILE for a link to nothing


class FolderSource:
    """The images of a folder, the first of each class before the second of any.

    So the beginning has images of all classes, wherever one needs only some.

    Args:
        folder: Where they are, with links followed.

    Raises:
        DataError: It has no folders of classes, or one cannot be read or leads elsewhere.
    """

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        self._root = Path(folder.path)
        self._readable = [Path(root) for root in folder.readable] or [self._root]
        self._ignored = 0
        self._class_folders: list[tuple[str, str, int]] = []  # path, class, part
        self._files = self._find()
        self.classes = tuple(sorted({name for _, name, _ in self._class_folders}))
        places = {name: place for place, name in enumerate(self.classes)}
        self.targets: npt.NDArray[np.int64] = np.array(
            [places[file.class_name] for file in self._files], np.int64
        )
        self.parts: npt.NDArray[np.int8] = np.array([file.part for file in self._files], np.int8)

    def _find(self) -> list[_File]:
        self._ignored = 0
        self._class_folders = list(self._find_class_folders())
        found = [list(self._find_files(*folder)) for folder in self._class_folders]
        for (path, _, _), files in zip(self._class_folders, found, strict=True):
            if not files:
                raise DataError(
                    f"the folder {path!r} has no images; remove it, put some in, or set "
                    "dataset.images.folder.divided if it is no class but a part"
                )
        return [file for row in zip_longest(*found) for file in row if file is not None]

    def _find_class_folders(self) -> Iterator[tuple[str, str, int]]:
        if not self._folder.divided:
            yield from ((name, name, UNDIVIDED) for name in self._folders_in(""))
            return
        # What is not there is taken from the training images.
        there = self._folders_in("")
        if unknown := sorted(set(there) - {part.name.lower() for part in PartOfRow}):
            raise DataError(
                f"expected the folders train, validation and test in a divided data set, got "
                f"{unknown[0]!r}"
            )
        if "train" not in there:
            raise DataError("expected a folder train in a divided data set, got none")
        for part in PartOfRow:
            name = part.name.lower()
            fixed = part is not PartOfRow.TRAIN or len(there) == len(PartOfRow)
            if name in there:
                classes = self._folders_in(name)
                if not classes:
                    raise DataError(f"the folder {name!r} has no folders of classes")
                yield from ((f"{name}/{c}", c, part if fixed else UNDIVIDED) for c in classes)

    def _folders_in(self, path: str) -> list[str]:
        names = []
        for entry in self._scan(path):
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            below = f"{path}/{entry.name}" if path else entry.name
            if entry.is_symlink() and not self._may_read(self._root / below):
                raise DataError(
                    f"the folder {below!r} is a link that leads out of the folders that may be read"
                )
            if not entry.name.isprintable():  # it becomes a text of the exported graph
                raise DataError(f"the folder {below!r} has a name that is no text")
            names.append(entry.name)
        return sorted(names)

    def _find_files(self, folder: str, class_name: str, part: int) -> Iterator[_File]:
        for entry in sorted(self._scan(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if Path(entry.name).suffix.lower() not in IMAGE_ENDINGS:
                self._ignored += 1
                continue
            try:
                state = _state(entry.stat())
            except OSError:
                state = _NO_FILE
            yield _File(f"{folder}/{entry.name}", class_name, part, state)

    def _scan(self, path: str) -> list[os.DirEntry[str]]:
        made_progress()
        try:
            with os.scandir(self._root / path) as entries:
                return list(entries)
        except OSError as error:
            which = f"the folder {path!r}" if path else "the folder of the images"
            raise DataError(f"{which} cannot be read: {error.strerror}") from error

    def _may_read(self, path: Path) -> bool:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):  # absent, or a loop of links
            return False
        return any(real.is_relative_to(root) for root in self._readable)

    def images(self, wanted: npt.NDArray[np.bool_]) -> Iterator[Found]:
        """Yields the wanted images in order.

        Raises:
            DataError: A file is gone or was changed.
        """
        for index in np.flatnonzero(wanted):
            made_progress()
            file = self._files[index]
            name = os.fsencode(file.path)
            try:
                content = self._content(file)
            except Unusable as error:
                yield Found(int(index), file.path, name + b"\0", None, str(error))
                continue
            identity = name + b"\0" + hashlib.sha256(content).digest()
            try:
                yield Found(int(index), file.path, identity, decode(content))
            except Unusable as error:
                yield Found(int(index), file.path, identity, None, str(error))

    def _content(self, file: _File) -> bytes:
        path = self._root / file.path
        if path.is_symlink():
            if not self._may_read(path):
                raise Unusable("is a link that leads out of the folders that may be read")
            path = path.resolve()
        try:
            # Not blocking: a pipe would wait for a writer. No link: it was followed above.
            opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DataError(_changed(file.path)) from error
        except OSError as error:
            raise Unusable(f"cannot be read: {error.strerror}") from error
        try:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode):
                raise Unusable("is no file")
            if _state(found) != file.state:
                raise DataError(_changed(file.path))
            if found.st_size > MAX_FILE_BYTES:
                raise Unusable(f"has more than {MAX_FILE_BYTES} bytes")
            with os.fdopen(opened, "rb", closefd=False) as stream:
                return stream.read(found.st_size)
        except OSError as error:
            raise Unusable(f"cannot be read: {error.strerror}") from error
        finally:
            os.close(opened)

    def check_unchanged(self) -> None:
        """Says whether the files are still those that were found first.

        Raises:
            DataError: One came, went or was changed meanwhile.
        """
        before = {file.path: file.state for file in self._files}
        now = {file.path: file.state for file in self._find()}
        for path in sorted(before.keys() | now.keys()):
            if before.get(path) != now.get(path):
                raise DataError(_changed(path))

    def remarks(self) -> Iterator[str]:
        """Yields how many files were not looked at."""
        if self._ignored:
            yield f"{self._ignored} files are no images by their endings, and were not looked at"


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _changed(path: str) -> str:
    return (
        f"the image {path!r} came, went or was changed while it was read; clone the job when "
        "nobody writes it any more"
    )
