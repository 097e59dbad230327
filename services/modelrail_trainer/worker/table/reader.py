"""Reads the files of a table batch by batch, as NumPy columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

from modelrail_trainer.worker.failure import DataError
from modelrail_trainer.worker.progress import made_progress

_ROWS_AT_ONCE = 16_384
_FORMATS = {".arrow": "ipc", ".parquet": "parquet"}
_NO_BUFFER = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)

Column = npt.NDArray[Any]
"""Numbers as float64 [N], NaN where missing; texts as objects [N], "" where missing."""


class ColumnType(StrEnum):
    """What the values of a column are."""

    NUMBER = "number"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows.

    Attributes:
        first_row: Number of the first of them, from 0 over all files.
        columns: By name, each of the same length.
    """

    first_row: int
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class TableReader:
    """The files of a table.

    Args:
        paths: The files, all of one format.
        wanted: What some columns are to be read as. Whole numbers and booleans can be texts.
        max_rows: Only so many rows are given, evenly from all of them; None: all.

    Raises:
        DataError: A file is missing, none of its format, or has other columns than the first.
    """

    def __init__(
        self,
        paths: Sequence[str],
        wanted: Mapping[str, ColumnType] | None = None,
        *,
        max_rows: int | None = None,
    ) -> None:
        self._paths = tuple(paths)
        self._wanted = dict(wanted or {})
        with self.told():
            self._states = self._look()
            self._dataset = self._open()
            self._types = {field.name: _type_of(field.type) for field in self._dataset.schema}
            self._check_columns()
            rows = 0 if max_rows is None else self._dataset.count_rows()
        self._stride = 1 if max_rows is None else -(-rows // max_rows) or 1

    def _open(self) -> pyarrow.dataset.Dataset:
        paths = list(self._paths)
        ending = Path(paths[0]).suffix.lower()
        if ending != ".csv":
            return pyarrow.dataset.dataset(paths, format=_FORMATS[ending])
        seen = pyarrow.dataset.dataset(paths[:1], format=_csv_format({})).schema
        types = {field.name: self._csv_type(field) for field in seen}
        return pyarrow.dataset.dataset(paths, format=_csv_format(types))

    def _csv_type(self, field: pa.Field) -> pa.DataType:
        """Returns what a column is read as; its first rows alone tell too little.

        Where they are whole numbers, fractions may follow, and where they are empty, anything.
        """
        wanted = self._wanted.get(field.name)
        if wanted is ColumnType.TEXT or (wanted is None and pa.types.is_null(field.type)):
            return pa.string()
        if pa.types.is_integer(field.type) or pa.types.is_null(field.type):
            return pa.float64()
        return field.type

    def _check_columns(self) -> None:
        """Every file must have the columns of the first: what is absent would count as missing."""
        for fragment in self._dataset.get_fragments():
            absent = set(self._types) - set(fragment.physical_schema.names)
            if absent:
                raise DataError(
                    f"file {Path(fragment.path).name!r} lacks the columns {sorted(absent)[:10]} "
                    "of the first file"
                )

    def _look(self) -> list[tuple[int, int, int]]:
        found = [Path(path).stat() for path in self._paths]
        return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in found]

    def check_unchanged(self) -> None:
        """Says whether the files are still those that were read first.

        Raises:
            DataError: One was changed or replaced meanwhile.
        """
        with self.told():
            for path, before, now in zip(self._paths, self._states, self._look(), strict=True):
                if before != now:
                    raise DataError(
                        f"file {Path(path).name!r} was changed while it was read; run the job again"
                    )

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turns what goes wrong with the files into the job's failure, without their folders."""
        try:
            yield
        except FileNotFoundError as error:
            gone = [Path(path).name for path in self._paths if not Path(path).exists()]
            raise DataError(
                f"a file of the table is gone: {', '.join(gone[:10])}; put it in its place and run "
                "the job again"
            ) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            for path in self._paths:
                said = said.replace(path, Path(path).name)
            raise DataError(f"the table cannot be read: {said[:500]}") from error

    def names(self) -> list[str]:
        """Returns the columns in the order of the files."""
        return list(self._types)

    def type_of(self, name: str) -> ColumnType:
        """Returns what a column holds.

        Raises:
            DataError: There is no such column, or it holds neither numbers nor texts.
        """
        if name not in self._types:
            known = ", ".join(self.names()[:50])
            raise DataError(f"the table has no column {name!r}; it has: {known}")
        found = self._types[name]
        wanted = self._wanted.get(name)
        if wanted is ColumnType.TEXT and _is_discrete(self._dataset.schema.field(name).type):
            return ColumnType.TEXT
        if found is None:
            raise DataError(
                f"column {name!r}: expected numbers, booleans or texts, got "
                f"{self._dataset.schema.field(name).type}; name the columns to learn from in "
                "dataset.table.columns"
            )
        return found

    @property
    def dataset(self) -> pyarrow.dataset.Dataset:
        """The files as pyarrow has them."""
        return self._dataset

    @property
    def is_sample(self) -> bool:
        """Whether some rows are left out."""
        return self._stride > 1

    def batches(self, names: Sequence[str], *, every_row: bool = False) -> Iterator[Batch]:
        """Yields the rows of all files in order, a few thousand at a time.

        Args:
            names: The columns.
            every_row: Whether to give those too that a sample leaves out.

        Raises:
            DataError: A file is damaged or gone, or its columns are not those of the first.
        """
        row = seen = 0
        stride = 1 if every_row else self._stride
        for batch in self.record_batches(names):
            chosen = every(stride, seen, batch.num_rows)
            first = seen
            seen += batch.num_rows
            if not len(chosen):
                continue
            if stride > 1:
                batch = batch.take(pa.array(chosen))  # noqa: PLW2901
            columns = {}
            for name in names:
                with self.told():
                    _check_utf8(name, batch.column(name), first, chosen)
                    columns[name] = _as_numpy(batch.column(name), self.type_of(name))
            yield Batch(row, columns)
            row += batch.num_rows

    def record_batches(
        self, names: Sequence[str], dataset: pyarrow.dataset.Dataset | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yields every row as it stands in the files, a few thousand at a time.

        Args:
            names: The columns.
            dataset: A part of `dataset`; None: all of it.

        Raises:
            DataError: A file is damaged or gone, or its columns are not those of the first.
        """
        options = {}
        if self._is_parquet:
            # What is read ahead in one go is kept until its last row is used.
            options["fragment_scan_options"] = _NO_BUFFER
        with self.told():
            for fragment in (dataset or self._dataset).get_fragments():
                # Left to itself Arrow reads a dozen of row groups ahead.
                pieces = fragment.split_by_row_group() if self._is_parquet else [fragment]
                for piece in pieces:
                    scanner = piece.scanner(
                        schema=self._dataset.schema,
                        columns=list(names),
                        batch_size=_ROWS_AT_ONCE,
                        batch_readahead=1,
                        **options,
                    )
                    for batch in scanner.to_batches():
                        made_progress()
                        yield batch
        # The pool would keep what it had at its busiest.
        pa.default_memory_pool().release_unused()

    @property
    def _is_parquet(self) -> bool:
        return isinstance(self._dataset.format, pyarrow.dataset.ParquetFileFormat)

    def sha256(self) -> str:
        """Returns a digest over the content of all files in their order.

        Raises:
            DataError: A file cannot be read.
        """
        whole = hashlib.sha256()
        with self.told():
            for path in self._paths:
                with Path(path).open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


def every(stride: int, before: int, rows: int) -> range:
    """Returns which rows of a batch are among every `stride`th, after so many rows before it."""
    return range(-before % stride, rows, stride)


def _csv_format(types: Mapping[str, pa.DataType]) -> pyarrow.dataset.CsvFileFormat:
    return pyarrow.dataset.CsvFileFormat(
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        # An empty field of a text column is a missing text, like one of a number.
        convert_options=pyarrow.csv.ConvertOptions(
            strings_can_be_null=True, column_types=dict(types)
        ),
    )


def _is_discrete(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _type_of(kind: pa.DataType) -> ColumnType | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return ColumnType.TEXT
    is_number = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )
    return ColumnType.NUMBER if is_number else None


def _check_utf8(name: str, values: pa.Array, first_row: int, chosen: range) -> None:
    """Refuses texts that are no UTF-8, which Parquet and Arrow files do not rule out.

    Args:
        name: Of the column.
        values: Of the chosen rows, [N].
        first_row: Number of the batch's first row, from 0 over all files.
        chosen: Which rows of the batch the values are of.
    """
    plain = values.dictionary if pa.types.is_dictionary(values.type) else values
    if _type_of(plain.type) is not ColumnType.TEXT:
        return
    try:
        plain.validate(full=True)
        return
    except pa.ArrowInvalid:
        pass
    for position, value in enumerate(values):
        # The scalar of a dictionary is of a type of its own; its value is a text again.
        content = value.value if pa.types.is_dictionary(values.type) else value
        raw = None if content is None or not content.is_valid else content.as_buffer().to_pybytes()
        try:
            (raw or b"").decode()
        except UnicodeDecodeError as error:
            wrong = (raw or b"")[error.start : error.end].hex()
            raise DataError(
                f"column {name!r}: expected texts in UTF-8, got the bytes {wrong} at place "
                f"{error.start} of row {first_row + chosen[position]}, counted from 0 over all "
                "files; write the file again from the text decoded in its own encoding (latin-1, "
                "say), or leave the column out"
            ) from None


def _as_numpy(values: pa.Array, kind: ColumnType) -> Column:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if kind is ColumnType.NUMBER:
        # Not safe: whole numbers beyond 2^53 lose their last digits, as they do in the network.
        numbers = pc.cast(values, pa.float64(), safe=False)
        return np.array(pc.fill_null(numbers, float("nan")), np.float64)  # [N]
    return np.array(pc.fill_null(pc.cast(values, pa.large_string()), ""), object)  # [N]
