"""The zoo: a linear map, a multi-layer perceptron, a convolutional network for images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from modelrail_trainer import spec


class Network(nn.Module):
    """Preprocessing and an architecture: raw rows in, logits or values out."""

    def __init__(self, preprocessing: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Maps raw rows [B, *row_shape] to [B, outputs]."""
        outputs: Tensor = self.body(self.preprocessing(x))
        return outputs


class Classifier(nn.Module):
    """What is exported for classification: the network, and probabilities beside logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps raw rows [B, *row_shape] to logits and probabilities, each [B, classes]."""
        logits: Tensor = self.network(x)
        return logits, logits.softmax(dim=-1)


def build_body(model: spec.Model, row_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Makes an architecture with random weights, drawn from torch's global generator.

    Args:
        model: Architecture.
        row_shape: Shape of one row, without the batch axis.
        outputs: Number of classes or values.

    Raises:
        ValueError: There is no architecture.
    """
    features = 1
    for size in row_shape:
        features *= size
    match model:
        case spec.LinearModel():
            return nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))
        case spec.MlpModel(hidden_units=hidden):
            return nn.Sequential(nn.Flatten(), *_perceptron([features, *hidden, outputs]))
        case spec.CnnModel() as cnn:
            height, width = row_shape
            layers: list[nn.Module] = [nn.Unflatten(1, (1, height))]  # [B, 1, H, W]
            for before, after in pairwise([1, *cnn.channels]):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
                height, width = height // 2, width // 2
            return nn.Sequential(
                *layers,
                nn.Flatten(),  # [B, C · H · W]
                nn.Linear(cnn.channels[-1] * height * width, cnn.hidden_units),
                nn.ReLU(),
                nn.Dropout(cnn.dropout),
                nn.Linear(cnn.hidden_units, outputs),
            )
        case None:
            raise ValueError("the specification has no architecture")


def _perceptron(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]  # no ReLU on the outputs
