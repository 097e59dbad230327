"""Keeps jobs in the database. Every change is one transaction with the events that tell of it.

All methods block on the disk: `book.py` calls them from the service's own threads.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import Connection, func, insert, select

from modelrail.names import TrainingJobName
from modelrail_server.database import Database
from modelrail_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    OutOfRange,
    ResourceExhausted,
)
from modelrail_trainer.isolation.layer import Layer
from modelrail_trainer.jobs import schema
from modelrail_trainer.jobs.change import JobChange, append_events, read_job, read_row
from modelrail_trainer.jobs.job import (
    Happening,
    Job,
    JobError,
    JobEvent,
    JobPage,
    LogLine,
    MetricReport,
    NewJob,
    ProcessIdentity,
    StateChange,
)
from modelrail_trainer.jobs.rows import (
    error_columns,
    event_from_row,
    isolation_text,
    job_from_row,
    metrics_text,
    process_columns,
    progress_columns,
    to_microseconds,
)
from modelrail_trainer.jobs.state import TERMINAL, WAITING, JobState, check_transition
from modelrail_trainer.journal import Metric

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class StaleAttempt(Exception):
    """The job was started again, or has ended, since the caller's attempt began."""


class JobStore:
    """Jobs, their events and the requests that made them, in one database.

    Args:
        database: What `open_database` returned; `close` closes it.
        max_queued_jobs: Jobs that may wait for a place or for the registry at the same time.
        now: Clock, in UTC.
    """

    def __init__(
        self, database: Database, *, max_queued_jobs: int, now: Callable[[], datetime] = _utc_now
    ) -> None:
        self._database = database
        self._max_queued_jobs = max_queued_jobs
        self._now = now

    def close(self) -> None:
        """Closes every connection."""
        self._database.close()

    # Reading

    def get(self, name: TrainingJobName) -> Job:
        """Returns one job.

        Raises:
            NotFound: There is none of that name.
        """
        with self._database.read() as connection:
            return read_job(connection, name)

    def page(self, *, size: int, before_number: int | None = None) -> JobPage:
        """Returns up to `size` jobs that are older than `before_number`, newest first."""
        query = select(schema.jobs).order_by(schema.jobs.c.number.desc()).limit(size + 1)
        if before_number is not None:
            query = query.where(schema.jobs.c.number < before_number)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        more = len(rows) > size
        rows = rows[:size]
        return JobPage([job_from_row(row) for row in rows], rows[-1]["number"] if more else None)

    def in_states(self, states: frozenset[JobState]) -> list[Job]:
        """Returns the jobs in one of the states, oldest first."""
        query = (
            select(schema.jobs)
            .where(schema.jobs.c.state.in_(sorted(states)))
            .order_by(schema.jobs.c.number)
        )
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query).mappings()]

    def next_queued(self) -> Job | None:
        """Returns the job that has waited longest for a place."""
        query = (
            select(schema.jobs)
            .where(schema.jobs.c.state == JobState.QUEUED)
            .order_by(schema.jobs.c.number)
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else job_from_row(row)

    def count_by_state(self) -> dict[JobState, int]:
        """Returns how many jobs are in each state; every state has an entry."""
        query = select(schema.jobs.c.state, func.count()).group_by(schema.jobs.c.state)
        counts = dict.fromkeys(JobState, 0)
        with self._database.read() as connection:
            counts.update({JobState(state): n for state, n in connection.execute(query)})
        return counts

    def events_after(
        self, name: TrainingJobName, sequence: int, *, limit: int
    ) -> tuple[list[JobEvent], bool]:
        """Returns the next events of a job, and whether they reach its end for good.

        Raises:
            NotFound: There is no such job.
            OutOfRange: The job has no event of that number yet.
        """
        with self._database.read() as connection:
            row = read_row(connection, name)
            job = job_from_row(row)
            if sequence > job.last_sequence:
                raise OutOfRange(
                    f"after_sequence: expected at most {job.last_sequence}, the newest event of "
                    f"{name}, got {sequence}",
                    resource=str(name),
                    last_sequence=str(job.last_sequence),
                )
            query = (
                select(schema.events)
                .where(
                    schema.events.c.job_number == row["number"],
                    schema.events.c.sequence > sequence,
                )
                .order_by(schema.events.c.sequence)
                .limit(limit)
            )
            events = [event_from_row(event) for event in connection.execute(query).mappings()]
        reached = events[-1].sequence if events else sequence
        return events, job.state in TERMINAL and reached == job.last_sequence

    # Changes that clients ask for

    def create(self, new: NewJob, *, request_id: str = "") -> Job:
        """Queues a job; a request id that was seen before returns the first call's job.

        Raises:
            AlreadyExists: The request id made another job.
            ResourceExhausted: Too many jobs wait.
        """
        digest = hashlib.sha256(new.specification).hexdigest()
        with self._database.write() as connection:
            if request_id:
                known = connection.execute(
                    select(schema.requests).where(schema.requests.c.request_id == request_id)
                ).mappings().one_or_none()  # fmt: skip
                if known is not None:
                    return _repeated(connection, known["job_number"], known["body_sha256"], digest)
            self._check_room(connection)
            now = self._now()
            row = {
                "id": _new_id(now),
                "uid": str(uuid.uuid4()),
                "specification": new.specification,
                "model": new.publication.model,
                "alias": new.publication.alias,
                "description": new.publication.description,
                "state": JobState.QUEUED.value,
                "metrics": "[]",
                "model_version": "",
                "attempt": 0,
                "losses": 0,
                "create_time": to_microseconds(now),
                "journal_offset": 0,
                "committing": False,
                "last_sequence": 0,
            }
            inserted = connection.execute(
                insert(schema.jobs).values(**row).returning(schema.jobs.c.number)
            )
            number = inserted.scalar_one()
            if request_id:
                connection.execute(
                    insert(schema.requests).values(
                        request_id=request_id,
                        body_sha256=digest,
                        job_number=number,
                        create_time=row["create_time"],
                    )
                )
            append_events(connection, number, 0, [StateChange(None, JobState.QUEUED)], now)
            return read_job(connection, TrainingJobName(str(row["id"])))

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

    def cancel(self, name: TrainingJobName, error: JobError) -> Job:
        """Makes a job CANCELLING, and a queued one CANCELLED at once.

        Cancelling a job that is being cancelled changes nothing.

        Raises:
            NotFound: There is no such job.
            FailedPrecondition: The job has ended, or its version is being made by the registry.
        """
        with self._change(name) as change:
            job = change.job
            if job.state is JobState.CANCELLING:
                return job
            if job.state in TERMINAL:
                raise FailedPrecondition(
                    f"{name} has ended as {job.state} and cannot be cancelled",
                    reason="JOB_ENDED",
                    resource=str(name),
                    state=job.state.value,
                )
            if job.committing:
                raise FailedPrecondition(
                    f"{name} has asked the registry to publish its version and cannot be "
                    "cancelled any more",
                    reason="JOB_PUBLISHES",
                    resource=str(name),
                    state=job.state.value,
                )
            change.move(JobState.CANCELLING, error)
            if job.state is JobState.QUEUED:
                change.move(JobState.CANCELLED, error)
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
            if change.job.start_time is None:
                change.set(start_time=to_microseconds(self._now()))
            return change.apply()

    def set_process(self, name: TrainingJobName, process: ProcessIdentity) -> Job:
        """Remembers which process runs the job's present attempt."""
        with self._change(name) as change:
            change.set(**process_columns(process))
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
                change of a job that is being cancelled.
            journal_offset: Where to read on, in bytes.
            failure: What the process said went wrong; the job fails of it when the process is gone.
            isolation: The layers around the process, when they are told.

        Raises:
            StaleAttempt: The job has ended or runs another attempt.
            IllegalTransition: The process reported its phases in an impossible order.
        """
        with self._change(name) as change:
            if change.job.attempt != attempt or change.job.state in TERMINAL:
                raise StaleAttempt(f"attempt {attempt} of {name} is over")
            for happening in happenings:
                match happening:
                    case StateChange(_, new, error):
                        if new is not change.state and change.state is not JobState.CANCELLING:
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
            if new is JobState.QUEUED:
                change.set(**progress_columns(None), **process_columns(None))
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
    def _change(self, name: TrainingJobName) -> Iterator[JobChange]:
        with self._database.write() as connection:
            yield JobChange(connection, name, now=self._now)


def _repeated(connection: Connection, number: int, known: str, digest: str) -> Job:
    row = connection.execute(
        select(schema.jobs).where(schema.jobs.c.number == number)
    ).mappings().one()  # fmt: skip
    job = job_from_row(row)
    if known != digest:
        raise AlreadyExists(
            "request_id: it was used for another specification before, which made "
            f"{job.name}; expected the same specification or a new id",
            reason="REQUEST_ID_REUSED",
            resource=str(job.name),
        )
    return job


def _new_id(now: datetime) -> str:
    """Returns an id that sorts by time: `20260102-030405-` and six random characters."""
    suffix = "".join(secrets.choice(_ID_ALPHABET) for _ in range(6))
    return f"{now:%Y%m%d-%H%M%S}-{suffix}"
