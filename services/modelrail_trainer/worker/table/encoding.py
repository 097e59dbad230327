"""From the values of a column to numbers for the network, fitted on the training rows.

A fitted encoding is plain data: `encode` computes it with NumPy, `graph.py` with ONNX operators,
and the acceptance gate compares the two. Both compute in 32-bit floats, in the same order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from modelrail_trainer.spec import (
    CategoryEncoding,
    CategoryMethod,
    HashEncoding,
    Missing,
    NumberEncoding,
    Scale,
)
from modelrail_trainer.worker.failure import DataError
from modelrail_trainer.worker.table.column import Column
from modelrail_trainer.worker.table.median import Values
from modelrail_trainer.worker.table.text import FittedText

Features = npt.NDArray[np.float32]

_MAX_DISTINCT = 1_000_000
"""Different texts of a column that are counted; more are no categories."""
UNKNOWN_ORDINAL = -1.0
_FAR = 1e-4
"""Of the largest value: of a smaller deviation 32 bits, 6e-8 of it, leave less than 3 digits."""


@dataclass(frozen=True, slots=True)
class FittedNumber:
    """(log(1 + max(x, 0)) or x, with `fill` for a missing x, minus `shift`) / `width`.

    Attributes:
        name: Of the column.
        fill: Stands in for a missing value, before the logarithm.
        has_indicator: A second feature tells whether the value was missing.
        log: Whether the logarithm is taken.
        shift: Subtracted.
        width: Divides; never 0.

    Where `fill` and `shift` are of 64 bits, so is x until `shift` is subtracted: values far from 0
    and close to each other would be the same in 32 bits.
    """

    name: str
    fill: np.floating[Any]
    has_indicator: bool
    log: bool
    shift: np.floating[Any]
    width: np.float32

    @property
    def is_double(self) -> bool:
        """Whether the values are taken with 64 bits."""
        return self.shift.dtype == np.float64

    @property
    def size(self) -> int:
        """Number of features."""
        return 2 if self.has_indicator else 1

    def encode(self, values: Column) -> Features:
        """Maps [N] to [N, size]."""
        x = values.astype(self.shift.dtype)  # [N]
        missing = np.isnan(x)
        x = np.where(missing, self.fill, x)
        if self.log:
            x = np.log(np.maximum(x, np.float32(0)) + np.float32(1))
        x = (x - self.shift).astype(np.float32) / self.width
        features = [x, missing.astype(np.float32)] if self.has_indicator else [x]
        return np.stack(features, axis=1)


@dataclass(frozen=True, slots=True)
class FittedCategory:
    """A row of `table` for each text that is known, and its last row for all others.

    Attributes:
        name: Of the column.
        keys: The known texts, sorted.
        table: Features, [len(keys) + 1, size].
    """

    name: str
    keys: tuple[str, ...]
    table: Features

    @property
    def size(self) -> int:
        """Number of features."""
        return int(self.table.shape[1])

    def encode(self, values: Column) -> Features:
        """Maps [N] to [N, size]."""
        places = {key: place for place, key in enumerate(self.keys)}
        unknown = len(self.keys)
        chosen = np.fromiter((places.get(v, unknown) for v in values), np.int64, len(values))
        encoded: Features = self.table[chosen]
        return encoded


@dataclass(frozen=True, slots=True)
class FittedHash:
    """A feature for each remainder of a text's hash; 1 for the one that it has, 0 for the others.

    The hash is MurmurHash3 (Appleby, 2011; x86, 32 bits, seed 0) over the text in UTF-8.

    Attributes:
        name: Of the column.
        buckets: Number of remainders.
    """

    name: str
    buckets: int

    @property
    def size(self) -> int:
        """Number of features."""
        return self.buckets

    def encode(self, values: Column) -> Features:
        """Maps [N] to [N, size]."""
        from sklearn.utils import murmurhash3_32  # takes more than a second to import

        hashes = {text: murmurhash3_32(text, positive=True) for text in set(values)}
        encoded = np.zeros((len(values), self.buckets), np.float32)
        places = np.fromiter((hashes[text] % self.buckets for text in values), np.int64)
        encoded[np.arange(len(values)), places] = 1
        return encoded


Fitted = FittedNumber | FittedCategory | FittedHash | FittedText


class Fitting(Protocol):
    """An encoding that is being fitted."""

    def add(self, values: Column) -> None:
        """Looks at training rows, [N]."""

    def fitted(self) -> Fitted:
        """Returns the encoding.

        Raises:
            DataError: The training rows do not allow it.
        """

    def refuses(self, values: Column) -> dict[str, npt.NDArray[np.bool_]]:
        """Returns which rows cannot be used because of this column, each [N], by reason."""

    @property
    def is_constant(self) -> bool:
        """Whether the values never varied."""


class NumberFitting:
    """Mean, spread and range of a column, over batches (Chan, Golub and LeVeque, 1979).

    Args:
        name: Of the column.
        encoding: What is asked for.
        folder: For a file of the values, which the median needs.
    """

    def __init__(self, name: str, encoding: NumberEncoding, folder: Path | None = None) -> None:
        self._name = name
        self._encoding = encoding
        self._values = Values(folder) if encoding.missing is Missing.MEDIAN else None
        self._raw = _Moments()
        self._logs = _Moments()
        self._missing = 0

    def add(self, values: Column) -> None:
        """Looks at training rows, [N], none of them infinite."""
        present = values[~np.isnan(values)].astype(np.float64)
        self._missing += len(values) - len(present)
        self._raw.add(present)
        if self._values is not None:
            self._values.add(present)
        if self._encoding.log and self._raw.minimum > -1:
            self._logs.add(np.log1p(np.maximum(present, 0.0)))

    def refuses(self, values: Column) -> dict[str, npt.NDArray[np.bool_]]:
        """Returns which rows hold an infinite number, or none where one is a must, each [N]."""
        # What float32 cannot hold becomes infinite in the network.
        with np.errstate(over="ignore"):
            refused = {"has an infinite number": np.isinf(values.astype(np.float32))}
        if self._encoding.missing is Missing.REFUSED:
            refused["has no number"] = np.isnan(values)
        return refused

    def fitted(self) -> FittedNumber:
        """Returns the encoding.

        Raises:
            DataError: No training row has a value, or one is below 0 where a logarithm is taken.
        """
        encoding, raw = self._encoding, self._raw
        if not raw.count:
            raise DataError(
                f"column {self._name!r}: no training row has a value; leave the column out"
            )
        if encoding.log and raw.minimum < 0:
            raise DataError(
                f"column {self._name!r}: expected numbers from 0 for log, got {raw.minimum:g}"
            )
        fill = encoding.constant if encoding.missing is Missing.CONSTANT else raw.mean
        if self._values is not None:
            fill = self._values.median()
        moments = self._logs if encoding.log else raw
        shift, width = 0.0, 1.0
        if encoding.scale is Scale.STANDARDIZED:
            shift, width = moments.mean, moments.standard_deviation()
        elif encoding.scale is Scale.MIN_MAX:
            shift, width = moments.minimum, moments.maximum - moments.minimum
            if width > float(np.finfo(np.float32).max):
                raise DataError(f"column {self._name!r}: its range does not fit into 32-bit floats")
        kind = np.float64 if self._is_far_from_zero else np.float32
        return FittedNumber(
            name=self._name,
            fill=kind(fill),
            has_indicator=encoding.missing_indicator,
            log=encoding.log,
            shift=kind(shift),
            # A column that never varies is only shifted.
            width=np.float32(width) if np.float32(width) > 0 else np.float32(1),
        )

    @property
    def _is_far_from_zero(self) -> bool:
        """Whether 32 bits lose what the values differ in, and a shift keeps it."""
        encoding, raw = self._encoding, self._raw
        if encoding.log or encoding.scale is Scale.NONE:
            return False
        largest = max(abs(raw.minimum), abs(raw.maximum))
        return 0 < raw.standard_deviation() < _FAR * largest

    @property
    def is_constant(self) -> bool:
        """Whether all values seen are the same in the bits they are taken with, none missing."""
        if self._raw.count and self._is_far_from_zero:
            return False
        return np.float32(self._raw.minimum) == np.float32(self._raw.maximum) and not self._missing


class CategoryFitting:
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

    def refuses(self, values: Column) -> dict[str, npt.NDArray[np.bool_]]:
        """Returns that every row can be used."""
        return {}

    def fitted(self) -> FittedCategory:
        """Returns the encoding."""
        # The most frequent ones; among equally frequent ones the first in the alphabet.
        ranked = sorted(self._counts, key=lambda text: (-self._counts[text], text))
        keys = tuple(sorted(ranked[: self._encoding.max_categories]))
        if self._encoding.method is CategoryMethod.ORDINAL:
            places = [*map(float, range(len(keys))), UNKNOWN_ORDINAL]
            return FittedCategory(self._name, keys, np.array(places, np.float32).reshape(-1, 1))
        table = np.eye(len(keys) + 1, len(keys), dtype=np.float32)  # last row: all 0
        return FittedCategory(self._name, keys, table)

    @property
    def is_constant(self) -> bool:
        """Whether all texts seen are the same."""
        return len(self._counts) <= 1


class HashFitting:
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

    def refuses(self, values: Column) -> dict[str, npt.NDArray[np.bool_]]:
        """Returns that every row can be used."""
        return {}

    def fitted(self) -> FittedHash:
        """Returns the encoding."""
        return self._fitted

    @property
    def is_constant(self) -> bool:
        """Whether all texts seen are the same."""
        return len(self._seen) <= 1


class _Moments:
    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.minimum = np.inf
        self.maximum = -np.inf
        self._squares = 0.0  # sum of (x - mean)²

    def add(self, values: npt.NDArray[np.float64]) -> None:
        if not len(values):
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        count = self.count + len(values)
        difference = mean - self.mean
        self._squares += squares + difference**2 * self.count * len(values) / count
        self.mean += difference * len(values) / count
        self.count = count
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))

    def standard_deviation(self) -> float:
        return float(np.sqrt(self._squares / self.count))
