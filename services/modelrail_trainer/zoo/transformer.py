"""The transformer's encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.rules.bounds import Probability, Whole
from modelrail_trainer.rules.violation import Violation
from modelrail_trainer.zoo.architecture import (
    MAX_UNITS,
    Architecture,
    Channels,
    Layers,
    Reads,
    affine_parameters,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerModel(Architecture):
    """A transformer's encoder over embedded tokens, then the mean over the row.

    Attributes:
        feed_forward: Units of the perceptron in each layer; 0: four times the width.
    """

    reads: ClassVar[Reads] = Reads.TOKENS

    width: Channels = 64
    layers: Layers = 2
    heads: Channels = 4
    feed_forward: Annotated[int, Whole(0, MAX_UNITS)] = 0
    dropout: Probability = 0.0

    @property
    def inner_width(self) -> int:
        """Units of the perceptron in each layer."""
        return self.feed_forward or 4 * self.width

    def violations(self, field: str, facts: DatasetFacts | None) -> Iterator[Violation]:
        """Finds why the width cannot be shared among the heads."""
        # Places are told by pairs of a sine and a cosine, and every head gets as many numbers.
        if self.width % 2 or self.width % self.heads:
            multiple = "an even multiple" if self.heads % 2 else "a multiple"
            yield Violation(
                f"{field}.width", f"expected {multiple} of heads = {self.heads}, got {self.width}"
            )

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has."""
        width = self.width
        norm = 2 * width
        attention = 4 * width * (width + 1)
        perceptron = affine_parameters([width, self.inner_width, width])
        layers = self.layers * (2 * norm + attention + perceptron)
        head = affine_parameters([width, facts.outputs])
        return facts.tokens * width + layers + norm + head

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network for rows of tokens [T]."""
        from modelrail_trainer.zoo.networks.transformer import Transformer

        return Transformer(self, tokens, outputs)
