"""From the bytes of an image file to pixels of 8 bits a channel, or to the reason why not."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from modelrail_trainer.worker.images.source import Pixels

MAX_PIXELS = 64_000_000
MAX_RAW_SIDE = 16_384
"""Of an image before it is resized, in pixels: the weights of a side take memory with it."""
MAX_FILE_BYTES = 256 * 1024 * 1024
# Pillow's other formats run programs (EPS), or are seldom images of a data set.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"})


class Unusable(Exception):
    """An image cannot be used; the message completes `the image …`."""


def decode(content: bytes) -> Pixels:
    """Returns the first image of a file, [H, W] or [H, W, 3], turned upright as its EXIF data say.

    Raises:
        Unusable: There is none that can be decoded, or it is too large or of another kind.
    """
    if not content:
        raise Unusable("is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities that do not matter here; the number of pixels is looked at.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check_header(image)  # the pixels are decoded only after this
                upright = ImageOps.exif_transpose(image)
                grey = image.mode in _GREY_MODES
                return np.array(upright.convert("L" if grey else "RGB"), np.uint8)
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable(_too_large()) from error
    except MemoryError:
        raise
    except Exception as error:  # each of Pillow's decoders raises what it likes
        said = " ".join(str(error).split())[:100] or type(error).__name__
        # Pillow names the object that it read from.
        said = "no known format" if "cannot identify image file" in said else said
        raise Unusable(f"cannot be decoded: {said}") from error


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unusable(_too_large())
    if max(width, height) > MAX_RAW_SIDE:
        raise Unusable(f"has a side of more than {MAX_RAW_SIDE} pixels")
    if image.mode not in _GREY_MODES | _COLOR_MODES:
        raise Unusable(f"is not of 8 bits a channel, but of mode {image.mode!r}")


def _too_large() -> str:
    return f"has more than {MAX_PIXELS} pixels"
