"""What every architecture of the zoo is, and how large it may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from modelrail_trainer.facts import DatasetFacts
from modelrail_trainer.rules.bounds import Whole
from modelrail_trainer.rules.violation import Violation

if TYPE_CHECKING:
    from torch import nn

MAX_UNITS = 65_536
MAX_LAYERS = 16
MAX_CHANNELS = 4_096
MAX_BLOCKS = 8

Units = Annotated[int, Whole(1, MAX_UNITS)]
Layers = Annotated[int, Whole(1, MAX_LAYERS)]
Channels = Annotated[int, Whole(1, MAX_CHANNELS)]


class Reads(Enum):
    """What the rows of an architecture are."""

    NUMBERS = "numbers of any shape"
    TOKENS = "tokens int64 [T], 0 for padding"
    BYTES = "bytes uint8 [T], of which each next one is predicted"


class Architecture(Protocol):
    """A description from which a network with random weights is made.

    Attributes:
        reads: What its rows are.
    """

    reads: ClassVar[Reads]

    def violations(self, field: str, facts: DatasetFacts | None) -> Iterator[Violation]:
        """Finds what no bound of a single field tells; nothing, unless an architecture says more.

        Args:
            field: Its own path, as `model.cnn`.
            facts: What it is trained on; None: that is not known yet.
        """
        yield from ()

    def parameter_count(self, facts: DatasetFacts) -> int:
        """Returns how many weights and biases it has, told without making it.

        Args:
            facts: What it is trained on; `outputs` as `build` is given them.
        """

    def build(self, row_shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
        """Makes the network, its weights drawn from torch's global generator.

        Args:
            row_shape: Shape of one row, without the batch axis.
            outputs: Number of classes or values.
            tokens: Size of the vocabulary, when rows are tokens.
        """


def affine_parameters(widths: Sequence[int]) -> int:
    """Returns the weights and biases of affine maps between layers of so many units."""
    return sum(a * b + b for a, b in pairwise(widths))
