"""A job and its history as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from modelrail.names import TrainingJobName
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.isolation.layer import Layer
from modelrail_trainer.jobs.lease import Lease
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.spec import Publication

TRAINER = "trainer"
WORKER = "worker"


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job is where it is, for programs and for people."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training has come; `steps` are those in all, 0 when nobody knows."""

    epoch: int
    epochs: int
    step: int
    rows_per_second: float
    eta_seconds: float | None = None
    steps: int = 0


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """When and how a job is run, apart from what it does.

    Attributes:
        priority: Of the queued jobs that with the highest is next.
        max_run_duration: How long it may be carried out, all attempts together: its objects
            copied, its processes run; None for ever.
        expire_time: A job that has not started by then is not wanted any more.
        max_retries: How often it may run again after a failure of the kind that is retryable.
        processes: How many processes train together.
    """

    priority: int = 0
    max_run_duration: timedelta | None = None
    expire_time: datetime | None = None
    max_retries: int = 0
    processes: int = 1


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job is made from.

    Attributes:
        specification: The specification in its deterministic encoding; opaque here.
        publication: The part of it that the publisher needs.
        data_paths: The files that it reads, by the field of the request that names them.
        data_folders: The folders that it reads, likewise.
        entry_points: The functions of its owner that it calls, by the field that names them.
        policy: When and how it is run.
        parent: The job that it is a clone of.
    """

    specification: bytes
    publication: Publication
    data_paths: Mapping[str, str] = field(default_factory=dict)
    data_folders: Mapping[str, str] = field(default_factory=dict)
    entry_points: Mapping[str, str] = field(default_factory=dict)
    policy: RunPolicy = RunPolicy()
    parent: TrainingJobName | None = None


@dataclass(frozen=True, slots=True)
class OutputMark:
    """How far what the processes of a job print is stored.

    Attributes:
        offset: Bytes of the present attempt's output that are stored, or left out.
        spent_bytes: What the lines of all attempts take.
    """

    offset: int = 0
    spent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One training job.

    Attributes:
        attempt: How often the process was started.
        losses: How often it was lost together with its trainer, or with the trainer's machine,
            since it last got further than the checkpoint that it went on from.
        retries: How often it ran again after a failure.
        retries_by_reason: The same by the reason of the failure; of jobs of older trainers not all.
        run_seconds: How long it was carried out, as far as was noted.
        earlier_run_seconds: How long it was before its present process.
        process: The executor's handle of the execution; empty where there is none.
        journal_offset: Bytes of the process's journal that are stored as events, or left out.
        journal_bytes: What the log lines and figures of all attempts' journals take.
        output: How far what it prints is stored.
        committing: The registry was asked to make the version: too late to cancel.
        last_sequence: Number of the newest event.
        isolation: The layers around the process, as it found them.
        trainer: Id of the trainer that holds it; empty while nobody does.
        lease_epoch: How often it was taken.
        lease_expires: When the others may take it, unless the lease is renewed; None where nobody
            else can.
        evaluation: How the finished model does, as the JSON of `Evaluation`; empty before.
        data_summary: What the process read, as the JSON of `DataSummary`; empty before.
    """

    name: TrainingJobName
    uid: str
    specification: bytes
    publication: Publication
    policy: RunPolicy
    parent: TrainingJobName | None
    state: JobState
    error: JobError | None
    progress: Progress | None
    metrics: tuple[Metric, ...]
    model_version: str
    attempt: int
    losses: int
    retries: int
    retries_by_reason: Mapping[Reason, int]
    run_seconds: float
    earlier_run_seconds: float
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    process: str
    journal_offset: int
    journal_bytes: int
    output: OutputMark
    committing: bool
    last_sequence: int
    isolation: tuple[Layer, ...]
    trainer: str
    lease_epoch: int
    lease_expires: datetime | None
    evaluation: str
    data_summary: str

    @property
    def said(self) -> JobError | None:
        """What the process of the present attempt said went wrong.

        Before there is one, an error tells what the job waits for, and nothing about its end.
        """
        return self.error if self.process else None

    @property
    def lease(self) -> Lease:
        """What a write names that counts only while nobody takes the job."""
        return Lease(self.name, self.lease_epoch)


@dataclass(frozen=True, slots=True)
class StateChange:
    """The job changed its state.

    Attributes:
        old: The state before; None for the first event.
        new: The state from now on.
        error: Why, when there is something to say.
        actor: Who brought it about: the name of a client, `TRAINER` or `WORKER`.
    """

    old: JobState | None
    new: JobState
    error: JobError | None = None
    actor: str = TRAINER


@dataclass(frozen=True, slots=True)
class MetricReport:
    """An epoch ended or goes on, or the job was evaluated."""

    progress: Progress | None
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True)
class LogLine:
    """The job or its trainer said something, or a process of the job printed a line."""

    text: str


Happening = StateChange | MetricReport | LogLine


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One stored event, numbered from 1 without gaps within its job."""

    sequence: int
    create_time: datetime
    happening: Happening


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first; `next_number` is None on the last page."""

    jobs: Sequence[Job]
    next_number: int | None
