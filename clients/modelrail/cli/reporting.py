"""Gathers what the report of a job shows: its events, and its version as the registry has it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

from modelrail.cli.session import Session
from modelrail.client.errors import ModelrailError
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.registry.v1 import registry_pb2
from modelrail.report import History
from modelrail.trainer.v1 import trainer_pb2 as pb

_QUIET_SECONDS = 1.0
# The 100,000 events that are kept of a job come in about 10 s on a busy machine.
_LIVE_SECONDS = 30.0
_REGISTRY_SECONDS = 5.0


async def read_history(trainer: AsyncTrainerClient, job: pb.TrainingJob) -> History:
    """Returns what a job's events tell, of one that goes on up to about now.

    Raises:
        ModelrailError: The events cannot be read.
    """
    history = History()
    goes_on = not job.HasField("end_time")
    with suppress(TimeoutError):
        # The events of a job that goes on have no end, however fast or slowly they come.
        async with (
            asyncio.timeout(_LIVE_SECONDS if goes_on else None),
            aclosing(trainer.watch_job(job.name)) as events,
        ):
            while True:
                # Stored events come at once; where none comes, there are no more for now.
                is_quiet_soon = goes_on and history.sequence
                async with asyncio.timeout(_QUIET_SECONDS if is_quiet_soon else _LIVE_SECONDS):
                    event = await anext(events, None)
                if event is None:
                    break
                history.add(event)
                if goes_on and _is_level(history, job):
                    break
    return history


def _is_level(history: History, job: pb.TrainingJob) -> bool:
    """Whether the events have come to where a job that trains was when it was asked for."""
    # In other states what comes after the last progress is what there is to know.
    if job.state != pb.TrainingJob.STATE_RUNNING or not job.HasField("progress"):
        return False
    known, asked = history.progress, job.progress
    if known is None or history.attempt < job.attempt:
        return False
    # An epoch ends at the step that was told before, and tells its figures then.
    return (known.step, known.epoch) >= (asked.step, asked.epoch)


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
