"""Architectures, each a description of a few sizes from which a network is made.

To add one: its description in a file here (see `Architecture`), its network in
`networks`, its name in `ARCHITECTURES`, and in `trainer.proto` a message of the description's name
and fields. Only `networks` imports torch, and `build` imports that: the service, which validates,
starts without.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelrail_trainer.zoo.architecture import Architecture, Reads
from modelrail_trainer.zoo.cnn import CnnModel
from modelrail_trainer.zoo.gpt import GptModel
from modelrail_trainer.zoo.gru import GruModel
from modelrail_trainer.zoo.perceptron import LinearModel, MlpModel
from modelrail_trainer.zoo.resnet import ResNetModel
from modelrail_trainer.zoo.transformer import TransformerModel

ZooModel = LinearModel | MlpModel | CnnModel | ResNetModel | GruModel | TransformerModel | GptModel

ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "linear": LinearModel,
    "mlp": MlpModel,
    "cnn": CnnModel,
    "resnet": ResNetModel,
    "gru": GruModel,
    "transformer": TransformerModel,
    "gpt": GptModel,
}
"""By their names in a specification."""

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "CnnModel",
    "GptModel",
    "GruModel",
    "LinearModel",
    "MlpModel",
    "Reads",
    "ResNetModel",
    "TransformerModel",
    "ZooModel",
]
