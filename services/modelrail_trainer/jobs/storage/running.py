"""What a trainer writes about the jobs that it runs, each time under the lease of the job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import BigInteger, ColumnElement, cast, extract, func, select, tuple_, update

from modelrail.names import TrainingJobName
from modelrail_server.database import Database
from modelrail_trainer.handover.data_summary import DataSummary
from modelrail_trainer.handover.evaluation import Evaluation
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.isolation.layer import Layer
from modelrail_trainer.jobs.job import (
    TRAINER,
    WORKER,
    Happening,
    Job,
    JobError,
    LogLine,
    MetricReport,
    OutputMark,
    Progress,
    StateChange,
)
from modelrail_trainer.jobs.lease import Lease, StaleLease
from modelrail_trainer.jobs.state import (
    HELD,
    STOPPING,
    TERMINAL,
    JobState,
    Reason,
    check_transition,
)
from modelrail_trainer.jobs.storage import schema
from modelrail_trainer.jobs.storage.change import JobChange
from modelrail_trainer.jobs.storage.reading import JobReader, queue
from modelrail_trainer.jobs.storage.rows import (
    data_summary_text,
    error_columns,
    evaluation_text,
    isolation_text,
    job_from_row,
    metrics_text,
    output_columns,
    progress_columns,
    retry_columns,
    to_microseconds,
)

MAX_LOSSES = 3


def utc_now() -> datetime:
    """Returns the time by the wall clock, in UTC."""
    return datetime.now(UTC)


class RunStore(JobReader):
    """The part of `JobStore` that a supervisor uses.

    A method that is given a lease raises `StaleLease`, and changes nothing, when the job was taken
    by somebody else since.

    Args:
        database: What `open_database` returned; `close` closes it.
        trainer: Id of the trainer that this store belongs to.
        lease_seconds: How long a job that nobody renews stays this trainer's.
        now: Clock, in UTC, for what people read. No lease depends on it.
    """

    def __init__(
        self,
        database: Database,
        *,
        trainer: str,
        lease_seconds: float,
        now: Callable[[], datetime],
    ) -> None:
        super().__init__(database)
        self._trainer = trainer
        self._lease_seconds = lease_seconds
        self._now = now

    # Whose job it is

    @property
    def is_shared(self) -> bool:
        """Whether other trainers may run jobs of the same database."""
        return self._database.is_shared

    def renew(self, leases: Collection[Lease]) -> list[Job]:
        """Prolongs leases, those that are not stale, and returns all jobs of this trainer."""
        jobs = schema.jobs
        # A database that is not shared has no other trainer, whatever the rows say.
        mine = jobs.c.lease_owner == self._trainer if self.is_shared else jobs.c.state.in_(HELD)
        held = tuple_(jobs.c.id, jobs.c.lease_epoch).in_(
            [(lease.name.training_job, lease.epoch) for lease in leases]
        )
        with self._database.write() as connection:
            if leases and self.is_shared:
                connection.execute(
                    update(jobs).where(mine, held).values(lease_expires=self._expiry())
                )
            rows = connection.execute(select(jobs).where(mine).order_by(jobs.c.number))
            return [job_from_row(row) for row in rows.mappings()]

    def adopt(self, lease: Lease) -> Job:
        """Takes a job that is this trainer's already, and that nobody in it works on."""
        with self._hold(lease) as change:
            if change.state not in HELD:
                raise StaleLease(f"{lease.name} is {change.state}")
            self._take(change)
            return change.apply()

    def held_by_others(self) -> list[Job]:
        """Returns the jobs that other trainers hold, or held when they were heard of last."""
        if not self.is_shared:
            return []
        query = select(schema.jobs).where(
            schema.jobs.c.lease_owner.is_not(None), schema.jobs.c.lease_owner != self._trainer
        )
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query).mappings()]

    def take_over(self, lease: Lease, *, expires: datetime | None) -> Job:
        """Takes a job away from a trainer that is not heard of any more.

        A job that was being stopped is stopped now, one that waited for its restart or had a
        process is queued again, and one that was being published is this trainer's to publish.

        Args:
            lease: The job as it was when its trainer was heard of last.
            expires: `lease_expires` at that time.

        Raises:
            StaleLease: Its trainer has renewed the lease meanwhile, or somebody else took the job.
        """
        with self._hold(lease) as change:
            job = change.job
            if job.lease_expires != expires or job.state not in HELD:
                raise StaleLease(f"{job.name} was renewed")
            self._take(change)
            if job.state in STOPPING:
                change.move(STOPPING[job.state], job.error)
                change.set(process="")
            elif job.state is JobState.RESTARTING:
                _retry(change)
            elif job.state is not JobState.REGISTERING:
                _lose(change)
            return change.apply()

    def lose(self, lease: Lease) -> Job:
        """Queues a job again whose result stayed with a trainer that is not heard of any more."""
        with self._hold(lease) as change:
            _lose(change)
            return change.apply()

    def _take(self, change: JobChange) -> None:
        change.set(
            lease_owner=self._trainer,
            lease_epoch=change.job.lease_epoch + 1,
            lease_expires=self._expiry() if self.is_shared else None,
        )

    def _expiry(self) -> ColumnElement[int]:
        """Returns the end of a lease that begins now, by the clock that all trainers share."""
        now = cast(extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
        return now + round(self._lease_seconds * 1_000_000)

    # What becomes of it

    def start_next(self) -> Job | None:
        """Begins the next attempt of the queued job whose turn it is; None when nothing waits.

        On PostgreSQL a job that another trainer is starting this moment is passed over.
        """
        with self._database.write() as connection:
            row = connection.execute(
                queue().with_for_update(skip_locked=True)
            ).mappings().one_or_none()  # fmt: skip
            if row is None:
                return None
            change = JobChange(connection, TrainingJobName(row["id"]), now=self._now, actor=TRAINER)
            change.move(JobState.PREPARING)
            self._take(change)
            change.set(attempt=change.job.attempt + 1, journal_offset=0, metrics="[]")
            change.set(output_offset=0)
            change.set(isolation="[]", data_summary="", evaluation="")
            change.set(process="", **progress_columns(None))
            change.set(earlier_run_seconds=change.job.run_seconds)
            if change.job.start_time is None:
                change.set(start_time=to_microseconds(self._now()))
            return change.apply()

    def set_process(self, lease: Lease, process: str, *, earlier_run_seconds: float) -> Job:
        """Remembers which execution runs the job's present attempt, and how long it ran before."""
        with self._hold(lease) as change:
            change.set(process=process)
            if change.state is not JobState.CANCELLING:
                # What it waited for has come.
                change.set(**error_columns(None))
            change.set(run_seconds=earlier_run_seconds, earlier_run_seconds=earlier_run_seconds)
            return change.apply()

    def set_run_seconds(self, lease: Lease, seconds: float) -> Job:
        """Remembers how long the job was carried out, all attempts together."""
        with self._hold(lease) as change:
            change.set(run_seconds=seconds)
            return change.apply()

    def record(
        self,
        lease: Lease,
        happenings: Sequence[Happening],
        *,
        journal_offset: int,
        journal_bytes: int | None = None,
        progress: Progress | None = None,
        output: OutputMark | None = None,
        failure: JobError | None = None,
        isolation: Sequence[Layer] = (),
        data_summary: DataSummary | None = None,
        got_further: bool = False,
    ) -> Job:
        """Stores what the process of an attempt wrote, together with how far its journal was read.

        Args:
            lease: The job, held by the caller.
            happenings: What it wrote. A change to the present state is left out, and so is every
                change of a job whose process is being stopped.
            journal_offset: Where to read on, in bytes.
            journal_bytes: What the log lines and figures of its journals take, when that grew.
            progress: How far it is, when it told that and no report of it is kept.
            output: Where to read on in what it prints, when that moved.
            failure: What the process said went wrong; the job fails of it when the process is gone.
            isolation: The layers around the process, when they are told.
            data_summary: What the process read, when it is told.
            got_further: Whether a checkpoint holds more than that which the process went on from:
                what was lost before does not count any more.

        Raises:
            StaleLease: The job has ended, or somebody else took it.
            IllegalTransition: The process reported its phases in an impossible order.
        """
        with self._hold(lease, WORKER) as change:
            if change.state in TERMINAL:
                raise StaleLease(f"{lease.name} has ended")
            for happening in happenings:
                _tell(change, happening)
            change.set(journal_offset=journal_offset)
            if journal_bytes is not None:
                change.set(journal_bytes=journal_bytes)
            if progress is not None:
                change.set(**progress_columns(progress))
            if output is not None:
                change.set(**output_columns(output))
            if failure is not None:
                change.set(**error_columns(failure))
            if isolation:
                change.set(isolation=isolation_text(isolation))
            if data_summary is not None:
                change.set(data_summary=data_summary_text(data_summary))
            if got_further:
                change.set(losses=0)
            return change.apply()

    def move(
        self,
        lease: Lease,
        new: JobState,
        *,
        error: JobError | None = None,
        metrics: Sequence[Metric] | None = None,
        evaluation: Evaluation | None = None,
        lost: bool = False,
    ) -> Job:
        """Changes the state of a job.

        Args:
            lease: The job, held by the caller.
            new: The state from now on.
            error: Why, when there is something to say; None clears what was said before.
            metrics: Final figures, when they are known now.
            evaluation: How the model does, when it is known now.
            lost: Whether the process was lost together with the trainer.

        Raises:
            IllegalTransition: The job cannot take that state now.
        """
        with self._hold(lease) as change:
            change.move(new, error)
            if metrics is not None:
                change.set(metrics=metrics_text(metrics), evaluation=evaluation_text(evaluation))
            if lost:
                change.set(losses=change.job.losses + 1)
            if new is JobState.RESTARTING:
                reason = Reason.PROCESS_DIED if error is None else error.reason
                change.set(process="", **retry_columns(change.job, reason))
            if new in {JobState.QUEUED, JobState.PAUSED}:
                change.set(process="", **progress_columns(None))
            return change.apply()

    def restart(self, lease: Lease) -> Job:
        """Queues a RESTARTING job; one that was paused or cancelled meanwhile is left alone."""
        with self._hold(lease) as change:
            if change.state is JobState.RESTARTING:
                _retry(change)
            return change.apply()

    def note(self, lease: Lease, error: JobError) -> Job:
        """Says why a job waits for the registry, or to begin; another is left alone."""
        waits = {JobState.PREPARING, JobState.REGISTERING}
        with self._hold(lease) as change:
            if change.job.state in waits and change.job.error != error:
                change.set(**error_columns(error))
                change.tell(LogLine(error.message))
            return change.apply()

    def begin_commit(self, lease: Lease) -> Job:
        """Makes the job uncancellable, right before the registry is asked to make its version.

        Raises:
            IllegalTransition: The job was cancelled.
        """
        with self._hold(lease) as change:
            if change.job.state is not JobState.REGISTERING:
                check_transition(change.job.state, JobState.SUCCEEDED)
            change.set(committing=True)
            return change.apply()

    def set_version(self, lease: Lease, model_version: str) -> Job:
        """Remembers the version that the registry made."""
        with self._hold(lease) as change:
            change.set(model_version=model_version)
            return change.apply()

    @contextmanager
    def _hold(self, lease: Lease, actor: str = TRAINER) -> Iterator[JobChange]:
        with self._database.write() as connection:
            yield JobChange(connection, lease.name, now=self._now, actor=actor, lease=lease)


def _tell(change: JobChange, happening: Happening) -> None:
    match happening:
        case StateChange(_, new, error):
            if new is not change.state and change.state not in STOPPING:
                change.move(new, error)
        case MetricReport(reported, _):
            if reported is not None:
                change.set(**progress_columns(reported))
            change.tell(happening)
        case LogLine():
            change.tell(happening)


def _retry(change: JobChange) -> None:
    job = change.job
    reason = Reason.PROCESS_DIED if job.error is None else job.error.reason
    which = f"retry {job.retries} of {job.policy.max_retries}"
    change.move(JobState.QUEUED, JobError(reason, which))
    change.set(**progress_columns(None))


def _lose(change: JobChange) -> None:
    losses = change.job.losses + 1
    error = JobError(Reason.NODE_LOST, f"trainer {change.job.trainer} has not been heard of")
    change.move(JobState.LOST, error)
    change.set(losses=losses)
    if losses >= MAX_LOSSES:
        message = (
            f"it was lost with its trainer {losses} times and got no further in between; "
            f"{error.message}; look in its log, and in those of its machine, for what ended it, "
            "then clone the job, which begins anew"
        )
        change.move(JobState.FAILED, JobError(Reason.NODE_LOST, message))
    else:
        change.move(JobState.QUEUED, JobError(error.reason, f"{error.message}; the job runs again"))
        change.set(process="", **progress_columns(None))
