"""Copies what a process tells and prints into the store, each line exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelrail_trainer.execution.processes.allowance import within_allowance
from modelrail_trainer.execution.processes.executor import LOG_NAME
from modelrail_trainer.execution.processes.output import read_output
from modelrail_trainer.handover.artifact import load_result
from modelrail_trainer.handover.evaluation import Evaluation
from modelrail_trainer.handover.journal import (
    JOURNAL_NAME,
    CheckpointEvent,
    DataEvent,
    FailedEvent,
    FinishedEvent,
    IsolationEvent,
    JournalEvent,
    LogEvent,
    Metric,
    MetricsEvent,
    PhaseEvent,
    StoppedEvent,
    read_events,
)
from modelrail_trainer.handover.last_word import load_last_word
from modelrail_trainer.isolation.layer import Layer
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import (
    Happening,
    Job,
    JobError,
    LogLine,
    MetricReport,
    Progress,
    StateChange,
)
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.threads import Threads


@dataclass(frozen=True, slots=True)
class Findings:
    """What a finished job measured: the final figures, and how the model does."""

    metrics: tuple[Metric, ...]
    evaluation: Evaluation | None


class Transcript:
    """The journal and the output of one attempt, and how much of them is stored.

    Args:
        book: Where events go, in one transaction with the position after them.
        job: The job as it was when its process started, or was adopted.
        directory: The job's directory.
        threads: For reading the file.
    """

    def __init__(self, book: JobBook, job: Job, directory: Path, threads: Threads) -> None:
        self._book = book
        self._job = job
        self._path = directory / JOURNAL_NAME
        self._output_path = directory / LOG_NAME
        self._threads = threads
        self._offset: int | None = job.journal_offset
        self._told_bytes = job.journal_bytes
        self._output = job.output
        self.complete = False
        """Whether the process said its last word."""
        self.stopped = False
        """Whether that was that it was asked to stop, and a checkpoint holds what it did."""

    async def catch_up(self, *, ended: bool = False) -> None:
        """Stores what is in the journal by now, as much as a job's history keeps, and the output.

        Of much that is printed a part is stored at once, and the next part by the next call. After
        an error that passes it can be called again, and stores nothing twice.

        Args:
            ended: Whether the process is gone: then all of its output is stored.

        Raises:
            ResourceExhausted, Unavailable, DataLoss: The database has a bad moment.
            OSError: The journal cannot be read.
            JournalError: The journal, or a last word, holds something else than it should.
            IllegalTransition: The process reported its phases in an impossible order.
            StaleLease: The job is somebody else's now.
        """
        await self._copy(ended=ended)
        # A process that is stopped says so, whatever it was stopped for.
        if ended and (self.stopped or not self.complete):
            await self._take_last_word()

    async def _take_last_word(self) -> None:
        """Stores why a process beside the first one gave up, where the first does not know."""
        failed = await self._threads.run(load_last_word, self._path.parent)
        if failed is None:
            return
        job = await self._book.read(self._book.store.get, self._job.name)
        if job.said is None:
            await self._book.change(
                self._book.store.record,
                self._job.lease,
                (),
                journal_offset=job.journal_offset,
                failure=_failure(failed),
            )

    async def _copy(self, *, ended: bool) -> None:
        has_looked = False
        while True:
            if self._offset is None:
                job = await self._book.read(self._book.store.get, self._job.name)
                self._offset, self._output = job.journal_offset, job.output
                self._told_bytes = job.journal_bytes
            events, offset = await self._threads.run(read_events, self._path, self._offset)
            lines: list[str] = []
            output = self._output
            # Whoever prints without end must not keep this from ever coming to an end.
            if ended or not has_looked:
                has_looked = True
                lines, output = await self._threads.run(
                    read_output, self._output_path, self._output, ended=ended
                )
            if (offset, output) == (self._offset, self._output):
                return
            told = [said for event in events if (said := _happening(event)) is not None]
            # Of a flood there are ten thousands at once.
            kept, told_bytes = await self._threads.run(within_allowance, told, self._told_bytes)
            start = self._offset
            # Said is said, whether or not it can be stored now.
            self.stopped |= any(isinstance(e, StoppedEvent) for e in events)
            self.complete |= self.stopped or any(
                isinstance(e, FailedEvent | FinishedEvent) for e in events
            )
            # Whether a commit that fails took place is known to the database alone.
            self._offset = None
            await self._book.change(
                self._book.store.record,
                self._job.lease,
                [*map(LogLine, lines), *kept],
                journal_offset=offset,
                journal_bytes=told_bytes,
                progress=_progress(told),
                output=output,
                failure=next((_failure(e) for e in events if isinstance(e, FailedEvent)), None),
                isolation=_isolation(events) if start == 0 else (),
                data_summary=next((e.summary for e in events if isinstance(e, DataEvent)), None),
                got_further=any(_got_further(event) for event in events),
            )
            self._offset, self._told_bytes, self._output = offset, told_bytes, output


def _happening(event: JournalEvent) -> Happening | None:
    match event:
        case PhaseEvent(phase):
            return StateChange(None, JobState(phase.value.upper()))
        case MetricsEvent():
            progress = Progress(
                event.epoch,
                event.epochs,
                event.step,
                event.rows_per_second,
                event.eta_seconds,
                event.steps,
            )
            return MetricReport(progress, event.metrics)
        case LogEvent(text):
            return LogLine(text)
        case IsolationEvent() | DataEvent() | CheckpointEvent():
            return None
        case FailedEvent() | FinishedEvent() | StoppedEvent():
            return None


def _progress(told: Sequence[Happening]) -> Progress | None:
    """Returns how far the process said last that it is, whether or not that is kept."""
    return next((one.progress for one in reversed(told) if isinstance(one, MetricReport)), None)


def _isolation(events: Sequence[JournalEvent]) -> tuple[Layer, ...]:
    """Returns what the process said before it became the worker; what a worker says counts not."""
    first = events[0] if events else None
    return first.layers if isinstance(first, IsolationEvent) else ()


def _got_further(event: JournalEvent) -> bool:
    # What began anew comes only to where an earlier attempt has been, perhaps elsewhere.
    return isinstance(event, CheckpointEvent) and 0 < event.since < event.step


def _failure(event: FailedEvent) -> JobError:
    return JobError(Reason(event.reason.value), event.message)


def findings(directory: Path) -> Findings:
    """Returns what a finished job measured.

    Raises:
        ArtifactError: There is no result, or it is malformed.
    """
    result = load_result(directory)
    return Findings(result.metrics, result.evaluation)
