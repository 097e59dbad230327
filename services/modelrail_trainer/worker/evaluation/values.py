"""Figures of predicted numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from modelrail_trainer.worker.evaluation.measure import ALONE, Outputs, Targets


class ValueFigures:
    """Loss and mse (both the mean squared error), mae, rmse, and r2 where the targets vary."""

    def __init__(self) -> None:
        metrics = MetricCollection(
            {
                "mse": MeanSquaredError(**ALONE),
                "mae": MeanAbsoluteError(**ALONE),
                "r2": R2Score(**ALONE),
            },
            compute_groups=False,
        )
        self._metrics: MetricCollection = metrics.set_dtype(torch.float64)
        self._lowest, self._highest = math.inf, -math.inf

    def add(self, outputs: Outputs, targets: Targets) -> None:
        """Looks at the predictions and the true values of some rows, both [B, outputs]."""
        wanted = targets.astype(np.float64)
        self._lowest = min(self._lowest, float(wanted.min()))
        self._highest = max(self._highest, float(wanted.max()))
        self._metrics.update(
            torch.from_numpy(outputs.reshape(-1)), torch.from_numpy(wanted.reshape(-1))
        )

    def values(self) -> dict[str, float]:
        """Returns the figures."""
        metrics = dict(self._metrics.items())
        mse = float(metrics["mse"].compute())
        figures = {"loss": mse, "mse": mse, "mae": float(metrics["mae"].compute())}
        figures["rmse"] = math.sqrt(mse) if mse >= 0 else mse
        # Where the targets are all the same, there is nothing of them to explain.
        if self._lowest < self._highest:
            figures["r2"] = float(metrics["r2"].compute())
        return figures
