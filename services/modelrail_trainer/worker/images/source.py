"""What a source of images gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelrail_trainer.spec import Color

Pixels = npt.NDArray[np.uint8]
"""Of one image: [height, width] or [height, width, 3]."""

UNDIVIDED = -1
"""In place of the part of an image that the split still has to give one."""


@dataclass(frozen=True, slots=True)
class Found:
    """One image.

    Attributes:
        index: Of the image among all of the source.
        name: For people: a path below the folder, or a number in a file.
        identity: What counts for the digest.
        pixels: None when it cannot be used.
        reason: Why it cannot.
    """

    index: int
    name: str
    identity: bytes
    pixels: Pixels | None
    reason: str = ""


class ImageSource(Protocol):
    """Images with their classes; the pixels are read as they are asked for."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Class number of each image, [N]."""

    @property
    def parts(self) -> npt.NDArray[np.int8]:
        """Part of each image, or UNDIVIDED, [N]."""

    def images(self, wanted: npt.NDArray[np.bool_]) -> Iterator[Found]:
        """Yields the wanted images in order.

        Args:
            wanted: Which ones, [N].

        Raises:
            DataError: A file is gone, was changed, or is not what the others need it to be.
        """

    def check_unchanged(self) -> None:
        """Says whether the files are still those that were found first.

        Raises:
            DataError: One came, went or was changed meanwhile.
        """

    def remarks(self) -> Iterator[str]:
        """Yields what there is to tell of the files, in sentences."""


def color_of(pixels: Pixels) -> Color:
    """Returns what the pixels have channels for."""
    return Color.GREY if pixels.ndim == 2 else Color.RGB


def with_color(pixels: Pixels, color: Color) -> Pixels:
    """Returns the image in a colour: grey as the luminance of ITU-R BT.601."""
    if color is color_of(pixels):
        return pixels
    if color is Color.RGB:
        return np.stack([pixels] * 3, axis=2)
    # Whole numbers that sum to 2^16, rounded: no machine differs.
    weighted = pixels.astype(np.uint32) @ np.array([19_595, 38_470, 7_471], np.uint32)  # [H, W]
    return ((weighted + 0x8000) >> 16).astype(np.uint8)
