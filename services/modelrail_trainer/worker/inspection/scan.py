"""Which part of large files is read, and how many rows there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset

from modelrail_trainer.worker.table.reader import TableReader

MOST_BYTES = 512 << 20
"""Of larger files a part is read."""
MAX_SAMPLED_ROWS = 100_000
MAX_SAMPLED_VALUES = 20_000_000


class Scan:
    """The rows of a table, or of an even part of it when it is large.

    Parquet files are read by row group, chosen evenly; CSV and Arrow files from their beginning.

    Args:
        reader: The files.
        names: The columns.
        size_bytes: Of all files together.
        format: Of the files.
    """

    def __init__(
        self,
        reader: TableReader,
        names: Sequence[str],
        *,
        size_bytes: int,
        format: str,  # noqa: A002
    ) -> None:
        self._reader = reader
        self._names = tuple(names)
        self._size_bytes = size_bytes
        self._format = format
        self._part: pyarrow.dataset.Dataset | None = None
        self._counted: int | None = None
        self._read_bytes = 0
        self.rows_read = 0
        self.is_partial = False
        self.starts_only = False
        """Whether what was read is the beginning of the files."""
        if format == "parquet":
            with reader.told():
                self._choose_row_groups()

    def _choose_row_groups(self) -> None:
        groups = [
            group
            for fragment in self._reader.dataset.get_fragments()
            for group in fragment.split_by_row_group()
        ]
        self._counted = self._reader.dataset.count_rows()  # told by the ends of the files
        share = MOST_BYTES / max(1, self._size_bytes)
        if share < 1 and len(groups) > 1:
            count = max(1, int(len(groups) * share))
            chosen = [groups[place * len(groups) // count] for place in range(count)]
            self._part = pyarrow.dataset.FileSystemDataset(
                chosen, self._reader.dataset.schema, self._reader.dataset.format
            )
            self.is_partial = True

    def stride(self, first: pa.RecordBatch) -> int:
        """Returns how many rows to go on by so that about so many are sampled as may be."""
        most = min(MAX_SAMPLED_ROWS, max(1, MAX_SAMPLED_VALUES // len(self._names)))
        return -(-self._expected(first) // most) or 1

    def _expected(self, first: pa.RecordBatch) -> int:
        if self._counted is not None:
            return self._counted
        # Of texts the size in memory is near that in the file; of Arrow files it is the same.
        return int(min(self._size_bytes, MOST_BYTES) * first.num_rows / max(1, _text_bytes(first)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows that are read.

        Raises:
            DataError: A file is damaged or gone, or its columns are not those of the first.
        """
        for batch in self._reader.record_batches(self._names, self._part):
            self.rows_read += batch.num_rows
            self._read_bytes += _text_bytes(batch)
            yield batch
            if self._format != "parquet" and self._read_bytes > MOST_BYTES:
                self.is_partial = self.starts_only = self._read_bytes < self._size_bytes
                return

    def rows(self) -> tuple[int, bool]:
        """Returns the number of rows in all files, and whether it is an estimate."""
        if self._counted is None and self.is_partial and self._format == "arrow":
            with self._reader.told():
                self._counted = self._reader.dataset.count_rows()
        if self._counted is not None:
            return self._counted, False
        if not self.is_partial:
            return self.rows_read, False
        return round(self.rows_read * self._size_bytes / max(1, self._read_bytes)), True


def _text_bytes(batch: pa.RecordBatch) -> int:
    """Returns about how long the rows of a batch are in a file of texts."""
    total = 0
    for column in batch.columns:
        total += column.nbytes
        if pa.types.is_string(column.type):
            total -= 3 * len(column)  # four bytes for the place of a text, and a comma for them
    return max(1, total)


def format_of(path: str) -> str:
    """Returns the format that the ending of a file tells."""
    return Path(path).suffix.lower().removeprefix(".")
