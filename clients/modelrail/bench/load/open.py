"""The open loop: requests leave when they are due, whatever became of those before them.

No coordinated omission: a request's latency counts from the time that the schedule says, so a
server that stalls is charged with every request that was due meanwhile.
Source: G. Tene, "How NOT to Measure Latency" (2013).
"""

from __future__ import annotations

import asyncio
import itertools
import time

from modelrail.bench.inputs.request import Payload
from modelrail.bench.load.arrivals import poisson_arrivals
from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.failure import RequestFailed
from modelrail.bench.load.sender import Send
from modelrail.bench.load.tally import Tally
from modelrail.bench.load.timer import PreciseTimer
from modelrail.bench.load.window import Window

__all__ = ["OpenLoopSender"]

_LEAST_SECONDS = 0.001
"""What a request that waited for its turn almost to its deadline still gets."""


class OpenLoopSender:
    """Sends at the times of a Poisson process, with a bounded number of requests in flight.

    A request that is due while the bound is reached waits; when its deadline passes meanwhile, or
    the window closes, it counts as unsent.

    Args:
        assignment: What to send, at which rate.
        send: Sends one request.
        window: What is measured, and when it is over.
        tally: Where requests are counted that did not go as they should.
        begin_ns: When the schedule begins.
    """

    def __init__(
        self,
        assignment: Assignment,
        send: Send,
        window: Window,
        tally: Tally,
        *,
        begin_ns: int,
    ) -> None:
        self._timeout_ns = round(assignment.timeout_seconds * 1e9)
        self._send = send
        self._window = window
        self._tally = tally
        self._payloads = itertools.cycle(assignment.payloads)
        if assignment.rate is None:
            raise ValueError("assignment: expected a rate, got none")
        arrivals = poisson_arrivals(assignment.rate, seed=assignment.seed)
        self._arrivals = (begin_ns + after for after in arrivals)
        self._next_ns = next(self._arrivals)
        # The slot that was freed last is taken first: few requests in flight need few connections.
        self._free = list(range(assignment.slots))[::-1]
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer = PreciseTimer(self._pump)
        self._is_blocked = False
        self._schedule_over = asyncio.Event()
        self._closing: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Sends until the window closes, and waits for the answers to what was sent."""
        loop = asyncio.get_running_loop()
        self._closing = loop.call_at(self._window.end_ns / 1e9, self._close)
        self._timer.arm(self._next_ns)
        await self._schedule_over.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Breaks off what is in flight."""
        self._count_waiting()
        self._schedule_over.set()
        self._timer.close()
        if self._closing is not None:
            self._closing.cancel()
        self._tally.unfinished += len(self._tasks)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _pump(self) -> None:
        """Sends everything that is due, as far as the bound allows."""
        while not self._schedule_over.is_set():
            now_ns = time.monotonic_ns()
            due_ns = self._next_ns
            if due_ns > now_ns:
                self._is_blocked = False
                self._timer.arm(due_ns)
                return
            if not self._free:
                self._is_blocked = True
                return
            if not self._window.admits(due_ns):
                self._schedule_over.set()
                return
            self._next_ns = next(self._arrivals)
            is_measured = self._window.measures(due_ns)
            if due_ns + self._timeout_ns <= now_ns:
                self._tally.unsent += is_measured
                continue
            self._tally.delayed += is_measured and self._is_blocked
            slot = self._free.pop()
            task = asyncio.create_task(
                self._request(slot, next(self._payloads), due_ns, is_delayed=self._is_blocked)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _close(self) -> None:
        """Ends the schedule with the window; what is due and finds no place will not be sent."""
        self._pump()
        self._count_waiting()
        self._schedule_over.set()

    def _count_waiting(self) -> None:
        until_ns = min(self._window.end_ns, time.monotonic_ns())
        while not self._schedule_over.is_set() and self._next_ns < until_ns:
            if self._window.admits(self._next_ns):
                self._tally.unsent += self._window.measures(self._next_ns)
            self._next_ns = next(self._arrivals)

    async def _request(self, slot: int, payload: Payload, due_ns: int, *, is_delayed: bool) -> None:
        late_ns = time.monotonic_ns() - due_ns
        if not is_delayed and self._window.measures(due_ns):
            self._tally.lateness.record(late_ns)
        left_seconds = max((self._timeout_ns - late_ns) / 1e9, _LEAST_SECONDS)
        try:
            await self._send(slot, payload, left_seconds)
        except RequestFailed as failure:
            self._window.failed(due_ns, failure)
        else:
            self._window.answered(due_ns, payload.items)
        finally:
            self._free.append(slot)
            if self._is_blocked:
                self._pump()
