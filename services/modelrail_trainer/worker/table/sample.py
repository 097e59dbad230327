"""Some rows of a table in place of all, such that no part of it is missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from modelrail_trainer.worker.table.column import Numbers
from modelrail_trainer.worker.table.division import Division
from modelrail_trainer.worker.table.reader import Batch, TableReader, every


class PartSample:
    """At most so many rows, evenly, of each part that a column or a file of its own tells.

    Where a hash divides the rows they are chosen from all of them together.

    Args:
        reader: The rows.
        division: Tells the parts.
        most: Rows of a part.

    Raises:
        DataError: A file cannot be read.
    """

    def __init__(self, reader: TableReader, division: Division, most: int) -> None:
        self._division = division
        self.columns: Sequence[str] = division.strata_columns
        rows: Counter[int] = Counter()
        if self.columns:
            for batch in reader.batches(self.columns):
                rows.update(division.strata(batch).tolist())
        else:
            for part, count in zip(division.parts_of_files, reader.rows_of_files(), strict=True):
                rows[part] += count
        self._strides = {part: -(-count // most) or 1 for part, count in rows.items()}

    @property
    def is_partial(self) -> bool:
        """Whether some rows are left out."""
        return any(stride > 1 for stride in self._strides.values())

    def chooser(self) -> Callable[[Batch], Numbers]:
        """Returns what gives, batch after batch, the places of the chosen rows in each."""
        before: Counter[int] = Counter()

        def choose(batch: Batch) -> Numbers:
            strata = self._division.strata(batch)  # [rows]
            chosen = []
            for part in np.unique(strata).tolist():
                places = np.flatnonzero(strata == part)
                chosen.append(places[list(every(self._strides[part], before[part], len(places)))])
                before[part] += len(places)
            return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)

        return choose
