"""Database rows to values and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping

from modelrail.names import TrainingJobName
from modelrail_trainer.handover.data_summary import DataSummary
from modelrail_trainer.handover.evaluation import Evaluation
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.isolation.layer import Layer, LayerName
from modelrail_trainer.jobs.job import (
    TRAINER,
    Happening,
    Job,
    JobError,
    JobEvent,
    LogLine,
    MetricReport,
    OutputMark,
    Progress,
    RunPolicy,
    StateChange,
)
from modelrail_trainer.jobs.state import JobState, Reason
from modelrail_trainer.spec import Publication

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(time: datetime) -> int:
    """Returns microseconds since 1970 in UTC."""
    return (time - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Returns the time that `to_microseconds` was given."""
    return _EPOCH + value * _MICROSECOND


def job_from_row(row: RowMapping) -> Job:
    """Reads a row of the table `jobs`."""
    return Job(
        name=TrainingJobName(row["id"]),
        uid=row["uid"],
        specification=row["specification"],
        publication=Publication(
            model=row["model"], alias=row["alias"], description=row["description"]
        ),
        policy=RunPolicy(
            priority=row["priority"],
            max_run_duration=None
            if row["max_run_duration"] is None
            else row["max_run_duration"] * _MICROSECOND,
            expire_time=_optional_time(row["expire_time"]),
            max_retries=row["max_retries"],
            processes=row["processes"],
        ),
        parent=None if row["parent"] is None else TrainingJobName(row["parent"]),
        state=JobState(row["state"]),
        error=_error(row["error_reason"], row["error_message"]),
        progress=None
        if row["progress_epochs"] is None
        else Progress(
            row["progress_epoch"],
            row["progress_epochs"],
            row["progress_step"],
            row["progress_rows_per_second"],
            row["progress_eta_seconds"],
            row["progress_steps"] or 0,
        ),
        metrics=tuple(Metric(**metric) for metric in json.loads(row["metrics"])),
        model_version=row["model_version"],
        attempt=row["attempt"],
        losses=row["losses"],
        retries=row["retries"],
        retries_by_reason={
            Reason(reason): count for reason, count in json.loads(row["retries_by_reason"]).items()
        },
        run_seconds=row["run_seconds"],
        earlier_run_seconds=row["earlier_run_seconds"],
        create_time=from_microseconds(row["create_time"]),
        start_time=_optional_time(row["start_time"]),
        end_time=_optional_time(row["end_time"]),
        process=row["process"],
        journal_offset=row["journal_offset"],
        journal_bytes=row["journal_bytes"],
        output=OutputMark(row["output_offset"], row["output_bytes"]),
        committing=row["committing"],
        last_sequence=row["last_sequence"],
        isolation=tuple(
            Layer(**layer | {"name": LayerName(layer["name"])})
            for layer in json.loads(row["isolation"])
        ),
        trainer=row["lease_owner"] or "",
        lease_epoch=row["lease_epoch"],
        lease_expires=_optional_time(row["lease_expires"]),
        evaluation=row["evaluation"],
        data_summary=row["data_summary"],
    )


def _optional_time(value: int | None) -> datetime | None:
    return None if value is None else from_microseconds(value)


def _error(reason: str | None, message: str | None) -> JobError | None:
    return None if reason is None else JobError(Reason(reason), message or "")


def policy_columns(policy: RunPolicy) -> dict[str, object]:
    """Returns the columns that hold when and how a job is run."""
    limit, expire_time = policy.max_run_duration, policy.expire_time
    return {
        "priority": policy.priority,
        "max_run_duration": None if limit is None else limit // _MICROSECOND,
        "expire_time": None if expire_time is None else to_microseconds(expire_time),
        "max_retries": policy.max_retries,
        "processes": policy.processes,
    }


def error_columns(error: JobError | None) -> dict[str, object]:
    """Returns the columns that hold an error."""
    return {
        "error_reason": None if error is None else error.reason.value,
        # PostgreSQL keeps no NUL in a text, and what a process wrote may hold one.
        "error_message": None if error is None else error.message.replace("\0", "\ufffd"),
    }


def retry_columns(job: Job, reason: Reason) -> dict[str, object]:
    """Returns the columns that hold how often a job ran again, with once more for a reason."""
    count = job.retries_by_reason.get(reason, 0) + 1
    return {
        "retries": job.retries + 1,
        "retries_by_reason": json.dumps({**job.retries_by_reason, reason: count}),
    }


def output_columns(mark: OutputMark) -> dict[str, object]:
    """Returns the columns that hold how far what is printed is stored."""
    return {"output_offset": mark.offset, "output_bytes": mark.spent_bytes}


def progress_columns(progress: Progress | None) -> dict[str, object]:
    """Returns the columns that hold the progress."""
    return {
        "progress_epoch": None if progress is None else progress.epoch,
        "progress_epochs": None if progress is None else progress.epochs,
        "progress_step": None if progress is None else progress.step,
        "progress_rows_per_second": None if progress is None else progress.rows_per_second,
        "progress_eta_seconds": None if progress is None else progress.eta_seconds,
        "progress_steps": None if progress is None else progress.steps,
    }


def isolation_text(layers: Sequence[Layer]) -> str:
    """Returns the column that holds the layers around the process."""
    return json.dumps([asdict(layer) for layer in layers])


def metrics_text(metrics: Sequence[Metric]) -> str:
    """Returns the column that holds the final figures."""
    return json.dumps([asdict(metric) for metric in metrics])


def evaluation_text(evaluation: Evaluation | None) -> str:
    """Returns the column that holds how the model does."""
    return "" if evaluation is None else json.dumps(asdict(evaluation))


def data_summary_text(summary: DataSummary) -> str:
    """Returns the column that holds what was read."""
    return json.dumps(asdict(summary))


def happening_columns(happening: Happening) -> dict[str, object]:
    """Returns the columns `kind` and `payload` of an event."""
    match happening:
        case StateChange():
            kind = "state_change"
        case MetricReport():
            kind = "metric_report"
        case LogLine():
            kind = "log_line"
    return {"kind": kind, "payload": json.dumps(asdict(happening))}


def event_from_row(row: RowMapping) -> JobEvent:
    """Reads a row of the table `events`."""
    return JobEvent(
        sequence=row["sequence"],
        create_time=from_microseconds(row["create_time"]),
        happening=_happening(row["kind"], json.loads(row["payload"])),
    )


def _happening(kind: str, payload: Mapping[str, Any]) -> Happening:
    match kind:
        case "state_change":
            old, error = payload["old"], payload["error"]
            return StateChange(
                None if old is None else JobState(old),
                JobState(payload["new"]),
                None if error is None else JobError(Reason(error["reason"]), error["message"]),
                # Trainers before this one did not write it down.
                payload.get("actor", TRAINER),
            )
        case "metric_report":
            progress = payload["progress"]
            return MetricReport(
                None if progress is None else Progress(**progress),
                tuple(Metric(**metric) for metric in payload["metrics"]),
            )
        case "log_line":
            return LogLine(payload["text"])
        case _:
            raise ValueError(f"stored event of unknown kind {kind!r}")
