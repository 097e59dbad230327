"""Jobs on tables, by real worker processes: raw rows in, what the files say out."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from google.protobuf import json_format

import modelrail
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.handover.journal import FailedEvent, FailureReason
from tests.integration.worker_jobs import failure_of, figure, said, succeeded

EXAMPLES = Path(modelrail.__file__).parent / "examples"


@pytest.fixture
def penguins(tmp_path: Path) -> pb.TrainingJobSpec:
    """The example, with its file in place."""
    package = importlib.util.find_spec("palmerpenguins")
    if package is None or package.origin is None:
        pytest.skip("the package palmerpenguins (deploy/data.txt) is not installed")
    shutil.copy(Path(package.origin).parent / "data" / "penguins.csv", tmp_path)
    content = yaml.safe_load((EXAMPLES / "penguins.yaml").read_text())
    return json_format.ParseDict(content, pb.TrainingJobSpec())


def test_penguins_are_told_apart_from_raw_columns_with_values_missing(
    penguins: pb.TrainingJobSpec, tmp_path: Path
) -> None:
    directory, result = succeeded(penguins, tmp_path)
    assert figure(result, "accuracy", "test", "onnxruntime") >= 0.95
    assert [file.path for file in result.files] == ["model.onnx", "bare.onnx"]
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    with (tmp_path / "penguins.csv").open() as file:
        rows = list(csv.DictReader(file))
    feed: dict[str, Any] = {}
    for tensor in result.signature.inputs:
        values = ["" if row[tensor.name] == "NA" else row[tensor.name] for row in rows]
        if tensor.datatype == "BYTES":
            feed[tensor.name] = np.array(values, object).reshape(-1, 1)
        else:
            numbers = [float(value or "nan") for value in values]
            feed[tensor.name] = np.array(numbers, np.float32).reshape(-1, 1)
    assert np.isnan(feed["body_mass_g"]).any()
    assert (feed["sex"] == "").any()
    probabilities, label = session.run(["probabilities", "label"], feed)
    hits = label[:, 0] == np.array([row["species"] for row in rows], object)
    assert hits.mean() >= 0.95
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert set(label[:, 0]) == {"Adelie", "Chinstrap", "Gentoo"}


def test_the_bare_graph_takes_features_and_gives_the_same(
    penguins: pb.TrainingJobSpec, tmp_path: Path
) -> None:
    penguins.epochs = 1
    directory, _ = succeeded(penguins, tmp_path)
    bare = onnxruntime.InferenceSession(directory / "bare.onnx")
    ((name, shape),) = [(tensor.name, tensor.shape) for tensor in bare.get_inputs()]
    # Three islands, two sexes and that which is missing, four numbers.
    assert (name, shape) == ("features", ["batch", 10])
    assert "6 columns became 10 features" in said(directory)


def regression(tmp_path: Path) -> pb.TrainingJobSpec:
    from sklearn.datasets import load_diabetes

    diabetes = load_diabetes(scaled=False)
    with (tmp_path / "diabetes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*diabetes.feature_names, "progression"])
        writer.writerows([*row, y] for row, y in zip(diabetes.data, diabetes.target, strict=True))
    return json_format.ParseDict(
        {
            "dataset": {"table": {"paths": ["diabetes.csv"], "target": "progression"}},
            "model": {"linear": {}},
            "loss": {"mse": {}},
            "optimizer": {"adam": {"learning_rate": 0.5}},
            "epochs": 100,
            "publication": {"model": "diabetes"},
        },
        pb.TrainingJobSpec(),
    )


def test_diabetes_is_a_regression_that_beats_the_mean(tmp_path: Path) -> None:
    directory, result = succeeded(regression(tmp_path), tmp_path)
    assert [output.name for output in result.signature.outputs] == ["y"]
    # The variance of the target is 5,930: what guessing the mean would leave.
    assert figure(result, "mse", "test", "onnxruntime") < 4_000
    assert "10 columns became 10 features" in said(directory)


def test_a_model_that_does_not_fit_the_table_is_told_with_its_field(tmp_path: Path) -> None:
    spec = regression(tmp_path)
    spec.model.cnn.channels.append(4)
    failure = failure_of(spec, tmp_path)
    assert failure.reason is FailureReason.DATA
    assert failure.message.startswith("model.cnn: expected a data set of images")


def test_a_data_set_that_vanished_is_told_with_what_to_do(tmp_path: Path) -> None:
    spec = regression(tmp_path)
    (tmp_path / "diabetes.csv").unlink()
    assert failure_of(spec, tmp_path) == FailedEvent(
        FailureReason.DATA,
        "dataset.table.paths[0]: expected a file below a --data-root of the trainer, got "
        "'diabetes.csv'",
    )


def test_rows_that_cannot_be_used_fail_the_job_or_are_left_out(tmp_path: Path) -> None:
    spec = regression(tmp_path)
    spec.epochs = 1
    with (tmp_path / "diabetes.csv").open("a") as file:
        file.write("1,2,3,4,5,6,7,8,9,10,\n" * 3)  # no target
    first = tmp_path / "first"
    first.mkdir()
    shutil.copy(tmp_path / "diabetes.csv", first)
    failure = failure_of(spec, first)
    assert failure.message.startswith("3 rows cannot be used, the first of them row 442, counted")
    spec.dataset.table.skip_unusable_rows = True
    directory, _ = succeeded(spec, tmp_path)
    assert "3 rows were left out: no target" in said(directory)
