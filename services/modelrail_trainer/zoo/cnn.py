"""The convolutional network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.rules.bounds import Probability
from modelrail_trainer.rules.violation import Violation
from modelrail_trainer.zoo.architecture import Architecture, Reads, Units, affine_parameters
from modelrail_trainer.zoo.images import BlockChannels, image_shape, image_violations

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnModel(Architecture):
    """Blocks of convolution, ReLU and maximum pooling, then a perceptron with one hidden layer."""

    reads: ClassVar[Reads] = Reads.NUMBERS

    channels: BlockChannels
    hidden_units: Units = 64
    dropout: Probability = 0.0

    def violations(self, field: str, facts: DatasetFacts | None) -> Iterator[Violation]:
        """Finds why rows are no images, or too small for the blocks."""
        if facts is not None:
            yield from image_violations(field, self.channels, facts)

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has."""
        colours, height, width = image_shape(facts.row_shape)
        convolutions = sum(9 * a * b + b for a, b in pairwise([colours, *self.channels]))
        pixels = (height >> len(self.channels)) * (width >> len(self.channels))
        return convolutions + affine_parameters(
            [self.channels[-1] * pixels, self.hidden_units, facts.outputs]
        )

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network for images of shape [H, W] or [C, H, W]."""
        from modelrail_trainer.zoo.networks.cnn import cnn

        return cnn(self, row_shape, outputs)
