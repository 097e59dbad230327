"""What every measure is: something that looks at outputs and targets, some rows at a time."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Outputs = npt.NDArray[np.float64]
Targets = npt.NDArray[Any]
ALONE: dict[str, Any] = {"sync_on_compute": False}
"""For torchmetrics: one process of those that train together evaluates, so none waits for it."""


class Measure(Protocol):
    """Something that is measured of a part of the data."""

    def add(self, outputs: Outputs, targets: Targets) -> None:
        """Looks at some rows.

        Args:
            outputs: Logits or values, [B, outputs].
            targets: Class numbers, int64 [B], or values, [B, outputs].
        """


class Figures(Measure, Protocol):
    """A measure that gives figures by name."""

    def values(self) -> dict[str, float]:
        """Returns the figures of all rows that were added."""
