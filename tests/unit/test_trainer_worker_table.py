"""Tables: read, divided, encoded, and the encoding as a graph that computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelrail_trainer.data_roots import DataPathError, DataRoots
from modelrail_trainer.encodings.category import CategoryFitting, FittedCategory
from modelrail_trainer.encodings.column import ColumnType
from modelrail_trainer.encodings.number import FittedNumber, NumberFitting
from modelrail_trainer.failure import DataError, GateFailed
from modelrail_trainer.handover.artifact import Signature, TensorSpec
from modelrail_trainer.spec import (
    CategoryEncoding,
    CategoryMethod,
    Missing,
    NumberEncoding,
    Scale,
    Split,
    TableColumn,
    TableDataset,
    Task,
)
from modelrail_trainer.worker.export import parity
from modelrail_trainer.worker.export.model_file import leaks
from modelrail_trainer.worker.part import PartOfRow
from modelrail_trainer.worker.table.acceptance import check_end_to_end
from modelrail_trainer.worker.table.dataset import Table, load_table
from modelrail_trainer.worker.table.graph import end_to_end, end_to_end_signature
from modelrail_trainer.worker.table.partition import parts_of
from modelrail_trainer.worker.table.reader import TableReader

NAN = math.nan
HALF = Split(validation_fraction=0.25, test_fraction=0.25, seed=3)


def texts(*values: str) -> Any:
    return np.array(values, object)


def write(path: Path, **columns: Any) -> str:
    table = pa.table(columns)
    match path.suffix:
        case ".csv":
            pyarrow.csv.write_csv(table, path)
        case ".parquet":
            pyarrow.parquet.write_table(table, path)
        case _:
            with pyarrow.ipc.new_file(path, table.schema) as file:
                file.write_table(table)
    return str(path)


def loaded(tmp_path: Path, path: str, task: Task = Task.CLASSIFICATION, **fields: Any) -> Table:
    folder = tmp_path / "data"
    folder.mkdir()
    return load_table(TableDataset(paths=(path,), target="t", **fields), HALF, task, folder)


# Reading


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".arrow"])
def test_numbers_booleans_texts_and_what_is_missing_come_out_of_every_format(
    tmp_path: Path, ending: str
) -> None:
    path = write(
        tmp_path / f"rows{ending}",
        whole=pa.array([1, None, 3]),
        real=pa.array([0.5, NAN, None]),
        yes=pa.array([True, None, False]),
        text=pa.array(["a", None, "c d"]),
    )
    reader = TableReader([path])
    assert reader.names() == ["whole", "real", "yes", "text"]
    assert [reader.type_of(name) for name in reader.names()] == [
        *[ColumnType.NUMBER] * 3,
        ColumnType.TEXT,
    ]
    (batch,) = reader.batches(reader.names())
    np.testing.assert_array_equal(batch.columns["whole"], [1, NAN, 3])
    np.testing.assert_array_equal(batch.columns["real"], [0.5, NAN, NAN])
    np.testing.assert_array_equal(batch.columns["yes"], [1, NAN, 0])
    assert batch.columns["text"].tolist() == ["a", "", "c d"]


def test_rows_of_several_files_follow_each_other_and_dictionaries_are_texts(tmp_path: Path) -> None:
    words = pa.array(["u", "v", "u"]).dictionary_encode()
    paths = [write(tmp_path / f"{n}.parquet", n=[n] * 3, word=words) for n in (1, 0)]
    batches = list(TableReader(paths).batches(["n", "word"]))
    assert [int(batch.numbers[0]) for batch in batches] == [0, 3]
    assert np.concatenate([b.columns["n"] for b in batches]).tolist() == [1, 1, 1, 0, 0, 0]
    assert batches[0].columns["word"].tolist() == ["u", "v", "u"]


def test_the_digest_is_of_content_and_order(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{n}.csv", n=[n]) for n in (1, 2))
    copy = write(tmp_path / "copy.csv", n=[1])
    digest = TableReader([first, second]).sha256()
    assert digest == TableReader([copy, second]).sha256()
    assert digest != TableReader([second, first]).sha256()


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def cut_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20:60] = b"\xff" * 40
    path.write_bytes(content)


@pytest.mark.parametrize("hurt", [damaged, cut_in_the_middle, Path.unlink])
def test_a_damaged_or_missing_file_is_told_as_one(
    tmp_path: Path, hurt: Callable[[Path], None]
) -> None:
    path = tmp_path / "rows.parquet"
    write(path, n=list(range(100)), t=["a"] * 100)
    hurt(path)
    with pytest.raises(DataError, match=r"the table cannot be read|is gone"):
        list(TableReader([str(path)]).batches(["n", "t"]))


def test_a_column_that_is_not_there_or_of_another_kind_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", n=[1], when=pa.array([0], pa.timestamp("s")))
    reader = TableReader([path])
    with pytest.raises(DataError, match=r"no column 'm'; it has: n, when"):
        reader.type_of("m")
    with pytest.raises(DataError, match=r"'when': expected numbers.*got timestamp"):
        reader.type_of("when")


def test_what_the_first_rows_do_not_show_is_read_all_the_same(tmp_path: Path) -> None:
    rows = 200_000  # more than a block of a CSV file
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("n,empty,t\n" + "1,,a\n" * rows + '2.5,late,"b\nc"\n')
    reader = TableReader([str(path)])
    last = list(reader.batches(reader.names()))[-1]
    assert last.columns["n"][-1] == 2.5
    assert last.columns["empty"][-2:].tolist() == ["", "late"]
    assert last.columns["t"][-1] == "b\nc"


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_numbers_that_are_names_can_be_texts(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", store=pa.array([17, None, 2]), n=[1, 2, 3])
    reader = TableReader([path], {"store": ColumnType.TEXT})
    (batch,) = reader.batches(["store", "n"])
    assert reader.type_of("store") is ColumnType.TEXT
    assert batch.columns["store"].tolist() == ["17", "", "2"]


def test_large_whole_numbers_and_views_of_texts_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        n=pa.array([2**62 + 1], pa.int64()),
        t=pa.array(["a"]).cast(pa.string_view()),
    )
    (batch,) = TableReader([path]).batches(["n", "t"])
    assert batch.columns["n"].tolist() == [2.0**62]
    assert batch.columns["t"].tolist() == ["a"]


def test_of_a_large_parquet_file_only_a_few_row_groups_are_held(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    group_rows, groups = 20_000, 40
    numbers = np.random.default_rng(0).random(groups * group_rows)
    pyarrow.parquet.write_table(
        pa.table({"x": numbers}), path, row_group_size=group_rows, compression="none"
    )
    del numbers
    reader = TableReader([str(path)])
    before = pa.total_allocated_bytes()
    held = []
    rows = 0
    for batch in reader.batches(["x"]):
        held.append(pa.total_allocated_bytes() - before)
        rows += len(batch)
    assert rows == groups * group_rows
    assert max(held) < 8 * group_rows * 8  # eight of forty groups


def test_a_file_that_lacks_a_column_of_the_first_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", n=[1], m=[2])
    second = write(tmp_path / "b.parquet", n=[1])
    with pytest.raises(DataError, match=r"'b.parquet' lacks the columns \['m'\]"):
        TableReader([first, second])


def test_a_file_that_changes_while_it_is_read_fails_the_job(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", n=[1])
    reader = TableReader([path])
    reader.check_unchanged()
    write(tmp_path / "a.parquet", n=[1, 2])
    with pytest.raises(DataError, match=r"'a.parquet' was changed .*; clone the job"):
        reader.check_unchanged()


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"a,b\n1\n", "aé\n1\n".encode("latin-1")]
)
def test_a_file_that_is_no_table_is_told_without_its_folder(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(TableReader([str(path)]).batches(["a"]))
    assert caught.value.args[0].startswith("the table cannot be read: ")
    assert str(tmp_path) not in str(caught.value)


# Dividing


def test_a_row_keeps_its_part_however_the_rows_are_read() -> None:
    whole = parts_of(HALF, np.arange(1000))
    pieces = [parts_of(HALF, np.arange(first, first + 100)) for first in range(0, 1000, 100)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert not np.array_equal(whole, parts_of(Split(seed=4), np.arange(1000)))


def test_the_parts_have_about_the_sizes_that_are_asked_for() -> None:
    counts = np.bincount(parts_of(HALF, np.arange(100_000))) / 100_000
    # Four standard deviations of a share of 100,000 rows.
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.25], atol=0.007)


# Encoding


def fitted_number(values: list[float], **fields: Any) -> FittedNumber:
    fitting = NumberFitting("n", NumberEncoding(**fields))
    for part in np.array_split(np.array(values), 3):
        fitting.add(part)
    return fitting.fitted()


def test_a_number_is_standardized_and_what_is_missing_is_the_mean() -> None:
    encoding = fitted_number([1.0, 2.0, NAN, 6.0], missing_indicator=True)
    deviation = np.std([1.0, 2.0, 6.0])
    expected = np.array([[0, 0], [0, 1], [3 / deviation, 0]], np.float32)
    np.testing.assert_allclose(encoding.encode(np.array([3.0, NAN, 6.0])), expected, rtol=1e-6)


def test_a_number_is_scaled_to_the_range_of_its_logarithms() -> None:
    encoding = fitted_number([0.0, 9.0, 99.0], log=True, scale=Scale.MIN_MAX)
    encoded = encoding.encode(np.array([0.0, 9.0, 99.0, -5.0]))[:, 0]
    np.testing.assert_allclose(encoded, [0, 0.5, 1, 0], atol=1e-6)


def test_a_constant_stands_in_for_what_is_missing() -> None:
    encoding = fitted_number([1.0, NAN], missing=Missing.CONSTANT, constant=7.0, scale=Scale.NONE)
    np.testing.assert_array_equal(encoding.encode(np.array([NAN, 2.0])), [[7], [2]])


TENTH = 0.1
MANY = 180  # so many tenths have a mean that is rounded


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [Scale.STANDARDIZED, Scale.MIN_MAX])
@pytest.mark.parametrize("missing", [[], [NAN]])
@pytest.mark.parametrize("value", [TENTH, 5.0, 1e9 + TENTH, -TENTH, 0.0])
def test_a_column_that_never_varies_is_only_centred(
    value: float, missing: list[float], scale: Scale, log: bool
) -> None:
    if log and value < 0:
        return
    fitting = NumberFitting("n", NumberEncoding(scale=scale, log=log))
    for part in np.array_split(np.array([value] * MANY + missing), 3):
        fitting.add(part)
    encoding = fitting.fitted()
    assert encoding.width == 1
    assert encoding.input.datatype == "FP32"
    other = value + 0.5
    expected = [0, np.log1p(other) - np.log1p(value)] if log else [0, other - value]
    encoded = encoding.encode(np.array([value, other]))[:, 0]
    np.testing.assert_allclose(encoded, expected, atol=4 * np.spacing(np.float32(abs(value) + 1)))
    assert fitting.is_constant


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        # Sums that are one number but for the rounding of the last addition.
        ([0.3, 0.1 + 0.2, 0.1 + 0.1 + 0.1], NumberEncoding()),
        ([0.3, 0.1 + 0.2], NumberEncoding(scale=Scale.MIN_MAX)),
        # 32 bits, with which logarithms are taken, do not tell these apart.
        ([1.7e9, 1.7e9 + 10], NumberEncoding(log=True)),
        ([1e-9, 2e-9], NumberEncoding(log=True)),
    ],
)
def test_what_differs_by_rounding_alone_never_varies(
    values: list[float], encoding: NumberEncoding
) -> None:
    fitting = NumberFitting("n", encoding)
    fitting.add(np.array(values * MANY))
    assert fitting.fitted().width == 1
    assert not fitting.fitted().is_double
    assert fitting.is_constant


@pytest.mark.parametrize(
    "values",
    [2.0**53 - np.arange(1.0, 12.0), 1e-30 * np.arange(2), np.array([TENTH, TENTH + 1e-15])],
)
def test_what_differs_by_more_than_rounding_is_scaled_however_little(
    values: npt.NDArray[np.float64],
) -> None:
    fitting = NumberFitting("n", NumberEncoding())
    fitting.add(values)
    encoded = fitting.fitted().encode(values)[:, 0]
    assert np.std(encoded) == pytest.approx(1, rel=0.1)
    assert not fitting.is_constant


def test_a_blank_tells_something_only_where_it_is_not_filled_with_the_value() -> None:
    for encoding, tells in (
        (NumberEncoding(missing=Missing.MEDIAN), False),
        (NumberEncoding(missing_indicator=True), True),
        (NumberEncoding(missing=Missing.CONSTANT), True),
    ):
        fitting = NumberFitting("n", encoding)
        fitting.add(np.array([TENTH] * MANY + [NAN]))
        fitting.fitted()
        assert fitting.is_constant is not tells


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 5))
def test_mean_and_spread_do_not_depend_on_the_batches(values: list[float], batches: int) -> None:
    fitting = NumberFitting("n", NumberEncoding())
    for part in np.array_split(np.array(values), batches):
        fitting.add(part)
    encoding = fitting.fitted()
    assert float(encoding.shift) == pytest.approx(np.mean(values), rel=1e-5, abs=1e-5)
    spread = np.float32(np.std(values))
    if spread > 1e-3:
        assert float(encoding.width) == pytest.approx(spread, rel=1e-3)


def test_numbers_that_cannot_be_fitted_are_told() -> None:
    with pytest.raises(DataError, match="'n': no training row has a value"):
        fitted_number([NAN, NAN])
    with pytest.raises(DataError, match="'n': expected numbers from 0 for log, got -2"):
        fitted_number([1.0, -2.0], log=True)


def test_texts_become_a_feature_each_and_unknown_ones_none() -> None:
    fitting = CategoryFitting("c", CategoryEncoding(max_categories=2))
    fitting.add(texts("b", "a", "b", "rare", "a"))
    encoding = fitting.fitted()
    assert encoding.keys == ("a", "b")
    np.testing.assert_array_equal(
        encoding.encode(texts("b", "a", "rare", "")), [[0, 1], [1, 0], [0, 0], [0, 0]]
    )


def test_texts_become_their_place_and_unknown_ones_minus_one() -> None:
    fitting = CategoryFitting("c", CategoryEncoding(method=CategoryMethod.ORDINAL))
    fitting.add(texts("z", "", "m"))
    np.testing.assert_array_equal(
        fitting.fitted().encode(texts("", "m", "z", "?")), [[0], [1], [2], [-1]]
    )


# The whole table


def penguin_like(rows: int) -> dict[str, Any]:
    """Rows of which the kind is told by the sign of a number, with missing values."""
    generator = np.random.default_rng(0)
    size = generator.normal(size=rows)
    kind = np.where(size > 0, "big", "small")
    size[::7] = NAN
    place = generator.choice(["north", "south", ""], rows)
    return {"size": size, "place": [p or None for p in place], "t": kind}


def test_encodings_are_fitted_on_the_training_rows_alone(tmp_path: Path) -> None:
    rows = 400
    parts = parts_of(HALF, np.arange(rows))
    x = np.where(parts == PartOfRow.TRAIN, 1.0, 1000.0)
    x[np.flatnonzero(parts == PartOfRow.TRAIN)[0]] = 3.0
    word = np.where(parts == PartOfRow.TRAIN, "seen", "new")
    path = write(tmp_path / "a.parquet", x=x, word=word, t=np.arange(rows) % 2)
    table = loaded(tmp_path, path)
    number, category = table.encodings
    assert isinstance(number, FittedNumber)
    assert float(number.shift) == pytest.approx(x[parts == PartOfRow.TRAIN].mean())
    assert isinstance(category, FittedCategory)
    assert category.keys == ("seen",)
    assert table.labels == ("0", "1")
    assert [len(part) for part in table.parts] == np.bincount(parts).tolist()
    assert table.constant_columns == ("word",)


def test_the_rows_and_targets_are_those_of_the_files(tmp_path: Path) -> None:
    columns = penguin_like(40_000)  # more than one batch
    table = loaded(tmp_path, write(tmp_path / "a.parquet", **columns))
    parts = parts_of(HALF, np.arange(40_000))
    for part, rows in zip(table.parts, PartOfRow, strict=True):
        chosen = parts == rows
        size, place = (np.array(columns[name], object)[chosen] for name in ("size", "place"))
        number, category = table.encodings
        expected = np.hstack(
            [
                number.encode(size.astype(float)),
                category.encode(np.where(place == None, "", place)),  # noqa: E711
            ]
        )
        np.testing.assert_array_equal(part.inputs, expected)
        np.testing.assert_array_equal(part.targets, (columns["t"][chosen] == "small").astype(int))
    assert len(table.raw_rows["size"]) == 256


def test_rows_that_cannot_be_used_fail_the_job_or_are_counted(tmp_path: Path) -> None:
    parts = parts_of(HALF, np.arange(200))
    held_out = int(np.flatnonzero(parts == PartOfRow.TEST)[0])
    target = np.array(["a", "b"] * 100, object)
    target[held_out] = "only in the test"
    target[5] = None
    x = np.arange(200.0)
    x[7], x[8] = np.inf, NAN
    path = write(tmp_path / "a.parquet", x=x, t=target)
    columns = (TableColumn(name="x", encoding=NumberEncoding(missing=Missing.REFUSED)),)
    with pytest.raises(DataError, match=r"3 rows cannot be used, the first of them row 5, counted"):
        loaded(tmp_path, path, columns=columns)
    again = tmp_path / "again"
    again.mkdir()
    table = loaded(again, path, columns=columns, skip_unusable_rows=True)
    assert table.unusable == {
        "no target": 1,
        "column 'x' has an infinite number": 1,
        "column 'x' has no number": 1,
        "a class that no training row has": 1,
    }
    assert sum(map(len, table.parts)) == 196


@pytest.mark.parametrize(
    ("columns", "fields", "problem"),
    [
        ({"x": [1.0] * 50, "t": ["a"] * 50}, {}, "expected at least 2 classes"),
        ({"x": [1.0] * 50, "t": [0.5, 1.0] * 25}, {}, "whole numbers or booleans as classes"),
        ({"x": [1.0], "t": ["a"]}, {}, "the split leaves no rows for the train part"),
        ({"label": [1.0] * 50, "t": ["a", "b"] * 25}, {}, 'names of the exported graph'),
        ({"x": ["u"] * 50, "t": ["a", "b"] * 25},
         {"columns": (TableColumn(name="x", encoding=NumberEncoding()),)}, "expected numbers"),
        ({"x": [0.5] * 50, "t": ["a", "b"] * 25},
         {"columns": (TableColumn(name="x", encoding=CategoryEncoding()),)}, "expected texts"),
        ({"": [1.0] * 50, "t": ["a", "b"] * 25}, {}, "expected a name of 1 to 128"),
        ({"network.x": [1.0] * 50, "t": ["a", "b"] * 25}, {}, "names of the exported graph"),
        ({"t": ["a", "b"] * 25}, {}, "no column but the target 't'"),
        ({"x": [1.0] * 50, "t": ["a", "b"] * 25}, {"task": Task.REGRESSION}, "got texts"),
        ({"x": [-3.3e38, 3.3e38] * 25, "t": ["a", "b"] * 25},
         {"columns": (TableColumn(name="x", encoding=NumberEncoding(scale=Scale.MIN_MAX)),)},
         "its range does not fit"),
        ({"x": [1] * 50}, {}, "no column 't'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_told(
    tmp_path: Path, columns: dict[str, Any], fields: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path, path, **fields)


def test_an_infinite_class_is_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0] * 60, t=[0.0, 1.0, math.inf] * 20)
    table = loaded(tmp_path, path, skip_unusable_rows=True)
    assert table.labels == ("0", "1")
    assert table.unusable == {"a target that does not fit into 32 bits": 20}


# The graph


def bare_network(features: int, outputs: list[str]) -> onnx.ModelProto:
    """features · W with weights that differ, as logits and their softmax, or as y."""
    weights = np.linspace(-1, 1, features * 2, dtype=np.float32).reshape(features, 2)
    nodes = [onnx.helper.make_node("MatMul", ["features", "w"], [outputs[0]])]
    if len(outputs) > 1:
        nodes.append(onnx.helper.make_node("Softmax", [outputs[0]], [outputs[1]], axis=1))
    value = onnx.helper.make_tensor_value_info
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "bare",
            [value("features", onnx.TensorProto.FLOAT, ["batch", features])],
            [value(name, onnx.TensorProto.FLOAT, ["batch", 2]) for name in outputs],
            [onnx.numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )


ENCODINGS = (
    FittedNumber("km/h", np.float32(2), True, True, np.float32(0.5), np.float32(3)),
    FittedCategory("a word.py", ("", "x", "ž"), np.eye(4, 3, dtype=np.float32)),
    FittedNumber("n", np.float32(0), False, False, np.float32(-1), np.float32(1)),
)
LABELS = ("no / yes", "maybe")


def whole_graph(path: Path) -> Signature:
    outputs = tuple(
        TensorSpec(name=name, datatype="FP32", shape=("batch", 2), labels=LABELS)
        for name in ("logits", "probabilities")
    )
    signature = end_to_end_signature(Signature((), outputs), ENCODINGS, LABELS)
    bare = bare_network(6, ["logits", "probabilities"])
    onnx.save(end_to_end(bare, ENCODINGS, signature), path)
    return signature


ROWS = {
    "km/h": np.array([1.0, NAN, -3.0, 50.0]),
    "a word.py": texts("x", "", "ž", "unknown"),
    "n": np.array([0.0, NAN, 2.0, 1.0]),
}


class BareNetwork(torch.nn.Module):
    """What `bare_network` computes, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
        logits = x @ torch.from_numpy(weights) * self.factor
        return logits, logits.softmax(1)


def python_module(factor: float = 1.0) -> torch.nn.Module:
    return BareNetwork(factor).eval()


def test_the_graph_computes_what_python_computes_from_raw_rows(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    signature = whole_graph(path)
    assert [(i.name, i.datatype, i.shape) for i in signature.inputs] == [
        ("km/h", "FP32", ("batch", 1)),
        ("a word.py", "BYTES", ("batch", 1)),
        ("n", "FP32", ("batch", 1)),
    ]
    parity, _ = check_end_to_end(path, python_module(), signature, ENCODINGS, ROWS)
    assert {output.name for output in parity} == {"logits", "probabilities"}
    assert leaks(onnx.load(path)) == []
    feed = {name: values.reshape(-1, 1) for name, values in ROWS.items()}
    feed = {n: v if v.dtype == object else v.astype(np.float32) for n, v in feed.items()}
    logits, label = onnxruntime.InferenceSession(path).run(["logits", "label"], feed)
    assert label[:, 0].tolist() == [LABELS[place] for place in logits.argmax(axis=1)]


def test_the_gate_refuses_an_encoding_that_differs(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    signature = whole_graph(path)
    with pytest.raises(GateFailed, match=r"output 'logits' of the end-to-end graph.*against Pyth"):
        check_end_to_end(path, python_module(1.01), signature, ENCODINGS, ROWS)
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "LabelEncoder":
            del node.attribute[:]
            node.CopyFrom(
                onnx.helper.make_node(
                    "LabelEncoder",
                    node.input,
                    node.output,
                    domain=node.domain,
                    keys_strings=["", "x", "ž"],
                    values_int64s=[1, 0, 2],
                    default_int64=3,
                )
            )
    onnx.save(model, path)
    with pytest.raises(GateFailed, match="against Python"):
        check_end_to_end(path, python_module(), signature, ENCODINGS, ROWS)


def test_the_gate_refuses_a_label_that_is_not_of_the_highest_logit(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    signature = whole_graph(path)
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.data_type == onnx.TensorProto.STRING:
            initializer.string_data.reverse()
    onnx.save(model, path)
    with pytest.raises(GateFailed, match="'label': expected the class of the highest logit"):
        check_end_to_end(path, python_module(), signature, ENCODINGS, ROWS)


def test_the_gate_knows_only_the_domains_that_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    signature = whole_graph(path)
    with pytest.raises(GateFailed, match=r"expected operators of .* only, got \['ai.onnx.ml'\]"):
        parity.check_file(path, signature)


# Where files may lie


def test_only_files_below_a_root_are_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    inside, outside = root / "below" / "a.csv", tmp_path / "secret.csv"
    for file in (inside, outside):
        file.write_text("x\n1\n")
    (root / "link.csv").symlink_to(outside)
    (root / "loop.csv").symlink_to(root / "loop.csv")
    roots = DataRoots([tmp_path / "absent", root])
    assert roots.resolve("below/a.csv") == roots.resolve(str(inside)) == inside.resolve()
    for path in (
        str(outside), "../secret.csv", "link.csv", "loop.csv", "below", "absent.csv", "/etc/passwd",
        "a\0b",
    ):  # fmt: skip
        with pytest.raises(DataPathError, match="expected a file below a --data-root"):
            roots.resolve(path)
    with pytest.raises(DataPathError, match="started without --data-root"):
        DataRoots([]).resolve("below/a.csv")
