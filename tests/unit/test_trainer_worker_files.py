from __future__ import annotations

import errno
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from modelrail_trainer import spec
from modelrail_trainer.handover import artifact
from modelrail_trainer.handover.artifact import (
    ArtifactError,
    TrainingResult,
    describe_file,
    load_result,
    save_result,
    verify_files,
)
from modelrail_trainer.handover.data_summary import (
    ColumnSummary,
    DataSummary,
    LabelCount,
    PartSummary,
    UnusableRows,
)
from modelrail_trainer.handover.evaluation import Evaluation, evaluation_from_record
from modelrail_trainer.handover.journal import (
    DataEvent,
    JournalError,
    JournalWriter,
    LogEvent,
    Metric,
    MetricsEvent,
    read_events,
)
from modelrail_trainer.handover.record import RecordError
from modelrail_trainer.rules.validation import validate
from tests.handed_over import bare_result

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


TABLE = spec.TableDataset(paths=("a.csv",), target="t")
COLUMN = spec.TableColumn(name="x")


@pytest.mark.parametrize(
    ("table", "field"),
    [
        (replace(TABLE, paths=()), "paths"),
        (replace(TABLE, paths=("a.csv", "b.parquet")), "paths"),
        (replace(TABLE, paths=("a.json",)), "paths"),
        (replace(TABLE, paths=("a.csv", "below/../../b.csv")), "paths[1]"),
        (replace(TABLE, target=""), "target"),
        (replace(TABLE, columns=(COLUMN, COLUMN)), "columns[1].name"),
        (replace(TABLE, columns=(spec.TableColumn(name="t"),)), "columns[0].name"),
        (replace(TABLE, columns=(spec.TableColumn(name="a\nb"),)), "columns[0].name"),
        (
            replace(
                TABLE,
                columns=(replace(COLUMN, encoding=spec.NumberEncoding(constant=1e39)),),
            ),
            "columns[0].number.constant",
        ),
        (
            replace(
                TABLE,
                columns=(replace(COLUMN, encoding=spec.CategoryEncoding(max_categories=20_000)),),
            ),
            "columns[0].category.max_categories",
        ),
    ],
)
def test_a_violation_names_the_field_of_a_table(table: spec.TableDataset, field: str) -> None:
    good = replace(GOOD, dataset=TABLE, model=spec.LinearModel())
    assert validate(good) == []
    found = [violation.field for violation in validate(replace(good, dataset=table))]
    assert found == [f"dataset.table.{field}"]


def test_what_is_known_once_a_table_is_read_is_checked_then() -> None:
    job = replace(GOOD, dataset=TABLE)  # a convolutional network
    assert validate(job) == []
    facts = spec.DatasetFacts(task=spec.Task.CLASSIFICATION, rows=100, row_shape=(6,), outputs=3)
    assert [violation.field for violation in validate(job, facts)] == ["model.cnn"]


FOLDER = spec.ImageFolder(path="animals")
IDX = spec.IdxFiles(images="images.gz", labels="labels.gz", class_names=("a", "b"))
IMAGES = spec.ImageDataset(source=FOLDER, size=spec.ImageSize(height=1, width=4_096))


@pytest.mark.parametrize(
    ("images", "fields"),
    [
        (replace(IMAGES, source=None), [""]),
        (replace(IMAGES, source=replace(FOLDER, path="")), [".folder.path"]),
        (replace(IMAGES, source=replace(FOLDER, path="a/../../b")), [".folder.path"]),
        (replace(IMAGES, source=replace(FOLDER, path="a\0b")), [".folder.path"]),
        (replace(IMAGES, source=replace(IDX, images="")), [".idx.images"]),
        (replace(IMAGES, source=replace(IDX, labels="..")), [".idx.labels"]),
        (replace(IMAGES, source=replace(IDX, test_images="t")), [".idx.test_labels"]),
        (replace(IMAGES, source=replace(IDX, test_labels="t")), [".idx.test_images"]),
        (replace(IMAGES, source=replace(IDX, class_names=("a",))), [".idx.class_names"]),
        (replace(IMAGES, source=replace(IDX, class_names=("a", "a"))), [".idx.class_names[1]"]),
        (replace(IMAGES, source=replace(IDX, class_names=("", "a"))), [".idx.class_names[0]"]),
        (
            replace(IMAGES, size=spec.ImageSize(height=0, width=100_000)),
            [".size.height", ".size.width"],
        ),
    ],
)
def test_a_violation_names_the_field_of_images(
    images: spec.ImageDataset, fields: list[str]
) -> None:
    for good in (IMAGES, replace(IMAGES, source=IDX)):
        assert validate(replace(GOOD, dataset=good)) == []
    found = [violation.field for violation in validate(replace(GOOD, dataset=images))]
    assert found == [f"dataset.images{field}" for field in fields]


def test_steps_before_images_and_numbers_from_them_are_refused_before_they_are_read() -> None:
    steps = replace(GOOD, dataset=IMAGES, preprocessing=(spec.Standardize(),))
    assert [violation.field for violation in validate(steps)] == ["preprocessing"]
    regression = replace(GOOD, dataset=IMAGES, loss=spec.MeanSquaredError())
    assert [violation.field for violation in validate(regression)] == ["loss"]


def test_a_network_that_is_too_deep_for_the_images_is_refused_once_they_are_read() -> None:
    job = replace(GOOD, dataset=IMAGES, model=spec.CnnModel(channels=(4, 4, 4)))
    for row_shape, fields in (((8, 8), []), ((3, 8, 8), []), ((3, 7, 8), ["model.cnn.channels"])):
        facts = spec.DatasetFacts(
            task=spec.Task.CLASSIFICATION, rows=100, row_shape=row_shape, outputs=3
        )
        assert [violation.field for violation in validate(job, facts)] == fields


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


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("lineage.seed", 2**63, "seed: expected a number"),
        ("lineage.packages", {"\ud800": "1"}, "packages: expected a text of whole characters"),
        ("lineage.dataset", "\ud800", "dataset: expected a text of whole characters"),
        ("certificate.opset", 2**63, "opset: expected a number"),
        ("certificate.rows", -1, "rows: expected a number"),
        ("certificate.batch_sizes", [10**30], "batch_sizes\\[0\\]: expected a number"),
        ("certificate.absolute_tolerance", 10**400, "absolute_tolerance: expected a finite"),
        ("certificate.tools", {"x": "\udfff"}, "x: expected a text of whole characters"),
        ("files", [{"path": "x", "sha256": "", "size_bytes": 2**63}], "size_bytes: expected"),
        ("metrics", [{}] * 201, "metrics: expected at most 200"),
    ],
)
def test_a_result_that_no_message_holds_is_refused(
    place: str, value: object, said: str, tmp_path: Path
) -> None:
    record = json.loads(json.dumps(asdict(bare_result())))
    *outer, name = place.split(".")
    (record[outer[0]] if outer else record)[name] = value
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=said):
        load_result(tmp_path)


SUMMARY = {
    "parts": [{"split": "train", "rows": 7}],
    "labels": [],
    "classes": 0,
    "input_shape": [3],
    "columns": [
        {"name": "x", "encoding": "number", "features": 1, "figures": {}, "categories": []}
    ],
    "column_count": 1,
    "unusable": [],
}
METRICS = {"epoch": 1, "epochs": 2, "step": 3, "rows_per_second": 4.5, "metrics": []}


@pytest.mark.parametrize(
    ("event", "said"),
    [
        # Each would be shortened without end.
        ({"parts": [{"split": "s" * 80, "rows": 7}] * 600}, "parts: expected at most 10"),
        ({"input_shape": [2**62] * 3_000}, "input_shape: expected at most 32"),
        ({"input_shape": [2**63]}, "input_shape\\[0\\]: expected a number"),
        ({"columns": [SUMMARY["columns"][0] | {"figures": {"\ud800": 1}}]}, "figures: expected a"),  # type: ignore[index]
        ({"unusable": [{"reason": "\ud800", "rows": 1}]}, "reason: expected a text of whole"),
        ({"kind": "log", "text": "\ud800"}, "text: expected a text of whole characters"),
        ({"kind": "log", "text": "x" * (1 << 16)}, "longer than 65536 bytes"),
        ({"kind": "failed", "reason": "DATA", "message": "\ud800"}, "message: expected a text"),
        ({"kind": "checkpoint", "step": 2**63, "since": 0}, "step: expected a number"),
        ({"kind": "stopped", "step": 2**63}, "step: expected a number"),
        ({"kind": "metrics", **METRICS, "rows_per_second": -1}, "rows_per_second: expected a num"),
        ({"kind": "metrics", **METRICS, "eta_seconds": 1e12}, "eta_seconds: expected a number"),
        (
            {"kind": "isolation", "layers": [{"name": "FILES", "active": True, "detail": ""}] * 11},
            "layers: expected at most 10, got 11",
        ),
    ],
)
def test_a_line_that_no_message_holds_is_refused(
    event: dict[str, object], said: str, tmp_path: Path
) -> None:
    if "kind" not in event:
        event = {"kind": "data", "summary": SUMMARY | event}
    line = json.dumps(event)
    (tmp_path / "events.jsonl").write_text(line + "\n")
    with pytest.raises(JournalError, match=said):
        read_events(tmp_path / "events.jsonl", 0)


def _result(directory: Path) -> TrainingResult:
    return bare_result(describe_file(directory, "model.onnx", "application/onnx"))


def test_a_summary_and_a_validation_within_an_epoch_come_back_from_the_journal(
    tmp_path: Path,
) -> None:
    summary = DataSummary(
        parts=(PartSummary("train", 7),),
        labels=(LabelCount("<b>", 7),),
        classes=1,
        input_shape=(3,),
        columns=(
            ColumnSummary(name="x", encoding="number", features=1, figures={"fill": 0.5}),
            ColumnSummary(name="y", encoding="one-hot", features=1, categories=("a",)),
        ),
        column_count=2,
        unusable=(UnusableRows("no target", 3),),
    )
    metric = Metric(name="loss", value=0.5, split="validation", epoch=2, runtime="pytorch", step=30)
    written = (
        DataEvent(summary),
        MetricsEvent(
            epoch=1,
            epochs=3,
            step=30,
            rows_per_second=9.5,
            metrics=(metric,),
            eta_seconds=4.5,
            steps=90,
        ),
    )
    path = tmp_path / "events.jsonl"
    with JournalWriter(path) as journal:
        for event in written:
            journal.write(event)
    assert tuple(read_events(path, 0)[0]) == written


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("confusion", [1, 2, 3], "2² counts"),
        ("confusion", [1, 2, 3, -1], "expected counts"),
        ("confusion", [1, 2, 3, 2**63], "confusion\\[3\\]: expected a number"),
        ("labels", ["a", "\ud800"], "labels\\[1\\]: expected a text of whole characters"),
        ("expected_calibration_error", 10**400, "expected a finite number"),
        ("residuals", [{}] * 1001, "residuals: expected at most 1000"),
        ("rows", -1, "rows: expected a number from 0"),
        ("labels", "ab", "labels: expected a list"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(field: str, value: object, said: str) -> None:
    baseline = Metric(name="accuracy", value=0.5, split="test", epoch=0, runtime="baseline")
    good = Evaluation(
        split="test", rows=4, labels=("a", "b"), confusion=(1, 0, 1, 2), baseline=baseline
    )
    record = json.loads(json.dumps(asdict(good)))
    assert evaluation_from_record(record) == good
    with pytest.raises(RecordError, match=said):
        evaluation_from_record(record | {field: value})
