"""The client notices when it is busy itself, and is silent when it only waits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from modelrail.bench import BenchPlan, BenchReport, ClosedLoop
from modelrail.bench.load.timer import PreciseTimer
from modelrail.bench.measurement.monitor import ClientMonitor, Clocks
from modelrail.bench.measurement.tally import Tally
from modelrail.client import Connection

MS = 1_000_000


@dataclass
class Times:
    """Clocks that stand still until a test moves them."""

    now_ns: int = 0
    worked_ns: int = 0

    def work(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds
        self.worked_ns += nanoseconds

    def wait(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds

    @property
    def clocks(self) -> Clocks:
        return Clocks(
            monotonic_ns=lambda: self.now_ns,
            thread_seconds=lambda: self.worked_ns / 1e9,
            process_seconds=lambda: 2 * self.worked_ns / 1e9,
        )


def warnings(tally: Tally) -> str:
    """What the report says of a run whose answers took 5 ms, and which lasted one second."""
    for _ in range(100):
        tally.latency.record(5 * MS)
    counts = replace(tally, window_end_ns=1_000 * MS, answers=100)
    plan = BenchPlan(connection=Connection(address="unix:x"), model="m", load=ClosedLoop(8))
    report = BenchReport.of(
        plan, counts, server="", server_figures=None, interrupted=False, notes=[]
    )
    return "\n".join(report.warnings)


async def a_turn_of_the_timer(tally: Tally) -> None:
    """Returns when the monitor has looked at the clock once more."""
    before = tally.loop_lag.count
    while tally.loop_lag.count == before:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)


async def test_a_loop_that_always_works_is_called_the_limit() -> None:
    tally, times = Tally(), Times()
    monitor = ClientMonitor(tally, times.clocks)
    monitor.start()
    times.work(970 * MS)
    times.wait(30 * MS)
    monitor.stop()
    monitor.close()
    assert tally.busiest_loop_share == 0.97
    assert tally.cpu_seconds == 1.94
    assert "the client was the limit: its event loop was busy for 97%" in warnings(tally)


async def test_a_loop_that_mostly_waits_is_not_called_the_limit() -> None:
    tally, times = Tally(), Times()
    monitor = ClientMonitor(tally, times.clocks)
    monitor.start()
    for _ in range(3):
        times.wait(5 * MS)  # the period of its timer: it comes in time
        await a_turn_of_the_timer(tally)
    times.work(30 * MS)
    times.wait(955 * MS)
    monitor.stop()
    monitor.close()
    assert tally.busiest_loop_share == 0.03
    assert tally.loop_lag.greatest == 0
    assert warnings(tally) == ""


async def test_a_loop_that_is_held_up_is_called_part_of_the_latencies() -> None:
    tally, times = Tally(), Times()
    monitor = ClientMonitor(tally, times.clocks)
    monitor.start()
    times.wait(5 * MS + 4 * MS)
    await a_turn_of_the_timer(tally)
    monitor.stop()
    monitor.close()
    assert tally.loop_lag.greatest == 4 * MS
    assert "the client is part of the latencies" in warnings(tally)


async def test_what_comes_before_and_after_the_window_counts_nowhere() -> None:
    tally, times = Tally(), Times()
    monitor = ClientMonitor(tally, times.clocks)
    times.work(500 * MS)
    monitor.start()
    times.wait(100 * MS)
    monitor.stop()
    times.work(500 * MS)
    monitor.stop()
    monitor.close()
    assert (tally.busiest_loop_share, tally.cpu_seconds) == (0.0, 0.0)


async def test_the_real_clocks_tell_a_loop_that_works_from_one_that_waits() -> None:
    worked, waited = Tally(), Tally()
    busy, began = ClientMonitor(worked), time.monotonic()
    busy.start()
    spun, until = time.monotonic(), time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
    spun = time.monotonic() - spun
    await a_turn_of_the_timer(worked)
    busy.stop()
    busy.close()
    # However little of the processor other work leaves to this thread.
    assert worked.busiest_loop_share >= 0.05 / (time.monotonic() - began)
    assert worked.cpu_seconds >= 0.05
    assert worked.loop_lag.greatest >= spun * 1e9 - 5 * MS
    assert "the client is part of the latencies" in warnings(worked)

    idle, over = ClientMonitor(waited), asyncio.Event()
    timer = PreciseTimer(over.set)
    idle.start()
    timer.arm(time.monotonic_ns() + 50 * MS)
    await over.wait()
    idle.stop()
    idle.close()
    timer.close()
    assert waited.busiest_loop_share < 0.5
    assert "the client was the limit" not in warnings(waited)
