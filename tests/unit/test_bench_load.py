"""Arrivals are a Poisson process; the timer, the window and the division among processes hold."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from modelrail.bench import BenchPlan, ClosedLoop, OpenLoop, PlanError
from modelrail.bench.inputs.request import Payload
from modelrail.bench.load.arrivals import poisson_arrivals
from modelrail.bench.load.assignment import Assignment
from modelrail.bench.load.open import OpenLoopSender
from modelrail.bench.load.sender import Send
from modelrail.bench.load.timer import PreciseTimer
from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.tally import Tally
from modelrail.bench.measurement.window import Window
from modelrail.client import Connection

RATE = 500.0
COUNT = 20_000
INF = float("inf")
HERE = Connection(address="unix:nowhere")


def arrivals(
    seed: tuple[int, ...], rate: float = RATE
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    times = itertools.islice(poisson_arrivals(rate, seed=seed), COUNT)
    return np.fromiter(times, dtype=np.float64) / 1e9


@pytest.mark.parametrize("seed", [(0,), (1, 2), (9,)])
def test_gaps_between_arrivals_are_exponential(seed: tuple[int, ...]) -> None:
    gaps = np.diff(arrivals(seed), prepend=0.0)
    assert (gaps >= 0).all()
    # The mean of n exponential gaps strays by 1/sqrt(n) of itself; four times that is rare.
    assert gaps.mean() == pytest.approx(1 / RATE, rel=4 / COUNT**0.5)
    # Kolmogorov-Smirnov at the level 0.001.
    ranks = np.arange(1, COUNT + 1) / COUNT
    expected = 1 - np.exp(-np.sort(gaps) * RATE)
    assert np.abs(expected - ranks).max() < 1.95 / COUNT**0.5
    # Memoryless: a long gap says nothing of the next.
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / COUNT**0.5


def test_two_processes_together_are_a_poisson_process_of_the_whole_rate() -> None:
    both = np.concatenate([arrivals((0, 1, part), RATE / 2) for part in range(2)])
    seconds = int(both.max() * 0.9)
    counts = np.histogram(both, bins=seconds, range=(0, seconds))[0]
    assert counts.mean() == pytest.approx(RATE, rel=0.03)
    # Variance and mean of a Poisson count are equal; evenly spaced arrivals would have none.
    assert 0.5 < counts.var() / counts.mean() < 2.0


def test_a_seed_repeats_its_arrivals_and_another_does_not() -> None:
    assert (arrivals((3, 1)) == arrivals((3, 1))).all()
    assert not (arrivals((3, 1)) == arrivals((3, 2))).any()


@pytest.mark.parametrize("rate", [1e-12, 1e-300])
def test_arrivals_of_the_least_rates_lie_far_ahead(rate: float) -> None:
    times = list(itertools.islice(poisson_arrivals(rate, seed=(0,)), 2_000))
    assert times[0] > 10**18, "some thirty years"
    assert times == sorted(times)


async def test_the_timer_fires_at_its_time_and_not_before() -> None:
    fired = asyncio.Event()
    timer = PreciseTimer(fired.set)
    for wait_ns in (-1, 0, 300_000, 3_000_000):
        fired.clear()
        at_ns = time.monotonic_ns() + wait_ns
        timer.arm(at_ns)
        await fired.wait()
        assert time.monotonic_ns() >= at_ns
    timer.close()


def test_a_window_counts_what_was_due_in_it_and_nothing_else() -> None:
    now_ns = time.monotonic_ns()
    tally = Tally()
    window = Window(tally, start_ns=now_ns - 1_000, duration_ns=10**12, requests=None)
    assert window.admits(now_ns - 2_000), "warm-up"
    window.answered(now_ns - 2_000, items=4)
    assert tally.succeeded == 0
    assert (tally.answers, tally.items) == (1, 4), "its answer came within the window"
    window.failed(now_ns - 2_000, RequestFailed("UNAVAILABLE", "warm-up"))
    assert tally.failed == 0
    window.answered(now_ns, items=1)
    window.failed(now_ns, RequestFailed("UNAVAILABLE", "busy"))
    assert (tally.succeeded, tally.failed) == (1, 1)
    assert tally.failure_examples == {"UNAVAILABLE": "busy"}
    assert not window.admits(window.end_ns)
    window.settle()
    assert tally.window_seconds == 1000.0


def test_a_window_by_count_admits_so_many_requests_and_ends_with_the_last_answer() -> None:
    tally = Tally()
    start_ns = time.monotonic_ns()
    window = Window(tally, start_ns=start_ns, duration_ns=None, requests=2)
    assert [window.admits(start_ns - 1), *(window.admits(start_ns + i) for i in range(3))] == [
        True,
        True,
        True,
        False,
    ]
    window.answered(start_ns, items=1)
    before_ns = time.monotonic_ns()
    window.answered(start_ns + 1, items=1)
    window.settle()
    assert before_ns <= tally.window_end_ns <= time.monotonic_ns()


def test_a_window_that_is_cut_before_it_opens_is_empty() -> None:
    tally = Tally()
    window = Window(tally, start_ns=time.monotonic_ns() + 10**12, duration_ns=10**9, requests=None)
    window.cut()
    window.settle()
    assert tally.window_seconds == 0.0


def test_the_parts_of_a_plan_add_up_to_it(tmp_path: Path) -> None:
    plan = BenchPlan(
        connection=Connection(address="h:1", api_key="k", ca_certificate=tmp_path / "ca.pem"),
        model="m",
        load=OpenLoop(rate=90.0, max_outstanding=100),
        duration_seconds=None,
        requests=10,
        processes=3,
    )
    payloads = [Payload(bytes([n]), n) for n in range(2)]
    parts = Assignment.of(plan, payloads)
    assert [part.slots for part in parts] == [34, 33, 33]
    assert [part.requests for part in parts] == [4, 3, 3]
    assert [part.rate for part in parts] == [30.0, 30.0, 30.0]
    assert len({part.seed for part in parts}) == 3
    assert all(part.channels >= 1 for part in parts)
    assert [part.payloads[0].items for part in parts] == [0, 1, 0]
    for part in parts:
        assert Assignment.from_json(json.loads(json.dumps(part.to_json()))) == part


def test_no_connection_starts_with_more_calls_than_servers_take() -> None:
    for concurrency in (1, 32, 100, 1_000, 10_000):
        plan = BenchPlan(connection=HERE, model="m", load=ClosedLoop(concurrency))
        assert concurrency / plan.channel_count <= 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model: expected a name"),
        ({"duration_seconds": None}, "duration_seconds, requests: expected one"),
        ({"requests": 5}, "duration_seconds, requests: expected one"),
        ({"duration_seconds": 0.0}, "duration_seconds: expected more than 0, got 0.0"),
        ({"duration_seconds": None, "requests": 0}, "requests: expected 1 or more, got 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds: expected more than 0, got nan"),
        ({"warm_up_seconds": -1.0}, "warm_up_seconds: expected 0 or more"),
        ({"batch_size": 0}, "batch_size: expected 1 or more"),
        (
            {"processes": 2},
            "processes: expected at most one for each of the 1 requests in flight, got 2",
        ),
        ({"streams": 2}, "streams: expected only together with streaming"),
        ({"shapes": {"x": (-1,)}}, "shapes: x: expected sizes of 0 or more"),
        ({"shapes": {"x": (0, 10**30)}}, "shapes: x: expected at most 2147483647, got 1000"),
        ({"ranges": {"x": (2.0, 1.0)}}, "ranges: x: expected LOW <= HIGH"),
        ({"ranges": {"x": (0.0, INF)}}, "ranges: x: expected finite bounds, got 0,inf"),
        ({"ranges": {"x": (-INF, 0.0)}}, "ranges: x: expected finite bounds, got -inf,0"),
        ({"ranges": {"x": (float("nan"), 1.0)}}, "ranges: x: expected finite bounds, got nan,1"),
        ({"ranges": {"x": (0, 10**400)}}, "ranges: x: expected finite bounds, got 0,1000"),
        (
            {"ranges": {"x": (-1e308, 1e308)}},
            "ranges: x: expected bounds with a finite difference, got -1e+308,1e+308",
        ),
        ({"duration_seconds": INF}, "duration_seconds: expected at most 1000000000, got inf"),
        ({"duration_seconds": 1e308}, "duration_seconds: expected at most 1000000000, got 1e+308"),
        ({"warm_up_seconds": 1e308}, "warm_up_seconds: expected at most 1000000000, got 1e+308"),
        ({"timeout_seconds": 1e308}, "timeout_seconds: expected at most 1000000000, got 1e+308"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as refused:
        BenchPlan(**{"connection": HERE, "model": "m", **fields})  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_a_load_that_cannot_be_is_refused() -> None:
    for make in (
        lambda: ClosedLoop(0),
        lambda: OpenLoop(0.0),
        lambda: OpenLoop(float("inf")),
        lambda: OpenLoop(1.0, max_outstanding=0),
        lambda: OpenLoop(1_000_001.0),
        lambda: OpenLoop(1.0).of_value(1e308),
        lambda: OpenLoop(1.0, max_outstanding=100_001),
        lambda: ClosedLoop(100_001),
        lambda: ClosedLoop(1).of_value(1.5),
        lambda: ClosedLoop(1).of_value(float("inf")),
        lambda: ClosedLoop(1).of_value(float("nan")),
    ):
        with pytest.raises(PlanError):
            make()


def test_a_rate_that_no_client_sends_is_refused_by_field() -> None:
    assert OpenLoop(1e6).rate == 1e6
    with pytest.raises(PlanError, match=r"^rate: expected at most 1000000, got 5000000\.0$"):
        OpenLoop(5e6)


class Sending:
    """Takes requests, and answers all of them at once or none."""

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        self.sent = 0

    async def __call__(self, slot: int, payload: Payload, timeout_seconds: float) -> None:
        self.sent += 1
        if not self.answers:
            await asyncio.Event().wait()


def behind(
    send: Send, tally: Tally, *, duration_seconds: float | None, requests: int | None = None
) -> tuple[OpenLoopSender, Window]:
    """Returns a sender whose schedule began 1000 s ago: a thousand million requests are due."""
    plan = BenchPlan(
        connection=HERE,
        model="m",
        load=OpenLoop(1e6, max_outstanding=3),
        duration_seconds=duration_seconds,
        requests=requests,
    )
    begin_ns = time.monotonic_ns() - 1000 * 10**9
    window = Window(
        tally,
        start_ns=begin_ns,
        duration_ns=None if duration_seconds is None else round(duration_seconds * 1e9),
        requests=requests,
    )
    (assignment,) = Assignment.of(plan, [Payload(b"", 1)])
    return OpenLoopSender(assignment, send, window, tally, begin_ns=begin_ns), window


async def test_an_open_loop_that_is_behind_gives_the_event_loop_a_turn() -> None:
    send, tally = Sending(answers=True), Tally()
    sender, _ = behind(send, tally, duration_seconds=None, requests=20_000)
    running = asyncio.create_task(sender.run())
    unsent_at: list[int] = []
    # It stands in line behind the first step of `run`.
    asyncio.get_running_loop().call_soon(lambda: unsent_at.append(tally.unsent))
    await running
    await sender.aclose()
    assert 0 < unsent_at[0] < 1_000
    assert send.sent > 3, "answers have their turn, too"
    assert send.sent + tally.unsent == 20_000


async def test_an_open_loop_that_is_behind_can_be_cancelled_and_counts_what_was_due() -> None:
    send, tally = Sending(answers=False), Tally()
    sender, window = behind(send, tally, duration_seconds=1e6)
    running = asyncio.create_task(sender.run())
    asyncio.get_running_loop().call_soon(running.cancel)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tally.unsent < 10_000, "far from all that is due"
    window.cut()
    await sender.aclose()
    window.settle()
    # A Poisson count strays by its root; six times that is rarer than rare.
    expected = 1e6 * tally.window_seconds
    assert tally.unsent + send.sent == pytest.approx(expected, abs=6 * expected**0.5)
    assert tally.unfinished == send.sent == 3


async def test_an_open_loop_ends_with_its_window_however_much_was_due_in_it() -> None:
    send, tally = Sending(answers=True), Tally()
    sender, _ = behind(send, tally, duration_seconds=900.0)
    await sender.run()
    await sender.aclose()
    assert send.sent == 3, "what was due in the window is sent after it, where there is room"
    assert tally.unsent == pytest.approx(900e6, abs=6 * 900e6**0.5)


async def test_a_window_that_ended_a_little_ago_counts_unsent_by_the_schedule() -> None:
    send, tally = Sending(answers=True), Tally()
    sender, _ = behind(send, tally, duration_seconds=200e-6)
    await sender.run()
    await sender.aclose()
    due = sum(at < 200_000 for at in itertools.islice(poisson_arrivals(1e6, seed=(0, 1, 0)), 500))
    assert (send.sent, tally.unsent) == (3, due - 3)


async def test_an_open_loop_stopped_in_its_warm_up_counts_nothing_unsent() -> None:
    send, tally = Sending(answers=False), Tally()
    sender, window = behind(send, tally, duration_seconds=1e6)
    window.start_ns = time.monotonic_ns() + 10**12
    running = asyncio.create_task(sender.run())
    asyncio.get_running_loop().call_soon(running.cancel)
    await asyncio.wait({running})
    window.cut()
    await sender.aclose()
    assert tally.unsent == 0
