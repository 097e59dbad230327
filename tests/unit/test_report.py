"""The report of a job, from hand-made jobs and events: nothing in it runs, loads or is lost."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import ParseDict

from modelrail.cli.specification import read_specification
from modelrail.registry.v1 import registry_pb2
from modelrail.report import History, render, scale
from modelrail.report.chart import thinned
from modelrail.report.tables import duration
from modelrail.trainer.v1 import trainer_pb2 as pb

Job = pb.TrainingJob
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "<script>alert('1')</script> \"&\u202e\x1b[31m"


class _Page(HTMLParser):
    """Notes elements, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def count(self, tag: str, **attributes: str) -> int:
        return sum(
            name == tag and all(found.get(key) == value for key, value in attributes.items())
            for name, found in self.elements
        )


def _history(*kinds: pb.StateChange | pb.MetricReport | pb.LogLine) -> History:
    history = History()
    for sequence, kind in enumerate(kinds, start=1):
        event = pb.TrainingJobEvent(sequence=sequence)
        event.create_time.FromDatetime(START + timedelta(seconds=sequence))
        match kind:
            case pb.StateChange():
                event.state_change.CopyFrom(kind)
            case pb.MetricReport():
                event.metric_report.CopyFrom(kind)
            case pb.LogLine():
                event.log_line.CopyFrom(kind)
        history.add(event)
    return history


def _state(name: str) -> pb.StateChange:
    return pb.StateChange(new_state=f"STATE_{name}")


def _report(
    epoch: int, step: int, *figures: tuple[str, str, float], within: int = 0
) -> pb.MetricReport:
    return pb.MetricReport(
        progress=pb.Progress(epoch=epoch, epochs=9, step=step),
        metrics=[
            pb.Metric(name=name, split=split, value=value, epoch=within or epoch, step=step)
            for split, name, value in figures
        ],
    )


def _job(state: str = "SUCCEEDED", **fields: object) -> Job:
    job = Job(name="trainingJobs/a", state=f"STATE_{state}", **fields)  # type: ignore[arg-type]
    job.spec.CopyFrom(read_specification(Path("examples/digits.yaml")))
    return job


def _rendered(
    job: Job, history: History, version: registry_pb2.ModelVersion | None = None
) -> _Page:
    note = "" if version else "The registry did not tell."
    page = render(job, history, version=version, version_note=note, now=START)
    # What a browser would fetch or run.
    assert not re.search(r"(?:src|href|action)\s*=|url\(|@import|\son\w+\s*=", page)
    return _Page(page)


def _evaluated(labels: list[str]) -> pb.Evaluation:
    size = len(labels)
    return pb.Evaluation(
        split="test",
        rows=size,
        labels=labels,
        confusion=[int(row == column) for row in range(size) for column in range(size)],
        reliability=[
            pb.ReliabilityBin(lower=0.9, upper=1, rows=size, mean_confidence=0.95, accuracy=1)
        ],
        baseline=pb.Metric(name="accuracy", value=1 / size),
    )


def test_hostile_names_labels_and_logs_stay_texts() -> None:
    job = _job("FAILED", evaluation=_evaluated([HOSTILE, "b"]))
    job.spec.display_name = job.spec.publication.description = HOSTILE
    job.error.message = HOSTILE
    job.data_summary.labels.add(label=HOSTILE, rows=1)
    job.data_summary.columns.add(name=HOSTILE, encoding=HOSTILE, categories=[HOSTILE])
    job.data_summary.unusable.add(reason=HOSTILE, rows=1)
    job.metrics.add(name=HOSTILE, split="test", runtime="pytorch", value=1)
    version = registry_pb2.ModelVersion()
    version.lineage.dataset = version.lineage.packages[HOSTILE] = HOSTILE
    version.lineage.hardware = HOSTILE
    version.certificate.outputs.add(name=HOSTILE)
    version.certificate.attempts.add(method=HOSTILE, failure=HOSTILE)
    history = _history(
        _state("PREPARING"),
        pb.LogLine(text=HOSTILE),
        _report(1, 10, ("train", HOSTILE, 1.0), ("validation", HOSTILE, 1.0)),
    )
    page = _rendered(job, history, version)
    assert page.count("script") == page.count("b") == 0
    assert page.text.count("<script>alert('1')</script>") >= 12
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    assert page.count("meta", **{"http-equiv": "Content-Security-Policy"}) == 1


def test_a_job_that_succeeded_shows_all_that_is_known() -> None:
    job = _job(model_version="models/digits/versions/1", evaluation=_evaluated(["cat", "dog"]))
    job.progress.epoch = 3
    for runtime, value in (("pytorch", 0.9888), ("onnxruntime", 0.9777)):
        job.metrics.add(name="accuracy", value=value, split="test", runtime=runtime)
    job.data_summary.parts.add(split="train", rows=1259)
    version = registry_pb2.ModelVersion()
    version.certificate.opset = 20
    version.certificate.batch_sizes.extend([1, 2, 7])
    version.certificate.outputs.add(name="logits", max_absolute_difference=7.6e-6)
    version.lineage.dataset_sha256 = "ab" * 32
    history = _history(
        _state("QUEUED"),
        _state("PREPARING"),
        _state("RUNNING"),
        _report(1, 10, ("train", "loss", 2.0), ("validation", "loss", 1.0)),
        _report(2, 20, ("train", "loss", 1.0), ("validation", "loss", 0.5)),
        _report(3, 30, ("train", "loss", 0.5), ("validation", "loss", 0.75)),
        pb.LogLine(text="training ended"),
        _state("SUCCEEDED"),
    )
    page = _rendered(job, history, version)
    for shown in ("0.9888", "0.9777", "cat", "1,259 rows", "7.6e-06", "1, 2, 7", "ab" * 32):
        assert shown in page.text, shown
    assert "best epoch 2 by validation loss" in " ".join(page.text.split())
    assert page.count("polyline", **{"class": "line train"}) == 1
    assert page.count("polyline", **{"class": "line validation"}) == 1
    assert page.count("line", **{"class": "best"}) == 1
    assert page.count("table", **{"class": "matrix"}) == 1
    assert page.text.index("training ended") > page.text.index("Specification")


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "FAILED", "CANCELLED", "EXPIRED"])
def test_a_job_in_any_state_has_a_report(state: str) -> None:
    job = _job(state)
    if state == "FAILED":
        job.error.reason, job.error.message = pb.JobError.REASON_NAN_LOSS, "the loss became nan"
    page = _rendered(job, _history(_state("QUEUED"), pb.LogLine(text="hello")))
    assert state.lower() in page.texts
    assert "hello" in page.text
    assert "The registry did not tell." in page.text
    if state == "FAILED":
        assert "NAN_LOSS" in page.texts
        assert ": the loss became nan" in page.text


def test_a_running_job_shows_what_is_left() -> None:
    job = _job("RUNNING", progress=pb.Progress(epoch=2, epochs=9, step=20, rows_per_second=1500))
    job.progress.eta.FromSeconds(185)
    page = _rendered(job, _history(_state("RUNNING")))
    text = " ".join(page.text.split())
    assert "2 of 9 epochs, 20 steps, 1,500 rows a second, about 3 min 5 s of training left" in text


def test_a_regression_shows_residuals_and_predictions() -> None:
    evaluation = pb.Evaluation(split="test", rows=2, baseline=pb.Metric(name="mse", value=4))
    evaluation.residuals.add(lower=-1, upper=0, count=1)
    evaluation.residuals.add(lower=0, upper=1, count=1)
    evaluation.predictions.add(target=1, predicted=2)
    evaluation.predictions.add(target=3, predicted=2.5)
    page = _rendered(_job(evaluation=evaluation), _history())
    assert page.count("rect", **{"class": "bar"}) == 2
    assert page.count("circle", **{"class": "spot"}) == 2
    assert page.count("table", **{"class": "matrix"}) == 0


def test_a_hundred_classes_are_shown_as_colours_without_counts() -> None:
    page = _rendered(_job(evaluation=_evaluated([f"c{i}" for i in range(100)])), _history())
    assert page.count("table", **{"class": "matrix dense"}) == 1
    assert (
        "td",
        {"style": "--share: 1.000", "class": "full", "title": "c7 taken for c7: 1 of 1"},
    ) in (page.elements)


def test_too_many_classes_for_a_matrix_say_so() -> None:
    evaluation = pb.Evaluation(rows=1, confusion_note="101 classes are too many")
    page = _rendered(_job(evaluation=evaluation), _history())
    assert "No confusion matrix: 101 classes are too many." in page.text


def test_the_specification_is_shown_as_one_that_can_be_submitted_again() -> None:
    job = _job()
    page = _rendered(job, _history())
    (text,) = [text for text in page.texts if text.startswith("display_name: digits")]
    assert ParseDict(yaml.safe_load(text), pb.TrainingJobSpec()) == job.spec
    assert "seed: 1\n" in text


def test_what_is_trained_a_second_time_counts_once_and_each_attempt_has_its_time() -> None:
    history = _history(
        _state("QUEUED"),
        _state("PREPARING"),
        _state("RUNNING"),
        _report(0, 5, ("validation", "loss", 3.0), within=1),
        _report(1, 10, ("validation", "loss", 2.0)),
        _state("QUEUED"),
        _state("PREPARING"),
        _report(1, 10, ("validation", "loss", 2.0)),
        _report(2, 20, ("validation", "loss", 2.0)),
    )
    curve = history.curves["validation", "loss"]
    assert curve.by_step == {5: 3.0, 10: 2.0, 20: 2.0}
    assert curve.by_epoch == {1: 2.0, 2: 2.0}
    assert curve.best_epoch() == 1
    assert (history.attempt, history.steps_per_epoch) == (2, 10)
    running = history.phases[2]
    assert (running.attempt, running.seconds) == (1, 3.0)
    assert history.phases[-1].seconds is None


def test_progress_without_figures_is_in_no_curve() -> None:
    told = [
        _report(0, 4),
        _report(0, 5, ("validation", "loss", 3.0), within=1),
        _report(0, 7),
        _report(1, 10, ("train", "loss", 2.5), ("validation", "loss", 2.0)),
        _report(1, 12),
    ]
    for report in told:
        report.progress.steps = 90
    history = _history(_state("RUNNING"), *told)
    plain = _history(_state("RUNNING"), told[1], told[3])
    assert history.curves == plain.curves
    assert history.progress is not None
    assert (history.progress.step, history.steps_per_epoch) == (12, 10)
    assert _history(told[0]).steps_per_epoch == 10  # known before the first epoch has ended
    job = _job("RUNNING", progress=told[-1].progress)
    assert _rendered(job, history).count("polyline") == _rendered(job, plain).count("polyline")


def test_a_job_may_tell_steps_without_epochs() -> None:
    history = _history(
        _state("RUNNING"), pb.MetricReport(progress=pb.Progress(step=3, steps=5, epochs=0))
    )
    assert history.steps_per_epoch == 0
    assert _rendered(_job("RUNNING"), history)


def test_figures_of_other_parts_than_train_and_validation_are_in_no_curve() -> None:
    history = _history(_state("RUNNING"), _report(1, 10, ("test", "loss", 2.0)))
    assert _rendered(_job("RUNNING"), history).count("polyline") == 0
    told = _report(2, 20, ("test", "loss", 2.0), ("train", "loss", 1.0))
    history = _history(_state("RUNNING"), told)
    assert _rendered(_job("RUNNING"), history).count("polyline") == 1


@pytest.mark.parametrize("values", [(1.7e308, -1.7e308), (5e-324, 1.0), (5e-324, 1.7e308)])
def test_figures_at_the_end_of_the_numbers_are_drawn(values: tuple[float, float]) -> None:
    first, second = values
    history = _history(
        _state("RUNNING"),
        _report(1, 10, ("validation", "loss", first)),
        _report(2, 20, ("validation", "loss", second)),
    )
    page = _rendered(_job("RUNNING"), history)
    assert page.count("polyline") == 1
    assert not re.search(r"\b(nan|inf)\b", str(page.elements))


def test_the_best_epoch_of_a_figure_that_should_be_high_is_the_highest() -> None:
    history = _history(
        *(_report(n, n, ("validation", "f1", value)) for n, value in ((1, 0.5), (2, 0.9), (3, 0.9)))
    )
    assert history.curves["validation", "f1"].best_epoch() == 2


def test_only_the_last_lines_of_a_long_log_are_kept() -> None:
    history = _history(*(pb.LogLine(text=f"line {n}") for n in range(300)))
    assert next(text for _, text in history.log) == "line 100"
    assert "Log, last 200 lines" in _rendered(_job(), history).text


def test_a_long_curve_is_drawn_with_few_points_and_keeps_its_extremes() -> None:
    points = [(float(x), 0.0) for x in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    few = thinned(points)
    assert len(few) < 500
    assert (54_321.0, 9.0) in few
    assert few == sorted(few)


@pytest.mark.parametrize(
    "values",
    [
        *([0.0], [5.0, 5.0], [-1.0, 1e-12], [1e-9, 1e9], [0.0, 1e300], [-3e-7, -2e-7]),
        *([1.7e308], [-1.7e308, 1.7e308], [1.5e308, 1.7e308], [1.0, 1.7e308], [5e-324, 1.7e308]),
        *([5e-324], [0.0, 5e-324], [1e-323, 3e-322], [1e-310, 1.0]),
        *([1.0, math.inf], [-math.inf], [math.nan]),
    ],
)
def test_every_scale_holds_its_values_between_few_ticks(values: list[float]) -> None:
    for made in (scale.linear(values), scale.of_curve(values)):
        assert 2 <= len(made.ticks) <= 12
        assert all(-1e-9 <= made.place(value) <= 1 + 1e-9 for value in values)
        assert all(map(math.isfinite, (made.low, made.high, *made.ticks)))
        assert made.low < made.high


def test_much_that_a_curve_spans_is_told_apart() -> None:
    places = list(map(scale.of_curve([1e-200, 1.0, 1e200]).place, (1e-200, 1.0, 1e200)))
    assert places == pytest.approx([0, 0.5, 1], abs=0.01)
    assert scale.of_curve([1.0, 49.0]).logarithmic is False
    assert scale.of_curve([1.0, 51.0]).logarithmic is True


def test_epochs_are_whole_numbers_along_the_axis() -> None:
    for epochs in (1, 2, 3, 7, 15, 60, 100_000):
        ticks = scale.tight(0, epochs).ticks
        assert all(tick == int(tick) for tick in ticks)
        assert 2 <= len(ticks) <= 9


def test_times_are_shown_for_people() -> None:
    assert [duration(s) for s in (0.4213, 59, 185, 7440)] == [
        "0.421 s", "59 s", "3 min 5 s", "2 h 4 min",
    ]  # fmt: skip
