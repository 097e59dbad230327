"""Images as the network reads them, in files of their own beside the job.

Each image is decoded once, and only one at a time is held. What the network trains on is read from
the disk as it is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelrail_trainer.failure import DataError
from modelrail_trainer.rules.images import MAX_SIDE
from modelrail_trainer.spec import Color, IdxFiles, ImageDataset, ImageFolder, Split
from modelrail_trainer.worker.images.folder import FolderSource
from modelrail_trainer.worker.images.idx import IdxSource
from modelrail_trainer.worker.images.partition import divide
from modelrail_trainer.worker.images.resize import resize
from modelrail_trainer.worker.images.scaling import PixelHistogram, ScalePixels, fit_scaling
from modelrail_trainer.worker.images.source import (
    Found,
    ImageSource,
    Pixels,
    color_of,
    with_color,
)
from modelrail_trainer.worker.part import Part, PartOfRow

MAX_CLASSES = 10_000
_COMPARED_IMAGES = 32
_COMPARED_PIXELS = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Divided, decoded and resized images.

    Attributes:
        sha256: Digest over names and bytes of the files.
        labels: Names of the classes.
        parts: The training, validation and test images, uint8 [N, H, W] or [N, 3, H, W].
        color: Of every image.
        height: Of an image as the network reads it, in pixels.
        width: Likewise.
        any_size: Whether images of any size are resized to that.
        scaling: First module of the network.
        raw: Some validation images before they were resized.
        unusable: Images that were left out, by reason.
        remarks: What else there is to tell.
    """

    sha256: str
    labels: tuple[str, ...]
    parts: tuple[Part, Part, Part]
    color: Color
    height: int
    width: int
    any_size: bool
    scaling: ScalePixels
    raw: tuple[Pixels, ...]
    unusable: Mapping[str, int]
    remarks: tuple[str, ...]

    def prepare(self, image: Pixels) -> npt.NDArray[np.uint8]:
        """Returns an image as the network reads it, [H, W] or [3, H, W]."""
        return as_row(resize(image, self.height, self.width))


def as_row(image: Pixels) -> npt.NDArray[np.uint8]:
    """Returns an image with its channels in front, [H, W] or [3, H, W]."""
    return image if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))


def load_images(
    dataset: ImageDataset, split: Split, folder: Path, *, max_rows: int | None = None
) -> Images:
    """Reads the images of a data set, divides them and brings them to one size.

    Args:
        dataset: What is read.
        split: How it is divided.
        folder: An empty folder for the images, which stay there while they are used.
        max_rows: Only so many images are used, evenly from all of them; None: all.

    Raises:
        DataError: The images are not what the specification expects; the message says how.
    """
    source = _open(dataset)
    if len(source.classes) > MAX_CLASSES:
        raise DataError(f"expected at most {MAX_CLASSES} classes, got {len(source.classes)}")
    parts = divide(source, split)
    wanted = _sample(source, parts, max_rows)
    first = _first_image(source, wanted & (parts == PartOfRow.TRAIN))
    reading = _Reading(source, dataset, parts, first)
    found = reading.read(wanted, folder)
    source.check_unchanged()
    return found


def _open(dataset: ImageDataset) -> ImageSource:
    match dataset.source:
        case ImageFolder() as folder:
            return FolderSource(folder)
        case IdxFiles() as files:
            return IdxSource(files)
        case None:
            raise DataError("there is no source of images")


def _sample(
    source: ImageSource, parts: npt.NDArray[np.int8], most: int | None
) -> npt.NDArray[np.bool_]:
    """Returns which images are used, [N]: of each part and class as large a share."""
    stride = 1 if most is None else max(1, -(-len(parts) // most))
    wanted = np.zeros(len(parts), np.bool_)
    for part in PartOfRow:
        places = np.flatnonzero(parts == part)
        by_class = places[np.argsort(source.targets[places], kind="stable")]
        wanted[by_class[::stride]] = True
    return wanted


def _first_image(source: ImageSource, wanted: npt.NDArray[np.bool_]) -> Pixels:
    first: Found | None = None
    for found in source.images(wanted):
        if found.pixels is not None:
            return found.pixels
        first = first or found
    raise DataError(
        "no training image can be used"
        + (f"; the image {first.name!r} {first.reason}" if first else "")
    )


@dataclass(slots=True)
class _Unusable:
    """Images that cannot be used: how many for each reason, and the first."""

    skip: bool
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, reason: str) -> None:
        if not self.skip:
            raise DataError(
                f"the image {name!r} {reason}; mend or remove it, or set "
                "dataset.images.skip_unusable_images"
            )
        self.counts[reason] += 1


class _Reading:
    def __init__(
        self,
        source: ImageSource,
        dataset: ImageDataset,
        parts: npt.NDArray[np.int8],
        first: Pixels,
    ) -> None:
        self._source = source
        self._dataset = dataset
        self._parts = parts
        self._color = dataset.color or color_of(first)
        size = dataset.size
        self._height, self._width = (size.height, size.width) if size else first.shape[:2]
        if max(self._height, self._width) > MAX_SIDE:
            raise DataError(
                f"expected images with sides of at most {MAX_SIDE} pixels, got {self._height} by "
                f"{self._width}; set dataset.images.size, to which they are resized"
            )
        self._unusable = _Unusable(dataset.skip_unusable_images)
        self._raw: list[Pixels] = []
        self._raw_pixels = 0

    def read(self, wanted: npt.NDArray[np.bool_], folder: Path) -> Images:
        """Decodes the wanted images into files of the folder."""
        source, row_shape = self._source, self._row_shape()
        classes = source.classes
        digest = hashlib.sha256(json.dumps(classes).encode())
        histogram = PixelHistogram(1 if self._color is Color.GREY else 3)
        validation = np.flatnonzero(wanted & (self._parts == PartOfRow.VALIDATION))
        compared = set(validation[:: max(1, len(validation) // _COMPARED_IMAGES)].tolist())
        with ExitStack() as stack:
            files = [stack.enter_context(_path(folder, part).open("wb")) for part in PartOfRow]
            targets: list[list[int]] = [[] for _ in PartOfRow]
            for found in source.images(wanted):
                digest.update(bytes([int(source.parts[found.index]) & 0xFF]) + found.identity)
                image = self._image(found)
                if image is None:
                    continue
                if found.index in compared:
                    self._keep(image)
                row = as_row(resize(image, self._height, self._width))
                part = int(self._parts[found.index])
                files[part].write(np.ascontiguousarray(row).data)
                targets[part].append(int(source.targets[found.index]))
                if part == PartOfRow.TRAIN:
                    histogram.add(row)
        self._check(targets, is_sample=not wanted.all())
        train, validation_part, test = (
            _part(_path(folder, part), row_shape, targets[part]) for part in PartOfRow
        )
        return Images(
            sha256=digest.hexdigest(),
            labels=classes,
            parts=(train, validation_part, test),
            color=self._color,
            height=self._height,
            width=self._width,
            any_size=self._dataset.size is not None,
            scaling=fit_scaling(self._dataset.scale, histogram, len(row_shape)),
            raw=tuple(self._raw),
            unusable=dict(self._unusable.counts),
            remarks=tuple(self._remarks()),
        )

    def _image(self, found: Found) -> Pixels | None:
        """Returns the image in the colour of all; None when it is left out."""
        if found.pixels is None:
            self._unusable.add(found.name, found.reason)
            return None
        if self._dataset.color is None and color_of(found.pixels) is not self._color:
            self._unusable.add(
                found.name,
                f"is {color_of(found.pixels)}, unlike the first training image, which is "
                f"{self._color}; dataset.images.color turns all into one",
            )
            return None
        if self._dataset.size is None and found.pixels.shape[:2] != (self._height, self._width):
            height, width = found.pixels.shape[:2]
            raise DataError(
                f"the image {found.name!r} has {height} by {width} pixels, and the first training "
                f"image {self._height} by {self._width}; set dataset.images.size, to which all "
                "are resized"
            )
        return with_color(found.pixels, self._color)

    def _keep(self, image: Pixels) -> None:
        self._raw_pixels += image.size
        if self._raw_pixels <= _COMPARED_PIXELS or not self._raw:
            self._raw.append(image)

    def _check(self, targets: list[list[int]], *, is_sample: bool) -> None:
        for part in PartOfRow:
            if not targets[part]:
                raise DataError(f"no image of the {part.name.lower()} part can be used")
        # A sample may lack a class that all images have.
        lacking = set(range(len(self._source.classes))) - set(targets[PartOfRow.TRAIN])
        if lacking and not is_sample:
            name = self._source.classes[min(lacking)]
            raise DataError(f"class {name!r} has no training image that can be used")

    def _remarks(self) -> list[str]:
        return [
            *self._source.remarks(),
            *(
                f"{images} images were left out: one {reason}"
                for reason, images in self._unusable.counts.items()
            ),
        ]

    def _row_shape(self) -> tuple[int, ...]:
        size = (self._height, self._width)
        return size if self._color is Color.GREY else (3, *size)


def _path(folder: Path, part: PartOfRow) -> Path:
    return folder / f"{part.name.lower()}.pixels"


def _part(path: Path, row_shape: tuple[int, ...], targets: list[int]) -> Part:
    """Returns the images as they lie on the disk.

    Shared with the file, so that they count for no limit of the process's memory.
    """
    pixels = np.memmap(path, np.uint8, "r+", shape=(len(targets), *row_shape))
    return Part(pixels, np.array(targets, np.int64))
