"""Categories: a feature for each of the most frequent texts, or one number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from modelrail_trainer.encodings.column import UNKNOWN_TEXT, Column, ColumnType, Features
from modelrail_trainer.encodings.encoding import (
    ML_DOMAIN,
    Encoding,
    Fitted,
    Fitting,
    Summary,
)
from modelrail_trainer.failure import DataError
from modelrail_trainer.rules.bounds import Whole

if TYPE_CHECKING:
    from modelrail_trainer.worker.export.graph import Graph

_MAX_CATEGORIES = 1_000
_MAX_DISTINCT = 1_000_000
"""Different texts of a column that are counted; more are no categories."""
_UNKNOWN_ORDINAL = -1.0


class CategoryMethod(StrEnum):
    """How a text becomes numbers."""

    ONE_HOT = "one_hot"
    ORDINAL = "ordinal"


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryEncoding(Encoding):
    """A text becomes a feature for each of the most frequent texts, or one number."""

    reads: ClassVar[ColumnType] = ColumnType.TEXT

    method: CategoryMethod = CategoryMethod.ONE_HOT
    max_categories: Annotated[int, Whole(1, _MAX_CATEGORIES)] = 100

    def fitting(self, name: str, folder: Path | None = None) -> CategoryFitting:
        """Returns what is fitted on the training rows."""
        return CategoryFitting(name, self)


@dataclass(frozen=True, slots=True)
class FittedCategory(Fitted):
    """A row of `table` for each text that is known, and its last row for all others.

    Attributes:
        name: Of the column.
        keys: The known texts, sorted.
        table: Features, [len(keys) + 1, size].
    """

    keys: tuple[str, ...]
    table: Features

    @property
    def size(self) -> int:
        """Number of features."""
        return int(self.table.shape[1])

    @property
    def domains(self) -> tuple[str, ...]:
        """That of the look-up of texts."""
        return (ML_DOMAIN,)

    def encode(self, values: Column) -> Features:
        """Maps [N] to [N, size]."""
        places = {key: place for place, key in enumerate(self.keys)}
        unknown = len(self.keys)
        chosen = np.fromiter((places.get(v, unknown) for v in values), np.int64, len(values))
        encoded: Features = self.table[chosen]
        return encoded

    def add_to(self, graph: Graph) -> str:
        """Adds the operators that compute `encode`; returns their result, [batch, size]."""
        place = graph.apply(
            "LabelEncoder",
            graph.flattened(self.name),
            domain=ML_DOMAIN,
            keys_strings=list(self.keys),
            values_int64s=list(range(len(self.keys))),
            default_int64=len(self.keys),
        )
        return graph.apply("Gather", graph.constant(self.table), place, axis=0)

    def edge_values(self) -> Column:
        """Returns a missing text, an unknown one and known ones, [N]."""
        return np.array(["", UNKNOWN_TEXT, self.keys[0], self.keys[-1]], object)

    def summary(self) -> Summary:
        """Returns what a report tells of it."""
        kind = "ordinal" if _UNKNOWN_ORDINAL in self.table[-1] else "one-hot"
        return Summary(kind, {"categories": float(len(self.keys))}, self.keys)


class CategoryFitting(Fitting):
    """How often each text comes.

    Args:
        name: Of the column.
        encoding: What is asked for.
    """

    def __init__(self, name: str, encoding: CategoryEncoding) -> None:
        self._name = name
        self._encoding = encoding
        self._counts: Counter[str] = Counter()

    def add(self, values: Column) -> None:
        """Looks at training rows, [N].

        Raises:
            DataError: There are too many different texts.
        """
        self._counts.update(values)
        if len(self._counts) > _MAX_DISTINCT:
            raise DataError(
                f"column {self._name!r}: expected categories, got more than {_MAX_DISTINCT} "
                "different texts"
            )

    def fitted(self) -> FittedCategory:
        """Returns the encoding."""
        # The most frequent ones; among equally frequent ones the first in the alphabet.
        ranked = sorted(self._counts, key=lambda text: (-self._counts[text], text))
        keys = tuple(sorted(ranked[: self._encoding.max_categories]))
        if self._encoding.method is CategoryMethod.ORDINAL:
            places = [*map(float, range(len(keys))), _UNKNOWN_ORDINAL]
            return FittedCategory(self._name, keys, np.array(places, np.float32).reshape(-1, 1))
        table = np.eye(len(keys) + 1, len(keys), dtype=np.float32)  # last row: all 0
        return FittedCategory(self._name, keys, table)

    @property
    def is_constant(self) -> bool:
        """Whether all texts seen are the same."""
        return len(self._counts) <= 1
