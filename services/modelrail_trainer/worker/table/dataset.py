"""A table as features and targets, in files of their own beside the job: two passes over the rows.

The first fits the encodings and finds the classes, on the training rows only; the second encodes
every row. What the network trains on is read from the disk as it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelrail_trainer.encodings import CategoryEncoding, Fitted, Fitting, NumberEncoding
from modelrail_trainer.encodings.column import Column, ColumnType
from modelrail_trainer.failure import DataError
from modelrail_trainer.rules.table import check_table
from modelrail_trainer.spec import (
    Split,
    TableColumn,
    TableDataset,
    Task,
)
from modelrail_trainer.worker.part import Part, PartOfRow
from modelrail_trainer.worker.table.division import NO_PART, Division
from modelrail_trainer.worker.table.part_file import PartFile
from modelrail_trainer.worker.table.reader import Batch, TableReader
from modelrail_trainer.worker.table.sample import PartSample
from modelrail_trainer.worker.table.unusable import Unusable

MAX_CLASSES = 10_000
MAX_FEATURES = 20_000
_COMPARED_ROWS = 256
_NO_TARGET = "no target"
_UNSEEN_CLASS = "a class that no training row has"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A divided and encoded table.

    Attributes:
        sha256: Digest over the files, those of the split too.
        encodings: Of the columns, in the order of the features.
        labels: Names of the classes; empty for regression.
        parts: The training, validation and test rows.
        raw_rows: Some validation rows as they stand in the files, by column.
        unusable: Rows that were left out, by reason.
        constant_columns: Columns that never vary in the training rows.
        tokens: Size of the vocabulary when rows are tokens; 0 when they are numbers.
        remarks: What else there is to tell, in sentences.
    """

    sha256: str
    encodings: tuple[Fitted, ...]
    labels: tuple[str, ...]
    parts: tuple[Part, Part, Part]
    raw_rows: Mapping[str, Column]
    unusable: Mapping[str, int]
    constant_columns: tuple[str, ...]
    tokens: int = 0
    remarks: tuple[str, ...] = ()


def load_table(
    dataset: TableDataset,
    split: Split,
    task: Task,
    folder: Path,
    *,
    max_rows: int | None = None,
) -> Table:
    """Reads a table, fits the encodings of its columns and encodes its rows.

    Args:
        dataset: What is read.
        split: How it is divided, with defaults applied.
        task: Whether the target is a class or a number.
        folder: An empty folder for the encoded rows, which stay there while they are used.
        max_rows: Only so many rows are used, evenly from all of them, or from each part that a
            column or a file of its own tells; None: all.

    Raises:
        DataError: The table is not what the specification expects; the message says how.
    """
    files = [*dataset.paths, *split.own_paths]
    # Of what says the part the texts matter; of what groups only which values are equal.
    wanted = _wanted_types(dataset) | dict.fromkeys(split.own_columns, ColumnType.TEXT)
    keys = (split.group_column,) if split.group_column else ()
    reader = TableReader(files, wanted, keys=keys)
    division = Division(split, len(dataset.paths))
    division.check(reader)
    if not dataset.columns:
        columns = _all_columns(reader, (dataset.target, *split.own_columns))
        dataset = replace(dataset, columns=columns)
    # Columns that are learned from because they are there keep the same rules as named ones.
    if wrong := list(check_table(dataset)):
        raise DataError(
            "; ".join(f"{field}: {description}" for field, description in wrong[:10])
            + "; rename them in the files, or name the columns to learn from"
        )
    sample = None if max_rows is None else PartSample(reader, division, max_rows)
    passes = _Passes(reader, dataset, division, sample=sample, task=task, folder=folder)
    passes.fit()
    parts, raw_rows = passes.encode()
    sha256 = reader.sha256()
    reader.check_unchanged()
    return Table(
        sha256=sha256,
        encodings=passes.encodings,
        labels=passes.labels,
        parts=parts,
        raw_rows=raw_rows,
        unusable=dict(passes.unusable.counts),
        constant_columns=passes.constant_columns,
        tokens=passes.tokens,
        remarks=passes.remarks,
    )


def _all_columns(reader: TableReader, others: Sequence[str]) -> tuple[TableColumn, ...]:
    """Returns all columns but the others, of which the first is the target."""
    target = others[0]
    reader.type_of(target)  # says which columns there are, if it is none
    columns = tuple(TableColumn(name=name) for name in reader.names() if name not in others)
    if not columns:
        told = f"the target {target!r}" + ("" if len(others) == 1 else " and that of the split")
        raise DataError(f"the table has no column but {told} to learn from")
    return columns


def _wanted_types(dataset: TableDataset) -> dict[str, ColumnType]:
    return {
        column.name: column.encoding.reads
        for column in dataset.columns
        if column.encoding is not None
    }


class _Passes:
    def __init__(
        self,
        reader: TableReader,
        dataset: TableDataset,
        division: Division,
        *,
        sample: PartSample | None,
        task: Task,
        folder: Path,
    ) -> None:
        self._reader = reader
        self._dataset = dataset
        self._division = division
        self._sample = sample
        self._task = task
        self._folder = folder
        self._fittings = {
            column.name: _fitting(column, reader, folder) for column in dataset.columns
        }
        self._target_type = reader.type_of(dataset.target)
        if task is Task.REGRESSION and self._target_type is ColumnType.TEXT:
            raise DataError(
                f"target {dataset.target!r}: expected numbers for a regression loss, got texts; "
                "learn classes with cross_entropy"
            )
        self.unusable = Unusable()
        self.encodings: tuple[Fitted, ...] = ()
        self.labels: tuple[str, ...] = ()
        self.constant_columns: tuple[str, ...] = ()
        self.tokens = 0
        self.remarks: tuple[str, ...] = ()

    def fit(self) -> None:
        """Fits the encodings and finds the classes."""
        classes: set[str | float] = set()
        rows = 0
        for batch, parts, usable in self._batches(self.unusable):
            training = usable & (parts == PartOfRow.TRAIN)
            rows += int(training.sum())
            for name, fitting in self._fittings.items():
                fitting.add(batch.columns[name][training])
            if self._task is Task.CLASSIFICATION:
                classes.update(np.unique(batch.columns[self._dataset.target][training]).tolist())
                self._check_classes(classes)
        self.unusable.check(skip=self._dataset.skip_unusable_rows)
        if not rows:
            raise self._division.empty(PartOfRow.TRAIN)
        if self._task is Task.CLASSIFICATION:
            if self._sample is not None and self._sample.is_partial:
                classes |= self._all_classes()
            if len(classes) < 2:
                raise DataError(
                    f"target {self._dataset.target!r}: expected at least 2 classes in the training "
                    f"rows, got {len(classes)}; give rows of more classes, or learn numbers with "
                    "loss mse"
                )
            self._classes = sorted(classes)
            self.labels = tuple(_label(value) for value in self._classes)
        self.encodings = tuple(fitting.fitted() for fitting in self._fittings.values())
        if self._width() > MAX_FEATURES:
            raise DataError(
                f"expected columns that become at most {MAX_FEATURES} features, got "
                f"{self._width()}; ask for fewer categories"
            )
        self.tokens = max(encoding.tokens for encoding in self.encodings)
        self.remarks = tuple(
            remark for fitting in self._fittings.values() for remark in fitting.remarks()
        )
        self.constant_columns = tuple(
            name for name, fitting in self._fittings.items() if fitting.is_constant
        )

    def _all_classes(self) -> set[str | float]:
        """Returns the classes of every training row that can be used: a sample may lack some."""
        target = self._dataset.target
        # Where rows that cannot be used end the job anyway, only the target is read.
        columns = self._fittings if self._dataset.skip_unusable_rows else {}
        classes: set[str | float] = set()
        for batch in self._reader.batches([*columns, target, *self._division.columns]):
            parts, usable = self._judged(batch, columns, Unusable())
            values = batch.columns[target][usable & (parts == PartOfRow.TRAIN)]
            classes.update(np.unique(values).tolist())
            self._check_classes(classes)
        return classes

    def encode(self) -> tuple[tuple[Part, Part, Part], dict[str, Column]]:
        """Encodes every row; returns the parts, and some validation rows as they were."""
        raw: dict[str, list[Column]] = {name: [] for name in self._fittings}
        kept = 0
        unusable = Unusable()
        folder = self._folder
        with ExitStack() as stack:
            files = [
                PartFile(folder / part.name.lower(), self._shape(), self._target_dtype(), stack)
                for part in PartOfRow
            ]
            for batch, parts, usable in self._batches(unusable):
                targets, known = self._targets(batch.columns[self._dataset.target])
                unusable.add(batch, usable & ~known, _UNSEEN_CLASS)
                kept_rows = usable & known
                features = np.concatenate(
                    [e.encode(batch.columns[e.name]) for e in self.encodings], axis=1
                )  # [N, features]
                for part, file in zip(PartOfRow, files, strict=True):
                    chosen = kept_rows & (parts == part)
                    file.write(features[chosen], targets[chosen])
                if kept < _COMPARED_ROWS:
                    chosen = np.flatnonzero(kept_rows & (parts == PartOfRow.VALIDATION))
                    chosen = chosen[: _COMPARED_ROWS - kept]
                    kept += len(chosen)
                    for name, values in raw.items():
                        values.append(batch.columns[name][chosen])
        self.unusable = unusable
        unusable.check(skip=self._dataset.skip_unusable_rows)
        for part, file in zip(PartOfRow, files, strict=True):
            if not file.rows:
                raise self._division.empty(part)
        train, validation, test = (file.part() for file in files)
        rows = {name: np.concatenate(values) for name, values in raw.items()}
        return (train, validation, test), rows

    def _batches(
        self, unusable: Unusable
    ) -> Iterator[tuple[Batch, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
        """Yields the rows, the part of each and whether it can be used."""
        names = [*self._fittings, self._dataset.target, *self._division.columns]
        for batch in self._reader.batches(names, self._sample):
            yield batch, *self._judged(batch, self._fittings, unusable)

    def _judged(
        self, batch: Batch, fittings: Mapping[str, Fitting], unusable: Unusable
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Returns the part of each row and whether it can be used, [rows] both."""
        target = batch.columns[self._dataset.target]
        parts = self._division.parts(batch)
        bad = parts == NO_PART
        if bad.any():
            unusable.add(batch, bad, *self._division.no_part(batch, int(bad.argmax())))
        missing = _is_missing(target)
        unusable.add(batch, missing & ~bad, _NO_TARGET)
        bad = bad | missing
        if self._target_type is ColumnType.NUMBER:
            with np.errstate(over="ignore"):
                infinite = np.isinf(target.astype(np.float32))
            unusable.add(batch, infinite & ~bad, "a target that does not fit into 32 bits")
            bad = bad | infinite
        for name, fitting in fittings.items():
            for reason, refused in fitting.refuses(batch.columns[name]).items():
                unusable.add(batch, refused & ~bad, f"column {name!r} {reason}")
                bad = bad | refused
        return parts, ~bad

    def _check_classes(self, classes: set[str | float]) -> None:
        target = self._dataset.target
        if len(classes) > MAX_CLASSES:
            raise DataError(
                f"target {target!r}: expected at most {MAX_CLASSES} classes, got more; "
                "learn numbers with loss mse"
            )
        if self._target_type is ColumnType.NUMBER:
            for value in classes:
                if value != int(value):
                    raise DataError(
                        f"target {target!r}: expected texts, whole numbers or booleans as classes, "
                        f"got {value}; learn numbers with loss mse"
                    )

    def _targets(self, values: Column) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
        """Returns class numbers [N] or values [N, 1], and which rows have one."""
        if self._task is Task.REGRESSION:
            return values.astype(np.float32).reshape(-1, 1), np.ones(len(values), np.bool_)
        places = {value: place for place, value in enumerate(self._classes)}
        found = np.fromiter((places.get(v, -1) for v in values.tolist()), np.int64, len(values))
        return found, found >= 0

    def _width(self) -> int:
        return sum(encoding.size for encoding in self.encodings)

    def _shape(self) -> np.dtype[Any]:
        """Returns the type of a row: its numbers, and how many."""
        return np.dtype((np.int64 if self.tokens else np.float32, (self._width(),)))

    def _target_dtype(self) -> npt.DTypeLike:
        return np.int64 if self._task is Task.CLASSIFICATION else np.float32


def _fitting(column: TableColumn, reader: TableReader, folder: Path) -> Fitting:
    kind = reader.type_of(column.name)
    encoding = column.encoding or (
        NumberEncoding() if kind is ColumnType.NUMBER else CategoryEncoding()
    )
    if kind is not encoding.reads:
        raise DataError(
            f"column {column.name!r}: expected {encoding.reads}s for its encoding, got {kind}s"
        )
    return encoding.fitting(column.name, folder)


def _is_missing(values: Column) -> npt.NDArray[np.bool_]:
    if values.dtype == np.float64:
        return np.isnan(values)
    missing: npt.NDArray[np.bool_] = values == ""
    return missing


def _label(value: str | float) -> str:
    return value if isinstance(value, str) else str(int(value))
