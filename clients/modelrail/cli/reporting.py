"""Gathers what the report of a job shows: its events, and its version as the registry has it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from modelrail.cli.session import Session
from modelrail.client.errors import ModelrailError
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.registry.v1 import registry_pb2
from modelrail.report import History
from modelrail.trainer.v1 import trainer_pb2 as pb

_QUIET_SECONDS = 1.0
_REGISTRY_SECONDS = 5.0


async def read_history(trainer: AsyncTrainerClient, job: pb.TrainingJob) -> History:
    """Returns what a job's events tell, of one that goes on up to what `job` knows.

    Raises:
        ModelrailError: The events cannot be read.
    """
    history = History()
    async with aclosing(trainer.watch_job(job.name)) as events:
        while True:
            try:
                # Stored events come at once; where none comes, there are no more for now.
                async with asyncio.timeout(_QUIET_SECONDS if history.sequence else None):
                    event = await anext(events)
            except (StopAsyncIteration, TimeoutError):
                return history
            history.add(event)
            if job.HasField("progress") and not job.HasField("end_time"):
                known = history.progress
                is_level = known is not None and known.step >= job.progress.step
                if history.attempt >= job.attempt and is_level:
                    return history


async def read_version(session: Session, name: str) -> tuple[registry_pb2.ModelVersion | None, str]:
    """Returns the version that a job published, or why it cannot be shown."""
    if not name:
        return None, "The job has published nothing."
    try:
        async with session.registry() as registry:
            return await registry.with_timeout(_REGISTRY_SECONDS).get_model_version(name), ""
    except ModelrailError as error:
        return None, (
            f"The registry at {session.address('registry')} did not tell about {name} when this "
            f"report was made: {error.status.name}: {error.message}"
        )
