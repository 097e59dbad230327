"""What a look into a table finds: written by a confined process, checked before it is believed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from modelrail_trainer.handover.job_file import NotAJobFileError, read_job_record
from modelrail_trainer.handover.record import (
    Record,
    RecordError,
    as_text,
    count,
    flag,
    items,
    member,
    nested_if_any,
    real,
    text,
    values,
)

INSPECTION_NAME = "inspection.json"
MAX_INSPECTION_BYTES = 64 << 20
MAX_ROWS = 100
MAX_COLUMNS = 4_096
MAX_CLASSES_SHOWN = 100
MAX_TEXTS_SHOWN = 5
MAX_TEXT_CHARACTERS = 80
"""Of a value that is shown; longer ones are cut."""
_MAX_PREVIEW_CELLS = 100_000
_MAX_SENTENCES = 100
_MAX_SENTENCE_CHARACTERS = 2_000
_MAX_NAME_CHARACTERS = 1_000

T = TypeVar("T")


class InspectionError(ValueError):
    """The file holds no inspection, or one beyond its bounds."""


class ValueType(StrEnum):
    """What the values of a column are to the trainer."""

    NUMBER = "NUMBER"
    TEXT = "TEXT"
    OTHER = "OTHER"


class Use(StrEnum):
    """What a first specification does with a column."""

    LEFT_OUT = "LEFT_OUT"
    TARGET = "TARGET"
    NUMBER = "NUMBER"
    CATEGORY = "CATEGORY"
    HASH = "HASH"
    TEXT = "TEXT"
    SPLIT = "SPLIT"


class WarningKind(StrEnum):
    """What a warning about a column is about."""

    IDENTIFIER = "IDENTIFIER"
    DATE = "DATE"
    MIXED_TYPES = "MIXED_TYPES"
    TARGET_LEAK = "TARGET_LEAK"
    LONG_TEXT = "LONG_TEXT"
    MANY_VALUES = "MANY_VALUES"
    CONSTANT = "CONSTANT"
    MISSING = "MISSING"
    UNUSABLE = "UNUSABLE"
    FAR_FROM_ZERO = "FAR_FROM_ZERO"


class TargetTask(StrEnum):
    """What predicting a column means."""

    CLASSIFICATION = "CLASSIFICATION"
    REGRESSION = "REGRESSION"
    NONE = "NONE"


@dataclass(frozen=True, slots=True)
class InspectedFile:
    """One file: its size in bytes and its format."""

    size_bytes: int
    format: str


@dataclass(frozen=True, slots=True)
class ColumnWarning:
    """Something that often spoils a model, in a sentence."""

    kind: WarningKind
    message: str


@dataclass(frozen=True, slots=True)
class NumberSummary:
    """Figures of finite numbers."""

    minimum: float
    maximum: float
    mean: float
    stddev: float


@dataclass(frozen=True, slots=True)
class TextCount:
    """A text and how often it comes."""

    text: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedColumn:
    """One column. Fields as in `modelrail.trainer.v1.InspectedColumn`."""

    name: str
    type: ValueType
    file_type: str
    missing: int
    distinct: int
    more_distinct: bool
    numbers: NumberSummary | None
    texts: tuple[TextCount, ...]
    constant: bool
    warnings: tuple[ColumnWarning, ...]
    use: Use


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedTarget:
    """The column to predict. Fields as in `modelrail.trainer.v1.InspectedTarget`."""

    name: str
    guessed: bool
    task: TargetTask
    classes: tuple[TextCount, ...]
    class_count: int
    missing: int
    numbers: NumberSummary | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a table holds. Fields as in `modelrail.trainer.v1.InspectDatasetResponse`.

    Attributes:
        preview: The first rows, a text for each column, None where there is no value.
    """

    files: tuple[InspectedFile, ...]
    rows: int
    rows_estimated: bool
    rows_read: int
    rows_sampled: int
    columns: tuple[InspectedColumn, ...]
    target: InspectedTarget | None
    preview: tuple[tuple[str | None, ...], ...]
    warnings: tuple[str, ...]


def save_inspection(inspection: Inspection, directory: Path) -> None:
    """Writes the file that `load_inspection` reads, whole or not at all.

    Raises:
        OSError: The disk does not take it.
        ValueError: A number is not finite.
    """
    # A text of a file may hold half a surrogate pair, which is no UTF-8.
    line = json.dumps(asdict(inspection), ensure_ascii=False, allow_nan=False)
    part = directory / f"{INSPECTION_NAME}.part"
    part.write_bytes(line.encode("utf-8", "replace"))
    part.replace(directory / INSPECTION_NAME)


def load_inspection(directory: Path) -> Inspection | None:
    """Reads what a process found; None when it left nothing.

    Raises:
        InspectionError: It is not what a process writes that works.
    """
    try:
        return read_job_record(
            directory,
            INSPECTION_NAME,
            _inspection,
            what="inspection",
            most_bytes=MAX_INSPECTION_BYTES,
        )
    except NotAJobFileError as error:
        # Whoever is told of it knows what was read.
        raise InspectionError(str(error.__cause__)) from error


def _inspection(record: Record) -> Inspection:
    columns = _at_most(items(record, "columns", _column), MAX_COLUMNS, "columns")
    preview = tuple(_row(row, len(columns)) for row in values(record, "preview", list))
    if len(preview) > MAX_ROWS or len(preview) * len(columns) > _MAX_PREVIEW_CELLS:
        raise RecordError("preview: too many rows")
    return Inspection(
        files=items(
            record,
            "files",
            lambda one: InspectedFile(count(one, "size_bytes"), _word(one, "format")),
        ),
        rows=count(record, "rows"),
        rows_estimated=flag(record, "rows_estimated"),
        rows_read=count(record, "rows_read"),
        rows_sampled=count(record, "rows_sampled"),
        columns=columns,
        target=nested_if_any(record, "target", _target),
        preview=preview,
        warnings=_sentences(record),
    )


def _column(record: Record) -> InspectedColumn:
    warnings = items(
        record,
        "warnings",
        lambda one: ColumnWarning(member(one, "kind", WarningKind), _sentence(one, "message")),
    )
    return InspectedColumn(
        name=_word(record, "name"),
        type=member(record, "type", ValueType),
        file_type=_word(record, "file_type"),
        missing=count(record, "missing"),
        distinct=count(record, "distinct"),
        more_distinct=flag(record, "more_distinct"),
        numbers=nested_if_any(record, "numbers", _numbers),
        texts=_at_most(items(record, "texts", _text_count), MAX_TEXTS_SHOWN, "texts"),
        constant=flag(record, "constant"),
        warnings=_at_most(warnings, len(WarningKind), "warnings"),
        use=member(record, "use", Use),
    )


def _target(record: Record) -> InspectedTarget:
    return InspectedTarget(
        name=_word(record, "name"),
        guessed=flag(record, "guessed"),
        task=member(record, "task", TargetTask),
        classes=_at_most(items(record, "classes", _text_count), MAX_CLASSES_SHOWN, "classes"),
        class_count=count(record, "class_count"),
        missing=count(record, "missing"),
        numbers=nested_if_any(record, "numbers", _numbers),
        warnings=_sentences(record),
    )


def _numbers(record: Record) -> NumberSummary:
    return NumberSummary(*(real(record, name) for name in ("minimum", "maximum", "mean", "stddev")))


def _text_count(record: Record) -> TextCount:
    shown = text(record, "text", most=MAX_TEXT_CHARACTERS + 1)  # and the mark of a cut
    return TextCount(shown, count(record, "count"))


def _row(cells: list[object], columns: int) -> tuple[str | None, ...]:
    if len(cells) != columns:
        raise RecordError(f"preview: expected rows of {columns} values")
    return tuple(None if cell is None else _cell(cell) for cell in cells)


def _cell(value: object) -> str:
    if not isinstance(value, str):
        raise RecordError(f"preview: expected texts, got {type(value).__name__}")
    return as_text(value, "preview", MAX_TEXT_CHARACTERS + 1)  # and the mark of a cut


def _sentences(record: Record) -> tuple[str, ...]:
    found = _at_most(values(record, "warnings", str), _MAX_SENTENCES, "warnings")
    return tuple(as_text(one, "warnings", _MAX_SENTENCE_CHARACTERS) for one in found)


def _sentence(record: Record, field: str) -> str:
    return text(record, field, most=_MAX_SENTENCE_CHARACTERS)


def _word(record: Record, field: str) -> str:
    return text(record, field, most=_MAX_NAME_CHARACTERS)


def _at_most(found: tuple[T, ...], most: int, field: str) -> tuple[T, ...]:
    if len(found) > most:
        raise RecordError(f"{field}: expected at most {most}, got {len(found)}")
    return found
