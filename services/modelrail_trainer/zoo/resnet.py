"""The residual network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.rules.violation import Violation
from modelrail_trainer.zoo.architecture import Architecture, Layers, Reads, affine_parameters
from modelrail_trainer.zoo.images import StageChannels, image_shape, image_violations

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetModel(Architecture):
    """Stages of residual blocks with batch normalization, then the mean over the image."""

    reads: ClassVar[Reads] = Reads.NUMBERS

    channels: StageChannels
    blocks_per_stage: Layers = 2

    def violations(self, field: str, facts: DatasetFacts | None) -> Iterator[Violation]:
        """Finds why rows are no images, or too small for the stages."""
        if facts is not None:
            yield from image_violations(field, self.channels, facts)

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has; a normalization has 2 a channel."""
        colours, _, _ = image_shape(facts.row_shape)
        first = self.channels[0]
        weights = 9 * colours * first + 2 * first
        for stage, (a, b) in enumerate(pairwise([first, *self.channels])):
            weights += 9 * a * b + 9 * b * b + 4 * b
            weights += (self.blocks_per_stage - 1) * (18 * b * b + 4 * b)
            if stage > 0 or a != b:
                weights += a * b + 2 * b  # the shortcut
        return weights + affine_parameters([self.channels[-1], facts.outputs])

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network for images of shape [H, W] or [C, H, W]."""
        from modelrail_trainer.zoo.networks.resnet import resnet

        return resnet(self, row_shape, outputs)
