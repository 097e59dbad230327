"""How rows are divided: by a column, by groups, by files, and what is refused of it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer import spec
from modelrail_trainer.data_roots import DataRoots, with_real_paths
from modelrail_trainer.encodings.number import FittedNumber
from modelrail_trainer.failure import DataError
from modelrail_trainer.handover.inspection import Use
from modelrail_trainer.protocol.suggestion import suggested_spec
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.spec import (
    Missing,
    NumberEncoding,
    Split,
    TableColumn,
    TableDataset,
    Task,
)
from modelrail_trainer.worker.inspection.table import inspect_table
from modelrail_trainer.worker.language.stream import load_stream
from modelrail_trainer.worker.part import PartOfRow
from modelrail_trainer.worker.table.column import as_key
from modelrail_trainer.worker.table.dataset import Table, load_table
from modelrail_trainer.worker.table.partition import parts_of_groups

PARTS = ("train", "validation", "test")
BY_COLUMN = Split(column="part", validation_fraction=0, test_fraction=0)


def write(path: Path, **columns: Any) -> str:
    table = pa.table(columns)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return str(path)


def loaded(
    folder: Path, split: Split, *paths: str, max_rows: int | None = None, **fields: Any
) -> Table:
    out = folder / "data"
    out.mkdir(exist_ok=True)
    dataset = TableDataset(paths=paths, target="t", **fields)
    return load_table(dataset, split, Task.CLASSIFICATION, out, max_rows=max_rows)


def rows(count: int, x: float = 0.0) -> dict[str, list[Any]]:
    """Numbers around `x` and two classes."""
    places = range(count)
    return {"x": [x + place % 3 for place in places], "t": ["ab"[place % 2] for place in places]}


def shift_of(table: Table) -> float:
    (number,) = [one for one in table.encodings if one.name == "x"]
    assert isinstance(number, FittedNumber)
    return float(number.shift)


def sizes(table: Table) -> list[int]:
    return [len(part) for part in table.parts]


# By a column


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_says_the_part_of_each_row_and_only_training_rows_are_fitted(
    tmp_path: Path, ending: str
) -> None:
    part = [PARTS[place % 3] for place in range(60)]
    columns = rows(60)
    # What is not for training is far away, and would be seen in the mean.
    columns["x"] = [float(i % 2) if name == "train" else 1e6 for i, name in enumerate(part)]
    table = loaded(tmp_path, BY_COLUMN, write(tmp_path / f"a.{ending}", **columns, part=part))
    assert shift_of(table) == 0.5
    assert sizes(table) == [20, 20, 20]
    assert [one.name for one in table.encodings] == ["x"]
    assert (table.parts[1].inputs > 1e5).all()
    assert (table.parts[2].inputs > 1e5).all()


@pytest.mark.parametrize(("value", "got"), [("Test", "'Test'"), (None, "nothing"), ("", "nothing")])
def test_a_row_in_no_part_fails_the_job_or_is_counted(
    tmp_path: Path, value: str | None, got: str
) -> None:
    part: list[str | None] = [PARTS[place % 3] for place in range(60)]
    part[40] = part[50] = value
    path = write(tmp_path / "a.parquet", **rows(60), part=part)
    problem = (
        r"2 rows cannot be used, the first of them row 40, counted from 0 over all files: column "
        rf"'part' holds none of train, validation, test; got {got}; mend them, or set "
        r"dataset\.table\.skip_unusable_rows"
    )
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path, BY_COLUMN, path)
    table = loaded(tmp_path, BY_COLUMN, path, skip_unusable_rows=True)
    assert table.unusable == {"column 'part' holds none of train, validation, test": 2}
    assert sum(sizes(table)) == 58


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (
            ["train", "train", "test", "test"] * 10,
            "no rows for the validation part; no row that can be used has ",
        ),
        (["test", "validation"] * 20, "no rows for the train part; no row that can be used has "),
        ([0.5] * 40, r"split\.column: expected a column of texts, got numbers"),
        ([datetime.date(2026, 1, 1)] * 40, r"split\.column: column 'part': expected numbers, bool"),
    ],
)
def test_a_column_that_leaves_a_part_empty_or_holds_no_texts_is_told(
    tmp_path: Path, part: list[Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path, BY_COLUMN, write(tmp_path / "a.parquet", **rows(40), part=part))


def test_a_column_that_is_not_there_is_told_with_its_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", **rows(40))
    with pytest.raises(DataError, match=r"split\.column: the table has no column 'part'"):
        loaded(tmp_path, BY_COLUMN, path)
    with pytest.raises(DataError, match=r"split\.group_column: the table has no column 'person'"):
        loaded(tmp_path, Split(group_column="person"), path)


def test_a_table_of_nothing_but_target_and_part_has_nothing_to_learn_from(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", t=["a", "b"] * 10, part=["train"] * 20)
    with pytest.raises(DataError, match="no column but the target 't' and that of the split"):
        loaded(tmp_path, BY_COLUMN, path)


def test_a_class_that_only_the_test_rows_have_is_none(tmp_path: Path) -> None:
    columns = rows(60) | {"part": [PARTS[place % 3] for place in range(60)]}
    columns["t"][59] = "c"
    path = write(tmp_path / "a.parquet", **columns)
    table = loaded(tmp_path, BY_COLUMN, path, skip_unusable_rows=True)
    assert table.labels == ("a", "b")
    # A sample asks every row for its class, and must not ask those of other parts.
    columns["t"][0] = "d"  # of a training row
    path = write(tmp_path / "a.parquet", **columns)
    table = loaded(tmp_path, BY_COLUMN, path, max_rows=10, skip_unusable_rows=True)
    assert table.labels == ("a", "b", "d")


# By groups


GROUPS = st.lists(st.text(max_size=4), min_size=1, max_size=60)


@given(GROUPS, st.integers(0, 2**63 - 1), st.randoms(use_true_random=False))
def test_equal_values_fall_into_one_part_wherever_they_are(
    groups: list[str], seed: int, random: Any
) -> None:
    split = Split(validation_fraction=0.3, test_fraction=0.3, seed=seed)
    part = dict(zip(groups, parts_of_groups(split, np.array(groups, object)), strict=True))
    again = groups * 2
    random.shuffle(again)
    found = parts_of_groups(split, np.array(again, object))
    assert [part[group] for group in again] == found.tolist()


def test_the_fractions_hold_of_the_groups_and_the_seed_decides() -> None:
    groups = np.array([f"person {number}" for number in range(50_000)], object)
    split = Split(validation_fraction=0.25, test_fraction=0.15, seed=3)
    parts = parts_of_groups(split, groups)
    # Four standard deviations of a share of 50,000.
    np.testing.assert_allclose(np.bincount(parts) / 50_000, [0.6, 0.25, 0.15], atol=0.009)
    other = parts_of_groups(replace(split, seed=4), groups)
    assert 0.3 < (parts == other).mean() < 0.6


PERSONS = [place // 10 for place in range(400)]


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("a.csv", [f"p{person}" for person in PERSONS]),
        ("a.csv", PERSONS),
        ("a.csv", [datetime.date(2026, 1, 1) + datetime.timedelta(p) for p in PERSONS]),
        ("a.parquet", [f"p{person}" for person in PERSONS]),
        ("a.parquet", PERSONS),
        ("a.parquet", [p / 4 or (-0.0 if place % 2 else 0.0) for place, p in enumerate(PERSONS)]),
        ("a.parquet", [datetime.date(2026, 1, 1) + datetime.timedelta(p) for p in PERSONS]),
        ("a.parquet", [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(p)
                       for p in PERSONS]),
        ("a.parquet", pa.array([f"p{person}" for person in PERSONS]).dictionary_encode()),
    ],
)  # fmt: skip
def test_rows_of_a_group_stay_together_whatever_tells_the_groups(
    tmp_path: Path, file: str, values: Any
) -> None:
    columns = {"x": [float(person) for person in PERSONS], "t": ["a", "b"] * 200}
    path = write(tmp_path / file, **columns, person=values)
    split = Split(group_column="person", validation_fraction=0.25, test_fraction=0.25, seed=1)
    table = loaded(tmp_path, split, path)
    found = [set(part.inputs[:, 0].tolist()) for part in table.parts]
    assert sum(map(len, found)) == len(set.union(*found)) == 40
    assert all(len(part) % 10 == 0 for part in table.parts)
    assert [one.name for one in table.encodings] == ["x"]


def test_values_that_are_equal_have_one_key_and_what_is_no_number_has_none() -> None:
    keys = as_key(pa.array([0.0, -0.0, float("nan"), None, 2.5])).to_pylist()
    assert keys[0] == keys[1]
    assert keys[2:] == [None, None, "2.5"]


def test_a_row_without_a_group_cannot_be_used(tmp_path: Path) -> None:
    persons = [None if place == 7 else f"p{place // 2}" for place in range(200)]
    path = write(tmp_path / "a.parquet", **rows(200), person=persons)
    split = Split(group_column="person", validation_fraction=0.3, test_fraction=0.3)
    problem = "row 7, counted from 0 over all files: column 'person', by which rows are grouped, "
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path, split, path)
    table = loaded(tmp_path, split, path, skip_unusable_rows=True)
    assert table.unusable == {"column 'person', by which rows are grouped, has no value": 1}


def test_too_few_groups_are_told_with_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", **rows(40), person=["one"] * 40)
    with pytest.raises(DataError, match=r"none of the values of column 'person' falls into it; "):
        loaded(tmp_path, Split(group_column="person"), path)


# By files


def test_files_are_the_parts_and_only_the_first_are_fitted(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{name}.csv", **rows(count, x))
        for name, count, x in (("a", 30, 0), ("b", 30, 3), ("v", 20, 1e6), ("t", 10, -1e6))
    ]
    split = Split(
        validation_paths=(paths[2],), test_paths=(paths[3],), validation_fraction=0, test_fraction=0
    )
    table = loaded(tmp_path, split, *paths[:2])
    assert sizes(table) == [60, 20, 10]
    assert shift_of(table) == 2.5
    assert (table.parts[1].inputs > 1e5).all()
    assert (table.parts[2].inputs < -1e5).all()
    assert (table.raw_rows["x"] >= 1e6).all()


def test_a_part_without_files_is_taken_from_the_training_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", **rows(2_000))
    last = write(tmp_path / "t.parquet", **rows(50, 1e6))
    split = Split(test_paths=(last,), validation_fraction=0.25, test_fraction=0, seed=2)
    table = loaded(tmp_path, split, first)
    train, validation, test = sizes(table)
    assert test == 50
    assert train + validation == 2_000
    assert 400 < validation < 600
    assert shift_of(table) == pytest.approx(1, abs=0.1)


def test_the_digest_is_of_the_files_of_all_parts(tmp_path: Path) -> None:
    first, last = write(tmp_path / "a.csv", **rows(60)), write(tmp_path / "t.csv", **rows(20))
    split = Split(test_paths=(last,), validation_fraction=0.3, test_fraction=0)
    before = loaded(tmp_path, split, first).sha256
    write(tmp_path / "t.csv", **rows(20, 1))
    assert loaded(tmp_path, split, first).sha256 != before


def test_files_of_other_columns_or_types_are_told(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", **rows(60))
    words = write(tmp_path / "words.parquet", x=["1"] * 20, t=["a", "b"] * 10)
    without = write(tmp_path / "without.parquet", x=[1.0] * 20)
    by_files = Split(validation_fraction=0.3, test_fraction=0)
    problem = (
        "column 'x': expected double in file 'words.parquet', as in the files before it, got string"
    )
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path, replace(by_files, test_paths=(words,)), first)
    with pytest.raises(DataError, match=r"file 'without.parquet' lacks the columns \['t'\]"):
        loaded(tmp_path, replace(by_files, test_paths=(without,)), first)
    first = write(tmp_path / "a.csv", **rows(60))
    words = write(tmp_path / "words.csv", x=["many"] * 20, t=["a", "b"] * 10)
    with pytest.raises(DataError, match=r"words\.csv.*conversion error to double: invalid value"):
        loaded(tmp_path, replace(by_files, test_paths=(words,)), first)


def test_whole_numbers_may_be_followed_by_fractions_and_missing_ones(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", x=[1, 2, 3] * 20, t=["a", "b"] * 30)
    last = write(tmp_path / "t.parquet", x=[0.5, None] * 10, t=["a", "b"] * 10)
    split = Split(test_paths=(last,), validation_fraction=0.3, test_fraction=0)
    table = loaded(tmp_path, split, first)
    assert len(np.unique(table.parts[2].inputs)) == 2


def test_a_file_without_rows_leaves_its_part_empty(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", **rows(60))
    (tmp_path / "t.csv").write_text('"x","t"\n')
    split = Split(test_paths=(str(tmp_path / "t.csv"),), validation_fraction=0.3, test_fraction=0)
    problem = r"no rows for the test part; the files of split\.test_paths have no row that can be"
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path, split, first)


def test_a_sample_has_rows_of_every_part_however_small(tmp_path: Path) -> None:
    part = ["train"] * 30_000 + ["validation"] * 3 + ["test"] * 30_000
    path = write(tmp_path / "a.parquet", **rows(60_003), part=part)
    assert sizes(loaded(tmp_path, BY_COLUMN, path, max_rows=1_000)) == [1_000, 3, 1_000]
    first = write(tmp_path / "large.csv", **rows(40_000))
    last = write(tmp_path / "small.csv", **rows(3))
    split = Split(test_paths=(last,), validation_fraction=0.2, test_fraction=0)
    train, validation, test = sizes(loaded(tmp_path, split, first, max_rows=1_000))
    assert (train + validation, test) == (1_000, 3)


def test_a_row_of_a_sample_is_told_by_its_place_in_the_files(tmp_path: Path) -> None:
    columns = rows(1_000)
    columns["t"][400] = None
    path = write(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match="the first of them row 400, counted"):
        loaded(tmp_path, Split(), path, max_rows=100)


@pytest.mark.parametrize(
    ("x", "target"),
    [(1.0, math.inf), (1.0, 1e39), (math.nan, 2.0), (math.inf, 2.0)],
    ids=["an infinite class", "a class that is too far", "no number", "an infinite number"],
)
def test_rows_outside_a_sample_that_cannot_be_used_add_no_class(
    tmp_path: Path, x: float, target: float
) -> None:
    count = 3_000
    xs, targets = [float(i % 7) for i in range(count)], [float(i % 2) for i in range(count)]
    unusable = range(99, count, 100)  # the sample has every hundredth, from 0
    for place in unusable:
        xs[place], targets[place] = x, target
    path = write(tmp_path / "a.parquet", x=xs, t=targets)
    number = TableColumn(name="x", encoding=NumberEncoding(missing=Missing.REFUSED))
    for most in (30, None):  # as the whole job finds them
        table = loaded(
            *(tmp_path, Split(), path), max_rows=most, columns=(number,), skip_unusable_rows=True
        )
        assert table.labels == ("0", "1")
        assert sum(table.unusable.values()) == (0 if most else len(unusable))


# Lines


def test_lines_of_files_of_their_own_are_in_no_other_part(tmp_path: Path) -> None:
    paths = []
    for name, count in (("a", 4_000), ("v", 300), ("t", 200)):
        (tmp_path / name).write_bytes(name.encode() * count)
        paths.append(str(tmp_path / name))
    lines = spec.LinesDataset(paths=(paths[0],), context_length=9)
    both = Split(
        validation_paths=(paths[1],), test_paths=(paths[2],), validation_fraction=0, test_fraction=0
    )
    stream = load_stream(lines, both, tmp_path)
    assert [len(part) for part in stream.parts] == [444, 33, 22]
    assert [set(part.inputs.ravel()) for part in stream.parts] == [{97}, {118}, {116}]
    # One has files, and the other is cut from the training files.
    for field, path, letter in (("test_paths", paths[2], 116), ("validation_paths", paths[1], 118)):
        fractions = {"test_paths": "test_fraction", "validation_paths": "validation_fraction"}
        split = Split(**{field: (path,), fractions[field]: 0.0})  # type: ignore[arg-type]
        stream = load_stream(lines, split, tmp_path)
        own, other = (2, 1) if field == "test_paths" else (1, 2)
        assert set(stream.parts[own].inputs.ravel()) == {letter}
        assert set(stream.parts[other].inputs.ravel()) == {97}
        assert len(stream.parts[other]) == 66  # of 600 bytes
    (tmp_path / "t").write_bytes(b"short")
    with pytest.raises(DataError, match=r"5 of them for the test part of split\.test_paths: expec"):
        load_stream(lines, both, tmp_path)


# What is refused before anything is read


JOB = spec.TrainingJobSpec(
    dataset=TableDataset(paths=("a.csv",), target="t"),
    split=Split(validation_fraction=0, test_fraction=0),
    model=spec.LinearModel(),
    loss=spec.CrossEntropy(),
    optimizer=spec.Adam(),
    epochs=1,
    publication=spec.Publication(model="m"),
)
LINES = spec.LinesDataset(paths=("a.txt",))
IMAGES = spec.ImageDataset(source=spec.ImageFolder(path="images"))
LINE = spec.LineDataset(slope=1, intercept=0, points=100)


def wrong(dataset: spec.Dataset = JOB.dataset, **fields: Any) -> dict[str, str]:
    """Returns what is wrong with a split, by field."""
    job = replace(JOB, dataset=dataset, split=replace(JOB.split, **fields))
    found = validate(job)
    return {field: told for field, told in found if field.startswith("split")}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"column": "part"},
        {"group_column": "person", "test_fraction": 0.3},
        {"test_paths": ("b.csv",), "validation_fraction": 0.3},
        {"validation_paths": ("b.csv",), "test_paths": ("c.csv", "d.csv")},
    ],
)
def test_good_splits_of_a_table_are_taken(fields: dict[str, Any]) -> None:
    assert wrong(**fields) == {}


def test_good_splits_of_lines_are_taken() -> None:
    assert wrong(LINES, test_paths=("b.txt",)) == {}
    assert wrong(LINES, test_paths=("b.txt",), validation_paths=("v",)) == {}


@pytest.mark.parametrize(
    ("dataset", "fields", "field", "problem"),
    [
        (JOB.dataset, {"column": "p", "test_fraction": 0.2}, "test_fraction",
         "expected no fraction beside split.column, which says which rows are in that part; got"),
        (JOB.dataset, {"test_paths": ("b.csv",), "test_fraction": 0.2}, "test_fraction",
         "expected no fraction beside split.test_paths"),
        (JOB.dataset, {"column": "p", "test_paths": ("b.csv",)}, "test_paths",
         "expected no files beside split.column"),
        (JOB.dataset, {"group_column": "p", "validation_paths": ("b.csv",)}, "validation_paths",
         "expected no files beside split.group_column"),
        (JOB.dataset, {"group_column": "p", "column": "q"}, "group_column", "got both"),
        (JOB.dataset, {"column": "t"}, "column", "which is dataset.table.target; name another"),
        (JOB.dataset, {"group_column": "t"}, "group_column", "neither the target nor learned"),
        (TableDataset(paths=("a.csv",), target="t", columns=(TableColumn(name="p"),)),
         {"column": "p"}, "column", r"'p', which is dataset.table.columns[0]; name another"),
        (JOB.dataset, {"column": "a\nb"}, "column", "printable characters"),
        (JOB.dataset, {"test_paths": ("a.csv",)}, "test_paths[0]",
         "expected a file that is named once, got that of dataset.table.paths[0] again"),
        (JOB.dataset, {"test_paths": ("b.csv",), "validation_paths": ("b.csv",)}, "test_paths[0]",
         "got that of split.validation_paths[0] again"),
        (JOB.dataset, {"test_paths": ("b.parquet",)}, "test_paths[0]",
         "expected a file of the format of dataset.table.paths, .csv; got '.parquet'"),
        (JOB.dataset, {"test_paths": ("../b.csv",)}, "test_paths[0]", "a path without `..`"),
        (LINES, {"column": "p"}, "column", "only where dataset.table has columns"),
        (LINES, {"test_paths": ("a.txt",)}, "test_paths[0]", "that of dataset.lines.paths[0]"),
        (IMAGES, {"test_paths": ("b",)}, "test_paths", "dataset.images.idx.test_images say which"),
        (IMAGES, {"group_column": "p"}, "group_column", "only where dataset.table has columns"),
        (LINE, {"validation_paths": ("b",)}, "validation_paths", "divide this data set by fract"),
        (JOB.dataset, {"group_column": "p", "test_fraction": 1.0}, "test_fraction", "below 1"),
        (JOB.dataset, {"test_paths": ("b.csv",), "validation_fraction": -1.0},
         "validation_fraction", "above 0"),
    ],
)  # fmt: skip
def test_a_split_that_cannot_be_is_refused_by_its_field(
    dataset: spec.Dataset, fields: dict[str, Any], field: str, problem: str
) -> None:
    found = wrong(dataset, **fields)
    assert list(found) == [f"split.{field}"]
    assert problem in found[f"split.{field}"]


def test_links_to_one_file_are_one_file_once_they_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", **rows(10))
    (tmp_path / "b.csv").symlink_to("a.csv")
    job = replace(JOB, split=replace(JOB.split, test_paths=("b.csv",)))
    assert validate(job) == []
    (found,) = validate(with_real_paths(job, DataRoots([tmp_path])))
    assert found.field == "split.test_paths[0]"
    assert str(tmp_path) not in found.description


# A look at a table


def test_a_column_of_the_names_of_the_parts_is_seen_and_suggested(tmp_path: Path) -> None:
    part = [PARTS[place % 3] for place in range(300)]
    path = write(tmp_path / "a.csv", x=np.random.default_rng(0).normal(size=300), part=part,
                 t=["a", "b"] * 150)  # fmt: skip
    found = inspect_table(TableDataset(paths=(path,), target="t"), 3)
    assert {one.name: one.use for one in found.columns}["part"] is Use.SPLIT
    suggested = suggested_spec(found, pb.TableDataset(paths=["a.csv"], target="t"))
    assert suggested is not None
    assert suggested.split == pb.Split(column="part")
    assert [column.name for column in suggested.dataset.table.columns] == ["x"]


def test_what_is_asked_about_the_split_is_suggested_and_doubted(tmp_path: Path) -> None:
    columns = rows(60) | {"part": ["train", "Test", None] * 20, "who": list(range(30)) * 2}
    path, other = write(tmp_path / "a.csv", **columns), write(tmp_path / "b.csv", **columns)
    table = pb.TableDataset(paths=["a.csv"], target="t")
    dataset = TableDataset(paths=(path,), target="t")
    found = inspect_table(dataset, 3, Split(column="part"))
    assert [warning.partition(" of split.column: ")[2] for warning in found.warnings] == [
        "20 rows have no value; expected one of train, validation, test in each",
        "expected none but train, validation, test, got 'Test' too",
        "no row has 'validation', and every part needs rows",
        "no row has 'test', and every part needs rows",
    ]
    for asked, split in (
        (pb.Split(group_column="who"), Split(group_column="who")),
        (pb.Split(test_paths=["b.csv"]), Split(test_paths=(other,))),
    ):
        found = inspect_table(dataset, 3, split)
        suggested = suggested_spec(found, table, asked)
        assert suggested is not None
        assert suggested.split.group_column == asked.group_column
        assert suggested.split.test_paths == asked.test_paths
        assert "who" not in [one.name for one in suggested.dataset.table.columns] or not (
            asked.group_column
        )
        assert suggested.split.validation_fraction == 0.15
    assert len(found.files) == 2
    assert found.rows == 60


def test_the_files_of_a_split_are_looked_into_as_far_as_their_columns_go(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", **rows(60))
    other = write(tmp_path / "b.parquet", x=["1"] * 4, t=["a"] * 4)
    problem = r"^split\.test_paths\[0\]: column 'x': expected double in file 'b\.parquet'"
    with pytest.raises(DataError, match=problem):
        inspect_table(TableDataset(paths=(path,), target="t"), 3, Split(test_paths=(other,)))
    with pytest.raises(DataError, match=r"^split\.column: the table has no column 'part'"):
        inspect_table(TableDataset(paths=(path,), target="t"), 3, Split(column="part"))


def _nothing(path: Path) -> None:
    path.write_bytes(b"PAR1 and no more of it")


def _no_column(path: Path) -> None:
    write(path, x=[1.0] * 4)


@pytest.mark.parametrize(
    ("hurt", "told"),
    [
        (Path.unlink, "a file of the table is gone: {}; put it in its place and clone the job"),
        (_nothing, "the table cannot be read: "),
        (_no_column, "file '{}' lacks the columns ['t'] of the first file"),
    ],
)
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("b.parquet", "dataset.table.paths[1]"),
        ("v.parquet", "split.validation_paths[0]"),
        ("t.parquet", "split.test_paths[1]"),
    ],
)
def test_a_file_that_is_gone_or_damaged_is_told_by_the_field_that_names_it(
    tmp_path: Path, name: str, field: str, hurt: Callable[[Path], None], told: str
) -> None:
    a, b, s, t, v = (write(tmp_path / f"{one}.parquet", **rows(60)) for one in "abstv")
    hurt(tmp_path / name)
    dataset = TableDataset(paths=(a, b), target="t")
    with pytest.raises(DataError) as caught:
        inspect_table(dataset, 3, Split(validation_paths=(v,), test_paths=(s, t)))
    assert str(caught.value).startswith(f"{field}: {told.format(name)}")
    assert str(tmp_path) not in str(caught.value)


def test_the_parts_are_called_as_columns_call_them() -> None:
    assert tuple(part.name.lower() for part in PartOfRow) == spec.PARTS
