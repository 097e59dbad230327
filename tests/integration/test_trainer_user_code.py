"""Jobs whose model or data is the owner's own Python, by real worker processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.artifact import TrainingResult, load_result, verify_files
from modelrail_trainer.handover.journal import (
    FailedEvent,
    FailureReason,
    LogEvent,
    MetricsEvent,
    read_events,
)
from modelrail_trainer.isolation.confinement import Confinement
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.worker.export.second_look import look_again
from tests.user_code import NETS, ROWS, line_of, write_code

SECONDS = 240.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of user code."""
    return write_code(tmp_path / "code")


def job(model: str, dataset: str = "rows:blobs", **fields: Any) -> pb.TrainingJobSpec:
    """A job of two functions, with `_model` and `_data` for their arguments."""
    arguments = {"rows": 90} if dataset == "rows:blobs" else {}
    return json_format.ParseDict(
        {
            "dataset": {
                "custom": {"entry_point": dataset, "arguments": fields.pop("_data", arguments)}
            },
            "model": {"custom": {"entry_point": model, "arguments": fields.pop("_model", {})}},
            "loss": {"cross_entropy": {}},
            "optimizer": {"adam": {"learning_rate": 0.02}},
            "epochs": 3,
            "batch_size": 16,
            "seed": 5,
            "publication": {"model": "own"},
            **fields,
        },
        pb.TrainingJobSpec(),
    )


def imported(model: str, dataset: str) -> pb.TrainingJobSpec:
    spec = job(model, dataset, epochs=0)
    spec.ClearField("loss")
    spec.ClearField("optimizer")
    return spec


def run(spec: pb.TrainingJobSpec, folder: Path, *flags: str) -> tuple[int, Path]:
    directory = folder.parent / "job"
    directory.mkdir(exist_ok=True)
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    command = [sys.executable, "-W", "error", "-P", "-m", "modelrail_trainer.worker", *flags]
    finished = subprocess.run(
        [*command, f"--user-code={folder}", "--job-directory", str(directory)],
        capture_output=True, text=True, timeout=SECONDS, check=False, cwd=directory,
    )  # fmt: skip
    (folder.parent / "worker.log").write_text(finished.stdout + finished.stderr)
    return finished.returncode, directory


def succeeded(
    spec: pb.TrainingJobSpec, folder: Path, *flags: str
) -> tuple[Path, TrainingResult, list[str]]:
    status, directory = run(spec, folder, *flags)
    assert status == 0, (folder.parent / "worker.log").read_text()
    result = load_result(directory)
    verify_files(result, directory)
    look_again(result, directory)
    events = read_events(directory / "events.jsonl", 0)[0]
    return directory, result, [event.text for event in events if isinstance(event, LogEvent)]


def failed(spec: pb.TrainingJobSpec, folder: Path) -> FailedEvent:
    status, directory = run(spec, folder)
    assert status == 3, (folder.parent / "worker.log").read_text()
    event = read_events(directory / "events.jsonl", 0)[0][-1]
    assert isinstance(event, FailedEvent)
    assert str(folder) not in event.message
    assert sys.prefix not in event.message
    return event


def told(spec: pb.TrainingJobSpec, folder: Path) -> str:
    event = failed(spec, folder)
    assert event.reason is FailureReason.USER_CODE, event
    return event.message


# What works


def test_a_model_and_data_of_ones_own_are_trained_proven_and_traced(folder: Path) -> None:
    spec = job("nets:build", _model={"width": 8, "dropout": 0.1}, epochs=12)
    directory, result, _ = succeeded(spec, folder)
    (place,) = result.signature.inputs
    assert (place.name, place.meaning) == ("place", "place on the map")
    assert result.signature.outputs[0].labels == ("low", "high")
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    (probabilities,) = session.run(
        ["probabilities"], {"place": np.array([[-1, -1], [4, 4]], np.float32)}
    )
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    assert result.lineage.dataset == "custom data set rows:blobs"
    sources = {k: v for k, v in result.lineage.packages.items() if k.startswith("user-code:")}
    assert sources == {
        f"user-code:{name}": hashlib.sha256((folder / f"{name}.py").read_bytes()).hexdigest()
        for name in ("nets", "layers", "rows")
    }
    assert {path.name for path in folder.iterdir()} == {"nets.py", "layers.py", "rows.py"}


def test_a_model_of_ones_own_learns_a_data_set_of_the_trainer(folder: Path) -> None:
    spec = job("nets:build", _model={"width": 4})
    spec.dataset.line.points = 40
    spec.loss.mse.SetInParent()
    _, result, _ = succeeded(spec, folder)
    assert "user-code:nets" in result.lineage.packages


@pytest.mark.slow
def test_a_model_is_imported_with_the_weights_that_it_has(folder: Path) -> None:
    directory, result, lines = succeeded(imported("nets:fixed", "rows:line"), folder)
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    (y,) = session.run(["y"], {"x": np.array([[0], [10]], np.float32)})
    assert y[:, 0].tolist() == [1.0, 21.0]
    assert result.lineage.dataset == "custom data set rows:line (imported, not trained)"
    assert any(line.startswith("imported, not trained") for line in lines)
    losses = {(m.split, m.runtime): m.value for m in result.metrics if m.name == "loss"}
    assert losses[("test", "onnxruntime")] == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("epochs", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_a_dry_run_takes_one_step_at_most(epochs: int, folder: Path) -> None:
    spec = job("nets:tied", epochs=epochs) if epochs else imported("nets:fixed", "rows:line")
    directory, _, _ = succeeded(spec, folder, "--dry-run")
    events = read_events(directory / "events.jsonl", 0)[0]
    assert {e.step for e in events if isinstance(e, MetricsEvent)} == {min(epochs, 1)}


# Checkpoints


@pytest.mark.slow
def test_a_job_goes_on_bit_for_bit_and_only_with_the_same_code(folder: Path) -> None:
    spec = job("nets:tied", _model={"dropout": 0.2}, checkpoint_every_steps=6)
    directory, _, _ = succeeded(spec, folder)
    whole = (directory / "model.onnx").read_bytes()
    steps = sorted((directory / "checkpoints").glob("*.safetensors"))
    steps[-1].unlink()  # as if it had been killed before
    for name in ("events.jsonl", "result.json", "model.onnx"):
        (directory / name).unlink()
    _, _, lines = succeeded(spec, folder)
    assert any(line.startswith("goes on from the checkpoint after step") for line in lines)
    assert (directory / "model.onnx").read_bytes() == whole

    (folder / "nets.py").write_text(NETS + "# another version\n")
    (directory / "events.jsonl").unlink()
    _, _, lines = succeeded(spec, folder)
    assert not any(line.startswith("goes on") for line in lines)
    assert "begins anew: its checkpoint is of another user-code:nets" in lines


# What is told when it goes wrong


def test_an_exception_is_told_with_the_owners_own_frames(folder: Path) -> None:
    message = told(job("nets:build", "rows:multiplies"), folder)
    first, *frames = message.splitlines()
    assert first.startswith("rows:multiplies: ValueError: matmul: ")
    assert frames == [
        f"  File 'rows.py', line {line_of(ROWS, '@ np.zeros(4)')}, in multiplies",
        "    return np.zeros(3) @ np.zeros(4)",
    ]


def test_an_exception_in_training_is_told_without_paths(folder: Path) -> None:
    message = told(job("nets:fails_in_training"), folder)
    assert message.startswith("nets:fails_in_training: ValueError: no such thing at nets.py\n")
    assert f"  File 'nets.py', line {line_of(NETS, 'no such thing')}, in forward\n" in message


def test_an_exception_deep_in_torch_is_the_models(folder: Path) -> None:
    # One of the 62 training rows is left for the last batch.
    spec = job("nets:fails_without_a_frame", batch_size=61)
    assert told(spec, folder).startswith(
        "nets:fails_without_a_frame: ValueError: Expected more than 1 value per channel"
    )


def test_a_broken_contract_is_told_before_training(folder: Path) -> None:
    expected = "expected the module to map rows [2, 2] to float32 [2, 2], got float32 [2, 3]"
    assert expected in told(job("nets:wide"), folder)
    events = read_events(folder.parent / "job" / "events.jsonl", 0)[0]
    assert not any(isinstance(event, MetricsEvent) for event in events)


def test_wrong_arguments_are_told(folder: Path) -> None:
    message = told(job("nets:build", _model={"height": 3}), folder)
    assert message.startswith("nets:build: TypeError: build() ")
    assert "'height'" in message


@pytest.mark.parametrize(
    ("how", "expected"),
    [("exit", "ended the process with sys.exit(4)"), ("_exit", "with os._exit(5)")],
)
def test_code_that_ends_the_process_is_told_as_such(how: str, expected: str, folder: Path) -> None:
    message = told(job("nets:leaves", _model={"how": how}), folder)
    assert expected in message
    assert "in leaves" in message


def test_a_module_that_ends_the_process_in_training_is_told_as_such(folder: Path) -> None:
    message = told(job("nets:leaves_in_training"), folder)
    assert "nets:leaves_in_training ended the process with os._exit(0)" in message


def test_an_interrupt_of_its_own_is_told_as_such(folder: Path) -> None:
    assert "ended the process with an interrupt" in told(job("nets:build", "rows:dies"), folder)


@pytest.mark.parametrize("broken", ["nets", "layers"])
def test_a_module_that_is_no_python_is_told_with_its_line(broken: str, folder: Path) -> None:
    (folder / f"{broken}.py").write_text("x = 1\ndef broken(:\n")
    message = told(job("nets:build", _model={"width": 3}), folder)
    assert message.splitlines() == [
        "nets:build: SyntaxError: invalid syntax",
        f"  File '{broken}.py', line 2",
        "    def broken(:",
    ]


def test_a_model_that_cannot_be_exported_fails_the_export(folder: Path) -> None:
    assert failed(job("nets:not_in_onnx"), folder).reason is FailureReason.EXPORT_FAILED


def test_without_a_folder_the_worker_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "spec.binpb").write_bytes(job("nets:build").SerializeToString())
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "modelrail_trainer.worker", "--job-directory", str(tmp_path)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert finished.returncode == 3
    event = read_events(tmp_path / "events.jsonl", 0)[0][-1]
    assert isinstance(event, FailedEvent)
    assert "this trainer runs no code of the owners of jobs" in event.message


# What the walls around the process let it do


def confined(spec: pb.TrainingJobSpec, folder: Path, hidden: Path) -> FailedEvent:
    directory = folder.parent / "job"
    directory.mkdir()
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    confinement = Confinement(
        directory=directory,
        limits=JobLimits(file_bytes=1 << 30),
        readable=(folder,),
        hidden=(hidden,),
    )
    finished = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "modelrail_trainer.isolation", confinement.to_json()),
            *(sys.executable, "-P", "-m", "modelrail_trainer.worker"),
            *(f"--user-code={folder}", "--job-directory", str(directory)),
        ],
        capture_output=True, text=True, timeout=SECONDS, check=False, cwd=directory,
    )  # fmt: skip
    assert finished.returncode == 3, finished.stdout + finished.stderr
    event = read_events(directory / "events.jsonl", 0)[0][-1]
    assert isinstance(event, FailedEvent)
    return event


@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize(
    ("function", "place"), [("opens", "house/trainer.sqlite3"), ("writes", "code/rows.py")]
)
def test_the_code_reads_no_secret_and_changes_no_source(
    function: str, place: str, folder: Path
) -> None:
    house = folder.parent / "house"
    house.mkdir()
    (house / "trainer.sqlite3").write_text("secret")
    path = str(folder.parent / place)
    event = confined(job("nets:tied", f"rows:{function}", _data={"path": path}), folder, house)
    assert event.reason is FailureReason.USER_CODE
    name = Path(place).name
    assert event.message.startswith(
        f"rows:{function}: PermissionError: [Errno 13] Permission denied: '{name}'; a job writes "
    )
    assert (folder / "rows.py").read_text() == ROWS
