"""Rows of a table that cannot be used: counted and left out, or the end of the job."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from modelrail_trainer.failure import DataError
from modelrail_trainer.worker.table.reader import Batch


@dataclass(slots=True)
class Unusable:
    """Rows that cannot be used: how many for each reason, and the first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: tuple[int, str] | None = None

    def add(self, batch: Batch, rows: npt.NDArray[np.bool_], reason: str, detail: str = "") -> None:
        """Counts rows of a batch, [rows]; what `detail` adds holds of the first of them alone."""
        if rows.any():
            self.counts[reason] += int(rows.sum())
            told = f"{reason}; {detail}" if detail else reason
            found = int(batch.numbers[rows.argmax()]), told
            self.first = min(self.first or found, found)

    def check(self, *, skip: bool) -> None:
        """Says whether the job can go on.

        Raises:
            DataError: There are such rows, and they are not to be left out.
        """
        if self.first is not None and not skip:
            row, reason = self.first
            raise DataError(
                f"{self.counts.total()} rows cannot be used, the first of them row {row}, counted "
                f"from 0 over all files: {reason}; mend them, or set "
                "dataset.table.skip_unusable_rows"
            )
