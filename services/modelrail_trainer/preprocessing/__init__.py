"""Steps between rows of numbers and the network.

To add one: its description here, its name in `STEPS`, its module in `modules.py`, and in
`trainer.proto` a message of the description's name and fields. Only `modules.py` imports torch, and
`fit` imports that: the service, which validates, starts without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Standardize:
    """Subtract the training rows' mean and divide by their standard deviation, for each feature."""

    def fit(self, rows: Tensor) -> nn.Module:
        """Returns the step, fitted on training rows [N, *row_shape]."""
        from modelrail_trainer.preprocessing import modules

        return modules.Standardize(rows)


@dataclass(frozen=True, slots=True)
class MinMaxScale:
    """Map the training rows' smallest and largest value, over all features, to 0 and 1."""

    def fit(self, rows: Tensor) -> nn.Module:
        """Returns the step, fitted on training rows [N, *row_shape]."""
        from modelrail_trainer.preprocessing import modules

        return modules.MinMaxScale(rows)


Step = Standardize | MinMaxScale

STEPS: Mapping[str, type[Step]] = {"standardize": Standardize, "min_max_scale": MinMaxScale}
"""By their names in a specification."""
