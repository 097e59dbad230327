"""The tables of the report: final figures, the confusion matrix, and where the time went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelrail.report.history import Phase
from modelrail.report.scale import shown
from modelrail.trainer.v1 import trainer_pb2 as pb

_SPLITS = ("train", "validation", "test")
_RUNTIMES = ("pytorch", "onnxruntime")
COUNTS_UP_TO = 25
"""Classes up to which the cells of a matrix have room for their counts."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The final figures: a row for each, a column for each part and runtime that has any."""

    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[str]]]


def final_figures(metrics: Sequence[pb.Metric]) -> Figures:
    """Returns the table of final figures."""
    values = {(m.split, m.runtime, m.name): m.value for m in metrics}
    present = {(split, runtime) for split, runtime, _ in values}
    columns = [(s, r) for s in _SPLITS for r in _RUNTIMES if (s, r) in present]
    rows = [
        (
            name,
            [
                "-" if (value := values.get((*column, name))) is None else shown(value)
                for column in columns
            ],
        )
        for name in dict.fromkeys(metric.name for metric in metrics)
    ]
    return Figures(columns, rows)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a confusion matrix.

    Attributes:
        count: Rows.
        share: Fraction of the rows of the true class, in [0, 1].
        title: Both in words.
    """

    count: int
    share: float
    title: str


def confusion(evaluation: pb.Evaluation) -> Iterator[tuple[str, list[Cell]]]:
    """Yields the name and the cells of each true class."""
    labels = list(evaluation.labels)
    for row, label in enumerate(labels):
        counts = evaluation.confusion[row * len(labels) : (row + 1) * len(labels)]
        total = sum(counts)
        yield (
            label,
            [
                Cell(
                    count,
                    count / total if total else 0.0,
                    f"{label} taken for {labels[column]}: {count} of {total}",
                )
                for column, count in enumerate(counts)
            ],
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """One phase, with what fraction of the whole it took."""

    attempt: str
    state: str
    start: str
    seconds: str
    share: float


def timings(phases: Sequence[Phase]) -> list[Timing]:
    """Returns the phases that took time; the last state of a job that ended takes none."""
    ended = [phase for phase in phases if phase.seconds is not None]
    total = sum(phase.seconds or 0.0 for phase in ended) or 1.0
    return [
        Timing(
            str(phase.attempt) if phase.attempt else "-",
            pb.TrainingJob.State.Name(phase.state).removeprefix("STATE_").lower(),
            f"{phase.start:%Y-%m-%d %H:%M:%S}",
            duration(phase.seconds or 0.0),
            (phase.seconds or 0.0) / total,
        )
        for phase in ended
    ]


def duration(seconds: float) -> str:
    """Returns a time for people: `0.42 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
