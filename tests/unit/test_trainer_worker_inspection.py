"""What a look into a table finds, and what it reads of an inspection that a process left."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.failure import DataError
from modelrail_trainer.handover.inspection import (
    INSPECTION_NAME,
    InspectedColumn,
    Inspection,
    InspectionError,
    TargetTask,
    Use,
    ValueType,
    WarningKind,
    load_inspection,
    save_inspection,
)
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.protocol.suggestion import suggested_spec
from modelrail_trainer.rules import validation
from modelrail_trainer.spec import TableColumn, TableDataset
from modelrail_trainer.worker.inspection import scan
from modelrail_trainer.worker.inspection.table import inspect_table

ROWS = 60


def table_of(tmp_path: Path, content: dict[str, Any], **dataset: Any) -> TableDataset:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table(content), path)
    return TableDataset(paths=(str(path),), **{"target": "kind", **dataset})


def kinds() -> list[str]:
    return ["a", "b", "b"] * (ROWS // 3)


def column(found: Inspection, name: str) -> InspectedColumn:
    (one,) = [one for one in found.columns if one.name == name]
    return one


def warned(found: Inspection, name: str) -> set[WarningKind]:
    return {warning.kind for warning in column(found, name).warnings}


def noise() -> list[float]:
    return [float(x) for x in np.random.default_rng(1).normal(size=ROWS)]


def test_figures_are_those_of_numpy(tmp_path: Path) -> None:
    numbers = [*noise()[:-2], None, None]
    found = inspect_table(table_of(tmp_path, {"x": numbers, "kind": kinds()}), 3)
    x = column(found, "x")
    present = np.array(numbers[:-2])
    assert (x.type, x.missing, x.distinct, x.use) == (ValueType.NUMBER, 2, ROWS - 2, Use.NUMBER)
    assert x.numbers is not None
    got = (x.numbers.minimum, x.numbers.maximum, x.numbers.mean, x.numbers.stddev)
    assert got == pytest.approx((present.min(), present.max(), present.mean(), present.std()))
    kind = column(found, "kind")
    assert [(one.text, one.count) for one in kind.texts] == [("b", 40), ("a", 20)]
    assert found.target is not None
    assert found.target.task is TargetTask.CLASSIFICATION
    assert (found.rows, found.rows_read, found.rows_sampled) == (ROWS, ROWS, ROWS)
    assert len(found.preview) == 3
    assert found.preview[0][1] == "a"


@pytest.mark.parametrize(
    ("values", "kind", "use"),
    [
        (list(range(ROWS)), WarningKind.IDENTIFIER, Use.LEFT_OUT),
        ([f"row {i}" for i in range(ROWS)], WarningKind.IDENTIFIER, Use.LEFT_OUT),
        ([f"2024-01-{i % 28 + 1:02}" for i in range(ROWS)], WarningKind.DATE, Use.LEFT_OUT),
        ([7.0] * ROWS, WarningKind.CONSTANT, Use.LEFT_OUT),
        ([None] * ROWS, WarningKind.MISSING, Use.LEFT_OUT),
        ([1.5, None, None, 2.5, None, None] * 10, WarningKind.MISSING, Use.NUMBER),
        (["x", "y", "y"] * 20, WarningKind.TARGET_LEAK, Use.LEFT_OUT),
        ([1.0, 2.0, 2.0] * 20, WarningKind.TARGET_LEAK, Use.LEFT_OUT),
        ([f"{i} is a text of more than forty characters, is it not?" for i in range(ROWS)],
         WarningKind.LONG_TEXT, Use.TEXT),
        ([1e9 + i % 7 for i in range(ROWS)], WarningKind.FAR_FROM_ZERO, Use.NUMBER),
        ([[1], [2], [3]] * 20, WarningKind.UNUSABLE, Use.LEFT_OUT),
        ([float("inf"), 1.0, 2.0] * 20, WarningKind.UNUSABLE, Use.LEFT_OUT),
    ],
)  # fmt: skip
def test_what_spoils_a_model_is_told(
    values: list[Any], kind: WarningKind, use: Use, tmp_path: Path
) -> None:
    target = ["a", "b", "b"] * 20
    found = inspect_table(table_of(tmp_path, {"it": values, "kind": target}), 3)
    assert kind in warned(found, "it")
    assert column(found, "it").use is use


def test_a_copy_of_a_number_to_predict_is_told(tmp_path: Path) -> None:
    almost = [*noise()[:-1], 3.0]
    columns = {"copy": noise(), "almost": almost, "kind": noise()}
    found = inspect_table(table_of(tmp_path, columns), 3)
    assert (warned(found, "copy"), warned(found, "almost")) == ({WarningKind.TARGET_LEAK}, set())


def test_good_columns_are_not_warned_about(tmp_path: Path) -> None:
    columns = {
        "number": noise(),
        "year": [2000 + i % 7 for i in range(ROWS)],
        "flag": [i % 5 == 0 for i in range(ROWS)],
        "town": ["Rome", "Oslo", "Bonn", "Bern"] * 15,
        "kind": kinds(),
    }
    found = inspect_table(table_of(tmp_path, columns), 3)
    assert [one.warnings for one in found.columns] == [()] * 5
    assert found.target is not None
    assert found.target.warnings == ()
    uses = [one.use for one in found.columns]
    assert uses == [Use.NUMBER, Use.NUMBER, Use.NUMBER, Use.CATEGORY, Use.TARGET]


def test_a_name_that_the_graph_has_is_left_out(tmp_path: Path) -> None:
    found = inspect_table(table_of(tmp_path, {"logits": noise(), "kind": kinds()}), 3)
    assert warned(found, "logits") == {WarningKind.UNUSABLE}
    assert column(found, "logits").use is Use.LEFT_OUT


def test_a_long_text_beside_other_columns_is_left_out(tmp_path: Path) -> None:
    texts = [f"{i} is a text of more than forty characters, is it not?" for i in range(ROWS)]
    found = inspect_table(table_of(tmp_path, {"it": texts, "x": noise(), "kind": kinds()}), 3)
    assert column(found, "it").use is Use.LEFT_OUT
    assert WarningKind.LONG_TEXT in warned(found, "it")


def test_many_texts_are_hashed(tmp_path: Path) -> None:
    towns = [f"town {i % 150}" for i in range(300)]
    columns = {"town": towns, "kind": ["a", "b", "b"] * 100}
    found = inspect_table(table_of(tmp_path, columns), 3)
    assert warned(found, "town") == {WarningKind.MANY_VALUES}
    assert column(found, "town").use is Use.HASH


def test_values_of_another_type_far_down_a_csv_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["size", "kind"])
        # Beyond the first block, from which the types are told.
        rows.writerows([i % 10, "ab"[i % 2]] for i in range(400_000))
        rows.writerow(["large", "a"])
    found = inspect_table(TableDataset(paths=(str(path),), target="kind"), 3)
    (warning,) = column(found, "size").warnings
    assert warning.kind is WarningKind.MIXED_TYPES
    assert "first 'large' in row 400000" in warning.message
    assert (column(found, "size").use, found.rows) == (Use.CATEGORY, 400_001)
    assert found.rows_sampled <= scan.MAX_SAMPLED_ROWS


def test_distinct_values_are_counted_up_to_a_bound(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).normal(size=30_000)
    columns = {"x": numbers, "kind": ["a", "b", "b"] * 10_000}
    found = inspect_table(table_of(tmp_path, columns), 3)
    x = column(found, "x")
    assert (x.distinct, x.more_distinct) == (10_000, True)
    assert found.target is not None
    assert [one.count for one in found.target.classes] == [20_000, 10_000]


def test_damaged_texts_are_shown_as_they_are(tmp_path: Path) -> None:
    damaged = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")],
    )
    found = inspect_table(table_of(tmp_path, {"it": damaged, "kind": ["a", "b", "b"]}), 3)
    assert found.preview[1][0] == "(cannot be shown)"
    assert column(found, "it").distinct == 3


# Large files


def test_of_a_large_parquet_file_row_groups_are_read_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"x": list(range(10_000)), "kind": ["a", "b"] * 5_000})
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    monkeypatch.setattr(scan, "MOST_BYTES", path.stat().st_size // 10)
    found = inspect_table(TableDataset(paths=(str(path),), target="kind"), 3)
    assert (found.rows, found.rows_estimated) == (10_000, False)
    assert 500 <= found.rows_read <= 1_100
    numbers = column(found, "x").numbers
    assert numbers is not None
    assert numbers.minimum < 200
    assert numbers.maximum > 8_000
    assert "evenly from all" in found.warnings[0]


def test_the_rows_of_a_large_csv_file_are_estimated_and_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    lines = (f"{i % 1000:03},{'ab'[i % 2]}" for i in range(400_000))
    path.write_text("x,kind\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(scan, "MOST_BYTES", path.stat().st_size // 4)
    found = inspect_table(TableDataset(paths=(str(path),), target="kind"), 3)
    assert found.rows_estimated
    assert found.rows_read < 300_000
    assert found.rows == pytest.approx(400_000, rel=0.2)
    assert "from the beginning" in found.warnings[0]


# The target


def test_without_a_name_a_target_is_guessed(tmp_path: Path) -> None:
    columns = {"Label": kinds(), "x": noise()}
    found = inspect_table(table_of(tmp_path, columns, target=""), 3)
    assert found.target is not None
    assert (found.target.name, found.target.guessed) == ("Label", True)
    assert column(found, "Label").use is Use.TARGET


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (noise(), TargetTask.REGRESSION),
        ([i % 3 for i in range(ROWS)], TargetTask.CLASSIFICATION),
        ([i % 2 == 0 for i in range(ROWS)], TargetTask.CLASSIFICATION),
        ([i % 30 for i in range(ROWS)], TargetTask.REGRESSION),
        (["same"] * ROWS, TargetTask.NONE),
        ([[1]] * ROWS, TargetTask.NONE),
    ],
)
def test_the_values_of_the_target_tell_the_task(
    values: list[Any], task: TargetTask, tmp_path: Path
) -> None:
    found = inspect_table(table_of(tmp_path, {"x": noise(), "kind": values}), 3)
    assert found.target is not None
    assert found.target.task is task


def test_uneven_and_tiny_classes_and_missing_targets_are_told(tmp_path: Path) -> None:
    values = ["a"] * 55 + ["b"] * 3 + [None] * 2
    found = inspect_table(table_of(tmp_path, {"x": noise(), "kind": values}), 3)
    assert found.target is not None
    missing, uneven, tiny = found.target.warnings
    assert "2 rows have no target" in missing
    assert "'a' has 55 rows and 'b' has 3" in uneven
    assert "class 'b' has 3 rows" in tiny


# The suggestion


@pytest.mark.parametrize("target", ["kind", "number", ""])
def test_what_is_suggested_is_valid(target: str, tmp_path: Path) -> None:
    columns = {
        "number": [*noise()[:-1], None],
        "town": ["Rome", "Oslo", "Bonn", "Bern"] * 15,
        "id": list(range(ROWS)),
        "kind": [*kinds()[:-1], None],
    }
    dataset = table_of(tmp_path, columns, target=target)
    message = pb.TableDataset(paths=["Some rows!.parquet"], target=target)
    suggested = suggested_spec(inspect_table(dataset, 3), message)
    assert suggested is not None
    assert validation.validate(spec_from_pb(suggested)) == []
    assert suggested.publication.model == "some-rows"
    assert suggested.dataset.table.skip_unusable_rows
    assert "id" not in [one.name for one in suggested.dataset.table.columns]


def test_a_text_alone_is_learned_by_its_words(tmp_path: Path) -> None:
    texts = [f"{i} is a text of more than forty characters, is it not?" for i in range(ROWS)]
    found = inspect_table(table_of(tmp_path, {"it": texts, "kind": kinds()}), 3)
    suggested = suggested_spec(found, pb.TableDataset(paths=["a.csv"]))
    assert suggested is not None
    assert suggested.model.HasField("gru")
    assert validation.validate(spec_from_pb(suggested)) == []


def test_where_nothing_can_be_learned_nothing_is_suggested(tmp_path: Path) -> None:
    columns = {"same": [1] * ROWS, "kind": kinds()}
    found = inspect_table(table_of(tmp_path, columns), 3)
    assert suggested_spec(found, pb.TableDataset(paths=["a.csv"])) is None


# What cannot be read


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"target": "absent"}, "dataset.table.target: the table has no column 'absent'"),
        (
            {"columns": (TableColumn(name="absent"),)},
            r"dataset.table.columns\[0\].name: the table has no column 'absent'",
        ),
    ],
)
def test_a_column_that_is_not_there_is_named_by_its_field(
    dataset: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    table = table_of(tmp_path, {"x": noise(), "kind": kinds()}, **dataset)
    with pytest.raises(DataError, match=expected):
        inspect_table(table, 3)


def test_a_table_too_wide_is_refused(tmp_path: Path) -> None:
    columns = {f"c{i}": [1.0] for i in range(4_097)}
    with pytest.raises(DataError, match="expected at most 4096 columns, got 4097"):
        inspect_table(table_of(tmp_path, columns), 3)


def test_of_a_wide_table_fewer_rows_are_shown(tmp_path: Path) -> None:
    columns = {f"c{i}": list(range(20)) for i in range(4_095)} | {"kind": ["a", "b"] * 10}
    found = inspect_table(table_of(tmp_path, columns), 100)
    assert (len(found.columns), len(found.preview)) == (4_096, 12)


# What a process leaves


@pytest.fixture
def found(tmp_path: Path) -> Inspection:
    return inspect_table(table_of(tmp_path, {"x": noise(), "kind": kinds()}), 3)


def test_an_inspection_is_read_as_it_was_written(found: Inspection, tmp_path: Path) -> None:
    save_inspection(found, tmp_path)
    assert load_inspection(tmp_path) == found


def test_an_inspection_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert load_inspection(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"preview": (("one cell",),)},
        {"preview": (("a" * 1000, "b"),)},
        {"preview": (("a", "b"),) * 101},
        {"warnings": ("a" * 10_000,)},
        {"warnings": ("a",) * 1_000},
        {"columns": 7},
    ],
)
def test_an_inspection_beyond_its_bounds_is_refused(
    change: dict[str, Any], found: Inspection, tmp_path: Path
) -> None:
    save_inspection(replace(found, **change), tmp_path)
    with pytest.raises(InspectionError):
        load_inspection(tmp_path)


def test_a_link_or_pipe_in_place_of_an_inspection_is_refused(
    found: Inspection, tmp_path: Path
) -> None:
    save_inspection(found, tmp_path)
    (tmp_path / INSPECTION_NAME).rename(tmp_path / "elsewhere")
    (tmp_path / INSPECTION_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InspectionError, match="it is no file"):
        load_inspection(tmp_path)
    (tmp_path / INSPECTION_NAME).unlink()
    os.mkfifo(tmp_path / INSPECTION_NAME)
    with pytest.raises(InspectionError):
        load_inspection(tmp_path)


def test_a_huge_inspection_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / INSPECTION_NAME).open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(InspectionError, match="larger than"):
        load_inspection(tmp_path)
