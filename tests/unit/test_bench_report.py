"""Reports, objectives and plots, from counts."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modelrail.bench import (
    BenchPlan,
    BenchReport,
    ClosedLoop,
    Load,
    Objective,
    ObjectiveError,
    OpenLoop,
    PlotError,
    SweepReport,
    check_plot,
    plot_sweep,
)
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.tally import Tally
from modelrail.client import Connection

MS = 1_000_000


def tally(*latencies_ms: float, failures: Mapping[str, int] | None = None, **fields: Any) -> Tally:
    made = Tally(window_end_ns=1_000 * MS, answers=len(latencies_ms), **fields)
    for latency in latencies_ms:
        made.latency.record(round(latency * MS))
    for code, count in (failures or {}).items():
        for _ in range(count):
            made.fail(RequestFailed(code, "no"), MS)
    return made


def report(counts: Tally, load: Load | None = None, **fields: Any) -> BenchReport:
    plan = BenchPlan(
        connection=Connection(address="unix:x"), model="m", load=load or ClosedLoop(1), **fields
    )
    return BenchReport.of(
        plan, counts, server="s 1", server_figures=None, interrupted=False, notes=["n"]
    )


def test_a_report_is_json_with_every_figure_in_its_unit() -> None:
    counts = tally(1.0, 2.0, 3.0, 4.0, unsent=1, failures={"UNAVAILABLE": 3})
    content = json.loads(json.dumps(report(counts, OpenLoop(8.0)).to_json(), allow_nan=False))
    assert set(content) == {
        "address", "server", "model", "version", "load", "streaming", "seed", "window_seconds",
        "succeeded", "failed", "errors", "error_examples", "error_rate", "unsent", "unfinished",
        "requests_per_second", "items_per_second", "latency", "due_latency", "failure_latency",
        "failures", "client", "server_figures", "interrupted", "warnings", "notes",
    }  # fmt: skip
    assert set(content["latency"]) == {
        "count", "mean_seconds", "least_seconds", "p50_seconds", "p90_seconds", "p99_seconds",
        "p999_seconds", "greatest_seconds",
    }  # fmt: skip
    assert set(content["due_latency"]) == {
        "mean_seconds", "p50_seconds", "p90_seconds", "p99_seconds", "p999_seconds"
    }  # fmt: skip
    assert content["due_latency"]["p50_seconds"] == pytest.approx(0.004, rel=1 / 256)
    assert content["due_latency"]["p90_seconds"] is None, "half of what was due was lost"
    assert content["load"] == {"kind": "open", "rate": 8.0, "max_outstanding": 1024}
    assert content["requests_per_second"] == 4.0
    assert content["error_rate"] == 0.5
    assert content["latency"]["p50_seconds"] == pytest.approx(0.002, rel=1 / 256)


def test_a_report_of_nothing_is_json_too() -> None:
    content = json.loads(json.dumps(report(Tally()).to_json(), allow_nan=False))
    assert content["latency"] is None
    assert content["due_latency"] is None
    assert content["requests_per_second"] == 0.0
    assert content["error_rate"] == 0.0


def warnings(counts: Tally, load: Load | None = None) -> str:
    return "\n".join(report(counts, load).warnings)


def test_a_client_that_is_not_the_limit_is_not_called_one() -> None:
    counts = tally(5.0, 6.0, busiest_loop_share=0.5)
    for histogram in (counts.lateness, counts.loop_lag):
        histogram.record(MS // 10)
    assert warnings(counts) == ""


def test_a_busy_event_loop_is_called_the_limit() -> None:
    found = warnings(tally(5.0, busiest_loop_share=0.97), ClosedLoop(2))
    assert "the client was the limit: its event loop was busy for 97%" in found
    assert "--processes" in found


def test_more_processes_are_no_cure_where_each_request_in_flight_has_its_own() -> None:
    (found,) = report(tally(5.0, busiest_loop_share=0.97), ClosedLoop(2), processes=2).warnings
    assert "the client was the limit" in found
    assert "--processes" not in found


@pytest.mark.parametrize("measured", ["lateness", "loop_lag"])
def test_a_client_that_is_late_is_called_part_of_the_latencies(measured: str) -> None:
    counts = tally(*[5.0] * 100)
    getattr(counts, measured).record(4 * MS)
    assert "the client is part of the latencies" in warnings(counts)
    # The same wait is nothing beside a second.
    slow = tally(*[1_000.0] * 100)
    getattr(slow, measured).record(4 * MS)
    assert warnings(slow) == ""


def test_what_could_not_be_sent_is_said_and_counts_as_lost() -> None:
    counts = tally(5.0, unsent=3)
    assert "3 of 4 requests that were due could not be sent" in warnings(counts, OpenLoop(4.0, 1))
    assert report(counts).error_rate == 0.75


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [
        ("p99<20ms", "p99", 0.02),
        ("p50 < 800us", "p50", 0.0008),
        ("p90<=800µs", "p90", 0.0008),
        ("P99.9<1.5s", "p99.9", 1.5),
        ("mean<5ms", "mean", 0.005),
        ("throughput>500", "throughput", 500.0),
        ("throughput >= 500/s", "throughput", 500.0),
        ("error_rate<1%", "error_rate", 0.01),
        ("error rate <= 0.001", "error_rate", 0.001),
    ],
)
def test_an_objective_is_read(text: str, metric: str, bound: float) -> None:
    objective = Objective.parse(text)
    assert objective.metric == metric
    assert objective.bound == pytest.approx(bound)
    assert objective.text == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected METRIC<VALUE"),
        ("p99", "expected METRIC<VALUE"),
        ("p99=20ms", "expected METRIC<VALUE"),
        ("p99<-1ms", "expected METRIC<VALUE"),
        ("p99<fastms", "expected METRIC<VALUE"),
        ("p95<20ms", "got the metric 'p95'"),
        ("p99<20", "p99: expected one of us, µs, ms, s, got ''"),
        ("p99<20m", "got 'm'"),
        ("p99>20ms", "p99: expected < or <=, got >"),
        ("throughput<5", "throughput: expected > or >=, got <"),
        ("throughput>5ms", "throughput: expected one of no unit, /s, got 'ms'"),
        ("error_rate>1%", "error_rate: expected < or <="),
    ],
)
def test_a_malformed_objective_says_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(ObjectiveError) as refused:
        Objective.parse(text)
    assert expected in str(refused.value)


def test_objectives_are_met_or_missed_by_the_figures() -> None:
    counts = tally(*[10.0] * 90, *[50.0] * 10)
    found = report(counts)
    verdicts = {
        text: Objective.parse(text).is_met(found)
        for text in (
            "p50<11ms", "p50<9ms", "p90<11ms", "p99<49ms", "p99<51ms", "p99.9<=50ms", "mean<14.1ms",
            "mean<14ms", "throughput>=100", "throughput>100", "error_rate<1%", "error_rate<0%",
        )
    }  # fmt: skip
    assert verdicts == {
        "p50<11ms": True, "p50<9ms": False, "p90<11ms": True, "p99<49ms": False, "p99<51ms": True,
        "p99.9<=50ms": True, "mean<14.1ms": True, "mean<14ms": False, "throughput>=100": True,
        "throughput>100": False, "error_rate<1%": True, "error_rate<0%": False,
    }  # fmt: skip
    assert Objective.parse("p99<20ms").shown(found).startswith("p99<20ms: 49.9")


@pytest.mark.parametrize("lost", ["failed", "unsent"])
@pytest.mark.parametrize(
    ("text", "most_lost"),
    [("p50<20ms", 500), ("p90<20ms", 100), ("p99<20ms", 10), ("p99.9<20ms", 1), ("mean<20ms", 0)],
)
def test_a_request_without_an_answer_is_slower_than_any_bound(
    text: str, most_lost: int, lost: str
) -> None:
    def verdict(count: int) -> bool:
        how: dict[str, Any] = (
            {"unsent": count} if lost == "unsent" else {"failures": {"UNAVAILABLE": count}}
        )
        counts = tally(*[10.0] * (1_000 - count), **how)
        return Objective.parse(text).is_met(report(counts))

    assert verdict(most_lost)
    assert not verdict(most_lost + 1)
    assert not verdict(990)


def test_requests_without_an_answer_push_the_quantiles_of_what_was_due_up() -> None:
    counts = tally(*[10.0] * 985, *[50.0] * 10, unsent=5)
    assert report(counts).latency.p99_seconds == pytest.approx(0.05, rel=1 / 256)  # type: ignore[union-attr]
    counts = tally(*[10.0] * 986, *[50.0] * 9, unsent=5)
    assert report(counts).latency.p99_seconds == pytest.approx(0.01, rel=1 / 256)  # type: ignore[union-attr]
    assert not Objective.parse("p99<20ms").is_met(report(counts))


def test_an_objective_says_how_requests_without_an_answer_count() -> None:
    few = report(tally(*[10.0] * 999, unsent=1))
    counted = "failed or unsent, counted as slower than any bound"
    assert Objective.parse("p50<20ms").shown(few) == (
        f"p50<20ms: 10.000 ms, met (1 of 1,000 requests {counted})"
    )
    many = report(tally(*[10.0] * 3, failures={"UNAVAILABLE": 297}))
    assert Objective.parse("p99<20ms").shown(many) == (
        f"p99<20ms: unbounded, missed (297 of 300 requests {counted})"
    )
    assert "counted" not in Objective.parse("throughput>1").shown(many)
    assert "counted" not in Objective.parse("p99<20ms").shown(report(tally(10.0)))


def test_a_latency_objective_is_missed_when_nothing_was_answered() -> None:
    assert not Objective.parse("p99<20ms").is_met(report(Tally()))
    failed = report(tally(failures={"UNAVAILABLE": 2}))
    assert not Objective.parse("p99<20ms").is_met(failed)
    assert "p99<20ms: no request succeeded, missed" in Objective.parse("p99<20ms").shown(failed)


def test_an_objective_of_a_run_without_requests_says_that_nothing_was_measured() -> None:
    assert Objective.parse("p99<20ms").shown(report(Tally())) == (
        "p99<20ms: nothing was measured, missed"
    )


def sweep(*points: BenchReport) -> SweepReport:
    return SweepReport(points=points, interrupted=False)


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_plot_is_saved_by_the_files_ending(tmp_path: Path, ending: str, magic: bytes) -> None:
    points = [report(tally(*[ms] * 50), ClosedLoop(n)) for n, ms in ((1, 1.0), (2, 40.0))]
    path = tmp_path / f"plot.{ending}"
    plot_sweep(sweep(*points, report(Tally(), ClosedLoop(4))), path)
    assert path.read_bytes().startswith(magic)
    if ending == "svg":
        assert "latency (ms)" in path.read_text()


def test_a_plot_marks_loads_whose_latencies_are_those_of_a_part_of_the_requests(
    tmp_path: Path,
) -> None:
    points = [report(tally(1.0), ClosedLoop(1)), report(tally(1.0, unsent=3), OpenLoop(2.0))]
    plot_sweep(sweep(*points), tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "<!-- 2 (75% lost) -->" in text
    assert "<!-- 1 -->" in text


def test_answers_that_came_after_the_window_alone_are_drawn_too(tmp_path: Path) -> None:
    late = tally(1.0)
    late.answers = 0
    plot_sweep(sweep(report(late)), tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").exists()


def test_a_plot_that_cannot_be_written_names_its_file(
    tmp_path: Path,
) -> None:
    full = tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*full\.svg'"):
        plot_sweep(sweep(report(tally(1.0))), full)


def test_a_folder_that_takes_no_plot_is_found_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rights themselves do not bind the root user, as whom tests may run.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PlotError, match=r"the folder .* cannot be written to"):
        check_plot(tmp_path / "plot.png")


def test_a_plot_that_cannot_be_drawn_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sweep(report(tally(1.0)))
    with pytest.raises(PlotError, match=r"ends in \.png or \.svg"):
        plot_sweep(good, tmp_path / "plot.gif")
    with pytest.raises(PlotError, match="does not exist"):
        plot_sweep(good, tmp_path / "none" / "plot.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PlotError, match=r"folder\.png: expected a file, got a folder"):
        check_plot(tmp_path / "folder.png")
    with pytest.raises(PlotError, match="no request succeeded"):
        plot_sweep(sweep(report(Tally())), tmp_path / "plot.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlotError, match=r"pip install 'modelrail\[bench\]'"):
        plot_sweep(good, tmp_path / "plot.png")
