"""The gated recurrent unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.zoo.architecture import Architecture, Layers, Reads, Units, affine_parameters

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class GruModel(Architecture):
    """Gated recurrent units over embedded tokens."""

    reads: ClassVar[Reads] = Reads.TOKENS

    embedding_size: Units = 32
    hidden_units: Units = 64
    layers: Layers = 1
    bidirectional: bool = False

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has."""
        directions = 2 if self.bidirectional else 1
        units = self.hidden_units
        sizes = [self.embedding_size] + [directions * units] * (self.layers - 1)
        # Three gates; each maps the input and the state, and has two biases.
        recurrent = sum(directions * 3 * units * (size + units + 2) for size in sizes)
        embedding = facts.tokens * self.embedding_size
        return embedding + recurrent + affine_parameters([directions * units, facts.outputs])

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network for rows of tokens [T]."""
        from modelrail_trainer.zoo.networks.gru import Gru

        return Gru(self, tokens, outputs)
