"""The residual network: blocks that learn what to add to their input (He et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from modelrail_trainer.zoo.images import image_shape
from modelrail_trainer.zoo.networks.images import with_channels
from modelrail_trainer.zoo.resnet import ResNetModel


class ResidualBlock(nn.Module):
    """relu(x + f(x)), where f is two convolutions with batch normalization.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: 2 halves the image, rounding up; 1 leaves it.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),  # [B, after, H', W']
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        # The input is added as it is, where it has the shape of the sum; else a 1 by 1 convolution
        # brings it there (option B of the paper).
        self.shortcut: nn.Module = (
            nn.Identity()
            if (before, stride) == (after, 1)
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, before, H, W] to [B, after, H / stride, W / stride]."""
        summed: Tensor = self.shortcut(x) + self.residual(x)
        return summed.relu()


class GlobalAveragePool(nn.Module):
    """The mean of each channel over the whole image."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C]."""
        return x.mean(dim=(2, 3))


def resnet(model: ResNetModel, row_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Makes the network for images of shape [H, W] or [C, H, W]."""
    channels, _, _ = image_shape(row_shape)
    first = model.channels[0]
    layers: list[nn.Module] = [
        with_channels(row_shape),  # [B, C, H, W]
        nn.Conv2d(channels, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
    ]
    for stage, (before, after) in enumerate(pairwise([first, *model.channels])):
        # Every stage but the first halves the image.
        layers.append(ResidualBlock(before, after, stride=1 if stage == 0 else 2))
        layers += [ResidualBlock(after, after, 1) for _ in range(model.blocks_per_stage - 1)]
    return nn.Sequential(*layers, GlobalAveragePool(), nn.Linear(model.channels[-1], outputs))
