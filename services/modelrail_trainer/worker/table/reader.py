"""Reads the files of a table batch by batch, as NumPy columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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

_ROWS_AT_ONCE = 16_384
_FORMATS = {".arrow": "ipc", ".parquet": "parquet"}

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

    Raises:
        DataError: A file is missing, or none of its format.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        ending = Path(self._paths[0]).suffix.lower()
        # An empty field of a text column is a missing text, like one of a number.
        self._format = _FORMATS.get(ending) or pyarrow.dataset.CsvFileFormat(
            convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True)
        )
        with _told():
            self._dataset = pyarrow.dataset.dataset(list(self._paths), format=self._format)
        self._types = {field.name: _type_of(field.type) for field in self._dataset.schema}

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
        if found is None:
            raise DataError(
                f"column {name!r}: expected numbers, booleans or texts, got "
                f"{self._dataset.schema.field(name).type}; name the columns to learn from in "
                "dataset.table.columns"
            )
        return found

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yields the rows of all files in order, a few thousand at a time.

        Raises:
            DataError: A file is damaged or gone, or its columns are not those of the first.
        """
        row = 0
        with _told():
            # One file and one batch ahead: more would take memory without being faster.
            scanner = self._dataset.scanner(
                columns=list(names),
                batch_size=_ROWS_AT_ONCE,
                batch_readahead=1,
                fragment_readahead=1,
                use_threads=True,
            )
            for batch in scanner.to_batches():
                if not batch.num_rows:
                    continue
                columns = {
                    name: _as_numpy(batch.column(name), self.type_of(name)) for name in names
                }
                yield Batch(row, columns)
                row += batch.num_rows

    def sha256(self) -> str:
        """Returns a digest over the content of all files in their order.

        Raises:
            DataError: A file cannot be read.
        """
        whole = hashlib.sha256()
        with _told():
            for path in self._paths:
                with Path(path).open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


class _told:  # noqa: N801 - used like a function
    """Turns what goes wrong with the files into the job's failure."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            said = " ".join(str(error).split())[:500]
            raise DataError(f"the table cannot be read: {said}") from error


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


def _as_numpy(values: pa.Array, kind: ColumnType) -> Column:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if kind is ColumnType.NUMBER:
        numbers = pc.cast(values, pa.float64())
        return np.array(pc.fill_null(numbers, float("nan")), np.float64)  # [N]
    return np.array(pc.fill_null(values, ""), object)  # [N]
