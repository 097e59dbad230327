"""What stands around every architecture: preprocessing before it, probabilities behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Network(nn.Sequential):
    """Preprocessing and an architecture: raw rows [B, *row_shape] to logits or values [B, outputs].

    Args:
        preprocessing: From raw rows to what the architecture takes.
        body: The architecture.
    """

    def __init__(self, preprocessing: nn.Module, body: nn.Module) -> None:
        super().__init__()
        # To call a module that does nothing costs time in each step.
        if not isinstance(preprocessing, nn.Sequential) or len(preprocessing):
            self.add_module("preprocessing", preprocessing)
        self.add_module("body", body)


class TwoClasses(nn.Module):
    """From one logit z to the logits [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)]."""

    def forward(self, z: Tensor) -> Tensor:
        """Maps [B, 1] to [B, 2]."""
        return torch.cat([torch.zeros_like(z), z], dim=1)


class Classifier(nn.Module):
    """What is exported for classification: the network, and probabilities beside logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps raw rows [B, *row_shape] to logits and probabilities, each [B, classes]."""
        logits: Tensor = self.network(x)
        return logits, logits.softmax(dim=-1)
