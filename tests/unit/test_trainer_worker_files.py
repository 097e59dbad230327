from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from modelrail_trainer import artifact, spec
from modelrail_trainer.artifact import (
    ArtifactError,
    ExportCertificate,
    Lineage,
    Signature,
    TrainingResult,
    describe_file,
    load_result,
    save_result,
    verify_files,
)
from modelrail_trainer.journal import JournalWriter, LogEvent, read_events
from modelrail_trainer.validation import validate

GOOD = spec.TrainingJobSpec(
    dataset=spec.BundledDataset(name="digits"),
    model=spec.CnnModel(channels=(8,)),
    loss=spec.CrossEntropy(),
    optimizer=spec.Adam(),
    epochs=1,
    publication=spec.Publication(model="digits", alias="production"),
)
LINE = spec.LineDataset(slope=0.5, intercept=1.0, points=100)
REGRESSION = replace(GOOD, dataset=LINE, model=spec.LinearModel(), loss=spec.MeanSquaredError())


def test_a_good_specification_has_no_violation() -> None:
    assert validate(GOOD) == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        (replace(GOOD, dataset=None), "dataset"),
        (replace(GOOD, dataset=spec.BundledDataset(name="mnist")), "dataset.bundled"),
        (replace(REGRESSION, dataset=replace(LINE, points=9)), "dataset.line.points"),
        (replace(GOOD, dataset=LINE, model=spec.LinearModel()), "loss"),
        (replace(GOOD, dataset=LINE, loss=spec.MeanSquaredError()), "model.cnn"),
        (replace(GOOD, loss=spec.MeanSquaredError()), "loss"),
        (replace(GOOD, model=spec.MlpModel(hidden_units=())), "model.mlp.hidden_units"),
        (replace(GOOD, model=spec.CnnModel(channels=(8,) * 4)), "model.cnn.channels"),
        (replace(GOOD, preprocessing=(None,)), "preprocessing[0]"),
        (replace(GOOD, optimizer=spec.Sgd(learning_rate=0.0)), "optimizer.sgd.learning_rate"),
        (replace(GOOD, epochs=0), "epochs"),
        (replace(GOOD, split=spec.Split(validation_fraction=0.6, test_fraction=0.5)), "split"),
        (replace(GOOD, publication=spec.Publication(model="../x")), "publication.model"),
        (replace(GOOD, publication=spec.Publication(model="x", alias="3")), "publication.alias"),
    ],
)
def test_a_violation_names_the_field(changed: spec.TrainingJobSpec, field: str) -> None:
    assert [violation.field for violation in validate(changed)] == [field]


def test_a_half_written_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "log", "text": "one"}\n{"kind": "lo')
    events, offset = read_events(path, 0)
    assert events == [LogEvent("one")]
    assert read_events(path, offset) == ([], offset)
    with JournalWriter(path) as journal:  # a later attempt starts with a whole line
        journal.log("two")
    assert read_events(path, offset)[0] == [LogEvent("two")]


def test_a_changed_file_does_not_match_its_digest(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    result = _result(tmp_path)
    save_result(result, tmp_path)
    assert load_result(tmp_path) == result
    verify_files(result, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"MODEL")
    with pytest.raises(ArtifactError, match="sha256"):
        verify_files(result, tmp_path)


def test_a_disk_that_fails_before_the_rename_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    result = _result(tmp_path)
    sync = artifact._sync

    def fail(path: Path) -> None:
        if path.name.startswith("result"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(artifact, "_sync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_result(result, tmp_path)
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(ArtifactError, match="the job left no result"):
        load_result(tmp_path)


def _result(directory: Path) -> TrainingResult:
    return TrainingResult(
        files=(describe_file(directory, "model.onnx", "application/onnx"),),
        signature=Signature((), ()),
        metrics=(),
        lineage=Lineage(dataset="d", dataset_sha256="", spec_sha256="", seed=1, packages={}),
        certificate=ExportCertificate(
            opset=20,
            absolute_tolerance=1e-4,
            relative_tolerance=1e-3,
            batch_sizes=(1,),
            outputs=(),
            rows=1,
        ),
    )
