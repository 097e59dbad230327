"""What the report shows of the test rows: matrix, calibration, residuals, and a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from modelrail_trainer.handover.evaluation import (
    MAX_MATRIX_CLASSES,
    MAX_PREDICTIONS,
    Evaluation,
    HistogramBin,
    Prediction,
    ReliabilityBin,
)
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.spec import Task
from modelrail_trainer.worker.evaluation.measure import Measure, Outputs, Targets
from modelrail_trainer.worker.evaluation.real_counts import RealCounts
from modelrail_trainer.worker.part import Part
from modelrail_trainer.worker.training_data import TrainingData

RELIABILITY_BINS = 10
_RESIDUAL_BINS = 30
_ROWS_AT_ONCE = 65_536


class Detail(Measure, Protocol):
    """A measure that gives an evaluation."""

    def evaluation(self) -> Evaluation:
        """Returns the evaluation of all rows that were added."""


def detail_of(data: TrainingData) -> Detail:
    """Returns what measures the test part of a data set."""
    if data.task is Task.CLASSIFICATION:
        return ClassDetail(data.labels, most_frequent_class(data.train, len(data.labels)))
    return ValueDetail(len(data.test), mean_target(data.train))


def most_frequent_class(train: Part, classes: int) -> int:
    """Returns the number of the class that most rows have; of equal ones the first."""
    return int(class_counts(train, classes).argmax())


def class_counts(part: Part, classes: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Returns how many rows each class has, int64 [classes]."""
    counts = np.zeros(classes, np.int64)
    for start in range(0, len(part), _ROWS_AT_ONCE):
        chunk = part.targets[start : start + _ROWS_AT_ONCE].astype(np.int64)
        counts += np.bincount(chunk, minlength=classes)
    return counts


def mean_target(train: Part) -> float:
    """Returns the mean of the values that are to be predicted."""
    starts = range(0, len(train), _ROWS_AT_ONCE)
    total = sum(
        train.targets[start : start + _ROWS_AT_ONCE].sum(dtype=np.float64) for start in starts
    )
    return float(total) / train.targets.size


class ClassDetail:
    """The confusion matrix, and how far probabilities can be believed (Guo et al., 2017).

    Args:
        labels: Names of the classes.
        usual: Number of the class that is answered by who learns nothing.
    """

    def __init__(self, labels: Sequence[str], usual: int) -> None:
        self._labels = tuple(labels)
        self._usual = usual
        self._rows = self._usual_rows = 0
        shown = len(labels) <= MAX_MATRIX_CLASSES
        self._confusion = np.zeros(len(labels) ** 2 if shown else 0, np.int64)
        self._counts = np.zeros(RELIABILITY_BINS, np.int64)
        self._confidence = np.zeros(RELIABILITY_BINS)
        self._hits = np.zeros(RELIABILITY_BINS, np.int64)

    def add(self, outputs: Outputs, targets: Targets) -> None:
        """Looks at the logits [B, C] and the class numbers [B] of some rows."""
        classes = targets.astype(np.int64)
        predicted = outputs.argmax(axis=1)  # [B]
        self._rows += len(classes)
        self._usual_rows += int((classes == self._usual).sum())
        if len(self._confusion):
            places = classes * len(self._labels) + predicted
            self._confusion += np.bincount(places, minlength=len(self._confusion))
        exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))  # [B, C]
        # The highest score is 0 after the shift, and its exponential 1.
        confidence = np.nan_to_num(1 / exponentials.sum(axis=1))  # [B]
        bins = np.minimum((confidence * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
        self._counts += np.bincount(bins, minlength=RELIABILITY_BINS)
        self._confidence += np.bincount(bins, confidence, minlength=RELIABILITY_BINS)
        self._hits += np.bincount(bins[predicted == classes], minlength=RELIABILITY_BINS)

    def evaluation(self) -> Evaluation:
        """Returns the evaluation of all rows that were added."""
        shown = len(self._confusion) > 0
        rows = np.maximum(self._counts, 1)
        confidence, accuracy = self._confidence / rows, self._hits / rows
        return Evaluation(
            split="test",
            rows=self._rows,
            labels=self._labels if shown else (),
            confusion=tuple(self._confusion.tolist()),
            confusion_note=""
            if shown
            else f"{len(self._labels)} classes are too many for a matrix, which has at most "
            f"{MAX_MATRIX_CLASSES}",
            reliability=tuple(
                ReliabilityBin(
                    lower=place / RELIABILITY_BINS,
                    upper=(place + 1) / RELIABILITY_BINS,
                    rows=int(self._counts[place]),
                    mean_confidence=float(confidence[place]),
                    accuracy=float(accuracy[place]),
                )
                for place in range(RELIABILITY_BINS)
            ),
            expected_calibration_error=float(
                (np.abs(confidence - accuracy) * self._counts).sum() / self._rows
            ),
            baseline=_baseline("accuracy", self._usual_rows / self._rows),
        )


class ValueDetail:
    """The distribution of the residuals, and some rows.

    Args:
        rows: How many rows there will be.
        usual: The value that is answered by who learns nothing.
    """

    def __init__(self, rows: int, usual: float) -> None:
        self._stride = -(-rows // MAX_PREDICTIONS)
        self._usual = usual
        self._rows = 0
        self._values = 0
        self._usual_error = 0.0
        self._residuals = RealCounts()
        self._predictions: list[Prediction] = []

    def add(self, outputs: Outputs, targets: Targets) -> None:
        """Looks at the predictions and the true values of some rows, both [B, outputs]."""
        wanted = targets.astype(np.float64)
        self._residuals.add((outputs - wanted).reshape(-1))
        self._usual_error += float(np.square(wanted - self._usual).sum())
        for row in range(-self._rows % self._stride, len(wanted), self._stride):
            # One output; of several the first.
            self._predictions.append(
                Prediction(target=float(wanted[row, 0]), predicted=float(outputs[row, 0]))
            )
        self._rows += len(wanted)
        self._values += wanted.size

    def evaluation(self) -> Evaluation:
        """Returns the evaluation of all rows that were added."""
        residuals, times = self._residuals.numbers()
        counts, edges = np.histogram(residuals, _RESIDUAL_BINS, weights=times)
        return Evaluation(
            split="test",
            rows=self._rows,
            residuals=tuple(
                HistogramBin(lower=float(lower), upper=float(upper), count=int(count))
                for lower, upper, count in zip(edges, edges[1:], counts, strict=False)
            ),
            predictions=tuple(self._predictions),
            baseline=_baseline("mse", self._usual_error / self._values),
        )


def _baseline(name: str, value: float) -> Metric:
    return Metric(name=name, value=value, split="test", epoch=0, runtime="baseline")
