"""`modelrail bench`: how a served model behaves under load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from modelrail.bench import (
    BenchPlan,
    BenchReport,
    ClientProcessDied,
    Objective,
    PlanError,
    PlotError,
    SweepReport,
    check_plot,
    plot_sweep,
    run_bench,
    run_sweep,
)
from modelrail.cli.command import Failure, command
from modelrail.cli.commands.models import AsJson
from modelrail.cli.commands.predict import target_of
from modelrail.cli.console import note, say_json, waiting
from modelrail.cli.load_options import (
    read_load,
    read_objectives,
    read_ranges,
    read_shapes,
)
from modelrail.cli.load_report import objectives_json, show_report, show_sweep, summary_line
from modelrail.cli.session import Session, UsageError

app = typer.Typer()

_MISSED = 3
"""Exit status when everything was measured and an objective was missed."""
_FLAGS = {
    "batch_size": "--batch",
    "channels": "--channels",
    "concurrency": "--concurrency",
    "duration_seconds": "--duration",
    "max_outstanding": "--max-outstanding",
    "processes": "--processes",
    "ranges": "--range",
    "rate": "--rate",
    "requests": "--requests",
    "seed": "--seed",
    "shapes": "--shape",
    "streaming": "--streaming",
    "streams": "--streams",
    "timeout_seconds": "--timeout",
    "warm_up_seconds": "--warm-up",
}
_SECONDS = 5.0


@command(app, "bench", "inference", "registry")
async def bench(
    session: Session,
    model: Annotated[
        str, typer.Argument(help="MODEL, MODEL@VERSION, or MODEL@ALIAS of the registry.")
    ],
    *,
    concurrency: Annotated[
        int | None,
        typer.Option(help="Closed loop: so many requests are in flight all the time. Default: 1."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: requests in a second on average, at the times of a Poisson process;"
            " latency counts from when a request was due."
        ),
    ] = None,
    max_outstanding: Annotated[
        int,
        typer.Option(
            help="With --rate: most requests in flight; what is due beyond is reported as unsent."
        ),
    ] = 1024,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Send on streams (ModelStreamInfer).")
    ] = False,
    streams: Annotated[
        int | None, typer.Option(help="With --streaming: number of streams. Default: at most 8.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Items in a request. Default: 1.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:D1,D2",
            help="Sizes of an input, without the batch axis, where the model takes any.",
        ),
    ] = None,
    value_range: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME:LOW,HIGH",
            help="Where an input's random numbers lie. Default: 0 to 1.",
        ),
    ] = None,
    input_data: Annotated[
        Path | None,
        typer.Option(
            help="Inputs to send in turn, in perf_analyzer's JSON format, in place of random ones.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random inputs and arrivals.")] = 0,
    warm_up: Annotated[
        float, typer.Option(help="Seconds under load before anything counts.")
    ] = 1.0,
    duration: Annotated[
        float | None, typer.Option(help=f"Seconds to measure. Default: {_SECONDS:g}.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Requests to measure, in place of --duration.")
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", help="Deadline of a request in seconds.")
    ] = 10.0,
    processes: Annotated[
        int,
        typer.Option(
            help="Client processes that share the load, at most one for each request in flight"
            " (in a sweep, smaller loads take fewer)."
        ),
    ] = 1,
    channels: Annotated[
        int | None,
        typer.Option(
            help="Connections. Default: about one for each 32 requests in flight. Servers refuse"
            " requests of a fresh connection beyond some number in flight, often 100."
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="LOAD:V1,V2",
            help="One run for each value: concurrency:1,2,4,8 or rate:100,200,400.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --sweep: picture of latency against throughput, .png or .svg."),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OBJECTIVE",
            help="For example p99<20ms, throughput>500, error_rate<1%; may be repeated. Failed and"
            " unsent requests count as slower than any bound. One that is missed (in a sweep: by"
            " every load) makes the exit status 3.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure a served model under load: latency, throughput, errors.

    Works with every server that speaks the Open Inference Protocol over gRPC.
    """
    if plot is not None and sweep is None:
        raise UsageError("--plot: expected only together with --sweep")
    objectives = read_objectives(slo or [])
    shapes, ranges = read_shapes(shape or []), read_ranges(value_range or [])
    try:
        load, values = read_load(concurrency, rate, max_outstanding, sweep)
        if plot is not None:
            check_plot(plot)
        name, version = await _target(session, model)
        plan = BenchPlan(
            connection=session.connection("inference"),
            model=name,
            version=version,
            load=load,
            streaming=streaming,
            batch_size=batch,
            shapes=shapes,
            ranges=ranges,
            recording=input_data,
            seed=seed,
            warm_up_seconds=warm_up,
            duration_seconds=_SECONDS if duration is None and requests is None else duration,
            requests=requests,
            timeout_seconds=timeout_seconds,
            # A load of a sweep takes as many as it can keep busy.
            processes=min(processes, load.in_flight) if values else processes,
            channels=channels,
            streams=streams,
        )
        output = _Output(objectives, plot, json)
        await _measure(plan, values, output)
    except PlanError as error:
        raise UsageError(_with_flag(str(error))) from error
    except PlotError as error:
        raise UsageError(f"--plot: {error}") from error
    except ClientProcessDied as error:
        raise Failure(str(error)) from error


async def _target(session: Session, reference: str) -> tuple[str, str]:
    # Other servers have models whose names our registry would not take.
    name, at, version = reference.rpartition("@")
    if not at:
        return reference, ""
    return (name, version) if version.isdecimal() else await target_of(session, reference)


@dataclass(frozen=True, slots=True)
class _Output:
    """What to make of the reports."""

    objectives: Sequence[Objective]
    plot: Path | None
    as_json: bool

    def show(self, reports: Sequence[BenchReport], *, is_sweep: bool, interrupted: bool) -> None:
        """Writes the reports, and the plot of a sweep."""
        sweep = SweepReport(points=reports, interrupted=interrupted)
        if self.as_json:
            points = [
                report.to_json() | {"objectives": objectives_json(report, self.objectives)}
                for report in reports
            ]
            say_json({"points": points, "interrupted": interrupted} if is_sweep else points[0])
        elif is_sweep:
            show_sweep(sweep, self.objectives)
        else:
            show_report(reports[0], self.objectives)
        if self.plot is not None and any(report.latency for report in reports):
            plot_sweep(sweep, self.plot)
            note(f"plot saved as {self.plot}")

    def check(self, reports: Sequence[BenchReport]) -> None:
        """Returns when the load was answered and the objectives were met.

        Raises:
            Failure: Nothing was answered, or an objective was missed.
        """
        if not any(report.succeeded for report in reports):
            codes = ", ".join(sorted({code for report in reports for code in report.errors}))
            raise Failure(f"no request succeeded: {codes or 'none was sent'}")
        if any(all(o.is_met(report) for o in self.objectives) for report in reports):
            return
        if len(reports) > 1:
            raise Failure("no load met every objective", status=_MISSED)
        missed = [o.shown(reports[0]) for o in self.objectives if not o.is_met(reports[0])]
        raise Failure(f"objectives: {'; '.join(missed)}", status=_MISSED)


async def _measure(plan: BenchPlan, values: Sequence[float], output: _Output) -> None:
    """Runs the load or the loads; what is measured is shown, even where a later one fails.

    A first Ctrl-C ends them early, a second one breaks them off and shows nothing.
    """
    stop = asyncio.Event()
    reports: list[BenchReport] = []

    async def run_all() -> None:
        if not values:
            with waiting(f"measuring {plan.model} under {plan.load}"):
                reports.append(await run_bench(plan, stop=stop))
            return
        sweep = run_sweep(plan, values, stop=stop)
        for number, value in enumerate(values, start=1):
            load = plan.load.of_value(value)
            with waiting(f"measuring {plan.model} under {load} ({number} of {len(values)})"):
                report = await anext(sweep, None)
            if report is None:
                return  # It was stopped.
            reports.append(report)
            note(summary_line(report))

    running = asyncio.ensure_future(run_all())
    try:
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            note("stopping; a second Ctrl-C breaks off at once")
            await running
            raise
    except BaseException:
        if reports and not running.cancelled():
            output.show(reports, is_sweep=bool(values), interrupted=True)
        raise
    output.show(reports, is_sweep=bool(values), interrupted=False)
    output.check(reports)


def _with_flag(message: str) -> str:
    """Returns a message about fields of the plan, about the options that set them."""
    names, colon, rest = message.partition(":")
    fields = names.split(", ")
    if not colon or not _FLAGS.keys() >= set(fields):
        return message
    return f"{', '.join(_FLAGS[name] for name in fields)}:{rest}"
