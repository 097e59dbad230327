"""Numbers far from 0 and close to each other, and texts that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.encodings.number import NumberFitting
from modelrail_trainer.failure import DataError
from modelrail_trainer.spec import NumberEncoding, Scale
from modelrail_trainer.worker.table.reader import TableReader
from tests.integration.worker_jobs import figure, said, succeeded

FAR = 1.7e9


def test_what_differs_in_the_last_digits_is_learned_and_served_with_64_bits(
    tmp_path: Path,
) -> None:
    seconds = FAR + np.linspace(0, 100, 500)  # neighbours of 32 bits are 128 apart there
    table = pa.table({"time": seconds, "height": (seconds - FAR) / 50 - 1})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    spec = pb.TrainingJobSpec(
        dataset=pb.Dataset(table=pb.TableDataset(paths=["rows.parquet"], target="height")),
        model=pb.ModelSpec(linear=pb.LinearModel()),
        loss=pb.Loss(mse=pb.MeanSquaredError()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.05)),
        epochs=20,
        publication=pb.Publication(model="heights"),
    )
    directory, result = succeeded(spec, tmp_path)
    assert not any("never varies" in line for line in said(directory))
    assert figure(result, "loss", "test", "onnxruntime") < 1e-3
    (entry,) = result.signature.inputs
    assert (entry.name, entry.datatype) == ("time", "FP64")
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    asked = np.array([[FAR + 10], [FAR + 90]])
    (heights,) = session.run(["y"], {"time": asked})
    assert heights.ravel() == pytest.approx([-0.8, 0.8], abs=0.05)


@pytest.mark.parametrize(
    ("encoding", "spread", "is_double"),
    [
        (NumberEncoding(), 1.0, True),
        (NumberEncoding(scale=Scale.MIN_MAX), 1.0, True),
        (NumberEncoding(), 1e8, False),
        (NumberEncoding(), 0.0, False),
        (NumberEncoding(scale=Scale.NONE), 1.0, False),
        (NumberEncoding(log=True), 1.0, False),
    ],
)
def test_64_bits_are_taken_where_a_shift_keeps_what_32_would_lose(
    encoding: NumberEncoding, spread: float, is_double: bool
) -> None:
    fitting = NumberFitting("x", encoding)
    values = FAR + spread * np.arange(10.0)
    fitting.add(values)
    fitted = fitting.fitted()
    assert fitted.is_double is is_double
    if is_double:
        assert not fitting.is_constant
        assert len(np.unique(fitted.encode(values))) == 10


@pytest.mark.parametrize("of_words", [False, True])
def test_a_text_that_is_no_utf8_is_named_by_column_and_row(of_words: bool, tmp_path: Path) -> None:
    places = pa.py_buffer(np.array([0, 1, 2, 4], np.int32))
    damaged = pa.Array.from_buffers(pa.string(), 3, [None, places, pa.py_buffer(b"abc\xff")])
    if of_words:
        damaged = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), damaged)
    path = tmp_path / "rows.arrow"
    table = pa.table({"town": damaged})
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    reader = TableReader([str(path)])
    with pytest.raises(
        DataError, match=r"column 'town': expected texts in UTF-8, got the bytes ff .* of row 2"
    ):
        list(reader.batches(["town"]))
