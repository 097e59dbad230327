"""Rules about images in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modelrail_trainer.rules.violation import Violation, nothing_set, shown, whole
from modelrail_trainer.spec import IdxFiles, ImageDataset, ImageFolder

IMAGE_ENDINGS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Of the files in folders of classes; others are not looked at."""
MAX_SIDE = 4_096
"""Of an image as the network reads it, in pixels."""
MAX_IDX_CLASSES = 256
"""A label is one byte."""
MAX_CLASS_NAME_CHARACTERS = 128


def check_images(images: ImageDataset) -> Iterator[Violation]:
    """Finds what is wrong with `dataset.images` that can be seen without its files."""
    path = "dataset.images"
    match images.source:
        case None:
            yield nothing_set(path, "folder", "idx")
        case ImageFolder(path=folder):
            yield from _path(f"{path}.folder.path", folder)
        case IdxFiles() as idx:
            yield from _check_idx(f"{path}.idx", idx)
    if images.size is not None:
        yield from whole(f"{path}.size.height", images.size.height, 1, MAX_SIDE)
        yield from whole(f"{path}.size.width", images.size.width, 1, MAX_SIDE)


def _check_idx(path: str, idx: IdxFiles) -> Iterator[Violation]:
    yield from _path(f"{path}.images", idx.images)
    yield from _path(f"{path}.labels", idx.labels)
    if idx.test_images or idx.test_labels:
        # One without the other says nothing.
        yield from _path(f"{path}.test_images", idx.test_images)
        yield from _path(f"{path}.test_labels", idx.test_labels)
    names = idx.class_names
    if names and not 2 <= len(names) <= MAX_IDX_CLASSES:
        yield Violation(
            f"{path}.class_names",
            f"expected no names or from 2 to {MAX_IDX_CLASSES}, got {len(names)}",
        )
    for position, name in enumerate(names[:MAX_IDX_CLASSES]):
        if not 1 <= len(name) <= MAX_CLASS_NAME_CHARACTERS or name in names[:position]:
            yield Violation(
                f"{path}.class_names[{position}]",
                f"expected from 1 to {MAX_CLASS_NAME_CHARACTERS} characters that no class before "
                f"has, got {shown(name)}",
            )


def _path(field: str, path: str) -> Iterator[Violation]:
    if not path or "\0" in path or ".." in Path(path).parts:
        yield Violation(field, f"expected a path without `..`, got {shown(path)}")
