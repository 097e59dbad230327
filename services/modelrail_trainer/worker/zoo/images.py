"""How rows become images for convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def image_shape(row_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns channels, height and width of a row [H, W] (one channel) or [C, H, W]."""
    height, width = row_shape[-2:]
    return (row_shape[0] if len(row_shape) == 3 else 1), height, width


def with_channels(row_shape: Sequence[int]) -> nn.Module:
    """Makes the step from rows [B, H, W] or [B, C, H, W] to images [B, C, H, W]."""
    return nn.Identity() if len(row_shape) == 3 else nn.Unflatten(1, (1, row_shape[0]))
