"""The closed loop: each caller sends when it has the answer to its last request."""

from __future__ import annotations

import asyncio
import itertools
import time

from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.sender import Send
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.tally import Tally
from modelrail.bench.measurement.window import Window

__all__ = ["send_closed_loop"]


async def send_closed_loop(
    assignment: Assignment, send: Send, window: Window, tally: Tally
) -> None:
    """Sends until the window closes, and waits for the answers to what was sent."""
    payloads = itertools.cycle(assignment.payloads)

    async def call(slot: int) -> None:
        while window.admits(due_ns := time.monotonic_ns()):
            payload = next(payloads)
            try:
                await send(slot, payload, assignment.timeout_seconds)
            except RequestFailed as failure:
                window.failed(due_ns, failure)
            except asyncio.CancelledError:
                tally.unfinished += 1
                raise
            else:
                window.answered(due_ns, payload.items)

    async with asyncio.TaskGroup() as group:
        for slot in range(assignment.slots):
            group.create_task(call(slot))
