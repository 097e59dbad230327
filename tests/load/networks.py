"""The networks that the measurements run: a tiny one and a convolutional one.

The transformer is that of the example `minilm`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Module:
    """Returns 64 → 256 → 256 → 10 with ReLU: so small that everything else is what costs."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a short cut (He et al. 2015, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.short_cut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.short_cut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, images: Tensor) -> Tensor:
        summed: Tensor = self.body(images) + self.short_cut(images)  # (batch, out, h, w)
        return functional.relu(summed)


def resnet18() -> nn.Module:
    """Returns the 18-layer network of He et al. 2015, table 1: 3x224x224 to 1000 classes."""
    widths = [64, 64, 128, 256, 512]
    blocks: list[nn.Module] = []
    for stage in range(4):
        stride = 1 if stage == 0 else 2
        blocks.append(ResidualBlock(widths[stage], widths[stage + 1], stride))
        blocks.append(ResidualBlock(widths[stage + 1], widths[stage + 1], 1))
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    )
