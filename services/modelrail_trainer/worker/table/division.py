"""What divides the rows of a table: numbers, groups, a column that says it, or their files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modelrail_trainer.encodings.column import Column, ColumnType
from modelrail_trainer.failure import DataError
from modelrail_trainer.rules.violation import shown
from modelrail_trainer.spec import Split
from modelrail_trainer.worker.part import PartOfRow
from modelrail_trainer.worker.table.partition import parts_of, parts_of_groups
from modelrail_trainer.worker.table.reader import Batch, TableReader

NO_PART = 255
"""Of a row that is in none."""
_NAMES = {part.name.lower(): part for part in PartOfRow}


class Division:
    """Which part each row is in.

    Args:
        split: With defaults applied.
        files: Number of files of the table itself; those of the split follow them, validation
            first.

    Attributes:
        parts_of_files: What the rows of each file are, but for those of the table that are divided
            further.
    """

    def __init__(self, split: Split, files: int) -> None:
        self._split = split
        self.parts_of_files = (
            *[PartOfRow.TRAIN] * files,
            *[PartOfRow.VALIDATION] * len(split.validation_paths),
            *[PartOfRow.TEST] * len(split.test_paths),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """What it must see of a row."""
        return self._split.own_columns

    def check(self, reader: TableReader) -> None:
        """Says whether the files have the columns that divide them.

        Raises:
            DataError: One is not there, or says nothing.
        """
        for field in ("column", "group_column"):
            name = getattr(self._split, field)
            if not name:
                continue
            try:
                kind = reader.type_of(name)
            except DataError as error:
                raise DataError(f"split.{field}: {error}") from error
            if kind is not ColumnType.TEXT:
                raise DataError(f"split.{field}: expected a column of texts, got numbers")

    def parts(self, batch: Batch) -> npt.NDArray[np.uint8]:
        """Returns the part of each row, [rows]; `NO_PART` for those that are in none."""
        split = self._split
        if split.column:
            return self._named(batch.columns[split.column])
        if split.group_column:
            groups = batch.columns[split.group_column]
            parts = parts_of_groups(split, groups)
            parts[groups == ""] = NO_PART
            return parts
        of_file = self.parts_of_files[batch.file]
        if of_file is not PartOfRow.TRAIN:
            return np.full(len(batch), of_file, np.uint8)
        return parts_of(split, batch.numbers)

    def _named(self, values: Column) -> npt.NDArray[np.uint8]:
        named = (_NAMES.get(value, NO_PART) for value in values.tolist())
        return np.fromiter(named, np.uint8, len(values))

    def strata(self, batch: Batch) -> npt.NDArray[np.uint8]:
        """Returns what a sample must have its share of, [rows]: parts that may be small."""
        if self._split.column:
            return self._named(batch.columns[self._split.column])
        return np.full(len(batch), self.parts_of_files[batch.file], np.uint8)

    @property
    def strata_columns(self) -> tuple[str, ...]:
        """What `strata` must see of a row."""
        return (self._split.column,) if self._split.column else ()

    def no_part(self, batch: Batch, row: int) -> tuple[str, str]:
        """Returns why a row is in no part, and what was got in place of one."""
        split = self._split
        name = split.column or split.group_column
        value = batch.columns[name][row]
        got = f"got {shown(value)}" if value else "got nothing"
        if split.column:
            return f"column {name!r} holds none of {', '.join(_NAMES)}", got
        return f"column {name!r}, by which rows are grouped, has no value", got

    def empty(self, part: PartOfRow) -> DataError:
        """Returns what to say of a part that no row is in."""
        split, name = self._split, part.name.lower()
        own_files = {
            PartOfRow.VALIDATION: split.validation_paths,
            PartOfRow.TEST: split.test_paths,
        }
        if split.column:
            why = (
                f"no row that can be used has {name!r} in column {split.column!r}; mark rows as "
                "such, or divide the table in another way than by split.column"
            )
        elif own_files.get(part):
            why = f"the files of split.{name}_paths have no row that can be used; name others"
        elif split.group_column:
            why = (
                f"none of the values of column {split.group_column!r} falls into it; give rows of "
                "more values, or change split.seed or the fractions of split"
            )
        else:
            why = "give more rows, or change the fractions of split"
        return DataError(f"the split leaves no rows for the {name} part; {why}")
