"""What is measured of a model, against scikit-learn and torchmetrics as they come."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from modelrail_trainer import spec
from modelrail_trainer.failure import DataError
from modelrail_trainer.handover.data_summary import DataSummary, LabelCount, PartSummary
from modelrail_trainer.handover.evaluation import Evaluation
from modelrail_trainer.spec import Task
from modelrail_trainer.worker import data
from modelrail_trainer.worker.evaluation.classes import ClassFigures, RocArea
from modelrail_trainer.worker.evaluation.detail import ClassDetail, ValueDetail
from modelrail_trainer.worker.evaluation.real_counts import RealCounts
from modelrail_trainer.worker.evaluation.summary import summary_of
from modelrail_trainer.worker.learning import loop
from modelrail_trainer.worker.learning.checkpoint import Checkpoints
from modelrail_trainer.worker.learning.evaluate import evaluate
from modelrail_trainer.worker.learning.pace import Pace, Reports
from modelrail_trainer.worker.part import Part

DIGITS = spec.with_defaults(
    spec.TrainingJobSpec(
        dataset=spec.BundledDataset(name="digits"),
        model=spec.MlpModel(hidden_units=(8,)),
        loss=spec.CrossEntropy(),
        optimizer=spec.Adam(learning_rate=0.01),
        epochs=2,
        batch_size=100,
        publication=spec.Publication(model="digits"),
    )
)


def _scores(rows: int, classes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits [rows, classes] that are right more often than not, and class numbers [rows]."""
    generator = np.random.default_rng(5)
    targets = generator.integers(0, classes, rows)
    logits = generator.normal(0, 1, (rows, classes)).astype(np.float32)
    logits[np.arange(rows), targets] += 1
    return logits, targets


def _measured(
    outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any], task: Task
) -> dict[str, float]:
    part = Part(outputs, targets)
    return evaluate(lambda rows: rows, part, task)


def test_a_worker_measures_without_what_could_draw() -> None:
    program = (
        "import sys; import numpy as np\n"
        "from modelrail_trainer.spec import Task\n"
        "from modelrail_trainer.worker.learning.evaluate import evaluate\n"
        "from modelrail_trainer.worker.part import Part\n"
        "assert 'torchmetrics' not in sys.modules\n"
        "ones = np.ones((4, 1), np.float32)\n"
        "evaluate(lambda rows: rows, Part(ones, ones), Task.REGRESSION)\n"
        "assert 'torchmetrics' in sys.modules\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_figures_of_classes_are_those_of_scikit_learn(classes: int) -> None:
    logits, targets = _scores(1000, classes)
    figures = _measured(logits, targets, Task.CLASSIFICATION)
    predicted = logits.argmax(axis=1)
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        targets, predicted, average="macro"
    )
    expected = {
        "loss": sklearn.metrics.log_loss(targets, probabilities),
        "accuracy": sklearn.metrics.accuracy_score(targets, predicted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    if classes == 2:
        of_class_1 = sklearn.metrics.precision_recall_fscore_support(
            targets, predicted, average="binary"
        )
        names = ("class1_precision", "class1_recall", "class1_f1")
        expected |= dict(zip(names, of_class_1, strict=False))
        expected["roc_auc"] = sklearn.metrics.roc_auc_score(targets, probabilities[:, 1])
    if classes > 10:
        expected["top5_accuracy"] = sklearn.metrics.top_k_accuracy_score(targets, logits, k=5)
    assert figures.keys() == expected.keys()
    for name, value in figures.items():
        # The area is counted in bins.
        assert value == pytest.approx(expected[name], abs=1e-3 if name == "roc_auc" else 1e-6), name


def test_figures_of_values_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(5)
    targets = generator.normal(1000, 5, (1000, 1)).astype(np.float32)
    outputs = targets + generator.normal(0, 1, (1000, 1)).astype(np.float32)
    figures = _measured(outputs, targets, Task.REGRESSION)
    wanted, predicted = targets.astype(np.float64), outputs.astype(np.float64)
    mse = sklearn.metrics.mean_squared_error(wanted, predicted)
    assert figures == pytest.approx(
        {
            "loss": mse,
            "mse": mse,
            "mae": sklearn.metrics.mean_absolute_error(wanted, predicted),
            "rmse": mse**0.5,
            "r2": sklearn.metrics.r2_score(wanted, predicted),
        },
        rel=1e-9,
    )


def test_what_has_no_value_is_left_out() -> None:
    ones = np.ones((4, 1), np.float32)
    assert "r2" not in _measured(ones * 2, ones, Task.REGRESSION)
    logits, targets = _scores(20, 2)
    assert "roc_auc" not in _measured(logits, targets * 0, Task.CLASSIFICATION)


def test_a_selection_by_a_figure_without_a_value_says_what_to_do() -> None:
    line = replace(
        DIGITS,
        dataset=spec.LineDataset(slope=0.0, intercept=1.0, points=60),
        loss=spec.MeanSquaredError(),
        selection=spec.Selection(metric="r2"),
    )
    with pytest.raises(DataError, match=r"selection\.metric: r2 has no value"):
        loop.fit(line, data.load(line), lambda _: None)


def test_ten_thousand_classes_are_measured_in_little_memory() -> None:
    torch.use_deterministic_algorithms(True)  # as in a job
    try:
        logits, targets = _scores(256, 10_000)
        figures = ClassFigures(10_000)
        detail = ClassDetail([str(label) for label in range(10_000)], 0)
        tracemalloc.start()
        for measure in (figures, detail):
            measure.add(logits.astype(np.float64), targets)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * logits.nbytes
        assert figures.values()["accuracy"] == (logits.argmax(axis=1) == targets).mean()
    finally:
        torch.use_deterministic_algorithms(False)
    evaluation = detail.evaluation()
    assert not evaluation.confusion
    assert not evaluation.labels
    assert evaluation.confusion_note == (
        "10000 classes are too many for a matrix, which has at most 100"
    )


def test_the_area_under_the_curve_is_right_at_every_scale_and_counts_ties_half() -> None:
    for scale in (1e-30, 1e-3, 1.0, 1e30):
        area = RocArea()
        scores = np.array([-3.0, -1.0, 2.0, 2.0]) * scale
        area.add(scores, np.array([False, True, False, True]))
        assert area.value() == 0.625  # of 4 pairs: right, right, wrong way round, tie → 2.5 / 4


def test_numbers_are_counted_in_their_order_and_come_back_nearly() -> None:
    counts = RealCounts()
    numbers = np.array([-1e20, -2.5, -1e-9, 0.0, 1e-9, 3.25, 3.25, 1e20])
    counts.add(numbers)
    found, times = counts.numbers()
    np.testing.assert_allclose(found, np.unique(numbers), rtol=1 / 256, atol=1e-30)
    assert times.tolist() == [1, 1, 1, 1, 1, 2, 1]


def test_matrix_and_calibration_are_those_of_the_libraries() -> None:
    logits, targets = _scores(1000, 4)
    detail = ClassDetail(list("abcd"), 2)
    for start in range(0, 1000, 300):
        chosen = slice(start, start + 300)
        detail.add(logits[chosen].astype(np.float64), targets[chosen])
    evaluation = detail.evaluation()
    matrix = sklearn.metrics.confusion_matrix(targets, logits.argmax(axis=1))
    assert np.array(evaluation.confusion).reshape(4, 4).tolist() == matrix.tolist()
    assert evaluation.labels == ("a", "b", "c", "d")
    probabilities: Tensor = torch.from_numpy(logits).softmax(dim=1)
    reference = MulticlassCalibrationError(num_classes=4, n_bins=10, norm="l1")
    error = float(reference(probabilities, torch.from_numpy(targets)))
    assert evaluation.expected_calibration_error == pytest.approx(error, abs=1e-6)
    assert sum(one.rows for one in evaluation.reliability) == evaluation.rows == 1000
    for one in evaluation.reliability:
        assert not one.rows or one.lower <= one.mean_confidence <= one.upper
    assert evaluation.baseline.value == (targets == 2).mean()


def test_residuals_and_some_rows_are_kept_of_a_regression() -> None:
    generator = np.random.default_rng(5)
    targets = generator.normal(0, 1, (2001, 1))
    outputs = targets + generator.normal(5, 1, (2001, 1))
    detail = ValueDetail(2001, 0.25)
    for start in range(0, 2001, 300):
        chosen = slice(start, start + 300)
        detail.add(outputs[chosen], targets[chosen])
    evaluation = detail.evaluation()
    assert 400 <= len(evaluation.predictions) <= 500
    second = evaluation.predictions[1]
    assert (second.target, second.predicted) == (targets[5, 0], outputs[5, 0])
    assert sum(one.count for one in evaluation.residuals) == 2001
    fullest = max(evaluation.residuals, key=lambda one: one.count)
    assert 4 < fullest.lower < 6
    assert evaluation.baseline.value == pytest.approx(np.square(targets - 0.25).mean())


def test_a_summary_tells_parts_and_classes_of_the_training_rows() -> None:
    rows = data.load(DIGITS)
    summary = summary_of(rows)
    assert summary.parts == (
        PartSummary("train", len(rows.train)),
        PartSummary("validation", len(rows.validation)),
        PartSummary("test", len(rows.test)),
    )
    counts = np.bincount(rows.train.targets.astype(np.int64))
    assert summary.labels[0] == LabelCount(str(counts.argmax()), counts.max())
    assert sum(label.rows for label in summary.labels) == len(rows.train)
    assert (summary.classes, summary.input_shape) == (10, (8, 8))


def test_a_summary_of_many_long_names_fits_into_a_line_of_the_journal() -> None:
    long = DataSummary(
        parts=(PartSummary("train", 1),),
        labels=tuple(LabelCount("\0" * 80, 1) for _ in range(1000)),
    )
    short = long.shortened()
    assert 0 < len(short.labels) < 100


def test_validations_within_an_epoch_come_every_so_many_steps_and_change_nothing() -> None:
    rows = data.load(DIGITS)
    plain = loop.fit(DIGITS, rows, lambda _: None)
    seen: list[loop.Interim] = []
    watched = loop.fit(
        replace(DIGITS, validate_every_steps=4), rows, lambda _: None, on_interim=seen.append
    )
    # 13 steps an epoch; step 26 ends the second, which is told as the epoch's.
    assert [(one.epoch, one.step) for one in seen] == [
        (1, 4), (1, 8), (1, 12), (2, 16), (2, 20), (2, 24),
    ]  # fmt: skip
    assert _weights(watched) == _weights(plain)
    assert seen[0].figures["loss"] != seen[1].figures["loss"]


class _Broken(Exception):
    """The process is lost."""


@pytest.mark.parametrize("lost_after", [4, 5, 20])
def test_a_job_that_is_lost_between_validations_goes_on_bit_for_bit(
    tmp_path: Path, lost_after: int
) -> None:
    job = replace(
        DIGITS,
        model=spec.CnnModel(channels=(2,), hidden_units=4, dropout=0.5),
        validate_every_steps=4,
    )
    rows = data.load(job)
    whole: list[loop.Interim] = []
    expected = loop.fit(job, rows, lambda _: None, on_interim=whole.append)

    told: list[loop.Interim] = []
    saves = Checkpoints(tmp_path, {}, every_steps=1)
    original = saves.save

    def save(position: Any, tensors: Any) -> None:
        original(position, tensors)
        if position.step == lost_after:
            raise _Broken

    saves.save = save  # type: ignore[method-assign]
    with pytest.raises(_Broken):
        loop.fit(job, rows, lambda _: None, saves, on_interim=told.append)
    resumed = loop.fit(
        job,
        rows,
        lambda _: None,
        Checkpoints(tmp_path, {}, every_steps=1),
        on_interim=told.append,
    )
    assert _weights(resumed) == _weights(expected)
    assert [(one.step, one.figures) for one in told] == [(one.step, one.figures) for one in whole]


def test_the_time_that_is_left_follows_from_the_rows_of_this_process() -> None:
    now = 100.0
    # An earlier process made 600 of 1000 rows, however fast.
    pace = Pace(1000, 600, lambda: now)
    assert pace.eta_seconds(600) is None
    now = 110.0
    assert pace.eta_seconds(700) == 30.0  # 10 rows a second, 300 rows are left
    now = 120.0
    assert pace.eta_seconds(1000) == 0.0


def test_the_time_that_is_left_forgets_a_speed_of_long_ago() -> None:
    now = 0.0
    pace = Pace(10_000, 0, lambda: now)
    now = 1000.0
    for rows in range(10, 1000, 10):
        now += 1.0
        last = pace.eta_seconds(rows)
    assert last == pytest.approx((10_000 - 990) / 10, rel=0.01)


def test_reports_within_an_epoch_do_not_shorten_what_the_speed_is_told_by() -> None:
    now = 0.0
    pace = Pace(3000, 0, lambda: now)
    for rows in range(10, 1000, 10):
        now += 1.0
        pace.eta_seconds(rows, remembered=False)
    now += 201.0  # the end of the epoch, with its validation
    assert pace.eta_seconds(1000) == 600.0
    now += 1.0
    assert pace.eta_seconds(1010, remembered=False) == pytest.approx(301 * 1990 / 1010)


def test_progress_is_told_within_an_epoch_and_changes_nothing() -> None:
    rows = data.load(DIGITS)
    plain = loop.fit(DIGITS, rows, lambda _: None)
    told: list[loop.Interim | loop.Epoch] = []
    watched = loop.fit(
        DIGITS, rows, told.append, on_interim=told.append, reports=Reports(0.0, lambda: 0.0)
    )
    assert [one.step for one in told] == [*range(1, 27)]
    assert [one.step for one in told if isinstance(one, loop.Epoch)] == [13, 26]
    assert {one.steps for one in told} == {26}
    interims = [one for one in told if isinstance(one, loop.Interim)]
    assert [one.epoch for one in interims] == [1] * 12 + [2] * 12
    assert all(one.figures == {} and one.eta_seconds is not None for one in interims)
    assert all(one.rows_per_second > 0 for one in interims)
    assert _weights(watched) == _weights(plain)


def test_a_report_is_due_every_few_seconds_and_more_rarely_in_a_long_job() -> None:
    now = 100.0
    reports = Reports(5.0, lambda: now)
    told = [now]
    while now < 100 + 7 * 24 * 3600:
        now += 0.5
        if reports.is_due():
            reports.told()
            told.append(now)
    gaps = np.diff(told)
    assert gaps[:100].tolist() == [5.0] * 100
    assert gaps.min() == 5.0
    assert all(gap <= max(5.0, (after - 100) / 200 + 0.5) for gap, after in zip(gaps, told[1:]))  # noqa: B905
    assert 1000 < len(told) < 1600


def test_no_time_is_left_where_training_ends_early() -> None:
    epochs: list[loop.Epoch] = []
    job = replace(
        DIGITS,
        epochs=50,
        schedule=spec.Schedule(kind=spec.StepSchedule(every_epochs=1, factor=1e-9)),
        selection=spec.Selection(metric="accuracy", patience_epochs=1),
    )
    loop.fit(job, data.load(job), epochs.append)
    assert len(epochs) < 50
    assert epochs[-1].eta_seconds is None
    assert all(epoch.eta_seconds for epoch in epochs[:-1])


def _weights(trained: loop.Trained) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in trained.network.state_dict().items()}


def test_an_evaluation_of_nothing_but_its_baseline_has_empty_parts() -> None:
    evaluation = ClassDetail(["a", "b"], 0)
    evaluation.add(np.array([[1.0, 0.0]]), np.array([0]))
    found: Evaluation = evaluation.evaluation()
    assert found.confusion == (1, 0, 0, 0)
    assert not found.residuals
    assert not found.predictions
