"""What is known about a column after its values went by, batch by batch, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modelrail_trainer.handover.inspection import (
    MAX_TEXT_CHARACTERS,
    NumberSummary,
    TextCount,
    ValueType,
)

MAX_DISTINCT = 10_000
"""Different values that are counted."""
_DATED_TEXTS = 1_000
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?|\d{4}/\d{1,2}/\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}"
)

Numbers = npt.NDArray[np.float64]


def shown(value: str) -> str:
    """Returns a value as it is shown to people, cut when it is long."""
    value = value.replace("\0", "\N{SYMBOL FOR NULL}")
    return value if len(value) <= MAX_TEXT_CHARACTERS else value[:MAX_TEXT_CHARACTERS] + "…"


class NumberSketch:
    """Figures of numbers."""

    def __init__(self) -> None:
        self.count = 0
        self.infinite = 0
        self.are_whole = True
        self.ascend = True
        self._last = -np.inf
        self._mean = 0.0
        self._squares = 0.0  # sum of (x - mean)²
        self._minimum = np.inf
        self._maximum = -np.inf

    def add(self, values: Numbers) -> None:
        """Looks at numbers, [N]; missing ones are NaN."""
        present = values[~np.isnan(values)]
        self.infinite += int(np.isinf(present).sum())
        finite = present[np.isfinite(present)]
        if not len(finite):
            return
        steps = np.diff(finite, prepend=self._last)
        self.ascend = self.ascend and bool((steps > 0).all())
        self._last = float(finite[-1])
        self.are_whole = self.are_whole and bool((finite == np.floor(finite)).all())
        # Chan, Golub and LeVeque, 1979; numbers near the end of the range overflow to infinity.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(finite.mean())
            squares = float(np.square(finite - mean).sum())
            count = self.count + len(finite)
            difference = mean - self._mean
            self._squares += squares + difference**2 * self.count * len(finite) / count
            self._mean += difference * len(finite) / count
        self.count = count
        self._minimum = min(self._minimum, float(finite.min()))
        self._maximum = max(self._maximum, float(finite.max()))

    def summary(self) -> NumberSummary | None:
        """Returns the figures; None when there was no finite number."""
        if not self.count:
            return None
        # Squares of numbers beyond 1e154 do not fit; the range does, and is as good a figure then.
        with np.errstate(over="ignore", invalid="ignore"):
            stddev = float(np.sqrt(self._squares / self.count))
        if not np.isfinite(stddev):
            stddev = min(self._maximum / 2 - self._minimum / 2, float(np.finfo(np.float64).max))
        mean = self._mean if np.isfinite(self._mean) else self._minimum / 2 + self._maximum / 2
        return NumberSummary(self._minimum, self._maximum, mean, stddev)


class TextSketch:
    """Lengths and frequencies of texts."""

    def __init__(self) -> None:
        self.count = 0
        self._characters = 0
        self._counts: Counter[str] = Counter()
        self._looked_at = 0
        self._dates = 0

    def add(self, texts: list[str]) -> None:
        """Looks at texts that are not missing."""
        self.count += len(texts)
        self._characters += sum(map(len, texts))
        for text in texts[: _DATED_TEXTS - self._looked_at]:
            self._looked_at += 1
            self._dates += _DATE.fullmatch(text.strip()) is not None
        cut = map(shown, texts)
        if len(self._counts) < MAX_DISTINCT:
            self._counts.update(cut)
        else:  # new ones cannot be among the most frequent, unless the table is sorted by them
            self._counts.update(text for text in cut if text in self._counts)

    @property
    def mean_length(self) -> float:
        """Characters of a text."""
        return self._characters / self.count if self.count else 0.0

    @property
    def are_dates(self) -> bool:
        """Whether the first texts are dates, but for a few."""
        return self._looked_at > 0 and self._dates >= 0.95 * self._looked_at

    def most_frequent(self, most: int) -> tuple[TextCount, ...]:
        """Returns the most frequent texts; of equally frequent ones the first in the alphabet."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple(TextCount(text, count) for text, count in ranked[:most])


class ColumnSketch:
    """One column.

    Args:
        name: Its name.
        file_type: Its type in the files, in the words of Arrow.
        type: What the trainer takes it for.
    """

    def __init__(self, name: str, file_type: str, type: ValueType) -> None:  # noqa: A002
        self.name = name
        self.file_type = file_type
        self.type = type
        self.rows = 0
        self.missing = 0
        self.sampled = 0
        self.strange = 0
        """Sampled values that are no numbers, in a column of them."""
        self.first_strange: tuple[int, str] | None = None
        self.numbers = NumberSketch()
        self.texts = TextSketch()
        self._distinct: set[object] = set()

    @property
    def distinct(self) -> int:
        """Different values, at most `MAX_DISTINCT`."""
        return min(len(self._distinct), MAX_DISTINCT)

    @property
    def more_distinct(self) -> bool:
        """Whether there are more."""
        return len(self._distinct) > MAX_DISTINCT

    @property
    def is_constant(self) -> bool:
        """Whether the values never vary, and none is missing."""
        return len(self._distinct) == 1 and not self.missing

    @property
    def all_differ(self) -> bool:
        """Whether every row has a value of its own, as far as they were counted."""
        return not self.missing and len(self._distinct) >= min(self.rows, MAX_DISTINCT + 1)

    def add(self, values: pa.Array, chosen: range) -> npt.NDArray[np.generic]:
        """Looks at a batch, [N]; of the chosen rows more closely.

        Returns:
            The chosen values: float64, NaN where missing, or texts as objects, "" where missing.
        """
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        first_row = self.rows
        self.rows += len(values)
        self.sampled += len(chosen)
        if self.type is ValueType.OTHER:
            self.missing += values.null_count
            return np.full(len(chosen), "", object)
        if self.type is ValueType.TEXT:
            texts = _texts(values)
            self.missing += sum(text == "" for text in texts)
            self._count({hash(text) for text in texts if text})
            sample = texts[chosen.start : chosen.stop : chosen.step]
            self.texts.add([text for text in sample if text])
            return np.array(sample, object)
        numbers, strange = _numbers(values)
        if strange:
            self.strange += len(strange)
            place = strange[0]
            self.first_strange = self.first_strange or (
                first_row + place,
                shown(str(values[place].as_py())),
            )
        self.missing += int(np.isnan(numbers).sum()) - len(strange)
        self._count(set(np.unique(numbers[~np.isnan(numbers)]).tolist()))
        kept = numbers[chosen.start : chosen.stop : chosen.step]
        self.numbers.add(kept)
        return kept

    def _count(self, found: set[object]) -> None:
        if len(self._distinct) <= MAX_DISTINCT:
            self._distinct |= found


def _texts(values: pa.Array) -> list[str]:
    """Returns texts [N], "" where one is missing."""
    if _is_binary_text(values.type):
        # Damaged UTF-8 is shown, not refused: here somebody looks for what is wrong.
        raw = values.cast(pa.large_binary()).to_pylist()
        return ["" if text is None else text.decode("utf-8", "replace") for text in raw]
    return ["" if text is None else str(text) for text in values.to_pylist()]


def _is_binary_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _numbers(values: pa.Array) -> tuple[Numbers, list[int]]:
    """Returns numbers [N], NaN where missing, and the places of values that are no numbers."""
    strange: list[int] = []
    if _is_binary_text(values.type):
        try:
            cast = pc.cast(values, pa.float64())
        except pa.ArrowInvalid:
            numbers = np.full(len(values), np.nan)
            for place, text in enumerate(_texts(values)):
                try:
                    numbers[place] = float(_BOOLEANS.get(text.lower(), text or "nan"))
                except ValueError:
                    strange.append(place)
            return numbers, strange
    else:
        cast = pc.cast(values, pa.float64(), safe=False)
    return np.array(pc.fill_null(cast, float("nan")), np.float64), strange


_BOOLEANS = {"true": "1", "false": "0"}
