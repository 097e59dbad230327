"""The linear map and the multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.rules.bounds import Widths
from modelrail_trainer.zoo.architecture import (
    MAX_LAYERS,
    MAX_UNITS,
    Architecture,
    Reads,
    affine_parameters,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class LinearModel(Architecture):
    """One affine map: linear regression, or logistic regression with a loss for classes."""

    reads: ClassVar[Reads] = Reads.NUMBERS

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has."""
        return affine_parameters([math.prod(facts.row_shape), facts.outputs])

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network."""
        from modelrail_trainer.zoo.networks.perceptron import perceptron

        return perceptron([math.prod(row_shape), outputs])


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpModel(Architecture):
    """A multi-layer perceptron with ReLU between the layers."""

    reads: ClassVar[Reads] = Reads.NUMBERS

    hidden_units: Annotated[tuple[int, ...], Widths("layers", MAX_LAYERS, MAX_UNITS)]

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has."""
        return affine_parameters([math.prod(facts.row_shape), *self.hidden_units, facts.outputs])

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network."""
        from modelrail_trainer.zoo.networks.perceptron import perceptron

        return perceptron([math.prod(row_shape), *self.hidden_units, outputs])
