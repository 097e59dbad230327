"""A decoder in the manner of GPT-2, over bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.rules.bounds import Probability
from modelrail_trainer.rules.violation import Violation
from modelrail_trainer.zoo.architecture import Architecture, Channels, Layers, Reads

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class GptModel(Architecture):
    """A transformer's decoder that predicts the next byte."""

    reads: ClassVar[Reads] = Reads.BYTES

    width: Channels = 128
    layers: Layers = 4
    heads: Channels = 4
    dropout: Probability = 0.0

    def violations(self, field: str, facts: DatasetFacts | None) -> Iterator[Violation]:
        """Finds why the width cannot be shared among the heads."""
        # Every head gets as many numbers, and rotates them in pairs.
        if self.width % (2 * self.heads):
            yield Violation(
                f"{field}.width",
                f"expected a multiple of 2 · heads = {2 * self.heads}, got {self.width}",
            )

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has."""
        # Two normalizations, attention, and a perceptron four times as wide; the outputs use the
        # weights of the embedding.
        width = self.width
        layer = 4 * width + 4 * width * (width + 1) + 8 * width * width + 5 * width
        return facts.tokens * width + self.layers * layer + 2 * width

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network for rows of bytes [T]."""
        from modelrail_trainer.zoo.networks.gpt import Gpt

        return Gpt(self)
