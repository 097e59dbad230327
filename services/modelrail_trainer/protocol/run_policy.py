"""From what a client says about the run of a job to the trainer's own values."""

from __future__ import annotations

from collections.abc import Iterator

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.errors import FieldViolation
from modelrail_trainer.jobs.job import RunPolicy

_PATH = "training_job"
_MAX_PRIORITY = 100


def run_policy_from_pb(job: pb.TrainingJob) -> RunPolicy:
    """Reads when and how a job is to be run, once `violations_of` finds nothing wrong with it."""
    return RunPolicy(priority=job.priority)


def violations_of(job: pb.TrainingJob) -> Iterator[FieldViolation]:
    """Yields what is wrong with it."""
    if not -_MAX_PRIORITY <= job.priority <= _MAX_PRIORITY:
        yield FieldViolation(
            f"{_PATH}.priority",
            f"expected a number from -{_MAX_PRIORITY} to {_MAX_PRIORITY}, got {job.priority}",
        )
