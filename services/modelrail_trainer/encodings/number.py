"""Numbers: missing values, logarithm and scale."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt

from modelrail_trainer.encodings.column import Column, ColumnType, Features
from modelrail_trainer.encodings.encoding import Encoding, Fitted, Fitting, Summary
from modelrail_trainer.encodings.median import Values
from modelrail_trainer.failure import DataError
from modelrail_trainer.handover.artifact import BATCH, TensorSpec
from modelrail_trainer.rounding import vary
from modelrail_trainer.rules.bounds import Real

if TYPE_CHECKING:
    from modelrail_trainer.worker.export.graph import Graph

_MAX_FLOAT = 3.4e38
_FAR = 1e-4
"""Of the largest value: of a smaller deviation 32 bits, 6e-8 of it, leave less than 3 digits."""


class Missing(StrEnum):
    """What stands in for a missing number."""

    MEAN = "mean"
    MEDIAN = "median"
    CONSTANT = "constant"
    REFUSED = "refused"


class Scale(StrEnum):
    """How a number is scaled."""

    STANDARDIZED = "standardized"
    MIN_MAX = "min_max"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberEncoding(Encoding):
    """A number becomes one feature, or two with an indicator."""

    reads: ClassVar[ColumnType] = ColumnType.NUMBER

    missing: Missing = Missing.MEAN
    constant: Annotated[
        float, Real("a number that fits into 32 bits", least=-_MAX_FLOAT, most=_MAX_FLOAT)
    ] = 0.0
    missing_indicator: bool = False
    log: bool = False
    scale: Scale = Scale.STANDARDIZED

    def fitting(self, name: str, folder: Path | None = None) -> NumberFitting:
        """Returns what is fitted on the training rows; the median needs a file in the folder."""
        return NumberFitting(name, self, folder)


@dataclass(frozen=True, slots=True)
class FittedNumber(Fitted):
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

    @property
    def input(self) -> TensorSpec:
        """The graph's input, [batch, 1]."""
        return TensorSpec(
            name=self.name,
            datatype="FP64" if self.is_double else "FP32",
            shape=(BATCH, 1),
            meaning="number, NaN where it is missing",
        )

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

    def add_to(self, graph: Graph) -> str:
        """Adds the operators that compute `encode`; returns their result, [batch, size]."""
        missing = graph.apply("IsNaN", self.name)
        x = graph.apply("Where", missing, graph.constant(np.array(self.fill)), self.name)
        if self.log:
            x = graph.apply("Max", x, graph.constant(np.array(0, np.float32)))
            x = graph.apply("Log", graph.apply("Add", x, graph.constant(np.array(1, np.float32))))
        x = graph.apply("Sub", x, graph.constant(np.array(self.shift)))
        if self.is_double:
            x = graph.cast(x, "FP32")
        x = graph.apply("Div", x, graph.constant(np.array(self.width)))
        if not self.has_indicator:
            return x
        return graph.apply("Concat", x, graph.cast(missing, "FP32"), axis=1)

    def sent(self, values: Column) -> npt.NDArray[Any]:
        """Returns numbers [B] as a client sends them, [B, 1]."""
        kind = np.float64 if self.is_double else np.float32
        return values.astype(kind).reshape(-1, 1)

    def edge_values(self) -> Column:
        """Returns a missing number, and some far outside of the training rows, [N]."""
        # Not so far that differences of 32-bit floats count.
        large = 1e6 if self.log else float(self.shift) + 100 * float(self.width)
        if self.is_double:  # 0 is as far away as can be
            shift = float(self.shift)
            return np.array([np.nan, shift, shift - 100 * float(self.width), large])
        return np.array([np.nan, -1.0, 0.0, large])

    def summary(self) -> Summary:
        """Returns what a report tells of it."""
        kind = "log of number" if self.log else "number"
        kind += " with indicator" if self.has_indicator else ""
        return Summary(
            kind,
            {"fill": float(self.fill), "shift": float(self.shift), "width": float(self.width)},
        )


class NumberFitting(Fitting):
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
        moments = self._scaled
        shift, width = 0.0, 1.0
        if encoding.scale is Scale.STANDARDIZED:
            shift, width = moments.mean, moments.standard_deviation()
        elif encoding.scale is Scale.MIN_MAX:
            shift, width = moments.minimum, moments.maximum - moments.minimum
            if width > float(np.finfo(np.float32).max):
                raise DataError(f"column {self._name!r}: its range does not fit into 32-bit floats")
        kind = np.float64 if self._is_far_from_zero else np.float32
        # A column that never varies is only shifted.
        if not self._vary(kind) or np.float32(width) == 0:
            width = 1.0
        return FittedNumber(
            name=self._name,
            fill=kind(fill),
            has_indicator=encoding.missing_indicator,
            log=encoding.log,
            shift=kind(shift),
            width=np.float32(width),
        )

    @property
    def _scaled(self) -> _Moments:
        """Of what is shifted and divided."""
        return self._logs if self._encoding.log else self._raw

    def _vary(self, kind: type[np.floating[Any]]) -> bool:
        """Whether what is scaled differs by more than rounding, in values of this type."""
        lowest, highest = kind(self._scaled.minimum), kind(self._scaled.maximum)
        # 1 + x is rounded before its logarithm is taken.
        return bool(vary(lowest, highest, least=1.0 if self._encoding.log else 0.0))

    @property
    def _is_far_from_zero(self) -> bool:
        """Whether 32 bits lose what the values differ in, and a shift keeps it."""
        encoding, raw = self._encoding, self._raw
        if encoding.log or encoding.scale is Scale.NONE:
            return False
        largest = max(abs(raw.minimum), abs(raw.maximum))
        return self._vary(np.float64) and raw.standard_deviation() < _FAR * largest

    @property
    def is_constant(self) -> bool:
        """Whether all values are the same but for rounding, in the bits they are taken with.

        A missing one is too, unless it is told apart.
        """
        encoding = self._encoding
        tells = encoding.missing_indicator or encoding.missing is Missing.CONSTANT
        if self._missing and tells:
            return False
        return not self._is_far_from_zero and not self._vary(np.float32)


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
