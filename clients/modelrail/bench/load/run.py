"""One client process's part of a run: warm-up, measuring, and the last answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.closed import send_closed_loop
from modelrail.bench.load.open import OpenLoopSender
from modelrail.bench.load.sender import Send, open_sender
from modelrail.bench.measurement.monitor import ClientMonitor
from modelrail.bench.measurement.tally import Tally
from modelrail.bench.measurement.window import Window

__all__ = ["run_assignment"]


async def run_assignment(
    assignment: Assignment, when_ready: Callable[[], Awaitable[int]], stop: asyncio.Event
) -> Tally:
    """Sends what is assigned and counts.

    Args:
        assignment: What to send.
        when_ready: Called when the connections stand; returns when to start, as a time of
            `time.monotonic_ns()`, which is one clock for all processes of a machine.
        stop: Ends the run early: what is in flight is broken off, and what was measured by then
            is returned.

    Raises:
        OSError: A certificate or key cannot be read.
    """
    tally = Tally()
    async with open_sender(assignment) as send:
        begin_ns = await when_ready()
        seconds = assignment.duration_seconds
        window = Window(
            tally,
            start_ns=begin_ns + round(assignment.warm_up_seconds * 1e9),
            duration_ns=None if seconds is None else round(seconds * 1e9),
            requests=assignment.requests,
        )
        monitor = ClientMonitor(tally)
        sending = asyncio.ensure_future(_send(assignment, send, window, tally, begin_ns))
        stopping = asyncio.ensure_future(stop.wait())
        loop = asyncio.get_running_loop()
        opening = loop.call_at(window.start_ns / 1e9, monitor.start)
        closing = loop.call_at(window.end_ns / 1e9, monitor.stop)
        try:
            await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                window.cut()
                monitor.stop()
                sending.cancel()
                await asyncio.wait({sending})
            if not sending.cancelled():
                sending.result()
        finally:
            opening.cancel()
            closing.cancel()
            sending.cancel()
            stopping.cancel()
            await asyncio.wait({sending, stopping})
            monitor.stop()
            monitor.close()
    window.settle()
    return tally


async def _send(
    assignment: Assignment, send: Send, window: Window, tally: Tally, begin_ns: int
) -> None:
    await asyncio.sleep(max(begin_ns - time.monotonic_ns(), 0) / 1e9)
    if assignment.rate is None:
        await send_closed_loop(assignment, send, window, tally)
        return
    sender = OpenLoopSender(assignment, send, window, tally, begin_ns=begin_ns)
    try:
        await sender.run()
    finally:
        await sender.aclose()
