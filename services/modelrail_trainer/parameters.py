"""How many weights an architecture has, told without making it."""

from __future__ import annotations

import math
from itertools import pairwise

from modelrail_trainer.spec import (
    CnnModel,
    CustomModel,
    DatasetFacts,
    GptModel,
    GruModel,
    LinearModel,
    MlpModel,
    Model,
    ResNetModel,
    TransformerModel,
)


def parameter_count(model: Model, facts: DatasetFacts) -> int:
    """Returns the number of weights and biases that a model has on a data set; 0 for no model.

    It is 0 for a custom model too, of which only the module knows.
    `facts.outputs` are those of the architecture, as `body_outputs` tells them.
    """
    features = math.prod(facts.row_shape)
    before = 0  # weights before the last affine maps
    match model:
        case None | CustomModel():
            return 0
        case LinearModel():
            widths = [features, facts.outputs]
        case MlpModel(hidden_units=hidden):
            widths = [features, *hidden, facts.outputs]
        case CnnModel(channels=channels, hidden_units=units):
            colours = facts.row_shape[0] if len(facts.row_shape) == 3 else 1
            before = sum(9 * a * b + b for a, b in pairwise([colours, *channels]))
            height, width = (side >> len(channels) for side in facts.row_shape[-2:])
            widths = [channels[-1] * height * width, units, facts.outputs]
        case ResNetModel():
            before = _residual_weights(model, facts)
            widths = [model.channels[-1], facts.outputs]
        case GruModel(embedding_size=size, hidden_units=units):
            directions = 2 if model.bidirectional else 1
            sizes = [size] + [directions * units] * (model.layers - 1)
            before = facts.tokens * size
            # Three gates; each maps the input and the state, and has two biases.
            before += sum(directions * 3 * units * (a + units + 2) for a in sizes)
            widths = [directions * units, facts.outputs]
        case TransformerModel(width=width, feed_forward=inner):
            norm = 2 * width
            attention = 4 * width * (width + 1)
            perceptron = 2 * width * inner + inner + width
            before = facts.tokens * width + model.layers * (2 * norm + attention + perceptron)
            before += norm
            widths = [width, facts.outputs]
        case GptModel(width=width):
            # Two normalizations, attention, and a perceptron four times as wide; the outputs use
            # the weights of the embedding.
            layer = 4 * width + 4 * width * (width + 1) + 8 * width * width + 5 * width
            before = facts.tokens * width + model.layers * layer + 2 * width
            widths = []
    return before + sum(a * b + b for a, b in pairwise(widths))


def _residual_weights(model: ResNetModel, facts: DatasetFacts) -> int:
    """Returns the weights of the convolutions and normalizations; the latter have 2 a channel."""
    colours = facts.row_shape[0] if len(facts.row_shape) == 3 else 1
    first = model.channels[0]
    weights = 9 * colours * first + 2 * first
    for stage, (a, b) in enumerate(pairwise([first, *model.channels])):
        weights += 9 * a * b + 9 * b * b + 4 * b
        weights += (model.blocks_per_stage - 1) * (18 * b * b + 4 * b)
        if stage > 0 or a != b:
            weights += a * b + 2 * b  # the shortcut
    return weights
