"""What every encoding is: a description, which is fitted on the training rows, and what comes out.

What most encodings have in common stands here once; each says what is different.

A fitted encoding is plain data. It computes the features with NumPy, and adds the operators that
compute the same to an ONNX graph; the acceptance gate compares the two. Both compute in 32-bit
floats, in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from modelrail_trainer.encodings.column import Column, ColumnType, Features, Tokens
from modelrail_trainer.handover.artifact import BATCH, TensorSpec
from modelrail_trainer.rules.violation import Violation

if TYPE_CHECKING:
    from modelrail_trainer.worker.export.graph import Graph

ML_DOMAIN = "ai.onnx.ml"
ORT_DOMAIN = "com.microsoft"
"""Operators that every build of ONNX Runtime has beside those of the standard."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a report tells of a fitted encoding.

    Attributes:
        kind: In a word or two.
        figures: What was fitted, by name.
        categories: Texts that are known.
    """

    kind: str
    figures: Mapping[str, float]
    categories: tuple[str, ...] = ()


class Encoding(Protocol):
    """How a column becomes numbers, as a specification says it.

    Attributes:
        reads: What the values of the column are.
    """

    reads: ClassVar[ColumnType]

    def violations(self, field: str, columns: int) -> Iterator[Violation]:
        """Finds what no bound of a single field tells; nothing, unless an encoding says more.

        Args:
            field: Its own path, as `dataset.table.columns[0].text`.
            columns: How many columns are learned from; 0: that is not known yet.
        """
        yield from ()

    def fitting(self, name: str, folder: Path | None = None) -> Fitting:
        """Returns what is fitted on the training rows.

        Args:
            name: Of the column.
            folder: For a file of values, where the encoding needs one; None: the system's.
        """


class Fitting(Protocol):
    """An encoding that is being fitted."""

    def add(self, values: Column) -> None:
        """Looks at training rows, [N].

        Raises:
            DataError: The training rows do not allow it.
        """

    def fitted(self) -> Fitted:
        """Returns the encoding.

        Raises:
            DataError: The training rows do not allow it.
        """

    def refuses(self, values: Column) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Returns which rows cannot be used because of this column, each [N], by reason."""
        return {}

    @property
    def is_constant(self) -> bool:
        """Whether the values never varied."""

    def remarks(self) -> Iterator[str]:
        """Yields what there is to tell of the training rows."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Fitted(ABC):
    """An encoding with all that it learned from the training rows.

    Attributes:
        name: Of the column.
    """

    name: str

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of features, or the longest row of tokens."""

    @property
    def tokens(self) -> int:
        """Size of the vocabulary; 0 where the features are numbers."""
        return 0

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains of its operators beside the default ones."""
        return ()

    @property
    def input(self) -> TensorSpec:
        """The graph's input, as clients send it: texts [batch, 1], unless it reads others."""
        return TensorSpec(
            name=self.name,
            datatype="BYTES",
            shape=(BATCH, 1),
            meaning="text, empty where it is missing",
        )

    @abstractmethod
    def encode(self, values: Column) -> Features | Tokens:
        """Maps [N] to [N, size]."""

    @abstractmethod
    def add_to(self, graph: Graph) -> str:
        """Adds the operators that read the input; returns their result, [batch, size].

        Tokens are as many as the longest text of the batch has, and one 0: [batch, length].
        """

    def sent(self, values: Column) -> npt.NDArray[Any]:
        """Returns values [B] as a client sends them, in the shape of the input."""
        return values.reshape(-1, 1)

    @abstractmethod
    def edge_values(self) -> Column:
        """Returns values unlike those of the training rows, for the acceptance gate: [N]."""

    @abstractmethod
    def summary(self) -> Summary:
        """Returns what a report tells of it."""
