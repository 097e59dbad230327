"""Jobs on images, by real worker processes: files in, pixels of any size answered with a class."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from google.protobuf import json_format
from PIL import Image

import modelrail
from modelrail.client.errors import InvalidArgument
from modelrail.client.inference import AsyncInferenceClient
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.provider import Provider
from modelrail_inference.service import build
from modelrail_server.application import Runtime
from modelrail_server.server import start_server
from modelrail_trainer.handover.artifact import TrainingResult, load_result, verify_files
from modelrail_trainer.handover.journal import (
    FailedEvent,
    FailureReason,
    LogEvent,
    MetricsEvent,
    read_events,
)
from modelrail_trainer.worker.export.second_look import look_again

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(modelrail.__file__).parent / "examples"
SECONDS = 120.0
WORKER = [sys.executable, "-W", "error", "-m", "modelrail_trainer.worker"]


def example(name: str) -> pb.TrainingJobSpec:
    content = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return json_format.ParseDict(content, pb.TrainingJobSpec())


def begin(spec: pb.TrainingJobSpec, root: Path, directory: Path) -> subprocess.Popen[bytes]:
    """Starts a job on the files of a root, with warnings as errors."""
    directory.mkdir(exist_ok=True)
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    with (directory / "worker.log").open("ab") as log:
        return subprocess.Popen(
            [*WORKER, f"--data-root={root}", "--job-directory", str(directory)],
            stdout=log, stderr=log,
        )  # fmt: skip


def succeeded(spec: pb.TrainingJobSpec, root: Path, directory: Path) -> TrainingResult:
    status = begin(spec, root, directory).wait(SECONDS)
    assert status == 0, (directory / "worker.log").read_text()
    result = load_result(directory)
    verify_files(result, directory)
    look_again(result, directory)
    return result


def failure_of(spec: pb.TrainingJobSpec, root: Path, directory: Path) -> FailedEvent:
    status = begin(spec, root, directory).wait(SECONDS)
    assert status == 3, (directory / "worker.log").read_text()
    failure = read_events(directory / "events.jsonl", 0)[0][-1]
    assert isinstance(failure, FailedEvent)
    assert str(root) not in failure.message
    return failure


def said(directory: Path) -> list[str]:
    events = read_events(directory / "events.jsonl", 0)[0]
    return [event.text for event in events if isinstance(event, LogEvent)]


def accuracy(result: TrainingResult, split: str, runtime: str) -> float:
    (value,) = [
        metric.value
        for metric in result.metrics
        if (metric.name, metric.split, metric.runtime) == ("accuracy", split, runtime)
    ]
    return value


def write_digits(root: Path) -> tuple[Any, Any]:
    """Writes the digits as PNG files; returns them, uint8 [N, 8, 8], and their classes, [N]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        folder = root / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return pixels, digits.target


@asynccontextmanager
async def served(model: Path, folder: Path) -> AsyncIterator[AsyncInferenceClient]:
    """Serves a file as the model `digits`, tried in a throw-away process first."""
    (folder / "models" / "digits" / "1").mkdir(parents=True)
    shutil.copy(model, folder / "models" / "digits" / "1" / "model.onnx")
    config = InferenceConfig(
        grpc_address=f"unix:{folder}/s",
        data_dir=folder / "inference",
        provider=Provider.CPU,
        model_repository=folder / "models",
    )
    runtime = Runtime("inference")
    async with build(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        try:
            async with AsyncInferenceClient(address) as client, asyncio.timeout(SECONDS):
                while not await client.model_ready("digits"):  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.02)
                yield client
        finally:
            runtime.stopping.set()
            await server.stop(0)


async def test_digits_in_folders_are_learned_and_told_apart_in_any_size(tmp_path: Path) -> None:
    pixels, labels = write_digits(tmp_path)
    result = succeeded(example("digits-images"), tmp_path, tmp_path / "job")
    assert accuracy(result, "test", "onnxruntime") >= 0.95
    assert accuracy(result, "test", "onnxruntime") == pytest.approx(
        accuracy(result, "test", "pytorch"), abs=0.01
    )
    assert [file.path for file in result.files] == ["model.onnx", "bare.onnx"]
    (image,) = result.signature.inputs
    assert (image.datatype, image.shape) == ("UINT8", ("batch", "height", "width"))
    bare = onnxruntime.InferenceSession(tmp_path / "job" / "bare.onnx")
    assert [(i.name, i.type, i.shape) for i in bare.get_inputs()] == [
        ("pixels", "tensor(uint8)", ["batch", 16, 16])
    ]
    sizes: list[Any] = [
        pixels,
        pixels.repeat(5, axis=1).repeat(5, axis=2),  # [N, 40, 40]
        pixels.repeat(3, axis=1).repeat(2, axis=2),  # [N, 24, 16]
    ]
    async with served(tmp_path / "job" / "model.onnx", tmp_path) as client:
        # Requests of all sizes at once: only those of one size can share a batch.
        asked = [
            (start, client.infer("digits", {"image": size[start : start + 50]}))
            for start in range(0, 500, 50)
            for size in sizes
        ]
        answers = await asyncio.gather(*(answer for _, answer in asked))
        # What cannot be resized is refused, and hurts nobody else.
        for height, width in ((16_385, 1), (1, 16_385)):
            with pytest.raises(InvalidArgument, match="could not compute these inputs"):
                await client.infer("digits", {"image": np.zeros((1, height, width), np.uint8)})
        again = await client.infer("digits", {"image": sizes[0][:50]})
        np.testing.assert_array_equal(again.outputs["label"], answers[0].outputs["label"])
    for (start, _), answer in zip(asked, answers, strict=True):
        outputs = answer.outputs
        told = np.array([text.decode() for text in outputs["label"][:, 0]])
        hits = told == labels[start : start + 50].astype(str)
        assert hits.mean() >= 0.9
        np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.slow
def test_a_job_on_images_that_was_killed_goes_on_and_makes_the_same_files(tmp_path: Path) -> None:
    write_digits(tmp_path)
    spec = example("digits-images")
    spec.epochs = 4
    spec.checkpoint_every_steps = 7
    whole = succeeded(spec, tmp_path, tmp_path / "whole")
    killed = tmp_path / "killed"
    worker = begin(spec, tmp_path, killed)
    deadline = time.monotonic() + SECONDS
    while not any(
        isinstance(event, MetricsEvent) for event in read_events(killed / "events.jsonl", 0)[0]
    ):
        assert worker.poll() is None, (killed / "worker.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)  # another process writes the file; nothing else tells of its progress
    worker.kill()
    assert worker.wait(SECONDS) == -signal.SIGKILL
    assert succeeded(spec, tmp_path, killed).files == whole.files
    assert any(line.startswith("goes on from the checkpoint after step ") for line in said(killed))


def test_what_is_wrong_with_images_is_a_reason_and_says_what_to_do(tmp_path: Path) -> None:
    write_digits(tmp_path)
    spec = example("digits-images")
    broken = tmp_path / "digits" / "3" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    failure = failure_of(spec, tmp_path, tmp_path / "broken")
    assert failure.reason is FailureReason.DATA
    assert failure.message.startswith("the image '3/3.png' cannot be decoded: ")
    assert "skip_unusable_images" in failure.message
    spec.dataset.images.skip_unusable_images = True
    spec.model.cnn.channels[:] = [4] * 5
    failure = failure_of(spec, tmp_path, tmp_path / "deep")
    assert failure.reason is FailureReason.DATA
    assert failure.message.startswith("model.cnn.channels: expected at most 4 blocks")
    shutil.rmtree(tmp_path / "digits")
    failure = failure_of(spec, tmp_path, tmp_path / "gone")
    assert failure == FailedEvent(
        FailureReason.DATA,
        "dataset.images.folder.path: expected a folder below a --data-root of the trainer, got "
        "'digits'",
    )


def test_a_dry_run_uses_some_images_of_every_class(tmp_path: Path) -> None:
    write_digits(tmp_path)
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "spec.binpb").write_bytes(example("digits-images").SerializeToString())
    command = [*WORKER, f"--data-root={tmp_path}", "--job-directory", str(directory), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("export passed the gate") for line in said(directory))


# Fashion-MNIST


FASHION = [Path("/usr/share/datasets/fashion-mnist"), ROOT / "data" / "fashion-mnist"]


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A root with the first images of Fashion-MNIST, compressed as they come."""
    found = [folder for folder in FASHION if (folder / "train-images-idx3-ubyte.gz").exists()]
    if not found:
        pytest.skip(
            "Fashion-MNIST (the package dataset-fashion-mnist) is missing: make fashion-mnist"
        )
    below = tmp_path / "fashion-mnist"
    below.mkdir()
    for part, images in (("train", 1_500), ("t10k", 500)):
        for kind, header, row in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
            name = f"{part}-{kind}-ubyte.gz"
            with gzip.open(found[0] / name) as file:
                content = file.read(header + images * row)
            shortened = content[:4] + images.to_bytes(4, "big") + content[8:]
            (below / name).write_bytes(gzip.compress(shortened))
    return tmp_path


def test_fashion_is_learned_in_one_epoch_better_than_by_chance(fashion: Path) -> None:
    spec = example("fashion-mnist")
    spec.epochs = 1
    spec.batch_size = 32
    spec.schedule.warmup_steps = 5
    result = succeeded(spec, fashion, fashion / "job")
    assert accuracy(result, "test", "onnxruntime") >= 0.4  # by chance: 0.1
    (logits,) = [o for o in result.signature.outputs if o.name == "logits"]
    assert logits.labels[0] == "T-shirt/top"
    (image,) = result.signature.inputs
    assert image.shape == ("batch", 28, 28)
    rows = "1350 training, 150 validation, 500 test rows"
    assert any(line.endswith(rows) for line in said(fashion / "job"))
