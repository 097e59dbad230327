"""A job on text files, by a real worker process: bytes in, the next byte out, samples shown."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.artifact import load_result, verify_files
from modelrail_trainer.handover.journal import LogEvent, MetricsEvent, read_events
from tests.integration.house import (
    REAL_WORKER,
    House,
    ScriptedRegistry,
    cli,
    serving_registry,
    states,
)

SECONDS = 240.0


@pytest.fixture
def psalm(tmp_path: Path) -> pb.TrainingJobSpec:
    """Two lines over and over, in two files."""
    text = b"The Lord is my shepherd; I shall not want.\nHe maketh me to lie down.\n"
    (tmp_path / "one.txt").write_bytes(text * 60)
    (tmp_path / "two.txt").write_bytes(text * 40)
    return json_format.ParseDict(
        {
            "dataset": {"lines": {"paths": ["one.txt", "two.txt"], "context_length": 32}},
            "split": {"validation_fraction": 0.1, "test_fraction": 0.1},
            "model": {"gpt": {"width": 32, "layers": 2, "heads": 2}},
            "loss": {"cross_entropy": {}},
            "optimizer": {"adam": {"learning_rate": 0.01}},
            "epochs": 30,
            "batch_size": 8,
            "seed": 1,
            "publication": {"model": "psalm"},
        },
        pb.TrainingJobSpec(),
    )


def test_a_text_is_learned_by_heart_exported_and_sampled(
    psalm: pb.TrainingJobSpec, tmp_path: Path
) -> None:
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "spec.binpb").write_bytes(psalm.SerializeToString())
    command = [sys.executable, "-W", "error", "-m", "modelrail_trainer.worker"]
    finished = subprocess.run(
        [*command, f"--data-root={tmp_path}", "--job-directory", str(directory)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = load_result(directory)
    verify_files(result, directory)
    assert [file.path for file in result.files] == ["model.onnx"]

    events = read_events(directory / "events.jsonl", 0)[0]
    lines = [event.text for event in events if isinstance(event, LogEvent)]
    written = [line.removeprefix("sample: ") for line in lines if line.startswith("sample: ")]
    assert len(written) == 3
    assert any("shepherd; I shall not want." in text for text in written)
    assert all(text.isprintable() for text in written)
    figures = [event for event in events if isinstance(event, MetricsEvent)][-1].metrics
    told = {(m.name, m.split, m.runtime): m.value for m in figures}
    assert told["bits_per_byte", "test", "onnxruntime"] < 0.5
    assert told["accuracy", "test", "pytorch"] > 0.9

    # A client asks byte by byte, with texts of any length.
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    text = b"\nHe maketh"
    for _ in range(8):
        sent = np.frombuffer(text, np.uint8).reshape(1, -1)
        (logits,) = session.run(["logits"], {"bytes": sent})
        assert logits.shape == (1, len(text), 256)
        text += bytes([int(logits[0, -1].argmax())])
    assert text == b"\nHe maketh me to l"


async def test_the_report_shows_the_curves_of_the_loss_and_what_the_model_writes(
    psalm: pb.TrainingJobSpec, tmp_path: Path
) -> None:
    psalm.epochs = 2
    house = House(tmp_path, ScriptedRegistry(), REAL_WORKER)  # type: ignore[abstract]
    file = tmp_path / "report.html"
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer(data_root=(str(tmp_path),)) as trainer,
    ):
        job = await trainer.client.create_job(psalm)
        events = await trainer.events(job.name)
        assert states(events)[-1] == "SUCCEEDED", events[-1]
        status, told = await cli(house, "jobs", "report", job.name, "--output", str(file))
    assert status == 0, told
    page = file.read_text()
    loss = page.partition("<h3>loss</h3>")[2].partition("</svg>")[0]
    for part in ("train", "validation"):
        (points,) = re.findall(rf'<polyline class="line {part}" points="([^"]+)"', loss)
        assert len(points.split()) == psalm.epochs
    samples = [
        event.log_line.text for event in events if event.log_line.text.startswith("sample: ")
    ]
    assert len(samples) == 3
    assert [text for text in samples if text not in html.unescape(page)] == []
