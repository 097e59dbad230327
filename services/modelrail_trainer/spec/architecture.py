"""Architectures of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class LinearModel:
    """One affine map: linear regression, or logistic regression with a loss for classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpModel:
    """A multi-layer perceptron with ReLU between the layers."""

    hidden_units: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnModel:
    """Blocks of convolution, ReLU and maximum pooling, then a perceptron with one hidden layer."""

    channels: tuple[int, ...]
    hidden_units: int = 64
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetModel:
    """Stages of residual blocks with batch normalization, then the mean over the image."""

    channels: tuple[int, ...]
    blocks_per_stage: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GruModel:
    """Gated recurrent units over embedded tokens."""

    embedding_size: int = 32
    hidden_units: int = 64
    layers: int = 1
    bidirectional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerModel:
    """A transformer's encoder over embedded tokens, then the mean over the row."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    feed_forward: int = 256
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GptModel:
    """A transformer's decoder that predicts the next byte."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomModel:
    """A module that a function of the job's owner makes.

    Attributes:
        entry_point: `module:function`.
        arguments: What it is given by name, as JSON values.
    """

    entry_point: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


# None stands for a oneof in which nothing was set; `validate` refuses it.
Model = (
    LinearModel
    | MlpModel
    | CnnModel
    | ResNetModel
    | GruModel
    | TransformerModel
    | GptModel
    | CustomModel
    | None
)


def model_with_defaults(model: Model) -> Model:
    """Returns the architecture with every zero that means a default replaced by it."""
    match model:
        case CnnModel():
            return replace(model, hidden_units=model.hidden_units or 64)
        case ResNetModel():
            return replace(model, blocks_per_stage=model.blocks_per_stage or 2)
        case GruModel():
            return replace(
                model,
                embedding_size=model.embedding_size or 32,
                hidden_units=model.hidden_units or 64,
                layers=model.layers or 1,
            )
        case TransformerModel():
            width = model.width or 64
            return replace(
                model,
                width=width,
                layers=model.layers or 2,
                heads=model.heads or 4,
                feed_forward=model.feed_forward or 4 * width,
            )
        case GptModel():
            return replace(
                model,
                width=model.width or 128,
                layers=model.layers or 4,
                heads=model.heads or 4,
            )
        case _:
            return model
