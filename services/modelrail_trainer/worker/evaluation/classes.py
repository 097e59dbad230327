"""Figures of classes.

The means over the classes are torchmetrics'. Counting is done here: in torch's deterministic mode
torchmetrics counts with a table of rows · classes², which takes gigabytes from a thousand classes
on; here it takes three counts a class.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassStatScores,
)

from modelrail_trainer.worker.evaluation.measure import ALONE, Outputs, Targets
from modelrail_trainer.worker.evaluation.real_counts import RealCounts

TOP = 5
_TOP_BEYOND_CLASSES = 10


class _Counted(MulticlassStatScores):
    """Counts hits and misses by class, in the states that torchmetrics' classes compute from."""

    def update(self, predicted: Tensor, classes: Tensor) -> None:
        """Counts some rows; both arguments are class numbers, int64 [B]."""
        hit = predicted == classes  # [B]
        tp, fp, fn = (
            torch.bincount(chosen, minlength=self.num_classes or 0)  # [C]
            for chosen in (classes[hit], predicted[~hit], classes[~hit])
        )
        self._update_state(tp, fp, len(classes) - tp - fp - fn, fn)


class _Precision(_Counted, MulticlassPrecision):
    pass


class _Recall(_Counted, MulticlassRecall):
    pass


class _F1(_Counted, MulticlassF1Score):
    pass


class ClassFigures:
    """Loss, accuracy, and precision, recall and F1 as means over the classes.

    The loss is the plain cross-entropy. A class that no row has and that is never answered counts
    in no mean. Of two classes also the figures of class 1 and the area under the ROC curve, of
    more than ten also how often the class is among the five highest.

    Args:
        classes: How many there are.
    """

    def __init__(self, classes: int) -> None:
        self._rows = self._hits = self._top_hits = 0
        self._loss = 0.0
        self._classes = classes
        kinds = {"precision": _Precision, "recall": _Recall, "f1": _F1}
        metrics = {
            name: kind(num_classes=classes, average="macro", validate_args=False, **ALONE)
            for name, kind in kinds.items()
        }
        if classes == 2:
            metrics |= {
                f"class1_{name}": kind(num_classes=2, average="none", validate_args=False, **ALONE)
                for name, kind in kinds.items()
            }
        # One of them counts for all.
        self._metrics = MetricCollection(metrics, compute_groups=[list(metrics)])
        self._roc = RocArea() if classes == 2 else None

    def add(self, outputs: Outputs, targets: Targets) -> None:
        """Looks at the logits [B, C] and the class numbers [B] of some rows."""
        classes = targets.astype(np.int64)
        shifted = outputs - outputs.max(axis=1, keepdims=True)  # [B, C]
        chosen = shifted[np.arange(len(classes)), classes]  # [B]
        self._loss += float((np.log(np.exp(shifted).sum(axis=1)) - chosen).sum())
        predicted = outputs.argmax(axis=1)  # [B]
        self._rows += len(classes)
        self._hits += int((predicted == classes).sum())
        if self._classes > _TOP_BEYOND_CLASSES:
            self._top_hits += int(((shifted > chosen[:, None]).sum(axis=1) < TOP).sum())
        self._metrics.update(torch.from_numpy(predicted), torch.from_numpy(classes))
        if self._roc is not None:
            self._roc.add(outputs[:, 1] - outputs[:, 0], classes == 1)

    def values(self) -> dict[str, float]:
        """Returns the figures; `roc_auc` only where both classes have rows."""
        figures = {"loss": self._loss / self._rows, "accuracy": self._hits / self._rows}
        if self._classes > _TOP_BEYOND_CLASSES:
            figures["top5_accuracy"] = self._top_hits / self._rows
        for name, value in self._metrics.compute().items():
            figures[name] = float(value if value.ndim == 0 else value[1])
        area = None if self._roc is None else self._roc.value()
        return figures if area is None else figures | {"roc_auc": area}


class RocArea:
    """The area under the ROC curve: how likely a row of class 1 scores higher than another.

    By Mann and Whitney's count of the pairs, over bins; a tie is half (Hanley and McNeil, 1982).
    """

    def __init__(self) -> None:
        self._scores = (RealCounts(), RealCounts())

    def add(self, scores: Outputs, positive: Targets) -> None:
        """Looks at scores [B] and whether each row is of class 1, bool [B]."""
        negatives, positives = self._scores
        negatives.add(scores[~positive])
        positives.add(scores[positive])

    def value(self) -> float | None:
        """Returns the area, in [0, 1]; None when a class has no rows."""
        negative, positive = (counts.counts.astype(np.float64) for counts in self._scores)
        pairs = negative.sum() * positive.sum()
        if not pairs:
            return None
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / pairs)
