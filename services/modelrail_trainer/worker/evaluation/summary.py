"""What was read, for the report."""

from __future__ import annotations

from modelrail_trainer.encodings import Fitted
from modelrail_trainer.handover.data_summary import (
    MAX_CATEGORIES,
    MAX_LABELS,
    ColumnSummary,
    DataSummary,
    LabelCount,
    PartSummary,
    UnusableRows,
    short,
)
from modelrail_trainer.worker.evaluation.detail import class_counts
from modelrail_trainer.worker.table.export import RawTable
from modelrail_trainer.worker.training_data import TrainingData


def summary_of(data: TrainingData) -> DataSummary:
    """Returns the summary of a divided data set."""
    table = data.raw.table if isinstance(data.raw, RawTable) else None
    encodings = () if table is None else table.encodings
    return DataSummary(
        parts=tuple(
            PartSummary(name, len(part))
            for name, part in (
                ("train", data.train),
                ("validation", data.validation),
                ("test", data.test),
            )
        ),
        labels=_labels(data) if data.labels else (),
        classes=len(data.labels),
        input_shape=tuple(data.train.inputs.shape[1:]),
        columns=tuple(map(_column, encodings)),
        column_count=len(encodings),
        unusable=()
        if table is None
        else tuple(UnusableRows(reason, rows) for reason, rows in table.unusable.items()),
    ).shortened()


def _labels(data: TrainingData) -> tuple[LabelCount, ...]:
    counts = class_counts(data.train, len(data.labels))
    # A stable sort: of equally frequent classes the first in order stays first.
    ranked = sorted(range(len(counts)), key=lambda place: -counts[place])[:MAX_LABELS]
    return tuple(LabelCount(short(data.labels[place]), int(counts[place])) for place in ranked)


def _column(encoding: Fitted) -> ColumnSummary:
    summary = encoding.summary()
    return ColumnSummary(
        name=short(encoding.name),
        encoding=summary.kind,
        features=encoding.size,
        figures=dict(summary.figures),
        categories=tuple(map(short, summary.categories[:MAX_CATEGORIES])),
    )
