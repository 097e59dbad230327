"""Which charts a job has: its curves, its calibration, its residuals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from modelrail.report import chart, scale
from modelrail.report.history import SPLITS_OF_CURVES, Curve, History
from modelrail.trainer.v1 import trainer_pb2 as pb

_AXES = {
    "mse": "mean squared error",
    "rmse": "root of the mean squared error",
    "mae": "mean absolute error",
    "r2": "R²",
    "roc_auc": "area under the ROC curve",
    "f1": "F1, mean over classes",
    "precision": "precision, mean over classes",
    "recall": "recall, mean over classes",
    "top5_accuracy": "accuracy among the first five",
    "class1_precision": "precision of class 1",
    "class1_recall": "recall of class 1",
    "class1_f1": "F1 of class 1",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart and what stands above it."""

    title: str
    svg: Markup


def curves(history: History, spec: pb.TrainingJobSpec) -> Iterator[Picture]:
    """Yields a chart for the loss and for each figure of the validation rows."""
    metric = spec.selection.metric or "loss"
    chosen = history.curves.get(("validation", metric))
    best = None if chosen is None else chosen.best_epoch()
    names = list(dict.fromkeys(name for _, name in history.curves))
    loss = history.curves.get(("validation", "loss"))
    for name in sorted(names, key=lambda name: name != "loss"):
        found = [
            curve
            for split in SPLITS_OF_CURVES
            if (curve := history.curves.get((split, name))) is not None
        ]
        # The loss of a regression is its mean squared error.
        is_loss_again = name == "mse" and loss is not None and loss.by_step == found[-1].by_step
        if not is_loss_again or metric == "mse":
            yield Picture(_AXES.get(name, name), _curve_chart(name, found, history, best))


def _curve_chart(name: str, found: list[Curve], history: History, best: int | None) -> Markup:
    per_epoch = history.steps_per_epoch
    unit = per_epoch or 1.0
    lines = [
        chart.Line(
            curve.split,
            [(step / unit, value) for step, value in sorted(curve.by_step.items())],
            curve.split,
        )
        for curve in found
    ]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    frame = chart.Frame(
        title=f"{name} over the training",
        x=scale.tight(min(0.0, *xs) if len(xs) > 1 else 0.0, max(xs)),
        y=scale.of_curve(ys),
        x_label="epoch" if per_epoch else "step",
        y_label=_AXES.get(name, name),
    )
    values = found[-1].by_epoch if found[-1].split == "validation" else {}
    marked = None if best is None or best not in values else (float(best), values[best])
    return chart.line_chart(frame, lines, best=marked)


def reliability(evaluation: pb.Evaluation) -> Markup:
    """Draws how often the most likely class is right, by its probability."""
    unit = scale.Scale(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    frame = chart.Frame("reliability", unit, unit, "probability of the answer", "accuracy")
    filled = [one for one in evaluation.reliability if one.rows]
    return chart.reliability_chart(
        frame,
        [(one.lower, one.upper, one.accuracy) for one in filled],
        [(one.mean_confidence, one.accuracy) for one in filled],
    )


def residuals(evaluation: pb.Evaluation) -> Markup:
    """Draws how often the prediction was off by how much."""
    bins = evaluation.residuals
    frame = chart.Frame(
        "residuals",
        scale.linear([bins[0].lower, bins[-1].upper]),
        scale.linear([0.0, *(float(one.count) for one in bins)], whole=True),
        "prediction minus true value",
        "rows",
    )
    return chart.bar_chart(frame, [(one.lower, one.upper, float(one.count)) for one in bins])


def predictions(evaluation: pb.Evaluation) -> Markup:
    """Draws predictions over true values."""
    points = [(one.target, one.predicted) for one in evaluation.predictions]
    both = scale.linear([value for point in points for value in point])
    frame = chart.Frame("predictions", both, both, "true value", "prediction")
    return chart.scatter_chart(frame, points)
