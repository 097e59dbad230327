"""Load tests of any server that speaks the Open Inference Protocol over gRPC.

    plan = BenchPlan(
        connection=Connection(address="127.0.0.1:8001"),
        model="flowers",
        load=ClosedLoop(32),  # or OpenLoop(rate=500.0)
        duration_seconds=5.0,
    )
    report = await run_bench(plan)
    report.requests_per_second, report.latency.p99_seconds, report.errors
    Objective.parse("p99<20ms").is_met(report)

`modelrail bench` is this on the command line. What is measured, and how, stands with the classes:
`ClosedLoop` and `OpenLoop` (when requests leave, and from when their latency counts), `BenchPlan`,
`BenchReport` (every figure with its unit; `to_json()`), `run_sweep` and `plot_sweep`.
"""

from modelrail.bench.figures import (
    ClientFigures,
    DueLatency,
    FailureFigures,
    LatencySummary,
    ServerFigures,
)
from modelrail.bench.load.clients import ClientProcessDied
from modelrail.bench.objective import Objective, ObjectiveError
from modelrail.bench.plan import BenchPlan, ClosedLoop, Load, OpenLoop, PlanError
from modelrail.bench.plot import PlotError, check_plot, plot_sweep
from modelrail.bench.report import BenchReport, SweepReport
from modelrail.bench.run import run_bench, run_sweep

__all__ = [
    "BenchPlan",
    "BenchReport",
    "ClientFigures",
    "ClientProcessDied",
    "ClosedLoop",
    "DueLatency",
    "FailureFigures",
    "LatencySummary",
    "Load",
    "Objective",
    "ObjectiveError",
    "OpenLoop",
    "PlanError",
    "PlotError",
    "ServerFigures",
    "SweepReport",
    "check_plot",
    "plot_sweep",
    "run_bench",
    "run_sweep",
]
