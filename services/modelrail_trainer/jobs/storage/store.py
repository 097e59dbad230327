"""Keeps jobs in the database. Every change is one transaction with the events that tell of it.

All methods block on the disk: `book.py` calls them from the service's own threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, func, select

from modelrail.names import TrainingJobName
from modelrail_server.database import Database
from modelrail_server.errors import (
    FailedPrecondition,
    ResourceExhausted,
)
from modelrail_trainer.jobs.job import (
    TRAINER,
    Job,
    JobError,
    NewJob,
)
from modelrail_trainer.jobs.state import (
    IDLE,
    STOPPING,
    TERMINAL,
    WAITING,
    WITH_PROCESS,
    JobState,
)
from modelrail_trainer.jobs.storage import schema
from modelrail_trainer.jobs.storage.admission import digest_of, insert_job, known_job
from modelrail_trainer.jobs.storage.change import JobChange
from modelrail_trainer.jobs.storage.deletion import DeletionStore
from modelrail_trainer.jobs.storage.running import utc_now

# What a decision about room in the queue rests on, and on whether a request was seen before.
_ADMISSION_LOCK = 1


class JobStore(DeletionStore):
    """Jobs, their events and the requests that made them, in one database.

    Args:
        database: What `open_database` returned; `close` closes it.
        max_queued_jobs: Jobs that may wait for a place or for the registry at the same time.
        trainer: Id of the trainer that this store belongs to.
        lease_seconds: How long a job that nobody renews stays this trainer's.
        now: Clock, in UTC.
    """

    def __init__(
        self,
        database: Database,
        *,
        max_queued_jobs: int,
        trainer: str = "trainer",
        lease_seconds: float = 30.0,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(database, trainer=trainer, lease_seconds=lease_seconds, now=now)
        self._max_queued_jobs = max_queued_jobs

    @contextmanager
    def _change(self, name: TrainingJobName, actor: str) -> Iterator[JobChange]:
        with self._database.write() as connection:
            yield JobChange(connection, name, now=self._now, actor=actor)

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

    def resume(self, name: TrainingJobName, *, processes: int = 0, actor: str = TRAINER) -> Job:
        """Queues a paused job again; one that is not paused is left alone.

        Args:
            name: The job.
            processes: How many train together from now on; 0: as many as before.
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
            if processes:
                change.set(processes=processes)
            return change.apply()


def _refusal(job: Job, reason: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{job.name} {why}; it is {job.state}",
        reason=reason,
        resource=str(job.name),
        state=job.state.value,
    )
