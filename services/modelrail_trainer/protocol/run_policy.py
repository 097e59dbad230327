"""From what a client says about the run of a job to the trainer's own values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_server.errors import FieldViolation
from modelrail_trainer.jobs.job import RunPolicy

_PATH = "training_job"
_MAX_PRIORITY = 100
_MAX_RETRIES = 10
MAX_PROCESSES = 64
_NANOS = 1_000_000_000
# Bounds of google.protobuf.Duration and google.protobuf.Timestamp.
_MAX_SECONDS = 315_576_000_000
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


def run_policy_from_pb(job: pb.TrainingJob) -> RunPolicy:
    """Reads when and how a job is to be run, once `violations_of` finds nothing wrong with it."""
    return RunPolicy(
        priority=job.priority,
        max_run_duration=job.max_run_duration.ToTimedelta() or None,
        max_retries=job.max_retries,
        processes=job.processes or 1,
        expire_time=job.expire_time.ToDatetime(UTC) if job.HasField("expire_time") else None,
    )


def violations_of(job: pb.TrainingJob) -> Iterator[FieldViolation]:
    """Yields what is wrong with it."""
    if not -_MAX_PRIORITY <= job.priority <= _MAX_PRIORITY:
        yield FieldViolation(
            f"{_PATH}.priority",
            f"expected a number from -{_MAX_PRIORITY} to {_MAX_PRIORITY}, got {job.priority}",
        )
    if not 0 <= job.max_retries <= _MAX_RETRIES:
        yield FieldViolation(
            f"{_PATH}.max_retries",
            f"expected a number from 0 to {_MAX_RETRIES}, got {job.max_retries}",
        )
    if not 0 <= job.processes <= MAX_PROCESSES:
        yield FieldViolation(
            f"{_PATH}.processes",
            f"expected a number from 1 to {MAX_PROCESSES}, or 0 for 1, got {job.processes}",
        )
    limit = job.max_run_duration
    # What is shorter than its unit would come out as no limit.
    is_kept = limit.nanos == 0 or limit.nanos >= 1000 or limit.seconds > 0
    if not (0 <= limit.seconds <= _MAX_SECONDS and 0 <= limit.nanos < _NANOS and is_kept):
        yield FieldViolation(
            f"{_PATH}.max_run_duration",
            "expected 0 for no limit, or from 0.000001 s to 10000 years, "
            f"got {limit.seconds} s and {limit.nanos} ns",
        )
    time = job.expire_time
    if not (_FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < _NANOS):
        yield FieldViolation(
            f"{_PATH}.expire_time",
            "expected a time of the years 1 to 9999, "
            f"got {time.seconds} s and {time.nanos} ns after 1970",
        )
