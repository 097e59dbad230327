"""Takes new jobs in: their first rows, and the request ids that make each of them once."""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from datetime import datetime

from sqlalchemy import Connection, insert, select

from modelrail.names import TrainingJobName
from modelrail_server.errors import AlreadyExists
from modelrail_trainer.jobs.job import Job, NewJob, RunPolicy, StateChange
from modelrail_trainer.jobs.state import JobState
from modelrail_trainer.jobs.storage import schema
from modelrail_trainer.jobs.storage.change import append_events, read_job
from modelrail_trainer.jobs.storage.rows import job_from_row, policy_columns, to_microseconds

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def digest_of(new: NewJob) -> str:
    """Returns what tells a repeated wish for a job from another wish, a SHA-256."""
    if new.parent is not None:
        # What is cloned never changes.
        return hashlib.sha256(f"clone of {new.parent}".encode()).hexdigest()
    content = new.specification
    usual = policy_columns(RunPolicy())
    # Only what is unusual, so that the digests of earlier trainers hold.
    unusual = {k: v for k, v in policy_columns(new.policy).items() if v != usual[k]}
    if unusual:
        content += json.dumps(unusual, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def known_job(connection: Connection, request_id: str, digest: str) -> Job | None:
    """Returns the job that a request id made before; None when it is new, or empty.

    Raises:
        AlreadyExists: It asked for another job.
    """
    if not request_id:
        return None
    known = connection.execute(
        select(schema.requests).where(schema.requests.c.request_id == request_id)
    ).mappings().one_or_none()  # fmt: skip
    if known is None:
        return None
    row = connection.execute(
        select(schema.jobs).where(schema.jobs.c.number == known["job_number"])
    ).mappings().one()  # fmt: skip
    job = job_from_row(row)
    if known["body_sha256"] != digest:
        raise AlreadyExists(
            "request_id: it was used for another request before, which made "
            f"{job.name}; expected the same request or a new id",
            reason="REQUEST_ID_REUSED",
            resource=str(job.name),
        )
    return job


def insert_job(
    connection: Connection, new: NewJob, *, request_id: str, digest: str, now: datetime, actor: str
) -> Job:
    """Writes a queued job, its first event and the request that made it."""
    row = {
        "id": _new_id(now),
        "uid": str(uuid.uuid4()),
        "specification": new.specification,
        "model": new.publication.model,
        "alias": new.publication.alias,
        "description": new.publication.description,
        "state": JobState.QUEUED.value,
        "metrics": "[]",
        "model_version": "",
        "attempt": 0,
        "losses": 0,
        "retries": 0,
        "retries_by_reason": "{}",
        "run_seconds": 0.0,
        "earlier_run_seconds": 0.0,
        "create_time": to_microseconds(now),
        "journal_offset": 0,
        "output_offset": 0,
        "output_bytes": 0,
        "committing": False,
        "last_sequence": 0,
        "lease_epoch": 0,
        "parent": None if new.parent is None else new.parent.training_job,
        **policy_columns(new.policy),
    }
    number = connection.execute(
        insert(schema.jobs).values(**row).returning(schema.jobs.c.number)
    ).scalar_one()
    if request_id:
        connection.execute(
            insert(schema.requests).values(
                request_id=request_id,
                body_sha256=digest,
                job_number=number,
                create_time=row["create_time"],
            )
        )
    append_events(connection, number, 0, [StateChange(None, JobState.QUEUED, actor=actor)], now)
    return read_job(connection, TrainingJobName(str(row["id"])))


def _new_id(now: datetime) -> str:
    """Returns an id that sorts by time: `20260102-030405-` and six random characters."""
    suffix = "".join(secrets.choice(_ID_ALPHABET) for _ in range(6))
    return f"{now:%Y%m%d-%H%M%S}-{suffix}"
