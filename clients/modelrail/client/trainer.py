"""The trainer's client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta

import grpc.aio

from modelrail.client.channel import Connection
from modelrail.client.service import DEFAULT_TIMEOUT_SECONDS, ServiceClient, new_request_id
from modelrail.client.stream import follow
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail.trainer.v1.trainer_pb2_grpc import TrainerServiceStub

__all__ = ["TERMINAL_STATES", "AsyncTrainerClient", "RunPolicy"]

_PAGE_SIZE = 200

TERMINAL_STATES = frozenset(
    {
        pb.TrainingJob.STATE_SUCCEEDED,
        pb.TrainingJob.STATE_CANCELLED,
        pb.TrainingJob.STATE_FAILED,
        pb.TrainingJob.STATE_EXPIRED,
    }
)
"""States that a job never leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPolicy:
    """When and how a job is run, apart from what it does.

    Attributes:
        priority: From -100 to 100; of the jobs that wait for a place that with the highest is next.
        max_run_seconds: How long it may run, all attempts together: its objects be copied, its
            processes run; None for ever.
        expire_time: A job that has not started by then is dropped; with a time zone.
        max_retries: How often it may run again after a failure that may pass, such as a process
            that died, from 0 to 10; after a hang twice at most.
        processes: How many processes train together, from 1 to 64.
    """

    priority: int = 0
    max_run_seconds: float | None = None
    expire_time: datetime | None = None
    max_retries: int = 0
    processes: int = 1

    def apply_to(self, job: pb.TrainingJob) -> None:
        """Writes the policy into a job that is to be created."""
        job.priority = self.priority
        job.max_retries = self.max_retries
        job.processes = self.processes
        if self.max_run_seconds is not None:
            job.max_run_duration.FromTimedelta(timedelta(seconds=self.max_run_seconds))
        if self.expire_time is not None:
            job.expire_time.FromDatetime(self.expire_time)


class AsyncTrainerClient(ServiceClient):
    """Submits, follows, pauses, cancels and deletes training jobs.

    Names are resource names, `trainingJobs/{training_job}`. Every method raises `ModelrailError`,
    most specifically.

    Args:
        connection: Where the trainer is, or just its address.
        timeout_seconds: Deadline of every call.
        channel: A channel to use instead of an own one; it is not closed.
    """

    def __init__(
        self,
        connection: Connection | str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        super().__init__(connection, timeout_seconds=timeout_seconds, channel=channel)
        self._stub = TrainerServiceStub(self._channel)

    async def create_job(
        self,
        spec: pb.TrainingJobSpec,
        *,
        policy: RunPolicy | None = None,
        request_id: str | None = None,
        dry_run: bool = False,
        validate_only: bool = False,
    ) -> pb.TrainingJob:
        """Queues a job; the violations of `InvalidArgument` name every wrong field.

        Args:
            spec: What the job does.
            policy: When and how it is run.
            request_id: UUID4 that makes the job once, however often it is sent.
            dry_run: Sends one batch through the whole path first, and raises `FailedPrecondition`
                when that fails. It takes seconds to minutes; see `with_timeout`.
            validate_only: Checks, and queues nothing; the job that is returned has no name.
        """
        job = pb.TrainingJob(spec=spec)
        if policy is not None:
            policy.apply_to(job)
        request = pb.CreateTrainingJobRequest(
            training_job=job,
            request_id=request_id or new_request_id(),
            dry_run=dry_run,
            validate_only=validate_only,
        )
        return await self._call(self._stub.CreateTrainingJob, request)

    async def get_job(self, name: str) -> pb.TrainingJob:
        """Returns one job."""
        return await self._call(self._stub.GetTrainingJob, pb.GetTrainingJobRequest(name=name))

    async def list_jobs(self) -> AsyncIterator[pb.TrainingJob]:
        """Yields every job, the newest first."""
        pages = self._pages(
            lambda token: self._call(
                self._stub.ListTrainingJobs,
                pb.ListTrainingJobsRequest(page_size=_PAGE_SIZE, page_token=token),
            ),
            lambda page: page.training_jobs,
        )
        async for job in pages:
            yield job

    async def cancel_job(self, name: str) -> pb.TrainingJob:
        """Stops a job that has not ended; raises `FailedPrecondition` when it has."""
        request = pb.CancelTrainingJobRequest(name=name)
        return await self._call(self._stub.CancelTrainingJob, request)

    async def pause_job(self, name: str) -> pb.TrainingJob:
        """Takes a job out of the queue, or stops its process, until it is resumed."""
        return await self._call(self._stub.PauseTrainingJob, pb.PauseTrainingJobRequest(name=name))

    async def resume_job(self, name: str, *, processes: int = 0) -> pb.TrainingJob:
        """Queues a paused job again; it goes on from its last checkpoint.

        Args:
            name: The job.
            processes: How many train together from now on; 0 for as many as before.
        """
        request = pb.ResumeTrainingJobRequest(name=name, processes=processes)
        return await self._call(self._stub.ResumeTrainingJob, request)

    async def clone_job(self, name: str, *, request_id: str | None = None) -> pb.TrainingJob:
        """Queues a new job like another, whatever became of that."""
        request = pb.CloneTrainingJobRequest(name=name, request_id=request_id or new_request_id())
        return await self._call(self._stub.CloneTrainingJob, request)

    async def delete_job(self, name: str) -> None:
        """Deletes a job that has ended, with its events and log; its published version stays.

        Raises:
            NotFound: There is no such job, or none any more.
            FailedPrecondition: It has not ended; cancel it first.
        """
        await self._call(self._stub.DeleteTrainingJob, pb.DeleteTrainingJobRequest(name=name))

    async def inspect_dataset(
        self, dataset: pb.Dataset, *, rows: int = 0, split: pb.Split | None = None
    ) -> pb.InspectDatasetResponse:
        """Looks into the files of a table: columns, warnings, a specification to start from.

        It takes seconds, and may wait for others; see `with_timeout`.

        Args:
            dataset: A table; without a target one is guessed.
            rows: Rows to show, from 1 to 100; 0 for 10.
            split: How the suggested specification divides the rows; None leaves it to the table.
        """
        request = pb.InspectDatasetRequest(dataset=dataset, rows=rows, split=split)
        return await self._call(self._stub.InspectDataset, request)

    async def watch_job(
        self, name: str, *, after_sequence: int = 0
    ) -> AsyncGenerator[pb.TrainingJobEvent, None]:
        """Yields a job's events, stored ones first, until the job has ended.

        Each event comes once, in the order of `sequence`, across restarts of the trainer. Wrap the
        iterator in `contextlib.aclosing` to end the stream when the loop is left.

        Args:
            name: The job.
            after_sequence: Sequence of the last event that was handled; 0 for all.

        Raises:
            ModelrailError: The watch failed in a way that reconnecting cannot cure.
        """
        sequence = after_sequence
        sequence_at_last_end = -1
        saw_end = False

        def open_stream() -> grpc.aio.UnaryStreamCall[
            pb.WatchTrainingJobRequest, pb.WatchTrainingJobResponse
        ]:
            request = pb.WatchTrainingJobRequest(name=name, after_sequence=sequence)
            return self._stub.WatchTrainingJob(request, metadata=self._metadata)

        async def has_ended() -> bool:
            # A stream ends after the job's last event, but also when the trainer stops, or at once
            # when `after_sequence` was the last: only a job that has ended and says nothing new is
            # finished.
            nonlocal sequence_at_last_end
            if saw_end:
                return True
            said_nothing_new = sequence == sequence_at_last_end
            job = await self.get_job(name)
            if job.state in TERMINAL_STATES:
                if said_nothing_new:
                    return True
                sequence_at_last_end = sequence
            return False

        async with aclosing(follow(open_stream, has_ended=has_ended)) as responses:
            async for response in responses:
                event = response.event
                sequence = event.sequence
                saw_end = event.state_change.new_state in TERMINAL_STATES
                yield event
