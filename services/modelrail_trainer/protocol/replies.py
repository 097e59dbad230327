"""From the trainer's values to protobuf replies."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import Parse
from google.protobuf.timestamp_pb2 import Timestamp

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import Metric
from modelrail_trainer.jobs.job import (
    Job,
    JobError,
    JobEvent,
    JobPage,
    LogLine,
    MetricReport,
    NewJob,
    Progress,
    StateChange,
)
from modelrail_trainer.jobs.state import JobState
from modelrail_trainer.protocol.pagination import token_from_number

_LONGEST_SECONDS = 1e9


def job_to_pb(job: Job, *, whole: bool = True) -> pb.TrainingJob:
    """Returns the resource, or without what would make lists long."""
    message = pb.TrainingJob(
        name=str(job.name),
        uid=job.uid,
        spec=pb.TrainingJobSpec.FromString(job.specification),
        state=_state_to_pb(job.state),
        error=_error_to_pb(job.error),
        progress=_progress_to_pb(job.progress),
        metrics=_metrics_to_pb(job.metrics),
        model_version=job.model_version,
        attempt=job.attempt,
        create_time=_time_to_pb(job.create_time),
        start_time=_time_to_pb(job.start_time),
        end_time=_time_to_pb(job.end_time),
        priority=job.policy.priority,
        isolation=[
            pb.IsolationLayer(
                name=f"NAME_{layer.name.name}", active=layer.active, detail=layer.detail
            )
            for layer in job.isolation
        ],
        max_run_duration=_duration_to_pb(job.policy.max_run_duration),
        expire_time=_time_to_pb(job.policy.expire_time),
        max_retries=job.policy.max_retries,
        processes=job.policy.processes,
        parent_job=str(job.parent) if job.parent else "",
        trainer=job.trainer,
    )
    if whole and job.evaluation:
        Parse(job.evaluation, message.evaluation, ignore_unknown_fields=True)
    if whole and job.data_summary:
        Parse(job.data_summary, message.data_summary, ignore_unknown_fields=True)
    return message


def new_job_to_pb(new: NewJob) -> pb.TrainingJob:
    """Returns the resource that a job would become."""
    return pb.TrainingJob(
        spec=pb.TrainingJobSpec.FromString(new.specification),
        priority=new.policy.priority,
        max_run_duration=_duration_to_pb(new.policy.max_run_duration),
        expire_time=_time_to_pb(new.policy.expire_time),
        max_retries=new.policy.max_retries,
        processes=new.policy.processes,
    )


def page_to_pb(page: JobPage) -> pb.ListTrainingJobsResponse:
    """Returns a page of jobs."""
    token = ""
    if page.next_number is not None:
        token = token_from_number(page.next_number)
    return pb.ListTrainingJobsResponse(
        training_jobs=[job_to_pb(job, whole=False) for job in page.jobs], next_page_token=token
    )


def event_to_pb(event: JobEvent) -> pb.WatchTrainingJobResponse:
    """Returns one event of a watch."""
    message = pb.TrainingJobEvent(
        sequence=event.sequence, create_time=_time_to_pb(event.create_time)
    )
    match event.happening:
        case StateChange(old, new, error, actor):
            message.state_change.CopyFrom(
                pb.StateChange(
                    old_state=_state_to_pb(old),
                    new_state=_state_to_pb(new),
                    error=_error_to_pb(error),
                    actor=actor,
                )
            )
        case MetricReport(progress, metrics):
            message.metric_report.CopyFrom(
                pb.MetricReport(progress=_progress_to_pb(progress), metrics=_metrics_to_pb(metrics))
            )
        case LogLine(text):
            message.log_line.CopyFrom(pb.LogLine(text=text))
    return pb.WatchTrainingJobResponse(event=message)


def _state_to_pb(state: JobState | None) -> str:
    return f"STATE_{state.name if state else 'UNSPECIFIED'}"


def _error_to_pb(error: JobError | None) -> pb.JobError | None:
    if error is None:
        return None
    return pb.JobError(reason=f"REASON_{error.reason.name}", message=error.message)


def _progress_to_pb(progress: Progress | None) -> pb.Progress | None:
    if progress is None:
        return None
    return pb.Progress(
        epoch=progress.epoch,
        epochs=progress.epochs,
        step=progress.step,
        steps=progress.steps,
        rows_per_second=progress.rows_per_second,
        eta=None
        if progress.eta_seconds is None
        else _duration_to_pb(timedelta(seconds=min(progress.eta_seconds, _LONGEST_SECONDS))),
    )


def _metrics_to_pb(metrics: Iterable[Metric]) -> list[pb.Metric]:
    return [
        pb.Metric(
            name=metric.name,
            value=metric.value,
            split=metric.split,
            epoch=metric.epoch,
            runtime=metric.runtime,
            step=metric.step,
        )
        for metric in metrics
    ]


def _duration_to_pb(duration: timedelta | None) -> Duration | None:
    if duration is None:
        return None
    message = Duration()
    message.FromTimedelta(duration)
    return message


def _time_to_pb(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message
