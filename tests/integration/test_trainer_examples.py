"""The examples that learn from texts, on the real data where it is: short runs of the very files.

MODELRAIL_TEST_DATA names a folder with `spam.parquet` and `bible.txt`, made as README.md says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet
import pytest
import yaml
from google.protobuf import json_format

import modelrail
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.artifact import TrainingResult, load_result, verify_files
from modelrail_trainer.journal import LogEvent, read_events

EXAMPLES = Path(modelrail.__file__).parent / "examples"
SECONDS = 900.0


def folder_of(file: str) -> Path:
    folder = Path(os.environ.get("MODELRAIL_TEST_DATA", ""))
    if not (folder / file).is_file():
        pytest.skip(f"{file} is not there: README.md says how to make it, see MODELRAIL_TEST_DATA")
    return folder


def example(name: str, **fields: Any) -> pb.TrainingJobSpec:
    content = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return json_format.ParseDict(content | fields, pb.TrainingJobSpec())


def succeeded(spec: pb.TrainingJobSpec, data: Path, directory: Path) -> TrainingResult:
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    command = [sys.executable, "-W", "error", "-m", "modelrail_trainer.worker"]
    finished = subprocess.run(
        [*command, f"--data-root={data}", "--job-directory", str(directory)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = load_result(directory)
    verify_files(result, directory)
    return result


def test_spam_is_told_from_ham_after_two_epochs(tmp_path: Path) -> None:
    data = folder_of("spam.parquet")
    spec = example("spam", epochs=2)
    spec.dataset.table.columns[0].text.max_tokens = 96
    result = succeeded(spec, data, tmp_path)
    accuracies = [
        metric.value
        for metric in result.metrics
        if (metric.name, metric.split, metric.runtime) == ("accuracy", "test", "onnxruntime")
    ]
    assert accuracies[0] > 0.9
    rows = pyarrow.parquet.read_table(data / "spam.parquet")[:200].to_pydict()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    texts = np.array(rows["text"], object).reshape(-1, 1)
    (label,) = session.run(["label"], {"text": texts})
    assert (label[:, 0] == np.array(rows["label"], object)).mean() > 0.9


def test_the_first_pages_of_the_new_testament_teach_letters_and_words(tmp_path: Path) -> None:
    content = (folder_of("bible.txt") / "bible.txt").read_bytes()[:100_000]
    data, directory = tmp_path / "data", tmp_path / "job"
    data.mkdir()
    directory.mkdir()
    (data / "bible.txt").write_bytes(content)
    result = succeeded(example("bible", epochs=2), data, directory)
    (bits,) = [
        metric.value
        for metric in result.metrics
        if (metric.name, metric.split, metric.runtime) == ("bits_per_byte", "test", "onnxruntime")
    ]
    # 4.1 is the entropy of its single letters.
    assert bits < 3.6
    lines = read_events(directory / "events.jsonl", 0)[0]
    written = [line for line in lines if isinstance(line, LogEvent) and "sample: " in line.text]
    assert len(written) == 3
