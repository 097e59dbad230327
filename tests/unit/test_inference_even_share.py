"""All callers of a busy model are shared evenly among batches of one size."""

from __future__ import annotations

import heapq
import itertools
import statistics

import pytest

from modelrail_inference.scheduling.even_share import UnderWay, even_share
from modelrail_inference.scheduling.run_time import RunTime


def learned(fixed_seconds: float, item_seconds: float, sizes: tuple[int, ...]) -> RunTime:
    run_time = RunTime()
    for size in sizes * 10:
        run_time.add(size, fixed_seconds + item_seconds * size)
    return run_time


def share_of(under_way: int, run_time: RunTime, *, most: int = 64, wait: float = 0.05) -> int:
    return even_share(
        under_way, most, instances=2, run_time=run_time, wait_seconds=lambda s: wait * s
    )


@pytest.mark.parametrize(
    ("fixed_seconds", "rows"), [(0.0, 8), (0.015, 11), (0.2, 16)], ids=["none", "some", "all"]
)
def test_sessions_wait_for_as_many_callers_as_larger_batches_are_worth(
    fixed_seconds: float, rows: int
) -> None:
    assert share_of(32, learned(fixed_seconds, 0.008, (8, 16))) == rows


@pytest.mark.parametrize(("wait", "rows"), [(0.0, 11), (0.2, 8)])
def test_the_longer_a_session_would_wait_the_more_callers_are_kept_behind(
    wait: float, rows: int
) -> None:
    assert share_of(32, learned(0.01, 0.008, (8, 16)), wait=wait) == rows


def test_while_all_batches_were_of_one_size_the_largest_tells_more() -> None:
    assert share_of(32, learned(0.0, 0.008, (8,))) == 16
    assert share_of(32, RunTime()) == 16


def test_no_share_is_larger_than_the_model_takes_or_smaller_than_a_request() -> None:
    assert share_of(1000, learned(0.2, 0.008, (8, 16)), most=64) == 64
    assert share_of(1, learned(0.0, 0.008, (8, 16))) == 1


def test_whoever_was_answered_counts_until_each_session_has_ended_another_batch() -> None:
    under_way = UnderWay(instances=2)
    under_way.came(32)
    for _ in range(3):
        under_way.ended(16)
        assert under_way.rows(16) == 32
    under_way.ended(16)
    assert under_way.rows(16) == 16
    under_way.came(20)
    assert under_way.rows(16) == 20


@pytest.mark.parametrize("callers", [8, 31, 32, 64])
def test_callers_who_come_again_wait_about_equally_long(callers: int) -> None:
    """Two sessions answer callers who ask again two milliseconds later; a batch has taken 11.

    After some 500 batches of one size the largest is tried anew: that is not seen here.
    """
    fixed_seconds, item_seconds, back_seconds = 0.002, 0.008, 0.002
    run_time = learned(fixed_seconds, item_seconds, (8, 16))
    under_way = UnderWay(instances=2)
    waiting: list[float] = [0.0] * callers
    running: list[int] = []
    order = itertools.count()
    events: list[tuple[float, int, list[float] | None]] = []
    latencies: list[float] = []
    now = 0.0

    def take(most: int) -> None:
        batch, waiting[:] = waiting[:most], waiting[most:]
        running.append(len(batch))
        seconds = fixed_seconds + item_seconds * len(batch)
        run_time.add(len(batch), seconds)
        heapq.heappush(events, (now + seconds, next(order), batch))

    under_way.came(callers)
    take(11)
    while len(latencies) < 100 * callers:
        if len(running) < 2 and waiting:
            take(share_of(under_way.rows(len(waiting) + sum(running)), run_time))
            continue
        now, _, batch = heapq.heappop(events)
        if batch is None:
            waiting.append(now)
            under_way.came(len(waiting) + sum(running))
            continue
        running.remove(len(batch))
        under_way.ended(len(waiting) + sum(running))
        for came in batch:
            latencies.append(now - came)
            heapq.heappush(events, (now + back_seconds, next(order), None))
    settled = latencies[20 * callers :]
    assert max(settled) <= 1.3 * statistics.median(settled)
