"""Hashes: a text becomes one of so many features, and nothing has to be fitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from modelrail_trainer.encodings.column import UNKNOWN_TEXT, Column, ColumnType, Features
from modelrail_trainer.encodings.encoding import (
    ORT_DOMAIN,
    Encoding,
    Fitted,
    Fitting,
    Summary,
)
from modelrail_trainer.rules.bounds import Whole

if TYPE_CHECKING:
    from modelrail_trainer.worker.export.graph import Graph

_MAX_BUCKETS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HashEncoding(Encoding):
    """A text becomes one of so many features, by a hash."""

    reads: ClassVar[ColumnType] = ColumnType.TEXT

    buckets: Annotated[int, Whole(2, _MAX_BUCKETS)] = 256

    def fitting(self, name: str, folder: Path | None = None) -> HashFitting:
        """Returns what looks at the training rows."""
        return HashFitting(name, self)


@dataclass(frozen=True, slots=True)
class FittedHash(Fitted):
    """A feature for each remainder of a text's hash; 1 for the one that it has, 0 for the others.

    The hash is MurmurHash3 (Appleby, 2011; x86, 32 bits, seed 0) over the text in UTF-8.

    Attributes:
        name: Of the column.
        buckets: Number of remainders.
    """

    buckets: int

    @property
    def size(self) -> int:
        """Number of features."""
        return self.buckets

    @property
    def domains(self) -> tuple[str, ...]:
        """That of the hash of texts."""
        return (ORT_DOMAIN,)

    def encode(self, values: Column) -> Features:
        """Maps [N] to [N, size]."""
        from sklearn.utils import murmurhash3_32  # takes more than a second to import

        hashes = {text: murmurhash3_32(text, positive=True) for text in set(values)}
        encoded = np.zeros((len(values), self.buckets), np.float32)
        places = np.fromiter((hashes[text] % self.buckets for text in values), np.int64)
        encoded[np.arange(len(values)), places] = 1
        return encoded

    def add_to(self, graph: Graph) -> str:
        """Adds the operators that compute `encode`; returns their result, [batch, size]."""
        text = graph.flattened(self.name)
        number = graph.apply("MurmurHash3", text, domain=ORT_DOMAIN, positive=1, seed=0)
        buckets = graph.constant(np.array(self.buckets, np.int64))
        place = graph.apply("Mod", graph.cast(number, "INT64"), buckets)
        return graph.apply("OneHot", place, buckets, graph.constant(np.array([0, 1], np.float32)))

    def edge_values(self) -> Column:
        """Returns a missing text, an unknown one, and one with a zero in it, [N]."""
        return np.array(["", UNKNOWN_TEXT, "a\0b"], object)

    def summary(self) -> Summary:
        """Returns what a report tells of it."""
        return Summary("hash", {"buckets": float(self.buckets)})


class HashFitting(Fitting):
    """Nothing is fitted; whether the texts vary is looked at.

    Args:
        name: Of the column.
        encoding: What is asked for.
    """

    def __init__(self, name: str, encoding: HashEncoding) -> None:
        self._fitted = FittedHash(name, encoding.buckets)
        self._seen: set[str] = set()

    def add(self, values: Column) -> None:
        """Looks at training rows, [N]."""
        if len(self._seen) <= 1:
            self._seen.update(values)
            self._seen = set(sorted(self._seen)[:2])

    def fitted(self) -> FittedHash:
        """Returns the encoding."""
        return self._fitted

    @property
    def is_constant(self) -> bool:
        """Whether all texts seen are the same."""
        return len(self._seen) <= 1
