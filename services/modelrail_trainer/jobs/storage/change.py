"""One transaction on one job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from modelrail.names import TrainingJobName
from modelrail_server.errors import NotFound
from modelrail_trainer.jobs.job import Happening, Job, JobError, StateChange
from modelrail_trainer.jobs.lease import Lease, StaleLease
from modelrail_trainer.jobs.state import HELD, TERMINAL, JobState, check_transition
from modelrail_trainer.jobs.storage import schema
from modelrail_trainer.jobs.storage.rows import (
    error_columns,
    happening_columns,
    job_from_row,
    to_microseconds,
)


class JobChange:
    """A change of one job: gathers columns and events, checks every step, writes both at once.

    Args:
        connection: Inside the write transaction; its owner commits.
        name: The job.
        now: Clock, in UTC.
        actor: Who brings the change about.
        lease: Makes the change count only while the job has this epoch.

    Raises:
        NotFound: There is no such job.
        StaleLease: It has another epoch.
    """

    def __init__(
        self,
        connection: Connection,
        name: TrainingJobName,
        *,
        now: Callable[[], datetime],
        actor: str,
        lease: Lease | None = None,
    ) -> None:
        row = read_row(connection, name, lock=True)
        self._connection = connection
        self._name = name
        self._now = now
        self._actor = actor
        self._columns: dict[str, object] = {}
        self._happenings: list[Happening] = []
        self._number: int = row["number"]
        self.job = job_from_row(row)
        if lease is not None and lease != self.job.lease:
            raise StaleLease(f"epoch {lease.epoch} of {name} is over")
        self.state = self.job.state

    def set(self, **columns: object) -> None:
        """Changes columns of the job."""
        self._columns.update(columns)

    def tell(self, happening: Happening) -> None:
        """Adds an event."""
        self._happenings.append(happening)

    def move(self, new: JobState, error: JobError | None = None) -> None:
        """Changes the state.

        Raises:
            IllegalTransition: The state cannot follow the present one.
        """
        check_transition(self.state, new)
        self._happenings.append(StateChange(self.state, new, error, self._actor))
        self.state = new
        self.set(state=new.value, **error_columns(error))
        if new in TERMINAL:
            # Whatever the wall clock does, a job does not end before it was made.
            end = max(self._now(), self.job.create_time)
            self.set(end_time=to_microseconds(end), process="")
        if new not in HELD:
            self.set(lease_owner=None, lease_expires=None)

    def apply(self) -> Job:
        """Writes what was gathered and returns the job as it is now.

        Raises:
            StaleLease: Somebody took the job meanwhile.
        """
        if self._columns:
            written = self._connection.execute(
                update(schema.jobs)
                .where(
                    schema.jobs.c.number == self._number,
                    schema.jobs.c.lease_epoch == self.job.lease_epoch,
                )
                .values(**self._columns)
            )
            if written.rowcount != 1:
                raise StaleLease(f"epoch {self.job.lease_epoch} of {self._name} is over")
        append_events(
            self._connection, self._number, self.job.last_sequence, self._happenings, self._now()
        )
        return read_job(self._connection, self._name)


def read_row(connection: Connection, name: TrainingJobName, *, lock: bool = False) -> Any:
    """Returns the row of a job.

    Args:
        connection: Inside a transaction.
        name: The job.
        lock: Whether nobody else may change it until the transaction is over. (SQLite has no such
            clause and needs none: there one transaction writes at a time.)

    Raises:
        NotFound: There is no such job.
    """
    query = select(schema.jobs).where(
        schema.jobs.c.id == name.training_job, schema.jobs.c.delete_time.is_(None)
    )
    if lock:
        query = query.with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"{name} does not exist", reason="JOB_NOT_FOUND", resource=str(name))
    return row


def read_job(connection: Connection, name: TrainingJobName) -> Job:
    """Returns a job.

    Raises:
        NotFound: There is no such job.
    """
    return job_from_row(read_row(connection, name))


def append_events(
    connection: Connection, number: int, last: int, happenings: Sequence[Happening], now: datetime
) -> None:
    """Adds events to a job's history, numbered from `last` + 1."""
    time = to_microseconds(now)
    if happenings:
        connection.execute(
            insert(schema.events),
            [
                {"job_number": number, "sequence": i, "create_time": time}
                | happening_columns(happening)
                for i, happening in enumerate(happenings, start=last + 1)
            ],
        )
        connection.execute(
            update(schema.jobs)
            .where(schema.jobs.c.number == number)
            .values(last_sequence=last + len(happenings))
        )
