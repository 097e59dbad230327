"""`modelrail jobs`: what the trainer does."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from modelrail.cli.command import Failure, command
from modelrail.cli.commands.models import AsJson
from modelrail.cli.console import (
    as_json,
    can_draw,
    cell,
    note,
    say,
    say_json,
    say_json_line,
    stdout,
    waiting,
)
from modelrail.cli.following import follow_job, metrics_text, phase_name, state_name
from modelrail.cli.live.watch import watch_live
from modelrail.cli.reporting import read_history, read_version
from modelrail.cli.session import Session
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.names import TrainingJobName
from modelrail.report import render
from modelrail.report.scale import shown
from modelrail.report.tables import duration
from modelrail.trainer.v1 import trainer_pb2 as pb

app = typer.Typer(help="Training jobs of the trainer.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="Id of the job, or its name `trainingJobs/ID`.")]
JobOrNewest = Annotated[
    str | None,
    typer.Argument(help="Id of the job, or its name `trainingJobs/ID`; without one, the newest."),
]


@command(app, "list", "trainer")
async def list_jobs(session: Session, *, json: AsJson = False) -> None:
    """List all jobs, the newest first."""
    async with session.trainer() as trainer:
        jobs = [job async for job in trainer.list_jobs()]
    if json:
        say_json([as_json(job) for job in jobs])
        return
    table = Table(
        "job", "state", "priority", "epoch", "version", "created", box=None, pad_edge=False
    )
    for job in jobs:
        table.add_row(
            TrainingJobName.parse(job.name).training_job,
            state_name(job.state),
            str(job.priority),
            f"{job.progress.epoch}/{job.progress.epochs}" if job.HasField("progress") else "-",
            cell(job.model_version or "-"),
            f"{job.create_time.ToDatetime():%Y-%m-%d %H:%M:%S}",
        )
    stdout().print(table if jobs else "no jobs yet")


@command(app, "get", "trainer")
@command(app, "show", "trainer")
async def show(session: Session, job: JobId, *, json: AsJson = False) -> None:
    """Show one job (`get` is the same)."""
    async with session.trainer() as trainer:
        found = await trainer.get_job(job_name(job))
    if json:
        say_json(as_json(found))
    else:
        show_job(found)


@command(app, "watch", "trainer")
async def watch_job(session: Session, job: JobOrNewest = None, *, json: AsJson = False) -> None:
    """Follow one job until it ends; Ctrl-C only ends the watching.

    In a terminal it is drawn with its curves. Elsewhere lines tell its states, its log, its
    figures after an epoch, and within an epoch its step, speed and time left.
    """
    async with session.trainer() as trainer:
        submitted = await _find(trainer, job)
        if json:
            async with aclosing(trainer.watch_job(submitted.name)) as events:
                async for event in events:
                    say_json_line(as_json(event))
        elif can_draw(stdout()):
            await watch_live(trainer, submitted, stdout(), phase_name)
        else:
            every_epochs = submitted.spec.log_every_epochs
            await follow_job(trainer, submitted.name, every_epochs=every_epochs)
        found = await trainer.get_job(submitted.name)
    if not json:
        show_job(found)
    if found.state != pb.TrainingJob.STATE_SUCCEEDED:
        raise Failure(f"{found.name} {state_name(found.state)}")


@command(app, "report", "trainer", "registry")
async def report_job(
    session: Session,
    job: JobOrNewest = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File to write; the default is the job's id and `.html`."),
    ] = None,
) -> None:
    """Write all about one job into an HTML file that opens offline."""
    async with session.trainer() as trainer:
        found = await _find(trainer, job)
        with waiting("reading its events"):
            history = await read_history(trainer, found)
    version, note_on_version = await read_version(session, found.model_version)
    page = render(
        found, history, version=version, version_note=note_on_version, now=datetime.now(UTC)
    )
    path = output or Path(f"{TrainingJobName.parse(found.name).training_job}.html")
    path.write_text(page, encoding="utf-8")
    if found.model_version and version is None:
        note(note_on_version, style="yellow")
    say(f"wrote {path}")


@command(app, "cancel", "trainer")
async def cancel_job(session: Session, job: JobId) -> None:
    """Stop a job; nothing is published."""
    async with session.trainer() as trainer:
        found = await trainer.cancel_job(job_name(job))
    say(f"{found.name} is {state_name(found.state)}")


@command(app, "pause", "trainer")
async def pause_job(session: Session, job: JobId) -> None:
    """Take a job out of the queue, or stop its process, until it is resumed or cancelled."""
    async with session.trainer() as trainer:
        found = await trainer.pause_job(job_name(job))
    say(f"{found.name} is {state_name(found.state)}")


@command(app, "resume", "trainer")
async def resume_job(
    session: Session,
    job: JobId,
    *,
    processes: Annotated[
        int, typer.Option(min=0, max=64, help="Processes that train together; 0: as before.")
    ] = 0,
) -> None:
    """Put a paused job back into the queue; it goes on from its last checkpoint."""
    async with session.trainer() as trainer:
        found = await trainer.resume_job(job_name(job), processes=processes)
    say(f"{found.name} is {state_name(found.state)}")


@command(app, "clone", "trainer")
async def clone_job(session: Session, job: JobId) -> None:
    """Submit a new job like another, whatever became of that."""
    async with session.trainer() as trainer:
        found = await trainer.clone_job(job_name(job))
    say(f"submitted {found.name}; follow it with: modelrail jobs watch {found.name}")


@command(app, "delete", "trainer")
async def delete_job(session: Session, job: JobId) -> None:
    """Delete a job that has ended, with its events and log; its version stays."""
    name = job_name(job)
    async with session.trainer() as trainer:
        await trainer.delete_job(name)
    say(f"{name} is deleted")


async def _find(trainer: AsyncTrainerClient, job: str | None) -> pb.TrainingJob:
    """Returns a job, or the newest one.

    Raises:
        Failure: There is no job yet.
        ModelrailError: There is none of that name.
    """
    if job is not None:
        return await trainer.get_job(job_name(job))
    async for newest in trainer.list_jobs():
        return await trainer.get_job(newest.name)
    raise Failure("there are no jobs yet")


def job_name(text: str) -> str:
    """Returns the resource name of a job from its id or its name.

    Raises:
        InvalidName: It is neither.
    """
    if "/" in text:
        return str(TrainingJobName.parse(text))
    return str(TrainingJobName(text))


def show_job(job: pb.TrainingJob) -> None:
    """Writes what is known about a job."""
    say(f"{job.name} {state_name(job.state)}", style="bold")
    if job.parent_job:
        say(f"  clone of {job.parent_job}")
    if job.priority:
        say(f"  priority {job.priority}")
    if job.processes > 1:
        say(f"  {job.processes} processes")
    if job.HasField("max_run_duration"):
        say(f"  runs for {job.max_run_duration.ToTimedelta().total_seconds():g} s at most")
    if job.HasField("expire_time"):
        say(f"  expires  {job.expire_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC unless started")
    if job.max_retries:
        say(f"  retries  {job.max_retries} at most; attempt {job.attempt}")
    if job.HasField("progress"):
        say(f"  epoch    {_progress_text(job.progress)}")
    if job.HasField("error"):
        reason = pb.JobError.Reason.Name(job.error.reason).removeprefix("REASON_")
        say(f"  error    {reason}: {job.error.message}")
    for measured in dict.fromkeys((metric.split, metric.runtime) for metric in job.metrics):
        metrics = [m for m in job.metrics if (m.split, m.runtime) == measured]
        say(f"  metrics  {metrics_text(metrics)}")
    if job.model_version:
        say(f"  version  {job.model_version}")
    _show_walls(job)


def _show_walls(job: pb.TrainingJob) -> None:
    if job.isolation:
        active = [_layer_name(layer) for layer in job.isolation if layer.active]
        say(f"  walls    {', '.join(active) or 'none'}")
        for layer in job.isolation:
            if not layer.active:
                say(f"  no wall  {_layer_name(layer)}: {layer.detail}")


def _progress_text(progress: pb.Progress) -> str:
    text = f"{progress.epoch}/{progress.epochs}"
    if progress.steps:
        text += f", step {progress.step}/{progress.steps}"
    if progress.HasField("eta"):
        text += f", {shown(progress.rows_per_second)} rows/s"
        left = duration(progress.eta.ToTimedelta().total_seconds())
        text += f", about {left} of training left when it was told last"
    return text


def _layer_name(layer: pb.IsolationLayer) -> str:
    name = pb.IsolationLayer.Name.Name(layer.name).removeprefix("NAME_")
    return name.lower().replace("_", " ")
