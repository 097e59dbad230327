"""Reports of load tests, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from modelrail.bench import BenchReport, LatencySummary, Objective, ServerFigures, SweepReport
from modelrail.cli.console import note, say, stdout

__all__ = ["objectives_json", "show_report", "show_sweep", "summary_line"]


def show_report(report: BenchReport, objectives: Sequence[Objective]) -> None:
    """Writes one report: what was sent, figures, errors, objectives, warnings."""
    say(_heading(report), style="bold")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan")
    table.add_column()
    for name, text in _rows(report):
        table.add_row(name, text)
    # Zeros of a run that measured nothing would read as figures of the server.
    if report.window_seconds or not report.interrupted:
        stdout().print(table)
    for failure in report.failures:
        kind = f"{failure.code} {failure.reason}".rstrip()
        say(f"  {failure.latency.count:,} x {kind}: {failure.example}", style="red")
    for objective in objectives:
        say(objective.shown(report), style="green" if objective.is_met(report) else "red")
    _show_remarks([report])


def show_sweep(sweep: SweepReport, objectives: Sequence[Objective]) -> None:
    """Writes one table with a row for each load, and what is to be said about them."""
    first = sweep.points[0]
    say(_target(first), style="bold")
    columns = [
        sweep.varies,
        "requests/s",
        "items/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "failed",
        "unsent",
        "queue ms",
        "compute ms",
        "batch",
        "client",
    ]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    shows_processes = any(point.client.processes > 1 for point in sweep.points)
    if shows_processes:
        table.add_column("processes", justify="right")
    if objectives:
        table.add_column("objectives")
    for point in sweep.points:
        cells = _cells(point)
        if shows_processes:
            cells.append(f"{point.client.processes}")
        if objectives:
            missed = [objective.text for objective in objectives if not objective.is_met(point)]
            cells.append(f"missed {', '.join(missed)}" if missed else "met")
        table.add_row(*cells)
    stdout().print(table)
    _show_remarks(sweep.points)
    if any(objective.remark(point) for objective in objectives for point in sweep.points):
        note("note: objectives count failed and unsent requests as slower than any bound")
    good = [
        point.load_value
        for point in sweep.points
        if all(objective.is_met(point) for objective in objectives)
    ]
    if objectives and good:
        say(f"highest {sweep.varies} that meets the objectives: {max(good):g}", style="green")


def summary_line(report: BenchReport) -> str:
    """Returns a report in one line, for the way through a sweep."""
    latency = report.latency
    answered = f"{report.requests_per_second:,.1f} requests/s"
    if latency is not None:
        answered += f", p50 {_ms(latency.p50_seconds)} ms, p99 {_ms(latency.p99_seconds)} ms"
    lost = f", {report.lost:,} failed or unsent" if report.lost else ""
    return f"{_load(report)}: {answered}{lost}"


def objectives_json(report: BenchReport, objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Returns what came of the objectives as JSON.

    Values are in seconds, requests/s or parts of 1; None where a latency has no bound.
    """
    return [
        {
            "objective": objective.text,
            "value": objective.value(report),
            "met": objective.is_met(report),
            "remark": objective.remark(report),
        }
        for objective in objectives
    ]


def _heading(report: BenchReport) -> str:
    seconds = report.window_seconds
    return f"{_target(report)}, {_load(report)}, {seconds:.{1 if seconds >= 1 else 3}f} s"


def _target(report: BenchReport) -> str:
    version = f" version {report.version}" if report.version else ""
    server = f" ({report.server})" if report.server else ""
    method = "ModelStreamInfer" if report.streaming else "ModelInfer"
    return f"{report.model}{version} at {report.address}{server}, {method}"


def _load(report: BenchReport) -> str:
    if report.load["kind"] == "closed":
        return f"concurrency {report.load['concurrency']}"
    return f"rate {report.load['rate']:g}/s"


def _rows(report: BenchReport) -> list[tuple[str, str]]:
    requests = [f"{report.succeeded:,} succeeded", f"{report.failed:,} failed"]
    requests += [
        f"{count:,} {name}" for name in ("unsent", "unfinished") if (count := getattr(report, name))
    ]
    rows = [
        ("requests", ", ".join(requests)),
        (
            "throughput",
            f"{report.requests_per_second:,.1f} requests/s, {report.items_per_second:,.1f} items/s",
        ),
        ("latency", _latency(report.latency) + _among(report)),
    ]
    if report.failure_latency is not None:
        rows.append(("failures", _latency(report.failure_latency)))
    if report.server_figures is not None:
        rows.append(("server", _server(report.server_figures)))
    client = report.client
    parts = [
        f"{client.processes} process{'es' if client.processes > 1 else ''}",
        f"{client.cpu_cores:.2f} cores",
        f"event loop {client.busiest_loop_share:.0%} busy",
    ]
    if client.lateness is not None:
        parts.append(f"requests left {_ms(client.lateness.p99_seconds)} ms late (p99)")
    elif client.loop_lag is not None:
        parts.append(f"timers {_ms(client.loop_lag.p99_seconds)} ms late (p99)")
    rows.append(("client", ", ".join(parts)))
    return rows


def _among(report: BenchReport) -> str:
    """Says of how many answers the latencies are, where others have none."""
    return (
        f", of the {report.succeeded:,} that succeeded" if report.succeeded and report.lost else ""
    )


def _latency(summary: LatencySummary | None) -> str:
    if summary is None:
        return "no request succeeded"
    return (
        f"p50 {_ms(summary.p50_seconds)}, p90 {_ms(summary.p90_seconds)},"
        f" p99 {_ms(summary.p99_seconds)}, p99.9 {_ms(summary.p999_seconds)},"
        f" mean {_ms(summary.mean_seconds)}, max {_ms(summary.greatest_seconds)} ms"
    )


def _server(figures: ServerFigures) -> str:
    parts = [f"queue {_ms(figures.queue_seconds)}, compute {_ms(_compute(figures))} ms a request"]
    if figures.mean_batch_size is not None:
        runs = "1 run" if figures.executions == 1 else f"{figures.executions:,} runs"
        parts.append(f"{figures.mean_batch_size:.2f} items a run ({runs})")
    return ", ".join(parts)


def _compute(figures: ServerFigures) -> float | None:
    parts = (
        figures.compute_input_seconds,
        figures.compute_infer_seconds,
        figures.compute_output_seconds,
    )
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _cells(point: BenchReport) -> list[str]:
    latency, figures = point.latency, point.server_figures
    quantiles = ("p50_seconds", "p90_seconds", "p99_seconds", "p999_seconds")
    batch = figures.mean_batch_size if figures else None
    return [
        f"{point.load_value:g}",
        f"{point.requests_per_second:,.1f}",
        f"{point.items_per_second:,.1f}",
        *(_ms(getattr(latency, name) if latency else None) for name in quantiles),
        f"{point.failed:,}",
        f"{point.unsent:,}",
        _ms(figures.queue_seconds if figures else None),
        _ms(_compute(figures) if figures else None),
        "-" if batch is None else f"{batch:.2f}",
        f"{point.client.busiest_loop_share:.0%}",
    ]


def _ms(seconds: float | None) -> str:
    """Returns milliseconds with three digits that say something."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _show_remarks(reports: Sequence[BenchReport]) -> None:
    several = len(reports) > 1
    for report in reports:
        for warning in report.warnings:
            where = f"{_load(report)}: " if several else ""
            say(f"warning: {where}{warning}", style="yellow")
    for text in dict.fromkeys(text for report in reports for text in report.notes):
        note(f"note: {text}")
