"""A training job, followed live: a line for every epoch, state and log line, above a bar.

Where no bar can be drawn, what it would show of an epoch that is under way is a line too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing, suppress

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from modelrail.cli.command import Failure
from modelrail.cli.console import can_draw, say, stdout
from modelrail.client.errors import ModelrailError
from modelrail.client.trainer import TERMINAL_STATES, AsyncTrainerClient, RunPolicy
from modelrail.report.scale import shown
from modelrail.report.tables import duration
from modelrail.report.visible import visible
from modelrail.trainer.v1 import trainer_pb2 as pb

_CANCEL_SECONDS = 20.0
_EPOCH = re.compile(r"epoch +\d+/")

_PHASES = {
    pb.TrainingJob.STATE_QUEUED: "waits for its turn",
    pb.TrainingJob.STATE_PREPARING: "reads the data",
    pb.TrainingJob.STATE_RUNNING: "trains",
    pb.TrainingJob.STATE_EXPORTING: "exports to ONNX and compares with PyTorch",
    pb.TrainingJob.STATE_REGISTERING: "publishes the version",
    pb.TrainingJob.STATE_SUCCEEDED: "succeeded",
    pb.TrainingJob.STATE_CANCELLING: "is being stopped",
    pb.TrainingJob.STATE_CANCELLED: "was cancelled",
    pb.TrainingJob.STATE_FAILED: "failed",
    pb.TrainingJob.STATE_EXPIRED: "expired",
    pb.TrainingJob.STATE_RESTARTING: "will be tried again",
    pb.TrainingJob.STATE_LOST: "lost its trainer; another takes it over",
    pb.TrainingJob.STATE_PAUSING: "is being paused",
    pb.TrainingJob.STATE_PAUSED: "is paused until it is resumed",
}


def phase_name(state: pb.TrainingJob.State) -> str:
    """Returns what a job in a state does: `reads the data`."""
    return _PHASES.get(state, "changed its state")


def state_name(state: pb.TrainingJob.State) -> str:
    """Returns a state as people write it: `succeeded`."""
    return pb.TrainingJob.State.Name(state).removeprefix("STATE_").lower()


async def follow_job(
    trainer: AsyncTrainerClient, name: str, *, every_epochs: int = 1
) -> pb.TrainingJob:
    """Shows what a job does until it ends, and returns it.

    Args:
        trainer: The client.
        name: The job.
        every_epochs: Epochs between two lines with figures.

    Raises:
        ModelrailError: The job cannot be followed.
    """
    console = stdout()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
    )
    is_hidden = not can_draw(console)
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as bar:
        task = bar.add_task("training", total=None)
        async with aclosing(trainer.watch_job(name)) as events:
            async for event in events:
                line = _line(event, every_epochs)
                progress = event.metric_report.progress
                if is_hidden and progress.steps and not event.metric_report.metrics:
                    line = f"  {_step_text(progress)}"
                if line:
                    bar.console.print(visible(line), soft_wrap=True)
                if progress.epochs:
                    bar.update(task, completed=_epochs_done(progress), total=progress.epochs)
    return await trainer.get_job(name)


async def run_job(
    trainer: AsyncTrainerClient,
    spec: pb.TrainingJobSpec,
    *,
    every_epochs: int,
    policy: RunPolicy | None = None,
) -> pb.TrainingJob:
    """Submits a job and follows it to its success; when the user breaks off, the job is cancelled.

    Raises:
        Failure: The job failed or was cancelled.
        ModelrailError: The specification is refused, or the job cannot be followed.
    """
    submission = asyncio.ensure_future(trainer.create_job(spec, policy=policy))
    try:
        # Once on its way the job may exist: breaking the call off would leave it running.
        submitted = await asyncio.shield(submission)
        say(f"submitted {submitted.name}")
        job = await follow_job(trainer, submitted.name, every_epochs=every_epochs)
    except asyncio.CancelledError:
        with suppress(ModelrailError, TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                submitted = await submission
                say(f"cancelling {submitted.name}")
                await _cancel(trainer, submitted.name)
        raise
    if job.state != pb.TrainingJob.STATE_SUCCEEDED:
        raise Failure(f"{job.name} {_PHASES[job.state]}: {_reason(job.error)}")
    return job


async def _cancel(trainer: AsyncTrainerClient, name: str) -> None:
    await trainer.cancel_job(name)
    async with aclosing(trainer.watch_job(name)) as events:
        async for event in events:
            if event.state_change.new_state in TERMINAL_STATES:
                return


def _epochs_done(progress: pb.Progress) -> float:
    """Returns how many epochs are done, with the part that is done of the next."""
    if not progress.steps:  # trainers before this one do not tell them
        return progress.epoch
    return progress.epochs * progress.step / progress.steps


def _line(event: pb.TrainingJobEvent, every_epochs: int) -> str:
    kind = event.WhichOneof("kind")
    if kind == "state_change":
        change = event.state_change
        phase = _PHASES.get(change.new_state, "changed its state")
        why = f": {_reason(change.error)}" if change.HasField("error") else ""
        return f"job {phase}{_on_behalf_of(change)}{why}"
    if kind == "log_line":
        # The figures of an epoch come as data too, with the part of the data named.
        return "" if _EPOCH.match(event.log_line.text) else f"  {event.log_line.text}"
    if kind == "metric_report":
        return _metrics_line(event.metric_report, every_epochs)
    return ""


def _on_behalf_of(change: pb.StateChange) -> str:
    """Tells which client changed the state of a job that it did not just submit."""
    submitted = change.old_state == pb.TrainingJob.STATE_UNSPECIFIED
    if submitted or change.actor in {"", "trainer", "worker"}:
        return ""
    return f" (asked for by {change.actor})"


def _metrics_line(report: pb.MetricReport, every_epochs: int) -> str:
    progress = report.progress
    # Figures of an epoch that is under way are for curves.
    is_epoch = any(0 < metric.epoch <= progress.epoch for metric in report.metrics)
    if is_epoch:
        due = progress.epoch % max(every_epochs, 1) == 0 or progress.epoch == progress.epochs
        if not due:
            return ""
        width = len(str(progress.epochs))
        place = f"{progress.epoch:>{width}}/{progress.epochs}"
        return f"  epoch {place}  {metrics_text(report.metrics)}"
    return ""


def _step_text(progress: pb.Progress) -> str:
    """Returns where an epoch stands: `step 3/30, 1,500 rows/s, about 2 min 5 s left`."""
    text = f"step {progress.step}/{progress.steps}"
    if progress.rows_per_second:
        text += f", {shown(progress.rows_per_second)} rows/s"
    if progress.HasField("eta"):
        text += f", about {duration(round(progress.eta.ToTimedelta().total_seconds()))} left"
    return text


def metrics_text(metrics: Sequence[pb.Metric]) -> str:
    """Returns figures in one line: `train loss 0.0312, validation accuracy 0.9814`."""
    return ", ".join(
        f"{metric.split} {metric.name} {metric.value:.4g}"
        + (f" ({metric.runtime})" if metric.runtime and not metric.epoch else "")
        for metric in metrics
    )


def _reason(error: pb.JobError) -> str:
    reason = pb.JobError.Reason.Name(error.reason).removeprefix("REASON_")
    return f"{error.message} ({reason})" if error.message else reason
