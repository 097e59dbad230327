"""A folder of images below a prefix of keys: which objects are images, and of which classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from modelrail_trainer.objects.version import BadName, ObjectError, ObjectVersion
from modelrail_trainer.rules.images import IMAGE_ENDINGS
from modelrail_trainer.spec import ImageFolder

_MAX_NAME_BYTES = 255
"""Of a file or folder, on the file systems of Linux."""


@dataclass(frozen=True, slots=True)
class FolderContent:
    """What of a prefix is copied.

    Attributes:
        images: By their paths below the prefix.
        folders: Paths of folders, each behind the one that it lies in. Those without images are
            among them, so that the job meets what it would meet in a folder of its machine.
        others: Number of objects that a job does not look at.
    """

    images: Mapping[str, ObjectVersion]
    folders: tuple[str, ...]
    others: int


def content_of(folder: ImageFolder, objects: Mapping[str, ObjectVersion]) -> FolderContent:
    """Returns what a job looks at: images in folders of classes, as the worker finds them there.

    Args:
        folder: Which folders lie above the images.
        objects: By their paths below the prefix.

    Raises:
        BadName: A path leads out of the folder, or is no path of files.
        ObjectError: There is no folder of a class.
    """
    depth = 2 if folder.divided else 1
    images: dict[str, ObjectVersion] = {}
    folders: set[str] = set()
    for path, version in objects.items():
        *above, name = names = path.split("/")
        for one in names:
            _check_name(one, path)
        if any(one.startswith(".") for one in names):
            continue
        folders |= {"/".join(above[:place]) for place in range(1, min(len(above), depth) + 1)}
        if len(above) == depth and PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS:
            images[path] = version
    if not folders:
        raise ObjectError(
            "expected folders of classes with images below it, got "
            + (f"{len(objects)} objects in none" if objects else "no object")
        )
    # What marks a folder has its name, and is no object of anybody's.
    others = sum(path not in images and path not in folders for path in objects)
    return FolderContent(images, tuple(sorted(folders)), others)


def first_difference(before: FolderContent, now: FolderContent) -> str | None:
    """Returns the path of an image that is not the same in both; None when all are."""
    if before.images == now.images:
        return None
    paths = before.images.keys() | now.images.keys()
    return min(path for path in paths if before.images.get(path) != now.images.get(path))


def _check_name(name: str, path: str) -> None:
    # The store's library refuses the first three too; nothing here relies on that.
    if name in {"", ".", ".."} or "\0" in name or len(name.encode()) > _MAX_NAME_BYTES:
        raise BadName(path)
