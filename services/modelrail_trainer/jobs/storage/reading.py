"""Reads jobs and their histories from the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select

from modelrail.names import TrainingJobName
from modelrail_server.database import Database
from modelrail_server.errors import OutOfRange
from modelrail_trainer.jobs.job import Job, JobEvent, JobPage
from modelrail_trainer.jobs.state import TERMINAL, JobState
from modelrail_trainer.jobs.storage import schema
from modelrail_trainer.jobs.storage.change import read_job, read_row
from modelrail_trainer.jobs.storage.rows import event_from_row, job_from_row


def queue() -> Select[Any]:
    """Returns the query for the job that gets the next place."""
    return (
        select(schema.jobs)
        .where(schema.jobs.c.state == JobState.QUEUED)
        .order_by(schema.jobs.c.priority.desc(), schema.jobs.c.number)
        .limit(1)
    )


class JobReader:
    """What can be asked about jobs; `JobStore` adds what changes them.

    Args:
        database: What `open_database` returned; `close` closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Closes every connection."""
        self._database.close()

    def get(self, name: TrainingJobName) -> Job:
        """Returns one job.

        Raises:
            NotFound: There is none of that name.
        """
        with self._database.read() as connection:
            return read_job(connection, name)

    def page(self, *, size: int, before_number: int | None = None) -> JobPage:
        """Returns up to `size` jobs that are older than `before_number`, newest first."""
        query = (
            select(schema.jobs)
            .where(schema.jobs.c.delete_time.is_(None))
            .order_by(schema.jobs.c.number.desc())
            .limit(size + 1)
        )
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
            .where(schema.jobs.c.state.in_(sorted(states)), schema.jobs.c.delete_time.is_(None))
            .order_by(schema.jobs.c.number)
        )
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query).mappings()]

    def next_queued(self) -> Job | None:
        """Returns the job that gets the next place: by priority, and of equals the oldest."""
        with self._database.read() as connection:
            row = connection.execute(queue()).mappings().one_or_none()
        return None if row is None else job_from_row(row)

    def next_expiring(self) -> Job | None:
        """Returns the job that waits for its first place and is the first to expire there."""
        query = (
            select(schema.jobs)
            .where(
                schema.jobs.c.state == JobState.QUEUED,
                schema.jobs.c.attempt == 0,
                schema.jobs.c.expire_time.is_not(None),
            )
            .order_by(schema.jobs.c.expire_time, schema.jobs.c.number)
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else job_from_row(row)

    def count_by_state(self) -> dict[JobState, int]:
        """Returns how many jobs are in each state; every state has an entry."""
        query = (
            select(schema.jobs.c.state, func.count())
            .where(schema.jobs.c.delete_time.is_(None))
            .group_by(schema.jobs.c.state)
        )
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
