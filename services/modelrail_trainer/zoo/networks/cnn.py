"""The convolutional network: blocks that halve the image, then a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from modelrail_trainer.zoo.cnn import CnnModel
from modelrail_trainer.zoo.images import image_shape
from modelrail_trainer.zoo.networks.images import with_channels


def cnn(model: CnnModel, row_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Makes the network for images of shape [H, W] or [C, H, W]."""
    channels, height, width = image_shape(row_shape)
    layers: list[nn.Module] = [with_channels(row_shape)]  # [B, C, H, W]
    for before, after in pairwise([channels, *model.channels]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        height, width = height // 2, width // 2
    return nn.Sequential(
        *layers,
        nn.Flatten(),  # [B, C · H · W]
        nn.Linear(model.channels[-1] * height * width, model.hidden_units),
        nn.ReLU(),
        nn.Dropout(model.dropout),
        nn.Linear(model.hidden_units, outputs),
    )
