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
from modelrail.bench.load.arrivals import count_arrivals, poisson_arrivals
from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.sender import Send
from modelrail.bench.load.timer import PreciseTimer
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.tally import Tally
from modelrail.bench.measurement.window import Window

__all__ = ["OpenLoopSender"]

_LEAST_SECONDS = 0.001
"""What a request still gets that leaves after its deadline, because the client was so late."""
_ARRIVALS_A_TURN = 256
"""A client that is behind looks at so many before answers, signals and `stop` have their turn."""
_REST = 1
"""Sets the seed of a count apart from that of the arrivals."""


class OpenLoopSender:
    """Sends at the times of a Poisson process, with a bounded number of requests in flight.

    A request that finds the bound reached is not sent and counts as unsent: to let it wait here
    would put a queue in front of the server that is not the server's, and use up its deadline.
    At a rate that the client cannot keep up with, what is still to be sent when the window closes
    counts as unsent too.

    Args:
        assignment: What to send, at which rate.
        send: Sends one request.
        window: What is measured, and when it is over.
        tally: Where requests are counted that did not go as they should.
        begin_ns: When the schedule begins.
    """

    def __init__(
        self, assignment: Assignment, send: Send, window: Window, tally: Tally, *, begin_ns: int
    ) -> None:
        if assignment.rate is None:
            raise ValueError("assignment: expected a rate, got none")
        self._rate = assignment.rate
        self._seed = assignment.seed
        self._timeout_ns = round(assignment.timeout_seconds * 1e9)
        self._send = send
        self._window = window
        self._tally = tally
        self._payloads = itertools.cycle(assignment.payloads)
        arrivals = poisson_arrivals(assignment.rate, seed=assignment.seed)
        self._arrivals = (begin_ns + after for after in arrivals)
        self._next_ns = next(self._arrivals)
        # The slot that was freed last is taken first: few requests in flight need few connections.
        self._free = list(range(assignment.slots))[::-1]
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._timer = PreciseTimer(self._pump)
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        """Sends until the window closes, and waits for the answers to what was sent."""
        self._pump()
        await self._is_over.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Breaks off what is in flight; what was due by now and did not leave counts as unsent."""
        if not self._is_over.is_set():
            self._finish()
        self._timer.close()
        self._tally.unfinished += len(self._tasks)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _pump(self) -> None:
        """Sends what is due, and sets the timer for what is due next."""
        looked_at = 0
        while not self._is_over.is_set():
            due_ns = self._next_ns
            has_ended = time.monotonic_ns() >= self._window.end_ns
            is_turn_over = looked_at >= _ARRIVALS_A_TURN
            # However late this is noticed, what was due in the window is sent, if there is room.
            if has_ended and (due_ns >= self._window.end_ns or (is_turn_over and not self._free)):
                self._finish()
            elif due_ns > time.monotonic_ns():
                self._timer.arm(min(due_ns, self._window.end_ns))
                return
            elif is_turn_over and not has_ended:
                self._loop.call_soon(self._pump)
                return
            elif not self._window.admits(due_ns):
                self._is_over.set()
            else:
                looked_at += 1
                self._next_ns = next(self._arrivals)
                self._start(due_ns)

    def _finish(self) -> None:
        """Sends no more; what was due in the window by now counts as unsent, all at once."""
        self._is_over.set()
        end_ns = min(self._window.end_ns, time.monotonic_ns())
        begin_ns = max(self._next_ns, self._window.start_ns)
        if begin_ns >= end_ns:
            return
        # The process has no memory: what comes after an arrival is independent of what came before.
        seconds = (end_ns - begin_ns) / 1e9
        rest = count_arrivals(self._rate, seconds, seed=(*self._seed, _REST))
        due = self._window.measures(self._next_ns) + rest
        self._tally.unsent += self._window.admits_of(due)

    def _start(self, due_ns: int) -> None:
        if not self._free:
            self._tally.unsent += self._window.measures(due_ns)
            return
        task = asyncio.create_task(self._request(self._free.pop(), next(self._payloads), due_ns))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, slot: int, payload: Payload, due_ns: int) -> None:
        late_ns = time.monotonic_ns() - due_ns
        if self._window.measures(due_ns):
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
