"""What the process of a job read, in few enough words for a line of its journal.

The fields are those of the message `DataSummary` in `trainer.proto`, so the JSON of the one is the
JSON of the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from modelrail_trainer.handover.record import (
    MOST_INT32,
    Record,
    RecordError,
    count,
    items,
    names,
    nested,
    real,
    text,
    values,
)

MAX_LABELS = 100
MAX_COLUMNS = 100
MAX_CATEGORIES = 12
_MAX_PARTS = 10
_MAX_DIMENSIONS = 32
_MAX_NAME_CHARACTERS = 80
# Beside the rest of the line; see `journal.MAX_LINE_BYTES`.
_MAX_BYTES = 48 * 1024


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One part of the data."""

    split: str
    rows: int


@dataclass(frozen=True, slots=True)
class LabelCount:
    """One class, and its training rows."""

    label: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """One column of a table.

    Attributes:
        name: In the files.
        encoding: How it becomes numbers, in words.
        features: How many.
        figures: What was fitted on the training rows, by name.
        categories: The first of the texts that are told apart.
    """

    name: str
    encoding: str
    features: int
    figures: Mapping[str, float] = field(default_factory=dict)
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnusableRows:
    """Rows that were left out for one reason."""

    reason: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """What was read.

    Attributes:
        parts: Train, validation, test.
        labels: The most frequent classes of the training rows; empty for regression.
        classes: Number of classes; 0 for regression.
        input_shape: Of the network's input, without the batch axis.
        columns: The first columns of a table.
        column_count: How many it has; 0 where the data is no table.
        unusable: Rows that were left out.
    """

    parts: tuple[PartSummary, ...]
    labels: tuple[LabelCount, ...] = ()
    classes: int = 0
    input_shape: tuple[int, ...] = ()
    columns: tuple[ColumnSummary, ...] = ()
    column_count: int = 0
    unusable: tuple[UnusableRows, ...] = ()

    def shortened(self) -> DataSummary:
        """Returns the summary without what a line of the journal has no room for."""
        summary = replace(self, labels=self.labels[:MAX_LABELS], columns=self.columns[:MAX_COLUMNS])
        while len(json.dumps(asdict(summary)).encode()) > _MAX_BYTES:
            summary = replace(
                summary,
                labels=summary.labels[: len(summary.labels) // 2],
                columns=summary.columns[: len(summary.columns) // 2],
                unusable=summary.unusable[: max(1, len(summary.unusable) // 2)],
            )
        return summary


def short(name: str) -> str:
    """Returns a name that may be of any length, cut, as UTF-8 can hold it."""
    name = name.encode("utf-8", "replace").decode()
    if len(name) > _MAX_NAME_CHARACTERS:
        return name[: _MAX_NAME_CHARACTERS - 1] + "…"
    return name


def data_summary_from_record(record: Record) -> DataSummary:
    """Reads a summary that another process wrote.

    Raises:
        RecordError: A field is missing, has another type, or is none that a message holds.
    """
    input_shape = values(record, "input_shape", int)
    if len(input_shape) > _MAX_DIMENSIONS:
        raise RecordError(f"input_shape: expected at most {_MAX_DIMENSIONS} dimensions")
    return DataSummary(
        # Neither these nor the shape are ever shortened.
        parts=items(
            record,
            "parts",
            lambda one: PartSummary(_name(one, "split"), _rows(one)),
            most=_MAX_PARTS,
        ),
        labels=items(record, "labels", lambda one: LabelCount(_name(one, "label"), _rows(one))),
        classes=count(record, "classes", most=MOST_INT32),
        input_shape=tuple(max(size, 0) for size in input_shape),
        columns=items(record, "columns", _column),
        column_count=count(record, "column_count", most=MOST_INT32),
        unusable=items(
            record, "unusable", lambda one: UnusableRows(text(one, "reason")[:500], _rows(one))
        ),
    ).shortened()


def _column(record: Record) -> ColumnSummary:
    figures = nested(record, "figures")
    return ColumnSummary(
        name=_name(record, "name"),
        encoding=_name(record, "encoding"),
        features=count(record, "features", most=MOST_INT32),
        figures={short(name): real(figures, name) for name in names(figures, "figures")},
        categories=tuple(map(short, values(record, "categories", str)[:MAX_CATEGORIES])),
    )


def _name(record: Record, field_name: str) -> str:
    return short(text(record, field_name))


def _rows(record: Record) -> int:
    return count(record, "rows")
