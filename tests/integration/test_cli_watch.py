"""`modelrail jobs watch` and `jobs report` as processes, in a terminal and outside of one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from modelrail.cli import reporting
from modelrail.cli.reporting import read_history
from modelrail.client.trainer import AsyncTrainerClient
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail.trainer.v1 import trainer_pb2_grpc
from modelrail_server.context import Context

SECONDS = 60
NAME = "trainingJobs/a"
ROWS, COLUMNS = 30, 100
_XTERM = {"TERM": "xterm-256color"}
_OF_TERMINALS = {
    *("COLUMNS", "LINES", "TERM", "NO_COLOR"),
    *("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
}
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _events() -> list[pb.TrainingJobEvent]:
    """A job of three epochs that succeeds."""
    kinds: list[pb.TrainingJobEvent] = [_change("QUEUED"), _change("PREPARING"), _change("RUNNING")]
    kinds.append(pb.TrainingJobEvent(log_line=pb.LogLine(text="data set digits\x1b[2J")))
    for epoch in (1, 2, 3):
        progress = pb.Progress(epoch=epoch, epochs=3, step=10 * epoch, rows_per_second=1500)
        metrics = [
            pb.Metric(name="loss", split=split, value=value / epoch, epoch=epoch, step=10 * epoch)
            for split, value in (("train", 1.0), ("validation", 2.0))
        ]
        report = pb.MetricReport(progress=progress, metrics=metrics)
        kinds.append(pb.TrainingJobEvent(metric_report=report))
    kinds.append(_change("SUCCEEDED"))
    for sequence, event in enumerate(kinds, start=1):
        event.sequence = sequence
        event.create_time.GetCurrentTime()
    return kinds


def _change(state: str) -> pb.TrainingJobEvent:
    return pb.TrainingJobEvent(state_change=pb.StateChange(new_state=f"STATE_{state}"))


@dataclass
class ScriptedTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Tells the events of one job, and breaks off after some of them, once."""

    state: str = "SUCCEEDED"
    breaks_after: int | None = None
    model_version: str = ""
    talks_on: bool = False
    falls_silent: bool = False
    events: list[pb.TrainingJobEvent] = field(default_factory=_events)
    names: list[str] = field(default_factory=list)
    asked_after: list[int] = field(default_factory=list)

    async def GetTrainingJob(  # noqa: N802 - the name is the protocol's
        self, request: pb.GetTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        job = pb.TrainingJob(
            name=NAME, state=f"STATE_{self.state}", attempt=1, model_version=self.model_version
        )
        if self.state == "RUNNING":
            job.progress.CopyFrom(self.events[5].metric_report.progress)
        else:
            job.end_time.GetCurrentTime()
        return job

    async def ListTrainingJobs(  # noqa: N802 - the name is the protocol's
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        return pb.ListTrainingJobsResponse(
            training_jobs=[pb.TrainingJob(name=name) for name in self.names]
        )

    async def WatchTrainingJob(  # noqa: N802 - the name is the protocol's
        self,
        request: pb.WatchTrainingJobRequest,
        context: Context,
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        self.asked_after.append(request.after_sequence)
        for event in self.events[request.after_sequence :]:
            if event.sequence == self.breaks_after:
                self.breaks_after = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the trainer stops")
            yield pb.WatchTrainingJobResponse(event=event)
        sequence = len(self.events)
        while self.talks_on:
            sequence += 1
            event = pb.TrainingJobEvent(sequence=sequence, log_line=pb.LogLine(text="on and on"))
            yield pb.WatchTrainingJobResponse(event=event)
        if self.state == "RUNNING" or self.falls_silent:
            await asyncio.Event().wait()


@asynccontextmanager
async def _serving(trainer: ScriptedTrainer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def _command(
    trainer: ScriptedTrainer,
    *arguments: str,
    terminal: int | None = None,
    environ: Mapping[str, str] = _XTERM,
) -> tuple[int, str]:
    """Runs `modelrail jobs …` and returns its status and what it wrote to its output."""
    async with _serving(trainer) as address:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "modelrail.cli", "jobs", *arguments),
            *("--trainer", address),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if terminal is None else terminal,
            stderr=asyncio.subprocess.STDOUT,
            env={k: v for k, v in os.environ.items() if k not in _OF_TERMINALS} | {**environ},
        )
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, (output or b"").decode()


async def _in_terminal(
    trainer: ScriptedTrainer, *arguments: str, environ: Mapping[str, str] = _XTERM
) -> tuple[int, str]:
    """Runs a command in a terminal of a fixed size and returns what it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    written = bytearray()
    loop = asyncio.get_running_loop()
    # A terminal that nobody reads stops who writes to it.
    loop.add_reader(ours, lambda: written.extend(os.read(ours, 65536)))
    try:
        status, _ = await _command(trainer, *arguments, terminal=theirs, environ=environ)
        os.set_blocking(ours, False)
        while True:
            try:
                written.extend(os.read(ours, 65536))
            except BlockingIOError:
                break
    finally:
        loop.remove_reader(ours)
        os.close(theirs)
        os.close(ours)
    return status, written.decode()


def _scripted(**fields: Any) -> ScriptedTrainer:
    return ScriptedTrainer(**fields)  # type: ignore[abstract]  # the other methods are not called


async def test_a_terminal_shows_the_job_and_then_its_outcome_across_a_restart() -> None:
    trainer = _scripted(breaks_after=6)
    status, written = await _in_terminal(trainer, "watch", "a")
    assert status == 0
    assert trainer.asked_after == [0, 5]  # where it broke off, and nothing twice
    text = _ESCAPE.sub("", written)
    last = text[text.rindex("a  succeeded") :]
    assert "epoch 3/3  100%  1,500 rows/s" in last
    assert "validation loss 0.6667" in last
    assert "⣀⠤⠒⠉ train" in last
    assert "data set digits\N{REPLACEMENT CHARACTER}[2J" in last
    assert f"{NAME} succeeded" in last
    assert "\x1b[2J" not in written
    lines = [line.rstrip("\r") for line in last.split("\n")]
    assert max(map(len, lines)) <= COLUMNS


async def test_a_pipe_gets_a_line_for_each_event() -> None:
    trainer = _scripted(breaks_after=6)
    status, written = await _command(trainer, "watch", "a")
    assert status == 0
    assert "\x1b" not in written
    epochs = [line for line in written.splitlines() if line.startswith("  epoch ")]
    assert epochs[:3] == [
        f"  epoch {n}/3  train loss {1 / n:.4g}, validation loss {2 / n:.4g}" for n in (1, 2, 3)
    ]
    assert "job succeeded" in written


async def test_a_terminal_that_cannot_be_drawn_on_gets_a_line_for_each_event() -> None:
    status, written = await _in_terminal(_scripted(), "watch", "a", environ={"TERM": "dumb"})
    assert status == 0
    assert "\x1b" not in written
    assert "  epoch 2/3  train loss 0.5, validation loss 1\r\n" in written


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
async def test_nothing_is_drawn_into_a_pipe(variable: str) -> None:
    status, written = await _command(_scripted(), "watch", "a", environ={**_XTERM, variable: "1"})
    assert status == 0
    assert "\x1b[?25l" not in written  # a hidden cursor
    assert "\x1b[2K" not in written  # a line taken back
    assert "  epoch 2/3  train loss 0.5, validation loss 1\n" in written


def _told(step: int, left_seconds: int | None) -> pb.TrainingJobEvent:
    """A report of an epoch that is under way, without figures."""
    progress = pb.Progress(epochs=3, step=step, steps=30, rows_per_second=1500)
    if left_seconds is not None:
        progress.eta.FromSeconds(left_seconds)
    return pb.TrainingJobEvent(metric_report=pb.MetricReport(progress=progress))


async def test_a_pipe_is_told_of_the_steps_within_an_epoch() -> None:
    trainer = _scripted()
    trainer.events[4:4] = [_told(3, 90), _told(7, None)]
    for sequence, event in enumerate(trainer.events, start=1):
        event.sequence = sequence
    status, written = await _command(trainer, "watch", "a")
    assert status == 0
    assert (
        "  step 3/30, 1,500 rows/s, about 1 min 30 s left\n  step 7/30, 1,500 rows/s\n  epoch 1/3"
    ) in written
    status, written = await _in_terminal(trainer, "watch", "a")
    assert status == 0
    assert "step 3/30" not in written  # the bar shows it


async def test_a_program_gets_every_event_as_a_line_of_json() -> None:
    trainer = _scripted(breaks_after=6)
    status, written = await _command(trainer, "watch", "a", "--json")
    assert status == 0
    events = [json.loads(line) for line in written.splitlines()]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(trainer.events) + 1))
    assert events[-1]["stateChange"]["newState"] == "STATE_SUCCEEDED"


async def test_watching_a_job_that_failed_says_so_by_its_status() -> None:
    trainer = _scripted(state="FAILED")
    trainer.events[-1].state_change.new_state = pb.TrainingJob.STATE_FAILED
    status, written = await _in_terminal(trainer, "watch", "a")
    assert status == 1
    assert "failed" in written


async def test_the_report_of_a_running_job_holds_what_it_told_so_far(tmp_path: Path) -> None:
    trainer = _scripted(state="RUNNING")
    del trainer.events[-1]
    file = tmp_path / "a.html"
    status, written = await _command(trainer, "report", "a", "--output", str(file))
    assert (status, written) == (0, f"wrote {file}\n")
    page = file.read_text()
    assert "data set digits" in page
    assert "The job has published nothing." in page
    assert '<polyline class="line train"' in page


async def test_the_report_of_a_job_that_never_falls_silent_comes_to_an_end(tmp_path: Path) -> None:
    trainer = _scripted(state="RUNNING", talks_on=True)
    del trainer.events[-1]
    status, _ = await _command(trainer, "report", "a", "--output", str(tmp_path / "a.html"))
    assert status == 0


async def test_the_report_of_a_job_without_progress_that_never_falls_silent_comes_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "_LIVE_SECONDS", 0.5)
    trainer = _scripted(talks_on=True)
    del trainer.events[2:]
    job = pb.TrainingJob(name=NAME, state="STATE_PREPARING", attempt=1)
    async with (
        asyncio.timeout(SECONDS),
        _serving(trainer) as address,
        AsyncTrainerClient(address) as client,
    ):
        history = await read_history(client, job)
    assert history.sequence > 2


async def test_the_report_of_a_job_that_tells_nothing_comes_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "_LIVE_SECONDS", 0.5)
    trainer = _scripted(falls_silent=True, events=[])
    job = pb.TrainingJob(name=NAME, state="STATE_QUEUED")
    async with (
        asyncio.timeout(SECONDS),
        _serving(trainer) as address,
        AsyncTrainerClient(address) as client,
    ):
        history = await read_history(client, job)
    assert history.sequence == 0


@pytest.mark.parametrize("state", ["PAUSED", "EXPORTING"])
async def test_the_report_of_a_job_that_trains_no_more_holds_its_last_events(state: str) -> None:
    trainer = _scripted(falls_silent=True)
    last = trainer.events[-1]
    last.state_change.CopyFrom(_change(state).state_change)
    said = pb.TrainingJobEvent(sequence=last.sequence + 1, log_line=pb.LogLine(text="one more"))
    trainer.events.append(said)
    job = pb.TrainingJob(name=NAME, state=f"STATE_{state}", attempt=1)
    job.progress.CopyFrom(trainer.events[4].metric_report.progress)
    async with (
        asyncio.timeout(SECONDS),
        _serving(trainer) as address,
        AsyncTrainerClient(address) as client,
    ):
        history = await read_history(client, job)
    assert history.sequence == said.sequence
    assert history.phases[-1].state == job.state
    assert history.log[-1][1] == "one more"


async def test_a_report_without_the_registry_says_what_it_lacks(tmp_path: Path) -> None:
    trainer = _scripted(model_version="models/digits/versions/1")
    file = tmp_path / "a.html"
    status, written = await _command(
        trainer, "report", "a", "--output", str(file), "--registry", "127.0.0.1:1"
    )
    assert status == 0
    assert "did not tell about models/digits/versions/1" in " ".join(written.split())
    assert "did not tell about models/digits/versions/1" in file.read_text()


async def test_without_a_name_it_is_the_newest_job(tmp_path: Path) -> None:
    trainer = _scripted(names=[NAME, "trainingJobs/older"])
    status, written = await _command(trainer, "watch")
    assert (status, written.splitlines()[-1]) == (0, f"{NAME} succeeded")
    status, written = await _command(_scripted(), "report", "--output", str(tmp_path / "a.html"))
    assert (status, written) == (1, "error: there are no jobs yet\n")
