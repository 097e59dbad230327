"""Wrong fields of a YAML specification are named with what was expected and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelrail.cli.command import Failure
from modelrail.cli.specification import read_specification


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epochs: ten",
            "epochs: expected a whole number from -2147483648 to 2147483647, got 'ten'",
        ),
        ("epochs: 99999999999", "got 99999999999"),
        ("epochs: true", "epochs: expected a whole number"),
        ("epochs: 1\nepochs: 2", "the field 'epochs' stands twice"),
        ("batch_size: 1\nbatchSize: 2", "expected batch_size once, got batch_size and batchSize"),
        ("optimizer: {sgd: {}, adam: {}}", "got sgd and adam"),
        ("dataset: {line: {slope: .nan}}", "dataset.line.slope: expected a number, got nan"),
        ("dataset: {bundled: 3}", "dataset.bundled: expected text, got 3"),
        (
            "dataset: 3",
            "dataset: expected fields (bundled, line, table, images, lines, custom), got 3",
        ),
        ("split: {test_paths: t.csv}", "split.test_paths: expected a list, got 't.csv'"),
        ("split: {columns: part}", "split.columns: unknown field; expected validation_fraction"),
        ("model: {cnn: {channels: 3}}", "model.cnn.channels: expected a list, got 3"),
        ("model: {cnn: {channels: [1, x]}}", "model.cnn.channels[1]: expected a whole number"),
        (
            "preprocessing: [{scale: {}}]",
            "preprocessing[0].scale: unknown field; expected standard",
        ),
        ("", "got an empty file"),
        ("- 1", "got list"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(Failure) as failure:
        read_specification(path)
    assert message in str(failure.value)


def test_an_empty_message_may_be_written_without_braces(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model:\n  linear:\nloss:\n  mse:\n")
    spec = read_specification(path)
    assert spec.model.WhichOneof("architecture") == "linear"
    assert spec.loss.WhichOneof("kind") == "mse"
