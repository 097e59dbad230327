"""Jobs on NVIDIA GPUs; without one only that they are refused."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.artifact import load_result
from modelrail_trainer.handover.journal import (
    FailedEvent,
    FailureReason,
    JournalEvent,
    LogEvent,
    read_events,
)
from tests.integration.replica_jobs import SECONDS, digits, finished, start

GPUS = torch.cuda.device_count()
needs_gpu = pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU that PyTorch can use")
needs_two = pytest.mark.skipif(GPUS < 2, reason="needs two NVIDIA GPUs that PyTorch can use")
EXIT_FAILED = 3


def on_cuda(*, epochs: int = 15) -> pb.TrainingJobSpec:
    wanted = digits(epochs=epochs)
    wanted.device = pb.TrainingJobSpec.DEVICE_CUDA
    return wanted


def events(directory: Path) -> list[JournalEvent]:
    return read_events(directory / "events.jsonl", 0)[0]


def lines(directory: Path) -> list[str]:
    return [event.text for event in events(directory) if isinstance(event, LogEvent)]


def accuracy(directory: Path) -> dict[str, float]:
    """Returns the accuracy on the test rows, by what computed it."""
    metrics = load_result(directory).metrics
    return {m.runtime: m.value for m in metrics if (m.name, m.split) == ("accuracy", "test")}


@pytest.mark.skipif(GPUS > 0, reason="here is a GPU")
def test_a_job_that_asks_for_a_gpu_fails_where_there_is_none(tmp_path: Path) -> None:
    assert start(on_cuda(), tmp_path / "job", 1).wait(SECONDS) == EXIT_FAILED
    *_, last = events(tmp_path / "job")
    assert isinstance(last, FailedEvent)
    assert last.reason is FailureReason.DEVICE_UNAVAILABLE
    assert "expected 1, one for each process of the job, got 0; ask for DEVICE_CPU" in last.message


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "precision", [pb.TrainingJobSpec.PRECISION_FP32, pb.TrainingJobSpec.PRECISION_MIXED_BF16]
)
def test_digits_are_learned_on_a_gpu_and_proven_on_the_processor(
    tmp_path: Path, precision: pb.TrainingJobSpec.Precision
) -> None:
    wanted = on_cuda()
    wanted.precision = precision
    directory = finished(wanted, tmp_path / "job", 1)
    assert any(line.startswith("trains on cuda:0, ") for line in lines(directory))
    found = accuracy(directory)
    assert found["onnxruntime"] == pytest.approx(found["pytorch"], abs=0.005)
    assert found["onnxruntime"] > 0.95
    assert load_result(directory).lineage.packages["cuda"] == torch.version.cuda


@pytest.mark.gpu
@needs_gpu
def test_a_killed_job_goes_on_from_its_checkpoint_on_the_gpu(tmp_path: Path) -> None:
    directory = tmp_path / "job"
    process = start(on_cuda(), directory, 1)
    while not list((directory / "checkpoints").glob("step-*.safetensors")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished(on_cuda(), directory, 1)
    assert any(line.startswith("goes on from the checkpoint") for line in lines(directory))
    assert accuracy(directory)["onnxruntime"] > 0.95


@pytest.mark.gpu
@needs_two
def test_two_processes_train_on_two_gpus(tmp_path: Path) -> None:
    directory = finished(on_cuda(), tmp_path / "job", 2)
    assert "2 processes train together, each on its part of every batch" in lines(directory)
    assert accuracy(directory)["onnxruntime"] > 0.95
