"""Runs load tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from modelrail.bench.inputs.pool import make_payloads
from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.clients import run_clients
from modelrail.bench.plan import BenchPlan
from modelrail.bench.report import BenchReport
from modelrail.bench.server.figures import Snapshot, difference, take
from modelrail.bench.server.target import describe
from modelrail.client.inference import AsyncInferenceClient

__all__ = ["run_bench", "run_sweep"]


async def run_bench(plan: BenchPlan, *, stop: asyncio.Event | None = None) -> BenchReport:
    """Runs one load test and returns what it found.

    A request that fails is counted and ends nothing. With one client process, the requests are
    sent from the running event loop: what else it does then is part of the latencies.

    Args:
        plan: What to send.
        stop: Set it to end the run early; what was measured by then is reported.

    Raises:
        PlanError: The plan's inputs do not fit the model.
        ModelrailError: The server cannot be reached, refuses the caller, or has no such model.
        ClientProcessDied: A client process ended without figures.
        OSError: A certificate or key cannot be read.
    """
    stop = stop or asyncio.Event()
    async with AsyncInferenceClient(plan.connection) as client:
        target = await describe(client, plan.model, plan.version)
        assignments = Assignment.of(plan, make_payloads(plan, target))
        begin: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def before_window() -> Snapshot | str:
            if plan.warm_up_seconds:
                window_ns = await begin + round(plan.warm_up_seconds * 1e9)
                await asyncio.sleep(max(window_ns - time.monotonic_ns(), 0) / 1e9)
            return await take(client, plan.model, plan.version)

        snapshot = asyncio.create_task(before_window())
        try:
            if not plan.warm_up_seconds:
                await snapshot  # Before the first request, so that all of them are counted.
            tally = await run_clients(assignments, begin.set_result, stop)
            before: Snapshot | str
            if snapshot.done():
                before = snapshot.result()
            elif stop.is_set():
                before = "the run was stopped during its warm-up"
            else:
                before = "the server did not answer in time"
        finally:
            snapshot.cancel()
            await asyncio.wait([snapshot])
        after = await take(client, plan.model, plan.version)
    figures = difference(before, after)
    notes = [*target.notes]
    if isinstance(figures, str):
        notes.append(figures)
    return BenchReport.of(
        plan,
        tally,
        server=target.server,
        server_figures=None if isinstance(figures, str) else figures,
        interrupted=stop.is_set(),
        notes=notes,
    )


async def run_sweep(
    plan: BenchPlan, values: Sequence[float], *, stop: asyncio.Event | None = None
) -> AsyncIterator[BenchReport]:
    """Runs one load test for each value of the plan's load, and yields each report.

    Args:
        plan: What to send, under loads of the kind of its own, which needs as many requests in
            flight as there are processes. A value with fewer takes one process for each.
        values: Concurrencies or rates, in the order in which to run them.
        stop: Set it to end the sweep with the run that goes on.

    Raises:
        PlanError: A value cannot be, or the plan's inputs do not fit the model.
        ModelrailError: See `run_bench`.
        ClientProcessDied: See `run_bench`.
        OSError: See `run_bench`.
    """
    stop = stop or asyncio.Event()
    # All values are tried before anything is sent.
    for step in [plan.under(plan.load.of_value(value)) for value in values]:
        if stop.is_set():
            return
        yield await run_bench(step, stop=stop)
