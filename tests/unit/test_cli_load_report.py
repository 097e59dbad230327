"""What `modelrail bench` tells people, from counts."""

from __future__ import annotations

from typing import Any

import pytest

from modelrail.bench import BenchPlan, BenchReport, ClosedLoop, Load, OpenLoop, SweepReport
from modelrail.bench.figures import ServerFigures
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.tally import Tally
from modelrail.cli.load_report import show_report, show_sweep
from modelrail.client import Connection

MS = 1_000_000


def report(
    answered: int,
    *,
    failed: int = 0,
    seconds: float = 1.0,
    load: Load | None = None,
    server_figures: ServerFigures | None = None,
    interrupted: bool = False,
    **fields: Any,
) -> BenchReport:
    counts = Tally(window_end_ns=round(seconds * 1e9), answers=answered, **fields)
    for _ in range(answered):
        counts.latency.record(5 * MS)
    for _ in range(failed):
        counts.fail(RequestFailed("UNAVAILABLE", "busy", "QUEUE_FULL"), MS)
    plan = BenchPlan(
        connection=Connection(address="h:1"), model="m", load=load or ClosedLoop(4), processes=1
    )
    return BenchReport.of(
        plan,
        counts,
        server="",
        server_figures=server_figures,
        interrupted=interrupted,
        notes=[],
    )


Lines = pytest.CaptureFixture[str]


def shown(capsys: Lines, *reports: BenchReport) -> str:
    if len(reports) > 1:
        show_sweep(SweepReport(points=reports, interrupted=False), [])
    else:
        show_report(reports[0], [])
    return capsys.readouterr().out


def test_a_run_that_was_stopped_early_is_called_that(capsys: Lines) -> None:
    text = shown(capsys, report(50, seconds=0.62, interrupted=True))
    assert "warning: the run was stopped early: 0.620 s were measured" in text
    assert "stopped early" not in shown(capsys, report(50))


def test_a_run_that_was_stopped_in_its_warm_up_shows_no_zeros_as_figures(capsys: Lines) -> None:
    text = shown(capsys, report(0, seconds=0.0, interrupted=True))
    assert "warning: the run was stopped during its warm-up: nothing was measured" in text
    assert "0.0 requests/s" not in text
    assert "no request succeeded" not in text


def test_a_load_of_a_sweep_that_was_stopped_is_named(capsys: Lines) -> None:
    text = shown(capsys, report(50), report(50, seconds=0.5, load=ClosedLoop(8), interrupted=True))
    assert text.count("stopped early") == 1
    assert "warning: concurrency 8: the run was stopped early" in text


def test_latencies_of_few_answers_among_many_requests_say_of_how_many(capsys: Lines) -> None:
    assert "5.000 ms, of the 2 that succeeded" in shown(capsys, report(2, failed=1_198))
    assert "that succeeded" not in shown(capsys, report(2))


def test_failures_are_listed_with_the_reason_of_the_server(capsys: Lines) -> None:
    assert "  1,198 x UNAVAILABLE QUEUE_FULL: busy" in shown(capsys, report(2, failed=1_198))


def test_a_short_run_is_not_shown_as_one_of_no_time(capsys: Lines) -> None:
    assert "concurrency 4, 0.002 s" in shown(capsys, report(1, seconds=0.0016))
    assert "concurrency 4, 30.0 s" in shown(capsys, report(1, seconds=30))


def test_large_counts_are_readable_in_warnings_too(capsys: Lines) -> None:
    text = shown(capsys, report(5, load=OpenLoop(5e4), unsent=49_000))
    assert "warning: 49,000 of 49,005 requests that were due could not be sent" in text
    assert "of 49,005.0 requests a second that were due, 5.0 a second were answered" in text


def test_what_came_late_at_the_client_is_named(capsys: Lines) -> None:
    made = Tally()
    made.loop_lag.record(MS // 2)
    assert "timers 0.500 ms late (p99)" in shown(capsys, report(5, loop_lag=made.loop_lag))


def test_one_run_of_the_model_is_one(capsys: Lines) -> None:
    figures = ServerFigures(
        succeeded=1, failed=0, items=1, executions=1, mean_batch_size=1.0, queue_seconds=0.001,
        compute_input_seconds=None, compute_infer_seconds=0.001, compute_output_seconds=None,
        request_seconds=0.002,
    )  # fmt: skip
    assert "1.00 items a run (1 run)" in shown(capsys, report(1, server_figures=figures))
