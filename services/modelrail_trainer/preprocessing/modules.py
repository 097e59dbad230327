"""Steps between the raw input and the network. They are modules, so they are exported with it.

What a step needs to know is fitted on the training rows only: anything taken from validation or
test rows would make their metrics look better than they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modelrail_trainer.preprocessing import Step
from modelrail_trainer.rounding import vary


class Standardize(nn.Module):
    """(x - mean) / standard deviation, for each feature; a constant one is only centred.

    Args:
        rows: Training rows, [N, *row_shape].
    """

    mean: Tensor
    stddev: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        stddev = rows.std(dim=0, correction=0)  # [*row_shape]
        self.register_buffer("mean", rows.mean(dim=0))  # [*row_shape]
        varies = torch.from_numpy(vary(rows.amin(dim=0).numpy(), rows.amax(dim=0).numpy()))
        self.register_buffer("stddev", torch.where(varies, stddev, torch.ones_like(stddev)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, *row_shape] to the same shape."""
        standardized: Tensor = (x - self.mean) / self.stddev
        return standardized


class MinMaxScale(nn.Module):
    """(x - smallest) / (largest - smallest) over all features; constant rows are only shifted.

    Args:
        rows: Training rows, [N, *row_shape].
    """

    minimum: Tensor
    width: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        width = rows.max() - rows.min()  # []
        self.register_buffer("minimum", rows.min())  # []
        self.register_buffer("width", torch.where(width > 0, width, torch.ones_like(width)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, *row_shape] to the same shape."""
        scaled: Tensor = (x - self.minimum) / self.width
        return scaled


def fit_steps(steps: Sequence[Step | None], rows: Tensor) -> nn.Sequential:
    """Fits each step on what the steps before it make of the training rows, [N, *row_shape].

    Raises:
        ValueError: A step is none.
    """
    fitted: list[nn.Module] = []
    for step in steps:
        if step is None:
            raise ValueError("the specification has a step that is none")
        module = step.fit(rows)
        fitted.append(module)
        rows = module(rows)
    return nn.Sequential(*fitted)
