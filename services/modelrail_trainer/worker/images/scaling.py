"""From pixels to numbers for the network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from modelrail_trainer.spec import PixelScale

_LARGEST = 255


class PixelHistogram:
    """How often each value comes in each channel: mean and deviation follow exactly.

    Args:
        channels: Of an image.
    """

    def __init__(self, channels: int) -> None:
        self._counts = np.zeros((channels, _LARGEST + 1), np.int64)

    def add(self, row: npt.NDArray[np.uint8]) -> None:
        """Looks at a training image as the network reads it, [H, W] or [C, H, W]."""
        channels = row.reshape(len(self._counts), -1)  # [C, H · W]
        for number, channel in enumerate(channels):
            self._counts[number] += np.bincount(channel, minlength=_LARGEST + 1)

    def moments(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Returns mean and standard deviation of value / 255, each [C]; 1 for a constant one."""
        values = np.arange(_LARGEST + 1) / _LARGEST  # [256]
        share = self._counts / self._counts.sum(axis=1, keepdims=True)  # [C, 256]
        mean = share @ values  # [C]
        variance = (share * np.square(values - mean[:, None])).sum(axis=1)  # [C]
        stddev = np.sqrt(variance)
        # The variance of a constant channel is 0 but for the rounding of its mean.
        constant = (self._counts > 0).sum(axis=1) == 1
        return mean.astype(np.float32), np.where(constant, 1.0, stddev).astype(np.float32)


class ScalePixels(nn.Module):
    """The first module of a network that reads pixels: (pixel / 255 - mean) / stddev.

    Args:
        divisor: 255, or 1 for pixels as they are.
        mean: Of each channel after the division, [C].
        stddev: Likewise.
        row_dimensions: Of a row: 2 for [H, W], 3 for [C, H, W].
    """

    mean: Tensor
    stddev: Tensor

    def __init__(
        self,
        divisor: float,
        mean: npt.NDArray[np.float32],
        stddev: npt.NDArray[np.float32],
        row_dimensions: int,
    ) -> None:
        super().__init__()
        shape = (-1, 1, 1) if row_dimensions == 3 else ()
        self.divisor = divisor
        self.register_buffer("mean", torch.from_numpy(mean.copy()).reshape(shape))
        self.register_buffer("stddev", torch.from_numpy(stddev.copy()).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Maps uint8 [B, *row_shape] to float32 of the same shape."""
        scaled: Tensor = (x.to(torch.float32) / self.divisor - self.mean) / self.stddev
        return scaled


def fit_scaling(scale: PixelScale, histogram: PixelHistogram, row_dimensions: int) -> ScalePixels:
    """Returns the module for what was seen of the training images."""
    mean, stddev = histogram.moments()
    if scale is not PixelScale.STANDARDIZED:
        mean, stddev = np.zeros_like(mean), np.ones_like(stddev)
    divisor = 1.0 if scale is PixelScale.NONE else float(_LARGEST)
    return ScalePixels(divisor, mean, stddev, row_dimensions)
