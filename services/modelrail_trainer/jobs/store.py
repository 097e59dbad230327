"""Keeps jobs in the database. Every change is one transaction with the events that tell of it.

All methods block on the disk: `book.py` calls them from the service's own threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from modelrail.names import TrainingJobName
from modelrail_server.database import Database
from modelrail_server.errors import (
    FailedPrecondition,
    ResourceExhausted,
)
from modelrail_trainer.isolation.layer import Layer
from modelrail_trainer.jobs import schema
from modelrail_trainer.jobs.admission import digest_of, insert_job, known_job
from modelrail_trainer.jobs.change import JobChange
from modelrail_trainer.jobs.job import (
    TRAINER,
    WORKER,
    Happening,
    Job,
    JobError,
    LogLine,
    MetricReport,
    NewJob,
    ProcessIdentity,
    StateChange,
)
from modelrail_trainer.jobs.reading import JobReader
from modelrail_trainer.jobs.rows import (
    error_columns,
    isolation_text,
    metrics_text,
    process_columns,
    progress_columns,
    to_microseconds,
)
from modelrail_trainer.jobs.state import (
    IDLE,
    STOPPING,
    TERMINAL,
    WAITING,
    WITH_PROCESS,
    JobState,
    check_transition,
)
from modelrail_trainer.journal import Metric

# What a decision about room in the queue rests on, and on whether a request was seen before.
_ADMISSION_LOCK = 1


def _utc_now() -> datetime:
    return datetime.now(UTC)


class StaleAttempt(Exception):
    """The job was started again, or has ended, since the caller's attempt began."""


class JobStore(JobReader):
    """Jobs, their events and the requests that made them, in one database.

    Args:
        database: What `open_database` returned; `close` closes it.
        max_queued_jobs: Jobs that may wait for a place or for the registry at the same time.
        now: Clock, in UTC.
    """

    def __init__(
        self, database: Database, *, max_queued_jobs: int, now: Callable[[], datetime] = _utc_now
    ) -> None:
        super().__init__(database)
        self._max_queued_jobs = max_queued_jobs
        self._now = now

    # Changes that clients ask for

    def known(self, new: NewJob, *, request_id: str) -> Job | None:
        """Returns the job that an earlier request of this id made; None if there was none.

        Raises:
            AlreadyExists: The request id made another job.
        """
        with self._database.read() as connection:
            return known_job(connection, request_id, digest_of(new))

    def create(self, new: NewJob, *, request_id: str = "", actor: str = TRAINER) -> Job:
        """Queues a job; a request id that was seen before returns the first call's job.

        Args:
            new: The job.
            request_id: The client's id of this wish; empty for none.
            actor: Who asks.

        Raises:
            AlreadyExists: The request id made another job.
            ResourceExhausted: Too many jobs wait.
        """
        digest = digest_of(new)
        with self._admitting() as connection:
            known = known_job(connection, request_id, digest)
            if known is not None:
                return known
            self._check_room(connection)
            return insert_job(
                connection,
                new,
                request_id=request_id,
                digest=digest,
                now=self._now(),
                actor=actor,
            )

    def clone(self, name: TrainingJobName, *, request_id: str = "", actor: str = TRAINER) -> Job:
        """Queues a new job like another, which would not start too late.

        Args:
            name: The job to clone.
            request_id: The client's id of this wish; empty for none.
            actor: Who asks.

        Raises:
            NotFound: There is no such job.
            AlreadyExists: The request id made another job.
            ResourceExhausted: Too many jobs wait.
        """
        job = self.get(name)
        policy = replace(job.policy, expire_time=None)
        new = NewJob(job.specification, job.publication, policy=policy, parent=name)
        return self.create(new, request_id=request_id, actor=actor)

    @contextmanager
    def _admitting(self) -> Iterator[Connection]:
        """Gives a write transaction in which no other adds to the jobs that wait."""
        with self._database.write() as connection:
            self._database.lock(connection, _ADMISSION_LOCK)
            yield connection

    def _check_room(self, connection: Connection) -> None:
        waiting = connection.execute(
            select(func.count()).where(schema.jobs.c.state.in_(sorted(WAITING)))
        ).scalar_one()
        if waiting >= self._max_queued_jobs:
            raise ResourceExhausted(
                f"{waiting} jobs wait already, and the trainer takes {self._max_queued_jobs}",
                reason="TOO_MANY_QUEUED_JOBS",
                limit=str(self._max_queued_jobs),
            )

    def cancel(self, name: TrainingJobName, error: JobError, *, actor: str = TRAINER) -> Job:
        """Makes a job CANCELLING, and one that nobody works on CANCELLED at once.

        Cancelling a job that is being cancelled changes nothing.

        Args:
            name: The job.
            error: Why.
            actor: Who asks.

        Raises:
            NotFound: There is no such job.
            FailedPrecondition: The job has ended, or its version is being made by the registry.
        """
        with self._change(name, actor) as change:
            job = change.job
            if job.state is JobState.CANCELLING:
                return job
            if job.state in TERMINAL:
                raise _refusal(job, "JOB_ENDED", "has ended and cannot be cancelled")
            if job.committing:
                raise _refusal(
                    job,
                    "JOB_PUBLISHES",
                    "has asked the registry to publish its version and cannot be cancelled any "
                    "more",
                )
            change.move(JobState.CANCELLING, error)
            if job.state in IDLE:
                change.move(JobState.CANCELLED, error)
            return change.apply()

    def pause(self, name: TrainingJobName, *, actor: str = TRAINER) -> Job:
        """Makes a job PAUSING, and one without a process PAUSED at once.

        Pausing a job that is paused, or is being paused, changes nothing.

        Args:
            name: The job.
            actor: Who asks.

        Raises:
            NotFound: There is no such job.
            FailedPrecondition: The job has ended, is being cancelled or is being published.
        """
        with self._change(name, actor) as change:
            job = change.job
            if job.state in {JobState.PAUSING, JobState.PAUSED}:
                return job
            if job.state in TERMINAL:
                raise _refusal(job, "JOB_ENDED", "has ended and cannot be paused")
            if job.state is JobState.CANCELLING:
                raise _refusal(job, "JOB_CANCELLING", "is being cancelled and cannot be paused")
            if job.state is JobState.REGISTERING:
                raise _refusal(job, "JOB_PUBLISHES", "is being published and cannot be paused")
            if job.state in WITH_PROCESS:
                # What the process said of itself decides also when it is stopped.
                change.move(JobState.PAUSING, job.error)
            else:
                change.move(JobState.PAUSED)
            return change.apply()

    def resume(self, name: TrainingJobName, *, actor: str = TRAINER) -> Job:
        """Queues a paused job again; one that is not paused is left alone.

        Args:
            name: The job.
            actor: Who asks.

        Raises:
            NotFound: There is no such job.
            FailedPrecondition: The job has ended, or its process is being stopped.
            ResourceExhausted: Too many jobs wait.
        """
        with self._admitting() as connection:
            change = JobChange(connection, name, now=self._now, actor=actor)
            job = change.job
            if job.state in TERMINAL:
                raise _refusal(job, "JOB_ENDED", "has ended and cannot be resumed")
            if job.state in STOPPING:
                raise _refusal(
                    job, f"JOB_{job.state}", "cannot be resumed while its process is being stopped"
                )
            if job.state is not JobState.PAUSED:
                return job
            self._check_room(connection)
            change.move(JobState.QUEUED)
            return change.apply()

    # Changes that the supervisor makes

    def start(self, name: TrainingJobName) -> Job:
        """Begins the next attempt of a queued job.

        Raises:
            IllegalTransition: The job is not queued any more.
        """
        with self._change(name) as change:
            change.move(JobState.PREPARING)
            change.set(attempt=change.job.attempt + 1, journal_offset=0, metrics="[]")
            change.set(isolation="[]")
            change.set(**progress_columns(None), **process_columns(None))
            change.set(earlier_run_seconds=change.job.run_seconds)
            if change.job.start_time is None:
                change.set(start_time=to_microseconds(self._now()))
            return change.apply()

    def set_process(self, name: TrainingJobName, process: ProcessIdentity) -> Job:
        """Remembers which process runs the job's present attempt."""
        with self._change(name) as change:
            change.set(**process_columns(process))
            return change.apply()

    def set_run_seconds(self, name: TrainingJobName, seconds: float) -> Job:
        """Remembers how long the job had processes, all attempts together."""
        with self._change(name) as change:
            change.set(run_seconds=seconds)
            return change.apply()

    def record(
        self,
        name: TrainingJobName,
        attempt: int,
        happenings: Sequence[Happening],
        *,
        journal_offset: int,
        failure: JobError | None = None,
        isolation: Sequence[Layer] = (),
    ) -> Job:
        """Stores what the process of an attempt wrote, together with how far its journal was read.

        Args:
            name: The job.
            attempt: The attempt that the journal belongs to.
            happenings: What it wrote. A change to the present state is left out, and so is every
                change of a job whose process is being stopped.
            journal_offset: Where to read on, in bytes.
            failure: What the process said went wrong; the job fails of it when the process is gone.
            isolation: The layers around the process, when they are told.

        Raises:
            StaleAttempt: The job has ended or runs another attempt.
            IllegalTransition: The process reported its phases in an impossible order.
        """
        with self._change(name, WORKER) as change:
            if change.job.attempt != attempt or change.job.state in TERMINAL:
                raise StaleAttempt(f"attempt {attempt} of {name} is over")
            for happening in happenings:
                match happening:
                    case StateChange(_, new, error):
                        if new is not change.state and change.state not in STOPPING:
                            change.move(new, error)
                    case MetricReport(progress, _):
                        if progress is not None:
                            change.set(**progress_columns(progress))
                        change.tell(happening)
                    case _:
                        change.tell(happening)
            change.set(journal_offset=journal_offset)
            if failure is not None:
                change.set(**error_columns(failure))
            if isolation:
                change.set(isolation=isolation_text(isolation))
            return change.apply()

    def move(
        self,
        name: TrainingJobName,
        new: JobState,
        *,
        error: JobError | None = None,
        metrics: Sequence[Metric] | None = None,
        lost: bool = False,
    ) -> Job:
        """Changes the state of a job.

        Args:
            name: The job.
            new: The state from now on.
            error: Why, when there is something to say; None clears what was said before.
            metrics: Final figures, when they are known now.
            lost: Whether the process was lost together with the trainer.

        Raises:
            IllegalTransition: The job cannot take that state now.
        """
        with self._change(name) as change:
            change.move(new, error)
            if metrics is not None:
                change.set(metrics=metrics_text(metrics))
            if lost:
                change.set(losses=change.job.losses + 1)
            if new is JobState.RESTARTING:
                change.set(retries=change.job.retries + 1, **process_columns(None))
            if new in {JobState.QUEUED, JobState.PAUSED}:
                change.set(**progress_columns(None), **process_columns(None))
            return change.apply()

    def restart(self, name: TrainingJobName) -> Job:
        """Queues a RESTARTING job; one that was paused or cancelled meanwhile is left alone."""
        with self._change(name) as change:
            if change.state is JobState.RESTARTING:
                change.move(JobState.QUEUED)
                change.set(**progress_columns(None))
            return change.apply()

    def note(self, name: TrainingJobName, error: JobError) -> Job:
        """Says why a job waits for the registry; one that waits no more is left alone."""
        with self._change(name) as change:
            if change.job.state is JobState.REGISTERING and change.job.error != error:
                change.set(**error_columns(error))
                change.tell(LogLine(error.message))
            return change.apply()

    def begin_commit(self, name: TrainingJobName) -> Job:
        """Makes the job uncancellable, right before the registry is asked to make its version.

        Raises:
            IllegalTransition: The job was cancelled.
        """
        with self._change(name) as change:
            if change.job.state is not JobState.REGISTERING:
                check_transition(change.job.state, JobState.SUCCEEDED)
            change.set(committing=True)
            return change.apply()

    def set_version(self, name: TrainingJobName, model_version: str) -> Job:
        """Remembers the version that the registry made."""
        with self._change(name) as change:
            change.set(model_version=model_version)
            return change.apply()

    @contextmanager
    def _change(self, name: TrainingJobName, actor: str = TRAINER) -> Iterator[JobChange]:
        with self._database.write() as connection:
            yield JobChange(connection, name, now=self._now, actor=actor)


def _refusal(job: Job, reason: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{job.name} {why}; it is {job.state}",
        reason=reason,
        resource=str(job.name),
        state=job.state.value,
    )
