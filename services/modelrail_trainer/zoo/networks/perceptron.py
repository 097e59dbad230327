"""The linear map and the multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Makes affine maps with ReLU between them, on flattened rows; two widths are one linear map.

    Args:
        widths: Of the input, each hidden layer and the output; at least two.
    """
    layers: list[nn.Module] = [nn.Flatten()]  # [B, widths[0]]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # no ReLU on the outputs
