"""What is wrong with a job's input is told with its reason and with what to do about it.

Elsewhere: unknown fields (`test_cli_input.py`), a full disk (`test_trainer_full_disk.py`), a
registry that cannot be reached (`test_trainer_service.py`), a file that is changed while it is read
(`test_trainer_worker_table.py`), a loss that is no number (`test_trainer_worker_run.py`).
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest

from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail_trainer.failure import DataError
from modelrail_trainer.handover.artifact import load_result
from modelrail_trainer.handover.journal import FailedEvent, FailureReason, LogEvent, read_events
from modelrail_trainer.worker.table.reader import TableReader

_SECONDS = 120
_ROWS = 60
_GOOD: dict[str, list[Any]] = {
    "x": [float(row) for row in range(_ROWS)],
    "t": ["a", "b"] * (_ROWS // 2),
}
Change = Callable[[pb.TrainingJobSpec], None]


def spec_of(change: Change) -> pb.TrainingJobSpec:
    spec = pb.TrainingJobSpec(
        dataset=pb.Dataset(table=pb.TableDataset(paths=["rows.parquet"], target="t")),
        split=pb.Split(validation_fraction=0.2, test_fraction=0.2, seed=1),
        model=pb.ModelSpec(linear=pb.LinearModel()),
        loss=pb.Loss(cross_entropy=pb.CrossEntropy()),
        optimizer=pb.Optimizer(adam=pb.Adam(learning_rate=0.01)),
        epochs=1,
        publication=pb.Publication(model="rows"),
    )
    change(spec)
    return spec


def run(spec: pb.TrainingJobSpec, columns: dict[str, list[Any]], folder: Path) -> tuple[int, Path]:
    """Has a real worker do a job on a table; returns its status and its directory."""
    pyarrow.parquet.write_table(pa.table(columns), folder / "rows.parquet")
    directory = folder / "job"
    directory.mkdir()
    (directory / "spec.binpb").write_bytes(spec.SerializeToString())
    command = [sys.executable, "-m", "modelrail_trainer.worker", f"--data-root={folder}"]
    ended = subprocess.run(
        [*command, "--job-directory", str(directory)],
        capture_output=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    return ended.returncode, directory


def _same(spec: pb.TrainingJobSpec) -> None:
    """Leaves the specification as it is."""


def _no_rows_to_train(spec: pb.TrainingJobSpec) -> None:
    spec.split.validation_fraction = spec.split.test_fraction = 0.6


def _unknown_column(spec: pb.TrainingJobSpec) -> None:
    spec.dataset.table.columns.add(name="z")


def _unknown_file(spec: pb.TrainingJobSpec) -> None:
    spec.dataset.table.paths[:] = ["gone.parquet"]


def _unknown_data_set(spec: pb.TrainingJobSpec) -> None:
    spec.dataset.bundled = "digts"


@pytest.mark.parametrize(
    ("change", "columns", "told"),
    [
        pytest.param(
            _no_rows_to_train, _GOOD,
            "split: expected validation_fraction + test_fraction below 1, so that rows are left",
            id="an impossible split",
        ),
        pytest.param(
            _same, {"x": [1.0, 2.0], "t": ["a", "b"]},
            "the split leaves no rows for the validation part; give more rows, or change the "
            "fractions of split",
            id="too few rows for three parts",
        ),
        pytest.param(
            _same, {"x": _GOOD["x"], "t": ["a"] * _ROWS},
            "expected at least 2 classes in the training rows, got 1; give rows of more classes",
            id="one class",
        ),
        pytest.param(
            _same, {"x": _GOOD["x"], "t": [None, *_GOOD["t"][1:]]},
            "the first of them row 0, counted from 0 over all files: no target; mend them, or set "
            "dataset.table.skip_unusable_rows",
            id="a row without a target",
        ),
        pytest.param(
            _same, {"x": [math.inf, *_GOOD["x"][1:]], "t": _GOOD["t"]},
            "column 'x' has an infinite number; mend them, or set dataset.table.skip_unusable_rows",
            id="an infinite number",
        ),
        pytest.param(
            _unknown_column, _GOOD, "the table has no column 'z'; it has: x, t",
            id="an unknown column",
        ),
        pytest.param(
            _unknown_file, _GOOD,
            "dataset.table.paths[0]: expected a file below a --data-root of the trainer, got "
            "'gone.parquet'",
            id="a file that has gone",
        ),
        pytest.param(
            _unknown_data_set, _GOOD, "dataset.bundled: expected one of: digits; got 'digts'",
            id="an unknown data set",
        ),
    ],
)  # fmt: skip
def test_bad_input_fails_the_job_and_says_what_to_do(
    tmp_path: Path, change: Change, columns: dict[str, list[Any]], told: str
) -> None:
    status, directory = run(spec_of(change), columns, tmp_path)
    failure = read_events(directory / "events.jsonl", 0)[0][-1]
    assert isinstance(failure, FailedEvent), failure
    assert (status, failure.reason) == (3, FailureReason.DATA)
    assert told in failure.message
    assert str(tmp_path) not in failure.message
    assert not (directory / "result.json").exists()


def test_a_constant_column_is_told_and_missing_numbers_harm_nothing(tmp_path: Path) -> None:
    missing = [math.nan if row % 3 else float(row) for row in range(_ROWS)]
    # The mean of many tenths is rounded, and so would be what they deviate from it.
    same: dict[str, list[float | None]] = {"seven": [7.0] * _ROWS, "tenth": [0.1] * _ROWS}
    same["blanks"] = [0.1 if row % 3 else None for row in range(_ROWS)]
    columns = {**_GOOD, **same, "some": missing}
    status, directory = run(spec_of(_same), columns, tmp_path)
    assert status == 0
    events = read_events(directory / "events.jsonl", 0)[0]
    lines = [event.text for event in events if isinstance(event, LogEvent)]
    never_vary = [line for line in lines if "never varies in the training rows" in line]
    assert never_vary == [
        f"column {name!r} never varies in the training rows and teaches nothing" for name in same
    ]
    result = load_result(directory)
    assert {entry.datatype for entry in result.signature.inputs} == {"FP32"}
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    asked = {name: np.array([[0.0], [1.0]], np.float32) for name in ("x", "some", *same)}
    (logits,) = session.run(["logits"], {**asked, "tenth": asked["tenth"] + np.float32(0.2)})
    assert np.abs(logits).max() < 100


def test_a_file_that_vanishes_between_the_passes_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table(_GOOD), path)
    reader = TableReader([str(path)])
    assert sum(len(batch) for batch in reader.batches(["x"])) == _ROWS
    path.unlink()
    with pytest.raises(DataError) as caught:
        list(reader.batches(["x"]))
    assert str(caught.value) == (
        "a file of the table is gone: rows.parquet; put it in its place and clone the job"
    )
