"""Jobs that tests have a real worker process run, without the service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.artifact import TrainingResult, load_result, verify_files
from modelrail_trainer.handover.journal import FailedEvent, LogEvent, read_events
from modelrail_trainer.worker.export.second_look import look_again

SECONDS = 240.0


def train(spec: pb.TrainingJobSpec, tmp_path: Path) -> tuple[int, Path]:
    """Runs a job on the files of `tmp_path`, with warnings as errors."""
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    command = [sys.executable, "-W", "error", "-m", "modelrail_trainer.worker"]
    finished = subprocess.run(
        [*command, f"--data-root={tmp_path}", "--job-directory", str(directory)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    (tmp_path / "worker.log").write_text(finished.stdout + finished.stderr)
    return finished.returncode, directory


def succeeded(spec: pb.TrainingJobSpec, tmp_path: Path) -> tuple[Path, TrainingResult]:
    status, directory = train(spec, tmp_path)
    assert status == 0, (tmp_path / "worker.log").read_text()
    result = load_result(directory)
    verify_files(result, directory)
    look_again(result, directory)
    return directory, result


def failure_of(spec: pb.TrainingJobSpec, tmp_path: Path) -> FailedEvent:
    status, directory = train(spec, tmp_path)
    assert status == 3, (tmp_path / "worker.log").read_text()
    failure = read_events(directory / "events.jsonl", 0)[0][-1]
    assert isinstance(failure, FailedEvent)
    return failure


def said(directory: Path) -> list[str]:
    events = read_events(directory / "events.jsonl", 0)[0]
    return [event.text for event in events if isinstance(event, LogEvent)]


def figure(result: TrainingResult, name: str, split: str, runtime: str) -> float:
    (value,) = [
        metric.value
        for metric in result.metrics
        if (metric.name, metric.split, metric.runtime) == (name, split, runtime)
    ]
    return value
