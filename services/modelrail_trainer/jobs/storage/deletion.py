"""Deletes jobs that have ended: at once for whoever looks, then bit by bit from the database.

A job may have a million events. So deleting marks it, which hides it, and what is left of it goes
in transactions that keep nobody waiting. A trainer that dies in between leaves the rest to the next
one.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, update

from modelrail.names import TrainingJobName
from modelrail_server.errors import FailedPrecondition
from modelrail_trainer.jobs.job import Job
from modelrail_trainer.jobs.state import TERMINAL
from modelrail_trainer.jobs.storage import schema
from modelrail_trainer.jobs.storage.change import read_row
from modelrail_trainer.jobs.storage.rows import job_from_row, to_microseconds
from modelrail_trainer.jobs.storage.running import RunStore

_JOBS_AT_ONCE = 100
_EVENTS_AT_ONCE = 1000


class DeletionStore(RunStore):
    """The part of `JobStore` that deletes."""

    def delete(self, name: TrainingJobName) -> Job:
        """Deletes a job that has ended, with its events and its request id; returns what it was.

        Raises:
            NotFound: There is no such job.
            FailedPrecondition: It has not ended.
        """
        with self._database.write() as connection:
            row = read_row(connection, name, lock=True)
            job = job_from_row(row)
            if job.state not in TERMINAL:
                raise FailedPrecondition(
                    f"{name} has not ended and cannot be deleted; it is {job.state}: cancel it "
                    "first, or wait for its end",
                    reason="JOB_NOT_ENDED",
                    resource=str(name),
                    state=job.state.value,
                )
            self._mark(connection, [row["number"]])
            return job

    def delete_surplus(self, keep: int) -> list[TrainingJobName]:
        """Deletes some of the ended jobs beyond the `keep` that ended last, and returns them."""
        jobs = schema.jobs
        query = (
            select(jobs.c.number, jobs.c.id)
            .where(jobs.c.delete_time.is_(None), jobs.c.end_time.is_not(None))
            .order_by(jobs.c.end_time.desc(), jobs.c.number.desc())
            .offset(keep)
            .limit(_JOBS_AT_ONCE)
        )
        with self._database.write() as connection:
            rows = connection.execute(query).all()
            self._mark(connection, [row.number for row in rows])
            return [TrainingJobName(row.id) for row in rows]

    def _mark(self, connection: Connection, numbers: Sequence[int]) -> None:
        jobs = schema.jobs
        connection.execute(
            update(jobs)
            .where(jobs.c.number.in_(numbers))
            .values(delete_time=to_microseconds(self._now()))
        )
        requests = schema.requests
        connection.execute(delete(requests).where(requests.c.job_number.in_(numbers)))

    def deleted(self) -> list[TrainingJobName]:
        """Returns some of the deleted jobs of which something is left."""
        jobs = schema.jobs
        query = (
            select(jobs.c.id)
            .where(jobs.c.delete_time.is_not(None))
            .order_by(jobs.c.delete_time, jobs.c.number)
            .limit(_JOBS_AT_ONCE)
        )
        with self._database.read() as connection:
            return [TrainingJobName(job) for job in connection.execute(query).scalars()]

    def purge(self, name: TrainingJobName) -> bool:
        """Removes some of what is left of a deleted job, and returns whether that was the rest."""
        jobs, events = schema.jobs, schema.events
        with self._database.write() as connection:
            # Of two trainers one does it.
            number = connection.execute(
                select(jobs.c.number)
                .where(jobs.c.id == name.training_job, jobs.c.delete_time.is_not(None))
                .with_for_update(skip_locked=True)
            ).scalar_one_or_none()
            if number is None:
                return True
            of_job = events.c.job_number == number
            first = select(events.c.sequence).where(of_job).order_by(events.c.sequence)
            removed = connection.execute(
                delete(events).where(of_job, events.c.sequence.in_(first.limit(_EVENTS_AT_ONCE)))
            ).rowcount
            if removed == _EVENTS_AT_ONCE:
                return False
            connection.execute(delete(jobs).where(jobs.c.number == number))
            return True

    def unknown(self, names: Sequence[TrainingJobName]) -> list[TrainingJobName]:
        """Returns those of the names that no job has, nor a deleted one of which something is left.

        Args:
            names: A few hundred at most.
        """
        ids = [name.training_job for name in names]
        query = select(schema.jobs.c.id).where(schema.jobs.c.id.in_(ids))
        with self._database.read() as connection:
            known = set(connection.execute(query).scalars())
        return [name for name in names if name.training_job not in known]
