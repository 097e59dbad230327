"""Reads the files of a table batch by batch, as NumPy columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset

from modelrail_trainer.encodings.column import Column, ColumnType
from modelrail_trainer.failure import DataError, FileError
from modelrail_trainer.worker.progress import made_progress
from modelrail_trainer.worker.table.column import (
    Numbers,
    as_key,
    as_numpy,
    check_utf8,
    common_field,
    is_discrete,
    type_of,
)

_ROWS_AT_ONCE = 16_384
_FORMATS = {".arrow": "ipc", ".parquet": "parquet"}
_NO_BUFFER = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of one file.

    Attributes:
        numbers: Of the rows, [N], from 0 over all files.
        columns: By name, each [N].
        file: Place of the file among all, from 0.
    """

    numbers: Numbers
    columns: Mapping[str, Column]
    file: int = 0

    def __len__(self) -> int:
        return len(self.numbers)


class Sample(Protocol):
    """Which rows are used where not all are."""

    @property
    def columns(self) -> Sequence[str]:
        """What it must see of a row to choose."""

    def chooser(self) -> Callable[[Batch], Numbers]:
        """Returns what gives, batch after batch, the places of the chosen rows in each."""


class TableReader:
    """The files of a table.

    Args:
        paths: The files, all of one format.
        wanted: What some columns are to be read as. Whole numbers and booleans can be texts.
        keys: Columns whose values are only told apart: read as texts, whatever their type.

    Raises:
        DataError: A file is missing, none of its format, or has other columns than the first.
    """

    def __init__(
        self,
        paths: Sequence[str],
        wanted: Mapping[str, ColumnType] | None = None,
        *,
        keys: Collection[str] = (),
    ) -> None:
        self._paths = tuple(paths)
        self._keys = frozenset(keys)
        self._wanted = dict(wanted or {}) | dict.fromkeys(self._keys, ColumnType.TEXT)
        self._differing: dict[str, FileError] = {}
        with self.told():
            self._states = self._look()
            self._dataset = self._open()
            schema = self._common_schema()
            if schema != self._dataset.schema:
                self._dataset = self._open(schema)
            self._types = {field.name: type_of(field.type) for field in self._dataset.schema}

    def _open(self, schema: pa.Schema | None = None) -> pyarrow.dataset.Dataset:
        paths = list(self._paths)
        ending = Path(paths[0]).suffix.lower()
        if ending != ".csv":
            return pyarrow.dataset.dataset(paths, schema, format=_FORMATS[ending])
        seen = pyarrow.dataset.dataset(paths[:1], format=_csv_format({})).schema
        types = {field.name: self._csv_type(field) for field in seen}
        return pyarrow.dataset.dataset(paths, schema, format=_csv_format(types))

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

    def _common_schema(self) -> pa.Schema:
        """Returns the columns of the first file, of types that hold the numbers of every file.

        Every file must have them: what is absent would count as missing. Texts are not taken for
        numbers, nor numbers for texts, which is told when somebody asks for the column.
        """
        fields = {field.name: field for field in self._dataset.schema}
        if len(self._paths) == 1 or len(fields) < len(self._dataset.schema):
            return self._dataset.schema
        for fragment in self._dataset.get_fragments():
            of_file = fragment.physical_schema
            if of_file.equals(self._dataset.schema):
                continue
            absent = {name for name in fields if of_file.get_field_index(name) < 0}
            if absent:
                raise FileError(
                    f"file {Path(fragment.path).name!r} lacks the columns {sorted(absent)[:10]} "
                    "of the first file, or has them twice",
                    fragment.path,
                )
            for name, field in fields.items():
                found = of_file.field(name)
                if found.type == field.type:
                    continue
                if (common := common_field(field, found)) is not None:
                    fields[name] = common
                else:
                    self._differing.setdefault(
                        name,
                        FileError(
                            f"column {name!r}: expected {field.type} in file "
                            f"{Path(fragment.path).name!r}, as in the files before it, got "
                            f"{found.type}; write the file again with that type",
                            fragment.path,
                        ),
                    )
        return pa.schema(list(fields.values()))

    def _look(self) -> list[tuple[int, int, int]]:
        found = [Path(path).stat() for path in self._paths]
        return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in found]

    @property
    def sizes_bytes(self) -> list[int]:
        """Size of each file, as it was when it was first looked at."""
        return [size for _, size, _ in self._states]

    def check_unchanged(self) -> None:
        """Says whether the files are still those that were read first.

        Raises:
            DataError: One was changed or replaced meanwhile.
        """
        with self.told():
            for path, before, now in zip(self._paths, self._states, self._look(), strict=True):
                if before != now:
                    raise FileError(
                        f"file {Path(path).name!r} was changed while it was read; clone the job "
                        "when nobody writes it any more",
                        path,
                    )

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turns what goes wrong with the files into the job's failure, without their folders."""
        try:
            yield
        except FileNotFoundError as error:
            gone = [path for path in self._paths if not Path(path).exists()]
            names = ", ".join(Path(path).name for path in gone[:10])
            raise FileError(
                f"a file of the table is gone: {names}; put it in its place and clone the job",
                gone[0] if gone else "",
            ) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            # Longest first: one path may begin another.
            meant = sorted((path for path in self._paths if path in said), key=len, reverse=True)
            for path in meant:
                said = said.replace(path, Path(path).name)
            raise FileError(
                f"the table cannot be read: {said[:500]}",
                next(iter(meant if len(self._paths) > 1 else self._paths), ""),
            ) from error

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
        self.check_types([name])
        found = self._types[name]
        wanted = self._wanted.get(name)
        if name in self._keys and (found is not None or pa.types.is_temporal(self._kind(name))):
            return ColumnType.TEXT
        if wanted is ColumnType.TEXT and is_discrete(self._kind(name)):
            return ColumnType.TEXT
        if found is None:
            raise DataError(
                f"column {name!r}: expected numbers, booleans or texts, got {self._kind(name)}; "
                "name the columns to learn from in dataset.table.columns"
            )
        return found

    def check_types(self, names: Sequence[str]) -> None:
        """Says whether the columns are of one type in all files.

        Raises:
            DataError: One is not.
        """
        for name in names:
            if name in self._differing:
                raise self._differing[name]

    def _kind(self, name: str) -> pa.DataType:
        return self._dataset.schema.field(name).type

    @property
    def dataset(self) -> pyarrow.dataset.Dataset:
        """The files as pyarrow has them."""
        return self._dataset

    def batches(self, names: Sequence[str], sample: Sample | None = None) -> Iterator[Batch]:
        """Yields the rows of all files in order, a few thousand at a time.

        Args:
            names: The columns.
            sample: Chooses the rows that are given; None: all of them.

        Raises:
            DataError: A file is damaged or gone, or its columns are not those of the first.
        """
        seen = 0
        choose = None if sample is None else sample.chooser()
        needed = () if sample is None else sample.columns
        for file, batch in self._pieces([*names, *(n for n in needed if n not in names)]):
            numbers = np.arange(seen, seen + batch.num_rows)
            seen += batch.num_rows
            if choose is not None:
                chosen = choose(self._batch(batch, needed, numbers, file))
                if not len(chosen):
                    continue
                batch, numbers = batch.take(pa.array(chosen)), numbers[chosen]  # noqa: PLW2901
            yield self._batch(batch, names, numbers, file)

    def _batch(
        self, batch: pa.RecordBatch, names: Sequence[str], numbers: Numbers, file: int
    ) -> Batch:
        columns = {}
        for name in names:
            values = batch.column(name)
            with self.told():
                check_utf8(name, values, numbers)
                kind = self.type_of(name)
                columns[name] = as_numpy(as_key(values) if name in self._keys else values, kind)
        return Batch(numbers, columns, file)

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
        for _, batch in self._pieces(names, dataset):
            yield batch

    def _pieces(
        self, names: Sequence[str], dataset: pyarrow.dataset.Dataset | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields rows and the place of their file among all."""
        options = {}
        if self._is_parquet:
            # What is read ahead in one go is kept until its last row is used.
            options["fragment_scan_options"] = _NO_BUFFER
        with self.told():
            for file, fragment in enumerate((dataset or self._dataset).get_fragments()):
                # Left to itself Arrow reads a dozen of row groups ahead.
                pieces = fragment.split_by_row_group() if self._is_parquet else [fragment]
                for piece in pieces:
                    scanner = piece.scanner(
                        schema=self._dataset.schema,
                        columns=list(names),
                        batch_size=_ROWS_AT_ONCE,
                        batch_readahead=1,
                        # Arrow's own pool keeps what it had at its busiest.
                        memory_pool=pa.system_memory_pool(),
                        **options,
                    )
                    for batch in scanner.to_batches():
                        made_progress()
                        yield file, batch

    @property
    def _is_parquet(self) -> bool:
        return isinstance(self._dataset.format, pyarrow.dataset.ParquetFileFormat)

    def rows_of_files(self) -> list[int]:
        """Returns the number of rows of each file.

        Raises:
            DataError: A file cannot be read.
        """
        with self.told():
            return [fragment.count_rows() for fragment in self._dataset.get_fragments()]

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
