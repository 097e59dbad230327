"""What a job's events tell: curves, phases and the end of the log.

Events come in their order, and each is looked at once and forgotten.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from modelrail.trainer.v1 import trainer_pb2 as pb

LOG_LINES = 200
SPLITS_OF_CURVES = ("train", "validation")
HIGHER_IS_BETTER = frozenset(
    {
        *("accuracy", "precision", "recall", "f1", "r2", "roc_auc", "top5_accuracy"),
        *("class1_precision", "class1_recall", "class1_f1"),
    }
)


@dataclass(slots=True)
class Phase:
    """A state that the job was in.

    Attributes:
        attempt: Number of the process, from 1; 0 before the first.
        state: The state.
        start: When it began.
        end: When it ended; None: the job is still in it.
    """

    attempt: int
    state: pb.TrainingJob.State
    start: datetime
    end: datetime | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it goes on."""
        return None if self.end is None else (self.end - self.start).total_seconds()


@dataclass(slots=True)
class Curve:
    """A figure over the training.

    Attributes:
        split: Part of the data.
        name: Of the figure.
        by_step: Its values by optimiser step; what was trained a second time counts once.
        by_epoch: Those after an epoch, by the epoch's number.
    """

    split: str
    name: str
    by_step: dict[int, float] = field(default_factory=dict)
    by_epoch: dict[int, float] = field(default_factory=dict)

    def best_epoch(self) -> int | None:
        """Returns the first epoch that none was better than; None before an epoch has ended."""
        if not self.by_epoch:
            return None
        sign = -1 if self.name in HIGHER_IS_BETTER else 1
        return min(self.by_epoch, key=lambda epoch: (sign * self.by_epoch[epoch], epoch))


class History:
    """Gathers the events of one job.

    Attributes:
        phases: In their order.
        curves: By part and figure, of `SPLITS_OF_CURVES` alone.
        log: The last lines.
        progress: The last that was told; None before.
        reported: When it was; None before.
        attempt: Number of the process that the last event tells of.
        sequence: Of the last event; 0 before the first.
        steps_per_epoch: Steps that an epoch has; 0 before it is known.
    """

    def __init__(self, *, log_lines: int = LOG_LINES) -> None:
        self.phases: list[Phase] = []
        self.curves: dict[tuple[str, str], Curve] = {}
        self.log: deque[tuple[datetime, str]] = deque(maxlen=log_lines)
        self.progress: pb.Progress | None = None
        self.reported: datetime | None = None
        self.attempt = 0
        self.sequence = 0
        self.steps_per_epoch = 0.0

    def add(self, event: pb.TrainingJobEvent) -> None:
        """Takes the next event."""
        self.sequence = event.sequence
        time = event.create_time.ToDatetime(UTC)
        match event.WhichOneof("kind"):
            case "state_change":
                self._changed(event.state_change.new_state, time)
            case "metric_report":
                self.reported = time
                self._reported(event.metric_report)
            case "log_line":
                self.log.append((time, event.log_line.text))
            case _:
                pass

    def _changed(self, state: pb.TrainingJob.State, time: datetime) -> None:
        if self.phases:
            self.phases[-1].end = time
        if state == pb.TrainingJob.STATE_PREPARING:
            self.attempt += 1
            self.progress = None
        self.phases.append(Phase(self.attempt, state, time))

    def _reported(self, report: pb.MetricReport) -> None:
        self.progress = report.progress
        if report.progress.steps and report.progress.epochs:
            self.steps_per_epoch = report.progress.steps / report.progress.epochs
        for metric in report.metrics:
            if not metric.epoch:
                continue  # a final figure
            if metric.split not in SPLITS_OF_CURVES:
                continue
            key = (metric.split, metric.name)
            curve = self.curves.setdefault(key, Curve(*key))
            ended = metric.epoch <= report.progress.epoch
            # Trainers before this one told no step.
            curve.by_step[metric.step or report.progress.step] = metric.value
            if ended:
                curve.by_epoch[metric.epoch] = metric.value
                # Trainers before this one told no steps in all.
                self.steps_per_epoch = report.progress.step / metric.epoch
