"""Examples on the real data where it is: those with texts as short runs, those with numbers whole.

MODELRAIL_TEST_DATA names a folder with `spam.parquet` and `bible.txt`, made as README.md says. What
comes with scikit-learn is made here, by the programs that README.md names.
"""

from __future__ import annotations

import csv
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
from modelrail_trainer.handover.artifact import TrainingResult, load_result, verify_files
from modelrail_trainer.handover.journal import LogEvent, read_events
from modelrail_trainer.worker.export.second_look import look_again

EXAMPLES = Path(modelrail.__file__).parent / "examples"
PROGRAMS = Path(__file__).parents[2] / "deploy" / "data"
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
    look_again(result, directory)
    return result


def figure_of_test(result: TrainingResult, name: str) -> float:
    (value,) = [
        metric.value
        for metric in result.metrics
        if (metric.name, metric.split, metric.runtime) == (name, "test", "onnxruntime")
    ]
    return value


def made(program: str, folder: Path, file: str) -> list[dict[str, str]]:
    """Has a program make a table in the folder; returns its rows."""
    pytest.importorskip("sklearn.datasets", reason="the data come with scikit-learn")
    command = [sys.executable, "-W", "error", str(PROGRAMS / program), str(folder / file)]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    with (folder / file).open() as table:
        return list(csv.DictReader(table))


def columns_of(rows: list[dict[str, str]], result: TrainingResult) -> dict[str, Any]:
    """Returns the raw values that a client sends, FP32 [N, 1] each, NaN where there is none."""
    return {
        tensor.name: np.array([[row[tensor.name] or "nan"] for row in rows], np.float32)
        for tensor in result.signature.inputs
    }


def test_tumours_are_told_apart_by_raw_measurements_many_of_them_missing(tmp_path: Path) -> None:
    rows = made("breast_cancer.py", tmp_path, "breast-cancer.csv")
    result = succeeded(example("breast-cancer"), tmp_path, job_below(tmp_path))
    # Who always says benign is right for 63 % of the tumours, and never for a malignant one.
    assert figure_of_test(result, "accuracy") >= 0.95
    assert figure_of_test(result, "class1_recall") >= 0.9
    feed = columns_of(rows, result)
    assert len(feed) == 30
    missing = np.concatenate([np.isnan(column) for column in feed.values()], axis=1)  # [569, 30]
    assert 0.09 < missing.mean() < 0.11
    session = onnxruntime.InferenceSession(tmp_path / "job" / "model.onnx")
    probabilities, label = session.run(["probabilities", "label"], feed)
    assert np.isfinite(probabilities).all()
    hits = label[:, 0] == np.array([row["diagnosis"] for row in rows], object)
    # Nearly no row has all of its values; those that lack most are told as well.
    assert hits[missing.sum(axis=1) >= 5].mean() > 0.9
    nothing = {name: np.full((1, 1), np.nan, np.float32) for name in feed}
    (unknown,) = session.run(["probabilities"], nothing)
    assert np.isfinite(unknown).all()


def test_the_table_of_tumours_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    first = made("breast_cancer.py", tmp_path, "breast-cancer.csv")
    assert made("breast_cancer.py", tmp_path, "again.csv") == first


def test_the_progression_of_diabetes_is_learned_better_than_its_mean(tmp_path: Path) -> None:
    rows = made("diabetes.py", tmp_path, "diabetes.csv")
    result = succeeded(example("diabetes"), tmp_path, job_below(tmp_path))
    assert [output.name for output in result.signature.outputs] == ["y"]
    # 0 is what the mean of the test rows would reach.
    assert figure_of_test(result, "r2") >= 0.4
    assert figure_of_test(result, "mse") < 3_600
    session = onnxruntime.InferenceSession(tmp_path / "job" / "model.onnx")
    (y,) = session.run(["y"], columns_of(rows, result))
    truth = np.array([[float(row["progression"])] for row in rows])
    assert np.corrcoef(y[:, 0], truth[:, 0])[0, 1] > 0.65


def job_below(folder: Path) -> Path:
    directory = folder / "job"
    directory.mkdir()
    return directory


def test_spam_is_told_from_ham_after_two_epochs(tmp_path: Path) -> None:
    data = folder_of("spam.parquet")
    spec = example("spam", epochs=2)
    spec.dataset.table.columns[0].text.max_tokens = 96
    result = succeeded(spec, data, tmp_path)
    assert figure_of_test(result, "accuracy") > 0.9
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
    # 4.1 is the entropy of its single letters.
    assert figure_of_test(result, "bits_per_byte") < 3.6
    lines = read_events(directory / "events.jsonl", 0)[0]
    written = [line for line in lines if isinstance(line, LogEvent) and "sample: " in line.text]
    assert len(written) == 3
