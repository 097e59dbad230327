"""How rows become images for convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def with_channels(row_shape: Sequence[int]) -> nn.Module:
    """Makes the step from rows [B, H, W] or [B, C, H, W] to images [B, C, H, W]."""
    return nn.Identity() if len(row_shape) == 3 else nn.Unflatten(1, (1, row_shape[0]))
