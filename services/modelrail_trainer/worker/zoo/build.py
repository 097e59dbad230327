"""From an architecture of the specification to a module with random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from modelrail_trainer import spec
from modelrail_trainer.worker.zoo.cnn import cnn
from modelrail_trainer.worker.zoo.gpt import Gpt
from modelrail_trainer.worker.zoo.gru import Gru
from modelrail_trainer.worker.zoo.perceptron import perceptron
from modelrail_trainer.worker.zoo.resnet import resnet
from modelrail_trainer.worker.zoo.transformer import Transformer


def build_body(  # noqa: PLR0911  # one return a kind
    model: spec.Model, row_shape: Sequence[int], outputs: int, tokens: int = 0
) -> nn.Module:
    """Makes an architecture with random weights, drawn from torch's global generator.

    Args:
        model: Architecture.
        row_shape: Shape of one row, without the batch axis.
        outputs: Number of classes or values.
        tokens: Size of the vocabulary, when rows are tokens.

    Raises:
        ValueError: There is no architecture.
    """
    features = math.prod(row_shape)
    match model:
        case spec.LinearModel():
            return perceptron([features, outputs])
        case spec.MlpModel(hidden_units=hidden):
            return perceptron([features, *hidden, outputs])
        case spec.CnnModel():
            return cnn(model, row_shape, outputs)
        case spec.ResNetModel():
            return resnet(model, row_shape, outputs)
        case spec.GruModel():
            return Gru(model, tokens, outputs)
        case spec.TransformerModel():
            return Transformer(model, tokens, outputs)
        case spec.GptModel():
            return Gpt(model)
        case None | spec.CustomModel():
            raise ValueError("the specification has no architecture of the zoo")
