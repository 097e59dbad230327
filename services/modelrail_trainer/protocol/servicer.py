"""TrainerService over gRPC: converts, calls the trainer, converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail.trainer.v1 import trainer_pb2_grpc
from modelrail_server.context import Context, identity
from modelrail_trainer.protocol import inspections, replies, requests
from modelrail_trainer.trainer import Trainer


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """The methods of modelrail.trainer.v1.TrainerService.

    Args:
        trainer: Does the work.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    async def GetTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.GetTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        """Returns one job."""
        return replies.job_to_pb(await self._trainer.get(requests.job_name(request.name)))

    async def ListTrainingJobs(  # noqa: N802 - the name is the protocol's
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        """Returns a page of jobs, newest first."""
        size, before_number = requests.page_from_pb(request)
        return replies.page_to_pb(await self._trainer.page(size, before_number))

    async def CreateTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.CreateTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        """Queues a job."""
        new, request_id = requests.new_job_from_pb(request)
        if request.validate_only:
            await self._trainer.check(new, dry_run=request.dry_run)
            return replies.new_job_to_pb(new)
        actor, dry_run = identity().name, request.dry_run
        return replies.job_to_pb(
            await self._trainer.create(new, request_id, actor, dry_run=dry_run)
        )

    async def CancelTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.CancelTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        """Stops a job."""
        name = requests.job_name(request.name)
        return replies.job_to_pb(await self._trainer.cancel(name, identity().name))

    async def PauseTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.PauseTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        """Takes a job out of the queue, or stops its process, until it is resumed."""
        name = requests.job_name(request.name)
        return replies.job_to_pb(await self._trainer.pause(name, identity().name))

    async def ResumeTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.ResumeTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        """Queues a paused job again."""
        name, processes = requests.resume_from_pb(request)
        return replies.job_to_pb(await self._trainer.resume(name, processes, identity().name))

    async def CloneTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.CloneTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        """Queues a new job like another."""
        name, request_id = requests.clone_from_pb(request)
        return replies.job_to_pb(await self._trainer.clone(name, request_id, identity().name))

    async def DeleteTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.DeleteTrainingJobRequest, context: Context
    ) -> pb.DeleteTrainingJobResponse:
        """Deletes a job that has ended."""
        await self._trainer.delete(requests.job_name(request.name), identity().name)
        return pb.DeleteTrainingJobResponse()

    async def WatchTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.WatchTrainingJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        """Sends the job's events, stored ones and then new ones, up to its last."""
        after_sequence = requests.after_sequence_from_pb(request)
        name = requests.job_name(request.name)
        async with aclosing(self._trainer.watch(name, after_sequence)) as events:
            async for event in events:
                yield replies.event_to_pb(event)

    async def InspectDataset(  # noqa: N802 - the name is the protocol's
        self, request: pb.InspectDatasetRequest, context: Context
    ) -> pb.InspectDatasetResponse:
        """Looks into a table."""
        asked = inspections.inspection_from_pb(request)
        found = await self._trainer.inspect(asked.specification, asked.data_paths, asked.rows)
        return inspections.inspection_to_pb(found, request)
