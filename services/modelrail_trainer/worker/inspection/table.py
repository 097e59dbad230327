"""Looks into the files of a table: `inspect_table`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modelrail_trainer.encodings.column import ColumnType
from modelrail_trainer.failure import DataError, FileError
from modelrail_trainer.handover.inspection import (
    MAX_COLUMNS,
    InspectedFile,
    Inspection,
    TargetTask,
    ValueType,
)
from modelrail_trainer.spec import Split, TableDataset
from modelrail_trainer.worker.inspection.choice import (
    FEW_NUMBERS,
    inspected_column,
    inspected_target,
    settled,
    task_of,
)
from modelrail_trainer.worker.inspection.division import divided
from modelrail_trainer.worker.inspection.likeness import Likeness
from modelrail_trainer.worker.inspection.scan import Scan, format_of
from modelrail_trainer.worker.inspection.sketch import MAX_DISTINCT, ColumnSketch, shown
from modelrail_trainer.worker.table.reader import TableReader, every

_PREVIEW_CELLS = 50_000
_NO_SPLIT = Split(validation_fraction=0.0, test_fraction=0.0)
_TARGET_NAMES = ("target", "label", "class", "outcome", "y")


def inspect_table(
    dataset: TableDataset, preview_rows: int, split: Split | None = None
) -> Inspection:
    """Reads a table, or an even part of it when it is large, and tells what it holds.

    Args:
        dataset: The files; a target and columns, if they are known.
        preview_rows: Rows to show.
        split: How the rows are to be divided, if it is known. Of its files the columns are looked
            at.

    Raises:
        DataError: A file cannot be read or holds no table; the message names the field.
    """
    try:
        return _Look(dataset, split or _NO_SPLIT).inspection(preview_rows)
    except DataError as error:
        text = str(error)
        if not text.startswith(("dataset.", "split.")):
            text = f"{_field_of(error, dataset, split or _NO_SPLIT)}: {text}"
        raise DataError(text) from error


def _field_of(error: DataError, dataset: TableDataset, split: Split) -> str:
    """Returns the field that names the files, or the one file, that an error is about."""
    fields = {
        "dataset.table.paths": dataset.paths,
        "split.validation_paths": split.validation_paths,
        "split.test_paths": split.test_paths,
    }
    for field, paths in fields.items():
        if isinstance(error, FileError) and error.path in paths:
            return f"{field}[{paths.index(error.path)}]"
    return "dataset.table.paths"


class _Look:
    def __init__(self, dataset: TableDataset, split: Split) -> None:
        self._paths = dataset.paths
        self._split = split
        self._format = format_of(self._paths[0])
        all_paths = (*self._paths, *split.own_paths)
        typed = TableReader(all_paths)
        self._sizes = typed.sizes_bytes
        schema = typed.dataset.schema
        _check_names(schema.names)
        self._names = _chosen(dataset, split, schema.names)
        typed.check_types(self._names)
        self._target, self._guessed = _target(
            dataset.target, [name for name in self._names if name not in split.own_columns]
        )
        self._sketches = {
            name: ColumnSketch(name, str(schema.field(name).type), _value_type(typed, name))
            for name in self._names
        }
        self._likeness = {name: Likeness() for name in self._names if name != self._target}
        self._classes: dict[str, int] = {}
        self._counts_classes = True
        # Numbers in CSV files are read as texts, or the first value that is none would end it all.
        wanted = dict.fromkeys(schema.names, ColumnType.TEXT) if self._format == "csv" else None
        self._reader = TableReader(self._paths, wanted)

    def inspection(self, preview_rows: int) -> Inspection:
        size_bytes = sum(self._sizes[: len(self._paths)])
        scan = Scan(self._reader, self._names, size_bytes=size_bytes, format=self._format)
        preview: list[tuple[str | None, ...]] = []
        wanted_rows = min(preview_rows, max(1, _PREVIEW_CELLS // len(self._names)))
        stride = 0
        before = 0
        for batch in scan.batches():
            stride = stride or scan.stride(batch)
            if len(preview) < wanted_rows:
                preview += _preview(batch, wanted_rows - len(preview))
            self._add(batch, every(stride, before, batch.num_rows))
            before += batch.num_rows
        if not before:
            raise DataError("the table has no rows")
        rows, estimated = scan.rows()
        self._reader.check_unchanged()
        target = self._sketches[self._target]
        task = task_of(target)
        columns, doubts = divided(
            [
                inspected_column(sketch, self._likeness.get(name), task)
                for name, sketch in self._sketches.items()
            ],
            self._sketches,
            self._split,
        )
        return Inspection(
            files=tuple(InspectedFile(size, self._format) for size in self._sizes),
            rows=rows,
            rows_estimated=estimated,
            rows_read=scan.rows_read,
            rows_sampled=target.sampled,
            columns=settled(columns),
            target=inspected_target(
                target,
                self._classes if task is TargetTask.CLASSIFICATION else {},
                guessed=self._guessed,
            ),
            preview=tuple(preview),
            warnings=(*_about(scan, rows), *doubts),
        )

    def _add(self, batch: pa.RecordBatch, chosen: range) -> None:
        with self._reader.told():
            values = {
                name: self._sketches[name].add(batch.column(name), chosen) for name in self._names
            }
        for name, likeness in self._likeness.items():
            likeness.add(values[name], values[self._target])
        self._count_classes(batch)

    def _count_classes(self, batch: pa.RecordBatch) -> None:
        """Counts the target in all rows, for as long as its values can be classes."""
        sketch = self._sketches[self._target]
        most = MAX_DISTINCT if sketch.type is ValueType.TEXT else FEW_NUMBERS
        if not self._counts_classes or sketch.type is ValueType.OTHER:
            return
        again = ColumnSketch(self._target, sketch.file_type, sketch.type)
        every_value = again.add(batch.column(self._target), range(batch.num_rows))
        for name, count in _counted(every_value):
            self._classes[name] = self._classes.get(name, 0) + count
        if len(self._classes) > most:
            self._counts_classes = False
            self._classes = {}


def _counted(values: npt.NDArray[np.generic]) -> list[tuple[str, int]]:
    if values.dtype == np.float64:
        found, counts = np.unique(values[~np.isnan(values)], return_counts=True)
        names = [f"{value:.0f}" if value == np.floor(value) else str(value) for value in found]
        return list(zip(names, counts.tolist(), strict=True))
    texts, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    return list(zip(texts.tolist(), counts.tolist(), strict=True))


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise DataError("the table has no columns")
    if len(names) > MAX_COLUMNS:
        raise DataError(f"expected at most {MAX_COLUMNS} columns, got {len(names)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"expected columns of different names, got {shown(twice)!r} twice")


def _chosen(dataset: TableDataset, split: Split, names: Sequence[str]) -> tuple[str, ...]:
    known = ", ".join(shown(name) for name in names[:50])
    wanted = [column.name for column in dataset.columns]
    fields = {f"dataset.table.columns[{place}].name": name for place, name in enumerate(wanted)}
    if dataset.target:
        fields["dataset.table.target"] = dataset.target
    for field in ("column", "group_column"):
        if name := getattr(split, field):
            fields[f"split.{field}"] = name
    for field, name in fields.items():
        if name not in names:
            raise DataError(f"{field}: the table has no column {shown(name)!r}; it has: {known}")
    if not wanted:
        return tuple(names)
    wanted += [dataset.target, *split.own_columns]
    return tuple(name for name in names if name in wanted)


def _target(wanted: str, names: Sequence[str]) -> tuple[str, bool]:
    """Returns the target, and whether it is a guess."""
    if wanted:
        return wanted, False
    by_habit = {name.lower(): name for name in names}
    habit = next((by_habit[name] for name in _TARGET_NAMES if name in by_habit), names[-1])
    return habit, True


def _value_type(reader: TableReader, name: str) -> ValueType:
    try:
        kind = reader.type_of(name)
    except DataError:
        return ValueType.OTHER
    return ValueType.NUMBER if kind is ColumnType.NUMBER else ValueType.TEXT


def _preview(batch: pa.RecordBatch, rows: int) -> list[tuple[str | None, ...]]:
    columns = [[_cell(value) for value in column.slice(0, rows)] for column in batch.columns]
    return list(zip(*columns, strict=True))


def _cell(value: pa.Scalar) -> str | None:
    if not value.is_valid:
        return None
    try:
        found = value.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError):  # a date beyond Python's, say
        return "(cannot be shown)"
    return None if found is None else shown(str(found))


def _about(scan: Scan, rows: int) -> list[str]:
    if not scan.is_partial:
        return []
    part = "from the beginning of the files" if scan.starts_only else "evenly from all"
    read = f"{scan.rows_read} of about {rows} rows were read, {part}"
    return [f"the files are large: {read}; counts and figures are of those"]
