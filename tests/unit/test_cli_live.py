"""The picture of a job in a terminal of a given size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from modelrail.cli.live.frame import Look, frame, seconds_left
from modelrail.cli.live.plot import Trace, plotted
from modelrail.report import History
from modelrail.trainer.v1 import trainer_pb2 as pb

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOB = pb.TrainingJob(name="trainingJobs/a", spec=pb.TrainingJobSpec(display_name="digits"))


def _history(epochs: int, *lines: str, eta_seconds: int | None = 90) -> History:
    history = History()

    def add(event: pb.TrainingJobEvent) -> None:
        event.sequence = history.sequence + 1
        event.create_time.FromDatetime(START)
        history.add(event)

    change = pb.StateChange(new_state=pb.TrainingJob.STATE_RUNNING)
    add(pb.TrainingJobEvent(state_change=change))
    for text in lines:
        add(pb.TrainingJobEvent(log_line=pb.LogLine(text=text)))
    for epoch in range(1, epochs + 1):
        progress = pb.Progress(epoch=epoch, epochs=20, step=10 * epoch, rows_per_second=1500)
        if eta_seconds is not None:
            progress.eta.FromSeconds(eta_seconds)
        metrics = [
            pb.Metric(name="loss", split=split, value=value / epoch, epoch=epoch, step=10 * epoch)
            for split, value in (("train", 1.0), ("validation", 2.0))
        ]
        add(pb.TrainingJobEvent(metric_report=pb.MetricReport(progress=progress, metrics=metrics)))
    return history


def _drawn(
    history: History, width: int = 80, height: int = 30, after_seconds: float = 0
) -> list[str]:
    console = Console(file=StringIO(), width=width, height=height, record=True)
    now = START + timedelta(seconds=after_seconds)
    console.print(frame(JOB, history, "trains", Look(width=width, height=height, now=now)))
    return console.export_text().rstrip("\n").split("\n")


def test_a_picture_shows_state_progress_time_left_figures_curves_and_log() -> None:
    lines = _drawn(_history(5, "hello"))
    assert lines[0].startswith("digits  trains  trainingJobs/a")
    assert "epoch 5/20  25%  1,500 rows/s  about 1 min 30 s left" in lines[1]
    assert lines[1].count("━") == pytest.approx(lines[1].count("─") / 3, abs=1)
    assert lines[2].startswith("train      loss 0.2")
    assert lines[3].startswith("validation loss 0.4")
    assert any("⠤" in line for line in lines[5:])
    assert lines[-1] == "hello"


def test_the_bar_moves_within_the_first_epoch() -> None:
    history = _history(0)
    event = pb.TrainingJobEvent(sequence=9)
    event.create_time.FromDatetime(START)
    progress = pb.Progress(epochs=2, step=30, steps=200, rows_per_second=1500)
    progress.eta.FromSeconds(90)
    event.metric_report.progress.CopyFrom(progress)
    history.add(event)
    line = _drawn(history)[1]
    assert "epoch 0/2  15%  1,500 rows/s  about 1 min 30 s left" in line
    assert line.count("━") == pytest.approx(line.count("─") * 15 / 85, abs=1)


def test_time_passes_between_reports() -> None:
    assert "about 30 s left" in _drawn(_history(5), after_seconds=60)[1]
    assert "about 0 s left" in _drawn(_history(5), after_seconds=1000)[1]
    # A clock that is behind the trainer's.
    assert "about 1 min 30 s left" in _drawn(_history(5), after_seconds=-1000)[1]


def test_no_time_is_left_where_nobody_knows_it_or_training_is_over() -> None:
    assert seconds_left(_history(5, eta_seconds=None), START) is None
    history = _history(5)
    event = pb.TrainingJobEvent(sequence=99)
    event.create_time.FromDatetime(START)
    event.state_change.new_state = pb.TrainingJob.STATE_EXPORTING
    history.add(event)
    assert seconds_left(history, START) is None
    assert "left" not in _drawn(history)[1]


@pytest.mark.parametrize(("width", "height"), [(20, 3), (39, 10), (80, 12), (80, 24), (300, 60)])
def test_a_picture_is_never_larger_than_the_terminal(width: int, height: int) -> None:
    history = _history(20, *(f"line {n} {'x' * 500}" for n in range(50)))
    lines = _drawn(history, width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    if height > 12:
        assert "line 49" in lines[-1]
        assert lines[-1].endswith("…")


def test_what_others_wrote_does_not_steer_the_terminal() -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\u202egone [bold]not markup[/bold]"
    lines = _drawn(_history(1, hostile))
    assert "\x1b" not in "".join(lines)
    assert "\u202e" not in "".join(lines)
    assert lines[-1].endswith("gone [bold]not markup[/bold]")


def test_a_job_that_has_not_begun_has_a_picture_too() -> None:
    assert _drawn(History()) == ["digits  trains  trainingJobs/a"]


@pytest.mark.parametrize("values", [(1.7e308, -1.7e308), (5e-324, 1.0), (5e-324, 1.7e308)])
def test_a_curve_at_the_end_of_the_numbers_is_drawn(values: tuple[float, float]) -> None:
    trace = Trace(list(enumerate(values)), "yellow")
    lines = [line.plain for line in plotted([trace], width=51, height=5)]
    places = ["".join(line[11:]) for line in lines]
    assert places[0].strip()
    assert places[-1].strip()


def test_a_job_may_tell_steps_without_epochs() -> None:
    history = _history(2)
    event = pb.TrainingJobEvent(sequence=99)
    event.create_time.FromDatetime(START)
    event.metric_report.progress.CopyFrom(pb.Progress(step=3, steps=5))
    history.add(event)
    assert any("⠤" in line for line in _drawn(history))


def test_curves_reach_from_corner_to_corner() -> None:
    trace = Trace([(0.0, 10.0), (5.0, 0.0), (10.0, 10.0)], "yellow")
    lines = [line.plain for line in plotted([trace], width=51, height=5)]
    assert [line[:11] for line in (lines[0], lines[-1])] == ["       10 ┤", "        0 ┤"]
    assert lines[0][11] not in " ⠀"
    assert lines[0][-1] not in " ⠀"
    assert lines[-1][11:].strip()
    middle = [place for place, dot in enumerate(lines[-1][11:]) if dot != " "]
    assert 15 < min(middle) <= max(middle) < 25
