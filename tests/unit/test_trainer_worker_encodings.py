"""Encodings of a table's columns beside the plain ones: hashes of texts, and medians."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.encodings.hash import FittedHash, HashFitting
from modelrail_trainer.encodings.median import Values
from modelrail_trainer.encodings.number import NumberFitting
from modelrail_trainer.failure import DataError
from modelrail_trainer.handover.artifact import Signature, TensorSpec
from modelrail_trainer.protocol.specification import spec_from_pb
from modelrail_trainer.rules.validation import validate
from modelrail_trainer.spec import (
    HashEncoding,
    Missing,
    NumberEncoding,
    Scale,
    Split,
    TableColumn,
    TableDataset,
    Task,
    with_defaults,
)
from modelrail_trainer.worker.table.dataset import load_table
from modelrail_trainer.worker.table.graph import domains_of, end_to_end, end_to_end_signature

NAN = math.nan


def texts(*values: str) -> Any:
    return np.array(values, object)


def hash_session(buckets: int) -> onnxruntime.InferenceSession:
    """The graph of one hashed column, whose output is its features."""
    value = onnx.helper.make_tensor_value_info
    bare = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["features"], ["y"])],
            "bare",
            [value("features", onnx.TensorProto.FLOAT, ["batch", buckets])],
            [value("y", onnx.TensorProto.FLOAT, ["batch", buckets])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    encodings = (FittedHash("word", buckets),)
    y = TensorSpec(name="y", datatype="FP32", shape=("batch", buckets))
    signature = end_to_end_signature(Signature((), (y,)), encodings, ())
    whole = end_to_end(bare, encodings, signature)
    return onnxruntime.InferenceSession(whole.SerializeToString())


SESSION = hash_session(17)


@settings(deadline=None)  # the first example imports the hash
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20))
def test_the_graph_hashes_every_text_as_python_does(words: list[str]) -> None:
    (got,) = SESSION.run(None, {"word": texts(*words).reshape(-1, 1)})
    np.testing.assert_array_equal(got, FittedHash("word", 17).encode(texts(*words)))


def test_the_hash_is_the_published_one() -> None:
    # Values of the reference implementation, MurmurHash3_x86_32 with seed 0.
    published = {"": 0, "a": 0x3C2569B2, "hello": 0x248BFA47, "hello, world": 0x149BBB7F}
    encoded = FittedHash("word", 10_000).encode(texts(*published))
    assert encoded.argmax(axis=1).tolist() == [value % 10_000 for value in published.values()]
    assert (encoded.sum(axis=1) == 1).all()


def test_a_hash_is_told_to_use_an_operator_outside_of_the_standard() -> None:
    assert domains_of([FittedHash("word", 2)]) == ("com.microsoft",)
    number = NumberFitting("n", NumberEncoding())
    number.add(np.array([1.0]))
    assert domains_of([number.fitted()]) == ()


def test_a_hashed_column_knows_whether_it_varies() -> None:
    fitting = HashFitting("word", HashEncoding(buckets=2))
    fitting.add(texts("a", "a"))
    assert fitting.is_constant
    fitting.add(texts("b"))
    fitting.add(texts("a"))
    assert not fitting.is_constant


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.just(NAN), st.floats(-1e30, 1e30)), min_size=1),
    st.integers(1, 5),
)
def test_the_median_is_exact_however_the_rows_come(values: list[float], batches: int) -> None:
    if all(map(math.isnan, values)):
        values.append(1.0)
    fitting = NumberFitting("n", NumberEncoding(missing=Missing.MEDIAN, scale=Scale.NONE))
    for part in np.array_split(np.array(values), batches):
        fitting.add(part)
    expected = np.float32(np.nanmedian(values))
    assert fitting.fitted().encode(np.array([NAN]))[0, 0] == expected


def written(path: Path, **columns: Any) -> str:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return str(path)


def test_hash_and_median_are_learned_from_a_table_and_leave_no_file(tmp_path: Path) -> None:
    numbers = [*range(99), 1e6] * 4
    path = written(tmp_path / "a.parquet", n=numbers, word=list("abcd") * 100, t=list("xy") * 200)
    folder = tmp_path / "data"
    folder.mkdir()
    columns = (
        TableColumn(name="n", encoding=NumberEncoding(missing=Missing.MEDIAN, scale=Scale.NONE)),
        TableColumn(name="word", encoding=HashEncoding(buckets=5)),
    )
    table = load_table(
        TableDataset(paths=(path,), target="t", columns=columns),
        Split(validation_fraction=0.25, test_fraction=0.25, seed=3),
        Task.CLASSIFICATION,
        folder,
    )
    train = table.parts[0].inputs
    assert train.shape[1] == 6
    fill = table.encodings[0].encode(np.array([NAN]))[0, 0]
    assert fill == np.median(np.asarray(train[:, 0], np.float64)).astype(np.float32)
    assert {path.suffix for path in folder.iterdir()} == {".features", ".targets"}


def test_values_that_wait_for_their_median_have_no_name_that_could_stay(tmp_path: Path) -> None:
    values = Values(tmp_path)
    values.add(np.array([3.0, 1.0, 2.0]))
    assert list(tmp_path.iterdir()) == []
    assert values.median() == 2.0


def test_a_hash_of_numbers_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", n=[0.5, 1.5] * 50, t=list("xy") * 50)
    columns = (TableColumn(name="n", encoding=HashEncoding()),)
    with pytest.raises(DataError, match="column 'n': expected texts"):
        load_table(
            TableDataset(paths=(path,), target="t", columns=columns),
            Split(), Task.CLASSIFICATION, tmp_path,
        )  # fmt: skip


def test_the_fields_come_over_the_wire_with_their_defaults_and_limits() -> None:
    message = pb.TrainingJobSpec()
    message.dataset.table.paths.append("a.csv")
    message.dataset.table.target = "t"
    for name, buckets in (("a", 0), ("b", 10_001), ("c", 1)):
        message.dataset.table.columns.add(name=name).hash.buckets = buckets
    message.dataset.table.columns.add(name="d").number.missing = pb.NumberEncoding.MISSING_MEDIAN
    spec = with_defaults(spec_from_pb(message))
    assert isinstance(spec.dataset, TableDataset)
    first, *_, last = (column.encoding for column in spec.dataset.columns)
    assert first == HashEncoding(buckets=256)
    assert last == NumberEncoding(missing=Missing.MEDIAN)
    wrong = dict(validate(spec))
    for place in (1, 2):
        said = wrong[f"dataset.table.columns[{place}].hash.buckets"]
        assert said.startswith("expected a whole number from 2 to 10000")
    assert "dataset.table.columns[0].hash.buckets" not in wrong
