"""How a finished model does on rows that training never saw, beyond single figures.

The fields are those of the message `Evaluation` in `trainer.proto`, so the JSON of the one is the
JSON of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelrail_trainer.handover.journal import Metric, cut, metric_from_record
from modelrail_trainer.handover.record import (
    Record,
    RecordError,
    count,
    items,
    nested,
    real,
    text,
    values,
)

MAX_MATRIX_CLASSES = 100
MAX_PREDICTIONS = 500
_MAX_BINS = 1_000
_MAX_NAME_CHARACTERS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """The rows whose highest probability lies in [lower, upper)."""

    lower: float
    upper: float
    rows: int
    mean_confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramBin:
    """The values in [lower, upper)."""

    lower: float
    upper: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row of a regression, in the unit of the target."""

    target: float
    predicted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a model does on one part of the data.

    Attributes:
        split: Which part.
        rows: Its rows.
        labels: Names of the classes, where there is a matrix.
        confusion: Rows by true class and predicted class, [classes · classes], true class first.
        confusion_note: Why there is no matrix of classes; empty where there is one.
        reliability: Accuracy by probability; empty for regression.
        expected_calibration_error: Mean distance of the two, weighted by rows.
        residuals: Prediction minus target; empty for classes.
        predictions: Some rows; empty for classes.
        baseline: What somebody reaches who learns nothing.
    """

    split: str
    rows: int
    baseline: Metric
    labels: tuple[str, ...] = ()
    confusion: tuple[int, ...] = ()
    confusion_note: str = ""
    reliability: tuple[ReliabilityBin, ...] = ()
    expected_calibration_error: float = 0.0
    residuals: tuple[HistogramBin, ...] = ()
    predictions: tuple[Prediction, ...] = ()


def evaluation_from_record(record: Record) -> Evaluation:
    """Reads an evaluation that another process wrote.

    Raises:
        RecordError: A field is missing, has another type, or the matrix is not square.
    """
    labels = tuple(cut(label) for label in values(record, "labels", str))
    confusion = values(record, "confusion", int)
    if any(cell < 0 for cell in confusion):
        raise RecordError("confusion: expected counts")
    if len(confusion) != len(labels) ** 2 or len(labels) > MAX_MATRIX_CLASSES:
        raise RecordError(
            f"confusion: expected {len(labels)}² counts of at most {MAX_MATRIX_CLASSES} classes, "
            f"got {len(confusion)}"
        )
    return Evaluation(
        split=text(record, "split", most=_MAX_NAME_CHARACTERS),
        rows=count(record, "rows"),
        labels=labels,
        confusion=confusion,
        confusion_note=cut(text(record, "confusion_note")),
        reliability=items(record, "reliability", _reliability, most=_MAX_BINS),
        expected_calibration_error=real(record, "expected_calibration_error"),
        residuals=items(record, "residuals", _histogram_bin, most=_MAX_BINS),
        predictions=items(record, "predictions", _prediction)[:MAX_PREDICTIONS],
        baseline=metric_from_record(nested(record, "baseline")),
    )


def _reliability(record: Record) -> ReliabilityBin:
    return ReliabilityBin(
        lower=real(record, "lower"),
        upper=real(record, "upper"),
        rows=count(record, "rows"),
        mean_confidence=real(record, "mean_confidence"),
        accuracy=real(record, "accuracy"),
    )


def _histogram_bin(record: Record) -> HistogramBin:
    return HistogramBin(
        lower=real(record, "lower"), upper=real(record, "upper"), count=count(record, "count")
    )


def _prediction(record: Record) -> Prediction:
    return Prediction(target=real(record, "target"), predicted=real(record, "predicted"))
